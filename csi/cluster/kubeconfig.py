"""Kubeconfig files: the API server of a context, its user's credentials, and the program that provides them.

Sources: Kubernetes documentation, "Organizing Cluster Access Using kubeconfig Files", "kubeconfig (v1)",
"client-go credential plugins".
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi.cluster.access import SERVICE_ACCOUNT, ClusterAccess, find_pod_access
from csi.errors import FailedPrecondition, InvalidParameter

_SECTIONS = {"contexts": "context", "clusters": "cluster", "users": "user"}
_FILE_KEYS = {
    "clusters": ("certificate-authority",),
    "users": ("client-certificate", "client-key", "tokenFile"),
}
# Keys that change who calls, or the route, in ways this program cannot follow: rejected rather than ignored.
_UNSUPPORTED_KEYS = {
    "users": ("auth-provider", "username", "as", "as-groups", "as-uid", "as-user-extra"),
    "clusters": ("insecure-skip-tls-verify", "proxy-url"),
}
_ALTERNATIVES = {
    "insecure-skip-tls-verify": "give certificate-authority",
    "proxy-url": "run this in a pod, or where the server is reached without a proxy",
}
# Keys of the cluster that a credential program receives on request.
_CLUSTER_INFO_KEYS = ("server", "tls-server-name", "certificate-authority-data")
_EXTENSION = "client.authentication.k8s.io/exec"


@dataclass(frozen=True)
class CredentialProgram:
    """Credential plugin of a kubeconfig user, with the environment variables it is given.

    It speaks the `api_version` of ExecCredential, and receives `cluster_info` unless that is empty.
    `is_interactive` allows it to use the terminal; `install_hint` says how to install it.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    api_version: str
    cluster_info: Mapping[str, Any]
    is_interactive: bool
    install_hint: str


def find_cluster_access(
    environment: Mapping[str, str] = os.environ, folder: Path = SERVICE_ACCOUNT
) -> ClusterAccess:
    """Return the access that KUBECONFIG names, else that of the pod this program runs in.

    Raises FailedPrecondition if there is neither, InvalidParameter for a bad file.
    """
    if environment.get("KUBECONFIG"):
        return load_kubeconfig(split_paths(environment["KUBECONFIG"]))
    if access := find_pod_access(environment, folder):
        return access
    raise FailedPrecondition(
        "--registry is kubernetes, but this is not a pod (KUBERNETES_SERVICE_HOST is not set) "
        "and KUBECONFIG names no file; set one of them"
    )


def split_paths(text: str) -> list[Path]:
    """Return the files that a value of KUBECONFIG names."""
    return [Path(name) for name in text.split(os.pathsep) if name]


def load_kubeconfig(paths: Sequence[Path], context: str = "", allow_exec: bool = False) -> ClusterAccess:
    """Return the access of a context, by default the current one.

    With `allow_exec` a user's credential program is accepted, and its credential is left out.

    If several files define an entry, the first one counts. Missing files are ignored as long as one exists.
    Raises InvalidParameter, naming the key and the file, for what cannot be used.
    """
    return _SelectedContext(paths, context).build_access(allow_exec)


def find_credential_program(paths: Sequence[Path], context: str = "") -> CredentialProgram | None:
    """Return the credential program of a context's user, None if it has none. Raises as `load_kubeconfig`."""
    return _SelectedContext(paths, context).get_credential_program()


