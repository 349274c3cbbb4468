"""Resolve a spec once, outside any plugin, in a worker as the plugins do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from csi.manifest.manifest import Manifest
from csi.parameters.volume_parameters import parse
from csi.worker.pool import WorkerPool
from csi.worker.protocol import Request, Resolution


@dataclass(frozen=True)
class Found:
    """What a spec holds: its resolution and its whole manifest."""

    resolution: Resolution
    manifest: Manifest

    def summary(self, files: bool) -> dict[str, object]:
        """The facts people ask for, sizes in bytes; with `files` a list of every file too."""
        found = self.resolution
        facts: dict[str, object] = {
            "source": found.spec.source.shown,
            "pinned": found.spec.to_context(),
            "digest": found.digest,
            "files": found.files,
            "contentBytes": found.content_bytes,
            "imageBytes": found.image_bytes,
            "filesWithDigest": found.files - found.unverifiable,
            "filesWithoutDigest": found.unverifiable,
        }
        if files:
            facts["list"] = [{"path": e.path, "bytes": e.size, "digest": e.digest if e.verifiable else None} for e in self.manifest.files]
        return facts


def resolve_once(parameters: Mapping[str, str], secrets: Mapping[str, str], scratch: Path) -> Found:
    """Resolve and prove `parameters`; `scratch` is a folder for the manifest. Raises the errors of the parser and of a Source."""
    # Which networks there are is a plugin's to know.
    spec = replace(parse(parameters).spec, egress_profile="")
    path = scratch / "manifest"
    with closing(WorkerPool({"resolve": 1})) as pool:
        answer = pool.call("resolve", Request("resolve", spec.to_context(), dict(secrets), manifest=str(path)))
    with path.open("rb") as stream:
        return Found(Resolution.decode(answer), Manifest.read(stream))
