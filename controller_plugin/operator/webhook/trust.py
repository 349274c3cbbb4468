"""The webhook's certificates in the cluster: kept in a Secret, trusted by the API server through the webhook configurations."""

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
    """Keeps the certificates of a server of the DNS names `names` in the Secret `secret` of the cluster's namespace that the program runs in,
    and both webhook configurations `configuration` trusting them. `now` gives the time, in UTC."""

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
        """The certificates as they are in the cluster, None where they are not yet. Raises as `ApiServer.call`."""
        secret = self._get_secret()
        return _decode_certificates(secret) if secret else None

    def _get_secret(self) -> Mapping[str, Any] | None:
        try:
            return self._server.call("GET", f"{self._secrets}/{self._secret}")
        except NotFound:
            return None

    def renew(self) -> None:
        """Make or renew the certificates where that is due, and have the API server trust them. For one process at a time.

        Raises as `ApiServer.call`.
        """
        secret = self._get_secret()
        old = _decode_certificates(secret) if secret else None
        renewed = renew_certificates(self._names, self._now(), old)
        # Trusted first: nobody may be shown a certificate that the server does not know yet.
        for kind in _KINDS:
            self._publish_ca_bundle(kind, renewed.ca_bundle)
        if renewed != old:
            self._write_secret(secret, renewed)

    def _publish_ca_bundle(self, kind: str, ca_bundle: str) -> None:
        path = api_path("apis", "admissionregistration.k8s.io", "v1", kind, self._configuration)
        with suppress(NotFound):  # the operator runs without this webhook
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
        log.info("the webhook's certificate is renewed", extra={"fields": {"secret": self._secret}})

    @contextmanager
    def renew_in_background(self) -> Iterator[None]:
        """For the block, tend from a thread of its own. For one process at a time."""
        with _repeat_in_background(self.renew, "the webhook's certificate was not looked at"):
            yield

    @contextmanager
    def follow_certificates(self, on_change: Callable[[Certificates], None]) -> Iterator[None]:
        """For the block, call `on_change` with the certificates as they are now, and soon after they are others, from a thread of its own."""
        known: list[Certificates] = []

        def check() -> None:
            found = self.read()
            if found is None:
                raise FailedPrecondition(
                    "the webhook has no certificate yet; the operator that leads makes it"
                )
            if [found] != known:
                known[:] = [found]
                on_change(found)

        with _repeat_in_background(check, "the webhook's certificate was not read"):
            yield


@contextmanager
def _repeat_in_background(work: Callable[[], None], failure_message: str) -> Iterator[None]:
    def run(ended: threading.Event) -> None:
        pause = 0.0
        while not ended.wait(pause):
            try:
                work()
                pause = _CHECK_INTERVAL
            except ClusterConflict:
                pause = _RETRY_INTERVAL
            except DataCacheError as error:
                pause = _RETRY_INTERVAL
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
            f"the Secret {secret['metadata']['name']} has no certificates of the webhook; delete it, and new ones are made"
        ) from error
