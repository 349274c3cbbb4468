"""The thread that keeps limits in force: it hears of new cgroups and charges bursts; it sleeps while there is neither."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.hierarchy import CgroupHierarchy
from csi.linux.cgroups.pod_cgroups import PodCgroups
from csi.linux.inotify import FileEvent, FolderWatcher
from node_plugin.throttle.group import ThrottleGroup
from node_plugin.throttle.watching import CgroupWatcher

log = logging.getLogger("datacache.throttle")

_BUSY_INTERVAL, _IDLE_INTERVAL, _SAVE_INTERVAL = 0.25, 0.5, 1.0
# systemd may withdraw the controller io from a cgroup between two writes of ours, and no event tells when it is done.
_MIN_BACKOFF, _MAX_BACKOFF = 0.1, 10.0
ReadCounters = Callable[[Collection[str]], Mapping[str, tuple[int, int]]]


class LimitEnforcer:
    """Keeps the limits of `groups` on `hierarchy`; whoever touches either holds `guard`.

    `reads` gives (reads, bytes) of devices, `now` seconds since boot; `save` is called with a group that a later life should know as it is now.
    """

    def __init__(
        self,
        hierarchy: CgroupHierarchy,
        groups: Collection[ThrottleGroup],
        lock: threading.RLock,
        read_counters: ReadCounters,
        now: Callable[[], float],
        save: Callable[[ThrottleGroup], None],
    ) -> None:
        self.hierarchy, self._groups, self._lock = hierarchy, groups, lock
        self._read_counters, self._now, self._save = read_counters, now, save
        self._pods = PodCgroups(hierarchy.root)
        self._events = FolderWatcher()
        self._watch = CgroupWatcher(hierarchy, self._pods, self._events)
        self._watched_pods: set[str] = set()
        self._last_counters: Mapping[str, tuple[int, int]] = {}
        self._unwatched: set[str] = set()
        self._backoff = _Backoff()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="throttle", daemon=True)
        self._thread.start()

    def apply(self, group: ThrottleGroup) -> None:
        """Put the group's limit in force where its pod's cgroup is there; from now on the thread does so whenever a cgroup appears."""
        if not self._pods.find(group.pod):
            self._pods.rescan()
        self._apply_group(group)
        self._events.wake()

    def _apply_group(self, group: ThrottleGroup) -> None:
        folders = self._pods.find(group.pod)
        if folders:
            group.apply(self.hierarchy, folders)
        elif group.limits:
            group.problem, group.waits_for_cgroup = (
                f"the pod's cgroup is not there below {self.hierarchy.root}",
                True,
            )

    def _run(self) -> None:
        pause: float | None = None
        while not self._closing:
            events = self._events.wait(pause)
            with self._lock:
                try:
                    pause = self._process_events(events)
                except Exception:
                    log.exception("keeping limits failed; it is tried again")
                    pause = _MAX_BACKOFF

    def _process_events(self, events: list[FileEvent]) -> float | None:
        self._update_watched_pods()
        affected = self._watch.affected_pods(events, self._watched_pods)
        if affected:
            self._backoff.reset()
        for pod in affected | (self._failing_pods() if self._backoff.is_due() else set()):
            self._enforce_pod(pod)
        return _min_known(self._charge_bursts(), self._backoff.seconds_until_due(bool(self._failing_pods())))

    def _failing_pods(self) -> set[str]:
        """The pods whose limits are not in force, or whose new containers nobody would tell of."""
        failing = {group.pod for group in self._groups if group.limits and group.problem}
        return (failing | self._unwatched) & self._watched_pods

    def _update_watched_pods(self) -> None:
        limited_pods = {group.pod for group in self._groups if group.pod and group.limits}
        for pod in self._watched_pods - limited_pods:
            self._watch.unwatch_pod(pod)
            self._unwatched.discard(pod)
        new, self._watched_pods = limited_pods - self._watched_pods, limited_pods
        if new:
            self._backoff.reset()
        for pod in new:
            self._enforce_pod(pod)

    def _enforce_pod(self, pod: str) -> None:
        """Watch first, look then: what appears in between is seen twice, never missed."""
        try:
            self._watch.watch_pod(pod)
            self._unwatched.discard(pod)
        except UnsupportedByNode as error:
            if pod not in self._unwatched:
                log.warning(
                    "new containers of a pod are looked for now and then only",
                    extra={"fields": {"pod": pod, "reason": error}},
                )
            self._unwatched.add(pod)
        for group in self._groups:
            if group.pod == pod and group.limits:
                was_failing = bool(group.problem)
                self._apply_group(group)
                if was_failing and not group.problem:
                    log.info(
                        "limit in force",
                        extra={"fields": {"pod": pod, "device": group.device, "limit": group.current_rate}},
                    )

    def _charge_bursts(self) -> float | None:
        """Charge the bursts; seconds until it has to be done again, None for never."""
        bursting = [group for group in self._groups if group.is_metered and group.pod]
        if not bursting:
            return None
        counters = self._read_counters({group.device for group in bursting})
        now = self._now()
        busy = False
        for group in bursting:
            idle = counters.get(group.device) == self._last_counters.get(group.device)
            busy |= not idle
            self._charge_group(group, now, idle)
        self._last_counters = counters
        first = min(group.burst.seconds_until_check(group.limits) for group in bursting if group.limits)
        return min(first, _BUSY_INTERVAL if busy else _IDLE_INTERVAL)

    def _charge_group(self, group: ThrottleGroup, now: float, idle: bool) -> None:
        before = group.burst
        if group.charge_reads(self.hierarchy, now, idle):
            self._apply_group(group)
            self._save(group)
        elif group.burst != before and now - group.saved_at >= _SAVE_INTERVAL:
            self._save(group)

    def charge(self, group: ThrottleGroup) -> None:
        """Charge all that the group has read to its burst, when it ends."""
        now = self._now()
        for idle in (False, True):
            group.charge_reads(self.hierarchy, now, idle)

    def close(self) -> None:
        """End the thread, if it runs; limits stay in force."""
        if self._closing:
            return
        self._closing = True
        self._events.wake()
        self._thread.join()
        self._events.close()


class _Backoff:
    """When to try again what failed: soon at first, then less and less often."""

    def __init__(self) -> None:
        self._pause = _MIN_BACKOFF
        self._at: float | None = None

    def reset(self) -> None:
        """Something has changed: start over."""
        self._pause = _MIN_BACKOFF
        if self._at is not None:
            self._at = min(self._at, time.monotonic() + self._pause)

    def is_due(self) -> bool:
        """Whether it is time to try; if so, the next time is further off."""
        if self._at is None or time.monotonic() < self._at:
            return False
        self._at, self._pause = None, min(2 * self._pause, _MAX_BACKOFF)
        return True

    def seconds_until_due(self, needed: bool) -> float | None:
        """Seconds until it is time; None where nothing `needed` it."""
        if not needed:
            self._at, self._pause = None, _MIN_BACKOFF
            return None
        if self._at is None:
            self._at = time.monotonic() + self._pause
        return max(0.0, self._at - time.monotonic())


def _min_known(*pauses: float | None) -> float | None:
    return min((pause for pause in pauses if pause is not None), default=None)
