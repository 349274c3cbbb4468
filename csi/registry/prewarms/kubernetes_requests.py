"""Prewarm requests as CachePrewarm objects of the operator's namespace, each owned by its DataCache."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from csi.cluster.api_server import APPLY_PATCH, ApiServer, api_path
from csi.cluster.watch import Watch, list_pages
from csi.errors import NotFound
from csi.registry.custom_resource import GROUP, VERSION
from csi.registry.datacaches import codec as data_caches
from csi.registry.datacaches.data_caches import DataCache, data_cache_id_from_uid
from csi.registry.prewarms.prewarms import PrewarmState
from csi.registry.prewarms.requests import PrewarmProgress, PrewarmRequests
from csi.topology import volume_segments

PREWARM_REQUEST_MANAGER = "datacache-operator"
DATA_CACHE_LABEL = f"{GROUP}/data-cache"
"""Label of a request: the name of the DataCache's object, or its id if that name is too long."""
_HOSTNAME = "kubernetes.io/hostname"
_KIND, _PLURAL = "CachePrewarm", "cacheprewarms"
_PAGE_SIZE = 500
_NODES_TTL = 5.0
_NO_NODE_MESSAGE = (
    "no node that can mount images is ready; "
    "kubectl get nodes -L datacache.csi.io/mounts shows which ones can"
)


