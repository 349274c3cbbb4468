"""A node that cannot take a cache: no room in the store's budget, on its disk, for a single file more.

No EROFS in its kernel.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi.errors import UnsupportedByNode
from csi.linux.erofs_support import require_erofs
from tests.kernel.bad_input import SECRET
from tests.kernel.conftest import Start
from tests.kernel.disks import disk
from tests.kernel.machine import MIB, Machine, content
from tests.kernel.requests import OK
from tests.kernel.traces import assert_clean
from tests.origins.hub import Hub

pytestmark = pytest.mark.kernel

NO_SPACE = grpc.StatusCode.RESOURCE_EXHAUSTED
LARGE = {"repoId": "org/large"}


@pytest.fixture
def large(hub: Hub, tmp_path: Path) -> None:
    """Two repositories: one of 64 MiB, one of a few bytes."""
    hub.repo("org/large", {"model.bin": content(tmp_path / "model.bin", 64 * MIB)})
    hub.repo("org/small", {"config.json": b"{}"})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB, mounted."""
    with disk(tmp_path, 48 * MIB) as folder:
        yield folder


def on_disk(folder: Path, hub: Hub, *flags: str) -> Machine:
    return Machine(folder, {"HF_ENDPOINT": hub.endpoint}, list(flags))


def test_an_image_over_the_budget_is_refused_with_both_numbers(start: Start, hub: Hub, large: None) -> None:
    machine = start("--store-size", "32Mi")
    code, message = machine.inline("pod", LARGE)
    assert code is NO_SPACE
    assert "needs 64" in message
    assert "its budget is 32" in message
    assert "--store-size" in message
    assert_clean(machine, SECRET, message)
    assert machine.images() == []
    assert machine.inline("small", {"repoId": "org/small"}) == (OK, "")


def test_an_image_larger_than_the_disk_is_refused_with_both_numbers(
    hub: Hub, large: None, small_disk: Path
) -> None:
    with on_disk(small_disk, hub, "--store-size", "10Gi") as machine:
        code, message = machine.inline("pod", LARGE)
        assert code is NO_SPACE
        assert "needs 64" in message
        assert "its file system has no more" in message
        assert "add disk space" in message
        assert_clean(machine, SECRET, message)
        assert machine.images() == []
        assert machine.inline("small", {"repoId": "org/small"}) == (OK, "")


def test_a_disk_without_room_for_a_manifest_is_said_to_be_full(
    hub: Hub, large: None, small_disk: Path
) -> None:
    with on_disk(small_disk, hub) as machine:
        assert machine.inline("early", {"repoId": "org/small"}) == (OK, "")
        ballast = fill_up(small_disk)
        code, message = machine.inline("pod", LARGE)
        assert code is NO_SPACE, message
        assert "full" in message
        assert "on the node" in message
        ballast.unlink()
        assert machine.unpublish("early") == (OK, "")
        assert_clean(machine, SECRET, message)


def fill_up(folder: Path) -> Path:
    """A file that leaves no byte of the disk."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as stream:
        for size in (MIB, 4096, 1):
            try:
                while stream.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue
    return path


def test_a_kernel_without_erofs_is_told_apart_after_modprobe(tmp_path: Path) -> None:
    filesystems = tmp_path / "filesystems"
    filesystems.write_text("nodev\tsysfs\n\text4\nnodev\ttmpfs\n")
    with pytest.raises(
        UnsupportedByNode, match="no EROFS, and `modprobe erofs` did not help.*CONFIG_EROFS_FS"
    ):
        require_erofs(filesystems)
    filesystems.write_text("nodev\tsysfs\n\terofs\n")
    require_erofs(filesystems)


def test_a_volume_on_a_kernel_without_erofs_fails_before_anything_is_fetched(
    hub: Hub, large: None, tmp_path: Path
) -> None:
    """The node plugin in a mount namespace of its own, where /proc/filesystems does not list EROFS."""
    filesystems, folder = tmp_path / "filesystems", tmp_path / "machine"
    filesystems.write_text(Path("/proc/filesystems").read_text().replace("erofs", "other"))
    folder.mkdir()
    machine = Machine(folder, {"HF_ENDPOINT": hub.endpoint})
    hide = f'mount --bind "{filesystems}" /proc/filesystems && exec "$@"'
    machine.plugins.node.command[:0] = [
        shutil.which("unshare") or "unshare",
        "--mount",
        "sh",
        "-c",
        hide,
        "sh",
    ]
    with machine:
        hub.counters.reset()
        code, message = machine.inline("pod", LARGE)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "no EROFS" in message
        assert "modprobe erofs" in message
        assert "6.1" in message
        assert_clean(machine, SECRET, message)
        assert not hub.counters.requests
