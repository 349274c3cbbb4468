"""A prewarm request that this node works on, with its progress."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from csi.registry.prewarms.prewarms import NodePrewarmState, PrewarmedCache, PrewarmRequest
from node_plugin.prewarm.resolved_caches import ResolvedCache


@dataclass
class Failure:
    """Error of a cache, when it is retried (monotonic seconds), and the current backoff (seconds)."""

    message: str
    retry_at: float
    backoff: float


@dataclass
class ActiveRequest:
    """State of one request; `resolved`, `failures` and `ready_keys` use the keys of its caches."""

    request: PrewarmRequest
    resolved: dict[str, ResolvedCache] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    ready_keys: set[str] = field(default_factory=set)
    reported_state: NodePrewarmState | None = None
    reported_at: float = float("-inf")
    last_worked_at: float = field(default_factory=time.monotonic)

    @property
    def keys(self) -> list[str]:
        """One key for each cache, unique among all requests and their generations."""
        return [
            f"prewarm-{self.request.uid}-{self.request.generation}-{number}"
            for number in range(len(self.request.caches))
        ]

    @property
    def keyed_caches(self) -> list[tuple[str, PrewarmedCache]]:
        """The caches with their keys."""
        return list(zip(self.keys, self.request.caches, strict=True))
