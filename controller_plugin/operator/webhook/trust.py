"""The webhook's certificates in the cluster: kept in a Secret, trusted by the API server through the webhook configurations."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from controller_plugin.operator.certificates import Certificates, fresh, utc_now
from csi.cluster.api_server import MERGE, ApiServer, path_of
from csi.concurrency.background import beside
from csi.errors import ClusterConflict, DataCacheError, FailedPrecondition, NotFound

log = logging.getLogger("datacache.certificates")

_KINDS = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
_LOOK_SECONDS, _RETRY_SECONDS = 60.0, 5.0


class WebhookTrust:
    """Keeps the certificates of a server of the DNS names `names` in the Secret `secret` of the cluster's namespace that the program runs in,
    and both webhook configurations `configuration` trusting them. `now` gives the time, in UTC."""

    def __init__(self, server: ApiServer, names: list[str], secret: str, configuration: str, now: Callable[[], datetime] = utc_now) -> None:
        self._server, self._names, self._configuration, self._now = server, names, configuration, now
        self._secrets, self._secret = path_of("api", "v1", "namespaces", server.access.namespace, "secrets"), secret

    def read(self) -> Certificates | None:
        """The certificates as they are in the cluster, None where they are not yet. Raises as `ApiServer.call`."""
        thing = self._thing()
        return _decoded(thing) if thing else None

    def _thing(self) -> Mapping[str, Any] | None:
        try:
            return self._server.call("GET", f"{self._secrets}/{self._secret}")
        except NotFound:
            return None

    def tend(self) -> None:
        """Make or renew the certificates where that is due, and have the API server trust them. For one process at a time.

        Raises as `ApiServer.call`.
        """
        thing = self._thing()
        old = _decoded(thing) if thing else None
        wanted = fresh(self._names, self._now(), old)
        # Trusted first: nobody may be shown a certificate that the server does not know yet.
        for kind in _KINDS:
            self._have_trusted(kind, wanted.trusted)
        if wanted != old:
            self._write(thing, wanted)

    def _have_trusted(self, kind: str, trusted: str) -> None:
        path = path_of("apis", "admissionregistration.k8s.io", "v1", kind, self._configuration)
        with suppress(NotFound):  # the operator runs without this webhook
            thing = self._server.call("GET", path)
            bundle = base64.b64encode(trusted.encode()).decode()
            hooks = thing.get("webhooks") or []
            if any(hook["clientConfig"].get("caBundle") != bundle for hook in hooks):
                told = [{**hook, "clientConfig": {**hook["clientConfig"], "caBundle": bundle}} for hook in hooks]
                patch = {"metadata": {"resourceVersion": thing["metadata"]["resourceVersion"]}, "webhooks": told}
                self._server.call("PATCH", path, {"fieldManager": "datacache-operator"}, patch, MERGE)

    def _write(self, thing: Mapping[str, Any] | None, wanted: Certificates) -> None:
        pems = {"ca.crt": wanted.trusted, "ca.key": wanted.authority_key, "tls.crt": wanted.certificate, "tls.key": wanted.key}
        data = {key: base64.b64encode(pem.encode()).decode() for key, pem in pems.items()}
        if thing:
            self._server.call("PUT", f"{self._secrets}/{self._secret}", body={**thing, "data": data})
        else:
            body = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": self._secret}, "data": data}
            self._server.call("POST", self._secrets, body=body)
        log.info("the webhook's certificate is renewed", extra={"fields": {"secret": self._secret}})

    @contextmanager
    def tended(self) -> Iterator[None]:
        """For the block, tend from a thread of its own. For one process at a time."""
        with _every(self.tend, "the webhook's certificate was not looked at"):
            yield

    @contextmanager
    def followed(self, changed: Callable[[Certificates], None]) -> Iterator[None]:
        """For the block, call `changed` with the certificates as they are now, and soon after they are others, from a thread of its own."""
        known: list[Certificates] = []

        def look() -> None:
            found = self.read()
            if found is None:
                raise FailedPrecondition("the webhook has no certificate yet; the operator that leads makes it")
            if [found] != known:
                known[:] = [found]
                changed(found)

        with _every(look, "the webhook's certificate was not read"):
            yield


@contextmanager
def _every(work: Callable[[], None], failed: str) -> Iterator[None]:
    def run(ended: threading.Event) -> None:
        pause = 0.0
        while not ended.wait(pause):
            try:
                work()
                pause = _LOOK_SECONDS
            except ClusterConflict:
                pause = _RETRY_SECONDS
            except DataCacheError as error:
                pause = _RETRY_SECONDS
                log.warning(failed, extra={"fields": {"reason": error}})

    with beside(run, "certificates"):
        yield


def _decoded(thing: Mapping[str, Any]) -> Certificates:
    try:
        pems = {key: base64.b64decode(thing["data"][key]).decode() for key in ("ca.crt", "ca.key", "tls.crt", "tls.key")}
        return Certificates(trusted=pems["ca.crt"], authority_key=pems["ca.key"], certificate=pems["tls.crt"], key=pems["tls.key"])
    except (KeyError, ValueError, TypeError) as error:
        raise DataCacheError(
            f"the Secret {thing['metadata']['name']} has no certificates of the webhook; delete it, and new ones are made"
        ) from error
