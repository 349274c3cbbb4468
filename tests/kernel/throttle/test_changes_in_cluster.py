"""Both programs with a cluster for their registry: what holds for a folder (test_changes.py), and what
only replicas do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from datacache.client import PluginClient
from tests.apiserver import ApiServer
from tests.kernel.kubelet import Kubelet
from tests.kernel.machine import Machine, until
from tests.kernel.throttle import test_changes
from tests.kernel.throttle.volumes import MODEL, Volumes, plain, reads
from tests.origins.hub import Hub
from tests.plugins import Program

pytestmark = pytest.mark.kernel

LIMIT = test_changes.LIMIT
MOST_MB = 64
test_a_modified_volume_changes_the_limits_of_its_running_pods = (
    test_changes.test_a_modified_volume_changes_the_limits_of_its_running_pods_and_no_mount
)
test_a_change_while_the_node_plugin_was_dead_is_found = (
    test_changes.test_a_change_while_the_node_plugin_was_dead_is_found_when_it_is_back
)
test_a_pod_that_comes_after_the_change_gets_the_new_limits = test_changes.test_a_pod_that_comes_after_the_change_gets_the_new_limits_though_the_context_of_its_volume_has_the_old  # noqa: E501
test_changing_one_volume_leaves_another_alone = (
    test_changes.test_changing_one_volume_leaves_another_of_the_same_content_and_limits_alone
)


@pytest.fixture(scope="module")
def machine(
    models: Hub, api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """Both programs on one cluster."""
    folder = tmp_path_factory.mktemp("in-cluster")
    with Machine(folder, {"HF_ENDPOINT": models.endpoint}, kubeconfig=api_server.kubeconfig()) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture
def replica(machine: Machine) -> Iterator[Program]:
    """A second controller on the same cluster."""
    first = machine.plugins.controller
    endpoint = f"unix://{machine.folder}/replica.sock"
    command = [
        first.command[0],
        "--endpoint",
        endpoint,
        "--registry",
        "kubernetes",
        "--state-dir",
        str(machine.folder / "replica"),
    ]
    program = Program(command, endpoint, first.environment, machine.folder / "replica.log")
    program.start()
    yield program
    program.stop()


def leaders(*programs: Program) -> list[int]:
    """Of each program, whether it says that it leads."""
    lines = [
        [
            line
            for line in program.text().splitlines()
            if "leading started" in line or "leading ended" in line
        ][-1:]
        for program in programs
    ]
    return [int(bool(last) and "leading started" in last[0]) for last in lines]


def test_replicas_answer_alike_and_one_leads(
    machine: Machine, replica: Program, api_server: ApiServer
) -> None:
    made = machine.create("pvc-of-one", MODEL)
    with PluginClient(replica.endpoint) as other:
        assert [volume for volume in other.list_volumes() if volume.volume_id == made.volume_id] == [made]
        assert other.create("pvc-of-one", MODEL) == made
        assert until(lambda: sum(leaders(machine.plugins.controller, replica)) == 1)
        row = f"jsonpath={{.items[?(@.spec.volumeID=='{made.volume_id}')].status.source}}"
        assert until(lambda: api_server.kubectl("get", "dcv", "-o", row) == "HuggingFace/Model org/model")
        other.delete(made.volume_id)
    assert made.volume_id not in api_server.kubectl("get", "dcv", "-o", "name")


def test_limits_stay_while_the_api_server_is_away_and_change_when_it_is_back(
    machine: Machine, volumes: Volumes, kubelet: Kubelet, api_server: ApiServer
) -> None:
    pod, late = kubelet.pod(), kubelet.pod()
    containers = [pod.add_container(), late.add_container()]
    volume = volumes.make(plain(LIMIT))
    shown = [volumes.show(volume, pod)]
    api_server.stop()
    try:
        shown.append(volumes.show(volume, late))
        assert [container.limit(one.device) for container, one in zip(containers, shown, strict=True)] == [
            reads(LIMIT)
        ] * 2
    finally:
        api_server.start()
    machine.modify(volume, plain(2 * LIMIT))
    assert until(
        lambda: all(
            container.limit(one.device) == reads(2 * LIMIT)
            for container, one in zip(containers, shown, strict=True)
        ),
        60,
    )


def test_programs_stay_small_and_leave_the_registry_no_folder(
    machine: Machine, volumes: Volumes, kubelet: Kubelet
) -> None:
    pod = kubelet.pod()
    pod.add_container()
    for number in range(5):
        volumes.show(volumes.make(plain(LIMIT)), pod, f"volume-{number}")
    programs = {"controller": machine.plugins.controller, "node": machine.plugins.node}
    resident = {name: program.resident_bytes() / 1e6 for name, program in programs.items()}
    print(
        "\nresident with a cluster for a registry: "
        f"{', '.join(f'{name} {size:.1f} MB' for name, size in resident.items())}"
    )
    assert all(size <= MOST_MB for size in resident.values())
    assert sorted(path.name for path in machine.plugins.registry.iterdir()) == ["key", "proofs"]
