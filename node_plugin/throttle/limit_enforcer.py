"""The thread that keeps limits in force: it hears of new cgroups and charges bursts; it sleeps while there is neither."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.hierarchy import Hierarchy
from csi.linux.cgroups.pod_cgroups import PodCgroups
from csi.linux.inotify import FileEvent, FileEvents
from node_plugin.throttle.group import Group
from node_plugin.throttle.watching import CgroupWatch

log = logging.getLogger("datacache.throttle")

_BUSY_SECONDS, _IDLE_SECONDS, _SAVE_SECONDS = 0.25, 0.5, 1.0
# systemd may withdraw the controller io from a cgroup between two writes of ours, and no event tells when it is done.
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 0.1, 10.0
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
        self._unheard: set[str] = set()
        self._retry = _Retry()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="throttle", daemon=True)
        self._thread.start()

    def apply(self, group: Group) -> None:
        """Put the group's limit in force where its pod's cgroup is there; from now on the thread does so whenever a cgroup appears."""
        if not self._pods.find(group.pod):
            self._pods.look_around()
        self._enforce(group)
        self._events.wake()

    def _enforce(self, group: Group) -> None:
        folders = self._pods.find(group.pod)
        if folders:
            group.apply(self.hierarchy, folders)
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
                    pause = _LAST_RETRY_SECONDS

    def _work(self, events: list[FileEvent]) -> float | None:
        self._follow_wanted()
        concerned = self._watch.concerned(events, self._followed)
        if concerned:
            self._retry.soon()
        for pod in concerned | (self._unwell() if self._retry.due() else set()):
            self._keep(pod)
        return _soonest(self._look(), self._retry.pause(bool(self._unwell())))

    def _unwell(self) -> set[str]:
        """The pods whose limits are not in force, or whose new containers nobody would tell of."""
        troubled = {group.pod for group in self._groups if group.limits and group.problem}
        return (troubled | self._unheard) & self._followed

    def _follow_wanted(self) -> None:
        wanted = {group.pod for group in self._groups if group.pod and group.limits}
        for pod in self._followed - wanted:
            self._watch.leave(pod)
            self._unheard.discard(pod)
        new, self._followed = wanted - self._followed, wanted
        if new:
            self._retry.soon()
        for pod in new:
            self._keep(pod)

    def _keep(self, pod: str) -> None:
        """Watch first, look then: what appears in between is seen twice, never missed."""
        try:
            self._watch.follow(pod)
            self._unheard.discard(pod)
        except UnsupportedByNode as error:
            if pod not in self._unheard:
                log.warning("new containers of a pod are looked for now and then only", extra={"fields": {"pod": pod, "reason": error}})
            self._unheard.add(pod)
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


class _Retry:
    """When to try again what failed: soon at first, then less and less often."""

    def __init__(self) -> None:
        self._pause = _FIRST_RETRY_SECONDS
        self._at: float | None = None

    def soon(self) -> None:
        """Something has changed: start over."""
        self._pause = _FIRST_RETRY_SECONDS
        if self._at is not None:
            self._at = min(self._at, time.monotonic() + self._pause)

    def due(self) -> bool:
        """Whether it is time to try; if so, the next time is further off."""
        if self._at is None or time.monotonic() < self._at:
            return False
        self._at, self._pause = None, min(2 * self._pause, _LAST_RETRY_SECONDS)
        return True

    def pause(self, needed: bool) -> float | None:
        """Seconds until it is time; None where nothing `needed` it."""
        if not needed:
            self._at, self._pause = None, _FIRST_RETRY_SECONDS
            return None
        if self._at is None:
            self._at = time.monotonic() + self._pause
        return max(0.0, self._at - time.monotonic())


def _soonest(*pauses: float | None) -> float | None:
    return min((pause for pause in pauses if pause is not None), default=None)
