"""Prometheus metrics of a plugin: its calls, its process, and collectors that it adds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, start_http_server
from prometheus_client.registry import Collector

from csi.errors import DataCacheError

# From calls on volumes that exist already, to the two minutes that kubelet waits.
_BUCKETS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0, 120.0)


class Metrics:
    """Metrics served at host and port (0 for any free one) by a thread, as long as the process lives.

    Raises DataCacheError if the address cannot be bound.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "datacache_rpc_seconds",
            "Seconds of a call",
            ("method", "code"),
            registry=self._registry,
            buckets=_BUCKETS,
        )
        ProcessCollector(registry=self._registry)
        host, port = address
        try:
            server, _ = start_http_server(port, host, self._registry)
        except OSError as error:
            raise DataCacheError(
                f"--metrics-address {host}:{port} cannot be served: {error.strerror or error}; choose another"
            ) from error
        self.port = int(server.server_port)

    def add(self, collector: Collector) -> None:
        """Include `collector` in each scrape."""
        self._registry.register(collector)

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Count a finished call (a CallObserver)."""
        self._seconds.labels(method, code).observe(seconds)
