"""Where an inline volume may point: its attributes are any pod author's words, so the operator's list decides."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from csi.errors import PermissionDenied
from csi.spec.nas import NasSpec
from csi.spec.parameters import VolumeParameters, check_inline


class InlinePolicy:
    """Lets inline volumes read the configured hub, and of NAS exports those below one of `nas_prefixes` ("server:/path", "*" for all)."""

    def __init__(self, nas_prefixes: Sequence[str] = ()) -> None:
        self._nas = tuple(nas_prefixes)

    def check(self, asked: VolumeParameters) -> None:
        """Raise PermissionDenied unless the source is listed, InvalidParameter for keys that only a controller writes."""
        check_inline(asked.to_context())
        source = asked.spec.source
        if isinstance(source, NasSpec) and not any(_below(source, prefix) for prefix in self._nas):
            raise PermissionDenied(
                f"inline volumes may not read {source.shown}: it is not on the operator's list; "
                f"use a StorageClass, or start the node plugin with --allow-inline-nas {source.server}:{source.path}"
            )


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
