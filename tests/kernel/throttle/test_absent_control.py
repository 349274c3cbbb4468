"""Where no limit can be set a volume works and says so, or is refused where the operator wants that.

And no pod reaches another's cgroup.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi.performance.limits import Rate
from tests.kernel.conftest import Start
from tests.kernel.kubelet import ROOT, Kubelet, ruled
from tests.kernel.machine import MIB, Machine, content
from tests.kernel.requests import OK
from tests.kernel.throttle.volumes import Shown, Volumes, inline_id, plain, reads
from tests.origins.hub import Hub

pytestmark = pytest.mark.kernel

MODEL = {"repoId": "org/small"}
LIMITED = {**MODEL, **plain(500)}
BAD_UIDS = (
    "../../foreign",
    "x/../../../foreign",
    "/foreign",
    "..",
    ".",
    "x\n",
    "x/container",
    "*",
    "a" * 300,
    "uid\0",
    " ",
)
POD_UID = "csi.storage.k8s.io/pod.uid"


@pytest.fixture(autouse=True)
def small(hub: Hub, tmp_path: Path) -> None:
    """A model of some MiB."""
    hub.repo("org/small", {"model.bin": content(tmp_path / "model.bin", 4 * MIB)})


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Kubelet]:
    """The kubelet of the first machine that a test starts."""
    with Kubelet(tmp_path / "machine1") as running:
        yield running


def works(machine: Machine, target: Path | str) -> None:
    assert (machine.target(target) / "model.bin").stat().st_size == 4 * MIB


def unthrottled(machine: Machine, target: Path | str) -> str:
    """Why the volume says that it has no limit in force."""
    _, said, why = machine.condition(target).message.partition("not throttled: ")
    assert said
    return why


def test_a_volume_of_no_known_pod_works_and_says_that_it_is_not_limited(start: Start) -> None:
    machine = start()
    assert machine.inline("pod", LIMITED) == (OK, "")
    works(machine, "pod")
    assert "pod" in unthrottled(machine, "pod")
    assert machine.unpublish("pod") == (OK, "")
    assert machine.half_made() == []


def test_a_node_without_cgroups_that_throttle_says_what_is_missing(
    start: Start, tmp_path: Path, pods: Kubelet
) -> None:
    empty = tmp_path / "no cgroups"
    empty.mkdir()
    machine, target = start("--cgroup-root", str(empty)), pods.pod().target()
    assert machine.inline(target, LIMITED) == (OK, "")
    works(machine, target)
    assert str(empty) in unthrottled(machine, target)
    assert machine.unpublish(target) == (OK, "")


def test_a_folder_that_is_no_cgroup_tree_is_not_written_to(
    start: Start, tmp_path: Path, pods: Kubelet
) -> None:
    pod = pods.pod()
    foreign = tmp_path / "foreign"
    for folder in (foreign / "blkio", foreign):
        (folder / pod.path.relative_to(pods.root)).mkdir(parents=True)
    machine = start("--cgroup-root", str(foreign))
    assert machine.inline(pod.target(), LIMITED) == (OK, "")
    unthrottled(machine, pod.target())
    assert [path for path in foreign.rglob("*") if path.is_file()] == []
    assert machine.unpublish(pod.target()) == (OK, "")


def test_required_limits_refuse_a_volume_that_cannot_have_them_and_leave_nothing(
    start: Start, tmp_path: Path, pods: Kubelet
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    machine, target = start("--require-throttle", "--cgroup-root", str(empty)), pods.pod().target()
    code, message = machine.inline(target, LIMITED)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert str(empty) in message
    assert machine.half_made() == []
    assert not target.exists()
    assert machine.inline(target, MODEL) == (OK, "")
    assert machine.unpublish(target) == (OK, "")


def test_required_limits_refuse_a_persistent_volume_of_no_known_pod(start: Start) -> None:
    machine = start("--require-throttle")
    volume = machine.create("limited", LIMITED)
    assert machine.stage(volume) == (OK, "")
    code, message = machine.publish(volume, "pod")
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "pod" in message
    assert not machine.target("pod").exists()
    assert machine.unstage(volume.volume_id) == (OK, "")
    assert machine.half_made() == []


def test_required_limits_let_a_volume_pass_whose_pod_is_still_to_come(start: Start, pods: Kubelet) -> None:
    machine, pod = start("--require-throttle"), pods.pod(cgroup=False)
    assert machine.inline(pod.target(), LIMITED) == (OK, "")
    assert machine.unpublish(pod.target()) == (OK, "")


def test_the_context_names_the_pod_where_the_path_does_not(start: Start, pods: Kubelet) -> None:
    machine, pod = start(), pods.pod()
    container = pod.add_container()
    assert machine.inline("elsewhere", {**LIMITED, POD_UID: pod.uid}) == (OK, "")
    shown = Shown(machine, inline_id("elsewhere"), machine.target("elsewhere"))
    assert container.limit(shown.device) == reads(500)
    assert machine.unpublish("elsewhere") == (OK, "")


def test_the_path_counts_more_than_what_a_context_says(start: Start, pods: Kubelet) -> None:
    machine, own, foreign = start(), pods.pod(), pods.pod()
    containers = [own.add_container(), foreign.add_container()]
    assert machine.inline(own.target(), {**LIMITED, POD_UID: foreign.uid}) == (OK, "")
    shown = Shown(machine, inline_id(str(own.target())), own.target())
    assert [container.limit(shown.device) for container in containers] == [reads(500), Rate()]
    assert machine.unpublish(own.target()) == (OK, "")


def test_a_uid_that_is_none_reaches_no_cgroup(start: Start, pods: Kubelet) -> None:
    machine, pod = start(), pods.pod(uid="x")
    for folder in (pod.path / "container", pods.root / "foreign"):
        folder.mkdir()
    for number, uid in enumerate(BAD_UIDS):
        assert machine.inline(f"pod{number}", {**LIMITED, POD_UID: uid}) == (OK, "")
        unthrottled(machine, f"pod{number}")
        device = Shown(machine, "", machine.target(f"pod{number}")).device
        assert ruled(ROOT, device) == [], uid
        assert machine.unpublish(f"pod{number}") == (OK, "")


def test_an_inline_volume_that_was_clamped_says_so(volumes: Volumes, kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    shown = volumes.inline(pod, {"provisionedIops": "35000", "size": "20Gi"})
    assert "provisionedIops 35000 lowered to 17000" in shown.message
    assert (
        container.limit(shown.device).iops,
        volumes.machine.condition(shown.target, shown.id).abnormal,
    ) == (20_000, False)
