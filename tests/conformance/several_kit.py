"""Several sources in one volume: a hub's repositories in two top folders, files of a web server in the
others, one token for all."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from csi.errors import DataCacheError, PermissionDenied, SourceNotFound, Unauthenticated
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.composite import CompositeSpec
from csi.sources.catalog import open_source
from csi.sources.source import Source
from tests.conformance.hub_kit import HubKit
from tests.conformance.kit import Tree
from tests.conformance.trees import BIG
from tests.conformance.url_kit import UrlKit

TOKEN = "several_conformance"
_OF_THE_HUB = (BIG.partition("/")[0], "many")
_PROGRAM = """
from csi.sources.catalog import open_source

def open(spec, credential):
    return open_source(spec, {f"{folder}.token": credential for folder, _ in spec.source.parts})
"""


class SeveralKit:
    """Each top folder of a tree is a source."""

    name = "several"
    lists_by_reading = False
    # Of BIG, which the hub has, as all that the suite changes.
    pins_revisions = True
    verifies = True
    top_files = False
    # A web server's word, or the hub's.
    forbidden: tuple[type[DataCacheError], ...] = (PermissionDenied, Unauthenticated, SourceNotFound)
    unreadable: tuple[type[DataCacheError], ...] = (PermissionDenied,)
    idle_connections = HubKit.idle_connections

    def __init__(self) -> None:
        self._hub, self._web = HubKit(), UrlKit("URL with sha256")
        self._hub.token = self._web.token = TOKEN

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._hub)
            stack.enter_context(self._web)
            self._running = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def missing(self) -> str:
        return self._hub.missing() or self._web.missing()

    def place(self, tree: Tree) -> CacheSpec:
        parts: dict[str, Tree] = {}
        for path, content in tree.items():
            folder, _, below = path.partition("/")
            parts.setdefault(folder, {})[below] = content
        return CacheSpec(
            CompositeSpec(
                tuple(
                    (folder, self._kit(folder).place(part).source) for folder, part in sorted(parts.items())
                )
            )
        )

    @property
    def credential(self) -> str | None:
        return TOKEN

    def open(self, spec: CacheSpec, credential: str | None) -> Source:
        return open_source(
            spec, {f"{folder}.token": credential for folder in _parts(spec)} if credential else {}
        )

    def environment(self) -> dict[str, str]:
        return self._hub.environment() | self._web.environment()

    def program(self) -> str:
        return _PROGRAM

    def change(self, spec: CacheSpec, path: str, data: bytes) -> None:
        kit, part, below = self._part(spec, path)
        kit.change(part, below, data)

    def remove(self, spec: CacheSpec) -> None:
        for folder, part in _parts(spec).items():
            self._kit(folder).remove(part)

    def forbid(self, spec: CacheSpec) -> None:
        for folder, part in _parts(spec).items():
            self._kit(folder).forbid(part)

    def forbid_reading(self, spec: CacheSpec) -> None:
        # A web server that lets nobody read lets nobody list.
        for folder in _OF_THE_HUB:
            self._hub.forbid_reading(_parts(spec)[folder])

    def corrupt(self, spec: CacheSpec, path: str) -> None:
        kit, part, below = self._part(spec, path)
        kit.corrupt(part, below)

    def cut(self, spec: CacheSpec, path: str, after: int) -> bool:
        kit, part, below = self._part(spec, path)
        return kit.cut(part, below, after)

    def stop(self) -> None:
        self._hub.stop()
        self._web.stop()

    def start(self) -> None:
        self._hub.start()
        self._web.start()

    def bytes_sent(self, spec: CacheSpec, path: str) -> int | None:
        kit, part, below = self._part(spec, path)
        return kit.bytes_sent(part, below)

    def open_connections(self) -> int:
        return self._hub.open_connections() + self._web.open_connections()

    def _kit(self, folder: str) -> HubKit | UrlKit:
        return self._hub if folder in _OF_THE_HUB else self._web

    def _part(self, spec: CacheSpec, path: str) -> tuple[HubKit | UrlKit, CacheSpec, str]:
        folder, _, below = path.partition("/")
        return self._kit(folder), _parts(spec)[folder], below


def _parts(spec: CacheSpec) -> dict[str, CacheSpec]:
    assert isinstance(spec.source, CompositeSpec)
    return {folder: CacheSpec(source) for folder, source in spec.source.parts}
