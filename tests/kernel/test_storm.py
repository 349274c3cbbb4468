"""Many calls at the same time about the same image, the same volume and the same path."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.kernel import requests
from tests.kernel.conftest import Start
from tests.kernel.machine import MIB, Machine, content
from tests.kernel.requests import OK, Answer, answer_of
from tests.origins.hub import Hub
from tests.plugins import mounts_below

pytestmark = pytest.mark.kernel

MODEL = {"repoId": "org/model"}


@pytest.fixture
def machine(start: Start, hub: Hub) -> Machine:
    """A node, and a hub with one small repository."""
    hub.repo("org/model", {"model.bin": os.urandom(100_000)})
    return start()


def again(call: Callable[[], Answer]) -> Answer:
    """As kubelet does: repeat while the answer is ABORTED."""
    while True:
        answer = call()
        if answer[0] is not grpc.StatusCode.ABORTED:
            return answer


def test_pods_that_come_and_go_at_once_leave_nothing_and_disturb_nobody(machine: Machine) -> None:
    """The last volume of an image goes while the next one comes, again and again."""
    wanted = set()

    def life(pod: str) -> None:
        for _ in range(6):
            assert again(lambda: machine.inline(pod, MODEL)) == (OK, "")
            wanted.add((machine.target(pod) / "model.bin").read_bytes())
            assert again(lambda: machine.unpublish(pod)) == (OK, "")

    open_files = []
    for _ in range(2):
        with ThreadPoolExecutor(12) as pods:
            list(pods.map(life, [f"pod{number}" for number in range(12)]))
        open_files.append(machine.descriptors())
    assert len(wanted) == 1
    assert open_files[1] <= open_files[0] + 2
    assert machine.half_made() == []
    assert len(machine.sealed()) == 1


def test_one_call_made_many_times_at_once_shows_the_volume_once(
    machine: Machine, hub: Hub, tmp_path: Path
) -> None:
    hub.repo("org/slow", {"model.bin": content(tmp_path / "slow", 24 * MIB)})
    hub.faults.rate = 24e6
    calls = [machine.inline_soon("pod", {"repoId": "org/slow"}) for _ in range(20)]
    answers = {answer_of(call)[0] for call in calls}
    assert grpc.StatusCode.OK in answers
    assert answers <= {grpc.StatusCode.OK, grpc.StatusCode.ABORTED}
    assert [mount.target for mount in mounts_below(machine.folder / "pods")] == [str(machine.target("pod"))]
    assert machine.unpublish("pod") == (OK, "")
    assert machine.half_made() == []


def test_publish_and_unpublish_of_one_pod_by_chance_end_in_the_last_word(machine: Machine) -> None:
    chance = random.Random(1)
    with ThreadPoolExecutor(8) as callers:
        for _ in range(10):
            calls = [machine.inline if chance.random() < 0.5 else machine.unpublish for _ in range(8)]
            list(
                callers.map(lambda call: call("pod", MODEL) if call == machine.inline else call("pod"), calls)
            )
    assert again(lambda: machine.unpublish("pod")) == (OK, "")
    assert machine.half_made() == []


@pytest.mark.parametrize("way", ["inline", "publish", "stage"])
def test_a_path_that_cannot_be_a_folder_leaves_nothing(machine: Machine, way: str) -> None:
    volume = machine.create("volume", MODEL)
    blocked = machine.staging(volume.volume_id) if way == "stage" else machine.target("pod").parent
    if way == "publish":
        assert machine.stage(volume) == (OK, "")
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file")
    calls = {
        "inline": lambda: machine.inline("pod", MODEL),
        "publish": lambda: machine.publish(volume, "pod"),
        "stage": lambda: machine.stage(volume),
    }
    code, message = calls[way]()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert str(blocked) in message
    assert "remove the file that is there" in message
    if way == "publish":
        assert machine.unstage(volume.volume_id) == (OK, "")
    assert machine.half_made() == []


def test_a_path_that_is_not_absolute_is_refused(machine: Machine) -> None:
    for path in ("some/path", "/pods/../pods/x"):
        code, message = requests.answer(
            machine.node.NodePublishVolume, requests.inline("pod", Path(path), MODEL)
        )
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "absolute path" in message
