"""Volumes in the controller: created once, cloned, sized, modified, listed, deleted."""

from __future__ import annotations

import base64
import threading

import pytest

from csi.errors import (
    AlreadyExists,
    Busy,
    InvalidParameter,
    InvalidToken,
    OutOfRange,
    PermissionDenied,
    SourceChanged,
    VolumeNotFound,
)
from csi.parameters.access_modes import AccessMode
from csi.parameters.performance_keys import Performance
from csi.performance.capacity import GIB
from tests.controller_plugin.controller import HUB, LARGE, READER, WRITER, Controller
from tests.csi.worker.in_process import COMMITS

NAS = {"server": "nas", "path": "/models"}


def test_a_volume_is_pinned_recorded_and_says_all_a_node_needs(controller: Controller) -> None:
    record = controller.create()
    assert controller.registry.get(record.id) == record
    context = record.to_context()
    assert (context["revision"], context["manifestDigest"], context["capacityBytes"]) == (
        COMMITS[0],
        controller.source.digest,
        str(GIB),
    )
    assert record.requested_spec.source.revision == "main"  # type: ignore[union-attr]


def test_the_same_name_and_request_is_the_same_volume_without_asking_again(controller: Controller) -> None:
    first = controller.create()
    asked = len(controller.source.asked)
    controller.source.commit = COMMITS[1]
    assert controller.create() == first
    assert len(controller.source.asked) == asked


