"""Runs a guest (or anything else that reports as one) and tells what became of its tests."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.guest.root import Root

_FAILED = 1
_TAIL_LINES = 60
# The guest ends with this process, however that ends.
_ENDING = "setpriv --pdeathsig KILL --"
# Without a KVM that runs an unmodified kernel: emulation, a thread a processor.
_QEMU = (
    "qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -nodefaults -display none -no-reboot"
)
_MASKED = "e2scrub_reap.service getty@tty1.service serial-getty@ttyS0.service systemd-binfmt.service apt-daily.timer dpkg-db-backup.timer"  # noqa: E501
_KERNEL = (
    "root=/dev/vda rw rootflags=noatime console=ttyS0 loglevel=4 panic=-1 "
    "systemd.unified_cgroup_hierarchy=1 systemd.hostname=guest "
    "systemd.machine_id=0123456789abcdef0123456789abcdef systemd.wants=tests.service "
    + " ".join(f"systemd.mask={unit}" for unit in _MASKED.split())
)


@dataclass(frozen=True)
class Reports:
    """Where a guest leaves what it has to say beside pytest's output: its console, how pytest ended,
    qemu's own complaints."""

    folder: Path

    @property
    def console(self) -> Path:
        """The guest's console."""
        return self.folder / "console"

    @property
    def status(self) -> Path:
        """One line, "pytest ended with N"."""
        return self.folder / "status"

    @property
    def complaints(self) -> Path:
        """What qemu writes to its standard error."""
        return self.folder / "qemu"

    def exit_status(self) -> int | None:
        """How pytest ended, if the guest has said so."""
        said = re.fullmatch(r"pytest ended with (\d+)\s*", _text(self.status))
        return int(said[1]) if said else None


def command(root: Root, payload: Path, reports: Reports) -> list[str]:
    """The guest's command line: disks whose changes are dropped, and three serial lines (console, pytest's
    output, its status)."""
    boot = ["-kernel", str(root.kernel), "-initrd", str(root.initrd), "-append", _KERNEL]
    disks = [
        word
        for disk in (root.disk, payload)
        for word in ("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe,snapshot=on")
    ]
    lines = [
        word
        for place in (reports.console, "/dev/stdout", reports.status)
        for word in ("-serial", f"file:{place}")
    ]
    return [*_ENDING.split(), *_QEMU.split(), *boot, *disks, *lines]


def run(argv: list[str], reports: Reports, limit_seconds: float) -> int:
    """Run `argv` and pass its output on while it comes: the exit status that it reports for pytest.

    1 when it reports none or is not at its end within the limit; then why is said, with the end of its
    console.
    """
    with reports.complaints.open("wb") as errors:
        guest = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
    with guest:
        try:
            ended = _pass_on(guest, time.monotonic() + limit_seconds)
        finally:
            guest.kill()
    status = reports.exit_status()
    if ended and status is not None:
        return status
    _explain(
        "it ended without saying how pytest ended"
        if ended
        else f"it was stopped after {limit_seconds:g} seconds",
        reports,
    )
    return _FAILED


def _pass_on(guest: subprocess.Popen[bytes], end: float) -> bool:
    """Print what comes until it ends; False when `end` (monotonic) is there first."""
    assert guest.stdout
    poll = select.poll()
    poll.register(guest.stdout, select.POLLIN)
    while poll.poll(max(0.0, end - time.monotonic()) * 1000):
        data = os.read(guest.stdout.fileno(), 1 << 16)
        if not data:
            return True
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return False


def _explain(what: str, reports: Reports) -> None:
    console = _text(reports.console).replace("\r", "").splitlines()[-_TAIL_LINES:]
    print(f"\nguest: FAILED: {what}. The end of its console:", *console, sep="\n  ")
    print(*_text(reports.complaints).splitlines(), sep="\n", flush=True)


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""
