"""Leader election: one replica holds a Lease; the others take it over when it is released or expires.

Source: Kubernetes API reference, coordination.k8s.io/v1 Lease. A follower judges expiry by its own clock,
from when it saw the lease change last, so that clock differences do no harm.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any

from csi.cluster.api_server import ApiServer, api_path
from csi.concurrency.background import background_thread
from csi.errors import ClusterConflict, DataCacheError, NotFound

log = logging.getLogger("datacache.lease")

StartLeading = Callable[[], AbstractContextManager[None]]
_LEASE_DURATION, _RENEW_INTERVAL = 45, 10.0
# A leader that cannot renew must stop before another replica may take over: this long after its last renewal,
# plus
# two calls that time out.
_RENEW_DEADLINE, _CALL_TIMEOUT = 15.0, 5.0


def holder_identity(environment: Mapping[str, str]) -> str:
    """Return this process's identity among the replicas: its pod's name from POD_NAME, else a random one.

    A container restarted in its pod keeps the identity of the one before, which has ended, and continues with
    its lease at once.
    """
    return environment.get("POD_NAME") or f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"


class Lease:
    """The lease `name` in the server's own namespace, seen by `holder`, an identity unique among replicas.

    Used by one thread.
    """

    def __init__(
        self, server: ApiServer, name: str, holder: str, duration_seconds: int = _LEASE_DURATION
    ) -> None:
        self._server, self._name, self._holder, self._duration_seconds = (
            server,
            name,
            holder,
            duration_seconds,
        )
        self._path = api_path(
            "apis", "coordination.k8s.io", "v1", "namespaces", server.access.namespace, "leases"
        )
        self._observed_version, self._observed_at = "", 0.0

    def acquire_or_renew(self) -> bool:
        """Acquire or renew the lease; return whether this replica holds it now.

        Raises the errors of `ApiServer.call`.
        """
        try:
            lease = self._read()
        except NotFound:
            return self._write("POST", self._path, self._build_renewed(None))
        spec = lease["spec"]
        if spec.get("holderIdentity") not in (None, "", self._holder) and not self._has_expired(lease):
            return False
        # The PUT carries the resourceVersion that was read, so of two replicas that take over at once one
        # gets a conflict.
        return self._write("PUT", f"{self._path}/{self._name}", self._build_renewed(lease))

    def release(self) -> None:
        """Release the lease if this replica holds it."""
        lease = self._read()
        if lease["spec"].get("holderIdentity") == self._holder:
            self._write(
                "PUT",
                f"{self._path}/{self._name}",
                {**lease, "spec": {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}},
            )

    def _read(self) -> dict[str, Any]:
        return self._server.call("GET", f"{self._path}/{self._name}", timeout=_CALL_TIMEOUT)

    def _has_expired(self, lease: dict[str, Any]) -> bool:
        version, now = lease["metadata"]["resourceVersion"], time.monotonic()
        if version != self._observed_version:
            self._observed_version, self._observed_at = version, now
        return now - self._observed_at > int(
            lease["spec"].get("leaseDurationSeconds", self._duration_seconds)
        )

    def _build_renewed(self, lease: dict[str, Any] | None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = lease["spec"] if lease else {}
        spec = {
            **old,
            "holderIdentity": self._holder,
            "leaseDurationSeconds": self._duration_seconds,
            "renewTime": now,
        }
        if old.get("holderIdentity") != self._holder:
            spec |= {
                "acquireTime": now,
                "leaseTransitions": old.get("leaseTransitions", 0) + (1 if lease else 0),
            }
        kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        return {**kind, "metadata": lease["metadata"] if lease else {"name": self._name}, "spec": spec}

    def _write(self, method: str, path: str, lease: dict[str, Any]) -> bool:
        try:
            self._server.call(
                method, path, {"fieldManager": "datacache-controller"}, lease, timeout=_CALL_TIMEOUT
            )
        except ClusterConflict:
            return False
        return True


@contextmanager
def leader_election(
    lease: Lease,
    start_leading: StartLeading,
    renew_interval: float = _RENEW_INTERVAL,
    renew_deadline: float = _RENEW_DEADLINE,
) -> Iterator[None]:
    """Try to hold the lease during the block, and stay within `start_leading()` while it is held.

    Runs in a thread. If `start_leading()` raises, the lease is released so that another replica may try, and
    this one tries again later.
    """
    with background_thread(
        lambda ended: _run_election(lease, start_leading, ended, renew_interval, renew_deadline), "lease"
    ):
        yield


def _run_election(
    lease: Lease,
    start_leading: StartLeading,
    stop: threading.Event,
    renew_interval: float,
    renew_deadline: float,
) -> None:
    while not stop.is_set():
        if _try_acquire(lease):
            log.info("leading started")
            _lead(lease, start_leading, stop, renew_interval, renew_deadline)
            log.info("leading ended")
        _wait_with_jitter(stop, renew_interval)
    _release_or_log(lease)


def _lead(
    lease: Lease,
    start_leading: StartLeading,
    stop: threading.Event,
    renew_interval: float,
    renew_deadline: float,
) -> None:
    try:
        with start_leading():
            _renew_until_lost(lease, stop, renew_interval, renew_deadline)
        return
    except DataCacheError as error:
        log.warning("leading failed; retrying", extra={"fields": {"reason": error}})
    except Exception as error:
        # A foreign exception's text is not vetted for secrets.
        log.error(
            "leading failed; retrying",
            extra={"fields": {"reason": type(error).__name__}},
        )
    _release_or_log(lease)


def _release_or_log(lease: Lease) -> None:
    try:
        lease.release()
    except DataCacheError as error:
        log.warning("lease not released; it will expire", extra={"fields": {"reason": error}})


def _renew_until_lost(
    lease: Lease, stop: threading.Event, renew_interval: float, renew_deadline: float
) -> None:
    """Renew until `stop` is set, another replica holds the lease, or the renew deadline has passed."""
    renewed_at = time.monotonic()
    # After a failed renewal, try again sooner.
    while not _wait_with_jitter(
        stop, renew_interval if time.monotonic() - renewed_at < renew_interval else renew_interval / 5
    ):
        # The lease counts from when the call began: the server may have renewed it at any time since.
        started = time.monotonic()
        try:
            if not lease.acquire_or_renew():
                return
            renewed_at = started
        except DataCacheError as error:
            log.warning("lease not renewed", extra={"fields": {"reason": error}})
            if time.monotonic() - renewed_at > renew_deadline:
                return


def _try_acquire(lease: Lease) -> bool:
    try:
        return lease.acquire_or_renew()
    except DataCacheError as error:
        log.warning("lease not acquired", extra={"fields": {"reason": error}})
        return False


def _wait_with_jitter(stop: threading.Event, seconds: float) -> bool:
    return stop.wait(random.uniform(0.8 * seconds, seconds))
