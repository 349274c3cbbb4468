"""Limits in force over fake cgroups in real folders, with real file events: now, late, changed, taken
away."""

from __future__ import annotations

import pytest

from csi.performance.limits import UNLIMITED, Limits, Rate
from tests.kernel.machine import until
from tests.node_plugin.throttle.place import CREDIT, DEVICE, FAST, METERED, OTHER_UID, SLOW, UID, Place


def test_a_limit_is_in_force_on_the_pod_and_each_container_before_hold_returns(place: Place) -> None:
    first, second = place.container("c1"), place.container("c2")
    nested = first / "inner"
    nested.mkdir()
    place.hold(SLOW)
    assert [place.rate(cgroup) for cgroup in (place.pod(), first, second, nested)] == [SLOW.sustained] * 4


def test_on_version_2_the_limit_is_on_the_pod_alone(unified: Place) -> None:
    container = unified.container()
    unified.hold(SLOW)
    assert unified.rate(unified.pod()) == SLOW.sustained
    assert unified.rate(container) == UNLIMITED


def test_a_pod_that_appears_late_gets_its_limit(place: Place) -> None:
    place.hold(SLOW)
    held = place.throttle.get_limit_status("/t1")
    assert held
    assert "has no cgroup" in held.problem
    container = place.container()
    assert until(lambda: place.rate(container) == SLOW.sustained)
    assert until(lambda: not place.throttle.get_limit_status("/t1").problem)


@pytest.mark.parametrize("above", ["", "docker/0123/kubelet/"])
def test_a_pod_whose_kubelet_appears_late_gets_its_limit(place: Place, above: str) -> None:
    place.hold(SLOW)
    place.hold(FAST, "/t2", OTHER_UID)
    for uid, limits in ((UID, SLOW), (OTHER_UID, FAST)):
        pod = place.cgroups.root / f"{above}kubepods/besteffort/pod{uid}"
        pod.mkdir(parents=True)
        assert until(lambda pod=pod, limits=limits: place.rate(pod) == limits.sustained)


def test_a_container_that_comes_later_or_again_gets_its_limit(place: Place) -> None:
    place.container("c1")
    place.hold(SLOW)
    later = place.container("c2")
    assert until(lambda: place.rate(later) == SLOW.sustained)
    for name in ("throttle.json", ""):
        (later / name).unlink() if name else later.rmdir()
    again = place.container("c2")
    assert until(lambda: place.rate(again) == SLOW.sustained)


def test_a_pod_s_cgroup_that_goes_and_comes_again_gets_its_limit(place: Place) -> None:
    container = place.container()
    place.hold(SLOW)
    until(lambda: False, 0.1)
    for path in (*container.glob("*"), container, *place.pod().glob("*.json"), place.pod()):
        path.rmdir() if path.is_dir() else path.unlink()
    assert until(lambda: "has no cgroup" in place.throttle.get_limit_status("/t1").problem)
    container = place.container()
    assert until(lambda: place.rate(container) == SLOW.sustained)
    assert until(lambda: not place.throttle.get_limit_status("/t1").problem)


def test_a_limit_that_somebody_takes_away_is_put_back(unified: Place) -> None:
    unified.container()
    unified.hold(SLOW)
    assert until(lambda: unified.throttle.get_limit_status("/t1"))
    until(lambda: False, 0.2)
    unified.cgroups.set_limit(unified.pod(), DEVICE, UNLIMITED)
    assert until(lambda: unified.rate(unified.pod()) == SLOW.sustained)


def test_two_volumes_of_a_pod_on_one_device_have_the_sum(place: Place) -> None:
    container = place.container()
    place.hold(SLOW, "/t1", volume="one")
    place.hold(SLOW, "/t2", volume="two")
    assert place.rate(container) == Rate(1000, 16_384_000)
    held = place.throttle.get_limit_status("/t1")
    assert held
    assert held.limits == SLOW
    assert held.rate == Rate(1000, 16_384_000)
    place.throttle.release("/t1")
    assert place.rate(container) == SLOW.sustained


def test_a_volume_without_limits_beside_one_with_them_frees_both_and_says_so(place: Place) -> None:
    container = place.container()
    place.hold(SLOW, "/t1", volume="one")
    place.hold(None, "/t2", volume="two")
    assert place.rate(container) == UNLIMITED
    held = place.throttle.get_limit_status("/t1")
    assert held
    assert "another volume without limits" in held.problem
    place.throttle.release("/t2")
    assert place.rate(container) == SLOW.sustained


def test_pods_on_one_device_have_each_their_own(place: Place) -> None:
    slow, fast = place.container(uid=UID), place.container(uid=OTHER_UID)
    place.hold(SLOW, "/t1", UID)
    place.hold(FAST, "/t2", OTHER_UID)
    assert place.rate(slow) == SLOW.sustained
    assert place.rate(fast) == FAST.sustained
    place.throttle.release("/t2")
    assert place.rate(slow) == SLOW.sustained
    assert place.rate(fast) == UNLIMITED


