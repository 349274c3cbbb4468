"""Checks of a node. Each one tries exactly what the node plugin will need."""

from __future__ import annotations

import email.utils
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from csi.errors import DataCacheError, UnsupportedByNode
from csi.images.layout.layout import Layout, build_layout
from csi.images.node_store.partial_image import PartialImage
from csi.linux.cgroups.detect import detect_hierarchy
from csi.linux.erofs_support import require_erofs
from csi.linux.loop_devices import KernelLoopDevices, default_read_ahead
from csi.linux.mounts import KernelMountTable, find_mount_of_path
from csi.manifest.manifest import Entry, EntryKind, build_manifest
from csi.sources.http.connections import Connections, discard
from datacache.client import PluginClient
from datacache.findings import Finding, Verdict

MIB = 2**20
_VOLATILE_FILESYSTEMS = ("overlay", "tmpfs", "ramfs", "devtmpfs")
_REMOTE_FILESYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "ceph", "fuse", "9p")
_MIN_FREE_BYTES = 1024 * MIB
_MIN_FREE_SHARE = 0.05
_TEST_BYTES = 4 * MIB
# S3 accepts signatures that are at most 15 minutes old; certificates valid for a day fail sooner.
_CLOCK_FAULT_SECONDS, _CLOCK_WARNING_SECONDS = 300.0, 30.0
_CONTENT = b"datacache doctor\n"
_PROBE_TIMEOUT = 10.0


@dataclass(frozen=True)
class ExaminedNode:
    """The node to check: the node plugin's folders and flags, the hub, and the plugin's endpoint.

    `endpoint` is a unix:// URL, "" for none.
    """

    store: Path
    mount_dir: Path
    cgroup_root: Path
    hub: str
    endpoint: str = ""


def public_hub_url() -> str:
    """Return the address of the hub that is used if the environment names none."""
    from csi.sources.hubs.huggingface import configured_endpoint  # the hub's client takes 1 s to import

    return configured_endpoint()


def run_checks(node: ExaminedNode) -> Iterator[Finding]:
    """Run all checks and yield their findings.

    Takes up to a minute if the hub does not answer; must run as root.
    """
    if os.geteuid():
        yield Finding(
            "root",
            Verdict.FAULT,
            "this program does not run as root, so it cannot check what the plugin needs",
            "run it as root",
        )
        return
    for check in (
        check_erofs,
        check_loop_devices,
        check_image_mount,
        check_propagation,
        check_cgroups,
        check_disk,
    ):
        yield check(node)
    yield from check_hub_and_clock(node)
    if node.endpoint:
        yield check_plugin(node)


def check_erofs(node: ExaminedNode) -> Finding:
    """Check that the kernel can mount images."""

    def describe() -> str:
        require_erofs()
        return "the kernel has EROFS"

    return _run_check("erofs", Verdict.FAULT, describe)


def check_loop_devices(node: ExaminedNode) -> Finding:
    """Check that a file can become a block device."""

    def attach() -> str:
        with (
            _scratch_folder(node) as folder,
            _open_loop_devices(node).attach(_write_file(folder, bytes(_TEST_BYTES))) as device,
        ):
            return f"{device} was attached and released"

    return _run_check("loop devices", Verdict.FAULT, attach)


def check_image_mount(node: ExaminedNode) -> Finding:
    """Check that an image can be mounted, read and unmounted."""

    def mount_and_read() -> str:
        layout = _tiny_layout()
        with (
            _scratch_folder(node) as folder,
            _open_loop_devices(node).attach(_write_file(folder, _render_layout(layout))) as device,
            _mount_temporarily(device, folder) as target,
        ):
            read = (target / "file").read_bytes()
        if read != _CONTENT:
            raise UnsupportedByNode(
                "the bytes read from a mounted image differ from those written; "
                "check the disk and the kernel's log"
            )
        return "a small image was mounted and read"

    return _run_check("mounting an image", Verdict.FAULT, mount_and_read)


def check_propagation(node: ExaminedNode) -> Finding:
    """Check that kubelet and the pods' containers see what is mounted here."""
    mount = find_mount_of_path(_nearest_existing(node.mount_dir))
    if mount.shared:
        return Finding("propagation", Verdict.OK, f"{mount.target} is shared")
    what = (
        f"{node.mount_dir} is on {mount.target}, whose mounts are private to this mount namespace: "
        "kubelet and pods may not see images"
    )
    fix = (
        "mount kubelet's folder into the plugin's container with mountPropagation Bidirectional; "
        "on the host, `mount --make-rshared /`"
    )
    return Finding("propagation", Verdict.FAULT, what, fix)


def check_cgroups(node: ExaminedNode) -> Finding:
    """Check that performance limits can be enforced."""
    try:
        hierarchy = detect_hierarchy(node.cgroup_root)
    except UnsupportedByNode as error:
        what, _, advice = str(error).partition("; ")
        return Finding(
            "cgroups",
            Verdict.WARNING,
            f"no limit is enforced: {what}",
            advice or "mount the node's /sys/fs/cgroup into the plugin's container",
        )
    return Finding(
        "cgroups", Verdict.OK, f"limits are enforced by {hierarchy.display_name} at {node.cgroup_root}"
    )


