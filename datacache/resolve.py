"""Resolve a spec once, outside any plugin, in a worker as the plugins do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from csi.manifest.manifest import Manifest
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.worker.pool import WorkerPool
from csi.worker.protocol import Resolution, WorkerRequest


@dataclass(frozen=True)
class ResolvedSource:
    """What a spec holds: its resolution and its whole manifest."""

    resolution: Resolution
    manifest: Manifest

    def to_json(self, files: bool) -> dict[str, object]:
        """The facts people ask for, sizes in bytes; with `files` a list of every file too."""
        found = self.resolution
        facts: dict[str, object] = {
            "source": found.spec.source.display_name,
            "pinned": found.spec.to_context(),
            "digest": found.digest,
            "files": found.file_count,
            "contentBytes": found.content_bytes,
            "imageBytes": found.image_bytes,
            "filesWithDigest": found.file_count - found.unverifiable_count,
            "filesWithoutDigest": found.unverifiable_count,
        }
        if files:
            facts["list"] = [
                {"path": e.path, "bytes": e.size, "digest": e.digest if e.is_verifiable else None}
                for e in self.manifest.files
            ]
        return facts


def resolve_once(parameters: Mapping[str, str], secrets: Mapping[str, str], scratch: Path) -> ResolvedSource:
    """Resolve and prove `parameters`; `scratch` is a folder for the manifest. Raises the errors of the parser and of a Source."""
    # Which networks there are is a plugin's to know.
    spec = replace(parse_volume_parameters(parameters).spec, egress_profile="")
    path = scratch / "manifest"
    with closing(WorkerPool({"resolve": 1})) as pool:
        answer = pool.call(
            "resolve", WorkerRequest("resolve", spec.to_context(), dict(secrets), manifest=str(path))
        )
    with path.open("rb") as stream:
        return ResolvedSource(Resolution.decode(answer), Manifest.read(stream))
