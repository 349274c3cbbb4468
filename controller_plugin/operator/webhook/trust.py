"""Certificates of the webhook, in a Secret. The webhook configurations make the API server trust them."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from controller_plugin.operator.certificates import Certificates, renew_certificates, utc_now
from csi.cluster.api_server import MERGE_PATCH, ApiServer, api_path
from csi.concurrency.background import background_thread
from csi.errors import ClusterConflict, DataCacheError, FailedPrecondition, NotFound

log = logging.getLogger("datacache.certificates")

_KINDS = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
_CHECK_INTERVAL, _RETRY_INTERVAL = 60.0, 5.0


class WebhookTrust:
    """Certificates of a server with the DNS names `names`, kept in a Secret.

    `secret` is in the program's own namespace. Both webhook configurations called `configuration` are made to
    trust the authority. `now` returns the time, in UTC.
    """

    def __init__(
        self,
        server: ApiServer,
        names: list[str],
        secret: str,
        configuration: str,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._server, self._names, self._configuration, self._now = server, names, configuration, now
        self._secrets, self._secret = (
            api_path("api", "v1", "namespaces", server.access.namespace, "secrets"),
            secret,
        )

    def read(self) -> Certificates | None:
        """Return the certificates stored in the cluster, or None. Raises as `ApiServer.call`."""
        secret = self._get_secret()
        return _decode_certificates(secret) if secret else None

    def _get_secret(self) -> Mapping[str, Any] | None:
        try:
            return self._server.call("GET", f"{self._secrets}/{self._secret}")
        except NotFound:
            return None

    def renew(self) -> None:
        """Create or renew the certificates if due, and make the API server trust them.

        Any number of replicas may call it at once: one that comes second finds nothing to do, or gets
        ClusterConflict and tries again at its next interval. Raises as `ApiServer.call`.
        """
        secret = self._get_secret()
        old = _decode_certificates(secret) if secret else None
        renewed = renew_certificates(self._names, self._now(), old)
        # Trust first: no server may present a certificate that the API server does not know yet.
        for kind in _KINDS:
            self._publish_ca_bundle(kind, renewed.ca_bundle)
        if renewed != old:
            self._write_secret(secret, renewed)

    def _publish_ca_bundle(self, kind: str, ca_bundle: str) -> None:
        path = api_path("apis", "admissionregistration.k8s.io", "v1", kind, self._configuration)
        with suppress(NotFound):  # this webhook is not installed
            configuration = self._server.call("GET", path)
            bundle = base64.b64encode(ca_bundle.encode()).decode()
            hooks = configuration.get("webhooks") or []
            if any(hook["clientConfig"].get("caBundle") != bundle for hook in hooks):
                updated_hooks = [
                    {**hook, "clientConfig": {**hook["clientConfig"], "caBundle": bundle}} for hook in hooks
                ]
                patch = {
                    "metadata": {"resourceVersion": configuration["metadata"]["resourceVersion"]},
                    "webhooks": updated_hooks,
                }
                self._server.call("PATCH", path, {"fieldManager": "datacache-operator"}, patch, MERGE_PATCH)

    def _write_secret(self, secret: Mapping[str, Any] | None, certificates: Certificates) -> None:
        pems = {
            "ca.crt": certificates.ca_bundle,
            "ca.key": certificates.authority_key,
            "tls.crt": certificates.certificate,
            "tls.key": certificates.key,
        }
        data = {key: base64.b64encode(pem.encode()).decode() for key, pem in pems.items()}
        if secret:
            self._server.call("PUT", f"{self._secrets}/{self._secret}", body={**secret, "data": data})
        else:
            body = {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/tls",
                "metadata": {"name": self._secret},
                "data": data,
            }
            self._server.call("POST", self._secrets, body=body)
        log.info("webhook certificate renewed", extra={"fields": {"secret": self._secret}})

    @contextmanager
    def renew_in_background(self) -> Iterator[None]:
        """Renew at intervals during the block, in a thread; every replica may do so."""
        with _repeat_in_background(self.renew, "webhook certificate not renewed"):
            yield

    @contextmanager
    def follow_certificates(self, on_change: Callable[[Certificates], None]) -> Iterator[None]:
        """Call `on_change` with the current certificates, and again soon after they change.

        It is called from a thread during the block.
        """
        known: list[Certificates] = []

        def check() -> None:
            certificates = self.read()
            if certificates is None:
                raise FailedPrecondition(
                    "the webhook has no certificate yet; an operator replica is creating it"
                )
            if [certificates] != known:
                known[:] = [certificates]
                on_change(certificates)

        with _repeat_in_background(check, "webhook certificate not read"):
            yield


@contextmanager
def _repeat_in_background(work: Callable[[], None], failure_message: str) -> Iterator[None]:
    def run(ended: threading.Event) -> None:
        delay = 0.0
        while not ended.wait(delay):
            try:
                work()
                delay = _CHECK_INTERVAL
            except ClusterConflict:
                delay = _RETRY_INTERVAL
            except DataCacheError as error:
                delay = _RETRY_INTERVAL
                log.warning(failure_message, extra={"fields": {"reason": error}})

    with background_thread(run, "certificates"):
        yield


def _decode_certificates(secret: Mapping[str, Any]) -> Certificates:
    try:
        pems = {
            key: base64.b64decode(secret["data"][key]).decode()
            for key in ("ca.crt", "ca.key", "tls.crt", "tls.key")
        }
        return Certificates(
            ca_bundle=pems["ca.crt"],
            authority_key=pems["ca.key"],
            certificate=pems["tls.crt"],
            key=pems["tls.key"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DataCacheError(
            f"the Secret {secret['metadata']['name']} does not hold certificates of the webhook; "
            "delete it, and new ones are created"
        ) from error
