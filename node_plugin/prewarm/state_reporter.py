"""Reports of this node's states of prewarm requests: changes at once, mere progress now and then."""

from __future__ import annotations

import time

from csi.registry.prewarms.prewarms import NodePrewarms, NodePrewarmState, PrewarmState
from node_plugin.fills.fill_events import compute_percent
from node_plugin.fills.fills import Fills
from node_plugin.prewarm.active_request import ActiveRequest

_REPORT_INTERVAL = 10.0


class StateReporter:
    """Reporter of states in the requests themselves; the percentage is that of the running fills."""

    def __init__(self, prewarms: NodePrewarms, fills: Fills) -> None:
        self._prewarms, self._fills = prewarms, fills

    def report_pending(self, active: ActiveRequest, reason: str) -> None:
        """Report that the request waits, and why."""
        self.report_if_changed(
            active, NodePrewarmState(PrewarmState.PENDING, self._compute_percent(active), reason)
        )

    def report_filling(self, active: ActiveRequest) -> None:
        """Report the progress of the request's fills."""
        self.report_if_changed(active, NodePrewarmState(PrewarmState.FILLING, self._compute_percent(active)))

    def report_if_changed(self, active: ActiveRequest, state: NodePrewarmState | None = None) -> None:
        """Report a changed state at once, and mere progress at most every `_REPORT_INTERVAL` seconds.

        `state` is by default what the ready and failed caches say.
        """
        state = state or self._compute_state(active)
        now = time.monotonic()
        has_changed = (
            active.reported_state is None
            or active.reported_state.state is not state.state
            or (state.state is PrewarmState.FAILED and state != active.reported_state)
        )
        if state != active.reported_state and (has_changed or now - active.reported_at > _REPORT_INTERVAL):
            active.reported_state = state
            active.reported_at = now
            self._prewarms.report_state(active.request, state)

    def _compute_state(self, active: ActiveRequest) -> NodePrewarmState:
        if len(active.ready_keys) == len(active.request.caches):
            return NodePrewarmState(PrewarmState.READY, 100)
        percent = self._compute_percent(active)
        if active.failures:
            message = next(iter(active.failures.values())).message
            return NodePrewarmState(PrewarmState.FAILED, percent, message)
        return active.reported_state or NodePrewarmState(PrewarmState.PENDING, percent)

    def _compute_percent(self, active: ActiveRequest) -> int:
        progress = self._fills.get_progress()
        in_progress = [
            progress[cache.digest]
            for key, cache in active.resolved.items()
            if key not in active.ready_keys and cache.digest in progress
        ]
        done = 100 * len(active.ready_keys) + sum(map(compute_percent, in_progress))
        # 100 is for a request that is ready altogether.
        return min(99, done // len(active.request.caches))
