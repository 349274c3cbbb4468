"""Cgroups of a test's own, a disk and a clock that it moves, and lives of the plugin over them."""

from __future__ import annotations

from pathlib import Path

from csi.performance.limits import Limits, Rate
from node_plugin.throttle.records import GroupRecords
from node_plugin.throttle.throttle import LimitRequest, Throttle
from tests.csi.linux.cgroups.fakes import FakeHierarchy

UID, OTHER_UID, DEVICE = "1111-2222", "3333-4444", "7:3"
SLOW, FAST = Limits(Rate(500, 8_192_000)), Limits(Rate(5000, 81_920_000))
CREDIT = Limits(Rate(500, 8_192_000), Rate(3000, 49_152_000), 6000)
METERED = Limits(Rate(500, 8_192_000), Rate(3000, 49_152_000))


class Place:
    """A hierarchy, and lives of the plugin over it.

    `disk` is what /proc/diskstats would say, `clock` the time.
    """

    def __init__(self, folder: Path, flat: bool) -> None:
        self.folder, self.cgroups = folder, FakeHierarchy(folder / "cgroups", flat)
        self.disk, self.clock = 0, 1000.0
        self.throttle = self.start()

    def start(self, required: bool = False) -> Throttle:
        """The next life of the plugin."""
        records = GroupRecords(self.folder / "throttles")
        return Throttle(
            self.cgroups,
            records,
            required,
            lambda devices: dict.fromkeys(devices, (self.disk, 0)),
            lambda: self.clock,
        )

    def kill(self) -> None:
        self.throttle.close()
        self.throttle = self.start()

    def pod(self, uid: str = UID) -> Path:
        return self.cgroups.root / f"kubepods/burstable/pod{uid}"

    def container(self, name: str = "c1", uid: str = UID) -> Path:
        """A container's cgroup, made."""
        path = self.pod(uid) / name
        path.mkdir(parents=True)
        return path

    def hold(self, limits: Limits | None, target: str = "/t1", uid: str = UID, volume: str = "vol") -> None:
        self.throttle.apply(self.wanted(limits, target, uid, volume))

    def wanted(
        self,
        limits: Limits | None,
        target: str = "/t1",
        uid: str = UID,
        volume: str = "vol",
        unknown: bool = False,
    ) -> LimitRequest:
        return LimitRequest(volume, target, uid, DEVICE, limits, unknown)

    def rate(self, cgroup: Path) -> Rate:
        return self.cgroups.read_limit(cgroup, DEVICE)

    def read(self, cgroup: Path, ios: int) -> None:
        self.cgroups.read(cgroup, DEVICE, ios)
        self.disk += ios
