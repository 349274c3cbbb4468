"""`python -m tests.guest [pytest's arguments]`: run tests as root in the guest.

Exits as pytest did there, or with 1 where it could not.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from tests.guest import machine, payload, root
from tests.guest.cache import run_folder

TREE = Path(__file__).parents[2]
CACHE = TREE / ".cache" / "guest"
_THROTTLE = [
    f"tests/kernel/throttle/test_{name}.py"
    for name in ("rates", "bursts", "cgroups", "changes", "neighbours")
]
_KERNELS = ["tests/csi/linux/test_kernels.py", "tests/csi/linux/cgroups/test_hierarchies.py"]
SELECTION = ["-m", "guest or kernel", "tests/guest", *_KERNELS, *_THROTTLE]
_PROGRAMS = ("qemu-system-x86_64", "mmdebstrap", "mkfs.ext4", "git")
# Beside other tests it takes longer; a guest that hangs is ended all the same.
_LIMIT_SECONDS = 60 * 60


def obstacle() -> str:
    """Why no guest can run here; empty where one can."""
    here, there = (".".join(map(str, version)) for version in (sys.version_info[:2], root.PYTHON))
    if here != there:
        return f"the guest (Debian {root.SUITE}) has Python {there} and could not load the packages of this virtual environment, which has {here}"  # noqa: E501
    if platform.machine() != "x86_64":
        return (
            f"this machine is {platform.machine()}: its virtual environment does not run in a guest of x86_64"
        )
    if sys.prefix == sys.base_prefix:
        return "this Python is in no virtual environment that could be brought along; call it through make test-guest"  # noqa: E501
    if os.geteuid() != 0:
        return "building the guest's root file system needs root"
    missing = [program for program in _PROGRAMS if not shutil.which(program)]
    return f"{', '.join(missing)} not found; tests/setup/guest.sh installs it" if missing else ""


def main(arguments: list[str]) -> int:
    """Run pytest with `arguments` (default: SELECTION) in a guest; its exit status."""
    if why := obstacle():
        print(f"guest: CANNOT RUN: {why}", file=sys.stderr)
        return 1
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        system = root.ready(CACHE)
    except subprocess.CalledProcessError as error:
        print(
            f"guest: CANNOT RUN: its root file system was not built (status {error.returncode})",
            file=sys.stderr,
        )
        return 1
    with run_folder(CACHE) as folder:
        reports = machine.Reports(folder)
        disk = payload.write(folder, TREE, Path(sys.prefix), arguments or SELECTION, sys.stdout.isatty())
        print("guest: booting", flush=True)
        return machine.run(machine.command(system, disk, reports), reports, _LIMIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
