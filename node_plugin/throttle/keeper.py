"""The thread that keeps limits in force: it hears of new cgroups and charges bursts; it sleeps while there is neither."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping

from csi.file_events import FileEvent, FileEvents
from node_plugin.throttle.group import Group
from node_plugin.throttle.hierarchy import Hierarchy
from node_plugin.throttle.pods import PodCgroups
from node_plugin.throttle.watching import CgroupWatch

log = logging.getLogger("datacache.throttle")

_BUSY_SECONDS, _IDLE_SECONDS, _SAVE_SECONDS = 0.25, 0.5, 1.0
# systemd may withdraw the controller io from a cgroup between two writes of ours, and no event tells when it is done.
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 0.1, 60.0
Reads = Callable[[Collection[str]], Mapping[str, tuple[int, int]]]


class Keeper:
    """Keeps the limits of `groups` on `hierarchy`; whoever touches either holds `guard`.

    `reads` gives (reads, bytes) of devices, `now` seconds since boot; `save` is called with a group that a later life should know as it is now.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        groups: Collection[Group],
        guard: threading.RLock,
        reads: Reads,
        now: Callable[[], float],
        save: Callable[[Group], None],
    ) -> None:
        self.hierarchy, self._groups, self._guard = hierarchy, groups, guard
        self._reads, self._now, self._save = reads, now, save
        self._pods = PodCgroups(hierarchy.root)
        self._events = FileEvents()
        self._watch = CgroupWatch(hierarchy, self._pods, self._events)
        self._followed: set[str] = set()
        self._seen: Mapping[str, tuple[int, int]] = {}
        self._retry = _FIRST_RETRY_SECONDS
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="throttle", daemon=True)
        self._thread.start()

    def apply(self, group: Group) -> None:
        """Put the group's limit in force where its pod's cgroup is there; from now on the thread does so whenever a cgroup appears."""
        if self._pods.find(group.pod) is None:
            self._pods.look_around()
        self._enforce(group)
        self._events.wake()

    def _enforce(self, group: Group) -> None:
        folder = self._pods.find(group.pod)
        if folder:
            group.apply(self.hierarchy, folder)
        elif group.limits:
            group.problem, group.waits = f"the pod's cgroup is not there below {self.hierarchy.root}", True

    def _run(self) -> None:
        pause: float | None = None
        while not self._closing:
            events = self._events.wait(pause)
            with self._guard:
                try:
                    pause = self._work(events)
                except Exception:
                    log.exception("keeping limits failed; it is tried again")
                    pause = _IDLE_SECONDS

    def _work(self, events: list[FileEvent]) -> float | None:
        self._follow_wanted()
        refused = {group.pod for group in self._groups if group.pod and group.problem and not group.waits}
        for pod in self._watch.concerned(events, self._followed) | (refused & self._followed):
            self._keep(pod)
        return _soonest(self._look(), self._retry_pause())

    def _retry_pause(self) -> float | None:
        """Seconds until what the kernel refused is tried again, longer each time; None where nothing was."""
        if not any(group.pod and group.limits and group.problem and not group.waits for group in self._groups):
            self._retry = _FIRST_RETRY_SECONDS
            return None
        pause, self._retry = self._retry, min(2 * self._retry, _LAST_RETRY_SECONDS)
        return pause

    def _follow_wanted(self) -> None:
        wanted = {group.pod for group in self._groups if group.pod and group.limits}
        for pod in self._followed - wanted:
            self._watch.leave(pod)
        new, self._followed = wanted - self._followed, wanted
        for pod in new:
            self._keep(pod)

    def _keep(self, pod: str) -> None:
        """Watch first, look then: what appears in between is seen twice, never missed."""
        self._watch.follow(pod)
        for group in self._groups:
            if group.pod == pod and group.limits:
                missing = bool(group.problem)
                self._enforce(group)
                if missing and not group.problem:
                    log.info("limit in force", extra={"fields": {"pod": pod, "device": group.device, "limit": group.rate}})

    def _look(self) -> float | None:
        """Charge the bursts; seconds until it has to be done again, None for never."""
        bursting = [group for group in self._groups if group.bursts and group.pod]
        if not bursting:
            return None
        seen = self._reads({group.device for group in bursting})
        now = self._now()
        busy = False
        for group in bursting:
            idle = seen.get(group.device) == self._seen.get(group.device)
            busy |= not idle
            self._charge(group, now, idle)
        self._seen = seen
        first = min(group.burst.look_again(group.limits) for group in bursting if group.limits)
        return min(first, _BUSY_SECONDS if busy else _IDLE_SECONDS)

    def _charge(self, group: Group, now: float, idle: bool) -> None:
        before = group.burst
        if group.look(self.hierarchy, now, idle):
            self._enforce(group)
            self._save(group)
        elif group.burst != before and now - group.saved >= _SAVE_SECONDS:
            self._save(group)

    def charge(self, group: Group) -> None:
        """Charge all that the group has read to its burst, when it ends."""
        now = self._now()
        for idle in (False, True):
            group.look(self.hierarchy, now, idle)

    def close(self) -> None:
        """End the thread, if it runs; limits stay in force."""
        if self._closing:
            return
        self._closing = True
        self._events.wake()
        self._thread.join()
        self._events.close()


def _soonest(*pauses: float | None) -> float | None:
    return min((pause for pause in pauses if pause is not None), default=None)
