"""CacheSpec: where a volume's data lives and how it is brought here, in one form whatever dialect it was written in. Holds no secret."""

from __future__ import annotations

import json
from dataclasses import dataclass

from csi.parameters.dialects.keys import SourceSpec


@dataclass(frozen=True)
class CacheSpec:
    """A source, how its files look in the image (`preserve_ownership`: keep uid, gid and mode), and the way they come.

    `untrusted`: a pod's author named the source, not an administrator, so less may be reached (`csi.destinations.destinations`).
    `egress_profile` names one of the operator's networks ("" for the node's own), `bandwidth_limit` is in bytes per
    second (None: as fast as it goes).
    """

    source: SourceSpec
    preserve_ownership: bool = False
    egress_profile: str = ""
    bandwidth_limit: int | None = None
    untrusted: bool = False

    @property
    def is_moving(self) -> bool:
        """Whether the same spec can mean other content tomorrow: all but a commit."""
        return not self.source.is_pinned

    @property
    def is_unpinnable(self) -> bool:
        """Whether no pin can hold the source still (a NAS); what it held is then told by the manifest's digest alone."""
        return self.source.is_unpinnable

    def to_context(self) -> dict[str, str]:
        """The spec as flat string parameters; `csi.parameters.volume_parameters.parse_volume_parameters` of it gives an equal spec."""
        extra = {"preserveOwnership": "true"} if self.preserve_ownership else {}
        if self.egress_profile:
            extra["egressProfile"] = self.egress_profile
        if self.bandwidth_limit is not None:
            extra["bandwidthLimit"] = str(self.bandwidth_limit)
        if self.untrusted:
            extra["namedBy"] = "pod"
        return self.source.to_context() | extra

    def canonical_text(self) -> str:
        """One text for each spec: the key under which answers about it are remembered."""
        return json.dumps(self.to_context(), sort_keys=True)
