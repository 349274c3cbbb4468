"""The NAS source against a real nfs-ganesha: each place is a folder of one export, read as a user without
special rights."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from csi.errors import DataCacheError, PermissionDenied
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.nas import NasSpec
from csi.sources.nfs.source import NasSource
from csi.sources.source import Source
from tests.conformance.kit import Tree
from tests.conformance.trees import spoil
from tests.origins.ganesha import Export, Ganesha

USER = 1234
_ESTABLISHED = "01"
_PROGRAM = """
from csi.sources.nfs.source import NasSource

def open(spec, credential):
    return NasSource(spec)
"""


class NasKit:
    """One export over NFS `version` ("3" or "4.0").

    A "guarded" `export` wants a source port below 1024 and makes root nobody, and its files are their owner's
    alone: who may read them is the uid of the spec, and neither root nor anybody else.
    """

    top_files = True
    lists_by_reading = False
    pins_revisions = False
    verifies = False
    forbidden: tuple[type[DataCacheError], ...] = (PermissionDenied,)
    unreadable: tuple[type[DataCacheError], ...] = (PermissionDenied,)
    idle_connections = 0

    def __init__(self, version: str = "3", export: str = "open") -> None:
        self.name = f"NAS v{version}, {export} export"
        self._version, self._guarded = version, export == "guarded"
        self._count = 0

    def __enter__(self) -> Self:
        self._export = Path(tempfile.mkdtemp(prefix="nas-kit-"))
        self._export.chmod(0o755)
        squash = "Root_Squash" if self._guarded else "No_Root_Squash"
        self._server = Ganesha([Export(self._export, squash=squash, privileged_port=self._guarded)])
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, trace)
        shutil.rmtree(self._export)

    def missing(self) -> str:
        lacking = [program for program in ("ganesha.nfsd", "rpcbind") if shutil.which(program) is None]
        if lacking:
            return f"{' and '.join(lacking)} not installed (Debian packages nfs-ganesha, nfs-ganesha-vfs, rpcbind)"  # noqa: E501
        return "" if os.geteuid() == 0 else "nfs-ganesha needs root"

    def place(self, tree: Tree) -> CacheSpec:
        self._count += 1
        folder = self._export / f"place-{self._count}"
        folder.mkdir()
        for path, data in tree.items():
            _put(folder / path, data)
        if self._guarded:
            _give(folder)
        return CacheSpec(self._server.spec(folder, self._version, timeout=10, uid=USER, gid=USER))

    @property
    def credential(self) -> str | None:
        return None

    def open(self, spec: CacheSpec, credential: str | None) -> Source:
        return NasSource(spec)

    def environment(self) -> dict[str, str]:
        return {}

    def program(self) -> str:
        return _PROGRAM

    def change(self, spec: CacheSpec, path: str, data: bytes) -> None:
        (_folder(spec) / path).write_bytes(data)

    def remove(self, spec: CacheSpec) -> None:
        shutil.rmtree(_folder(spec))

    def forbid(self, spec: CacheSpec) -> None:
        _lock(_folder(spec), 0o700)

    def forbid_reading(self, spec: CacheSpec) -> None:
        for path in _folder(spec).rglob("*"):
            if path.is_file():
                _lock(path, 0o600)

    def corrupt(self, spec: CacheSpec, path: str) -> None:
        spoil(_folder(spec) / path)

    def cut(self, spec: CacheSpec, path: str, after: int) -> bool:
        return False

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        if not self._server.runs:
            self._server.start()

    def bytes_sent(self, spec: CacheSpec, path: str) -> int | None:
        return None

    def open_connections(self) -> int:
        # The clients' ends: ganesha's own sockets are listed with IPv6.
        rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        return sum(
            row[3] == _ESTABLISHED and int(row[2].rpartition(":")[2], 16) == self._server.port for row in rows
        )


def _folder(spec: CacheSpec) -> Path:
    assert isinstance(spec.source, NasSpec)
    return Path(spec.source.path)


def _lock(path: Path, mode: int) -> None:
    """For root alone."""
    os.chown(path, 0, 0)
    path.chmod(mode)


def _give(folder: Path) -> None:
    """All of it to USER, for nobody else."""
    for path in (folder, *folder.rglob("*")):
        os.lchown(path, USER, USER)
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o400)


def _put(path: Path, data: bytes | str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        path.mkdir()
    elif isinstance(data, str):
        path.symlink_to(data)
    else:
        path.write_bytes(data)
