"""The last part of `make demo`: one model as volumes of 20 GiB that were bought to perform differently,
and what fio reads in their pods."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Column, Table

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.detect import detect_hierarchy
from csi.linux.mounts import KernelMountTable, find_mount
from csi.parameters.performance_keys import Performance, compute_limits
from csi.pb import csi_pb2 as pb
from csi.performance.limits import Limits, Rate
from datacache.client import PluginClient
from tests.kernel import fio
from tests.kernel.kubelet import Container, Kubelet, Pod
from tests.kernel.machine import until
from tests.plugins import Plugins

CLAIM = 20 * 2**30
PROVISIONED = {"provisionedIops": "2000"}
BURSTING = {**PROVISIONED, "burstingEnabled": "true"}
# Lasts 1.8 s, so that the burst is over well before the run is.
CREDIT = {"readIops": "500", "burstIops": "3000", "burstCredit": "4500"}
MORE = {"provisionedIops": "5000"}

_CGROUPS = Path("/sys/fs/cgroup")
_MIB, _BLOCK = 2**20, 4096
_JOB = fio.direct("4k", 16)
_SECONDS, _CREDIT_SECONDS, _CREDIT_PART, _TOP_SECONDS = 2.0, 4.0, 1.5, 3.5
# The kernel lets I/O through ten times a second: one more or less counts less in two seconds.
_INTERVAL = "2"
# The node plugin looks at the counters of a volume that bursts at least twice a second.
_LOOK_SECONDS = 0.6
_CHANGE_SECONDS = 10.0
_METERED, _CREDIT_LEFT = re.compile(r"metered burst I/O: (\d+)"), re.compile(r"burst credit left: (\d+) ")
_NOT_SHOWN = "  not shown, since no limit can be set on this machine: volumes held at what was bought, bursts, the change of a live volume"  # noqa: E501


@dataclass(frozen=True)
class Row:
    """A line of the table: `bought`, reads a second, beside the `iops` that fio measured.

    `then` is what a burst had cost afterwards.
    """

    volume: str
    bought: Rate
    iops: float
    then: str = ""

    def words(self) -> tuple[str, ...]:
        """The line's columns, for people."""
        share = f"{self.iops / self.bought.iops:.3f}" if self.bought.iops else ""
        return (
            self.volume,
            _figures(self.bought.iops, self.bought.bytes_per_second),
            _figures(self.iops, self.iops * _BLOCK),
            share,
            self.then,
        )


def _figures(iops: float | None, size: float | None) -> str:
    return "no limit" if iops is None or size is None else f"{iops:,.0f} / {size / _MIB:5.1f}"


@dataclass
class Shown:
    """A volume that was made with `performance`, in a pod of its own, where `container` reads it."""

    volume: pb.Volume
    performance: Mapping[str, str]
    staging: str
    pod: Pod
    container: Container

    @cached_property
    def file(self) -> Path:
        """The largest file, by the pod's path."""
        return max(
            (path for path in self.pod.target().rglob("*") if path.is_file()),
            key=lambda path: path.stat().st_size,
        )

    @cached_property
    def device(self) -> str:
        """ "major:minor" of what the pod reads from."""
        mount = find_mount(KernelMountTable().list_mounts(), self.pod.target())
        assert mount, f"{self.pod.target()} is not mounted"
        return mount.device

    def bought(self, **changes: str) -> Limits:
        """Its limits by the published formulae, or those it has with `changes`; none are no limit."""
        return compute_limits(
            Performance().with_changes({**self.performance, **changes}), self.volume.capacity_bytes
        ) or Limits(Rate())

    def read(self, seconds: float = _SECONDS, log: bool = False) -> fio.Result:
        """Read it with fio."""
        return fio.run(self.container, self.file, _JOB, seconds, log)


@dataclass
class Cluster:
    """Volumes of one model (`parameters`), each in a pod of its own, on one node that keeps its mounts
    below `folder`."""

    controller: PluginClient
    node: PluginClient
    kubelet: Kubelet
    folder: Path
    parameters: Mapping[str, str]
    shown: list[Shown] = field(default_factory=list)

    def show(self, name: str, performance: Mapping[str, str]) -> Shown:
        """A volume for a claim of 20 GiB, in a pod whose container has started."""
        pod, parameters = self.kubelet.pod(), {**self.parameters, **performance}
        volume = self.controller.create(
            f"demo-{name}", parameters, capacity_range=pb.CapacityRange(required_bytes=CLAIM)
        )
        context, staging = dict(volume.volume_context), str(self.folder / f"{name}-staging")
        self.node.stage(volume.volume_id, staging, context)
        self.node.publish(volume.volume_id, str(pod.target()), context, staging)
        self.shown.append(Shown(volume, performance, staging, pod, pod.add_container()))
        return self.shown[-1]

    def message(self, shown: Shown) -> str:
        """What NodeGetVolumeStats says of the volume, once the node plugin has counted what was read."""
        time.sleep(_LOOK_SECONDS)
        return self.node.get_stats(shown.volume.volume_id, str(shown.pod.target())).volume_condition.message

    def change(self, shown: Shown, performance: Mapping[str, str], wanted: Rate) -> float:
        """Change a live volume by ControllerModifyVolume: after how many seconds the kernel holds what is
        `wanted`."""
        began = time.monotonic()
        self.controller.modify(shown.volume.volume_id, performance)
        assert until(lambda: shown.container.limit(shown.device) == wanted, _CHANGE_SECONDS), (
            f"{wanted} does not come into force"
        )
        return time.monotonic() - began

    def remove(self) -> list[str]:
        """Take everything away, as kubelet and external-provisioner would.

        The limits that are left in the pods' cgroups.
        """
        devices = {shown.device for shown in self.shown}
        for shown in self.shown:
            shown.pod.end()
            self.node.unpublish(shown.volume.volume_id, str(shown.pod.target()))
            self.node.unstage(shown.volume.volume_id, shown.staging)
            self.controller.delete(shown.volume.volume_id)
        return [f"limit in {group}" for device in devices for group in self.kubelet.ruled(device)]


