"""One-time resolve of a spec outside of a plugin, in a worker as plugins do it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from csi.manifest.manifest import Manifest
from csi.parameters.content_ref import Secrets
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.worker.operations import ResolveSource
from csi.worker.pool import WorkerPool
from csi.worker.results import Resolution


@dataclass(frozen=True)
class ResolvedSource:
    """Resolved source: its resolution and its whole manifest."""

    resolution: Resolution
    manifest: Manifest

    def to_json(self, files: bool) -> dict[str, object]:
        """Return JSON values, sizes in bytes; with `files` also a list of every file."""
        resolution = self.resolution
        facts: dict[str, object] = {
            "source": resolution.spec.source.display_name,
            "pinned": resolution.spec.to_context(),
            "digest": resolution.digest,
            "files": resolution.file_count,
            "contentBytes": resolution.content_bytes,
            "imageBytes": resolution.image_bytes,
            "filesWithDigest": resolution.file_count - resolution.unverifiable_count,
            "filesWithoutDigest": resolution.unverifiable_count,
        }
        if files:
            facts["list"] = [
                {
                    "path": entry.path,
                    "bytes": entry.size,
                    "digest": entry.digest if entry.is_verifiable else None,
                }
                for entry in self.manifest.files
            ]
        return facts


def resolve_once(parameters: Mapping[str, str], secrets: Mapping[str, str], scratch: Path) -> ResolvedSource:
    """Resolve `parameters` with an access check; `scratch` is a folder for the manifest.

    Raises the errors of the parser and of a Source.
    """
    # Egress profiles are known to plugins only.
    spec = replace(parse_volume_parameters(parameters).spec, egress_profile="")
    path = scratch / "manifest"
    with closing(WorkerPool({"resolve": 1})) as pool:
        resolution = pool.call("resolve", ResolveSource(spec, Secrets(secrets), path))
    with path.open("rb") as stream:
        return ResolvedSource(resolution, Manifest.read(stream))
