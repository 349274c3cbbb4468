"""Who may read what on a NAS, and what is said when the server refuses."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.errors import PermissionDenied, SourceNotFound
from csi.parameters.dialects.nas import NasSpec
from csi.sources.nfs.libnfs import ContextOptions, NfsContext
from tests.csi.sources.nfs.origin import contents, opened, resolved, write
from tests.origins.ganesha import Export, Ganesha

OUTSIDER = 1234
# 203.0.113.0/24 is for documentation: nobody has that address.
NOBODYS_ADDRESS = "203.0.113.9"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ganesha]:
    """A server whose exports refuse: root is squashed, the source port must be low, another node's only."""
    folders = [tmp_path_factory.mktemp(name) for name in ("squashed", "low-port", "others")]
    for path in folders:
        path.chmod(0o755)
        write(path / "f", b"1")
    exports = [
        Export(folders[0], squash="Root_Squash"),
        Export(folders[1], privileged_port=True),
        Export(folders[2], clients=NOBODYS_ADDRESS),
    ]
    with Ganesha(exports) as server:
        yield server


def test_files_are_read_as_the_uid_of_the_spec(nas: Ganesha, folder: Path, version: str) -> None:
    path = write(folder / "f", b"1")
    os.chown(path, OUTSIDER, OUTSIDER)
    path.chmod(0o400)
    spec = nas.spec(folder, version, uid=OUTSIDER, gid=OUTSIDER)
    assert contents(spec) == {"f": b"1"}
    with pytest.raises(PermissionDenied, match=f"uid 4321, gid 4321 read '{path}'.*uid"):
        resolved(nas.spec(folder, version, uid=4321, gid=4321))


def test_files_are_read_as_the_gid_of_the_spec(nas: Ganesha, folder: Path, version: str) -> None:
    path = write(folder / "f", b"1")
    os.chown(path, 0, 777)
    path.chmod(0o040)
    assert contents(nas.spec(folder, version, uid=OUTSIDER, gid=777)) == {"f": b"1"}
    with pytest.raises(PermissionDenied):
        resolved(nas.spec(folder, version, uid=OUTSIDER, gid=778))


def test_listing_is_not_reading(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "open", b"1")
    write(folder / "big/secret", b"22").chmod(0o600)
    with opened(nas.spec(folder, version, uid=OUTSIDER, gid=OUTSIDER)) as source:
        manifest = source.resolve(source.pin())
        with pytest.raises(PermissionDenied, match="big/secret"):
            source.check_read_access(manifest)


def test_a_proof_does_not_need_a_resolve_of_its_own_first(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "open", b"1")
    write(folder / "secret", b"22").chmod(0o600)
    manifest = resolved(nas.spec(folder, version))
    with (
        opened(nas.spec(folder, version, uid=OUTSIDER, gid=OUTSIDER)) as source,
        pytest.raises(PermissionDenied, match="secret"),
    ):
        source.check_read_access(manifest)


def test_a_folder_that_may_not_be_listed_is_named(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "closed/f", b"1")
    (folder / "closed").chmod(0o700)
    with pytest.raises(PermissionDenied, match=f"read '{folder}/closed'"):
        resolved(nas.spec(folder, version, uid=OUTSIDER, gid=OUTSIDER))


def test_the_root_that_may_not_be_listed_is_named(nas: Ganesha, folder: Path, version: str) -> None:
    folder.chmod(0o700)
    with pytest.raises(PermissionDenied, match=str(folder)):
        resolved(nas.spec(folder, version, uid=OUTSIDER, gid=OUTSIDER))


def test_root_squash_makes_root_nobody(guarded: Ganesha, version: str) -> None:
    export = guarded.exports[0].path
    secret = write(export / f"secret-{version}", b"1")
    secret.chmod(0o600)
    with pytest.raises(PermissionDenied, match="root_squash"):
        resolved(guarded.spec(export, version))
    secret.unlink()
    assert contents(guarded.spec(export, version)) == {"f": b"1"}


