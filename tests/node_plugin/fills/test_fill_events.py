"""What people are told of the fills of their volumes, and what not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.errors import Busy, DataCacheError, OriginUnavailable, PermissionDenied
from csi.images.progress import FillProgress
from csi.parameters.pvc import PvcReference
from csi.registry.events.recorder import ObjectReference
from node_plugin.fills.fill_events import (
    CLAMPED_REASON,
    FAILED_REASON,
    FILLING_REASON,
    READY_REASON,
    _describe_progress,
    compute_percent,
)
from tests.node_plugin.fills.test_fills import eventually
from tests.node_plugin.node import HUB, INLINE, Node

UID = "0f0e0d0c-0b0a-0908-0706-050403020100"
FACTS = {
    "csi.storage.k8s.io/pod.name": "reader",
    "csi.storage.k8s.io/pod.namespace": "team-a",
    "csi.storage.k8s.io/pod.uid": UID,
}
POD, PVC = (
    ObjectReference("Pod", "team-a", "reader", UID),
    ObjectReference("PersistentVolumeClaim", "team-a", "models", UID),
)
CLAIMED = {**HUB, **PvcReference("team-a", "models").to_context(f"pvc-{UID}")}


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Node]:
    """A node that tells of fills after 50 ms."""
    node = Node(tmp_path, told_after=0.05)
    yield node
    node.source.go_fill.set()
    node.fills.stop()
    node.close()


def reasons(node: Node, subject: ObjectReference) -> set[str]:
    return set(node.announcer.said(subject))


def test_a_short_fill_is_silent(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.inline(context={**INLINE, **FACTS})
    node.stage(context=CLAIMED)
    node.fills.stop()
    assert node.announcer.history == []
    assert node.announcer.fills() == {}
    node.close()


def test_a_pod_is_told_of_the_fill_of_its_inline_volume_and_when_it_is_done(hasty: Node) -> None:
    hasty.source.go_fill.clear()
    call = threading.Thread(target=hasty.inline, kwargs={"context": {**INLINE, **FACTS}})
    call.start()
    assert eventually(
        lambda: (
            "1.0 MiB of 5.0 MiB (20%), 1.0 MiB/s, about 4 s left"
            in [said.message for said in hasty.announcer.said(POD).values()]
        )
    )
    assert eventually(lambda: hasty.announcer.said(POD)[FILLING_REASON].count > 1)
    assert hasty.announcer.fills() == {}, "an inline volume is not in the registry"
    hasty.source.go_fill.set()
    call.join(20)
    assert eventually(lambda: READY_REASON in reasons(hasty, POD))
    assert hasty.announcer.said(POD)[READY_REASON].message.startswith(
        f"image {hasty.source.digest[:12]} is on the node: 9.8 KiB in "
    )
    assert reasons(hasty, POD) == {FILLING_REASON, READY_REASON}


def test_the_claim_of_a_persistent_volume_is_told_and_the_volume_shows_how_full_it_is(hasty: Node) -> None:
    hasty.source.go_fill.clear()
    call = threading.Thread(target=hasty.stage, kwargs={"context": CLAIMED})
    call.start()
    assert eventually(
        lambda: FILLING_REASON in reasons(hasty, PVC) and hasty.announcer.fills() == {"vol": 20}
    )
    hasty.source.go_fill.set()
    call.join(20)
    assert eventually(lambda: READY_REASON in reasons(hasty, PVC) and hasty.announcer.fills() == {})


def test_who_has_left_off_waiting_is_told_all_the_same_when_it_is_done(hasty: Node) -> None:
    """kubelet comes back after up to two minutes, and fills end in between."""

    def leaves_off() -> bool:
        with pytest.raises(Busy):
            hasty.inline(context={**INLINE, **FACTS}, seconds=0.1)
        return FILLING_REASON in reasons(hasty, POD)

    hasty.source.go_fill.clear()
    assert eventually(leaves_off)
    hasty.source.go_fill.set()
    assert eventually(lambda: READY_REASON in reasons(hasty, POD))
    assert FAILED_REASON not in reasons(hasty, POD)


def test_a_volume_that_was_taken_away_is_told_nothing_more(hasty: Node) -> None:
    hasty.source.go_fill.clear()
    with pytest.raises(Busy):
        hasty.stage(context=CLAIMED, seconds=0.2)
    assert eventually(lambda: hasty.announcer.fills() == {"vol": 20})
    hasty.unstage()
    assert hasty.announcer.fills() == {}
    told = len(hasty.announcer.history)
    hasty.source.go_fill.set()
    assert eventually(lambda: hasty.fills.get_progress() == {})
    assert READY_REASON not in reasons(hasty, PVC)
    assert len(hasty.announcer.history) <= told + 1


def test_a_static_volume_has_nobody_to_be_told(hasty: Node) -> None:
    hasty.source.go_fill.clear()
    with pytest.raises(Busy):
        hasty.stage(context=HUB, seconds=0.2)
    assert hasty.announcer.history == []
    assert hasty.announcer.fills() == {}
    assert hasty.events._fills == {}


def test_a_failure_is_told_once_with_its_reason_however_often_kubelet_comes_back(hasty: Node) -> None:
    hasty.events._interval = 60.0
    hasty.source.fill_error = OriginUnavailable("the origin is down")
    for _ in range(3):
        with pytest.raises(OriginUnavailable):
            hasty.inline(context={**INLINE, **FACTS})
    said = hasty.announcer.said(POD)[FAILED_REASON]
    assert (said.message, said.warning, said.count) == ("the origin is down", True, 1)
    hasty.source.fill_error = None
    hasty.source.error = PermissionDenied("this token may not read")
    with pytest.raises(PermissionDenied):
        hasty.inline(context={**INLINE, **FACTS, "revision": "b" * 40})
    assert hasty.announcer.said(POD)[FAILED_REASON].message == "this token may not read"


def test_what_ended_the_fill_of_another_credential_is_not_told_here(hasty: Node) -> None:
    hasty.source.readers = {"right", "late"}
    hasty.source.go_fill.clear()
    other = {**FACTS, "csi.storage.k8s.io/pod.name": "other"}
    with pytest.raises(Busy):
        hasty.inline("csi-2", "pod2", context={**INLINE, **other}, secrets={"token": "late"}, seconds=0.2)
    with pytest.raises(Busy):
        hasty.inline(context={**INLINE, **FACTS}, secrets={"token": "right"}, seconds=0.2)
    hasty.source.readers = {"right"}
    hasty.source.go_fill.set()
    assert eventually(lambda: hasty.fills.get_progress() == {})
    assert FAILED_REASON not in reasons(hasty, POD)
    hasty.inline(context={**INLINE, **FACTS}, secrets={"token": "right"})


def test_limits_that_were_lowered_are_told(hasty: Node) -> None:
    hasty.inline(context={**INLINE, **FACTS, "performanceLevel": "PL3"})
    said = hasty.announcer.said(POD)[CLAMPED_REASON]
    assert said.warning
    assert "performanceLevel PL3 lowered to PL1, the most for 1 GiB" in said.message
    hasty.inline(
        "csi-2",
        "pod2",
        context={**INLINE, **FACTS, "csi.storage.k8s.io/pod.name": "fits", "performanceLevel": "PL1"},
    )
    assert reasons(hasty, ObjectReference("Pod", "team-a", "fits", UID)) == set()


def test_no_thread_is_left_when_no_fill_is(hasty: Node) -> None:
    hasty.source.go_fill.clear()
    with pytest.raises(Busy):
        hasty.stage(context=CLAIMED, seconds=0.1)
    assert hasty.events._thread
    hasty.source.go_fill.set()
    assert eventually(lambda: hasty.events._thread is None)


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (FillProgress(), "has not begun yet"),
        (FillProgress(0, 10 * 2**30), "0 B of 10.0 GiB (0%), 0 B/s"),
        (
            FillProgress(2**30, 10 * 2**30, 2**30, 94.0 * 2**20, 600.0),
            "1.0 GiB of 10.0 GiB (10%), 94.0 MiB/s, about 10 min left",
        ),
        (
            FillProgress(2**30, 10 * 2**30, 0, 2.0**20, 9600.0, 2**30),
            "(10%), 1.0 GiB of it from other images, 1.0 MiB/s, about 2.7 h left",
        ),
    ],
)
def test_progress_in_words(progress: FillProgress, words: str) -> None:
    assert words in _describe_progress(progress)


def test_a_hundred_percent_is_all_of_it() -> None:
    assert [compute_percent(FillProgress(done, 1000)) for done in (0, 9, 10, 999, 1000)] == [0, 0, 1, 99, 100]


def test_errors_that_are_no_errors_of_the_driver_are_not_repeated_to_people(hasty: Node) -> None:
    with pytest.raises(ValueError), hasty.events.record_failures(POD):
        raise ValueError("s3cr3t")
    with pytest.raises(DataCacheError), hasty.events.record_failures(None):
        raise DataCacheError("nobody to tell")
    assert hasty.announcer.history == []
