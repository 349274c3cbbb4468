"""One of several replicas leads: it holds a Lease, and the others take it over when it is let go or not renewed.

Source: Kubernetes API reference, coordination.k8s.io/v1 Lease. A follower judges a lease by its own clock, from when it saw it
change last, so that clocks that differ do no harm.
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

from csi.cluster.api_server import ApiServer, path_of
from csi.concurrency.background import beside
from csi.errors import ClusterConflict, DataCacheError, NotFound

log = logging.getLogger("datacache.lease")

Lead = Callable[[], AbstractContextManager[None]]
_HELD_SECONDS, _RENEW_SECONDS = 45, 10.0
# A leader that cannot renew stops before anybody else may begin: this long after it last could, and what two calls may take.
_SURE_SECONDS, _CALL_SECONDS = 15.0, 5.0


def holder_of(environment: Mapping[str, str]) -> str:
    """Who this process is to the other replicas: its pod by the variable POD_NAME, else one of its own.

    A container that starts again in its pod is who the one before was, which has ended, and goes on at once with what that one led.
    """
    return environment.get("POD_NAME") or f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"


class Lease:
    """The lease `name` in the server's own namespace, as `holder` (one that no other replica has) sees it. Used by one thread."""

    def __init__(self, server: ApiServer, name: str, holder: str, held_seconds: int = _HELD_SECONDS) -> None:
        self._server, self._name, self._holder, self._seconds = server, name, holder, held_seconds
        self._path = path_of("apis", "coordination.k8s.io", "v1", "namespaces", server.access.namespace, "leases")
        self._seen, self._changed = "", 0.0

    def hold(self) -> bool:
        """Take or renew it; whether it is ours now. Raises ClusterUnavailable and the other errors of `ApiServer.call`."""
        try:
            lease = self._read()
        except NotFound:
            return self._write("POST", self._path, self._fresh(None))
        spec = lease["spec"]
        if spec.get("holderIdentity") not in (None, "", self._holder) and not self._lapsed(lease):
            return False
        return self._write("PUT", f"{self._path}/{self._name}", self._fresh(lease))

    def let_go(self) -> None:
        """Leave it to the next one, where it is ours."""
        lease = self._read()
        if lease["spec"].get("holderIdentity") == self._holder:
            self._write("PUT", f"{self._path}/{self._name}", {**lease, "spec": {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}})

    def _read(self) -> dict[str, Any]:
        return self._server.call("GET", f"{self._path}/{self._name}", seconds=_CALL_SECONDS)

    def _lapsed(self, lease: dict[str, Any]) -> bool:
        version, now = lease["metadata"]["resourceVersion"], time.monotonic()
        if version != self._seen:
            self._seen, self._changed = version, now
        return now - self._changed > int(lease["spec"].get("leaseDurationSeconds", self._seconds))

    def _fresh(self, lease: dict[str, Any] | None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = lease["spec"] if lease else {}
        spec = {**old, "holderIdentity": self._holder, "leaseDurationSeconds": self._seconds, "renewTime": now}
        if old.get("holderIdentity") != self._holder:
            spec |= {"acquireTime": now, "leaseTransitions": old.get("leaseTransitions", 0) + (1 if lease else 0)}
        kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        return {**kind, "metadata": lease["metadata"] if lease else {"name": self._name}, "spec": spec}

    def _write(self, method: str, path: str, lease: dict[str, Any]) -> bool:
        try:
            self._server.call(method, path, {"fieldManager": "datacache-controller"}, lease, seconds=_CALL_SECONDS)
        except ClusterConflict:
            return False
        return True


@contextmanager
def leading(lease: Lease, lead: Lead, renew_seconds: float = _RENEW_SECONDS, sure_seconds: float = _SURE_SECONDS) -> Iterator[None]:
    """For the block, try to hold the lease, from a thread of its own, and be within `lead()` for as long as it is held.

    Where `lead()` raises the lease is let go, so that another replica may try, and tried for again like any other.
    """
    with beside(lambda ended: _run(lease, lead, ended, renew_seconds, sure_seconds), "lease"):
        yield


def _run(lease: Lease, lead: Lead, ended: threading.Event, renew_seconds: float, sure_seconds: float) -> None:
    while not ended.is_set():
        if _held(lease):
            log.info("this replica leads")
            _lead(lease, lead, ended, renew_seconds, sure_seconds)
            log.info("this replica leads no more")
        _rest(ended, renew_seconds)
    _let_go(lease)


def _lead(lease: Lease, lead: Lead, ended: threading.Event, renew_seconds: float, sure_seconds: float) -> None:
    try:
        with lead():
            _keep(lease, ended, renew_seconds, sure_seconds)
        return
    except DataCacheError as error:
        log.warning("this replica could not lead; it is tried again", extra={"fields": {"reason": error}})
    except Exception as error:
        # A foreign exception's text is not vetted for secrets.
        log.error("this replica could not lead; it is tried again", extra={"fields": {"reason": type(error).__name__}})
    _let_go(lease)


def _let_go(lease: Lease) -> None:
    try:
        lease.let_go()
    except DataCacheError as error:
        log.warning("the lease was not let go; it lapses", extra={"fields": {"reason": error}})


def _keep(lease: Lease, ended: threading.Event, renew_seconds: float, sure_seconds: float) -> None:
    """Renew until the end, until another one holds it, or until that cannot be ruled out any more."""
    renewed = time.monotonic()
    while not _rest(ended, renew_seconds if time.monotonic() - renewed < renew_seconds else renew_seconds / 5):
        started = time.monotonic()
        try:
            if not lease.hold():
                return
            renewed = started
        except DataCacheError as error:
            log.warning("lease not renewed", extra={"fields": {"reason": error}})
            if time.monotonic() - renewed > sure_seconds:
                return


def _held(lease: Lease) -> bool:
    try:
        return lease.hold()
    except DataCacheError as error:
        log.warning("lease not looked at", extra={"fields": {"reason": error}})
        return False


def _rest(ended: threading.Event, seconds: float) -> bool:
    return ended.wait(random.uniform(0.8 * seconds, seconds))
