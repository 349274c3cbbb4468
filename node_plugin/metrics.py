"""Limits and burst I/O for Prometheus: one series for each pod and device, whose volumes are one in the kernel's eyes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node_plugin.throttle.throttle import AppliedLimit, Throttle

_LABELS = ("volume", "pod", "device")


class LimitsCollector(Collector):
    """Asks `throttle` at each scrape."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle

    def collect(self) -> Iterator[Metric]:
        """The metric families, in the order of their names; volumes of one pod on one device share a series, their ids joined by commas."""
        in_force = GaugeMetricFamily(
            "datacache_volume_limit_in_force",
            "1 where the limit holds in the kernel, 0 where it cannot",
            labels=_LABELS,
        )
        iops = GaugeMetricFamily(
            "datacache_volume_limit_iops", "Reads a second that are let through now", labels=_LABELS
        )
        rate = GaugeMetricFamily(
            "datacache_volume_limit_bytes_per_second",
            "Bytes a second that are let through now",
            labels=_LABELS,
        )
        credit = GaugeMetricFamily(
            "datacache_volume_burst_credit_ios", "Burst credit left, in I/Os", labels=_LABELS
        )
        burst = CounterMetricFamily(
            "datacache_volume_burst_ios", "I/Os above the sustained limit", labels=_LABELS
        )
        for labels, held in _group_series(self._throttle.list_applied()):
            in_force.add_metric(labels, 0.0 if held.problem else 1.0)
            for family, value in (
                (iops, held.rate.iops),
                (rate, held.rate.bytes_per_second),
                (credit, held.burst.credit),
            ):
                if value is not None and not held.problem:
                    family.add_metric(labels, max(0.0, float(value)))
            burst.add_metric(labels, held.burst.metered_ios)
        yield from (credit, burst, rate, in_force, iops)


def _group_series(applied: Iterable[AppliedLimit]) -> Iterator[tuple[tuple[str, str, str], AppliedLimit]]:
    ordered = sorted(applied, key=_pod_and_device)
    for (pod, device), group in groupby(ordered, key=_pod_and_device):
        together = list(group)
        yield (",".join(sorted({one.volume for one in together})), pod, device), together[0]


def _pod_and_device(applied: AppliedLimit) -> tuple[str, str]:
    return applied.pod, applied.device
