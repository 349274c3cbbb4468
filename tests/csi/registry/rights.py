"""The least rights that each program needs of the cluster for its registry, as rules of roles."""

from __future__ import annotations

import itertools
from typing import Any

from tests.apiserver import ApiServer

Rule = tuple[str, str, str]
_GROUP, _RBAC = "datacache.csi.io", "rbac.authorization.k8s.io"
NODE_RIGHTS: list[Rule] = [
    *((_GROUP, "cachevolumes", verb) for verb in ("get", "list", "watch")),
    # The pins of the inline volumes that the node shows, in any namespace.
    *((_GROUP, "cachepins", verb) for verb in ("get", "list", "create", "patch", "delete")),
]
CONTROLLER_RIGHTS: list[Rule] = [
    *NODE_RIGHTS,
    # Server-side apply is a patch, which needs "create" too where the object is not there.
    *((_GROUP, "cachevolumes", verb) for verb in ("create", "patch", "delete")),
    (_GROUP, "cachevolumes/status", "patch"),
    # Beside what a node does with pins: their status.
    (_GROUP, "cachepins", "watch"),
    (_GROUP, "cachepins/status", "patch"),
    # Whether the nodes that stand in pins and statuses are still there.
    (_GROUP, "cacheprewarms", "list"),
    (_GROUP, "cacheprewarms/status", "patch"),
    ("", "nodes", "list"),
    # The annotations of PVCs, where StorageClasses list some.
    ("", "persistentvolumeclaims", "get"),
    # In the controller's own namespace alone.
    *(("coordination.k8s.io", "leases", verb) for verb in ("get", "create", "update")),
]
# Both tell people by Events, of pods and PVCs in any namespace.
CONTROLLER_EVENT_RIGHTS: list[Rule] = [("", "events", verb) for verb in ("create", "patch")]
# Nodes show how full the images of their volumes are.
NODE_TELLING_RIGHTS: list[Rule] = [*CONTROLLER_EVENT_RIGHTS, (_GROUP, "cachevolumes/status", "patch")]
# What a node is to have before pods ask for it: the objects, its own labels, and what PVCs hold that objects
# name.
NODE_PREWARM_RIGHTS: list[Rule] = [
    *((_GROUP, "cacheprewarms", verb) for verb in ("get", "list", "watch")),
    (_GROUP, "cacheprewarms/status", "patch"),
    ("", "nodes", "get"),
    ("", "persistentvolumeclaims", "get"),
]
# By name, in the namespaces alone in which an operator lets CachePrewarms name Secrets.
NODE_SECRET_RIGHTS: list[Rule] = [("", "secrets", "get")]
_names = itertools.count(1)


def grant(cluster: ApiServer, user: str, rights: list[Rule]) -> None:
    """Give `user` these rights and no other, from a moment later on."""
    name = f"{user}-{next(_names)}"
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": [verb]} for group, resource, verb in rights
    ]
    subject, role = (
        {"kind": "User", "name": user, "apiGroup": _RBAC},
        {"kind": "ClusterRole", "name": name, "apiGroup": _RBAC},
    )
    cluster.kubectl("delete", "clusterrolebinding,clusterrole", "-l", f"test/user={user}")
    items = [
        _object("ClusterRole", user, name, rules=rules),
        _object("ClusterRoleBinding", user, name, subjects=[subject], roleRef=role),
    ]
    cluster.kubectl("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": items})


def _object(kind: str, user: str, name: str, **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": kind,
        "metadata": {"name": name, "labels": {"test/user": user}},
        **more,
    }
