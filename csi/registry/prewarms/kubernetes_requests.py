"""Orders to nodes as CachePrewarm objects of the operator's namespace, each owned by its DataCache."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from csi.cluster.api_server import APPLY, ApiServer, path_of
from csi.cluster.watch import Watch, pages
from csi.errors import NotFound
from csi.registry.custom_resource import GROUP, VERSION
from csi.registry.datacaches import codec as data_caches
from csi.registry.datacaches.data_caches import DataCache, id_of_uid
from csi.registry.prewarms.prewarms import State
from csi.registry.prewarms.requests import OrderState
from csi.topology import volume_segments

MANAGER = "datacache-operator"
OF_LABEL = f"{GROUP}/data-cache"
"""On an order: the name of the DataCache's object, or what stands for it where that is too long for a label."""
_HOSTNAME = "kubernetes.io/hostname"
_KIND, _PLURAL = "CachePrewarm", "cacheprewarms"
_MANY = 500
_NODES_SECONDS = 5.0
_NO_NODE = "no node that can mount images is ready; kubectl get nodes -L datacache.csi.io/mounts shows which ones can"


class KubernetesPrewarmOrders:
    """See PrewarmOrders. Within `watch` what is known of the orders costs no call."""

    def __init__(self, server: ApiServer, namespace: str, driver_name: str) -> None:
        self._server, self._namespace = server, namespace
        self._all = path_of("apis", GROUP, VERSION, "namespaces", namespace, _PLURAL)
        self._mounting = ",".join(f"{key}={value}" for key, value in volume_segments(driver_name).items())
        self._guard = threading.Lock()
        self._known: dict[str, Mapping[str, Any]] = {}
        self._able: tuple[float, list[str]] = (float("-inf"), [])

    def place(self, cache: DataCache) -> OrderState:
        """See PrewarmOrders. The one node is chosen by the image: caches of one image are on one node, those of many on many."""
        content = cache.state.coming or cache.state.content
        assert content is not None
        name = order_name(cache)
        with self._guard:
            thing = self._known.get(name)
        spec = self._spec(cache, content.digest, thing)
        if spec is None:
            return OrderState(message=_NO_NODE, placed=False)
        if thing is None or thing["spec"] != spec:
            thing = self._apply(cache, name, spec, thing)
        return _state(thing)

    def _spec(self, cache: DataCache, digest: str, thing: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """None where no node can have it."""
        selector = dict(cache.spec.node_selector)
        if not selector:
            chosen: str = ((thing or {}).get("spec", {}).get("nodeSelector") or {}).get(_HOSTNAME, "")
            at_work = thing and _state(thing).state is not State.FAILED and any(thing.get("status", {}).get("nodes") or ())
            node = chosen if chosen and at_work else self._node(digest)
            if not node:
                return None
            selector = {_HOSTNAME: node}
        return {"caches": [{"dataCache": cache.name, "manifestDigest": digest}], "nodeSelector": selector}

    def _node(self, digest: str) -> str:
        """The host name of a node that can mount images, always the same for an image while there is that node; "" for none."""
        looked, able = self._able
        # Many DataCaches are made at once, and a cluster may have many nodes.
        if time.monotonic() - looked > _NODES_SECONDS:
            able = self._able_nodes()
            self._able = (time.monotonic(), able)
        return max(able, key=lambda name: hashlib.sha256(f"{digest}\0{name}".encode()).digest(), default="")

    def _able_nodes(self) -> list[str]:
        listed = pages(self._server, path_of("api", "v1", "nodes"), self._mounting, _MANY)
        names = (thing["metadata"]["labels"].get(_HOSTNAME, "") for page in listed for thing in page["items"] if _is_able(thing))
        return list(filter(None, names))

    def _apply(self, cache: DataCache, name: str, spec: Mapping[str, Any], before: Mapping[str, Any] | None) -> Mapping[str, Any]:
        owner = {"apiVersion": f"{data_caches.GROUP}/{data_caches.VERSION}", "kind": data_caches.KIND, "name": cache.name, "uid": cache.uid}
        labels = {OF_LABEL: cache.name if len(cache.name) <= 63 else cache.id}
        meta = {"name": name, "namespace": self._namespace, "labels": labels, "ownerReferences": [{**owner, "controller": True}]}
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": _KIND, "metadata": meta, "spec": spec}
        thing = self._server.call("PATCH", f"{self._all}/{name}", {"fieldManager": MANAGER, "force": "true"}, body, APPLY)
        with self._guard:
            heard = self._known.get(name)
            # A node may be done before this answer is here, and its word is not told twice.
            if heard is before or (heard and heard["metadata"]["generation"] < thing["metadata"]["generation"]):
                self._known[name] = thing
            return self._known.get(name, thing)

    def drop(self, cache: DataCache) -> None:
        """See PrewarmOrders."""
        name = order_name(cache)
        with self._guard:
            known = self._known.pop(name, None)
        if known:
            with suppress(NotFound):
                self._server.call("DELETE", f"{self._all}/{name}")

    @contextmanager
    def watch(self, changed: Callable[[str], None]) -> Iterator[None]:
        """See PrewarmOrders."""

        def heard(name: str, thing: Mapping[str, Any] | None) -> None:
            with self._guard:
                old = self._known.pop(name, None)
                if thing:
                    self._known[name] = thing
            about = thing or old
            if about:
                changed(about["spec"]["caches"][0].get("dataCache", ""))

        watch = Watch(self._server, self._all, heard, selector=lambda: OF_LABEL, metadata=False, everything=True, status=True)
        self._learn()
        with watch.running():
            yield

    def _learn(self) -> None:
        """Know what there is before anybody asks: else a start would place every order anew."""
        listed = {thing["metadata"]["name"]: thing for page in pages(self._server, self._all, OF_LABEL, _MANY) for thing in page["items"]}
        with self._guard:
            self._known = listed


def order_name(cache: DataCache) -> str:
    """The name of a DataCache's order."""
    # Not the DataCacheId, which somebody who makes an object of another's manifest copies.
    return f"data-cache-{id_of_uid(cache.uid)}"


def _is_able(node: Mapping[str, Any]) -> bool:
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in node.get("status", {}).get("conditions") or ())
    return ready and not node.get("spec", {}).get("unschedulable")


def _state(thing: Mapping[str, Any]) -> OrderState:
    status = thing.get("status") or {}
    nodes = status.get("nodes") or []
    if status.get("observedGeneration") != thing["metadata"]["generation"] or not nodes:
        return OrderState(message="no node has begun yet")
    states = {State(node["state"]) for node in nodes}
    percent = sum(node["percent"] for node in nodes) // len(nodes)
    worst = next(state for state in (State.FAILED, State.FILLING, State.STORING, State.PENDING, State.READY) if state in states)
    message = next((f"{node['node']}: {node['message']}" for node in nodes if node["state"] == worst and node.get("message")), "")
    return OrderState(worst, percent, message)
