"""How long one call may wait, and what ends its waiting."""

from __future__ import annotations

import threading

import pytest

from csi.concurrency.deadline import Deadline
from csi.concurrency.wait_limiter import WaitLimiter
from csi.errors import Busy


def test_patience_runs_out_by_itself() -> None:
    assert Deadline(0).is_over
    assert not Deadline(60).is_over
    short = Deadline(0.05)
    short.sleep()
    assert short.is_over
    assert short.cancelled == ""


def test_the_first_reason_for_cancelling_stays() -> None:
    waits = Deadline(60)
    waits.cancel("one")
    waits.cancel("two")
    assert waits.is_over
    assert waits.cancelled == "one"
    waits.sleep()
    waits.sleep()


def test_a_sleeper_is_woken_to_look_and_sleeps_on() -> None:
    waits, woken = Deadline(60), threading.Semaphore(0)

    def sleeper() -> None:
        while not waits.is_over:
            waits.sleep()
            woken.release()

    thread = threading.Thread(target=sleeper)
    thread.start()
    waits.wake()
    assert woken.acquire(timeout=10)
    assert not waits.is_over
    waits.cancel("enough")
    thread.join(10)
    assert not thread.is_alive()


def test_a_wake_before_the_sleep_is_not_lost() -> None:
    waits = Deadline(60)
    waits.wake()
    waits.sleep()
    assert not waits.is_over


def test_a_full_room_says_how_many_wait_and_a_seat_is_free_after_a_failure() -> None:
    room = WaitLimiter(2)
    seats = room.slot("a", Deadline(60)), room.slot("a", Deadline(60))
    with (
        seats[0],
        seats[1],
        pytest.raises(Busy, match="2 calls are waiting already"),
        room.slot("b", Deadline(60)),
    ):
        pass
    with pytest.raises(ValueError), room.slot("a", Deadline(60)):
        raise ValueError
    with room.slot("a", Deadline(60)), room.slot("b", Deadline(60)):
        pass


def test_cancelling_a_volume_ends_all_its_waits_and_no_others() -> None:
    room, first, second, other = WaitLimiter(9), Deadline(60), Deadline(60), Deadline(60)
    with room.slot("a", first), room.slot("a", second), room.slot("b", other):
        room.cancel("a", "taken away")
        assert (first.cancelled, second.cancelled, other.cancelled) == ("taken away", "taken away", "")


def test_closing_ends_all_waits_and_lets_nobody_sit_down_again() -> None:
    room, seated = WaitLimiter(9), Deadline(60)
    with room.slot("a", seated):
        room.close("leaving")
        assert seated.cancelled == "leaving"
    with pytest.raises(Busy, match="leaving"), room.slot("a", Deadline(60)):
        pass
