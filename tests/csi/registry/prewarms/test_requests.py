"""Orders of the operator and what nodes read of them: in a folder, and as objects of a real API server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from csi.cluster.api_server import ApiServer as Client
from csi.parameters.data_cache import data_cache
from csi.program.flags import DRIVER_NAME
from csi.registry.datacaches.data_caches import Content, DataCache, DataCaches, DataCacheState
from csi.registry.datacaches.directory import DirectoryDataCaches
from csi.registry.datacaches.kubernetes import KubernetesDataCaches
from csi.registry.prewarms.directory import DirectoryPrewarmOrders, DirectoryPrewarms
from csi.registry.prewarms.kubernetes import KubernetesPrewarms
from csi.registry.prewarms.kubernetes_requests import KubernetesPrewarmOrders
from csi.registry.prewarms.prewarms import NodeState, Prewarms, State
from csi.registry.prewarms.requests import PrewarmOrders
from csi.registry.volumes.directory import DirectoryRegistry
from csi.registry.volumes.kubernetes import KubernetesRegistry
from csi.topology import volume_segments
from tests.apiserver import ApiServer
from tests.csi.registry.prewarms.kinds import make_node
from tests.origins.onc_rpc import wait_until

NODE = "orders-node"
HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/name"}


@dataclass
class Place:
    """Keepers of DataCaches and of orders, and a node that reads them."""

    caches: DataCaches
    orders: PrewarmOrders
    prewarms: Prewarms

    def cache(self, digest: str) -> DataCache:
        made = self.caches.add(DataCache("", "", 0, 0.0, data_cache("", "/models/a", "URL", HUB)), {})
        return replace(made, state=DataCacheState(coming=Content(digest, HUB, 8192, 5)))


def able(cluster: ApiServer, ready: str = "True") -> None:
    make_node(cluster, NODE, {"kubernetes.io/hostname": NODE, **volume_segments(DRIVER_NAME)})
    said = [{"type": "Ready", "status": ready, "reason": "Said", "message": ""}]
    cluster.kubectl("patch", "node", NODE, "--subresource=status", "--type=merge", "-p", json.dumps({"status": {"conditions": said}}))


@pytest.fixture(params=["directory", "kubernetes"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "directory":
        registry = DirectoryRegistry(tmp_path)
        yield Place(DirectoryDataCaches(tmp_path), DirectoryPrewarmOrders(tmp_path), DirectoryPrewarms(tmp_path, registry))
        return
    cluster: ApiServer = request.getfixturevalue("cluster")
    client = cluster.client()
    cluster.kubectl("delete", "nodes", "--all")
    able(cluster)
    prewarms = KubernetesPrewarms(client, NODE, KubernetesRegistry(client))
    yield Place(KubernetesDataCaches(client, "default"), KubernetesPrewarmOrders(client, "default", DRIVER_NAME), prewarms)
    prewarms.close()
    cluster.kubectl("delete", "node", NODE)
    cluster.kubectl("delete", "cacheprewarms", "--all")


def test_an_order_names_the_image_until_another_one_is_wanted_or_it_is_taken_back(place: Place) -> None:
    first = place.cache("a" * 64)
    assert place.orders.place(first).state is State.PENDING
    (order,) = place.prewarms.all()
    assert [(one.data_cache, one.digest) for one in order.caches] == [(first.name, "a" * 64)]
    place.orders.place(first)
    assert place.prewarms.all() == [order]
    place.orders.place(replace(first, state=DataCacheState(coming=Content("b" * 64, HUB, 8192, 5))))
    (changed,) = place.prewarms.all()
    assert changed.caches[0].digest == "b" * 64 and (changed.uid, changed.generation) != (order.uid, order.generation)
    place.orders.drop(first)
    assert place.prewarms.all() == []


def test_what_a_node_says_is_told_and_counts_for_the_image_that_it_is_of(place: Place) -> None:
    cache, told = place.cache("a" * 64), list[str]()
    with place.orders.watch(told.append):
        place.orders.place(cache)
        place.prewarms.report(place.prewarms.all()[0], NodeState(State.READY, 100))
        assert wait_until(lambda: cache.name in told and place.orders.place(cache).state is State.READY, 20)
        other = replace(cache, state=DataCacheState(coming=Content("b" * 64, HUB, 8192, 5)))
        assert place.orders.place(other).state is State.PENDING


class LateAnswers(Client):
    """An API server whose answer to an order comes behind what a node says to it."""

    def __init__(self, cluster: ApiServer) -> None:
        super().__init__(cluster.access())
        self.meanwhile: Callable[[], None] = lambda: None

    def call(self, method: str, path: str, *given: Any, **more: Any) -> dict[str, Any]:
        answer = super().call(method, path, *given, **more)
        if method == "PATCH":
            self.meanwhile()
        return answer


def test_a_node_that_is_done_before_the_operator_has_its_answer_is_heard(cluster: ApiServer) -> None:
    cluster.kubectl("delete", "nodes", "--all")
    able(cluster)
    client = LateAnswers(cluster)
    orders, prewarms = KubernetesPrewarmOrders(client, "default", DRIVER_NAME), KubernetesPrewarms(cluster.client(), NODE, KubernetesRegistry(client))
    cache, heard = Place(KubernetesDataCaches(cluster.client(), "default"), orders, prewarms).cache("a" * 64), list[State]()

    def done() -> None:
        prewarms.report(prewarms.all()[0], NodeState(State.READY, 100))
        assert wait_until(lambda: State.READY in heard, 20)

    with orders.watch(lambda name: heard.append(orders.place(cache).state)):
        client.meanwhile = done
        assert orders.place(cache).state is State.READY
        assert orders.place(cache).state is State.READY
    prewarms.close()
    cluster.kubectl("delete", "node", NODE)
    cluster.kubectl("delete", "cacheprewarms", "--all")


def test_where_no_node_can_mount_images_nothing_is_ordered_until_one_can(cluster: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.kubectl("delete", "nodes", "--all")
    client = cluster.client()
    orders = KubernetesPrewarmOrders(client, "default", DRIVER_NAME)
    cache = replace(
        KubernetesDataCaches(client, "default").add(DataCache("", "", 0, 0.0, data_cache("", "/models/a", "URL", HUB)), {}),
        state=DataCacheState(coming=Content("a" * 64, HUB, 8192, 5)),
    )
    found = orders.place(cache)
    assert not found.placed and "kubectl get nodes -L datacache.csi.io/mounts" in found.message
    able(cluster, "False")
    assert not KubernetesPrewarmOrders(client, "default", DRIVER_NAME).place(cache).placed
    able(cluster)
    now = time.monotonic()
    monkeypatch.setattr("csi.registry.prewarms.kubernetes_requests.time.monotonic", lambda: now + 60)
    assert orders.place(cache).placed
    cluster.kubectl("delete", "node", NODE)
    cluster.kubectl("delete", "cacheprewarms", "--all")