def test_exports_that_want_a_low_source_port_are_read(guarded: Ganesha, version: str) -> None:
    assert contents(guarded.spec(guarded.exports[1].path, version)) == {"f": b"1"}


def test_such_exports_refuse_a_client_that_may_not_bind_one(guarded: Ganesha, version: str) -> None:
    """The counter-proof: without the capability the same read is refused, so the server does look at the
    port."""
    spec = guarded.spec(guarded.exports[1].path, version)
    program = f"from csi.parameters.dialects.nas import NasSpec; from tests.csi.sources.nfs.origin import contents; contents({spec!r})"  # noqa: E501
    command = [
        "setpriv",
        "--bounding-set=-net_bind_service",
        "--inh-caps=-net_bind_service",
        sys.executable,
        "-c",
        program,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert (
        "source port below 1024" in result.stderr
        or "does not let" in result.stderr
        or "does not show it" in result.stderr
    ), result.stderr


def test_the_connection_comes_from_a_low_port(nas: Ganesha, version: str) -> None:
    context = NfsContext(ContextOptions(int(version[0]), nas.port, nas.mount_port, 0, 0, 5.0))
    context.mount(nas.server, str(nas.exports[0].path))
    with socket.socket(fileno=os.dup(context.descriptor)) as connection:
        assert connection.getsockname()[1] < 1024
    context.close()


def test_an_export_for_other_nodes_is_not_to_be_had(guarded: Ganesha, version: str) -> None:
    """ganesha hides such exports, so they look missing; the message says that this may be the reason."""
    with pytest.raises(
        (PermissionDenied, SourceNotFound), match="does not show it to this node|allow the node's address"
    ):
        resolved(guarded.spec(guarded.exports[2].path, version))


@pytest.mark.parametrize("path", ["/no/such/export", "/"])
def test_a_missing_export_is_not_found(nas: Ganesha, version: str, path: str) -> None:
    if (path, version) == ("/", "4.0"):
        path = "/nothing"  # the pseudo root itself can always be mounted
    with pytest.raises(SourceNotFound, match="no export or folder"):
        resolved(nas.spec(path, version))


def test_a_missing_folder_is_not_found(nas: Ganesha, folder: Path, version: str) -> None:
    with pytest.raises(SourceNotFound, match=f"{folder}/no/such"):
        resolved(nas.spec(folder / "no/such", version))


def test_a_file_in_place_of_a_folder_is_not_found(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "file", b"1")
    with pytest.raises(SourceNotFound, match="is not a folder"):
        resolved(nas.spec(folder / "file", version))


def test_a_folder_that_was_removed_is_not_found(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "f", b"1")
    with opened(nas.spec(folder, version)) as source:
        source.resolve(source.pin())
        shutil.rmtree(folder)
        with pytest.raises(SourceNotFound):
            source.resolve(source.pin())


def test_nested_exports_are_each_found(tmp_path: Path, version: str) -> None:
    write(tmp_path / "f", b"outer")
    write(tmp_path / "inner/g", b"inner")
    write(tmp_path / "inner/sub/h", b"sub")
    with Ganesha([Export(tmp_path), Export(tmp_path / "inner", squash="All_Squash")]) as server:
        assert contents(server.spec(tmp_path / "inner", version)) == {"g": b"inner", "sub/h": b"sub"}
        assert contents(server.spec(tmp_path / "inner/sub", version)) == {"h": b"sub"}


def test_the_name_of_an_export_in_nfs4_is_its_pseudo_path(tmp_path: Path) -> None:
    write(tmp_path / "sub/f", b"1")
    with Ganesha([Export(tmp_path, pseudo="/share")]) as server:
        assert contents(server.spec("/share/sub", "4.0")) == {"f": b"1"}
        assert contents(server.spec(tmp_path / "sub", "3")) == {"f": b"1"}


def test_no_message_tells_more_than_the_spec(nas: Ganesha) -> None:
    with pytest.raises(SourceNotFound) as caught:
        resolved(NasSpec(nas.server, "/no/such", port=nas.port, mount_port=nas.mount_port))
    assert str(nas.exports[0].path) not in str(caught.value)
