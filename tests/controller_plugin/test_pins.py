"""One answer in a namespace: volumes of claims that name a moving revision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from csi.errors import (
    Busy,
    ClusterUnavailable,
    DataCacheError,
    FailedPrecondition,
    InvalidParameter,
    OutOfRange,
    PermissionDenied,
    SourceNotFound,
)
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.performance.capacity import GIB
from csi.registry.pins.pins import CachePin, PinHolder
from csi.registry.volumes.record import VolumeRecord
from tests.controller_plugin.controller import HUB, Controller
from tests.csi.registry.pins.fake_pins import FakePins
from tests.csi.worker.in_process import COMMITS

NAS = {"server": "nas", "path": "/models"}


def claim(namespace: str = "team", **keys: str) -> dict[str, str]:
    return {
        **HUB,
        **keys,
        "csi.storage.k8s.io/pvc/namespace": namespace,
        "csi.storage.k8s.io/pvc/name": "models",
    }


@pytest.fixture
def pins() -> FakePins:
    return FakePins()


@pytest.fixture
def controller(tmp_path: Path, pins: FakePins) -> Controller:
    return Controller(tmp_path, pins=pins)


def commit(record: VolumeRecord) -> str:
    return record.spec.source.revision  # type: ignore[no-any-return, union-attr]


def holders(pins: FakePins) -> set[PinHolder]:
    return {holder for pin in pins.list_all() for holder in pin.holders}


def test_claims_of_a_namespace_get_one_commit_while_any_of_their_volumes_lives(
    controller: Controller, pins: FakePins
) -> None:
    first = controller.create(parameters=claim())
    controller.source.commit = COMMITS[1]
    second = controller.create(parameters=claim(bandwidthLimit="5Mi"), name="pvc-2")
    assert commit(first) == commit(second) == COMMITS[0]
    assert commit(controller.create(parameters=claim("others"), name="pvc-3")) == COMMITS[1]
    assert [len(pin.holders) for pin in pins.list_all()] == [2, 1]
    for record in (first, second):
        assert controller.registry.get(record.id).pin_namespace == "team"  # type: ignore[union-attr]
        controller.volumes.delete(record.id)
        controller.volumes.delete(record.id)
    assert commit(controller.create(parameters=claim(), name="pvc-4")) == COMMITS[1]


def test_a_claim_reads_what_the_inline_volumes_of_its_namespace_read(
    controller: Controller, pins: FakePins
) -> None:
    asked, pinned = (
        parse_volume_parameters(HUB).spec,
        parse_volume_parameters({**HUB, "revision": COMMITS[1]}).spec,
    )
    other = Controller(controller.folder / "other")
    other.source.commit = COMMITS[1]
    pins.add_holder(
        CachePin.from_specs("team", asked, pinned, other.create().digest), PinHolder("node", "node-a")
    )
    assert commit(controller.create(parameters=claim())) == COMMITS[1]


@pytest.mark.parametrize("parameters", [claim(revision=COMMITS[0]), HUB])
def test_a_commit_or_a_claim_that_is_not_known_needs_no_pin(
    controller: Controller, pins: FakePins, parameters: dict[str, str]
) -> None:
    record = controller.create(parameters=parameters)
    controller.volumes.delete(record.id)
    assert pins.calls == []
    assert record.pin_namespace == ""


def test_a_clone_is_what_its_original_is_and_holds_nothing(controller: Controller, pins: FakePins) -> None:
    first = controller.create(parameters=claim())
    controller.source.commit = COMMITS[1]
    clone = controller.create(name="pvc-2", parameters={}, source_volume_id=first.id)
    assert commit(clone) == COMMITS[0]
    assert holders(pins) == {PinHolder("volume", first.id)}


FAILURES: list[tuple[Callable[[Controller], object], type[DataCacheError]]] = [
    (lambda controller: controller.create(parameters=claim(), limit_bytes=5), OutOfRange),
    (lambda controller: controller.create(parameters=claim(performanceLevel="PL3")), InvalidParameter),
]


@pytest.mark.parametrize(("create", "error"), FAILURES)
def test_a_volume_that_cannot_be_holds_nothing(
    controller: Controller,
    pins: FakePins,
    create: Callable[[Controller], object],
    error: type[DataCacheError],
) -> None:
    with pytest.raises(error):
        create(controller)
    assert holders(pins) == set()


def test_a_pin_is_no_authorisation(controller: Controller, pins: FakePins) -> None:
    controller.source.readers = {"good"}
    first = controller.create(parameters=claim(), secrets={"token": "good"})
    with pytest.raises(PermissionDenied):
        controller.create(parameters=claim(), name="pvc-2", secrets={"token": "bad"})
    assert holders(pins) == {PinHolder("volume", first.id)}


def test_a_cluster_that_is_away_gives_no_second_answer(controller: Controller, pins: FakePins) -> None:
    pins.away = True
    with pytest.raises(ClusterUnavailable):
        controller.create(parameters=claim())
    assert controller.source.asked == []


def test_a_resolve_that_takes_long_is_found_by_the_next_call(controller: Controller, pins: FakePins) -> None:
    controller.source.go.clear()
    with pytest.raises(Busy):
        controller.create(parameters=claim(), seconds=0.1)
    controller.source.go.set()
    record = controller.create(parameters=claim())
    assert holders(pins) == {PinHolder("volume", record.id)}


def test_a_commit_that_is_gone_names_the_pin_and_how_to_release_it(
    controller: Controller, pins: FakePins
) -> None:
    first = controller.create(parameters=claim())
    controller.source.error = SourceNotFound("there is no such revision")
    (pin,) = pins.list_all()
    with pytest.raises(
        FailedPrecondition,
        match=f"CachePin team/{pin.name} pins .*, but: .*kubectl delete cachepin -n team {pin.name}",
    ):
        controller.create(parameters=claim(), name="pvc-2", secrets={"token": "another"})
    assert holders(pins) == {PinHolder("volume", first.id)}


def test_a_nas_that_changed_is_not_mixed(controller: Controller, pins: FakePins) -> None:
    nas = {key: value for key, value in claim().items() if key not in HUB} | NAS
    first = controller.create(parameters=nas)
    assert controller.create(parameters=nas, name="pvc-2").digest == first.digest
    controller.source.files["new"] = 5
    with pytest.raises(
        FailedPrecondition,
        match="CachePin team/pin-.* pins NAS nas:/models, but: NAS nas:/models changed",
    ):
        controller.create(parameters=nas, name="pvc-3", required_bytes=GIB)
