"""Where the Kubernetes API server is and who asks it; a pod asks with its service account.

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
# A projected token is replaced after 80 % of its life, which is ten minutes at least.
_TOKEN_REREAD_INTERVAL = 60.0


@dataclass(frozen=True)
class ClusterAccess:
    """How to reach one API server.

    `server` is its URL, `namespace` where this program's own objects go. The token is in `token_file`, which is read
    anew as it rotates, or is `token`. `ca_file` is a PEM file, "" for the machine's own trust; `certificate` and `key` are PEM
    texts of a client certificate, "" for none. `tls_name` is the name that its certificate has to be for, "" for the URL's host.
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
        """A context that trusts the server's CA, with the client certificate where there is one. Raises FailedPrecondition."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None, cadata=self.ca or None)
            if self.certificate:
                _load_client_certificate(context, self.certificate, self.key)
            return context
        except OSError as error:
            what = "the CA or client certificate of the Kubernetes API server"
            raise FailedPrecondition(
                f"{what} cannot be read ({self.ca_file or 'KUBECONFIG'}: {error.strerror or 'no PEM'}); put the file right"
            ) from None


def _load_client_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    # OpenSSL takes a file's name only; a memfd's is nobody else's, and gone with the descriptor.
    with os.fdopen(os.memfd_create("client-certificate"), "w") as file:
        file.write(f"{certificate}\n{key}")
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


class BearerToken:
    """The bearer token as it is now. Not thread-safe by itself; a race reads the file twice."""

    def __init__(self, access: ClusterAccess) -> None:
        self._file, self._token, self._read_at = access.token_file, access.token, float("-inf")

    def get(self, force_refresh: bool = False) -> str:
        """The token, "" for none; from its file where that was read more than a minute ago, or `force_refresh`. Raises FailedPrecondition."""
        if self._file and (force_refresh or time.monotonic() - self._read_at > _TOKEN_REREAD_INTERVAL):
            try:
                self._token, self._read_at = self._file.read_text().strip(), time.monotonic()
            except OSError as error:
                raise FailedPrecondition(
                    f"the service account's token {self._file} cannot be read: {error.strerror}; mount it into the pod"
                ) from error
        return self._token


def find_pod_access(
    environment: Mapping[str, str] = os.environ, folder: Path = SERVICE_ACCOUNT
) -> ClusterAccess | None:
    """The API server of the pod this is, which asks with its service account; None where this is no pod."""
    host, port = (
        environment.get("KUBERNETES_SERVICE_HOST", ""),
        environment.get("KUBERNETES_SERVICE_PORT", "443"),
    )
    if not host:
        return None
    name = folder / "namespace"
    namespace = name.read_text().strip() if name.exists() else environment.get("POD_NAMESPACE", "default")
    return ClusterAccess(
        f"https://{f'[{host}]' if ':' in host else host}:{port}",
        namespace,
        folder / "token",
        ca_file=str(folder / "ca.crt"),
    )
