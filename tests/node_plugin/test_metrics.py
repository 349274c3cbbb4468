"""What Prometheus reads, over HTTP and with Prometheus' own parser."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from csi.errors import DataCacheError
from csi.performance.limits import Limits, Rate
from csi.server.metrics import Metrics
from node_plugin.metrics import LimitsCollector
from node_plugin.throttle.records import GroupRecords
from node_plugin.throttle.throttle import LimitRequest, Throttle
from tests.csi.linux.cgroups.fakes import FakeHierarchy
from tests.kernel.machine import until

UID, DEVICE = "1111-2222", "7:3"
CREDIT = Limits(Rate(500, 8_192_000), Rate(3000, 49_152_000), 6000)


class Place:
    """A throttle with metrics, and the cgroup of its pod."""

    def __init__(self, folder: Path) -> None:
        self.cgroups = FakeHierarchy(folder / "cgroups")
        self.pod = self.cgroups.root / f"kubepods/pod{UID}"
        self.pod.mkdir(parents=True)
        self.throttle = Throttle(self.cgroups, GroupRecords(folder / "throttles"))
        metrics = Metrics(("127.0.0.1", 0))
        metrics.add(LimitsCollector(self.throttle))
        self.port = metrics.port

    def hold(self, volume: str, limits: Limits, pod: str = UID) -> None:
        self.throttle.apply(LimitRequest(volume, f"/{volume}", pod, DEVICE, limits))

    def samples(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Name to (labels, value)."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return {
            sample.name: [(dict(s.labels), s.value) for s in family.samples if s.name == sample.name]
            for family in families
            for sample in family.samples
        }


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.throttle.close()


def test_limits_credit_and_burst_io_are_there(place: Place) -> None:
    place.hold("vol", CREDIT)
    place.cgroups.read(place.pod, DEVICE, 1000)
    labels = {"volume": "vol", "pod": UID, "device": DEVICE}
    assert place.samples()["datacache_volume_limit_iops"] == [(labels, 3000)]
    assert place.samples()["datacache_volume_limit_bytes_per_second"] == [(labels, 49_152_000)]
    assert place.samples()["datacache_volume_limit_in_force"] == [(labels, 1)]
    assert "datacache_volume_burst_credit_ios" in place.samples()
    assert place.samples()["datacache_volume_burst_ios_total"][0][0] == labels


def test_volumes_that_share_a_rule_are_one_series(place: Place) -> None:
    place.hold("one", CREDIT)
    place.hold("two", CREDIT)
    ((labels, value),) = place.samples()["datacache_volume_limit_iops"]
    assert labels["volume"] == "one,two"
    assert value == 6000


def test_a_limit_that_is_not_in_force_says_so(place: Place) -> None:
    place.hold("vol", CREDIT, pod="")
    assert [value for _, value in place.samples()["datacache_volume_limit_in_force"]] == [0]
    assert "datacache_volume_limit_iops" not in place.samples()


def test_nothing_is_shown_of_a_volume_that_went(place: Place) -> None:
    place.hold("vol", CREDIT)
    place.throttle.release("/vol")
    assert until(lambda: "datacache_volume_limit_iops" not in place.samples())


def test_an_address_that_is_taken_is_named(place: Place) -> None:
    with pytest.raises(DataCacheError, match=f"--metrics-address 127.0.0.1:{place.port}"):
        Metrics(("127.0.0.1", place.port))
