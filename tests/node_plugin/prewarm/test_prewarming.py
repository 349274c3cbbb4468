"""Caches that a node fills before any pod asks for them: what it fills, in whose favour it gives way, what
it keeps and what it says."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from csi.concurrency.deadline import Deadline
from csi.destinations.allow_list import CACHE_PREWARMS, AllowList
from csi.errors import Busy, NoSpace, PermissionDenied, UnsupportedByNode
from csi.image_store.client import ImageStoreClient, ImageStoreConfig
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import ContentRef, Secrets
from csi.parameters.data_cache import parse_data_cache
from csi.parameters.dialects.nas import NasSpec
from csi.registry.datacaches.data_caches import DataCache, DataCacheContent, DataCacheState, Phase
from csi.registry.datacaches.directory import DirectoryDataCacheRegistry
from csi.registry.prewarms.prewarms import NodePrewarmState, PrewarmedCache, PrewarmRequest, PrewarmState
from csi.worker.operations import ResolveSource
from csi.worker.pool import WorkerPool
from node_plugin.fills.uploads import Uploads
from node_plugin.prewarm.active_request import ActiveRequest
from node_plugin.prewarm.prewarming import PrewarmLoop
from node_plugin.volumes.data_cache_grants import DataCacheGrants
from tests.csi.registry.kinds import record
from tests.csi.registry.pins.fake_pins import FakePins
from tests.csi.registry.prewarms.kinds import FakePrewarms, order
from tests.csi.worker.in_process import COMMITS
from tests.node_plugin.fills.test_fills import adopt, eventually
from tests.node_plugin.node import HUB, INLINE, MIB, Node
from tests.node_plugin.prewarm.prefetching import KEY, MODEL, Ahead, fills

MAIN = PrewarmedCache({key: value for key, value in HUB.items() if key != "revision"})


def test_what_is_ordered_is_there_before_a_pod_asks_for_it(node: Node, ahead: Ahead) -> None:
    ahead.start(node)
    ahead.orders.put(order("one", MODEL))
    assert eventually(ahead.is_(PrewarmState.READY))
    assert ahead.states() == [{"node": "node-1", "state": "Ready", "percent": 100}]
    assert node.store.find_sealed(node.source.digest)
    assert fills(node) == 1
    node.inline(seconds=5)
    assert fills(node) == 1


def test_progress_is_said_while_it_is_filled_and_idle_nothing_is_asked(node: Node, ahead: Ahead) -> None:
    node.source.go_fill.clear()
    ahead.start(node)
    ahead.orders.put(order("one", MODEL, PrewarmedCache({**HUB, "revision": COMMITS[1]})))
    assert eventually(ahead.is_(PrewarmState.FILLING))
    assert ahead.states()[0]["percent"] == 10, "a fifth of the first of two"
    node.source.go_fill.set()
    assert eventually(ahead.is_(PrewarmState.READY))
    asked = ahead.orders.asked
    time.sleep(0.3)
    assert ahead.orders.asked == asked
    assert len(ahead.orders.said) < 8


def test_a_node_that_is_not_selected_fills_nothing_until_it_is(node: Node, ahead: Ahead) -> None:
    ahead.start(node)
    ahead.orders.put(order("one", MODEL, selector={"pool": "cpu"}))
    ahead.orders.put(order("two", PrewarmedCache({**HUB, "revision": COMMITS[1]}), selector={"pool": "gpu"}))
    assert eventually(ahead.is_(PrewarmState.READY, "default/two"))
    assert ahead.states() == []
    assert fills(node) == 1
    ahead.orders.put(order("one", MODEL, selector={}))
    assert eventually(ahead.is_(PrewarmState.READY))
    ahead.orders.put(order("one", MODEL, selector={"pool": "cpu"}))
    assert eventually(lambda: ahead.states() == [])


def test_a_wrong_token_is_said_with_its_reason_and_put_right_it_is_filled(node: Node, ahead: Ahead) -> None:
    node.source.readers = {"right"}
    ahead.orders.secrets["default", "hub"] = {"token": "wrong-s3cr3t"}
    ahead.start(node, retry_seconds=0.1)
    ahead.orders.put(order("one", PrewarmedCache(HUB, secret_name="hub")))
    assert eventually(ahead.is_(PrewarmState.FAILED))
    assert ahead.message == "this token may not read"
    assert "s3cr3t" not in str(ahead.orders.said)
    assert node.store.list_images() == []
    ahead.orders.secrets["default", "hub"] = {"token": "right"}
    assert eventually(ahead.is_(PrewarmState.READY))


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        (PrewarmedCache(HUB, secret_name="none"), "the Secret default/none does not exist"),
        (PrewarmedCache(pvc_name="none"), "the PVC default/none does not exist"),
        (PrewarmedCache({"server": "nas", "path": "/models"}), "CachePrewarms may not name NAS nas:/models"),
        (PrewarmedCache({"repoID": "x", "flavour": "vanilla"}), "unknown parameter 'flavour'"),
        (PrewarmedCache({**HUB, "egressProfile": "fast"}), "egressProfile"),
        (PrewarmedCache({**HUB, "manifestDigest": "a" * 64}), "manifestDigest"),
    ],
)
def test_what_cannot_be_had_is_said_and_harms_no_other_order(
    node: Node, ahead: Ahead, cache: PrewarmedCache, words: str
) -> None:
    ahead.start(node)
    ahead.orders.put(order("one", cache))
    ahead.orders.put(order("two", MODEL))
    assert eventually(ahead.is_(PrewarmState.READY, "default/two"))
    assert eventually(ahead.is_(PrewarmState.FAILED))
    assert words in ahead.message


def test_a_node_that_mounts_no_images_says_so(node: Node, ahead: Ahead) -> None:
    node.not_ready = UnsupportedByNode("this kernel has no EROFS")
    ahead.start(node)
    ahead.orders.put(order("one", MODEL))
    assert eventually(ahead.is_(PrewarmState.FAILED))
    assert ahead.message == "this kernel has no EROFS"
    assert fills(node) == 0


def test_what_a_claim_holds_is_filled_as_it_is_pinned(node: Node, ahead: Ahead) -> None:
    """The StorageClass's source is an administrator's word, so no list is asked."""
    node.source.files = {"model": 50}
    spec = CacheSpec(NasSpec("nas", "/models"))
    digest = node.source.call("resolve", ResolveSource(spec, Secrets())).digest
    ahead.orders.volumes["default", "models"] = record("dc-1", requested_spec=spec, spec=spec, digest=digest)
    ahead.start(node)
    ahead.orders.put(order("one", PrewarmedCache(pvc_name="models")))
    assert eventually(ahead.is_(PrewarmState.READY))
    assert node.store.find_sealed(digest)
    ahead.orders.volumes["default", "stale"] = record("dc-2", requested_spec=spec, spec=spec, digest="e" * 64)
    ahead.orders.put(order("two", PrewarmedCache(pvc_name="stale")))
    assert eventually(ahead.is_(PrewarmState.FAILED, "default/two"))


def small(folder: Path, source: Node, **more: Any) -> Node:
    source.close()
    made = Node(folder, budget=3 * MIB, **more)
    made.source.files = {"a": 2 * MIB}
    return made


def test_what_was_filled_ahead_stays_while_it_is_ordered_and_not_longer(
    tmp_path: Path, node: Node, ahead: Ahead
) -> None:
    tight = small(tmp_path, node)
    ahead.start(tight)
    ahead.orders.put(order("one", MODEL))
    assert eventually(ahead.is_(PrewarmState.READY))
    kept = tight.source.digest
    other = {**INLINE, "revision": COMMITS[1]}
    with pytest.raises(NoSpace, match="prewarmed"):
        tight.inline(context=other)
    assert tight.store.find_sealed(kept)
    ahead.orders.remove(KEY)
    assert eventually(lambda: _taken(tight, other))
    assert not tight.store.find_sealed(kept)
    ahead.stop()
    tight.close()


def _taken(node: Node, context: Mapping[str, str]) -> bool:
    try:
        node.inline(context=context)
    except NoSpace:
        return False
    return True


def test_no_room_is_said_and_no_image_in_use_goes_for_it(tmp_path: Path, node: Node, ahead: Ahead) -> None:
    tight = small(tmp_path, node)
    tight.inline(context={**INLINE, "revision": COMMITS[1]})
    shown = tight.image_mounts
    ahead.start(tight, retry_seconds=0.1)
    ahead.orders.put(order("one", MODEL))
    assert eventually(ahead.is_(PrewarmState.FAILED))
    assert "the image needs 2" in ahead.message
    assert tight.image_mounts == shown
    tight.unpublish("csi-1")
    assert eventually(ahead.is_(PrewarmState.READY)), "an image that nobody uses goes"
    ahead.stop()
    tight.close()


def test_a_fill_that_a_pod_waits_for_goes_first_and_the_other_goes_on_behind_it(
    node: Node, ahead: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_plugin.prewarm.prewarming._BUSY_RETRY_INTERVAL", 0.05)
    node.source.go_fill.clear()
    ahead.start(node)
    ahead.orders.put(order("one", MODEL))
    assert eventually(ahead.is_(PrewarmState.FILLING))
    first = next(iter(node.fills.get_progress()))
    call = threading.Thread(target=node.inline, kwargs={"context": {**INLINE, "revision": COMMITS[1]}})
    call.start()
    assert eventually(lambda: bool(node.fills.get_progress()) and first not in node.fills.get_progress())
    assert eventually(ahead.is_(PrewarmState.PENDING))
    assert "fills that pods wait for go first" in ahead.message
    time.sleep(0.2)
    assert first not in node.fills.get_progress()
    node.source.go_fill.set()
    call.join(20)
    assert eventually(ahead.is_(PrewarmState.READY))
    assert node.store.find_sealed(first)


def test_a_pod_that_comes_for_what_is_filled_ahead_joins_that_fill(node: Node, ahead: Ahead) -> None:
    node.source.go_fill.clear()
    ahead.start(node)
    ahead.orders.put(order("one", MODEL))
    assert eventually(ahead.is_(PrewarmState.FILLING))
    with pytest.raises(Busy, match="1 of 5 MiB"):
        node.inline(seconds=0.2)
    node.source.go_fill.set()
    node.inline()
    assert fills(node) == 1


def test_room_that_a_fill_ahead_has_reserved_is_a_pods_when_it_asks_again(
    tmp_path: Path, node: Node, ahead: Ahead
) -> None:
    tight = small(tmp_path, node)
    tight.source.go_fill.clear()
    ahead.start(tight)
    ahead.orders.put(order("one", MODEL))
    assert eventually(ahead.is_(PrewarmState.FILLING))
    other = {**INLINE, "revision": COMMITS[1]}
    with pytest.raises(Busy, match="make room"):
        tight.inline(context=other)
    assert eventually(lambda: tight.fills.get_progress() == {})
    tight.source.go_fill.set()
    assert eventually(lambda: _got(tight, other))
    ahead.stop()
    tight.close()


def _got(node: Node, context: Mapping[str, str]) -> bool:
    try:
        node.inline(context=context)
    except Busy:
        return False
    return True


def test_a_fill_ahead_is_not_stopped_by_the_grace_and_ends_with_its_order(
    tmp_path: Path, node: Node, ahead: Ahead
) -> None:
    node.close()
    hasty = Node(tmp_path, grace=0.0)
    hasty.source.go_fill.clear()
    ahead.start(hasty)
    ahead.orders.put(order("one", MODEL))
    assert eventually(ahead.is_(PrewarmState.FILLING))
    time.sleep(0.2)
    assert hasty.fills.get_progress()
    ahead.orders.remove(KEY)
    assert eventually(lambda: hasty.fills.get_progress() == {})
    ahead.stop()
    hasty.close()


def test_a_source_that_moves_is_looked_at_anew_with_another_order_alone(
    tmp_path: Path, node: Node, ahead: Ahead
) -> None:
    ahead.start(node)
    ahead.orders.put(order("one", MAIN))
    assert eventually(ahead.is_(PrewarmState.READY))
    first = node.source.digest
    ahead.stop()
    node.close()
    second = Node(tmp_path)
    second.source.commit = COMMITS[1]
    prewarming = ahead.start(second)
    assert eventually(lambda: ahead.orders.said.count(NodePrewarmState(PrewarmState.READY, 100)) == 2)
    assert prewarming.list_sealed() == {first}
    assert second.source.asked == []
    ahead.orders.put(order("one", MAIN))
    assert eventually(lambda: prewarming.list_sealed() == {second.source.digest})
    assert first != second.source.digest
    ahead.stop()
    second.close()


def test_it_reads_what_its_namespace_has_pinned_and_holds_that(
    tmp_path: Path, node: Node, ahead: Ahead
) -> None:
    node.close()
    pins = FakePins()
    pinning = Node(tmp_path, pins=pins)
    pod = {**INLINE, "csi.storage.k8s.io/pod.namespace": "default"}
    del pod["revision"]
    pinning.inline(context=pod)
    first = pinning.source.digest
    pinning.source.commit = COMMITS[1]
    prewarming = ahead.start(pinning)
    ahead.orders.put(order("one", MAIN))
    assert eventually(ahead.is_(PrewarmState.READY))
    assert prewarming.list_sealed() == {first}
    pinning.unpublish("csi-1")
    pinning.pins.sync()
    assert [bool(pin.holders) for pin in pins.list_all()] == [True]
    ahead.orders.remove(KEY)
    assert eventually(lambda: prewarming.list_sealed() == set())
    pinning.pins.sync()
    assert list(pins.list_all()) == []
    ahead.stop()
    pinning.close()


def test_while_the_server_is_away_what_is_kept_is_kept_also_over_a_start(
    tmp_path: Path, node: Node, ahead: Ahead
) -> None:
    ahead.start(node)
    ahead.orders.put(order("one", MODEL))
    assert eventually(ahead.is_(PrewarmState.READY))
    ahead.stop()
    node.close()
    ahead.orders.away = True
    again = Node(tmp_path)
    prewarming = ahead.start(again, retry_seconds=0.05)
    assert prewarming.list_sealed() == {again.source.digest}
    time.sleep(0.2)
    assert prewarming.list_sealed() == {again.source.digest}
    ahead.orders.away = False
    ahead.orders.remove(KEY)
    assert eventually(lambda: prewarming.list_sealed() == set())
    ahead.stop()
    again.close()


def test_a_damaged_file_of_answers_is_as_none(node: Node, ahead: Ahead) -> None:
    file = node.folder / "store/prewarms.json"
    for text in (
        "",
        "[]",
        "{}",
        '{"format": 9}',
        '{"format": 1, "answers": {"a": 5}}',
        '{"format": 1, "answers": []}',
    ):
        file.write_text(text)
        assert ahead.start(node).list_sealed() == set()
        ahead.stop()


def test_what_ended_a_fill_ahead_is_told_to_who_began_it(node: Node) -> None:
    digest = adopt(node)
    with pytest.raises(PermissionDenied):
        node.source.readers = set()
        node.fills.prefetch(ContentRef(digest, HUB), Deadline(10))


def test_a_datacache_that_does_not_hold_what_was_ordered_yet_is_waited_for(
    node: Node, tmp_path: Path
) -> None:
    orders, caches = FakePrewarms(), DirectoryDataCacheRegistry(tmp_path / "registry")
    made = caches.add(DataCache("", "", 0, 0.0, parse_data_cache("", "/models/a", "URL", HUB)), {})
    caches.write_state(made, DataCacheState(Phase.UPDATING, content=DataCacheContent("a" * 64, HUB, 8192, 5)))
    pool = WorkerPool({})
    stored = ImageStoreClient(pool, ImageStoreConfig())
    granted, uploads = (
        DataCacheGrants(caches, "default", node.store, stored, node.resolver(refresh_moving=True)),
        Uploads(node.store, stored),
    )
    cache = PrewarmedCache(data_cache=made.name, digest="b" * 64)
    preparation = node.prepare_for(AllowList(policy_subject=CACHE_PREWARMS), True, granted)
    ahead = PrewarmLoop(orders, preparation, node.store, node.images.check_node, uploads)
    with pytest.raises(
        Busy, match=f"the DataCache {made.name} still holds {'a' * 12}, and {'b' * 12} was requested"
    ):
        ahead._prewarmer.prewarm(ActiveRequest(orders.put(order("one", cache))), "key", cache)
    assert fills(node) == 0
    pool.close()


def test_after_a_fault_of_the_driver_it_is_tried_again_soon(
    node: Node, ahead: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_requests = ahead.orders.list_requests
    faults = [RuntimeError("a bug"), KeyError("another")]

    def faulty() -> list[PrewarmRequest]:
        if faults:
            raise faults.pop()
        return list_requests()

    monkeypatch.setattr(ahead.orders, "list_requests", faulty)
    ahead.orders.put(order("one", MODEL))
    ahead.start(node, retry_seconds=0.05)
    assert eventually(ahead.is_(PrewarmState.READY))
    assert faults == []
