"""The guest's root file system: Debian packages, a kernel, an initrd.

Built once, kept for the same packages and the same kernel.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.guest import ext4
from tests.guest.cache import alone

SUITE, PYTHON = "bookworm", (3, 11)
# What the plugins and their tests use, and what makes a Debian that boots.
PACKAGES = tuple(
    "dbus erofs-utils fio iproute2 kmod libnfs13 linux-image-amd64 netbase openssl procps python3 systemd systemd-sysv udev".split()  # noqa: E501
)
_MODULES = "/usr/lib/modules/*/kernel"
_LEFT_OUT = tuple(
    "/usr/share/doc/* /usr/share/man/* /usr/share/locale/*".split()
    + [
        f"{_MODULES}/{what}/*"
        for what in "sound drivers/gpu drivers/media drivers/infiniband drivers/net/ethernet drivers/net/wireless".split()  # noqa: E501
    ]
)
_OVERLAY = Path(__file__).with_name("overlay")
_ROOM = 4 * 2**30
# mmdebstrap mounts /sys and more in what it builds: whoever removes what a killed one left must not meet
# them, or processes that go on.
_APART = "unshare --mount --pid --fork --kill-child --mount-proc".split()


@dataclass(frozen=True)
class Root:
    """A folder with the guest's disk (ext4, sparse), its kernel and its initrd."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The root file system, never written to: guests boot from a snapshot of it."""
        return self.folder / "disk"

    @property
    def kernel(self) -> Path:
        """The kernel."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Its first file system."""
        return self.folder / "initrd"


def ready(cache: Path) -> Root:
    """The root in the folder `cache`, built first unless it is there; older ones are removed.

    Raises CalledProcessError.
    """
    root = Root(cache / f"root-{_key()}")
    with alone(cache) as lock:
        if not root.folder.exists():
            for old in cache.glob("root-*"):
                shutil.rmtree(old)
            print("guest: building its root file system, which takes a minute and is kept", flush=True)
            _build(root, lock)
    return root


def _build(root: Root, lock: int) -> None:
    work = root.folder.with_name(root.folder.name + ".partial")
    files = work / "files"
    work.mkdir()
    excluded = [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
    hook = f'--setup-hook=cp -r --preserve=mode {_OVERLAY}/. "$1"'
    what = [
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        *excluded,
        hook,
        SUITE,
        str(files),
        *mirrors(),
    ]
    # It holds the lock by itself, should this process be killed.
    subprocess.run([*_APART, "mmdebstrap", *what], check=True, pass_fds=[lock])
    for kept, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        next((files / "boot").glob(pattern)).rename(work / kept)
    ext4.write(files, work / "disk", _ROOM)
    shutil.rmtree(files)
    work.rename(root.folder)


def _key() -> str:
    """Changes with the packages, the kernel that apt offers, and everything else that the root is made
    from."""
    made_from = [
        Path(__file__),
        Path(ext4.__file__),
        *sorted(path for path in _OVERLAY.rglob("*") if path.is_file()),
    ]
    offered = subprocess.run(
        ["apt-cache", "policy", "linux-image-amd64"], capture_output=True, text=True
    ).stdout
    candidate = [line.strip() for line in offered.splitlines() if "Candidate:" in line]
    return hashlib.sha256(repr([candidate, *(path.read_bytes() for path in made_from)]).encode()).hexdigest()[
        :12
    ]


def mirrors() -> list[str]:
    """This machine's own sources of the suite, for a network that reaches no other.

    None where apt knows none: mmdebstrap then has its defaults.
    """
    wanted = ["Origin: Debian", "Created-By: Packages", "--format=deb $(SITE) $(RELEASE) $(COMPONENT)"]
    known = subprocess.run(
        ["apt-get", "indextargets", *wanted], capture_output=True, text=True
    ).stdout.splitlines()
    return sorted({line for line in known if line.split()[2].startswith(SUITE)})
