"""The thread that enforces limits: it reacts to new cgroups, charges bursts, and sleeps otherwise."""

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

# Seconds between two readings of the counters (with and without I/O), and two records of a burst.
_BUSY_INTERVAL, _IDLE_INTERVAL, _SAVE_INTERVAL = 0.25, 0.5, 1.0
# Seconds between attempts for pods whose limits are not in force. Events alone do not suffice: systemd may
# withdraw the io controller from a cgroup between two of our writes, without any event.
_MIN_BACKOFF, _MAX_BACKOFF = 0.1, 10.0
# Returns (reads, bytes) for each of the given devices.
ReadCounters = Callable[[Collection[str]], Mapping[str, tuple[int, int]]]


class LimitEnforcer:
    """Enforcer of the limits of `groups` on `hierarchy`; access to both requires `lock`.

    `now` returns seconds since boot. `save` is called with a group whose record is out of date.
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
        """Set the group's limit if its pod's cgroup exists; the thread does so for later cgroups."""
        if not self._pods.find(group.pod):
            self._pods.rescan()
        self._apply_group(group)
        self._events.wake()

    def _apply_group(self, group: ThrottleGroup) -> None:
        folders = self._pods.find(group.pod)
        if folders:
            group.apply(self.hierarchy, folders)
        elif group.limits:
            group.problem = f"the pod has no cgroup below {self.hierarchy.root} yet"
            group.waits_for_cgroup = True

    def _run(self) -> None:
        pause: float | None = None
        while not self._closing:
            events = self._events.wait(pause)
            with self._lock:
                try:
                    pause = self._process_events(events)
                except Exception:
                    log.exception("enforcing limits failed, retrying later")
                    pause = _MAX_BACKOFF

    def _process_events(self, events: list[FileEvent]) -> float | None:
        self._watch_and_enforce_new_pods()
        affected = self._watch.handle_events(events, self._watched_pods)
        if affected:
            self._backoff.reset()
        for pod in affected | (self._failing_pods() if self._backoff.is_due() else set()):
            self._enforce_pod(pod)
        return _min_known(self._charge_bursts(), self._backoff.seconds_until_due(bool(self._failing_pods())))

    def _failing_pods(self) -> set[str]:
        """Return the pods whose limits are not in force, or whose cgroups cannot be watched."""
        failing = {group.pod for group in self._groups if group.limits and group.problem}
        return (failing | self._unwatched) & self._watched_pods

    def _watch_and_enforce_new_pods(self) -> None:
        limited_pods = {group.pod for group in self._groups if group.pod and group.limits}
        for pod in self._watched_pods - limited_pods:
            self._watch.unwatch_pod(pod)
            self._unwatched.discard(pod)
        new_pods = limited_pods - self._watched_pods
        self._watched_pods = limited_pods
        if new_pods:
            self._backoff.reset()
        for pod in new_pods:
            self._enforce_pod(pod)

    def _enforce_pod(self, pod: str) -> None:
        """Watch a pod's cgroups and set its limits."""
        # Watch first: a cgroup that appears in between is handled twice, never missed.
        try:
            self._watch.watch_pod(pod)
            self._unwatched.discard(pod)
        except UnsupportedByNode as error:
            if pod not in self._unwatched:
                fields = {"pod": pod, "reason": error}
                log.warning("pod cgroups not watched, polling", extra={"fields": fields})
            self._unwatched.add(pod)
        for group in self._groups:
            if group.pod == pod and group.limits:
                was_failing = bool(group.problem)
                self._apply_group(group)
                if was_failing and not group.problem:
                    fields = {"pod": pod, "device": group.device, "limit": group.current_rate}
                    log.info("limit in force", extra={"fields": fields})

    def _charge_bursts(self) -> float | None:
        """Charge all bursts; return the seconds until the next time, None for never."""
        bursting = [group for group in self._groups if group.is_metered and group.pod]
        if not bursting:
            return None
        # The counters of all devices are one file; those of each cgroup are a file of its own.
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
        """Charge all reads of a group to its burst, before it ends."""
        now = self._now()
        # Twice, since the meter charges each slice when the next one is known.
        for idle in (False, True):
            group.charge_reads(self.hierarchy, now, idle)

    def close(self) -> None:
        """End the thread; limits stay in force."""
        if self._closing:
            return
        self._closing = True
        self._events.wake()
        self._thread.join()
        self._events.close()


class _Backoff:
    """Exponential backoff for pods whose limits are not in force."""

    def __init__(self) -> None:
        self._pause = _MIN_BACKOFF
        self._due_at: float | None = None

    def reset(self) -> None:
        """Start over with the shortest pause, because something has changed."""
        self._pause = _MIN_BACKOFF
        if self._due_at is not None:
            self._due_at = min(self._due_at, time.monotonic() + self._pause)

    def is_due(self) -> bool:
        """Return whether it is time to retry; if so, double the pause."""
        if self._due_at is None or time.monotonic() < self._due_at:
            return False
        self._due_at = None
        self._pause = min(2 * self._pause, _MAX_BACKOFF)
        return True

    def seconds_until_due(self, needed: bool) -> float | None:
        """Return the seconds until the next retry, None if none is `needed`."""
        if not needed:
            self._due_at = None
            self._pause = _MIN_BACKOFF
            return None
        if self._due_at is None:
            self._due_at = time.monotonic() + self._pause
        return max(0.0, self._due_at - time.monotonic())


def _min_known(*pauses: float | None) -> float | None:
    return min((pause for pause in pauses if pause is not None), default=None)
