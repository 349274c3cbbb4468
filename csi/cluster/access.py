"""Address and credentials of the Kubernetes API server; a pod uses its service account.

Source: Kubernetes documentation, "Accessing the Kubernetes API from a Pod".
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from csi.errors import FailedPrecondition

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# kubelet replaces a projected token after 80 % of its lifetime, which is at least ten minutes.
_TOKEN_REREAD_INTERVAL = 60.0


@dataclass(frozen=True)
class ClusterAccess:
    """Address and credentials of one API server.

    `server` is its URL, `namespace` that of this program's own objects. The token is read from `token_file`
    again as it rotates, or is `token`. `ca_file` is a PEM file, "" for the machine's trust store;
    `certificate` and `key` are PEM texts of a client certificate, "" for none. `tls_name` is the name that
    the server's certificate must have, "" for the URL's host.
    """

    server: str
    namespace: str = "default"
    token_file: Path | None = None
    token: str = field(default="", repr=False)
    ca_file: str = ""
    ca: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    tls_name: str = ""

    def build_tls_context(self) -> ssl.SSLContext:
        """Return a TLS context that trusts the server's CA and has the client certificate, if any.

        Raises FailedPrecondition.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None, cadata=self.ca or None)
            if self.certificate:
                _load_client_certificate(context, self.certificate, self.key)
            return context
        except OSError as error:
            what = "the CA or client certificate of the Kubernetes API server"
            raise FailedPrecondition(
                f"{what} cannot be read ({self.ca_file or 'KUBECONFIG'}: {error.strerror or 'no PEM'}); "
                "correct the file"
            ) from None


def _load_client_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    # OpenSSL takes only a file name. A memfd's is private to this process, and gone with the descriptor.
    with os.fdopen(os.memfd_create("client-certificate"), "w") as file:
        file.write(f"{certificate}\n{key}")
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


class BearerToken:
    """The current bearer token. Not thread-safe; a race merely reads the file twice."""

    def __init__(self, access: ClusterAccess) -> None:
        self._file, self._token, self._read_at = access.token_file, access.token, float("-inf")

    def get(self, force_refresh: bool = False) -> str:
        """Return the token, "" for none.

        Its file is read again after a minute, or on `force_refresh`. Raises FailedPrecondition.
        """
        if self._file and (force_refresh or time.monotonic() - self._read_at > _TOKEN_REREAD_INTERVAL):
            try:
                self._token, self._read_at = self._file.read_text().strip(), time.monotonic()
            except OSError as error:
                raise FailedPrecondition(
                    f"the service account's token {self._file} cannot be read: {error.strerror}; "
                    "mount it into the pod"
                ) from error
        return self._token


def find_pod_access(
    environment: Mapping[str, str] = os.environ, folder: Path = SERVICE_ACCOUNT
) -> ClusterAccess | None:
    """Return the access of this pod's service account; None outside of a pod."""
    host, port = (
        environment.get("KUBERNETES_SERVICE_HOST", ""),
        environment.get("KUBERNETES_SERVICE_PORT", "443"),
    )
    if not host:
        return None
    namespace_file = folder / "namespace"
    namespace = (
        namespace_file.read_text().strip()
        if namespace_file.exists()
        else environment.get("POD_NAMESPACE", "default")
    )
    return ClusterAccess(
        f"https://{f'[{host}]' if ':' in host else host}:{port}",
        namespace,
        folder / "token",
        ca_file=str(folder / "ca.crt"),
    )