def test_a_volume_that_another_replica_made_meanwhile_is_the_answer(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither replica saw the other's, and the revision moved between the two."""
    first = controller.create()
    controller.source.commit = COMMITS[1]
    with monkeypatch.context() as early:
        early.setattr(controller.volumes._registry, "get", lambda volume_id: None)
        early.setattr(controller.volumes._registry, "add", lambda record: first)
        assert controller.create() == first
        with pytest.raises(AlreadyExists, match="parameters"):
            controller.create(parameters=HUB | {"repoId": "org/other"})


SAME = [
    {"parameters": {key.upper(): value for key, value in HUB.items()}},
    {"parameters": HUB | {"revision": "main", "type": "URL"}},
    {"parameters": HUB | {"csi.storage.k8s.io/pvc/name": "x"}},
    {"secrets": {"token": "rotated"}},
    {"required_bytes": GIB},
    {"limit_bytes": GIB},
    {"required_bytes": 1, "limit_bytes": 5 * GIB},
    {"access_modes": (AccessMode.SINGLE_NODE_READER_ONLY,)},
]
OTHER = [
    ({"parameters": HUB | {"repoId": "org/other"}}, "parameters"),
    ({"parameters": HUB | {"revision": "v1"}}, "parameters"),
    ({"parameters": HUB | {"preserveOwnership": "true"}}, "parameters"),
    ({"parameters": HUB | {"writerAccessModes": "downgrade"}}, "parameters"),
    ({"parameters": NAS}, "parameters"),
    ({"required_bytes": GIB + 1}, "capacity_range"),
    ({"limit_bytes": GIB - 1}, "capacity_range"),
    ({"parameters": HUB | {"provisionedIops": "5"}}, "performance"),
    ({"mutable_parameters": {"performanceLevel": "PL1"}}, "performance"),
]


@pytest.mark.parametrize("changes", SAME, ids=str)
def test_what_means_the_same_finds_the_same_volume(controller: Controller, changes: dict) -> None:
    assert controller.create() == controller.create(**changes)


@pytest.mark.parametrize(("changes", "field"), OTHER, ids=str)
def test_a_name_that_stands_for_something_else_is_refused_naming_what_differs(
    controller: Controller, changes: dict, field: str
) -> None:
    first = controller.create()
    with pytest.raises(AlreadyExists, match=f"'pvc-1' exists with other .*{field}"):
        controller.create(**changes)
    assert controller.registry.list_page("", 0) == [first]


def test_a_volume_that_was_modified_is_still_found_by_the_request_that_made_it(
    controller: Controller,
) -> None:
    made = controller.create(LARGE, mutable_parameters={"provisionedIops": "100"})
    changed = controller.volumes.modify(made.id, {"provisionedIops": "200"})
    assert controller.create(LARGE) == changed
    assert controller.create(LARGE, mutable_parameters={"provisionedIops": "200"}) == changed


@pytest.mark.parametrize(
    ("content", "required", "limit", "capacity"),
    [
        (0, 0, 0, GIB),
        (1, 0, 0, GIB),
        (GIB, 0, 0, GIB),
        (GIB + 1, 0, 0, 2 * GIB),
        (1, 10 * GIB, 0, 10 * GIB),
        (5 * GIB, GIB, 0, 5 * GIB),
        (1, 7, 100, 100),
        (90, 95, 100, 100),
        (3 * GIB - 5, 0, 3 * GIB - 2, 3 * GIB - 2),
        (1, 5 * GIB, 5 * GIB, 5 * GIB),
        (1, GIB // 2, 4 * GIB, GIB),
    ],
)
def test_the_capacity_is_the_larger_of_what_was_asked_and_what_the_content_needs(
    controller: Controller, content: int, required: int, limit: int, capacity: int
) -> None:
    controller.source.content_bytes = content
    record = controller.create(required_bytes=required, limit_bytes=limit)
    assert (record.capacity_bytes, record.content_bytes) == (capacity, content)
    assert capacity >= max(required, content)
    assert not limit or capacity <= limit


def test_content_over_the_limit_is_refused_with_both_numbers_and_nothing_is_recorded(
    controller: Controller,
) -> None:
    controller.source.content_bytes = 5001
    with pytest.raises(OutOfRange, match="5001 bytes.*5000"):
        controller.create(limit_bytes=5000)
    assert controller.registry.list_page("", 0) == []


def test_a_limit_below_what_is_required_is_refused(controller: Controller) -> None:
    with pytest.raises(InvalidParameter, match="limit_bytes 5 is below required_bytes 6"):
        controller.create(required_bytes=6, limit_bytes=5)


def test_a_name_has_1_to_128_characters(controller: Controller) -> None:
    assert controller.create(name="n" * 128).name == "n" * 128
    for name in ("", "n" * 129):
        with pytest.raises(InvalidParameter, match="1 to 128"):
            controller.create(name=name)


def test_any_name_makes_an_id_that_is_safe_and_its_own(controller: Controller) -> None:
    ids = {controller.create(name=name).id for name in ("a", "A", "../x", "a/b", "ü", "\n")}
    assert len(ids) == 6
    assert all(set(volume_id) <= set("dc-0123456789abcdef") for volume_id in ids)


def test_writer_modes_are_refused_before_anything_is_asked_unless_they_are_downgraded(
    controller: Controller,
) -> None:
    with pytest.raises(InvalidParameter, match="writerAccessModes: downgrade"):
        controller.create(access_modes=(READER, WRITER))
    assert controller.source.asked == []
    assert controller.create(
        access_modes=(WRITER,), parameters=HUB | {"writerAccessModes": "downgrade"}
    ).downgrade_writers


def test_what_a_source_refuses_is_told_and_nothing_is_recorded(controller: Controller) -> None:
    controller.source.readers = {"right"}
    with pytest.raises(PermissionDenied):
        controller.create(secrets={"token": "wrong"})
    assert controller.registry.list_page("", 0) == []
    assert controller.create(secrets={"token": "right"})


def test_a_resolve_that_takes_long_goes_on_behind_the_call_and_the_next_one_finds_it(
    controller: Controller,
) -> None:
    controller.source.go.clear()
    with pytest.raises(Busy, match="still resolving"):
        controller.create(seconds=0.05)
    controller.source.go.set()
    assert controller.create()
    assert controller.source.operations.count("resolve-source") == 1


def test_a_second_call_for_a_volume_in_work_is_told_so_at_once(controller: Controller) -> None:
    controller.source.go.clear()
    first = threading.Thread(target=controller.create)
    first.start()
    while not controller.source.asked:
        pass
    with pytest.raises(Busy, match="another call is working on dc-"):
        controller.create()
    controller.source.go.set()
    first.join(30)
    assert controller.create()


def test_a_clone_holds_what_its_original_holds_whatever_the_branch_is_now(controller: Controller) -> None:
    original = controller.create()
    controller.source.commit = COMMITS[1]
    for number, parameters in enumerate(({}, HUB, {"writerAccessModes": "downgrade"})):
        clone = controller.create(name=f"clone-{number}", parameters=parameters, source_volume_id=original.id)
        assert (clone.spec, clone.digest, clone.cloned_from) == (original.spec, original.digest, original.id)
        assert (
            controller.create(name=f"clone-{number}", parameters=parameters, source_volume_id=original.id)
            == clone
        )


def test_a_clone_is_no_way_round_the_proof_of_reading(controller: Controller) -> None:
    controller.source.readers = {"right"}
    original = controller.create(secrets={"token": "right"})
    with pytest.raises(PermissionDenied):
        controller.create(
            name="clone", parameters={}, source_volume_id=original.id, secrets={"token": "wrong"}
        )


def test_a_clone_of_nothing_is_not_found(controller: Controller) -> None:
    with pytest.raises(VolumeNotFound, match="'dc-gone'"):
        controller.create(source_volume_id="dc-gone")


def test_a_clone_whose_parameters_name_another_source_is_refused(controller: Controller) -> None:
    original = controller.create()
    for parameters in (NAS, HUB | {"repoId": "org/other"}, HUB | {"preserveOwnership": "true"}):
        with pytest.raises(InvalidParameter, match="make them agree"):
            controller.create(name="clone", parameters=parameters, source_volume_id=original.id)


def test_a_nas_that_changed_cannot_be_cloned(controller: Controller) -> None:
    original = controller.create(parameters=NAS)
    controller.source.files["new.bin"] = 5
    with pytest.raises(SourceChanged, match="changed since"):
        controller.create(name="clone", parameters=NAS, source_volume_id=original.id)


def test_a_clone_and_a_plain_volume_of_one_name_differ(controller: Controller) -> None:
    original = controller.create()
    controller.create(name="x", source_volume_id=original.id)
    with pytest.raises(AlreadyExists, match="volume_content_source"):
        controller.create(name="x")


def test_a_clone_takes_keys_of_its_own_in_any_case(controller: Controller) -> None:
    original = controller.create(parameters=NAS | {"preserveOwnership": "true"})
    clone = controller.create(
        name="clone", parameters={"PRESERVEOWNERSHIP": "true", "readiops": "7"}, source_volume_id=original.id
    )
    assert (clone.spec, clone.performance) == (original.spec, Performance(read_iops=7))


def test_modifying_changes_the_keys_it_names_and_keeps_the_others(controller: Controller) -> None:
    made = controller.create(
        LARGE, mutable_parameters={"performanceLevel": "AutoPL", "provisionedIops": "100"}
    )
    assert controller.volumes.modify(made.id, {}).performance == made.performance
    changed = controller.volumes.modify(made.id, {"burstingEnabled": "true", "provisionedIops": "200"})
    assert changed.performance == Performance("AutoPL", 200, True)
    assert controller.volumes.get(made.id) == changed
    for bad in ({"repoId": "x"}, {"provisionedIops": "many"}, {"unknown": "x"}):
        with pytest.raises(InvalidParameter):
            controller.volumes.modify(made.id, bad)
    with pytest.raises(VolumeNotFound):
        controller.volumes.modify("dc-gone", {})
    assert controller.volumes.get(made.id) == changed


def test_deleting_twice_is_deleting_once(controller: Controller) -> None:
    made = controller.create()
    for volume_id in (made.id, made.id, "never-was", "fake-vol-id-../../x"):
        controller.volumes.delete(volume_id)
    with pytest.raises(VolumeNotFound):
        controller.volumes.get(made.id)
    assert controller.create() is not made


def test_pages_show_every_volume_once_while_others_come_and_go(controller: Controller) -> None:
    made = sorted(controller.create(name=f"v{number}").id for number in range(7))
    seen, token = [], ""
    while True:
        page, token = controller.volumes.list_page(token, 2)
        seen += [record.id for record in page]
        if page and not token:
            break
        controller.volumes.delete(page[-1].id)
    assert seen == made
    assert controller.volumes.list_page("", 0)[1] == ""


def test_a_last_page_that_is_full_has_no_successor(controller: Controller) -> None:
    for number in range(4):
        controller.create(name=f"v{number}")
    _, token = controller.volumes.list_page("", 2)
    page, last = controller.volumes.list_page(token, 2)
    assert len(page) == 2
    assert last == ""
    assert controller.volumes.list_page("", 4)[1] == ""
    assert controller.volumes.list_page("", 5)[1] == ""


@pytest.mark.parametrize(
    "token",
    [
        "invalid-token",
        "dc-1",
        base64.urlsafe_b64encode(b"before:x").decode(),
        "\u00ff",
        "=",
        "YWZ0ZXI6\n",
        "A" * 10_000,
    ],
)
def test_a_token_that_was_never_given_out_is_refused(controller: Controller, token: str) -> None:
    with pytest.raises(InvalidToken, match="starting_token"):
        controller.volumes.list_page(token, 2)


def test_a_negative_page_size_is_refused(controller: Controller) -> None:
    with pytest.raises(InvalidParameter, match="max_entries is -1"):
        controller.volumes.list_page("", -1)


@pytest.mark.parametrize("sizes", [{"required_bytes": 2**62}, {"required_bytes": -1}, {"limit_bytes": -1}])
def test_a_size_that_no_volume_can_have_is_out_of_range(
    controller: Controller, sizes: dict[str, int]
) -> None:
    with pytest.raises(OutOfRange, match="16 TiB"):
        controller.create(**sizes)
    assert controller.volumes.list_page("", 0) == ([], "")
