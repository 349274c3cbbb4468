"""What the chart's roles let the driver's programs do, and what these do, by the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.cluster.audit import Call, calls
from tests.cluster.installed import NAMESPACE, RELEASE
from tests.cluster.kubectl import Object
from tests.cluster.lab import Lab

# By what they call themselves; the two programs of ours have one name, and are told by their accounts.
_SIDECARS = {"csi-provisioner": "provisioner", "csi-resizer": "resizer"}
_ACCOUNT = f"system:serviceaccount:{NAMESPACE}:{RELEASE}-"
# Each is alone in its pod.
_ALONE = ("node", "operator")
SHARED = "controller's pod"
"""In place of a program: all programs of that pod, by the role that they share in the driver's namespace."""


class Right(NamedTuple):
    """What a role lets `program` do: to `verb` things of `resource`, as
    "cachepins.datacache.csi.io/status"."""

    program: str
    verb: str
    resource: str

    def __str__(self) -> str:
        return f"{self.program}: {self.verb} {self.resource}"


def granted(lab: Lab) -> set[Right]:
    """The rules of the installed chart's roles, taken apart."""
    roles = [
        role
        for kind in ("clusterrole", "role")
        for role in lab.kubectl.list(kind, "", f"app.kubernetes.io/instance={RELEASE}")
    ]
    return {right for role in roles for right in _rights(role)}


def used(lab: Lab, rights: set[Right]) -> set[Right]:
    """Those of `rights` that programs have used so far.

    AssertionError where one asked for what its roles do not let it.
    """
    asked = {
        (_right(call), call.namespace, call.forbidden)
        for call in calls(lab.plane.audit_log)
        if call.user.startswith(_ACCOUNT)
    }
    forbidden = sorted(f"{right} (namespace {namespace!r})" for right, namespace, refused in asked if refused)
    assert not forbidden, f"the API server refused this: {forbidden}"
    found = {_of(right, namespace, rights) for right, namespace, _ in asked}
    assert found <= rights, f"roles of other programs alone let these: {sorted(map(str, found - rights))}"
    return found


def _rights(role: Object) -> Iterator[Right]:
    about = role["metadata"]
    component = about["labels"]["app.kubernetes.io/component"]
    of_namespace = component if component in _ALONE else SHARED
    program = of_namespace if role["kind"] == "Role" else about["name"].removeprefix(f"{RELEASE}-")
    for rule in role["rules"]:
        for resource in rule["resources"]:
            yield from (
                Right(program, verb, _named(resource, group))
                for verb in rule["verbs"]
                for group in rule["apiGroups"]
            )


def _right(call: Call) -> Right:
    program = _SIDECARS.get(call.agent.partition("/")[0], call.user.removeprefix(_ACCOUNT))
    return Right(program, call.verb, _named(f"{call.resource}/{call.subresource}".rstrip("/"), call.group))


def _of(right: Right, namespace: str, rights: set[Right]) -> Right:
    shared = right._replace(program=SHARED)
    return shared if right.program not in _ALONE and namespace == NAMESPACE and shared in rights else right


def _named(resource: str, group: str) -> str:
    kind, slash, part = resource.partition("/")
    return f"{kind}.{group}".rstrip(".") + slash + part
