"""How a person reaches a cluster: as kubectl does, by the files of KUBECONFIG and the programs that they name for a credential.

Source: Kubernetes documentation, "Organizing Cluster Access Using kubeconfig Files", "client-go credential plugins".
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
_LOGIN_TIMEOUT = 120.0
_NOT_FOUND_STATUS = 127


def find_user_access(
    file: Path | None = None,
    context: str = "",
    environment: Mapping[str, str] = os.environ,
    home: Path | None = None,
    account: Path = SERVICE_ACCOUNT,
) -> ClusterAccess:
    """The cluster of a context ("" for the current one): of `file`, else of KUBECONFIG, else of ~/.kube/config, else of the pod this is.

    A program that the file names for a credential is run, and may ask on the terminal. Raises FailedPrecondition, InvalidParameter.
    """
    usual = (home or Path.home()) / _DEFAULT_KUBECONFIG
    paths = [file] if file else split_paths(environment.get("KUBECONFIG", "")) or [usual]
    if paths == [usual] and not usual.exists():
        if access := find_pod_access(environment, account):
            return access
        raise FailedPrecondition(
            f"no cluster is named: there is no {usual}, KUBECONFIG names no file, and this is no pod; give --kubeconfig"
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
    told = {
        "KUBERNETES_EXEC_INFO": json.dumps(
            {"apiVersion": program.api_version, "kind": "ExecCredential", "spec": exec_info}
        )
    }
    done = run_interactively(program.argv, {**environment, **program.environment, **told}, _LOGIN_TIMEOUT)
    if done.status == _NOT_FOUND_STATUS:
        raise FailedPrecondition(
            f"{name}, which KUBECONFIG names for the credential, is not there; {program.install_hint or 'install it'}"
        )
    try:
        given = json.loads(done.output)["status"]
        credential = {key: given.get(of_program, "") for key, of_program in _CREDENTIAL_KEYS.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        credential = {}
    if done.status or not any(credential.values()):
        raise FailedPrecondition(
            f"{name}, which KUBECONFIG names for the credential, gave none (exit status {done.status}); try kubectl get nodes"
        )
    return replace(access, **credential)


_CREDENTIAL_KEYS = {"token": "token", "certificate": "clientCertificateData", "key": "clientKeyData"}
