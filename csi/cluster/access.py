"""Where the Kubernetes API server is and who asks it: a pod's service account, or the file that KUBECONFIG names.

Sources: Kubernetes documentation, "Accessing the Kubernetes API from a Pod" and "Organizing Cluster Access Using
kubeconfig Files".
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csi.errors import FailedPrecondition, InvalidParameter

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# A projected token is replaced after 80 % of its life, which is ten minutes at least.
_TOKEN_SECONDS = 60.0


@dataclass(frozen=True)
class Access:
    """How to reach one API server.

    `server` is its URL, `namespace` where this program's own objects go. The token is in `token_file`, which is read
    anew as it rotates, or is `token`. `ca_file` is a PEM file, "" for the machine's own trust; `certificate` and `key` are PEM
    texts of a client certificate, "" for none.
    """

    server: str
    namespace: str = "default"
    token_file: Path | None = None
    token: str = field(default="", repr=False)
    ca_file: str = ""
    ca: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)
    key: str = field(default="", repr=False)

    def tls(self) -> ssl.SSLContext:
        """A context that trusts the server's CA, with the client certificate where there is one. Raises FailedPrecondition."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None, cadata=self.ca or None)
            if self.certificate:
                _load_certificate(context, self.certificate, self.key)
            return context
        except OSError as error:
            what = "the CA or client certificate of the Kubernetes API server"
            raise FailedPrecondition(
                f"{what} cannot be read ({self.ca_file or 'KUBECONFIG'}: {error.strerror or 'no PEM'}); put the file right"
            ) from None


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    # OpenSSL takes a file's name only; a memfd's is nobody else's, and gone with the descriptor.
    with os.fdopen(os.memfd_create("client-certificate"), "w") as file:
        file.write(f"{certificate}\n{key}")
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


class Token:
    """The bearer token as it is now. Not thread-safe by itself; a race reads the file twice."""

    def __init__(self, access: Access) -> None:
        self._file, self._text, self._read = access.token_file, access.token, float("-inf")

    def now(self, anew: bool = False) -> str:
        """The token, "" for none; from its file where that was read more than a minute ago, or `anew`. Raises FailedPrecondition."""
        if self._file and (anew or time.monotonic() - self._read > _TOKEN_SECONDS):
            try:
                self._text, self._read = self._file.read_text().strip(), time.monotonic()
            except OSError as error:
                raise FailedPrecondition(
                    f"the service account's token {self._file} cannot be read: {error.strerror}; mount it into the pod"
                ) from error
        return self._text


def find(environment: Mapping[str, str] = os.environ, folder: Path = SERVICE_ACCOUNT) -> Access:
    """The API server that KUBECONFIG names, else that of the pod this is. Raises FailedPrecondition where there is neither, InvalidParameter."""
    if environment.get("KUBECONFIG"):
        return kubeconfig(Path(environment["KUBECONFIG"]))
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise FailedPrecondition("--registry is kubernetes, but this is no pod (KUBERNETES_SERVICE_HOST is not set) and KUBECONFIG names no file")
    name = folder / "namespace"
    namespace = name.read_text().strip() if name.exists() else environment.get("POD_NAMESPACE", "default")
    return Access(f"https://{f'[{host}]' if ':' in host else host}:{port}", namespace, folder / "token", ca_file=str(folder / "ca.crt"))


@dataclass(frozen=True)
class CredentialProgram:
    """A program that a kubeconfig names for a user's credential, the variables it wants, and the version of ExecCredential that it speaks."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    version: str


def kubeconfig(path: Path, context: str = "", programs: bool = False) -> Access:
    """A context of a kubeconfig file, the current one by default; the credential that a program is to give is left out with `programs`.

    Raises InvalidParameter for a file that cannot be used, naming it and the place.
    """
    found, cluster, user = _chosen(path, context)
    return _of_kubeconfig(path, found, cluster, user, programs)


def credential_program(path: Path, context: str = "") -> CredentialProgram | None:
    """The program that the user of a context is logged in by, None for none; raises as `kubeconfig`."""
    found = _chosen(path, context)[2].get("exec")
    if not found:
        return None
    environment = {item["name"]: item["value"] for item in found.get("env") or ()}
    return CredentialProgram((found["command"], *(found.get("args") or ())), environment, found["apiVersion"])


def _chosen(path: Path, name: str) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    """The context, its cluster and its user."""
    try:
        file = _parsed(path.read_text())
        if name and all(item["name"] != name for item in file["contexts"]):
            raise InvalidParameter(f"KUBECONFIG {path} has no context {name!r}; kubectl config get-contexts lists them")
        context = _named(file, "contexts", "context", name or file["current-context"])
        return context, _named(file, "clusters", "cluster", context["cluster"]), _named(file, "users", "user", context["user"])
    except OSError as error:
        raise InvalidParameter(f"KUBECONFIG {path} cannot be read: {error.strerror}; name one file") from error
    except (KeyError, TypeError, StopIteration, ValueError):
        raise InvalidParameter(f"KUBECONFIG {path} is no kubeconfig file with a current-context, its cluster and its user") from None


def _parsed(text: str) -> Any:
    """Raises ValueError where it is neither JSON nor YAML."""
    try:
        return json.loads(text)
    except ValueError:
        import yaml  # 3 MB that neither a pod nor JSON pays

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError("no YAML") from None


def _of_kubeconfig(path: Path, context: Mapping[str, Any], cluster: Mapping[str, Any], user: Mapping[str, Any], programs: bool) -> Access:
    for key in ("exec", "auth-provider", "username"):
        if key in user and not (key == "exec" and programs):
            raise InvalidParameter(
                f"KUBECONFIG {path}: user {context['user']!r} has {key}, which is not supported; use a token or a client certificate"
            )
    if cluster.get("insecure-skip-tls-verify"):
        raise InvalidParameter(f"KUBECONFIG {path}: insecure-skip-tls-verify is not supported; give certificate-authority")
    token_file = user.get("tokenFile")
    try:
        return Access(
            cluster["server"].rstrip("/"),
            context.get("namespace") or "default",
            path.parent / token_file if token_file else None,
            user.get("token", ""),
            ca=_pem(path, cluster, "certificate-authority"),
            certificate=_pem(path, user, "client-certificate"),
            key=_pem(path, user, "client-key"),
        )
    except OSError as error:
        raise InvalidParameter(f"KUBECONFIG {path}: {error.filename} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError):
        raise InvalidParameter(f"KUBECONFIG {path} is no kubeconfig file with a current-context, its cluster and its user") from None


def _named(file: Mapping[str, Any], kinds: str, kind: str, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(item[kind] for item in file[kinds] if item["name"] == name)
    return found


def _pem(path: Path, part: Mapping[str, Any], key: str) -> str:
    if f"{key}-data" in part:
        return base64.b64decode(part[f"{key}-data"], validate=True).decode()
    return (path.parent / part[key]).read_text() if key in part else ""
