"""Kubeconfig files: the API server of a context, who asks it, and the program that people are logged in by.

Sources: Kubernetes documentation, "Organizing Cluster Access Using kubeconfig Files", "kubeconfig (v1)", "client-go credential plugins".
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi.cluster.access import SERVICE_ACCOUNT, Access, of_pod
from csi.errors import FailedPrecondition, InvalidParameter

_PARTS = {"contexts": "context", "clusters": "cluster", "users": "user"}
_FILES = {"clusters": ("certificate-authority",), "users": ("client-certificate", "client-key", "tokenFile")}
# What would have this program ask as somebody else, or on another way, than kubectl does: refused, not left out.
_UNKNOWN = {
    "users": ("auth-provider", "username", "as", "as-groups", "as-uid", "as-user-extra"),
    "clusters": ("insecure-skip-tls-verify", "proxy-url"),
}
_INSTEAD = {
    "insecure-skip-tls-verify": "give certificate-authority",
    "proxy-url": "run this in a pod, or where the server is reached without a proxy",
}
# What a program is told of its cluster, where it asks for that.
_TOLD = ("server", "tls-server-name", "certificate-authority-data")
_EXTENSION = "client.authentication.k8s.io/exec"


@dataclass(frozen=True)
class CredentialProgram:
    """A program that a kubeconfig names for a user's credential, and the variables that it wants.

    It speaks that `version` of ExecCredential, and is told of its `cluster` where that is not empty. `asks` is whether it may ask on the
    terminal, `hint` how it is had.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    version: str
    cluster: Mapping[str, Any]
    asks: bool
    hint: str


def find(environment: Mapping[str, str] = os.environ, folder: Path = SERVICE_ACCOUNT) -> Access:
    """The API server that KUBECONFIG names, else that of the pod this is. Raises FailedPrecondition where there is neither, InvalidParameter."""
    if environment.get("KUBECONFIG"):
        return kubeconfig(files(environment["KUBECONFIG"]))
    if access := of_pod(environment, folder):
        return access
    raise FailedPrecondition("--registry is kubernetes, but this is no pod (KUBERNETES_SERVICE_HOST is not set) and KUBECONFIG names no file")


def files(text: str) -> list[Path]:
    """The files that a value of KUBECONFIG names."""
    return [Path(name) for name in text.split(os.pathsep) if name]


def kubeconfig(paths: Sequence[Path], context: str = "", programs: bool = False) -> Access:
    """A context of kubeconfig files, the current one by default; the credential that a program is to give is left out with `programs`.

    Of what several files have, the first one's counts; files that are not there are left out, as long as one is. Raises InvalidParameter
    for what cannot be used, naming it and the place.
    """
    return _Chosen(paths, context).access(programs)


def credential_program(paths: Sequence[Path], context: str = "") -> CredentialProgram | None:
    """The program that the user of a context is logged in by, None for none; raises as `kubeconfig`."""
    return _Chosen(paths, context).program()


class _Chosen:
    """A context, its cluster and its user."""

    def __init__(self, paths: Sequence[Path], context: str) -> None:
        self._where = f"KUBECONFIG {os.pathsep.join(map(str, paths))}"
        try:
            merged, current = _merged(paths)
            name = context or current
            if context and context not in merged["contexts"]:
                raise InvalidParameter(f"{self._where} has no context {name!r}; kubectl config get-contexts lists them")
            self._context = merged["contexts"][name]
            self._cluster, self._user = merged["clusters"][self._context["cluster"]], merged["users"][self._context["user"]]
        except OSError as error:
            raise InvalidParameter(f"{self._where} cannot be read: {error.filename}: {error.strerror}") from error
        except (KeyError, TypeError, AttributeError, ValueError):
            raise self._none() from None

    def access(self, programs: bool) -> Access:
        self._check(programs)
        cluster, user = self._cluster, self._user
        try:
            return Access(
                cluster["server"].rstrip("/"),
                self._context.get("namespace") or "default",
                Path(user["tokenFile"]) if user.get("tokenFile") else None,
                user.get("token", ""),
                ca=_pem(cluster, "certificate-authority"),
                certificate=_pem(user, "client-certificate"),
                key=_pem(user, "client-key"),
                tls_name=cluster.get("tls-server-name", ""),
            )
        except OSError as error:
            raise InvalidParameter(f"{self._where}: {error.filename} cannot be read: {error.strerror}") from error
        except (KeyError, ValueError, AttributeError, TypeError):
            raise self._none() from None

    def program(self) -> CredentialProgram | None:
        found = self._user.get("exec")
        if not found:
            return None
        try:
            return CredentialProgram(
                (found["command"], *(found.get("args") or ())),
                {item["name"]: item["value"] for item in found.get("env") or ()},
                found["apiVersion"],
                self._told() if found.get("provideClusterInfo") else {},
                found.get("interactiveMode") != "Never",
                found.get("installHint") or "",
            )
        except (KeyError, TypeError, AttributeError):
            raise InvalidParameter(f"{self._where}: the exec of user {self._context['user']!r} has no command or no apiVersion") from None

    def _told(self) -> dict[str, Any]:
        told = {key: self._cluster[key] for key in _TOLD if key in self._cluster}
        if ca := _pem(self._cluster, "certificate-authority"):
            told["certificate-authority-data"] = base64.b64encode(ca.encode()).decode()
        config = [item["extension"] for item in self._cluster.get("extensions") or () if item["name"] == _EXTENSION]
        return told | ({"config": config[0]} if config else {})

    def _check(self, programs: bool) -> None:
        for kind, part, name in (("users", self._user, self._context["user"]), ("clusters", self._cluster, self._context["cluster"])):
            keys = (*_UNKNOWN[kind], *(() if programs or kind != "users" else ("exec",)))
            if unknown := next((key for key in keys if part.get(key)), ""):
                instead = _INSTEAD.get(unknown, "use a token or a client certificate")
                raise InvalidParameter(f"{self._where}: {_PARTS[kind]} {name!r} has {unknown}, which is not supported; {instead}")

    def _none(self) -> InvalidParameter:
        return InvalidParameter(f"{self._where} is no kubeconfig file with a current-context, its cluster and its user")


def _merged(paths: Sequence[Path]) -> tuple[dict[str, dict[str, Any]], str]:
    """What is called how in each of `_PARTS`, and the current context. Raises OSError where no file is there, and whatever no kubeconfig does."""
    merged: dict[str, dict[str, Any]] = {kinds: {} for kinds in _PARTS}
    current = ""
    for path in [path for path in paths if path.exists()] or paths[:1]:
        file = _parsed(path.read_text())
        current = current or file.get("current-context", "")
        for kinds, kind in _PARTS.items():
            for item in file.get(kinds) or ():
                merged[kinds].setdefault(item["name"], _placed(path.absolute().parent, kinds, item.get(kind) or {}))
    return merged, current


def _placed(folder: Path, kinds: str, part: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a file in `folder`, with the files that it names where they are; a program's name with a slash in it is a file's, too."""
    placed = dict(part) | {key: str(folder / part[key]) for key in _FILES.get(kinds, ()) if part.get(key)}
    program = placed.get("exec") or {}
    if "/" in program.get("command", ""):
        placed["exec"] = {**program, "command": str(folder / program["command"])}
    return placed


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


def _pem(part: Mapping[str, Any], key: str) -> str:
    if part.get(f"{key}-data"):
        return base64.b64decode(part[f"{key}-data"], validate=True).decode()
    return Path(part[key]).read_text() if part.get(key) else ""
