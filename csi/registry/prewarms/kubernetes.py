"""Prewarm requests to a node as CachePrewarm objects of the cluster (deploy/crds/cacheprewarms.yaml).

Idle, this costs one watch for metadata only: status updates of other nodes are small events, and change no
generation.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

from csi.cluster.api_server import MERGE_PATCH, METADATA, ApiServer, api_path
from csi.cluster.outbox import Outbox
from csi.cluster.watch import Watch, list_pages
from csi.errors import ClusterConflict, FailedPrecondition, NotFound
from csi.registry.custom_resource import CONTROLLER_STATUS_MANAGER, GROUP, VERSION
from csi.registry.garbage_collector import NodeReferences
from csi.registry.prewarms.prewarms import (
    NodePrewarms,
    NodePrewarmState,
    PrewarmedCache,
    PrewarmRequest,
)
from csi.registry.prewarms.status import patch_with_node, patch_without_nodes
from csi.registry.volumes.record import VolumeRecord, VolumeRegistry, volume_id_from_name

log = logging.getLogger("datacache.prewarms")

NODE_PREWARM_MANAGER, PLURAL = "datacache-node", "cacheprewarms"
_PREWARMS_PATH = api_path("apis", GROUP, VERSION, PLURAL)
# Users wait for these reports, and a node has few of them per request.
_REPORT_INTERVAL = 0.05


class KubernetesNodePrewarms(NodePrewarms):
    """Requests to `node`, this node's name; `registry` has the volumes of PVCs."""

    def __init__(
        self, server: ApiServer, node: str, registry: VolumeRegistry, outbox: Outbox | None = None
    ) -> None:
        self._server, self._node, self._registry = server, node, registry
        # Not that of Events: a storm of Events must not delay what a node reports, which has its own pace.
        self._outbox = outbox or Outbox(write_interval=_REPORT_INTERVAL)

    def list_requests(self) -> list[PrewarmRequest]:
        objects = (obj for page in list_pages(self._server, _PREWARMS_PATH) for obj in page["items"])
        return [request for obj in objects if (request := _decode_or_log(obj))]

    def watch(self, on_change: Callable[[str], None]) -> AbstractContextManager[None]:
        return Watch(self._server, _PREWARMS_PATH, lambda name, obj: on_change(name)).run_in_background()

    def read_node_labels(self) -> Mapping[str, str]:
        """Return the labels of this node; raises NotFound if the cluster has no node of this name."""
        return dict(
            self._server.call("GET", api_path("api", "v1", "nodes", self._node), accept=METADATA)[
                "metadata"
            ].get("labels")
            or {}
        )

    def read_secret(self, namespace: str, name: str) -> Mapping[str, str]:
        try:
            data = (
                self._server.call("GET", api_path("api", "v1", "namespaces", namespace, "secrets", name)).get(
                    "data"
                )
                or {}
            )
            return {key: base64.b64decode(value).decode() for key, value in data.items()}
        except NotFound:
            raise FailedPrecondition(
                f"the Secret {namespace}/{name} does not exist; create it, or name another in secretRef"
            ) from None
        except UnicodeDecodeError:
            raise FailedPrecondition(
                f"the Secret {namespace}/{name} has a value that is not text; "
                "store the credential as plain text"
            ) from None

    def get_volume_of_pvc(self, namespace: str, pvc_name: str) -> VolumeRecord:
        try:
            pvc = self._server.call(
                "GET", api_path("api", "v1", "namespaces", namespace, "persistentvolumeclaims", pvc_name)
            )
        except NotFound:
            raise FailedPrecondition(
                f"the PVC {namespace}/{pvc_name} does not exist; create it, or name the source in parameters"
            ) from None
        # Users can write any PV's name into a PVC; only the phase is set by Kubernetes itself.
        volume = pvc["spec"].get("volumeName", "") if pvc.get("status", {}).get("phase") == "Bound" else ""
        record = self._registry.get(volume_id_from_name(volume)) if volume else None
        if record is None:
            why = f"its PV {volume} is not one of this driver" if volume else "it is not bound to a PV"
            raise FailedPrecondition(
                f"the PVC {namespace}/{pvc_name} has no cache: {why}; name the source in parameters"
            )
        return record

    def report_state(self, prewarm: PrewarmRequest, state: NodePrewarmState | None) -> None:
        self._outbox.put(prewarm.key, lambda: self._write_status(prewarm, state), durable=True)

    def close(self) -> None:
        self._outbox.close()

    def _write_status(self, prewarm: PrewarmRequest, state: NodePrewarmState | None) -> None:
        try:
            obj = self._server.call("GET", _object_path(prewarm.namespace, prewarm.name))
            if (obj["metadata"]["uid"], obj["metadata"]["generation"]) != (prewarm.uid, prewarm.generation):
                return  # the request has changed: this state is outdated
            patch = patch_with_node(prewarm, obj.get("status", {}), self._node, state, time.time())
            if patch:
                _patch_status(self._server, obj, patch, NODE_PREWARM_MANAGER)
        except NotFound:
            return


