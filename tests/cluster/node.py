"""A node: containerd and kubelet in a space of their own, with folders of their own where every node has
them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster import network
from tests.cluster.cgroups import Groups
from tests.cluster.control_plane import ControlPlane
from tests.cluster.images import PAUSE, Archive
from tests.cluster.kubectl import Kubectl, condition
from tests.cluster.spaces import Daemon, Space, wait_for

CNI = Path("/usr/lib/cni")
_SOCKET = "/run/containerd/containerd.sock"
_START_SECONDS = 60.0
_PODS = 250
# What a node has of its own: folders that it keeps when it is switched off, and folders that it forgets.
_DISK = (Path("/var/lib"), Path("/var/log"))
_MEMORY = (Path("/run"),)

_CONTAINERD = """
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "{socket}"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
{spec}
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{programs}/runc"
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{cni}"]
conf_dir = "{folder}/cni"
"""

# Run by runc (OCI runtime specification, createContainer) with the container's state on its input; its bundle
# is what runs in its root file system.
_HOOK = """#!/bin/sh
set -eu
bundle=$(sed 's/.*"bundle": *"\\([^"]*\\)".*/\\1/')
exec mount --bind {listed} "$bundle/rootfs/proc/filesystems"
"""


@dataclass
class Node:
    """The node numbered `number` (from 1) in `space`, which is not up yet; `programs` is the folder of the
    programs.

    Without `erofs` its containers find no such file system in /proc/filesystems; the kernel has it all the
    same.
    """

    number: int
    space: Space
    plane: ControlPlane
    programs: Path
    erofs: bool = True
    daemons: dict[str, Daemon] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name in the cluster."""
        return self.space.name

    @property
    def root(self) -> Path:
        """Its root folder as this machine sees it: what it has mounted is seen below."""
        return self.space.root

    def start(self) -> None:
        """Switch it on: containerd answers, kubelet has been started."""
        self.space.start()
        network.join(self.plane.space, self.space, self.plane.network, self.number)
        self.start_containerd()
        self.start_kubelet()

    def stop(self) -> None:
        """Switch it off at once, as a power cut does; what is on its disk stays."""
        self.daemons.clear()
        self.space.stop()

    def start_containerd(self) -> None:
        """Start containerd and wait until it answers."""
        path = f"{self.programs}:/usr/sbin:/usr/bin:/sbin:/bin"
        daemon = self.space.daemon(
            "containerd",
            [str(self.programs / "containerd"), "--config", str(self._containerd())],
            {"PATH": path},
        )
        self.daemons["containerd"] = daemon
        wait_for(
            lambda: self._containerd_answers(daemon),
            _START_SECONDS,
            f"containerd of {self.name}: {daemon.log}",
        )

    def start_kubelet(self) -> None:
        """Start kubelet."""
        user = f"system:node:{self.name}"
        kubeconfig = self.plane.authority.kubeconfig(user, self.plane.server)
        flags = [
            f"--config={self._kubelet()}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={self._address}",
        ]
        self.daemons["kubelet"] = self.space.daemon("kubelet", [str(self.programs / "kubelet"), *flags])

    def stop_daemon(self, name: str) -> None:
        """End `kubelet` or `containerd`; containers go on."""
        self.daemons.pop(name).stop()

    def wait_ready(self, kubectl: Kubectl) -> None:
        """Return when the cluster says that it is ready.

        AssertionError with what kubelet said where it does not come.
        """
        try:
            kubectl.wait("node", self.name, lambda node: condition(node, "Ready") == "True")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.daemons['kubelet'].tail()}") from None

    def check(self) -> None:
        """AssertionError where one of its programs has ended."""
        for daemon in self.daemons.values():
            daemon.check()

    def load(self, *archives: Archive) -> None:
        """Bring images to it."""
        for archive in archives:
            self._ctr("images", "import", "--local", str(archive.path))

    def tag(self, archive: Archive, name: str) -> None:
        """Give an image that it has one more name."""
        self._ctr("images", "tag", "--force", archive.name, name)

    def images(self) -> list[str]:
        """The names of the images that it has."""
        return self._ctr("images", "list", "--quiet").split()

    @property
    def _address(self) -> str:
        return self.plane.network.node(self.number)

    def _ctr(self, *words: str) -> str:
        return self.space.run(str(self.programs / "ctr"), "-a", _SOCKET, "-n", "k8s.io", *words)

    def _containerd_answers(self, daemon: Daemon) -> bool:
        daemon.check()
        with suppress(AssertionError):
            return bool(self._ctr("version"))
        return False

    def _containerd(self) -> Path:
        folder = self.space.folder
        _write(folder / "cni" / "10-pods.conflist", json.dumps(_cni(self.plane.network.pods(self.number))))
        spec = "" if self.erofs else f'base_runtime_spec = "{self._without_erofs()}"'
        text = _CONTAINERD.format(
            socket=_SOCKET, pause=PAUSE, programs=self.programs, cni=CNI, folder=folder, spec=spec
        )
        return _write(folder / "containerd.toml", text)

    def _without_erofs(self) -> Path:
        """What containers are made from: a hook shows each another list of file systems, before its
        program starts."""
        folder = self.space.folder
        known = Path("/proc/filesystems").read_text().splitlines(keepends=True)
        _write(folder / "filesystems", "".join(line for line in known if line.split()[-1] != "erofs"))
        hook = _write(folder / "hook.sh", _HOOK.format(listed=folder / "filesystems"))
        hook.chmod(0o755)
        spec = json.loads(self.space.run(str(self.programs / "ctr"), "oci", "spec"))
        return _write(
            folder / "spec.json", json.dumps({**spec, "hooks": {"createContainer": [{"path": str(hook)}]}})
        )

    def _kubelet(self) -> Path:
        # Pods must not have this machine's: the lab reaches no name server.
        names = _write(self.space.folder / "resolv.conf", "")
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "authentication": {
                "x509": {"clientCAFile": str(self.plane.authority.certificate("ca"))},
                "anonymous": {"enabled": False},
            },
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "enforceNodeAllocatable": [],
            # The disk is shared with others: how full it is says nothing about the node.
            "evictionHard": {"memory.available": "100Mi"},
            "failSwapOn": False,
            "imageGCHighThresholdPercent": 100,
            "maxPods": _PODS,
            "oomScoreAdj": 0,
            "registerWithTaints": [],
            "resolvConf": str(names),
            "serializeImagePulls": False,
        }
        return _write(self.space.folder / "kubelet.json", json.dumps(config, indent=1))


def machine(folder: Path, name: str, groups: Groups) -> Space:
    """The space of a node, not up yet; its disk is below `folder`."""
    disk = {place: folder / "disk" / place.name for place in _DISK}
    for kept in disk.values():
        kept.mkdir(parents=True)
    return Space(name, folder, groups, disk, _MEMORY)


def _cni(pods: str) -> object:
    address = {
        "type": "host-local",
        "ranges": [[{"subnet": pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": "/run/cni/addresses",
    }
    plugins = [{"type": "ptp", "ipam": address}]
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
