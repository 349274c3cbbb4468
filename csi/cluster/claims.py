"""PersistentVolumeClaims, of which the API server knows what CSI does not pass on."""

from __future__ import annotations

from csi.cluster.api_server import METADATA, ApiServer, path_of
from csi.errors import FailedPrecondition, NotFound


class ClusterClaims:
    """The PVCs of a cluster; one call each."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def annotations(self, namespace: str, name: str) -> dict[str, str]:
        """The annotations of a PVC. Raises FailedPrecondition where it is not there, and what `ApiServer.call` raises."""
        path = path_of("api", "v1", "namespaces", namespace, "persistentvolumeclaims", name)
        try:
            claim = self._server.call("GET", path, accept=METADATA)
        except NotFound:
            raise FailedPrecondition(f"PVC {namespace}/{name} is gone, and its annotations were to name the source; create it anew") from None
        return dict(claim["metadata"].get("annotations") or {})
