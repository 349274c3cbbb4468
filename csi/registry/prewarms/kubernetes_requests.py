"""Orders to nodes as CachePrewarm objects of the operator's namespace, each owned by its DataCache."""

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
from csi.registry.prewarms.requests import PrewarmProgress
from csi.topology import volume_segments

PREWARM_REQUEST_MANAGER = "datacache-operator"
DATA_CACHE_LABEL = f"{GROUP}/data-cache"
"""On an order: the name of the DataCache's object, or what stands for it where that is too long for a label."""
_HOSTNAME = "kubernetes.io/hostname"
_KIND, _PLURAL = "CachePrewarm", "cacheprewarms"
_PAGE_SIZE = 500
_NODES_TTL = 5.0
_NO_NODE_MESSAGE = "no node that can mount images is ready; kubectl get nodes -L datacache.csi.io/mounts shows which ones can"


class KubernetesPrewarmRequests:
    """See PrewarmRequests. Within `watch` what is known of the orders costs no call."""

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
        """See PrewarmRequests. The one node is chosen by the image: caches of one image are on one node, those of many on many."""
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
        """None where no node can have it."""
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
        """The host name of a node that can mount images, always the same for an image while there is that node; "" for none."""
        looked, able = self._mounting_nodes
        # Many DataCaches are made at once, and a cluster may have many nodes.
        if time.monotonic() - looked > _NODES_TTL:
            able = self._list_mounting_nodes()
            self._mounting_nodes = (time.monotonic(), able)
        return max(able, key=lambda name: hashlib.sha256(f"{digest}\0{name}".encode()).digest(), default="")

    def _list_mounting_nodes(self) -> list[str]:
        listed = list_pages(self._server, api_path("api", "v1", "nodes"), self._mounting_selector, _PAGE_SIZE)
        names = (
            thing["metadata"]["labels"].get(_HOSTNAME, "")
            for page in listed
            for thing in page["items"]
            if _is_able(thing)
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
        thing = self._server.call(
            "PATCH",
            f"{self._all}/{name}",
            {"fieldManager": PREWARM_REQUEST_MANAGER, "force": "true"},
            body,
            APPLY_PATCH,
        )
        with self._lock:
            heard = self._objects.get(name)
            # A node may be done before this answer is here, and its word is not told twice.
            if heard is before or (
                heard and heard["metadata"]["generation"] < thing["metadata"]["generation"]
            ):
                self._objects[name] = thing
            return self._objects.get(name, thing)

    def cancel(self, cache: DataCache) -> None:
        """See PrewarmRequests."""
        name = request_name(cache)
        with self._lock:
            known = self._objects.pop(name, None)
        if known:
            with suppress(NotFound):
                self._server.call("DELETE", f"{self._all}/{name}")

    @contextmanager
    def watch(self, on_change: Callable[[str], None]) -> Iterator[None]:
        """See PrewarmRequests."""

        def on_object(name: str, thing: Mapping[str, Any] | None) -> None:
            with self._lock:
                old = self._objects.pop(name, None)
                if thing:
                    self._objects[name] = thing
            about = thing or old
            if about:
                on_change(about["spec"]["caches"][0].get("dataCache", ""))

        watch = Watch(
            self._server,
            self._all,
            on_object,
            selector=lambda: DATA_CACHE_LABEL,
            metadata_only=False,
            report_initial=True,
            include_status=True,
        )
        self._learn()
        with watch.run_in_background():
            yield

    def _learn(self) -> None:
        """Know what there is before anybody asks: else a start would place every order anew."""
        listed = {
            thing["metadata"]["name"]: thing
            for page in list_pages(self._server, self._all, DATA_CACHE_LABEL, _PAGE_SIZE)
            for thing in page["items"]
        }
        with self._lock:
            self._objects = listed


def request_name(cache: DataCache) -> str:
    """The name of a DataCache's order."""
    # Not the DataCacheId, which somebody who makes an object of another's manifest copies.
    return f"data-cache-{data_cache_id_from_uid(cache.uid)}"


def _is_able(node: Mapping[str, Any]) -> bool:
    ready = any(
        one["type"] == "Ready" and one["status"] == "True"
        for one in node.get("status", {}).get("conditions") or ()
    )
    return ready and not node.get("spec", {}).get("unschedulable")


def _decode_progress(thing: Mapping[str, Any]) -> PrewarmProgress:
    status = thing.get("status") or {}
    nodes = status.get("nodes") or []
    if status.get("observedGeneration") != thing["metadata"]["generation"] or not nodes:
        return PrewarmProgress(message="no node has begun yet")
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
