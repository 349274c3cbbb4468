"""Changes of prewarm requests: what they cancel, and when the requests are listed again."""

from __future__ import annotations

import pytest

from csi.concurrency.deadline import Deadline
from node_plugin.prewarm.request_changes import RequestChanges


@pytest.fixture
def changes() -> RequestChanges:
    made = RequestChanges()
    made.work_for(600)
    made.begin_work("one")
    return made


def is_cancelled(deadline: Deadline) -> bool:
    return "have changed" in deadline.cancelled


def test_a_change_is_taken_once(changes: RequestChanges) -> None:
    assert not changes.take()
    changes.on_changed("one")
    assert changes.take()
    assert not changes.take()
    assert not changes.should_yield


def test_a_change_of_the_current_request_cancels_its_work(changes: RequestChanges) -> None:
    begun = changes.new_deadline(600)
    assert not is_cancelled(begun)
    changes.on_changed("one")
    assert is_cancelled(begun)
    assert is_cancelled(changes.new_deadline(600))
    assert changes.should_yield


def test_a_change_of_another_request_waits_until_the_node_has_worked(changes: RequestChanges) -> None:
    begun = changes.new_deadline(600)
    changes.on_changed("two")
    assert not is_cancelled(begun)
    assert not changes.should_yield
    changes.work_for(-1)
    assert changes.is_sync_due
    assert changes.should_yield


def test_a_stop_cancels_everything(changes: RequestChanges) -> None:
    begun = changes.new_deadline(600)
    changes.stop()
    assert is_cancelled(begun)
    assert changes.is_stopped
    assert changes.is_sync_due
    changes.wait(600)
