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
from csi.parameters.data_cache import parse_data_cache
from csi.program.flags import DRIVER_NAME
from csi.registry.datacaches.data_caches import DataCache, DataCacheContent, DataCacheRegistry, DataCacheState
from csi.registry.datacaches.directory import DirectoryDataCacheRegistry
from csi.registry.datacaches.kubernetes import KubernetesDataCacheRegistry
from csi.registry.prewarms.directory import DirectoryNodePrewarms, DirectoryPrewarmRequests
from csi.registry.prewarms.kubernetes import KubernetesNodePrewarms
from csi.registry.prewarms.kubernetes_requests import KubernetesPrewarmRequests
from csi.registry.prewarms.prewarms import NodePrewarms, NodePrewarmState, PrewarmState
from csi.registry.prewarms.requests import PrewarmRequests
from csi.registry.volumes.directory import DirectoryVolumeRegistry
from csi.registry.volumes.kubernetes import KubernetesVolumeRegistry
from csi.topology import volume_segments
from tests.apiserver import ApiServer
from tests.csi.registry.prewarms.kinds import make_node
from tests.origins.onc_rpc import wait_until

NODE = "orders-node"
HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/name"}


@dataclass
class Place:
    """Keepers of DataCaches and of orders, and a node that reads them."""

    caches: DataCacheRegistry
    orders: PrewarmRequests
    prewarms: NodePrewarms
    restarted: Callable[[], PrewarmRequests]
    folder: Path

    def restart(self) -> PrewarmRequests:
        """The requests as another process opens them, which has seen none of the calls before."""
        self.orders = self.restarted()
        return self.orders

    def files(self) -> list[str]:
        """What is left in the folder of requests; nothing in a cluster."""
        return [path.name for path in self.folder.glob("orders/*")]

    def cache(self, digest: str) -> DataCache:
        made = self.caches.add(DataCache("", "", 0, 0.0, parse_data_cache("", "/models/a", "URL", HUB)), {})
        return replace(made, state=DataCacheState(next_content=DataCacheContent(digest, HUB, 8192, 5)))


def able(cluster: ApiServer, ready: str = "True") -> None:
    make_node(cluster, NODE, {"kubernetes.io/hostname": NODE, **volume_segments(DRIVER_NAME)})
    said = [{"type": "Ready", "status": ready, "reason": "Said", "message": ""}]
    cluster.kubectl(
        "patch",
        "node",
        NODE,
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": {"conditions": said}}),
    )


