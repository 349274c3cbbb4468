"""Bad input over gRPC of the real programs: the code, the words, and that nothing half-made and no secret
stays anywhere."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from csi.parameters.access_modes import AccessMode
from csi.pb import csi_pb2 as pb
from csi.performance.capacity import GIB
from datacache.client import volume_capability
from tests.kernel import requests
from tests.kernel.bad_input import CASES, FAILED, HUB, INVALID, SECRET, UNAVAILABLE, Case, token
from tests.kernel.machine import Machine
from tests.kernel.requests import OK, Answer, Words
from tests.kernel.traces import assert_clean
from tests.origins.faults import Fault
from tests.origins.ganesha import Export, Ganesha
from tests.origins.hub import Hub
from tests.origins.onc_rpc import free_port

pytestmark = pytest.mark.kernel

WRITERS = [mode for mode in AccessMode if not mode.is_reader and mode is not AccessMode.UNKNOWN]
READERS = [mode for mode in AccessMode if mode.is_reader]


@dataclass
class World:
    """A machine, its origins, and what the cases' parameters are filled in with."""

    machine: Machine
    hub: Hub
    nas: Ganesha
    values: dict[str, str]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def filled_in(self, parameters: Words) -> dict[str, str]:
        return {key: value.format(**self.values) for key, value in parameters.items()}

    def ask(self, way: str, parameters: Words, secrets: Words, gib: int = 0) -> Answer:
        name = f"{way}{next(self.numbers)}"
        if way == "create":
            request = requests.create(name, parameters, secrets, capacity_range={"required_bytes": gib * GIB})
            return requests.answer(self.machine.controller.CreateVolume, request)
        return self.machine.inline(name, parameters, secrets)


def fill_hub(hub: Hub) -> None:
    hub.repo("org/open", {"config.json": b"{}"})
    hub.repo("org/private", {"config.json": b"{}"}, private=True, tokens={f"good-{SECRET}"})
    hub.repo("org/gated", {"config.json": b"{}"}, gated=True, granted={f"good-{SECRET}"})
    hub.repo("org/corrupt", {"model.bin": os.urandom(100_000)})
    hub.faults.add(Fault("corrupt", "org/corrupt/model.bin", after=50_000))
    hub.tokens[f"stranger-{SECRET}"] = "stranger"


def fill_export(export: Path) -> None:
    export.chmod(0o755)
    for name in ("models", "closed", "unreadable", "special"):
        (export / name).mkdir()
        (export / name / "weights.bin").write_bytes(b"w" * 5000)
    (export / "closed").chmod(0o700)
    (export / "unreadable" / "weights.bin").chmod(0o600)
    os.mkfifo(export / "special" / "pipe")


