"""What people see of a node's limits: the plugin's records beside the counters of (fake) cgroups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from csi.linux.cgroups.hierarchy import ReadCount
from csi.performance.limits import Limits, Rate
from datacache.__main__ import cli
from datacache.top import (
    TOP_COLUMNS,
    ThrottledNode,
    ThrottleSample,
    ThrottleSampler,
    detect_hierarchy_or_none,
)
from node_plugin.throttle.burst import BurstState
from node_plugin.throttle.meter import BurstMeter
from node_plugin.throttle.records import GroupRecord, GroupRecords, RecordedMember
from node_plugin.volumes.records import Exposure, NodeVolume, VolumeRecords
from tests.csi.linux.cgroups.fakes import FakeHierarchy

UID, DEVICE = "1111-2222", "7:3"
CREDIT = Limits(Rate(500, 8_192_000), Rate(3000, 49_152_000), 6000)


class Place:
    """A store with records, and the cgroup of its pod."""

    def __init__(self, folder: Path) -> None:
        self.store, self.cgroups = folder / "store", FakeHierarchy(folder / "cgroups")
        self.pod = self.cgroups.root / f"kubepods/pod{UID}"
        (self.pod / "c1").mkdir(parents=True)
        self.volumes, self.throttles = (
            VolumeRecords(self.store / "volumes"),
            GroupRecords(self.store / "throttles"),
        )

    def limited(self, *targets: str) -> None:
        claims = {target: RecordedMember(f"volume{target}", CREDIT) for target in targets}
        self.throttles.put(GroupRecord(UID, DEVICE, claims, BurstState(1234.4, True, BurstMeter(766.0))))
        for target in targets:
            self.publish(target)
        self.cgroups.set_limit(self.pod, DEVICE, CREDIT.burst or Rate())

    def publish(self, target: str) -> None:
        self.volumes.put(
            NodeVolume(
                f"volume{target}", "d" * 64, {}, 1, 1, target_paths={target: Exposure("READER", pod=UID)}
            )
        )

    def watch(self) -> ThrottleSampler:
        return ThrottleSampler(ThrottledNode(self.store, self.cgroups))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def facts(readings: list[ThrottleSample]) -> list[dict[str, object]]:
    return [reading.to_json() for reading in readings]


def test_a_volume_with_limits_shows_them_its_credit_and_what_its_pod_reads(place: Place) -> None:
    place.limited("/t1")
    watch = place.watch()
    place.cgroups.read(place.pod / "c1", DEVICE, 600, 8192)
    (row,) = facts(watch.sample())
    iops, rate = float(str(row["iops"])), float(str(row["bytes_per_second"]))
    assert iops > 0
    assert rate == pytest.approx(8192 * iops, rel=0.01)
    assert (row["volume"], row["pod"], row["limit_iops"], row["burst_iops"]) == ("volume/t1", UID, 500, 3000)
    assert (row["in_force_iops"], row["credit"], row["metered_ios"]) == (3000, 1234, 766)
    (row,) = facts(watch.sample())
    assert row["iops"] == 0


def test_a_volume_without_limits_is_shown_too(place: Place) -> None:
    place.publish("/t1")
    (reading,) = place.watch().sample()
    assert reading.to_json()["limit_iops"] is None
    assert reading.to_json()["credit"] is None
    assert dict(zip(TOP_COLUMNS, reading.to_columns(), strict=True))["limits"] == "none"


def test_two_volumes_of_a_pod_are_two_rows(place: Place) -> None:
    place.limited("/t1", "/t2")
    assert [row["target"] for row in facts(place.watch().sample())] == ["/t1", "/t2"]


def test_a_pod_that_went_between_two_looks_is_no_error(place: Place) -> None:
    place.limited("/t1")
    place.cgroups.read(place.pod / "c1", DEVICE, 100)
    watch = place.watch()
    for path in sorted(place.pod.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    place.pod.rmdir()
    (row,) = facts(watch.sample())
    assert row["iops"] == 0
    assert row["in_force_iops"] is None


def test_a_node_without_cgroups_shows_its_volumes_all_the_same(place: Place, tmp_path: Path) -> None:
    place.limited("/t1")
    assert detect_hierarchy_or_none(tmp_path / "absent") is None
    (reading,) = ThrottleSampler(ThrottledNode(place.store, None)).sample()
    assert reading.row.count == ReadCount()
    assert reading.to_json()["limit_iops"] == 500


def test_the_command_prints_a_table_or_json_and_ends_where_nobody_watches(
    place: Place, tmp_path: Path
) -> None:
    place.limited("/t1")
    arguments = ["top", str(place.store), "--cgroup-root", str(tmp_path), "--interval", "0.1"]
    text = CliRunner().invoke(cli, arguments)
    assert text.exit_code == 0
    assert "volume/t1" in text.output
    assert "bursting on a credit of 6000" in text.output
    found = json.loads(CliRunner().invoke(cli, [*arguments, "-o", "json"]).output)
    assert [row["volume"] for row in found] == ["volume/t1"]
    assert len(list((place.store / "throttles").iterdir())) == 1
