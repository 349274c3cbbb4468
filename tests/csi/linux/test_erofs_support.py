"""What the node's kernel must have; and what only the real kernel can show of an image."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from csi.errors import UnsupportedByNode
from csi.linux import erofs_support, processes
from csi.linux.erofs_support import require_erofs
from csi.linux.loop_devices import KernelLoopDevices, _read_status_of
from csi.linux.mounts import KernelMountTable, selinux_mount_options
from csi.manifest.manifest import build_manifest
from tests.csi.images.trees import compare, file, image_of
from tests.plugins import unmount_below

_DIRECT_IO, _READ_ONLY, _AUTOCLEAR = 16, 1, 4
_BLKRAGET = 0x1263


@pytest.fixture
def filesystems(tmp_path: Path) -> Path:
    path = tmp_path / "filesystems"
    path.write_text("nodev\tsysfs\n\text4\n")
    return path


def test_a_kernel_that_knows_erofs_needs_no_module(
    filesystems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystems.write_text("nodev\tsysfs\n\terofs\n")
    monkeypatch.setattr(erofs_support.processes, "run", lambda *_: pytest.fail("modprobe was run"))
    require_erofs(filesystems)


def test_the_module_is_loaded_where_it_is_missing(filesystems: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def modprobe(argv: list[str], timeout: float) -> processes.ProcessResult:
        asked.append(argv)
        filesystems.write_text(filesystems.read_text() + "\terofs\n")
        return processes.ProcessResult(0, "")

    monkeypatch.setattr(erofs_support.processes, "run", modprobe)
    require_erofs(filesystems)
    assert asked == [["modprobe", "erofs"]]


@pytest.mark.parametrize("words", ["modprobe: FATAL: Module erofs not found", ""])
def test_a_kernel_without_erofs_is_told_with_what_modprobe_said_and_the_way_out(
    filesystems: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr(erofs_support.processes, "run", lambda *_: processes.ProcessResult(1, words))
    with pytest.raises(UnsupportedByNode) as error:
        require_erofs(filesystems)
    assert (words or "no output") in str(error.value)
    assert "CONFIG_EROFS_FS" in str(error.value)


def test_an_image_has_a_label_only_where_selinux_is_on(tmp_path: Path) -> None:
    assert selinux_mount_options(tmp_path / "enforce") == ""
    (tmp_path / "enforce").touch()
    assert selinux_mount_options(tmp_path / "enforce") == 'context="system_u:object_r:container_file_t:s0"'


def test_a_program_that_is_missing_or_hangs_is_an_outcome_and_no_exception() -> None:
    assert processes.run(["no-such-program-here"], 5) == processes.ProcessResult(
        127, "no-such-program-here is not installed"
    )
    assert processes.run(["sleep", "60"], 0.05).status == 124
    assert processes.run(["sh", "-c", "echo out; echo err >&2; exit 3"], 20) == processes.ProcessResult(
        3, "out\nerr"
    )


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: a real loop device, because it needs root")
def test_a_real_mount_is_direct_reads_ahead_as_told_and_cannot_be_written(tmp_path: Path) -> None:
    image, target = tmp_path / ("long-name-" * 12), tmp_path / "mount"
    manifest = build_manifest([file("a", 100_000), file("d/b", 10)], {})
    image_of(manifest, image)
    target.mkdir()
    try:
        with KernelLoopDevices(2 << 20).attach(image) as device:
            KernelMountTable().mount_image(device, target)
        status = _read_status_of(device)
        assert status is not None
        assert status[8] & (_DIRECT_IO | _READ_ONLY | _AUTOCLEAR) == _DIRECT_IO | _READ_ONLY | _AUTOCLEAR
        fd = os.open(device, os.O_RDONLY)
        sectors = int.from_bytes(fcntl.ioctl(fd, _BLKRAGET, bytes(8)), "little")
        os.close(fd)
        assert sectors * 512 == 2 << 20
        compare(manifest, target)
        with pytest.raises(OSError) as error:
            (target / "a").write_bytes(b"x")
        assert error.value.errno == errno.EROFS
    finally:
        unmount_below(tmp_path)
