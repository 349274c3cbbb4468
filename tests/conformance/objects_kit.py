"""OSS and S3 against a real S3 server: each place is a folder of a bucket of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from csi.errors import DataCacheError, PermissionDenied, SourceChanged
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.buckets import BucketSpec
from csi.sources.buckets.object_store import AccessKey
from csi.sources.buckets.source import BucketSource
from csi.sources.source import Source
from tests.conformance.kit import Tree
from tests.conformance.trees import spoil
from tests.origins import versitygw
from tests.origins.fault_proxy import FaultProxy
from tests.origins.faults import Counters, Faults
from tests.origins.versitygw import READER_ID, READER_SECRET, ObjectServer

FOLDER = "models/a b"
_ESTABLISHED = "01"
_PROGRAM = """
from csi.sources.buckets.object_store import AccessKey
from csi.sources.buckets.source import BucketSource

def open(spec, credential):
    identity, _, secret = credential.partition(":")
    return BucketSource(spec, lambda: AccessKey(identity, secret))
"""


class ObjectsKit:
    """Buckets of one server, written as `store` ("OSS" or "S3")."""

    top_files = True
    lists_by_reading = False
    pins_revisions = False
    verifies = False
    forbidden: tuple[type[DataCacheError], ...] = (PermissionDenied,)
    unreadable: tuple[type[DataCacheError], ...] = (PermissionDenied,)
    idle_connections = 0

    def __init__(self, store: str = "S3") -> None:
        self.name = self._store = store

    def __enter__(self) -> Self:
        self.server = ObjectServer()
        self.server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.__exit__(kind, error, trace)

    def missing(self) -> str:
        return versitygw.missing()

    def place(self, tree: Tree) -> CacheSpec:
        objects = {f"{FOLDER}/{path}": data for path, data in tree.items() if isinstance(data, bytes)}
        bucket = self.server.bucket(objects | {"models/elsewhere": b"not of this place"})
        return CacheSpec(BucketSpec(self._store, self.server.endpoint, bucket, FOLDER, path_style=True))

    @property
    def credential(self) -> str | None:
        return f"{READER_ID}:{READER_SECRET}"

    def open(self, spec: CacheSpec, credential: str | None) -> Source:
        return BucketSource(spec, key_of(credential))

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "else",
            "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        }

    def program(self) -> str:
        return _PROGRAM

    def change(self, spec: CacheSpec, path: str, data: bytes) -> None:
        self.server.put(_bucket(spec), {f"{FOLDER}/{path}": data})

    def remove(self, spec: CacheSpec) -> None:
        self.server.remove(_bucket(spec))

    def forbid(self, spec: CacheSpec) -> None:
        self.server.allow(_bucket(spec))

    def forbid_reading(self, spec: CacheSpec) -> None:
        self.server.allow(_bucket(spec), "s3:ListBucket")

    def corrupt(self, spec: CacheSpec, path: str) -> None:
        spoil(self.server.root / _bucket(spec) / FOLDER / path)

    def cut(self, spec: CacheSpec, path: str, after: int) -> bool:
        return False

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        self.server.start()

    def bytes_sent(self, spec: CacheSpec, path: str) -> int | None:
        return None

    def open_connections(self) -> int:
        rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        return sum(
            row[3] == _ESTABLISHED and int(row[2].rpartition(":")[2], 16) == self.server.port for row in rows
        )


class FaultyObjectsKit(ObjectsKit):
    """The same behind a proxy that fails as it is told."""

    changed: type[DataCacheError] = SourceChanged

    def __enter__(self) -> Self:
        super().__enter__()
        self.proxy = FaultProxy((versitygw.ADDRESS, self.server.port))
        self.proxy.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.proxy.stop()
        super().__exit__(kind, error, trace)

    def place(self, tree: Tree) -> CacheSpec:
        spec = super().place(tree)
        assert isinstance(spec.source, BucketSpec)
        return replace(spec, source=replace(spec.source, endpoint=self.proxy.url))

    @property
    def faults(self) -> Faults:
        return self.proxy.faults

    @property
    def counters(self) -> Counters:
        return self.proxy.counters

    def key(self, spec: CacheSpec, path: str) -> str:
        return f"{_bucket(spec)}/{FOLDER}/{path}"

    def expire(self) -> bool:
        self.proxy.expire()
        return True


def key_of(credential: str | None) -> Callable[[], AccessKey] | None:
    """What a source is given for "id:secret"; None for None."""
    if credential is None:
        return None
    identity, _, secret = credential.partition(":")
    return lambda: AccessKey(identity, secret)


def _bucket(spec: CacheSpec) -> str:
    assert isinstance(spec.source, BucketSpec)
    return spec.source.bucket
