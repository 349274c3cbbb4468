"""A volume knows the PVC it was made for, which is told what it was pinned to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from csi.parameters.pvc import PvcReference
from csi.registry.events.recorder import ObjectReference
from csi.registry.volumes.record import VolumeRecord
from tests.controller_plugin.controller import HUB, Controller
from tests.csi.registry.events.recorders import Said
from tests.csi.worker.in_process import COMMITS

UID = "0f0e0d0c-0b0a-0908-0706-050403020100"
NAME = f"pvc-{UID}"
CLAIM = {
    "csi.storage.k8s.io/pvc/name": "models",
    "csi.storage.k8s.io/pvc/namespace": "team-a",
    "csi.storage.k8s.io/pv/name": NAME,
}
PVC = ObjectReference("PersistentVolumeClaim", "team-a", "models", UID)


def test_the_claim_goes_into_the_record_and_to_the_nodes_and_is_no_part_of_what_is_asked(
    controller: Controller,
) -> None:
    made = controller.create(name=NAME, parameters=HUB | CLAIM)
    assert made.pvc == PvcReference("team-a", "models", UID)
    assert PvcReference.from_context(made.to_context()) == made.pvc
    assert controller.registry.get(made.id) == made
    assert controller.create(name=NAME, parameters=HUB) == made


def test_the_claim_is_told_once_what_the_volume_was_pinned_to(controller: Controller) -> None:
    for _ in range(2):
        made = controller.create(name=NAME, parameters=HUB | CLAIM)
    message = f"HuggingFace/Model org/name, revision main -> {COMMITS[0]}: 9.8 KiB, image {made.digest[:12]}"
    assert controller.announcer.said(PVC) == {"CachePinned": Said(message)}


def test_a_revision_that_cannot_move_is_told_as_it_is(controller: Controller) -> None:
    made = controller.create(name=NAME, parameters=HUB | CLAIM | {"revision": COMMITS[0]})
    message = f"HuggingFace/Model org/name, revision {COMMITS[0]}: 9.8 KiB, image {made.digest[:12]}"
    assert controller.announcer.said(PVC) == {"CachePinned": Said(message)}


def test_a_volume_of_nobody_is_told_to_nobody(controller: Controller) -> None:
    assert controller.create().pvc is None
    assert controller.announcer.history == []


def test_a_record_of_an_earlier_version_has_no_claim(controller: Controller) -> None:
    made = controller.create(name=NAME, parameters=HUB | CLAIM)
    earlier = made.encode()
    earlier["context"] = {key: value for key, value in made.to_context().items() if key not in CLAIM}
    assert VolumeRecord.decode(earlier) == replace(made, pvc=None)


@pytest.mark.parametrize(
    ("words", "claim"),
    [
        ({}, None),
        ({"csi.storage.k8s.io/pvc/name": "models"}, None),
        ({**CLAIM, "csi.storage.k8s.io/pv/name": "pvc-0f0e0d0c"}, PvcReference("team-a", "models")),
        ({**CLAIM, "csi.storage.k8s.io/pv/name": ""}, PvcReference("team-a", "models")),
        (CLAIM, PvcReference("team-a", "models", UID)),
    ],
)
def test_the_uid_is_known_where_the_name_of_the_volume_tells_it(
    words: dict[str, str], claim: PvcReference | None
) -> None:
    assert PvcReference.from_context(words) == claim