def run(plugins: Plugins, parameters: Mapping[str, str], console: Console) -> None:
    """Show volumes of the model that `parameters` name; says so, and does nothing, where this machine cannot
    throttle.

    Raises SystemExit naming what is left behind.
    """
    try:
        detect_hierarchy(_CGROUPS)
    except UnsupportedByNode as error:
        console.print(f"{_NOT_SHOWN} ({error})", markup=False, highlight=False, soft_wrap=True)
        return
    with (
        plugins.client("controller") as controller,
        plugins.client("node") as node,
        Kubelet(plugins.folder / "kubelet") as kubelet,
    ):
        cluster = Cluster(controller, node, kubelet, plugins.folder, parameters)
        _show(cluster, plugins.store, console)
        left = cluster.remove()
    left += [f"record {path}" for path in (plugins.store / "throttles").iterdir()]
    if left:
        raise SystemExit(f"left behind: {', '.join(left)}")


def _show(cluster: Cluster, store: Path, console: Console) -> None:
    held = cluster.show("provisioned", PROVISIONED)
    if "not throttled" in (message := cluster.message(held)):
        console.print(f"{_NOT_SHOWN} ({message})", markup=False, highlight=False, soft_wrap=True)
        return
    free, bursting, credit = (
        cluster.show("free", {}),
        cluster.show("bursting", BURSTING),
        cluster.show("credit", CREDIT),
    )
    rows, notes = [_row("no limits", free), _row("provisionedIops 2000", held)], []
    for more, note in (_bursting(cluster, bursting), _credit(cluster, credit), _changed(cluster, held)):
        rows += more
        notes.append(note)
    console.print(_table(rows))
    for note in notes:
        console.print(f"  {note}", markup=False, highlight=False, soft_wrap=True)
    console.print("  datacache top, while the three with limits are read at once:")
    _top(store, [held, bursting, credit])


def _row(name: str, shown: Shown) -> Row:
    return Row(name, shown.bought().sustained, shown.read().iops)


def _bursting(cluster: Cluster, shown: Shown) -> tuple[list[Row], str]:
    bought = shown.bought()
    assert bought.burst
    assert bought.sustained.iops
    read = shown.read()
    metered = int(_found(_METERED, cluster.message(shown)))
    above = read.ios - bought.sustained.iops * read.seconds
    note = f"metered {metered:,} I/Os above {bought.sustained.iops:,} a second, by looks 0.5 s apart; fio: {above:,.0f}"  # noqa: E501
    return [Row("  burstingEnabled", bought.burst, read.iops, f"metered {metered:,}")], note


def _credit(cluster: Cluster, shown: Shown) -> tuple[list[Row], str]:
    bought = shown.bought()
    assert bought.burst
    read = shown.read(_CREDIT_SECONDS, log=True)
    left = _found(_CREDIT_LEFT, cluster.message(shown))
    burst = Row("readIops 500, burst", bought.burst, read.between(0, _CREDIT_PART))
    then = Row(
        f"  its last {_CREDIT_PART} s",
        bought.sustained,
        read.between(_CREDIT_SECONDS - _CREDIT_PART, _CREDIT_SECONDS),
        f"credit left {left}",
    )
    return [
        burst,
        then,
    ], f"a credit of {bought.credit:,}, by half seconds: {' '.join(map(str, read.series()))} IOPS"


def _changed(cluster: Cluster, shown: Shown) -> tuple[list[Row], str]:
    bought, mount = shown.bought(**MORE), _mount_id(shown)
    seconds = cluster.change(shown, MORE, bought.sustained)
    row = Row("provisionedIops 5000", bought.sustained, shown.read().iops, "changed live")
    assert _mount_id(shown) == mount, "the pod's mount is another one"
    return [row], f"provisionedIops 2000, made 5000 live: in force in {seconds:.3f} s, the same mount"


def _found(pattern: re.Pattern[str], message: str) -> str:
    found = pattern.search(message)
    assert found, message
    return found[1]


def _table(rows: list[Row]) -> Table:
    figures = (Column(f"{who}\nIOPS / MiB/s", justify="right") for who in ("bought", "fio reads"))
    columns = (Column("volume of 20 GiB"), *figures, Column("ratio", justify="right"), Column("burst I/O"))
    title = "what was bought, and what fio reads (direct, random, 4 KiB)"
    table = Table(*columns, title=title, box=box.SIMPLE, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row.words())
    return table


def _mount_id(shown: Shown) -> str:
    """Which mount the pod sees.

    Every mount has a number of its own (proc_pid_mountinfo(5), fields 1 and 5).
    """
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return next(words[0] for words in reversed(lines) if words[4] == str(shown.pod.target()))


def _top(store: Path, read: list[Shown]) -> None:
    """What the installed command prints of the node while volumes are read."""
    readers = [fio.Fio(shown.container, shown.file, _JOB, _TOP_SECONDS) for shown in read]
    subprocess.run(
        [Path(sys.executable).with_name("datacache"), "top", "--once", "--interval", _INTERVAL, str(store)],
        check=True,
    )
    for reader in readers:
        reader.wait()