class _SelectedContext:
    """A context with its cluster and its user."""

    def __init__(self, paths: Sequence[Path], context: str) -> None:
        self._description = f"KUBECONFIG {os.pathsep.join(map(str, paths))}"
        try:
            merged, current = _merge_files(paths)
            name = context or current
            if context and context not in merged["contexts"]:
                raise InvalidParameter(
                    f"{self._description} has no context {name!r}; kubectl config get-contexts lists them"
                )
            self._context = merged["contexts"][name]
            self._cluster, self._user = (
                merged["clusters"][self._context["cluster"]],
                merged["users"][self._context["user"]],
            )
        except OSError as error:
            raise InvalidParameter(
                f"{self._description} cannot be read: {error.filename}: {error.strerror}"
            ) from error
        except (KeyError, TypeError, AttributeError, ValueError):
            raise self._malformed_error() from None

    def build_access(self, allow_exec: bool) -> ClusterAccess:
        self._check_supported(allow_exec)
        cluster, user = self._cluster, self._user
        try:
            return ClusterAccess(
                cluster["server"].rstrip("/"),
                self._context.get("namespace") or "default",
                Path(user["tokenFile"]) if user.get("tokenFile") else None,
                user.get("token", ""),
                ca=_read_pem(cluster, "certificate-authority"),
                certificate=_read_pem(user, "client-certificate"),
                key=_read_pem(user, "client-key"),
                tls_name=cluster.get("tls-server-name", ""),
            )
        except OSError as error:
            raise InvalidParameter(
                f"{self._description}: {error.filename} cannot be read: {error.strerror}"
            ) from error
        except (KeyError, ValueError, AttributeError, TypeError):
            raise self._malformed_error() from None

    def get_credential_program(self) -> CredentialProgram | None:
        exec_config = self._user.get("exec")
        if not exec_config:
            return None
        try:
            return CredentialProgram(
                (exec_config["command"], *(exec_config.get("args") or ())),
                {item["name"]: item["value"] for item in exec_config.get("env") or ()},
                exec_config["apiVersion"],
                self._build_cluster_info() if exec_config.get("provideClusterInfo") else {},
                exec_config.get("interactiveMode") != "Never",
                exec_config.get("installHint") or "",
            )
        except (KeyError, TypeError, AttributeError):
            raise InvalidParameter(
                f"{self._description}: the exec of user {self._context['user']!r} has no command "
                "or no apiVersion; add it"
            ) from None

    def _build_cluster_info(self) -> dict[str, Any]:
        info = {key: self._cluster[key] for key in _CLUSTER_INFO_KEYS if key in self._cluster}
        if ca := _read_pem(self._cluster, "certificate-authority"):
            info["certificate-authority-data"] = base64.b64encode(ca.encode()).decode()
        config = [
            item["extension"] for item in self._cluster.get("extensions") or () if item["name"] == _EXTENSION
        ]
        return info | ({"config": config[0]} if config else {})

    def _check_supported(self, allow_exec: bool) -> None:
        for kind, part, name in (
            ("users", self._user, self._context["user"]),
            ("clusters", self._cluster, self._context["cluster"]),
        ):
            keys = (*_UNSUPPORTED_KEYS[kind], *(() if allow_exec or kind != "users" else ("exec",)))
            if unknown := next((key for key in keys if part.get(key)), ""):
                instead = _ALTERNATIVES.get(unknown, "use a token or a client certificate")
                raise InvalidParameter(
                    f"{self._description}: {_SECTIONS[kind]} {name!r} has {unknown}, "
                    f"which is not supported; {instead}"
                )

    def _malformed_error(self) -> InvalidParameter:
        return InvalidParameter(
            f"{self._description} is not a kubeconfig file with a current-context, its cluster and its user"
        )


def _merge_files(paths: Sequence[Path]) -> tuple[dict[str, dict[str, Any]], str]:
    """Merge files into the entries of each of `_SECTIONS` by name, and the current context.

    Raises OSError if no file exists, and any error of malformed data.
    """
    merged: dict[str, dict[str, Any]] = {kinds: {} for kinds in _SECTIONS}
    current = ""
    for path in [path for path in paths if path.exists()] or paths[:1]:
        file = _parse_file(path.read_text())
        current = current or file.get("current-context", "")
        for kinds, kind in _SECTIONS.items():
            for item in file.get(kinds) or ():
                merged[kinds].setdefault(
                    item["name"], _resolve_file_paths(path.absolute().parent, kinds, item.get(kind) or {})
                )
    return merged, current


def _resolve_file_paths(folder: Path, kinds: str, part: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve the file names in a part of a file in `folder`.

    As with kubectl, a program's name is a path if it contains a slash.
    """
    resolved = dict(part) | {
        key: str(folder / part[key]) for key in _FILE_KEYS.get(kinds, ()) if part.get(key)
    }
    exec_config = resolved.get("exec") or {}
    if "/" in exec_config.get("command", ""):
        resolved["exec"] = {**exec_config, "command": str(folder / exec_config["command"])}
    return resolved


def _parse_file(text: str) -> Any:
    """Parse JSON or YAML. Raises ValueError if it is neither."""
    try:
        return json.loads(text)
    except ValueError:
        import yaml  # 3 MB, saved in a pod and for JSON

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError("not YAML") from None


def _read_pem(part: Mapping[str, Any], key: str) -> str:
    if part.get(f"{key}-data"):
        return base64.b64decode(part[f"{key}-data"], validate=True).decode()
    return Path(part[key]).read_text() if part.get(key) else ""