@pytest.fixture(scope="module", params=["text", "json"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Both programs, with log lines in each format."""
    folder, export, foreign = (tmp_path_factory.mktemp(name) for name in ("machine", "export", "foreign"))
    fill_export(export)
    exports = [Export(export), Export(foreign, clients="192.0.2.1")]
    flags = ["--log-format", request.param]
    with Hub() as hub, Ganesha(exports) as nas:
        fill_hub(hub)
        with Machine(
            folder, {"HF_ENDPOINT": hub.endpoint}, [*flags, "--allow-inline-nas", "*"], flags
        ) as machine:
            ports = {"port": str(nas.port), "mountport": str(nas.mount_port), "closed": str(free_port())}
            yield World(machine, hub, nas, {"export": str(export), "foreign": str(foreign), **ports})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_wrong_is_said_and_nothing_stays(world: World, case: Case) -> None:
    for way in case.ways:
        code, message = world.ask(way, world.filled_in(case.parameters), case.secrets, case.gib)
        assert (code, [word for word in case.words if word not in message]) == (case.code, []), message
        assert_clean(world.machine, SECRET, message)


def test_a_server_that_hangs_is_unavailable(world: World) -> None:
    parameters = {
        **world.filled_in({"server": "127.0.0.1", "path": "{export}/models"}),
        "options": f"port={world.nas.port},timeo=5,retrans=0",
    }
    parameters["options"] += f",mountport={world.nas.mount_port}"
    world.nas.pause()
    try:
        answers = [world.ask(way, parameters, {}) for way in ("create", "inline")]
    finally:
        world.nas.resume()
    assert [code for code, _ in answers] == [UNAVAILABLE] * 2
    assert all("did not answer within 0.5 s" in message for _, message in answers)
    assert_clean(world.machine, SECRET, *(message for _, message in answers))


def test_content_over_the_limit_is_refused_with_both_numbers(world: World) -> None:
    world.hub.repo("org/large", {"model.bin": b"m" * 3_000_000})
    request = requests.create("large", {"repoId": "org/large"}, capacity_range={"limit_bytes": 2_000_000})
    code, message = requests.answer(world.machine.controller.CreateVolume, request)
    assert code.name == "OUT_OF_RANGE"
    assert "3000000" in message
    assert "2000000" in message
    assert "raise the limit" in message
    assert_clean(world.machine, SECRET, message)


TOO_MUCH = [
    ({"provisionedIops": "35000"}, "1 to 17000 for 20 GiB"),
    ({"performanceLevel": "PL1"}, "provisionedIops is for AutoPL"),
    ({"size": "40"}, "size cannot be changed"),
]


@pytest.mark.parametrize(("keys", "words"), TOO_MUCH)
def test_a_live_volume_gets_nothing_that_its_size_does_not_have(
    world: World, keys: Words, words: str
) -> None:
    controller = world.machine.controller
    volume = world.machine.create(
        "modified", {**HUB, "provisionedIops": "1000"}, capacity_range={"required_bytes": 20 * GIB}
    )
    request = pb.ControllerModifyVolumeRequest(volume_id=volume.volume_id, mutable_parameters=keys)
    code, message = requests.answer(controller.ControllerModifyVolume, request)
    assert code is INVALID
    assert words in message
    assert (
        controller.ControllerGetVolume(pb.ControllerGetVolumeRequest(volume_id=volume.volume_id)).volume
        == volume
    )
    assert requests.answer(controller.DeleteVolume, requests.delete(volume.volume_id)) == (OK, "")
    assert_clean(world.machine, SECRET, message)


@pytest.mark.parametrize("way", ["create", "publish"])
def test_block_access_is_refused(world: World, way: str) -> None:
    block = volume_capability()
    block.block.SetInParent()
    if way == "create":
        answer = requests.answer(
            world.machine.controller.CreateVolume, requests.create("block", HUB, volume_capabilities=[block])
        )
    else:
        request = requests.inline("block", world.machine.target("block"), HUB)
        request.volume_capability.CopyFrom(block)
        answer = requests.answer(world.machine.node.NodePublishVolume, request)
    assert answer[0] is INVALID
    assert "volumeMode: Filesystem" in answer[1]
    assert_clean(world.machine, SECRET, answer[1])


@pytest.mark.parametrize("mode", WRITERS, ids=lambda mode: mode.name)
def test_writer_modes_are_refused_with_the_way_out(world: World, mode: AccessMode) -> None:
    machine = world.machine
    created = requests.answer(machine.controller.CreateVolume, requests.create("writer", HUB, mode=mode))
    volume = machine.create("reader", HUB)
    staged = machine.stage(volume, mode=mode)
    assert machine.stage(volume) == (OK, "")
    published = machine.publish(volume, "pod", mode=mode)
    for code, message in (created, staged, published):
        assert code is INVALID
        assert mode.name in message
        assert "ReadOnlyMany (ROX)" in message
        assert "writerAccessModes: downgrade" in message
    remove(machine, volume.volume_id)
    assert_clean(machine, SECRET, created[1], staged[1], published[1])


@pytest.mark.parametrize("mode", READERS, ids=lambda mode: mode.name)
def test_reader_modes_are_accepted(world: World, mode: AccessMode) -> None:
    machine = world.machine
    volume = machine.create("reader", HUB, mode=mode)
    assert machine.stage(volume, mode=mode) == (OK, "")
    assert machine.publish(volume, "pod", mode=mode) == (OK, "")
    assert (machine.target("pod") / "config.json").read_bytes() == b"{}"
    remove(machine, volume.volume_id, "pod")
    assert_clean(machine, SECRET)


@pytest.mark.parametrize("mode", WRITERS, ids=lambda mode: mode.name)
def test_downgraded_writer_modes_mount_read_only(world: World, mode: AccessMode) -> None:
    """Two pods of one node publish one volume in every mode but SINGLE_NODE_SINGLE_WRITER."""
    machine = world.machine
    volume = machine.create("downgraded", {**HUB, "writerAccessModes": "downgrade"}, mode=mode)
    assert machine.stage(volume, mode=mode) == (OK, "")
    assert machine.publish(volume, "pod1", mode=mode) == (OK, "")
    second = machine.publish(volume, "pod2", mode=mode)
    if mode is AccessMode.SINGLE_NODE_SINGLE_WRITER:
        assert second[0] is FAILED
        assert "ReadWriteOncePod" in second[1]
        assert str(machine.target("pod1")) in second[1]
    else:
        assert second == (OK, "")
        assert (machine.target("pod2") / "config.json").read_bytes() == b"{}"
    with pytest.raises(OSError, match="Read-only file system"):
        (machine.target("pod1") / "new").write_text("")
    remove(machine, volume.volume_id, "pod1", "pod2")
    assert_clean(machine, SECRET, second[1])


def test_a_token_that_works_is_nowhere_to_be_found(world: World) -> None:
    machine, secret = world.machine, token("good")
    volume = machine.create("private", {"repoId": "org/private"}, secret)
    assert machine.stage(volume, secret) == (OK, "")
    assert machine.publish(volume, "pod") == (OK, "")
    assert machine.inline("inline", {"repoId": "org/private"}, secret) == (OK, "")
    remove(machine, volume.volume_id, "pod")
    assert machine.unpublish("inline") == (OK, "")
    assert_clean(machine, SECRET)


def remove(machine: Machine, volume_id: str, *pods: str) -> None:
    """Take the volume from pods, staging path and controller."""
    for pod in pods:
        assert machine.unpublish(pod, volume_id) == (OK, "")
    assert machine.unstage(volume_id) == (OK, "")
    assert requests.answer(machine.controller.DeleteVolume, requests.delete(volume_id)) == (OK, "")
