"""The webhook served with a certificate of the cluster's own, from the moment that there is one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from controller_plugin.operator.certificates import Certificates
from controller_plugin.operator.https_server import Tls, serving
from controller_plugin.operator.webhook.admission import Admission
from controller_plugin.operator.webhook.app import webhook
from controller_plugin.operator.webhook.trust import WebhookTrust
from csi.cluster.api_server import ApiServer

log = logging.getLogger("datacache.webhook")


def names_of(service: str, namespace: str) -> list[str]:
    """The DNS names by which the API server asks a Service."""
    return [f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local"]


@contextmanager
def webhook_served(server: ApiServer, admission: Admission, name: str, host: str, port: int) -> Iterator[None]:
    """For the block, answer reviews at `host`:`port`. `name` is that of the Service, the Secret and the configurations.

    Every replica tends the certificate: who comes second finds that there is nothing to do.
    """
    trust = WebhookTrust(server, names_of(name, server.access.namespace), name, name)
    guard, stack = threading.Lock(), ExitStack()
    shown: list[Tls] = []

    def changed(certificates: Certificates) -> None:
        with guard:
            if shown:
                shown[0].show(certificates)
                return
            tls = Tls(certificates)
            stack.enter_context(serving(webhook(admission), host, port, tls))
            shown.append(tls)
            log.info("the webhook is answered", extra={"fields": {"port": port}})

    with stack, trust.tended(), trust.followed(changed):
        yield