class KubernetesPrewarmRequests(PrewarmRequests):
    """Requests as objects. Within `watch` the known state of requests costs no call."""

    def __init__(self, server: ApiServer, namespace: str, driver_name: str) -> None:
        self._server, self._namespace = server, namespace
        self._all = api_path("apis", GROUP, VERSION, "namespaces", namespace, _PLURAL)
        self._mounting_selector = ",".join(
            f"{key}={value}" for key, value in volume_segments(driver_name).items()
        )
        self._lock = threading.Lock()
        self._objects: dict[str, Mapping[str, Any]] = {}
        self._mounting_nodes: tuple[float, list[str]] = (float("-inf"), [])

    def submit(self, cache: DataCache) -> PrewarmProgress:
        # Without a selector the image determines the node: caches of one image share a node, others spread
        # out.
        content = cache.state.next_content or cache.state.content
        assert content is not None
        name = request_name(cache)
        with self._lock:
            obj = self._objects.get(name)
        spec = self._build_spec(cache, content.digest, obj)
        if spec is None:
            return PrewarmProgress(message=_NO_NODE_MESSAGE, has_node=False)
        if obj is None or obj["spec"] != spec:
            obj = self._apply(cache, name, spec, obj)
        return _decode_progress(obj)

    def _build_spec(
        self, cache: DataCache, digest: str, obj: Mapping[str, Any] | None
    ) -> dict[str, Any] | None:
        """Build the object's spec; None if no node can fill the cache."""
        selector = dict(cache.spec.node_selector)
        if not selector:
            chosen: str = ((obj or {}).get("spec", {}).get("nodeSelector") or {}).get(_HOSTNAME, "")
            is_working = (
                obj
                and _decode_progress(obj).state is not PrewarmState.FAILED
                and any(obj.get("status", {}).get("nodes") or ())
            )
            node = chosen if chosen and is_working else self._choose_node(digest)
            if not node:
                return None
            selector = {_HOSTNAME: node}
        return {"caches": [{"dataCache": cache.name, "manifestDigest": digest}], "nodeSelector": selector}

    def _choose_node(self, digest: str) -> str:
        """Choose a node that can mount images and return its host name, "" for none.

        An image's node stays the same while it exists (rendezvous hashing).
        """
        listed_at, names = self._mounting_nodes
        # The list is kept for a while: many DataCaches may be created at once, in a cluster of many nodes.
        if time.monotonic() - listed_at > _NODES_TTL:
            names = self._list_mounting_nodes()
            self._mounting_nodes = (time.monotonic(), names)
        return max(names, key=lambda name: hashlib.sha256(f"{digest}\0{name}".encode()).digest(), default="")

    def _list_mounting_nodes(self) -> list[str]:
        listed = list_pages(self._server, api_path("api", "v1", "nodes"), self._mounting_selector, _PAGE_SIZE)
        names = (
            node["metadata"]["labels"].get(_HOSTNAME, "")
            for page in listed
            for node in page["items"]
            if _is_schedulable(node)
        )
        return list(filter(None, names))

    def _apply(
        self, cache: DataCache, name: str, spec: Mapping[str, Any], before: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        owner = {
            "apiVersion": f"{data_caches.GROUP}/{data_caches.VERSION}",
            "kind": data_caches.KIND,
            "name": cache.name,
            "uid": cache.uid,
        }
        labels = {DATA_CACHE_LABEL: cache.name if len(cache.name) <= 63 else cache.id}
        meta = {
            "name": name,
            "namespace": self._namespace,
            "labels": labels,
            "ownerReferences": [{**owner, "controller": True}],
        }
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": _KIND, "metadata": meta, "spec": spec}
        obj = self._server.call(
            "PATCH",
            f"{self._all}/{name}",
            {"fieldManager": PREWARM_REQUEST_MANAGER, "force": "true"},
            body,
            APPLY_PATCH,
        )
        with self._lock:
            watched = self._objects.get(name)
            # The node may finish, and the watch report it, before this answer arrives; such a report comes
            # only once, so a newer object must not be overwritten.
            if watched is before or (
                watched and watched["metadata"]["generation"] < obj["metadata"]["generation"]
            ):
                self._objects[name] = obj
            return self._objects.get(name, obj)

    def cancel(self, name: str) -> None:
        with self._lock:
            requests = [request for request, obj in self._objects.items() if _data_cache_of(obj) == name]
            for request in requests:
                del self._objects[request]
        for request in requests:
            # The server may have deleted it already, with the DataCache that owns it.
            with suppress(NotFound):
                self._server.call("DELETE", f"{self._all}/{request}")

    def list_data_caches(self) -> set[str]:
        with self._lock:
            return {_data_cache_of(obj) for obj in self._objects.values()} - {""}

    @contextmanager
    def watch(self, on_change: Callable[[str], None]) -> Iterator[None]:

        def on_object(name: str, obj: Mapping[str, Any] | None) -> None:
            with self._lock:
                old = self._objects.pop(name, None)
                if obj:
                    self._objects[name] = obj
            current = obj or old
            # Whoever labels a CachePrewarm by hand may name no DataCache in it.
            if current and (data_cache := _data_cache_of(current)):
                on_change(data_cache)

        watch = Watch(
            self._server,
            self._all,
            on_object,
            selector=lambda: DATA_CACHE_LABEL,
            full_objects=True,
            include_status=True,
        )
        self._load_existing()
        with watch.run_in_background():
            yield

    def _load_existing(self) -> None:
        """List the requests before any call of `submit`.

        Otherwise a restart would write every request again.
        """
        listed = {
            obj["metadata"]["name"]: obj
            for page in list_pages(self._server, self._all, DATA_CACHE_LABEL, _PAGE_SIZE)
            for obj in page["items"]
        }
        with self._lock:
            self._objects = listed


def request_name(cache: DataCache) -> str:
    """Return the name of a DataCache's request."""
    # Of the uid, which no two objects share; an annotation may assign a DataCacheId.
    return f"data-cache-{data_cache_id_from_uid(cache.uid)}"


def _data_cache_of(obj: Mapping[str, Any]) -> str:
    name: str = obj["spec"]["caches"][0].get("dataCache", "")
    return name


def _is_schedulable(node: Mapping[str, Any]) -> bool:
    is_ready = any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in node.get("status", {}).get("conditions") or ()
    )
    return is_ready and not node.get("spec", {}).get("unschedulable")


def _decode_progress(obj: Mapping[str, Any]) -> PrewarmProgress:
    status = obj.get("status") or {}
    nodes = status.get("nodes") or []
    if status.get("observedGeneration") != obj["metadata"]["generation"] or not nodes:
        return PrewarmProgress(message="no node has started yet")
    states = {PrewarmState(node["state"]) for node in nodes}
    percent = sum(node["percent"] for node in nodes) // len(nodes)
    worst = next(
        state
        for state in (
            PrewarmState.FAILED,
            PrewarmState.FILLING,
            PrewarmState.STORING,
            PrewarmState.PENDING,
            PrewarmState.READY,
        )
        if state in states
    )
    message = next(
        (
            f"{node['node']}: {node['message']}"
            for node in nodes
            if node["state"] == worst and node.get("message")
        ),
        "",
    )
    return PrewarmProgress(worst, percent, message)