def test_what_is_released_leaves_nothing_behind(place: Place) -> None:
    container = place.container()
    place.hold(CREDIT)
    place.throttle.release("/t1")
    place.throttle.release("/t1")
    assert place.rate(container) == place.rate(place.pod()) == UNLIMITED
    assert place.throttle.get_limit_status("/t1") is None
    assert place.throttle.list_limit_statuses() == []
    assert list((place.folder / "throttles").iterdir()) == []
    later = place.container("c2")
    until(lambda: False, 0.2)
    assert place.rate(later) == UNLIMITED


def test_holding_again_writes_nothing(place: Place) -> None:
    place.container()
    place.hold(SLOW)
    writes = place.cgroups.writes
    place.hold(SLOW)
    assert place.cgroups.writes == writes


def test_changed_limits_are_in_force_after_renew(place: Place) -> None:
    container = place.container()
    place.hold(SLOW)
    for limits, rate in (
        (FAST, FAST.sustained),
        (None, UNLIMITED),
        (CREDIT, CREDIT.burst),
        (SLOW, SLOW.sustained),
    ):
        place.throttle.change_limits("vol", limits)
        assert place.rate(container) == rate
    place.throttle.change_limits("unknown", FAST)
    assert place.rate(container) == SLOW.sustained


def test_two_fresh_volumes_have_the_credit_of_both_and_who_leaves_takes_a_share(place: Place) -> None:
    container = place.container()
    for target in ("/t1", "/t2"):
        place.hold(CREDIT, target)
    assert place.throttle.get_limit_status("/t1").burst.credit == 12_000
    place.read(container, 9000)
    place.clock += 1
    assert until(lambda: place.throttle.get_limit_status("/t1").burst.credit == 4000)
    place.throttle.release("/t2")
    assert place.throttle.get_limit_status("/t1").burst.credit == 2000
    place.throttle.change_limits("vol", Limits(CREDIT.sustained, CREDIT.burst, 10_000))
    assert place.throttle.get_limit_status("/t1").burst.credit == 2000


@pytest.mark.parametrize("bursting", [METERED, CREDIT])
def test_what_is_read_while_there_is_no_burst_is_charged_to_none(place: Place, bursting: Limits) -> None:
    container = place.container()
    place.hold(bursting)
    place.throttle.change_limits("vol", FAST)
    until(lambda: False, 0.1)
    place.read(container, 60_000)
    place.clock += 12
    place.throttle.change_limits("vol", bursting)
    until(lambda: False, 1.2)
    held = place.throttle.get_limit_status("/t1")
    assert held
    assert held.burst.metered_ios == 0
    assert held.rate == bursting.burst
    assert held.burst.credit == bursting.credit


def test_a_leftover_cgroup_of_the_same_pod_hides_no_other(place: Place) -> None:
    leftover = place.cgroups.root / f"kubepods/besteffort/pod{UID}"
    leftover.mkdir(parents=True)
    container = place.container()
    place.hold(SLOW)
    assert place.rate(container) == SLOW.sustained
    later = place.container("c2")
    assert until(lambda: place.rate(later) == SLOW.sustained)


def test_a_kubelet_below_a_folder_that_was_there_before_is_found(place: Place) -> None:
    (place.cgroups.root / "docker/0123").mkdir(parents=True)
    place.hold(SLOW)
    until(lambda: False, 0.1)
    pod = place.cgroups.root / f"docker/0123/kubelet/kubepods/burstable/pod{UID}"
    pod.mkdir(parents=True)
    assert until(lambda: place.rate(pod) == SLOW.sustained)


def test_more_iops_than_the_kernel_can_hold_are_written_once(place: Place) -> None:
    container = place.container()
    huge = Limits(Rate(10**9, 2**44))
    for number in range(5):
        place.hold(huge, f"/t{number}")
    until(lambda: False, 0.2)
    writes = place.cgroups.writes
    until(lambda: False, 0.5)
    assert place.cgroups.writes == writes
    assert place.rate(container) == Rate(5 * 10**9, 5 * 2**44)


def test_a_credit_that_is_used_up_leaves_the_sustained_limit(place: Place) -> None:
    container = place.container()
    place.hold(CREDIT)
    assert place.rate(container) == CREDIT.burst
    place.read(container, 7500)
    place.clock += 2.5
    assert until(lambda: place.rate(container) == CREDIT.sustained)
    place.clock += 10
    assert until(lambda: place.rate(container) == CREDIT.burst)


def test_what_all_containers_of_a_pod_read_is_charged_and_what_was_read_before_is_not(place: Place) -> None:
    first = place.container("c1")
    place.cgroups.read(first, DEVICE, 1_000_000)
    place.hold(METERED)
    second = place.container("c2")
    assert until(lambda: place.rate(second) == METERED.burst)
    place.read(first, 1000)
    place.read(second, 500)
    assert until(lambda: place.throttle.get_limit_status("/t1").burst.metered_ios == 1500)


def test_a_container_that_ended_takes_nothing_back(place: Place) -> None:
    container = place.container()
    place.hold(METERED)
    place.read(container, 1000)
    assert until(lambda: place.throttle.get_limit_status("/t1").burst.metered_ios == 1000)
    (container / "throttle.json").unlink()
    container.rmdir()
    other = place.container("c2")
    until(lambda: False, 0.2)
    place.read(other, 10)
    assert until(lambda: place.throttle.get_limit_status("/t1").burst.metered_ios == 1010)
