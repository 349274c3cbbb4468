"""Which pods an event is about; here what is hard to bring about from outside: events that the kernel dropped."""

from __future__ import annotations

from pathlib import Path

from csi.linux.cgroups.pod_cgroups import PodCgroups
from csi.linux.inotify import FileEvent, FileEvents, Kind
from node_plugin.throttle.watching import CgroupWatch
from tests.csi.linux.cgroups.fakes import FakeHierarchy

LOST = [FileEvent(Kind.LOST)]


def test_after_lost_events_every_pod_is_looked_at_and_watched_anew(tmp_path: Path) -> None:
    hierarchy = FakeHierarchy(tmp_path)
    pod = tmp_path / "kubepods/pod1"
    pod.mkdir(parents=True)
    with FileEvents() as events:
        watch = CgroupWatch(hierarchy, PodCgroups(tmp_path), events)
        watch.follow("1")
        pod.rmdir()
        pod.mkdir()
        events.wait(5)
        assert watch.concerned(LOST, {"1", "2"}) == {"1", "2"}
        watch.follow("1")
        (pod / "c1").mkdir()
        assert watch.concerned(events.wait(5), {"1"}) == {"1"}


def test_only_what_undoes_a_limit_is_heard_of_writes(tmp_path: Path) -> None:
    hierarchy = FakeHierarchy(tmp_path)
    pod = tmp_path / "kubepods/pod1"
    pod.mkdir(parents=True)
    with FileEvents() as events:
        watch = CgroupWatch(hierarchy, PodCgroups(tmp_path), events)
        watch.follow("1")
        (pod / "cgroup.procs").write_text("1")
        assert watch.concerned([FileEvent(Kind.WRITTEN, pod, "cgroup.procs")], {"1"}) == set()
        assert watch.concerned([FileEvent(Kind.WRITTEN, pod, hierarchy.watched[0])], {"1"}) == {"1"}
        assert watch.concerned([FileEvent(Kind.WRITTEN, tmp_path, hierarchy.watched[0])], {"1", "2"}) == {"1", "2"}
        watch.leave("1")
        assert watch.concerned([FileEvent(Kind.MADE, pod, "c1")], {"2"}) == set()
