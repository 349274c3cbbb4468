"""Where a user's words may point: what inline volumes, annotations and CachePrewarms name is anybody's word, so the operator's list decides."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from csi.destinations.destinations import is_listed
from csi.errors import PermissionDenied
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.composite import SeveralSpec
from csi.parameters.dialects.keys import SourceSpec
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.volume_parameters import VolumeParameters, check_users_keys

NAS_HELP = "NAS exports that inline volumes and annotations of PVCs may name: server:/path, comma separated, or *"


@dataclass(frozen=True)
class Words:
    """Whose words are judged, as messages name them, and which plugin has the list."""

    whose: str
    plugin: str


INLINE, ANNOTATIONS, PREWARMS = Words("inline volumes", "node"), Words("annotations of a PVC", "controller"), Words("CachePrewarms", "node")
DATA_CACHES = Words("DataCaches", "operator")


class AllowList:
    """Lets users name the configured hubs, of NAS exports those below one of `nas_prefixes` ("server:/path", "*" for all), and
    of other hosts those among `origins` (see `csi.destinations.destinations.destinations`)."""

    def __init__(self, nas_prefixes: Sequence[str] = (), origins: Sequence[str] = (), words: Words = INLINE) -> None:
        self._nas, self._origins, self._words = tuple(nas_prefixes), tuple(origins), words

    def check(self, asked: VolumeParameters) -> None:
        """Raise PermissionDenied unless every source is listed and has no key of an administrator's; InvalidParameter for a key of the driver's."""
        check_users_keys(asked.to_context(), self._words.whose)
        self.check_keys(asked.spec.source)
        self.check_source(asked.spec.source)

    def check_keys(self, source: SourceSpec) -> None:
        """As `check`, of the keys of each source alone."""
        for part in _each(source):
            check_users_keys(part.to_context(), self._words.whose)

    def check_source(self, source: SourceSpec) -> None:
        """As `check`, of where each source is alone."""
        for part in _each(source):
            if isinstance(part, NasSpec):
                self._check_nas(part)
            else:
                self._check_hosts(part)

    def _check_nas(self, source: NasSpec) -> None:
        if not any(_below(source, prefix) for prefix in self._nas):
            raise self._refusal(source, "it", f"--allow-inline-nas {source.server}:{source.path}")

    def _check_hosts(self, source: SourceSpec) -> None:
        for address in source.addresses:
            if not is_listed(self._origins, address):
                raise self._refusal(source, address, f"--allow-origins {address}")

    def _refusal(self, source: SourceSpec, what: str, flag: str) -> PermissionDenied:
        return PermissionDenied(
            f"{self._words.whose} may not name {source.shown}: {what} is not on the operator's list; "
            f"use a StorageClass, or start the {self._words.plugin} plugin with {flag}"
        )


def named_by_user(spec: CacheSpec) -> CacheSpec:
    """`spec` as a user's word. A NAS stays as it is: nothing redirects there, so what an administrator's volume proved counts for it too."""
    return spec if isinstance(spec.source, NasSpec) else replace(spec, of_pod=True)


def _each(source: SourceSpec) -> Iterator[SourceSpec]:
    if isinstance(source, SeveralSpec):
        yield from (part for _, part in source.parts)
    else:
        yield source


def _below(source: NasSpec, prefix: str) -> bool:
    if prefix == "*":
        return True
    server, _, path = prefix.partition(":/")
    path = "/" + path.strip("/")
    return source.server.lower() == server.strip("[]").lower() and (path == "/" or source.path == path or source.path.startswith(path + "/"))


def nas_prefixes(text: str) -> list[str]:
    """The values of --allow-inline-nas, by commas; raises argparse.ArgumentTypeError naming the one that is neither server:/path nor *."""
    prefixes = [part.strip() for part in text.split(",") if part.strip()]
    for prefix in prefixes:
        if prefix != "*" and (":/" not in prefix or prefix.startswith(":/")):
            raise argparse.ArgumentTypeError(f"{prefix!r} is not server:/path; write it as nas.example.com:/models, or * for all")
    return prefixes
