"""A node plugin that leaves, comes back and finds what it left; volumes that share an image.

Calls that are made twice or for nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from tests.kernel import requests
from tests.kernel.conftest import Start
from tests.kernel.machine import MIB, Machine, content, until
from tests.kernel.mount_refs import foreign_refs
from tests.kernel.requests import OK, answer_of
from tests.origins.hub import Hub
from tests.plugins import unmount_below

pytestmark = pytest.mark.kernel

ABORTED, EXISTS = grpc.StatusCode.ABORTED, grpc.StatusCode.ALREADY_EXISTS
SIZE = 96 * MIB
MODEL, SLOW = {"repoId": "org/model"}, {"repoId": "org/slow"}
# Reads a file again and again, past the page cache, until its input ends; exits with 0 when it was the same
# each time.
_READER = """
import hashlib, os, select, sys
seen = set()
while not select.select([sys.stdin], [], [], 0)[0]:
    with open(sys.argv[1], "rb") as file:
        seen.add(hashlib.file_digest(file, "sha256").digest())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if len(seen) == 1:
        print("read", flush=True)
sys.exit(len(seen) != 1)
"""


@pytest.fixture
def repositories(hub: Hub, tmp_path: Path) -> None:
    """A small model, and one that is large enough to be slow."""
    hub.repo("org/model", {"model.bin": content(tmp_path / "model", 4 * MIB)})
    hub.repo("org/slow", {"model.bin": content(tmp_path / "slow", SIZE)})


@contextmanager
def undisturbed_reader(file: Path) -> Iterator[None]:
    """A process that reads `file` during the block, and must not notice anything."""
    reader = subprocess.Popen(
        [sys.executable, "-c", _READER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdout
    assert reader.stdout.readline() == b"read\n"
    try:
        yield
    finally:
        _, status = reader.communicate(), reader.returncode
    assert status == 0


def sent(hub: Hub, name: str) -> int:
    """Bytes of a repository's model that the hub has sent."""
    return hub.counters.bytes_sent[f"{name}/model.bin"]


def test_sigterm_ends_waits_and_leaves_mounts_and_readers_alone(
    start: Start, hub: Hub, repositories: None
) -> None:
    machine = start()
    volume = machine.create("volume", MODEL)
    target = machine.show(volume, "pod")
    hub.faults.rate = 24e6
    waiting = machine.inline_soon("waiting", SLOW)
    assert until(lambda: list((machine.store / "images").glob("*/progress.json")))
    mounts, workers = machine.mounts(), machine.plugins.node.children()

    with undisturbed_reader(target / "model.bin"):
        assert machine.plugins.node.stop() == 0
        assert answer_of(waiting) == (ABORTED, "plugin is shutting down; retry")
        assert machine.mounts() == mounts
        assert until(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()])
        machine.restart_node()
        assert machine.mounts() == mounts
        stats = machine.node.NodeGetVolumeStats(requests.stats(volume.volume_id, target), timeout=30)
        assert stats.usage[0].used == 4 * MIB
        assert not stats.volume_condition.abnormal
        assert machine.publish(volume, "pod") == (OK, "")

    hub.faults.rate = None
    assert machine.inline("waiting", SLOW) == (OK, "")
    assert (
        machine.unpublish("pod", volume.volume_id)
        == machine.unpublish("waiting")
        == machine.unstage(volume.volume_id)
        == (OK, "")
    )
    assert machine.half_made() == []


def test_after_a_reboot_records_without_mounts_are_gone_and_images_are_there(
    start: Start, hub: Hub, repositories: None
) -> None:
    machine = start()
    volume = machine.create("volume", MODEL)
    machine.show(volume, "pod")
    assert machine.inline("inline", MODEL) == (OK, "")
    machine.plugins.node.stop()
    unmount_below(machine.folder)
    assert len(list((machine.store / "volumes").iterdir())) == 2

    machine.restart_node()
    assert machine.half_made() == []
    assert not machine.target("pod").exists()
    assert not machine.target("inline").exists()
    assert machine.staging(volume.volume_id).exists()
    hub.counters.reset()
    assert (machine.show(volume, "pod") / "model.bin").stat().st_size == 4 * MIB
    assert sent(hub, "org/model") == 0


def test_a_mount_that_was_taken_away_by_hand_is_abnormal_until_published_anew(
    start: Start, repositories: None
) -> None:
    machine = start()
    assert machine.inline("pod", MODEL) == (OK, "")
    subprocess.run(["umount", str(machine.target("pod"))], check=True)
    stats = machine.node.NodeGetVolumeStats(
        requests.stats(requests.inline_id("pod"), machine.target("pod")), timeout=30
    )
    assert stats.volume_condition.abnormal
    assert "delete the pod" in stats.volume_condition.message
    assert machine.inline("pod", MODEL) == (OK, "")
    assert (machine.target("pod") / "model.bin").exists()


