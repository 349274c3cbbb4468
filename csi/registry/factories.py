"""Construction of registries from `--registry`: a folder, or the word "kubernetes"."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from csi.registry.events.recorder import EventRecorder, NullEventRecorder
from csi.registry.volumes.directory import DirectoryVolumeRegistry
from csi.registry.volumes.record import VolumeRegistry

if TYPE_CHECKING:
    from csi.cluster.api_server import ApiServer
    from csi.registry.datacaches.data_caches import DataCacheRegistry
    from csi.registry.pins.kubernetes import KubernetesPinRegistry
    from csi.registry.prewarms.prewarms import NodePrewarms
    from csi.registry.prewarms.requests import PrewarmRequests

KUBERNETES = "kubernetes"
REGISTRY_HELP = (
    "a folder, or the word kubernetes for the cluster that the program runs in (or that KUBECONFIG names)"
)


def find_api_server(where: str) -> ApiServer | None:
    """Return the API server that the flag names, None for a folder.

    Raises FailedPrecondition or InvalidParameter if no cluster is found.
    """
    if where != KUBERNETES:
        return None
    from csi.cluster.api_server import ApiServer  # 3 MB that a folder registry does not need
    from csi.cluster.kubeconfig import find_cluster_access

    return ApiServer(find_cluster_access())


def open_registry(where: str, server: ApiServer | None) -> VolumeRegistry:
    """Open the volume registry: that of the cluster of `server`, else a folder."""
    if server is None:
        return DirectoryVolumeRegistry(Path(where))
    from csi.registry.volumes.kubernetes import KubernetesVolumeRegistry

    return KubernetesVolumeRegistry(server)


def open_pins(server: ApiServer | None) -> KubernetesPinRegistry | None:
    """Open the pins of the cluster of `server`; return None without one."""
    if server is None:
        return None
    from csi.registry.pins.kubernetes import KubernetesPinRegistry

    return KubernetesPinRegistry(server)


def open_event_recorder(server: ApiServer | None, component: str, instance: str) -> EventRecorder:
    """Open the recorder of `component` on `instance` for the cluster of `server`.

    Without a server it does nothing.
    """
    if server is None:
        return NullEventRecorder()
    from csi.registry.events.kubernetes import KubernetesEventRecorder

    return KubernetesEventRecorder(server, component, instance)


def open_node_prewarms(
    where: str, server: ApiServer | None, node: str, registry: VolumeRegistry | None
) -> NodePrewarms | None:
    """Open the prewarm requests for `node` in the registry that the flag names.

    Without a registry the result is None.
    """
    if registry is None:
        return None
    if server is None:
        from csi.registry.prewarms.directory import DirectoryNodePrewarms

        return DirectoryNodePrewarms(Path(where), registry)
    from csi.registry.prewarms.kubernetes import KubernetesNodePrewarms

    return KubernetesNodePrewarms(server, node, registry)


def open_prewarm_requests(where: str, server: ApiServer | None, driver_name: str) -> PrewarmRequests:
    """Open the prewarm requests to nodes: in the server's own namespace, else in a folder."""
    if server is None:
        from csi.registry.prewarms.directory import DirectoryPrewarmRequests

        return DirectoryPrewarmRequests(Path(where))
    from csi.registry.prewarms.kubernetes_requests import KubernetesPrewarmRequests

    return KubernetesPrewarmRequests(server, server.access.namespace, driver_name)


def open_data_caches(where: str, server: ApiServer | None) -> DataCacheRegistry:
    """Open the DataCaches of the cluster of `server`, else of a folder.

    In a cluster their credentials are in the server's own namespace.
    """
    if server is None:
        from csi.registry.datacaches.directory import DirectoryDataCacheRegistry

        return DirectoryDataCacheRegistry(Path(where))
    from csi.registry.datacaches.kubernetes import KubernetesDataCacheRegistry

    return KubernetesDataCacheRegistry(server, server.access.namespace)
