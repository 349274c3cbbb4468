"""Pods as tests want them: objects to apply, gone at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.cluster.images import BUSYBOX
from tests.cluster.kubectl import Kubectl, Object


def pod(name: str, command: Sequence[str] = (), image: str = BUSYBOX, node: str = "", **spec: Any) -> Object:
    """A pod of one container, `main`, that runs `command` (default: the image's own), on `node` where that
    is said; `spec` goes into its spec."""
    container: Object = {"name": "main", "image": image, "imagePullPolicy": "Never"}
    if command:
        container["command"] = list(command)
    whole = {
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        **({"nodeName": node} if node else {}),
        **spec,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": whole,
    }


@contextmanager
def applied(kubectl: Kubectl, *objects: Object) -> Iterator[None]:
    """The objects are in the cluster for the block, and gone behind it, the last one first."""
    try:
        kubectl.apply(*objects)
        yield
    finally:
        for each in reversed(objects):
            about = each["metadata"]
            kubectl.delete(
                each["kind"], about["name"], about.get("namespace", "default"), "--ignore-not-found"
            )
