"""`--registry`: a folder, or the word "kubernetes"."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from csi.registry.events.recorder import Announcer, Silent
from csi.registry.volumes.directory import DirectoryRegistry
from csi.registry.volumes.record import VolumeRegistry

if TYPE_CHECKING:
    from csi.cluster.api_server import ApiServer
    from csi.registry.datacaches.data_caches import DataCaches
    from csi.registry.pins.kubernetes import KubernetesPins
    from csi.registry.prewarms.prewarms import Prewarms
    from csi.registry.prewarms.requests import PrewarmOrders

KUBERNETES = "kubernetes"
HELP = "a folder, or the word kubernetes for the cluster that the program runs in (or that KUBECONFIG names)"


def find_server(where: str) -> ApiServer | None:
    """The API server that the flag means, None for a folder. Raises FailedPrecondition or InvalidParameter where there is no cluster to be found."""
    if where != KUBERNETES:
        return None
    from csi.cluster.api_server import ApiServer  # 3 MB that a folder does not need
    from csi.cluster.kubeconfig import find

    return ApiServer(find())


def open_registry(where: str, server: ApiServer | None) -> VolumeRegistry:
    """Open the registry that the flag names: that of the cluster of `server`, else a folder."""
    if server is None:
        return DirectoryRegistry(Path(where))
    from csi.registry.volumes.kubernetes import KubernetesRegistry

    return KubernetesRegistry(server)


def open_pins(server: ApiServer | None) -> KubernetesPins | None:
    """The pins of the cluster of `server`, None without one."""
    if server is None:
        return None
    from csi.registry.pins.kubernetes import KubernetesPins

    return KubernetesPins(server)


def open_announcer(server: ApiServer | None, component: str, instance: str) -> Announcer:
    """Who tells the people of the cluster of `server` what `component` on `instance` has to say; without one nobody is told."""
    if server is None:
        return Silent()
    from csi.registry.events.kubernetes import KubernetesAnnouncer

    return KubernetesAnnouncer(server, component, instance)


def open_prewarms(where: str, server: ApiServer | None, node: str, registry: VolumeRegistry | None) -> Prewarms | None:
    """What the registry that the flag names says that `node` is to have, None without one."""
    if registry is None:
        return None
    if server is None:
        from csi.registry.prewarms.directory import DirectoryPrewarms

        return DirectoryPrewarms(Path(where), registry)
    from csi.registry.prewarms.kubernetes import KubernetesPrewarms

    return KubernetesPrewarms(server, node, registry)


def open_orders(where: str, server: ApiServer | None, driver_name: str) -> PrewarmOrders:
    """Where orders to nodes are placed: in the server's own namespace, else in a folder."""
    if server is None:
        from csi.registry.prewarms.directory import DirectoryPrewarmOrders

        return DirectoryPrewarmOrders(Path(where))
    from csi.registry.prewarms.kubernetes_requests import KubernetesPrewarmOrders

    return KubernetesPrewarmOrders(server, server.access.namespace, driver_name)


def open_data_caches(where: str, server: ApiServer | None) -> DataCaches:
    """The DataCaches that the flag names: of the cluster of `server`, with credentials in its own namespace, else of a folder."""
    if server is None:
        from csi.registry.datacaches.directory import DirectoryDataCaches

        return DirectoryDataCaches(Path(where))
    from csi.registry.datacaches.kubernetes import KubernetesDataCaches

    return KubernetesDataCaches(server, server.access.namespace)
