"""Seats for calls that wait, and how their waiting is ended."""

from __future__ import annotations

import pytest

from csi.concurrency.deadline import Deadline
from csi.concurrency.wait_limiter import WaitLimiter
from csi.errors import Busy


def test_a_call_on_its_way_from_one_seat_to_the_next_hears_that_its_volume_is_taken_away() -> None:
    room, deadline, other = WaitLimiter(1), Deadline(60), Deadline(60)
    with room.track("volume", deadline), room.track("another", other):
        with room.slot("volume", deadline):
            pass
        room.cancel("volume", "the volume is being unpublished")
        assert deadline.cancelled == "the volume is being unpublished"
        assert not other.cancelled


def test_a_call_that_has_ended_is_not_cancelled() -> None:
    room, deadline = WaitLimiter(1), Deadline(60)
    with room.track("volume", deadline), room.slot("volume", deadline):
        pass
    room.cancel("volume", "the volume is being unpublished")
    assert not deadline.cancelled


def test_being_present_takes_no_seat() -> None:
    room = WaitLimiter(1)
    held = room.track("volume", Deadline(60)), room.slot("another", Deadline(60))
    with (
        held[0],
        held[1],
        pytest.raises(Busy, match="1 calls are waiting already"),
        room.slot("third", Deadline(60)),
    ):
        pass
