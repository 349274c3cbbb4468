"""HTTPS server of the webhook, which starts as soon as the cluster has a certificate for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from controller_plugin.operator.certificates import Certificates
from controller_plugin.operator.https_server import ReloadableTls, serve_app
from controller_plugin.operator.webhook.admission import AdmissionReviewer
from controller_plugin.operator.webhook.app import webhook_app
from controller_plugin.operator.webhook.trust import WebhookTrust
from csi.cluster.api_server import ApiServer

log = logging.getLogger("datacache.webhook")


def service_dns_names(service: str, namespace: str) -> list[str]:
    """Return the DNS names by which the API server addresses a Service."""
    return [f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local"]


@contextmanager
def serve_webhook(
    server: ApiServer, admission: AdmissionReviewer, name: str, host: str, port: int
) -> Iterator[None]:
    """Serve reviews at `host`:`port` during the block.

    `name` is that of the Service, the Secret and the configurations.

    Every replica renews the certificate: one that comes second finds nothing to do.
    """
    trust = WebhookTrust(server, service_dns_names(name, server.access.namespace), name, name)
    guard, stack = threading.Lock(), ExitStack()
    tls_in_use: list[ReloadableTls] = []

    def on_certificates(certificates: Certificates) -> None:
        with guard:
            if tls_in_use:
                tls_in_use[0].load(certificates)
                return
            tls = ReloadableTls(certificates)
            stack.enter_context(serve_app(webhook_app(admission), host, port, tls))
            tls_in_use.append(tls)
            log.info("webhook started", extra={"fields": {"port": port}})

    with stack, trust.renew_in_background(), trust.follow_certificates(on_certificates):
        yield
