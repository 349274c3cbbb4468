"""Limits through kills, damaged records, full stores, used-up inotify and kernels that refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi.errors import UnsupportedByNode
from csi.linux import durable_files
from csi.linux.inotify import FolderWatcher
from csi.performance.limits import UNLIMITED, Rate
from node_plugin.throttle.records import GroupRecords
from node_plugin.throttle.throttle import LimitRequest, Throttle
from tests.kernel.machine import until
from tests.node_plugin.throttle.place import CREDIT, DEVICE, FAST, OTHER_UID, SLOW, UID, Place


def test_limits_that_are_unknown_at_a_start_stay_as_they_were(place: Place) -> None:
    container = place.container()
    place.hold(SLOW, "/t1", volume="one")
    place.hold(SLOW, "/t2", volume="two")
    place.kill()
    writes = place.cgroups.writes
    place.throttle.resume(
        [place.wanted(None, "/t1", volume="one", unknown=True), place.wanted(SLOW, "/t2", volume="two")]
    )
    assert place.rate(container) == Rate(1000, 16_384_000)
    assert place.cgroups.writes == writes
    held = place.throttle.get_limit_status("/t1")
    assert held
    assert held.limits == SLOW


def test_what_the_kernel_refused_is_tried_again_however_often_it_was_asked_meanwhile(place: Place) -> None:
    container = place.container()
    place.cgroups.refusal = "the kernel refuses"
    place.hold(SLOW)
    for _ in range(14):
        place.throttle.change_limits("vol", SLOW)
    place.cgroups.refusal = ""
    assert until(lambda: place.rate(container) == SLOW.sustained, 30)
    assert until(lambda: not place.throttle.get_limit_status("/t1").problem)


def test_a_machine_without_watches_left_limits_new_containers_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = place.container()

    def none_left(events: FolderWatcher, folder: Path) -> bool:
        raise UnsupportedByNode("no inotify watch is left")

    with monkeypatch.context() as patched:
        patched.setattr(FolderWatcher, "watch", none_left)
        place.hold(SLOW)
        place.hold(FAST, "/t2", OTHER_UID)
        assert place.rate(container) == SLOW.sustained
        later = place.container("c2")
        assert until(lambda: place.rate(later) == SLOW.sustained)
    until(lambda: False, 0.5)
    for number in range(3, 6):
        more = place.container(f"c{number}")
        assert until(lambda more=more: place.rate(more) == SLOW.sustained)


def test_a_machine_without_inotify_has_no_limits_and_says_why(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.throttle.close()

    def none_left(events: FolderWatcher) -> None:
        raise UnsupportedByNode("no inotify instance is left; raise fs.inotify.max_user_instances")

    monkeypatch.setattr(FolderWatcher, "__init__", none_left)
    place.throttle = place.start()
    place.hold(SLOW)
    held = place.throttle.get_limit_status("/t1")
    assert held
    assert "max_user_instances" in held.problem


def test_a_store_without_room_keeps_no_limit_from_being_in_force(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = place.container()
    place.hold(SLOW, "/t1")

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable_files, "replace_text_unsynced", full)
    place.hold(SLOW, "/t2")
    assert place.rate(container) == Rate(1000, 16_384_000)
    place.throttle.release("/t2")
    assert place.rate(container) == SLOW.sustained
    place.throttle.release("/t1")
    assert place.rate(container) == UNLIMITED


def test_required_limits_refuse_a_volume_beside_one_without_limits(place: Place) -> None:
    place.container()
    place.throttle.close()
    place.throttle = place.start(required=True)
    place.hold(None, "/t1")
    with pytest.raises(UnsupportedByNode, match="another volume without limits"):
        place.hold(SLOW, "/t2")
    assert place.throttle.get_limit_status("/t2") is None


def test_pods_that_nobody_knows_have_nothing_in_common(place: Place) -> None:
    for target in ("/t1", "/t2"):
        place.hold(SLOW, target, uid="")
    held = place.throttle.get_limit_status("/t1")
    assert held
    assert held.group_limits == SLOW
    place.throttle.release("/t1", "/t2")
    assert place.throttle.list_limit_statuses() == []


def test_a_killed_plugin_finds_limits_and_credit_as_they_are(place: Place) -> None:
    container = place.container()
    place.hold(CREDIT)
    place.read(container, 3500)
    place.clock += 1
    assert until(lambda: place.throttle.get_limit_status("/t1").burst.credit == 3000)
    place.kill()
    writes = place.cgroups.writes
    place.cgroups.read(container, DEVICE, 2000)
    place.clock += 2
    place.throttle.resume([place.wanted(CREDIT)])
    assert until(lambda: place.throttle.get_limit_status("/t1").burst.credit == 2000)
    assert place.cgroups.writes == writes
    assert place.rate(container) == CREDIT.burst


def test_a_credit_used_up_while_the_plugin_was_gone_is_used_up(place: Place) -> None:
    container = place.container()
    place.hold(CREDIT)
    place.kill()
    place.cgroups.read(container, DEVICE, 30_000)
    place.clock += 10
    place.throttle.resume([place.wanted(CREDIT)])
    assert until(lambda: place.rate(container) == CREDIT.sustained)


def test_a_killed_plugin_s_sum_is_never_lowered_or_lifted_on_the_way(place: Place) -> None:
    place.container()
    for target in ("/t1", "/t2"):
        place.hold(SLOW, target)
    place.kill()
    writes = place.cgroups.writes
    place.throttle.resume([place.wanted(SLOW, target) for target in ("/t1", "/t2")])
    assert place.cgroups.writes == writes


def test_what_a_killed_plugin_left_in_a_cgroup_that_lives_on_is_removed(place: Place) -> None:
    container, other = place.container(), place.container(uid=OTHER_UID)
    place.hold(SLOW)
    place.hold(FAST, "/t2", OTHER_UID)
    place.kill()
    place.throttle.resume([place.wanted(FAST, "/t2", OTHER_UID)])
    assert place.rate(container) == UNLIMITED
    assert place.rate(other) == FAST.sustained
    assert len(list((place.folder / "throttles").iterdir())) == 1


@pytest.mark.parametrize("damage", ["", "{", '{"format": 9}', "[]", "wrong type"])
def test_a_damaged_record_costs_the_credit_s_past_and_nothing_else(place: Place, damage: str) -> None:
    container = place.container()
    place.hold(CREDIT)
    (record,) = (place.folder / "throttles").iterdir()
    place.throttle.close()
    record.write_text(
        damage if damage != "wrong type" else record.read_text().replace('"credit": 6000', '"credit": "much"')
    )
    (place.folder / "throttles/folder").mkdir()
    place.throttle = place.start()
    place.throttle.resume([place.wanted(CREDIT)])
    assert place.rate(container) == CREDIT.burst


@pytest.mark.parametrize("uid", ["", UID])
def test_limits_that_cannot_be_held_are_said_or_refused(place: Place, uid: str) -> None:
    place.container()
    place.cgroups.refusal = "the kernel refuses"
    place.hold(SLOW, uid=uid)
    held = place.throttle.get_limit_status("/t1")
    assert held
    assert ("the kernel refuses" if uid else "no pod is known") in held.problem
    place.throttle.close()
    place.throttle = place.start(required=True)
    with pytest.raises(UnsupportedByNode, match="cannot be enforced"):
        place.hold(SLOW, uid=uid)
    assert place.throttle.list_limit_statuses() == []
    place.hold(None, uid=uid)


def test_a_pod_that_is_not_there_yet_is_no_reason_to_refuse(place: Place) -> None:
    place.throttle.close()
    place.throttle = place.start(required=True)
    place.hold(SLOW)
    container = place.container()
    assert until(lambda: place.rate(container) == SLOW.sustained)


def test_a_node_without_cgroups_works_and_says_why_there_are_no_limits(tmp_path: Path) -> None:
    throttle = Throttle(UnsupportedByNode("no cgroups here"), GroupRecords(tmp_path / "throttles"))
    wanted = LimitRequest("vol", "/t1", UID, DEVICE, SLOW)
    throttle.resume([wanted])
    throttle.apply(wanted)
    held = throttle.get_limit_status("/t1")
    assert held
    assert held.problem == "no cgroups here"
    throttle.release("/t1")
    throttle.close()
