"""The ModelScope source against a local hub that speaks what the real client asks."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from csi.errors import CorruptContent, DataCacheError, PermissionDenied
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.sources.hubs.modelscope import ModelScopeSource
from csi.sources.source import Source
from tests.conformance.http_kit import HttpKit
from tests.conformance.kit import Tree
from tests.origins.modelscope import ModelScopeHub, ModelScopeRepository

TOKEN = "ms_conformance"
_PROGRAM = """
from csi.sources.hubs.modelscope import ModelScopeSource as open
"""


class ModelScopeKit(HttpKit):
    """Private repositories of one hub, each place one repository."""

    lists_by_reading = False
    pins_revisions = False
    verifies = True
    forbidden: tuple[type[DataCacheError], ...] = (PermissionDenied,)
    unreadable: tuple[type[DataCacheError], ...] = (PermissionDenied,)
    # Nothing but the digest tells one state of a file from another.
    changed: type[DataCacheError] = CorruptContent
    idle_connections = 0

    def __init__(self, repo_source: str = "ModelScope/Model") -> None:
        self.name = self._repo_source = repo_source
        self._kind = {"ModelScope/Model": "model", "ModelScope/DataSet": "dataset"}[repo_source]
        self._count = 0

    def __enter__(self) -> Self:
        self.origin = self.hub = ModelScopeHub()
        self.hub.start()
        self._before = os.environ.get("MODELSCOPE_ENDPOINT")
        os.environ["MODELSCOPE_ENDPOINT"] = self.hub.endpoint
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.environ.pop("MODELSCOPE_ENDPOINT")
        if self._before is not None:
            os.environ["MODELSCOPE_ENDPOINT"] = self._before
        self.hub.stop()

    def place(self, tree: Tree) -> CacheSpec:
        self._count += 1
        name = f"org/place-{self._count}"
        files = {path: data for path, data in tree.items() if isinstance(data, bytes)}
        self.hub.repo(name, files, kind=self._kind, private=True, tokens={TOKEN})
        return CacheSpec(HubSpec(self._repo_source, name, "master"))

    @property
    def credential(self) -> str | None:
        return TOKEN

    def open(self, spec: CacheSpec, credential: str | None) -> Source:
        return ModelScopeSource(spec, credential)

    def environment(self) -> dict[str, str]:
        return {"MODELSCOPE_ENDPOINT": self.hub.endpoint, "MODELSCOPE_API_TOKEN": "ms_of_somebody_else"}

    def program(self) -> str:
        return _PROGRAM

    def change(self, spec: CacheSpec, path: str, data: bytes) -> None:
        self._repository(spec).update({path: data})

    def remove(self, spec: CacheSpec) -> None:
        repository = self._repository(spec)
        del self.hub.repositories[repository.kind, repository.id]

    def forbid(self, spec: CacheSpec) -> None:
        self._repository(spec).readers.clear()

    def forbid_reading(self, spec: CacheSpec) -> None:
        self._repository(spec).unreadable = True

    def key(self, spec: CacheSpec, path: str) -> str:
        return f"{self._repository(spec).id}/{path}"

    def expire(self) -> bool:
        self.hub.expire_urls()
        return True

    def _repository(self, spec: CacheSpec) -> ModelScopeRepository:
        assert isinstance(spec.source, HubSpec)
        return self.hub.repositories[self._kind, spec.source.repo_id]
