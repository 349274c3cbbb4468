"""Performance a volume's size does not have: refused with the range, at creation and later, and nothing is
recorded."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

import pytest

from controller_plugin.servicer import ControllerServicer
from csi.errors import InvalidParameter, VolumeNotFound
from csi.parameters.performance_keys import Performance
from csi.pb import csi_pb2 as pb
from csi.performance.capacity import GIB
from csi.registry.volumes.directory import DirectoryVolumeRegistry
from csi.registry.volumes.record import VolumeRecord
from datacache.client import volume_capability
from tests.controller_plugin.controller import BASE, HUB, LARGE, READER, Controller

OUT_OF_RANGE = [
    (20, {"provisionedIops": "35000"}, "provisionedIops is 35000; it is 1 to 17000 for 20 GiB"),
    (20, {"k8s.aliyun.com/eci-data-cache-provisionedIops": "17001"}, "1 to 17000 for 20 GiB"),
    (38, {"provisionedIops": "35000"}, "1 to 34300 for 38 GiB"),
    (3, {"provisionedIops": "1"}, "3 GiB have none, 4 GiB or more"),
    (0, {"bursting": "true"}, "1 GiB cannot burst, 4 GiB or more"),
    (460, {"pl": "PL2"}, "460 GiB have one of PL0, PL1, AutoPL"),
    (20, {"pl": "PL1", "burstIops": "2800", "burstCredit": "5"}, "more than the 2800 IOPS"),
]


@pytest.mark.parametrize(("gib", "keys", "words"), OUT_OF_RANGE)
def test_what_the_size_does_not_have_is_refused_at_creation_and_nothing_is_recorded(
    controller: Controller, gib: int, keys: dict[str, str], words: str
) -> None:
    for changes in ({"parameters": HUB | keys}, {"mutable_parameters": keys}):
        with pytest.raises(InvalidParameter, match=words.replace("(", r"\(")):
            controller.create(required_bytes=gib * GIB, **changes)
        assert controller.registry.list_page("", 0) == []


def test_the_size_that_counts_is_the_one_the_volume_gets(controller: Controller) -> None:
    controller.source.content_bytes = 19 * GIB + 1
    made = controller.create(parameters=HUB | {"provisionedIops": "17000"}, required_bytes=5 * GIB)
    assert (made.capacity_bytes, made.performance) == (20 * GIB, Performance(provisioned_iops=17_000))


def test_keys_that_contradict_each_other_are_refused_before_the_origin_is_asked(
    controller: Controller,
) -> None:
    for keys in ({"performanceLevel": "PL1", "provisionedIops": "5"}, {"readIops": "5", "burstIops": "9"}):
        for changes in ({"parameters": HUB | keys}, {"mutable_parameters": keys}):
            with pytest.raises(InvalidParameter, match="an empty value removes a key"):
                controller.create(LARGE, **changes)
    assert controller.source.asked == []
    assert controller.registry.list_page("", 0) == []


def test_a_class_of_attributes_overrides_what_the_storage_class_says(controller: Controller) -> None:
    made = controller.create(
        LARGE,
        parameters=HUB | {"performanceLevel": "PL1"},
        mutable_parameters={"pl": "", "provisionedIops": "17000"},
    )
    assert made.performance == Performance(provisioned_iops=17_000)


def test_a_size_among_the_parameters_is_pointed_to_the_claim(controller: Controller) -> None:
    with pytest.raises(
        InvalidParameter, match=r"size is for volumes without a PVC.*spec\.resources\.requests\.storage"
    ):
        controller.create(parameters=HUB | {"size": "20Gi"})
    assert controller.source.asked == []
    assert controller.registry.list_page("", 0) == []


def test_a_live_volume_gets_nothing_its_size_does_not_have(controller: Controller) -> None:
    made = controller.create(LARGE)
    for gib, keys, words in OUT_OF_RANGE:
        if gib == 20:
            with pytest.raises(InvalidParameter, match=words):
                controller.volumes.modify(made.id, keys)
    assert controller.volumes.get(made.id) == made
    assert controller.volumes.modify(made.id, {"provisionedIops": "17000"}).performance == Performance(
        provisioned_iops=17_000
    )


def test_a_live_volume_changes_from_one_way_of_limiting_to_another_by_empty_values(
    controller: Controller,
) -> None:
    made = controller.create(
        LARGE, mutable_parameters={"readIops": "500", "burstIops": "3000", "burstCredit": "6000"}
    )
    with pytest.raises(InvalidParameter, match="readIops is for volumes without a performance level"):
        controller.volumes.modify(made.id, {"performanceLevel": "PL1"})
    empty = dict.fromkeys(("readIops", "burstIops", "burstCredit"), "")
    assert controller.volumes.modify(
        made.id, {"performanceLevel": "PL1", **empty}
    ).performance == Performance("PL1")
    assert controller.volumes.modify(made.id, {"performanceLevel": ""}).performance == Performance()


def test_a_volume_of_0_1_0_whose_keys_disagree_is_left_alone_until_it_is_put_right(
    controller: Controller,
) -> None:
    made = replace(controller.create(LARGE), performance=Performance("PL1", 5))
    controller.registry.put(made)
    assert controller.volumes.modify(made.id, {}) == made
    with pytest.raises(InvalidParameter, match="provisionedIops is for AutoPL"):
        controller.volumes.modify(made.id, {"provisionedIops": "6"})
    assert controller.volumes.modify(made.id, {"provisionedIops": ""}).performance == Performance("PL1")
    controller.volumes.delete(made.id)


def test_a_node_hears_of_a_change_and_reads_the_new_performance(controller: Controller) -> None:
    made, heard = controller.create(LARGE), threading.Event()
    node = DirectoryVolumeRegistry(controller.folder)
    with node.watch(lambda volume_id: heard.set() if volume_id == made.id else None):
        controller.volumes.modify(made.id, {"readIops": "500"})
        assert heard.wait(30)
    found = node.get(made.id)
    assert found
    assert found.performance == Performance(read_iops=500)


def validated(
    controller: Controller, record: VolumeRecord, **words: Mapping[str, str]
) -> pb.ValidateVolumeCapabilitiesResponse:
    request = pb.ValidateVolumeCapabilitiesRequest(
        volume_id=record.id, volume_capabilities=[volume_capability(READER)], **words
    )
    return ControllerServicer(controller.volumes, "driver").ValidateVolumeCapabilities(request, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["parameters", "mutable_parameters", "volume_context"])
def test_validation_says_what_the_size_does_not_have(controller: Controller, where: str) -> None:
    made = controller.create(LARGE)
    words = {"volume_context": made.to_context()}.get(where, {})
    answer = validated(controller, made, **{where: words | {"provisionedIops": "35000"}})
    assert not answer.HasField("confirmed")
    assert "1 to 17000 for 20 GiB" in answer.message
    answer = validated(controller, made, **{where: words | {"provisionedIops": "17000"}})
    assert answer.HasField("confirmed")
    assert not answer.message


def test_validation_says_that_a_volume_of_0_1_0_has_more_than_its_size_carries(
    controller: Controller,
) -> None:
    made = replace(controller.create(BASE), performance=Performance(provisioned_iops=5))
    controller.registry.put(made)
    assert "1 GiB have none" in validated(controller, made).message


def test_modifying_what_no_volume_can_have_is_refused_before_the_volume_is_looked_for(
    controller: Controller,
) -> None:
    servicer = ControllerServicer(controller.volumes, "driver")
    request = pb.ControllerModifyVolumeRequest(volume_id="dc-gone", mutable_parameters={"size": "5"})
    with pytest.raises(InvalidParameter, match="size cannot be changed"):
        servicer.ControllerModifyVolume(request, None)  # type: ignore[arg-type]
    request = pb.ControllerModifyVolumeRequest(volume_id="dc-gone", mutable_parameters={"burstCredit": "5"})
    with pytest.raises(VolumeNotFound):
        servicer.ControllerModifyVolume(request, None)  # type: ignore[arg-type]