def test_an_image_stays_mounted_until_its_last_volume_is_gone(
    start: Start, hub: Hub, repositories: None
) -> None:
    machine = start()
    first, second = (machine.create(name, MODEL) for name in ("first", "second"))
    machine.show(first, "pod1")
    target = machine.show(second, "pod2")
    assert machine.inline("inline", MODEL) == (OK, "")
    (loop,) = machine.loops()

    assert (
        machine.unpublish("pod1", first.volume_id)
        == machine.unstage(first.volume_id)
        == machine.unpublish("inline")
        == (OK, "")
    )
    assert machine.loops() == [loop]
    assert (target / "model.bin").stat().st_size == 4 * MIB

    assert machine.unpublish("pod2", second.volume_id) == machine.unstage(second.volume_id) == (OK, "")
    assert machine.loops() == machine.mounts() == []
    assert not Path(f"/sys/block/{loop}/loop").exists()
    assert len(machine.sealed()) == 1
    hub.counters.reset()
    machine.show(second, "pod2")
    assert sent(hub, "org/model") == 0


def test_kubelet_finds_no_reference_that_keeps_it_from_unstaging(start: Start, repositories: None) -> None:
    machine = start()
    volumes = [machine.create(name, MODEL) for name in ("first", "second")]
    for number, volume in enumerate(volumes):
        machine.show(volume, f"pod{number}")
    assert machine.inline("inline", MODEL) == (OK, "")
    (loop,) = machine.loops()
    for number, volume in enumerate(volumes):
        assert machine.unpublish(f"pod{number}", volume.volume_id) == (OK, "")
    for volume in volumes:
        assert foreign_refs(machine.staging(volume.volume_id)) == []
        stats = machine.node.NodeGetVolumeStats(
            requests.stats(volume.volume_id, machine.staging(volume.volume_id)), timeout=30
        )
        assert [usage.used for usage in stats.usage] == [4 * MIB, 2]
        assert not stats.volume_condition.abnormal

    assert machine.unpublish("inline") == machine.unstage(volumes[0].volume_id) == (OK, "")
    assert machine.loops() == [loop], "the image stays mounted, with its pages, while a volume is staged"
    assert foreign_refs(machine.staging(volumes[1].volume_id)) == []
    assert machine.unstage(volumes[1].volume_id) == (OK, "")
    assert machine.half_made() == []


def test_volumes_that_an_earlier_version_staged_are_unstaged_after_an_upgrade(
    start: Start, repositories: None
) -> None:
    """It bound the image's mount to the staging path, for which kubelet had them staged for ever."""
    machine = start()
    volumes = [machine.create(name, MODEL) for name in ("first", "second")]
    shown = machine.show(volumes[0], "pod")
    assert machine.stage(volumes[1]) == (OK, "")
    stagings = [machine.staging(volume.volume_id) for volume in volumes]
    machine.plugins.node.stop()
    for staging in stagings:
        subprocess.run(["umount", str(staging)], check=True)
        subprocess.run(["mount", "--bind", "-o", "ro", str(shown), str(staging)], check=True)
    assert all(foreign_refs(staging) for staging in stagings)

    with undisturbed_reader(shown / "model.bin"):
        machine.restart_node()
        assert machine.publish(volumes[1], "another") == (OK, "")
    assert (machine.target("another") / "model.bin").stat().st_dev == (shown / "model.bin").stat().st_dev
    assert [foreign_refs(staging) for staging in stagings] == [[], []]
    for volume, pod in zip(volumes, ("pod", "another"), strict=True):
        assert machine.unpublish(pod, volume.volume_id) == machine.unstage(volume.volume_id) == (OK, "")
    assert machine.half_made() == []


def test_an_image_mount_that_was_taken_away_by_hand_is_back_for_the_next_pod(
    start: Start, repositories: None
) -> None:
    machine = start()
    volume = machine.create("volume", MODEL)
    assert machine.stage(volume) == (OK, "")
    (mount,) = [target for target in machine.mounts() if target != str(machine.staging(volume.volume_id))]
    subprocess.run(["umount", mount], check=True)
    assert machine.publish(volume, "pod") == (OK, "")
    assert (machine.target("pod") / "model.bin").stat().st_size == 4 * MIB
    assert machine.unpublish("pod", volume.volume_id) == machine.unstage(volume.volume_id) == (OK, "")
    assert machine.half_made() == []


def test_a_volume_in_use_by_a_process_is_taken_away_when_that_has_ended(
    start: Start, repositories: None
) -> None:
    machine = start()
    assert machine.inline("pod", MODEL) == (OK, "")
    with (machine.target("pod") / "model.bin").open("rb"):
        code, message = machine.unpublish("pod")
        assert code is ABORTED
        assert "in use by a process" in message
    assert machine.unpublish("pod") == (OK, "")
    assert machine.half_made() == []


