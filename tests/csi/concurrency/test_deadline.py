"""How long one call may wait, and what ends its waiting."""

from __future__ import annotations

import threading

import pytest

from csi.concurrency.deadline import Patience
from csi.concurrency.wait_limiter import WaitingRoom
from csi.errors import Busy


def test_patience_runs_out_by_itself() -> None:
    assert Patience(0).over and not Patience(60).over
    short = Patience(0.05)
    short.sleep()
    assert short.over and short.cancelled == ""


def test_the_first_reason_for_cancelling_stays() -> None:
    waits = Patience(60)
    waits.cancel("one")
    waits.cancel("two")
    assert waits.over and waits.cancelled == "one"
    waits.sleep()
    waits.sleep()


def test_a_sleeper_is_woken_to_look_and_sleeps_on() -> None:
    waits, woken = Patience(60), threading.Semaphore(0)

    def sleeper() -> None:
        while not waits.over:
            waits.sleep()
            woken.release()

    thread = threading.Thread(target=sleeper)
    thread.start()
    waits.wake()
    assert woken.acquire(timeout=10)
    assert not waits.over
    waits.cancel("enough")
    thread.join(10)
    assert not thread.is_alive()


def test_a_wake_before_the_sleep_is_not_lost() -> None:
    waits = Patience(60)
    waits.wake()
    waits.sleep()
    assert not waits.over


def test_a_full_room_says_how_many_wait_and_a_seat_is_free_after_a_failure() -> None:
    room = WaitingRoom(2)
    seats = room.seat("a", Patience(60)), room.seat("a", Patience(60))
    with seats[0], seats[1], pytest.raises(Busy, match="2 calls are waiting already"), room.seat("b", Patience(60)):
        pass
    with pytest.raises(ValueError), room.seat("a", Patience(60)):
        raise ValueError
    with room.seat("a", Patience(60)), room.seat("b", Patience(60)):
        pass


def test_cancelling_a_volume_ends_all_its_waits_and_no_others() -> None:
    room, first, second, other = WaitingRoom(9), Patience(60), Patience(60), Patience(60)
    with room.seat("a", first), room.seat("a", second), room.seat("b", other):
        room.cancel("a", "taken away")
        assert (first.cancelled, second.cancelled, other.cancelled) == ("taken away", "taken away", "")


def test_closing_ends_all_waits_and_lets_nobody_sit_down_again() -> None:
    room, seated = WaitingRoom(9), Patience(60)
    with room.seat("a", seated):
        room.close("leaving")
        assert seated.cancelled == "leaving"
    with pytest.raises(Busy, match="leaving"), room.seat("a", Patience(60)):
        pass