class PrewarmReferences(NodeReferences):
    """Nodes in the status of CachePrewarms."""

    kind = "CachePrewarm"

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._objects: list[tuple[Mapping[str, Any], frozenset[str]]] = []

    def list_nodes(self) -> frozenset[str]:
        objects = (obj for page in list_pages(self._server, _PREWARMS_PATH) for obj in page["items"])
        self._objects = [(obj, names) for obj in objects if (names := _nodes_in_status(obj))]
        return frozenset().union(*(names for _, names in self._objects))

    def remove_stale(self, gone: frozenset[str]) -> None:
        for obj, names in self._objects:
            prewarm = _decode_or_log(obj) if names & gone else None
            patch = prewarm and patch_without_nodes(prewarm, obj["status"], gone, time.time())
            if prewarm and patch:
                log.info(
                    "nodes removed from status",
                    extra={"fields": {"object": prewarm.key, "nodes": sorted(names & gone)}},
                )
                with suppress(NotFound, ClusterConflict):  # a changed object is handled in the next round
                    _patch_status(self._server, obj, patch, CONTROLLER_STATUS_MANAGER)


def _nodes_in_status(obj: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(entry["node"] for entry in obj.get("status", {}).get("nodes") or [])


def _patch_status(server: ApiServer, obj: Mapping[str, Any], patch: Mapping[str, Any], manager: str) -> None:
    """Patch the status of the exact version that was read.

    Raises NotFound, ClusterConflict, and as `ApiServer.call`.
    """
    meta = obj["metadata"]
    body = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": patch}
    server.call(
        "PATCH",
        f"{_object_path(meta['namespace'], meta['name'])}/status",
        {"fieldManager": manager},
        body,
        MERGE_PATCH,
    )


def _object_path(namespace: str, name: str) -> str:
    return api_path("apis", GROUP, VERSION, "namespaces", namespace, PLURAL, name)


def _decode_or_log(obj: Mapping[str, Any]) -> PrewarmRequest | None:
    meta, spec = obj["metadata"], obj["spec"]
    try:
        caches = tuple(map(_decode_cache, spec["caches"]))
        selector = dict(spec.get("nodeSelector") or {})
        return PrewarmRequest(
            meta["namespace"], meta["name"], meta["uid"], int(meta["generation"]), caches, selector
        )
    except (KeyError, TypeError, AttributeError) as error:
        log.warning(
            "unreadable CachePrewarm skipped",
            extra={"fields": {"object": meta.get("name"), "reason": type(error).__name__}},
        )
        return None


def _decode_cache(entry: Mapping[str, Any]) -> PrewarmedCache:
    secret = (entry.get("secretRef") or {}).get("name", "")
    data_cache_and_digest = entry.get("dataCache", ""), entry.get("manifestDigest", "")
    return PrewarmedCache(
        dict(entry.get("parameters") or {}), entry.get("claimName", ""), secret, *data_cache_and_digest
    )
