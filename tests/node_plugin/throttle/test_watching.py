"""Which pods an event is about.

Here what is hard to bring about from outside: events that the kernel dropped.
"""

from __future__ import annotations

from pathlib import Path

from csi.linux.cgroups.pod_cgroups import PodCgroups
from csi.linux.inotify import FileEvent, FileEventKind, FolderWatcher
from node_plugin.throttle.watching import CgroupWatcher
from tests.csi.linux.cgroups.fakes import FakeHierarchy

LOST = [FileEvent(FileEventKind.OVERFLOW)]


def test_after_lost_events_every_pod_is_looked_at_and_watched_anew(tmp_path: Path) -> None:
    hierarchy = FakeHierarchy(tmp_path)
    pod = tmp_path / "kubepods/pod1"
    pod.mkdir(parents=True)
    with FolderWatcher() as events:
        watch = CgroupWatcher(hierarchy, PodCgroups(tmp_path), events)
        watch.watch_pod("1")
        pod.rmdir()
        pod.mkdir()
        events.wait(5)
        assert watch.handle_events(LOST, {"1", "2"}) == {"1", "2"}
        watch.watch_pod("1")
        (pod / "c1").mkdir()
        assert watch.handle_events(events.wait(5), {"1"}) == {"1"}


def test_only_what_undoes_a_limit_is_heard_of_writes(tmp_path: Path) -> None:
    hierarchy = FakeHierarchy(tmp_path)
    pod = tmp_path / "kubepods/pod1"
    pod.mkdir(parents=True)
    with FolderWatcher() as events:
        watch = CgroupWatcher(hierarchy, PodCgroups(tmp_path), events)
        watch.watch_pod("1")
        (pod / "cgroup.procs").write_text("1")
        assert watch.handle_events([FileEvent(FileEventKind.WRITTEN, pod, "cgroup.procs")], {"1"}) == set()
        assert watch.handle_events(
            [FileEvent(FileEventKind.WRITTEN, pod, hierarchy.limit_files[0])], {"1"}
        ) == {"1"}
        assert watch.handle_events(
            [FileEvent(FileEventKind.WRITTEN, tmp_path, hierarchy.limit_files[0])], {"1", "2"}
        ) == {"1", "2"}
        watch.unwatch_pod("1")
        assert watch.handle_events([FileEvent(FileEventKind.CREATED, pod, "c1")], {"2"}) == set()
