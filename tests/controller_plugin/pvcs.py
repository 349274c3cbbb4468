"""PVCs in a dictionary: what ClusterPvcs reads of a cluster (tests/controller_plugin/test_cluster_pvcs.py
proves it)."""

from __future__ import annotations

from collections.abc import Mapping

from csi.errors import ClusterUnavailable, FailedPrecondition


class FakeClaims:
    """`kept` has the annotations of each PVC by namespace and name.

    `away` is a cluster that does not answer.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], dict[str, str]] = {}
        self.away = False

    def put(self, namespace: str, name: str, annotations: Mapping[str, str]) -> None:
        self.kept[namespace, name] = dict(annotations)

    def delete(self, namespace: str, name: str) -> None:
        del self.kept[namespace, name]

    def read_annotations(self, namespace: str, name: str) -> dict[str, str]:
        if self.away:
            raise ClusterUnavailable("the API server cannot be reached")
        if (namespace, name) not in self.kept:
            raise FailedPrecondition(f"PVC {namespace}/{name} is gone; create it anew")
        return dict(self.kept[namespace, name])
