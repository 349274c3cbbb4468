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

from csi.cluster.access import SERVICE_ACCOUNT, Access, of_pod
from csi.cluster.kubeconfig import CredentialProgram, credential_program, files, kubeconfig
from csi.errors import FailedPrecondition
from csi.linux.processes import run_for_output

_DEFAULT = Path(".kube/config")
_LOGIN_SECONDS = 120.0
_NOT_FOUND = 127


def person(
    file: Path | None = None,
    context: str = "",
    environment: Mapping[str, str] = os.environ,
    home: Path | None = None,
    account: Path = SERVICE_ACCOUNT,
) -> Access:
    """The cluster of a context ("" for the current one): of `file`, else of KUBECONFIG, else of ~/.kube/config, else of the pod this is.

    A program that the file names for a credential is run, and may ask on the terminal. Raises FailedPrecondition, InvalidParameter.
    """
    usual = (home or Path.home()) / _DEFAULT
    paths = [file] if file else files(environment.get("KUBECONFIG", "")) or [usual]
    if paths == [usual] and not usual.exists():
        if access := of_pod(environment, account):
            return access
        raise FailedPrecondition(f"no cluster is named: there is no {usual}, KUBECONFIG names no file, and this is no pod; give --kubeconfig")
    access, program = kubeconfig(paths, context, programs=True), credential_program(paths, context)
    return _logged_in(access, program, environment) if program else access


def _logged_in(access: Access, program: CredentialProgram, environment: Mapping[str, str]) -> Access:
    name = program.argv[0]
    asked: dict[str, Any] = {"interactive": program.asks and sys.stdin.isatty(), **({"cluster": program.cluster} if program.cluster else {})}
    told = {"KUBERNETES_EXEC_INFO": json.dumps({"apiVersion": program.version, "kind": "ExecCredential", "spec": asked})}
    done = run_for_output(program.argv, {**environment, **program.environment, **told}, _LOGIN_SECONDS)
    if done.status == _NOT_FOUND:
        raise FailedPrecondition(f"{name}, which KUBECONFIG names for the credential, is not there; {program.hint or 'install it'}")
    try:
        given = json.loads(done.output)["status"]
        credential = {key: given.get(of_program, "") for key, of_program in _CREDENTIAL.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        credential = {}
    if done.status or not any(credential.values()):
        raise FailedPrecondition(f"{name}, which KUBECONFIG names for the credential, gave none (exit status {done.status}); try kubectl get nodes")
    return replace(access, **credential)


_CREDENTIAL = {"token": "token", "certificate": "clientCertificateData", "key": "clientKeyData"}
