"""How a person reaches a cluster: as kubectl does, by the files of KUBECONFIG and the programs that they name for a credential.

Source: Kubernetes documentation, "Organizing Cluster Access Using kubeconfig Files", "client-go credential plugins".
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from csi.cluster.access import Access, credential_program, find, kubeconfig
from csi.errors import FailedPrecondition
from csi.run import run_for_output

_DEFAULT = Path(".kube/config")
_LOGIN_SECONDS = 120.0


def person(context: str = "", environment: Mapping[str, str] = os.environ, home: Path | None = None) -> Access:
    """The cluster of a context ("" for the current one): of KUBECONFIG, else of ~/.kube/config, else of the pod this is.

    A program that the file names for a credential is run, and may ask on the terminal. Raises FailedPrecondition, InvalidParameter.
    """
    named = environment.get("KUBECONFIG", "").split(os.pathsep)[0]
    path = Path(named) if named else (home or Path.home()) / _DEFAULT
    if not named and not path.exists():
        return find(environment)
    access = kubeconfig(path, context, programs=True)
    program = credential_program(path, context)
    return _logged_in(access, program.argv, {**environment, **program.environment}, program.version) if program else access


def _logged_in(access: Access, argv: tuple[str, ...], environment: Mapping[str, str], version: str) -> Access:
    asked = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": True}}
    done = run_for_output(argv, {**environment, "KUBERNETES_EXEC_INFO": json.dumps(asked)}, _LOGIN_SECONDS)
    try:
        status = json.loads(done.output)["status"] if done.status == 0 else None
    except (ValueError, KeyError, TypeError):
        status = None
    if not isinstance(status, dict):
        raise FailedPrecondition(
            f"{argv[0]}, which KUBECONFIG names for the credential, gave none (exit status {done.status}); try kubectl get nodes"
        )
    return replace(
        access,
        token=status.get("token", ""),
        certificate=status.get("clientCertificateData", ""),
        key=status.get("clientKeyData", ""),
    )
