"""The Hugging Face source against a local hub that speaks what the real client asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from huggingface_hub import constants

from csi.errors import DataCacheError, PermissionDenied, SourceChanged, SourceNotFound, Unauthenticated
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.sources.hubs.huggingface import HuggingFaceSource
from csi.sources.source import Source
from tests.conformance.http_kit import HttpKit
from tests.conformance.kit import Tree
from tests.origins.hub import Hub
from tests.origins.repositories import Repository

TOKEN = "hf_conformance"
_PROGRAM = """
from csi.sources.hubs.huggingface import HuggingFaceSource as open
"""


@contextmanager
def pointed_at(endpoint: str) -> Iterator[None]:
    """What HF_ENDPOINT does for a process that starts: huggingface_hub of this one talks to `endpoint`."""
    before = (constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE)
    constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE = (
        endpoint,
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    try:
        yield
    finally:
        constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE = before


class HubKit(HttpKit):
    """Private repositories of one hub, each place one repository."""

    name = "huggingface"
    token = TOKEN
    lists_by_reading = False
    pins_revisions = True
    verifies = True
    forbidden: tuple[type[DataCacheError], ...] = (Unauthenticated, SourceNotFound)
    unreadable: tuple[type[DataCacheError], ...] = (PermissionDenied,)
    changed: type[DataCacheError] = SourceChanged
    # One of huggingface_hub's client, one for proofs to the hub and one to its other host.
    idle_connections = 3

    def __init__(self, repo_source: str = "HuggingFace/Model") -> None:
        self._repo_source = repo_source
        self._kind = {"HuggingFace/Model": "model", "HuggingFace/DataSet": "dataset"}[repo_source]
        self.name = repo_source
        self._count = 0

    def __enter__(self) -> Self:
        self.origin = self.hub = Hub(page=7)
        self.hub.start()
        self._pointed = pointed_at(self.hub.endpoint)
        self._pointed.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pointed.__exit__(kind, error, trace)
        self.hub.stop()

    def place(self, tree: Tree) -> CacheSpec:
        self._count += 1
        name = f"org/place-{self._count}"
        files = {path: data for path, data in tree.items() if isinstance(data, bytes)}
        self.hub.repo(name, files, kind=self._kind, private=True, tokens={self.token}, lfs_over=100_000)
        return CacheSpec(HubSpec(self._repo_source, name))

    @property
    def credential(self) -> str | None:
        return self.token

    def open(self, spec: CacheSpec, credential: str | None) -> Source:
        return HuggingFaceSource(spec, credential)

    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.hub.endpoint, "HF_TOKEN": "hf_of_somebody_else"}

    def program(self) -> str:
        return _PROGRAM

    def change(self, spec: CacheSpec, path: str, data: bytes) -> None:
        self._repository(spec).update({path: data}, lfs_over=100_000)

    def remove(self, spec: CacheSpec) -> None:
        repository = self._repository(spec)
        del self.hub.repositories[repository.kind, repository.id]

    def forbid(self, spec: CacheSpec) -> None:
        self._repository(spec).readers.clear()

    def forbid_reading(self, spec: CacheSpec) -> None:
        self._repository(spec).gated = True

    def expire(self) -> bool:
        self.hub.expire_urls()
        return True

    def _repository(self, spec: CacheSpec) -> Repository:
        assert isinstance(spec.source, HubSpec)
        return self.hub.repositories[self._kind, spec.source.repo_id]

    def key(self, spec: CacheSpec, path: str) -> str:
        return f"{self._repository(spec).id}/{path}"
