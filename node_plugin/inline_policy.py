"""Where an inline volume may point: its attributes are any pod author's words, so the operator's list decides."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

from csi.errors import PermissionDenied
from csi.sources.destinations import is_listed
from csi.spec.cache import CacheSpec
from csi.spec.keys import SourceSpec
from csi.spec.nas import NasSpec
from csi.spec.parameters import VolumeParameters, check_inline
from csi.spec.several import SeveralSpec


class InlinePolicy:
    """Lets inline volumes read the configured hubs, of NAS exports those below one of `nas_prefixes` ("server:/path", "*" for all), and
    of other hosts those among `origins` (see `csi.sources.destinations.destinations`)."""

    def __init__(self, nas_prefixes: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        self._nas, self._origins = tuple(nas_prefixes), tuple(origins)

    def check(self, asked: VolumeParameters) -> None:
        """Raise PermissionDenied unless every source is listed and has no key of an administrator's; InvalidParameter for a key of the driver's."""
        check_inline(asked.to_context())
        for source in _each(asked.spec.source):
            check_inline(source.to_context())
            if isinstance(source, NasSpec):
                self._check_nas(source)
            else:
                self._check_hosts(source)

    def _check_nas(self, source: NasSpec) -> None:
        if not any(_below(source, prefix) for prefix in self._nas):
            raise PermissionDenied(
                f"inline volumes may not read {source.shown}: it is not on the operator's list; "
                f"use a StorageClass, or start the node plugin with --allow-inline-nas {source.server}:{source.path}"
            )

    def _check_hosts(self, source: SourceSpec) -> None:
        for address in source.addresses:
            if not is_listed(self._origins, address):
                raise PermissionDenied(
                    f"inline volumes may not read {source.shown}: {address} is not on the operator's list; "
                    f"use a StorageClass, or start the node plugin with --allow-origins {address}"
                )


def named_by_pod(spec: CacheSpec) -> CacheSpec:
    """`spec` as a pod author's word. A NAS stays as it is: nothing redirects there, so what an administrator's volume proved counts for it too."""
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
