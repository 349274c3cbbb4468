"""CacheSpec: where a volume's data lives and how it is brought here, in one form whatever dialect it was written in. Holds no secret."""

from __future__ import annotations

import json
from dataclasses import dataclass

from csi.parameters.dialects.keys import SourceSpec


@dataclass(frozen=True)
class CacheSpec:
    """A source, how its files look in the image (`preserve_ownership`: keep uid, gid and mode), and the way they come.

    `of_pod`: a pod's author named the source, not an administrator, so less may be reached (`csi.destinations.destinations`).
    `egress_profile` names one of the operator's networks ("" for the node's own), `bandwidth_limit` is in bytes per
    second (None: as fast as it goes).
    """

    source: SourceSpec
    preserve_ownership: bool = False
    egress_profile: str = ""
    bandwidth_limit: int | None = None
    of_pod: bool = False

    @property
    def moving(self) -> bool:
        """Whether the same spec can mean other content tomorrow: all but a commit."""
        return not self.source.pinned

    @property
    def source_moves(self) -> bool:
        """Whether no pin can hold the source still (a NAS); what it held is then told by the manifest's digest alone."""
        return self.source.source_moves

    def to_context(self) -> dict[str, str]:
        """The spec as flat string parameters; `csi.parameters.volume_parameters.parse` of it gives an equal spec."""
        extra = {"preserveOwnership": "true"} if self.preserve_ownership else {}
        if self.egress_profile:
            extra["egressProfile"] = self.egress_profile
        if self.bandwidth_limit is not None:
            extra["bandwidthLimit"] = str(self.bandwidth_limit)
        if self.of_pod:
            extra["namedBy"] = "pod"
        return self.source.to_context() | extra

    def canonical(self) -> str:
        """One text for each spec: the key under which answers about it are remembered."""
        return json.dumps(self.to_context(), sort_keys=True)
