"""The driver as an operator installs it: the chart, with the real image and the real sidecars."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.images import Archive
from tests.cluster.kubectl import Object
from tests.cluster.lab import Lab
from tests.cluster.node import Node
from tests.cluster.programs import TREE

CHART = TREE / "deploy/chart/datacache-csi"
NAMESPACE, RELEASE = "datacache-csi", "datacache-csi"
PLUGINS = "/var/lib/kubelet/plugins/datacache.csi.io"
_HELM_SECONDS = 300.0


@dataclass(frozen=True)
class Driver:
    """The installed driver in `lab`, with the chart's `values`."""

    lab: Lab
    values: Object

    def replace(self, tree: Path, image: Archive) -> None:
        """Have the chart and the image of the checkout at `tree` in its place.

        All pods are that and ready then.
        """
        values = {**self.values, "image": _image(image)}
        _helm(
            self.lab,
            "upgrade",
            RELEASE,
            str(tree / CHART.relative_to(TREE)),
            "--values",
            "-",
            input=json.dumps(values),
        )

    def changed(self, **values: Any) -> Driver:
        """The same driver with other values of the chart beside those it has; all pods are ready then."""
        other = Driver(self.lab, {**self.values, **values})
        _helm(self.lab, "upgrade", RELEASE, str(CHART), "--values", "-", input=json.dumps(other.values))
        return other

    def uninstall(self) -> None:
        """Have it removed, as at the end; not to be used after that."""
        _helm(self.lab, "uninstall", RELEASE, "--wait", "--ignore-not-found")

    def node_pod(self, node: Node) -> str:
        """The name of the pod that is the node plugin there."""
        return self.pod("node", node.name)["metadata"]["name"]  # type: ignore[no-any-return]

    def pod(self, component: str, node: str = "") -> Object:
        """A pod of the controller, the node plugin or the operator that is not on its way out."""
        pods = self.lab.kubectl.list("pod", NAMESPACE, f"app.kubernetes.io/component={component}")
        return next(one for one in pods if lives(one) and node in ("", one["spec"].get("nodeName")))

    def in_node(self, node: Node, *argv: str) -> str:
        """What a program in the node plugin's container says."""
        return self.lab.kubectl.exec(self.node_pod(node), argv, NAMESPACE)

    def images(self, node: Node) -> list[str]:
        """Digests of the images in the node's store."""
        return sorted(path.name for path in (node.root / "var/lib/datacache/images").glob("*"))

    def mounts(self, node: Node) -> list[str]:
        """Targets of the driver's mounts that the node has: of images and pods (EROFS), and markers at
        staging paths."""
        lines = node.space.run("cat", "/proc/self/mountinfo").splitlines()
        targets = [line.split()[4] for line in lines if " - erofs " in line or " - tmpfs datacache:" in line]
        return [target for target in targets if target.startswith("/var/lib/kubelet/")]

    def loops(self, node: Node) -> list[str]:
        """The loop devices over images of the node's store."""
        return loops_over(image_files(node))


def image_files(node: Node) -> set[tuple[str, int]]:
    """Device and inode of each file in the images of the node's store."""
    files = [image.stat() for image in (node.root / "var/lib/datacache/images").glob("*/*")]
    return {(f"{os.major(file.st_dev)}:{os.minor(file.st_dev)}", file.st_ino) for file in files}


def loops_over(files: set[tuple[str, int]]) -> list[str]:
    """This machine's loop devices, which its nodes share, over one of these files."""
    argv = ["losetup", "--list", "--json", "--output", "NAME,BACK-INO,BACK-MAJ:MIN"]
    asked = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    found = json.loads(asked)["loopdevices"] if asked else []
    return [loop["name"] for loop in found if (loop["back-maj:min"].strip(), int(loop["back-ino"])) in files]


def lives(thing: Object) -> bool:
    """Whether it is not being deleted."""
    return "deletionTimestamp" not in thing["metadata"]


@contextmanager
def installed(
    lab: Lab, image: Archive, sidecars: Sequence[Archive], hub: str, **more: Any
) -> Iterator[Driver]:
    """The chart is installed for the block, all its pods ready.

    `hub` is the address of the hub, `more` are further values.
    """
    lab.kubectl.run("apply", "-f", str(TREE / "deploy/namespace.yaml"))
    origins = [f"{address}/32" for address in lab.outside]
    values = {
        "image": _image(image),
        "controller": {
            "replicas": 1,
            # No test waits ten minutes for what a node that is gone has left.
            "extraArgs": ["--sweep-interval=3s"],
            "provisioner": {"image": _image(sidecars[0])},
            "resizer": {"image": _image(sidecars[1])},
        },
        "node": {"loadModules": False},
        "hfEndpoint": hub,
        "allowOrigins": origins,
        "allowInlineNas": ["*"],
        **more,
    }
    _helm(lab, "install", RELEASE, str(CHART), "--values", "-", input=json.dumps(values))
    try:
        yield Driver(lab, values)
    finally:
        _helm(lab, "uninstall", RELEASE, "--wait", "--ignore-not-found")


def _helm(lab: Lab, *words: str, input: str = "") -> None:
    command = [
        str(lab.programs / "helm"),
        "--kubeconfig",
        str(lab.kubectl.kubeconfig),
        "--namespace",
        NAMESPACE,
        *words,
    ]
    if words[0] in ("install", "upgrade"):
        command += ["--wait", "--timeout", "3m"]
    done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=_HELM_SECONDS)
    if done.returncode:
        pods = lab.kubectl.run("-n", NAMESPACE, "describe", "pods")
        raise AssertionError(f"helm {words[0]}: {done.stderr}\n{pods[-6000:]}")


def _image(archive: Archive) -> Object:
    repository, _, tag = archive.name.rpartition(":")
    return {"repository": repository, "tag": tag, "pullPolicy": "Never"}
