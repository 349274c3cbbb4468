"""Seats for calls that wait, and how their waiting is ended."""

from __future__ import annotations

import pytest

from csi.concurrency.deadline import Patience
from csi.concurrency.wait_limiter import WaitingRoom
from csi.errors import Busy


def test_a_call_on_its_way_from_one_seat_to_the_next_hears_that_its_volume_is_taken_away() -> None:
    room, patience, other = WaitingRoom(1), Patience(60), Patience(60)
    with room.present("volume", patience), room.present("another", other):
        with room.seat("volume", patience):
            pass
        room.cancel("volume", "the volume is being unpublished")
        assert patience.cancelled == "the volume is being unpublished"
        assert not other.cancelled


def test_a_call_that_has_ended_is_not_cancelled() -> None:
    room, patience = WaitingRoom(1), Patience(60)
    with room.present("volume", patience), room.seat("volume", patience):
        pass
    room.cancel("volume", "the volume is being unpublished")
    assert not patience.cancelled


def test_being_present_takes_no_seat() -> None:
    room = WaitingRoom(1)
    held = room.present("volume", Patience(60)), room.seat("another", Patience(60))
    with held[0], held[1], pytest.raises(Busy, match="1 calls are waiting already"), room.seat("third", Patience(60)):
        pass
