"""Prometheus metrics of limits and burst I/O, one series per pod and device, which share one kernel rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node_plugin.throttle.throttle import LimitStatus, Throttle

_LABELS = ("volume", "pod", "device")


class LimitsCollector(Collector):
    """Collector that reads `throttle` at each scrape."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families in the order of their names.

        Volumes of one pod on one device share a series, with their ids joined by commas.
        """
        in_force = GaugeMetricFamily(
            "datacache_volume_limit_in_force",
            "1 if the limit is in force in the kernel, 0 if it is not",
            labels=_LABELS,
        )
        iops = GaugeMetricFamily(
            "datacache_volume_limit_iops", "Reads per second that are allowed now", labels=_LABELS
        )
        rate = GaugeMetricFamily(
            "datacache_volume_limit_bytes_per_second",
            "Bytes per second that are allowed now",
            labels=_LABELS,
        )
        credit = GaugeMetricFamily(
            "datacache_volume_burst_credit_ios", "Burst credit left, in I/Os", labels=_LABELS
        )
        burst = CounterMetricFamily(
            "datacache_volume_burst_ios", "I/Os above the sustained limit", labels=_LABELS
        )
        for labels, status in _group_series(self._throttle.list_limit_statuses()):
            in_force.add_metric(labels, 0.0 if status.problem else 1.0)
            for family, value in (
                (iops, status.rate.iops),
                (rate, status.rate.bytes_per_second),
                (credit, status.burst.credit),
            ):
                # A debt of burst credit is no credit left.
                if value is not None and not status.problem:
                    family.add_metric(labels, max(0.0, float(value)))
            burst.add_metric(labels, status.burst.metered_ios)
        # Sorted by name, so that the output is stable.
        yield from (credit, burst, rate, in_force, iops)


def _group_series(statuses: Iterable[LimitStatus]) -> Iterator[tuple[tuple[str, str, str], LimitStatus]]:
    # groupby joins neighbours only.
    ordered = sorted(statuses, key=_pod_and_device)
    for (pod, device), group in groupby(ordered, key=_pod_and_device):
        members = list(group)
        volume_ids = ",".join(sorted({member.volume for member in members}))
        # Rate, burst and problem belong to the group, so any member has them.
        yield (volume_ids, pod, device), members[0]


def _pod_and_device(status: LimitStatus) -> tuple[str, str]:
    return status.pod, status.device
