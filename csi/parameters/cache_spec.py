"""CacheSpec: where the data of a volume is and how it is fetched, independent of dialect. Holds no secret."""

from __future__ import annotations

import json
from dataclasses import dataclass

from csi.parameters.dialects.keys import SourceSpec


@dataclass(frozen=True)
class CacheSpec:
    """A source, how its files appear in the image, and how they are fetched.

    `preserve_ownership` keeps uid, gid and mode. `untrusted` means that the author of a pod named the source,
    not an administrator, so fewer destinations are allowed (`csi.destinations.destinations`).
    `egress_profile` names one of the operator's networks ("" for the node's own). `bandwidth_limit` is in
    bytes per second (None for no limit).
    """

    source: SourceSpec
    preserve_ownership: bool = False
    egress_profile: str = ""
    bandwidth_limit: int | None = None
    untrusted: bool = False

    @property
    def is_moving(self) -> bool:
        """Whether the same spec can mean other content tomorrow: true for everything but a commit."""
        return not self.source.is_pinned

    @property
    def is_unpinnable(self) -> bool:
        """Whether no pin can fix the content (a NAS); then only the manifest's digest identifies it."""
        return self.source.is_unpinnable

    def to_context(self) -> dict[str, str]:
        """Return the spec as flat string parameters, which `parse_volume_parameters` reads."""
        extra = {"preserveOwnership": "true"} if self.preserve_ownership else {}
        if self.egress_profile:
            extra["egressProfile"] = self.egress_profile
        if self.bandwidth_limit is not None:
            extra["bandwidthLimit"] = str(self.bandwidth_limit)
        if self.untrusted:
            extra["namedBy"] = "pod"
        return self.source.to_context() | extra

    def canonical_text(self) -> str:
        """Return a text that is equal for equal specs, for use as a cache key."""
        return json.dumps(self.to_context(), sort_keys=True)
