"""A whole cluster for a block: `with running(nodes=2) as lab`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster import cgroups, images, network, programs
from tests.cluster.authority import Authority
from tests.cluster.control_plane import MOST_NODES, ControlPlane
from tests.cluster.images import Archive
from tests.cluster.kubectl import Kubectl
from tests.cluster.node import Node, machine
from tests.cluster.spaces import Space
from tests.guest.cache import run_folder


@dataclass
class Lab:
    """A running cluster. `folder` has its logs and all that it writes, and goes with it."""

    folder: Path
    programs: Path
    groups: cgroups.Groups
    plane: ControlPlane
    kubectl: Kubectl
    stack: ExitStack
    nodes: list[Node] = field(default_factory=list)
    archives: list[Archive] = field(default_factory=list)

    @property
    def outside(self) -> tuple[str, str]:
        """Two addresses of this machine for pods: what listens there is reached from the whole lab."""
        return self.plane.network.outside, self.plane.network.outside_too

    def add_node(self, erofs: bool = True) -> Node:
        """One more node, Ready and with the images that the others have.

        Without `erofs`, none of its containers sees that its kernel has it.
        """
        number = min(set(range(1, MOST_NODES + 1)) - {node.number for node in self.nodes})
        name = f"node-{number}"
        space = machine(self.folder / name, name, self.groups.within(name))
        added = Node(number, space, self.plane, self.programs, erofs)
        self.nodes.append(added)
        self.stack.callback(added.stop)
        added.start()
        added.load(*self.archives)
        added.wait_ready(self.kubectl)
        return added

    def remove_node(self, node: Node) -> None:
        """Switch a node off for good: the cluster does not know it any more, and its disk is gone."""
        node.stop()
        self.nodes.remove(node)
        self.kubectl.delete("node", node.name)
        shutil.rmtree(node.space.folder)

    @contextmanager
    def extra_node(self, erofs: bool = True) -> Iterator[Node]:
        """One more node for the block, and removed behind it."""
        node = self.add_node(erofs)
        try:
            yield node
        finally:
            self.remove_node(node)

    def load(self, *archives: Archive) -> None:
        """Bring images to all nodes, those to come included."""
        self.archives.extend(archives)
        for node in self.nodes:
            node.load(*archives)

    def check(self) -> None:
        """AssertionError where a program of the cluster has ended."""
        self.plane.check()
        for node in self.nodes:
            node.check()

    def logs(self, lines: int = 15) -> str:
        """The end of every log."""
        files = sorted(self.folder.glob("*/*.log"))
        ends = [
            (file, file.read_text(errors="replace").splitlines()[-lines:])
            for file in files
            if file.name != "audit.log"
        ]
        return "\n".join(f"--- {file.parent.name}/{file.name}\n" + "\n".join(end) for file, end in ends)


@contextmanager
def running(nodes: int = 1) -> Iterator[Lab]:
    """A cluster with nodes that are Ready and know the image busybox.

    Everything goes at the end, however that comes.
    """
    cache, found = programs.cache(), programs.folder()
    cache.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = stack.enter_context(run_folder(cache))
        groups = stack.enter_context(cgroups.for_run(folder))
        space = stack.enter_context(
            Space("control-plane", folder / "control-plane", groups.within("control-plane"))
        )
        plane = ControlPlane(
            space, stack.enter_context(network.joined(space)), found, Authority(folder / "identities")
        )
        lab = Lab(folder, found, groups, plane, plane.start(), stack)
        try:
            lab.load(images.busybox(folder, images.PAUSE), images.busybox(folder))
            for _ in range(nodes):
                lab.add_node()
            yield lab
        except Exception:
            print(lab.logs(), file=sys.stderr)
            raise