def test_the_same_path_with_other_arguments_is_taken(start: Start, repositories: None) -> None:
    machine = start()
    volume = machine.create("volume", MODEL)
    machine.show(volume, "pod")
    assert machine.stage(volume) == machine.publish(volume, "pod") == (OK, "")

    other = requests.stage(volume, machine.staging(volume.volume_id))
    other.volume_context["provisionedIops"] = "1000"
    writable = requests.publish(volume, machine.staging(volume.volume_id), machine.target("pod"))
    writable.readonly = False
    answers = [
        requests.answer(machine.node.NodeStageVolume, other),
        requests.answer(machine.node.NodePublishVolume, writable),
    ]
    for (code, message), path in zip(
        answers, (machine.staging(volume.volume_id), machine.target("pod")), strict=True
    ):
        assert code is EXISTS
        assert str(path) in message
        assert "with other arguments" in message


def test_secrets_and_facts_of_the_pod_may_differ_from_call_to_call(start: Start, repositories: None) -> None:
    machine = start()
    assert machine.inline("pod", MODEL) == (OK, "")
    again = requests.inline("pod", machine.target("pod"), MODEL, {"token": "another"})
    again.volume_context["csi.storage.k8s.io/serviceAccount.tokens"] = "changes every hour"
    assert requests.answer(machine.node.NodePublishVolume, again) == (OK, "")


def test_what_was_never_there_is_taken_away_without_an_error(start: Start, tmp_path: Path) -> None:
    machine = start()
    assert machine.unstage("unknown") == machine.unpublish("unknown") == (OK, "")
    machine.target("empty").mkdir(parents=True)
    assert machine.unpublish("empty") == (OK, "")
    assert not machine.target("empty").exists()


def test_files_of_others_at_a_target_are_never_removed(start: Start) -> None:
    machine = start()
    stranger = machine.target("pod") / "precious"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("data")
    code, message = machine.unpublish("pod")
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "which is not this driver's" in message
    assert stranger.read_text() == "data"


def test_a_killed_worker_costs_one_retry(start: Start, hub: Hub, repositories: None) -> None:
    machine = start()
    hub.faults.rate = 24e6
    call = machine.inline_soon("pod", SLOW)
    assert until(lambda: list((machine.store / "images").glob("*/progress.json")))
    time.sleep(1)
    for worker in machine.plugins.node.children():
        os.kill(worker, signal.SIGKILL)
    hub.faults.rate = None
    assert answer_of(call) == (OK, "")
    assert machine.unpublish("pod") == (OK, "")
    assert machine.half_made() == []


def test_workers_that_keep_dying_are_unavailable_and_the_next_call_goes_on(
    start: Start, hub: Hub, repositories: None
) -> None:
    machine = start()
    hub.faults.rate = 24e6
    call = machine.inline_soon("pod", SLOW)
    while not call.done():
        kill_fills(machine)
    code, message = answer_of(call)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "worker process ended" in message
    hub.faults.rate = None
    assert machine.inline("pod", SLOW) == (OK, "")


def kill_fills(machine: Machine) -> None:
    """Kill every worker that writes a partial image."""
    for worker in machine.plugins.node.children():
        files = (
            [path.resolve() for path in Path(f"/proc/{worker}/fd").glob("*")]
            if Path(f"/proc/{worker}").exists()
            else []
        )
        if any(path.name == "image.partial" for path in files):
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
    time.sleep(0.05)


def test_a_private_fill_that_was_cut_goes_on_when_kubelet_calls_again_with_its_secret(
    start: Start, hub: Hub, tmp_path: Path
) -> None:
    secret = {"token": "good-s3cr3t"}
    hub.repo(
        "org/private",
        {"model.bin": content(tmp_path / "private", SIZE)},
        private=True,
        tokens={secret["token"]},
    )
    machine = start()
    hub.faults.rate = 24e6
    call = machine.inline_soon("pod", {"repoId": "org/private"}, secret)
    assert until(lambda: sent(hub, "org/private") > SIZE // 2)
    machine.plugins.node.kill()
    assert answer_of(call)[0] is grpc.StatusCode.UNAVAILABLE
    before = sent(hub, "org/private")
    hub.faults.rate = None
    machine.restart_node()
    assert until(lambda: machine.logged("fill ended .*give a token in a Secret"))
    assert machine.inline("pod", {"repoId": "org/private"}, secret) == (OK, "")
    # The half that had been synced was not fetched again.
    assert sent(hub, "org/private") - before < SIZE
    assert machine.unpublish("pod") == (OK, "")
    assert machine.half_made() == []


def test_a_public_fill_that_was_cut_goes_on_by_itself(start: Start, hub: Hub, repositories: None) -> None:
    machine = start()
    hub.faults.rate = 24e6
    call = machine.inline_soon("pod", SLOW)
    assert until(lambda: sent(hub, "org/slow") > SIZE // 2)
    machine.plugins.node.kill()
    assert answer_of(call)[0] is grpc.StatusCode.UNAVAILABLE
    before = sent(hub, "org/slow")
    hub.faults.rate = None
    machine.restart_node()
    assert until(machine.sealed)
    assert sent(hub, "org/slow") - before < SIZE
    assert machine.half_made() == []
    assert machine.mounts() == []
