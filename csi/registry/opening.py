"""`--registry`: a folder, or the word "kubernetes"."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from csi.registry.announcing import Announcer, Silent
from csi.registry.directory import DirectoryRegistry
from csi.registry.volume import VolumeRegistry

if TYPE_CHECKING:
    from csi.cluster.api_server import ApiServer
    from csi.cluster.claims import ClusterClaims
    from csi.registry.data_caches import DataCaches
    from csi.registry.kubernetes_pins import KubernetesPins
    from csi.registry.prewarm_orders import PrewarmOrders
    from csi.registry.prewarms import Prewarms

KUBERNETES = "kubernetes"
HELP = "a folder, or the word kubernetes for the cluster that the program runs in (or that KUBECONFIG names)"


def find_server(where: str) -> ApiServer | None:
    """The API server that the flag means, None for a folder. Raises FailedPrecondition or InvalidParameter where there is no cluster to be found."""
    if where != KUBERNETES:
        return None
    from csi.cluster.api_server import ApiServer  # 3 MB that a folder does not need
    from csi.cluster.kubeconfig import find

    return ApiServer(find())


def open_registry(where: str, server: ApiServer | None, pins: KubernetesPins | None = None, sweep_seconds: float = 300.0) -> VolumeRegistry:
    """The registry that the flag names: in the cluster of `server`, where whoever leads tends `pins` and sweeps, else a folder."""
    if server is None:
        return DirectoryRegistry(Path(where))
    from csi.registry.kubernetes import KubernetesRegistry

    return KubernetesRegistry(server, pins, sweep_seconds)


def open_pins(server: ApiServer | None) -> KubernetesPins | None:
    """The pins of the cluster of `server`, None without one."""
    if server is None:
        return None
    from csi.registry.kubernetes_pins import KubernetesPins

    return KubernetesPins(server)


def open_claims(server: ApiServer | None) -> ClusterClaims | None:
    """The PVCs of the cluster of `server`, None without one."""
    if server is None:
        return None
    from csi.cluster.claims import ClusterClaims

    return ClusterClaims(server)


def open_announcer(server: ApiServer | None, component: str, instance: str) -> Announcer:
    """Who tells the people of the cluster of `server` what `component` on `instance` has to say; without one nobody is told."""
    if server is None:
        return Silent()
    from csi.registry.kubernetes_announcer import KubernetesAnnouncer

    return KubernetesAnnouncer(server, component, instance)


def open_prewarms(where: str, server: ApiServer | None, node: str, registry: VolumeRegistry | None) -> Prewarms | None:
    """What the registry that the flag names says that `node` is to have, None without one."""
    if registry is None:
        return None
    if server is None:
        from csi.registry.directory_prewarm_orders import DirectoryPrewarms

        return DirectoryPrewarms(Path(where), registry)
    from csi.registry.kubernetes_prewarms import KubernetesPrewarms

    return KubernetesPrewarms(server, node, registry)


def open_orders(where: str, server: ApiServer | None, driver_name: str) -> PrewarmOrders:
    """Where orders to nodes are placed: in the server's own namespace, else in a folder."""
    if server is None:
        from csi.registry.directory_prewarm_orders import DirectoryPrewarmOrders

        return DirectoryPrewarmOrders(Path(where))
    from csi.registry.kubernetes_prewarm_orders import KubernetesPrewarmOrders

    return KubernetesPrewarmOrders(server, server.access.namespace, driver_name)


def open_data_caches(where: str, server: ApiServer | None) -> DataCaches:
    """The DataCaches that the flag names: of the cluster of `server`, with credentials in its own namespace, else of a folder."""
    if server is None:
        from csi.registry.directory_data_caches import DirectoryDataCaches

        return DirectoryDataCaches(Path(where))
    from csi.registry.kubernetes_data_caches import KubernetesDataCaches

    return KubernetesDataCaches(server, server.access.namespace)
