"""One machine for all tests of this folder, and for each of them a kubelet of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.kernel.kubelet import Kubelet
from tests.kernel.machine import Machine, content
from tests.kernel.throttle.volumes import SIZES, Volumes
from tests.origins.hub import Hub

FOLDERS = 300


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with one model: large files, and folders enough that a walk through them is many reads."""
    folder = tmp_path_factory.mktemp("model")
    files = {name: content(folder / name, size) for name, size in SIZES.items()}
    notes = {f"notes/{number:03}/a-note-with-a-name.json": b"{}" for number in range(FOLDERS)}
    with Hub() as hub:
        hub.repo("org/model", {**files, **notes})
        yield hub
    shutil.rmtree(folder)


@pytest.fixture(scope="package")
def machine(models: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Both programs on one registry."""
    folder = tmp_path_factory.mktemp("machine")
    with Machine(folder, {"HF_ENDPOINT": models.endpoint}, shared_registry=True) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture
def kubelet(machine: Machine) -> Iterator[Kubelet]:
    """Pods of their own for each test."""
    with Kubelet(machine.folder) as running:
        yield running


@pytest.fixture
def volumes(machine: Machine, kubelet: Kubelet) -> Iterator[Volumes]:
    """Volumes for the test; whatever it did, no limit may outlive them."""
    made = Volumes(machine, kubelet)
    yield made
    assert made.clear() == []
    assert list((machine.store / "throttles").iterdir()) == []
    assert machine.mounts() == []