def check_disk(node: ExaminedNode) -> Finding:
    """Check that the store's file system is persistent, has space, and accepts the writes of a fill."""
    folder = _nearest_existing(node.store)
    kind, stats = find_mount_of_path(folder).fs_type, os.statvfs(folder)
    free, size = stats.f_bavail * stats.f_frsize, stats.f_blocks * stats.f_frsize
    if kind in _VOLATILE_FILESYSTEMS:
        what = (
            f"the store {node.store} is on {kind}: images are lost with the container or at the next boot, "
            "or use up memory"
        )
        return Finding("disk", Verdict.FAULT, what, "give --store a folder of the host's own disk (hostPath)")
    if kind in _REMOTE_FILESYSTEMS or kind.startswith("fuse."):
        what = f"the store {node.store} is on {kind}, a network file system"
        return Finding("disk", Verdict.WARNING, what, "give --store a folder of a local disk")
    if free < max(_MIN_FREE_BYTES, _MIN_FREE_SHARE * size):
        what = f"the store {node.store} has {free // MIB} MiB free of {size // MIB}"
        return Finding(
            "disk",
            Verdict.FAULT,
            what,
            "add disk space, remove other files, or give --store another disk",
        )

    def write() -> str:
        _write_directly(node)
        return f"{kind}, {free // MIB} MiB free of {size // MIB}"

    return _run_check("disk", Verdict.FAULT, write)


def check_hub_and_clock(node: ExaminedNode) -> Iterator[Finding]:
    """Check that the hub answers, and that its clock agrees with this node's."""
    connections = Connections(1)
    try:
        answer = connections.get(f"{node.hub.rstrip('/')}/", {"Accept-Encoding": "identity"})
    except DataCacheError as error:
        yield Finding(
            "hub",
            Verdict.FAULT,
            str(error),
            "check DNS, HTTPS_PROXY and NO_PROXY, the firewall, HF_ENDPOINT and REQUESTS_CA_BUNDLE",
        )
        yield Finding(
            "clock",
            Verdict.WARNING,
            "not compared with the hub's clock, since the hub does not answer",
            "make the hub reachable first",
        )
        connections.close()
        return
    status, date = answer.status, answer.headers.get("Date", "")
    discard(answer)
    connections.close()
    if status >= 500:
        yield Finding(
            "hub",
            Verdict.FAULT,
            f"{node.hub} answers with status {status}",
            "wait for it, or name another in HF_ENDPOINT",
        )
    else:
        yield Finding("hub", Verdict.OK, f"{node.hub} answers")
    yield check_clock(date)


def check_clock(date: str) -> Finding:
    """Compare this node's clock with a Date header (RFC 9110, 6.6.1)."""
    try:
        offset = time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return Finding(
            "clock",
            Verdict.WARNING,
            "not compared with the hub's clock, since the hub sends no Date",
            "compare it with another clock",
        )
    if abs(offset) < _CLOCK_WARNING_SECONDS:
        return Finding("clock", Verdict.OK, "agrees with the hub's")
    verdict = Verdict.FAULT if abs(offset) >= _CLOCK_FAULT_SECONDS else Verdict.WARNING
    what = (
        f"this node's clock is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the hub's: "
        "signatures and certificates depend on it"
    )
    return Finding("clock", verdict, what, "synchronize the node's clock by NTP")


def check_plugin(node: ExaminedNode) -> Finding:
    """Check that the plugin answers."""

    def probe() -> str:
        with PluginClient(node.endpoint, timeout=_PROBE_TIMEOUT) as client:
            client.probe()
        return f"{node.endpoint} answers"

    fix = "see its log (kubectl logs), and check that --endpoint is the plugin's"
    return _run_check("plugin", Verdict.FAULT, probe, fix)


def _run_check(check: str, verdict: Verdict, attempt: Callable[[], str], fix: str = "") -> Finding:
    """Return OK with what `attempt` returns, or a finding of what it raises.

    Without a `fix`, the advice follows a semicolon in the error.
    """
    try:
        return Finding(check, Verdict.OK, attempt())
    except DataCacheError as error:
        what, _, advice = (str(error), "", fix) if fix else str(error).partition("; ")
        return Finding(check, verdict, what, advice or "see the kernel's log (dmesg)")
    except OSError as error:
        return Finding(
            check,
            verdict,
            f"{error.filename or 'the kernel'}: {error.strerror}",
            fix or "see the kernel's log (dmesg)",
        )


@contextmanager
def _scratch_folder(node: ExaminedNode) -> Iterator[Path]:
    """Create a folder on the store's disk for the block."""
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=_nearest_existing(node.store)) as folder:
        yield Path(folder)


@contextmanager
def _mount_temporarily(device: str, folder: Path) -> Iterator[Path]:
    target, mounts = folder / "mounted", KernelMountTable()
    target.mkdir()
    mounts.mount_image(device, target)
    try:
        yield target
    finally:
        mounts.unmount(target)


def _open_loop_devices(node: ExaminedNode) -> KernelLoopDevices:
    return KernelLoopDevices(default_read_ahead(_nearest_existing(node.store)))


def _tiny_layout() -> Layout:
    return build_layout(
        build_manifest([Entry("file", EntryKind.FILE, size=len(_CONTENT), digest="token:doctor")], {})
    )


def _render_layout(layout: Layout) -> bytes:
    data = bytearray(layout.size)
    data[: len(layout.metadata)] = layout.metadata
    for extent in layout.extents:
        data[extent.offset : extent.offset + extent.entry.size] = _CONTENT
    return bytes(data)


def _write_file(folder: Path, data: bytes) -> Path:
    path = folder / "image"
    path.write_bytes(data)
    return path


def _write_directly(node: ExaminedNode) -> None:
    with _scratch_folder(node) as folder:
        PartialImage.create(folder / "partial", _TEST_BYTES)
        with PartialImage(folder / "partial", _TEST_BYTES) as partial:
            partial.write_metadata(bytes(_TEST_BYTES))
            partial.sync()


def _nearest_existing(path: Path) -> Path:
    """Return `path`, or its nearest ancestor that exists: the plugin creates the rest."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
