"""Access to a cluster for people, by KUBECONFIG and the credential programs that it names.

Source: Kubernetes documentation, "Organizing Cluster Access Using kubeconfig Files", "client-go credential
plugins".
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from csi.cluster.access import SERVICE_ACCOUNT, ClusterAccess, find_pod_access
from csi.cluster.kubeconfig import CredentialProgram, find_credential_program, load_kubeconfig, split_paths
from csi.errors import FailedPrecondition
from csi.linux.processes import run_interactively

_DEFAULT_KUBECONFIG = Path(".kube/config")
# Time for a person to log in, perhaps in a browser.
_LOGIN_TIMEOUT = 120.0
_NOT_FOUND_STATUS = 127


def find_user_access(
    file: Path | None = None,
    context: str = "",
    environment: Mapping[str, str] = os.environ,
    home: Path | None = None,
    account: Path = SERVICE_ACCOUNT,
) -> ClusterAccess:
    """Return the access to the cluster of a context, "" for the current one.

    The context is one of `file`, else of KUBECONFIG, else of ~/.kube/config; without those the access is this
    pod's. A credential program that the file names is run, and may ask on the terminal. Raises
    FailedPrecondition, InvalidParameter.
    """
    default_file = (home or Path.home()) / _DEFAULT_KUBECONFIG
    paths = [file] if file else split_paths(environment.get("KUBECONFIG", "")) or [default_file]
    if paths == [default_file] and not default_file.exists():
        if access := find_pod_access(environment, account):
            return access
        raise FailedPrecondition(
            f"no cluster is named: {default_file} does not exist, KUBECONFIG names no file, "
            "and this is not a pod; give --kubeconfig"
        )
    access, program = (
        load_kubeconfig(paths, context, allow_exec=True),
        find_credential_program(paths, context),
    )
    return _log_in(access, program, environment) if program else access


def _log_in(
    access: ClusterAccess, program: CredentialProgram, environment: Mapping[str, str]
) -> ClusterAccess:
    name = program.argv[0]
    exec_info: dict[str, Any] = {
        "interactive": program.is_interactive and sys.stdin.isatty(),
        **({"cluster": program.cluster_info} if program.cluster_info else {}),
    }
    exec_environment = {
        "KUBERNETES_EXEC_INFO": json.dumps(
            {"apiVersion": program.api_version, "kind": "ExecCredential", "spec": exec_info}
        )
    }
    result = run_interactively(
        program.argv, {**environment, **program.environment, **exec_environment}, _LOGIN_TIMEOUT
    )
    if result.status == _NOT_FOUND_STATUS:
        raise FailedPrecondition(
            f"{name}, which KUBECONFIG names for the credential, is not installed; "
            f"{program.install_hint or 'install it'}"
        )
    try:
        status = json.loads(result.output)["status"]
        credential = {key: status.get(status_key, "") for key, status_key in _CREDENTIAL_KEYS.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        credential = {}
    if result.status or not any(credential.values()):
        raise FailedPrecondition(
            f"{name}, which KUBECONFIG names for the credential, gave none (exit status {result.status}); "
            "try kubectl get nodes"
        )
    return replace(access, **credential)


# Fields of ClusterAccess, and those of an ExecCredential's status.
_CREDENTIAL_KEYS = {"token": "token", "certificate": "clientCertificateData", "key": "clientKeyData"}
