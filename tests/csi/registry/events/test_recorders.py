"""What every announcer does that tells people: the one of a cluster, on a real API server, and the fake
that other tests use."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from csi.registry.events.recorder import EventRecorder, NullEventRecorder, ObjectReference
from csi.registry.volumes.kubernetes import KubernetesVolumeRegistry
from tests.apiserver import ApiServer
from tests.csi.registry.events.recorders import InCluster, InMemory, Said
from tests.csi.registry.kinds import record
from tests.origins.onc_rpc import wait_until

VOLUME = "dc-filled"


@pytest.fixture(params=["in memory", "in a cluster"])
def told(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An announcer, and what people see of it; the registry has VOLUME."""
    if request.param == "in memory":
        found: Any = InMemory({VOLUME})
    else:
        cluster: ApiServer = request.getfixturevalue("cluster")
        KubernetesVolumeRegistry(cluster.client()).put(record(VOLUME))
        found = InCluster(cluster)
    yield found
    found.announcer.close()


def pod() -> ObjectReference:
    """A pod that no other test has."""
    return ObjectReference("Pod", "default", f"reader-{uuid.uuid4().hex[:8]}", str(uuid.uuid4()))


def test_what_is_said_again_for_a_reason_takes_the_place_of_what_was_said_and_is_counted(told: Any) -> None:
    about = pod()
    told.announcer.record(about, "CacheFilling", "1 of 5 MiB")
    assert wait_until(lambda: told.said(about) == {"CacheFilling": Said("1 of 5 MiB")}, 20)
    told.announcer.record(about, "CacheFilling", "2 of 5 MiB")
    assert wait_until(lambda: told.said(about) == {"CacheFilling": Said("2 of 5 MiB", count=2)}, 20)


def test_each_reason_and_object_has_its_own(told: Any) -> None:
    one, other, claim = (
        pod(),
        pod(),
        ObjectReference("PersistentVolumeClaim", "default", "cache", str(uuid.uuid4())),
    )
    told.announcer.record(one, "CacheFilling", "a")
    told.announcer.record(one, "CacheFillFailed", "b", warning=True)
    told.announcer.record(other, "CacheFilling", "c")
    told.announcer.record(claim, "CacheReady", "d")
    assert wait_until(lambda: told.said(claim) == {"CacheReady": Said("d")}, 20)
    assert told.said(one) == {"CacheFilling": Said("a"), "CacheFillFailed": Said("b", warning=True)}
    assert told.said(other) == {"CacheFilling": Said("c")}


def test_a_volume_shows_how_full_it_is_until_it_is_full(told: Any) -> None:
    for percent in (0, 41, 42):
        told.announcer.report_fill(VOLUME, percent)
        assert wait_until(lambda percent=percent: told.fills() == {VOLUME: percent}, 20)
    told.announcer.report_fill(VOLUME, None)
    assert wait_until(lambda: told.fills() == {}, 20)


def test_a_volume_that_the_registry_has_not_is_no_error(told: Any) -> None:
    told.announcer.report_fill("dc-unknown", 5)
    told.announcer.report_fill("dc-unknown", None)
    told.announcer.report_fill(VOLUME, 5)
    assert wait_until(lambda: told.fills() == {VOLUME: 5}, 20)


def test_closed_it_says_nothing_more_and_takes_everything(told: Any) -> None:
    about = pod()
    told.announcer.close()
    told.announcer.record(about, "CacheFilling", "late")
    told.announcer.report_fill(VOLUME, 5)
    assert told.said(about) == {}
    assert told.fills() == {}


def test_many_threads_may_tell_at_once(told: Any) -> None:
    subjects = [pod() for _ in range(8)]

    def tell(about: ObjectReference) -> None:
        for number in range(5):
            told.announcer.record(about, "CacheFilling", str(number))

    threads = [threading.Thread(target=tell, args=(about,)) for about in subjects]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wait_until(
        lambda: all(told.said(about).get("CacheFilling", Said("")).message == "4" for about in subjects), 20
    )


def test_a_folder_has_nobody_to_tell() -> None:
    silent: EventRecorder = NullEventRecorder()
    silent.record(pod(), "CacheFilling", "x")
    silent.report_fill(VOLUME, 5)
    silent.close()