@pytest.fixture(params=["directory", "kubernetes"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "directory":
        registry = DirectoryVolumeRegistry(tmp_path)
        yield Place(
            DirectoryDataCacheRegistry(tmp_path),
            DirectoryPrewarmRequests(tmp_path),
            DirectoryNodePrewarms(tmp_path, registry),
            lambda: DirectoryPrewarmRequests(tmp_path),
            tmp_path,
        )
        return
    cluster: ApiServer = request.getfixturevalue("cluster")
    client = cluster.client()
    cluster.kubectl("delete", "nodes", "--all")
    able(cluster)
    prewarms = KubernetesNodePrewarms(client, NODE, KubernetesVolumeRegistry(client))
    yield Place(
        KubernetesDataCacheRegistry(client, "default"),
        KubernetesPrewarmRequests(client, "default", DRIVER_NAME),
        prewarms,
        lambda: KubernetesPrewarmRequests(client, "default", DRIVER_NAME),
        tmp_path,
    )
    prewarms.close()
    cluster.kubectl("delete", "node", NODE)
    cluster.kubectl("delete", "cacheprewarms", "--all")


def test_an_order_names_the_image_until_another_one_is_wanted_or_it_is_taken_back(place: Place) -> None:
    first = place.cache("a" * 64)
    assert place.orders.submit(first).state is PrewarmState.PENDING
    (order,) = place.prewarms.list_requests()
    assert [(one.data_cache, one.digest) for one in order.caches] == [(first.name, "a" * 64)]
    place.orders.submit(first)
    assert place.prewarms.list_requests() == [order]
    place.orders.submit(
        replace(first, state=DataCacheState(next_content=DataCacheContent("b" * 64, HUB, 8192, 5)))
    )
    (changed,) = place.prewarms.list_requests()
    assert changed.caches[0].digest == "b" * 64
    assert (changed.uid, changed.generation) != (
        order.uid,
        order.generation,
    )
    place.orders.cancel(first.name)
    assert place.prewarms.list_requests() == []


def test_a_request_is_cancelled_by_the_name_of_a_deleted_cache_after_a_restart(place: Place) -> None:
    cache = place.cache("a" * 64)
    place.orders.submit(cache)
    place.prewarms.report_state(place.prewarms.list_requests()[0], NodePrewarmState(PrewarmState.READY, 100))
    with place.restart().watch(lambda name: None):
        place.orders.cancel("another")
        assert place.orders.list_data_caches() == {cache.name}
        place.caches.delete(cache)
        place.orders.cancel(cache.name)
        assert place.orders.list_data_caches() == set()
    assert place.prewarms.list_requests() == []
    assert place.files() == []


def test_what_a_node_says_is_told_and_counts_for_the_image_that_it_is_of(place: Place) -> None:
    cache, told = place.cache("a" * 64), list[str]()
    with place.orders.watch(told.append):
        place.orders.submit(cache)
        place.prewarms.report_state(
            place.prewarms.list_requests()[0], NodePrewarmState(PrewarmState.READY, 100)
        )
        assert wait_until(
            lambda: cache.name in told and place.orders.submit(cache).state is PrewarmState.READY, 20
        )
        other = replace(cache, state=DataCacheState(next_content=DataCacheContent("b" * 64, HUB, 8192, 5)))
        assert place.orders.submit(other).state is PrewarmState.PENDING


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
    orders, prewarms = (
        KubernetesPrewarmRequests(client, "default", DRIVER_NAME),
        KubernetesNodePrewarms(cluster.client(), NODE, KubernetesVolumeRegistry(client)),
    )
    cache, heard = (
        Place(
            KubernetesDataCacheRegistry(cluster.client(), "default"), orders, prewarms, lambda: orders, Path()
        ).cache("a" * 64),
        list[PrewarmState](),
    )

    def done() -> None:
        prewarms.report_state(prewarms.list_requests()[0], NodePrewarmState(PrewarmState.READY, 100))
        assert wait_until(lambda: PrewarmState.READY in heard, 20)

    with orders.watch(lambda name: heard.append(orders.submit(cache).state)):
        client.meanwhile = done
        assert orders.submit(cache).state is PrewarmState.READY
        assert orders.submit(cache).state is PrewarmState.READY
    prewarms.close()
    cluster.kubectl("delete", "node", NODE)
    cluster.kubectl("delete", "cacheprewarms", "--all")


def test_where_no_node_can_mount_images_nothing_is_ordered_until_one_can(
    cluster: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.kubectl("delete", "nodes", "--all")
    client = cluster.client()
    orders = KubernetesPrewarmRequests(client, "default", DRIVER_NAME)
    cache = replace(
        KubernetesDataCacheRegistry(client, "default").add(
            DataCache("", "", 0, 0.0, parse_data_cache("", "/models/a", "URL", HUB)), {}
        ),
        state=DataCacheState(next_content=DataCacheContent("a" * 64, HUB, 8192, 5)),
    )
    found = orders.submit(cache)
    assert not found.has_node
    assert "kubectl get nodes -L datacache.csi.io/mounts" in found.message
    able(cluster, "False")
    assert not KubernetesPrewarmRequests(client, "default", DRIVER_NAME).submit(cache).has_node
    able(cluster)
    now = time.monotonic()
    monkeypatch.setattr("csi.registry.prewarms.kubernetes_requests.time.monotonic", lambda: now + 60)
    assert orders.submit(cache).has_node
    cluster.kubectl("delete", "node", NODE)
    cluster.kubectl("delete", "cacheprewarms", "--all")
