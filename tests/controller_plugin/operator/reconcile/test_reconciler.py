"""What becomes of a DataCache: resolved, filled, Available; and what stands in the way, said with the fix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from controller_plugin.operator.data_cache_index import DataCacheIndex
from controller_plugin.operator.reconcile.controller import DataCacheController
from controller_plugin.operator.reconcile.reconciler import MAX_EVENTS, Reconciler
from csi.destinations.allow_list import DATA_CACHE_OBJECTS, AllowList
from csi.errors import Busy, ClusterUnavailable, OriginUnavailable, SourceNotFound
from csi.parameters.data_cache import parse_data_cache
from csi.performance.capacity import GIB
from csi.registry.datacaches.data_caches import DataCache, Phase
from csi.registry.datacaches.directory import DirectoryDataCacheRegistry
from csi.registry.prewarms.directory import DirectoryPrewarmRequests
from csi.registry.prewarms.prewarms import PrewarmState
from csi.registry.prewarms.requests import PrewarmProgress
from tests.controller_plugin.operator.fakes import FakeImages, FakeOrders, content
from tests.origins.onc_rpc import wait_until

HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/name"}
NAS = {"server": "nas.example.com", "path": "/models"}


class Cluster:
    """A reconciler over a folder, with fake images and orders and a clock that stands."""

    def __init__(self, folder: Path) -> None:
        self.caches, self.known, self.images, self.orders = (
            DirectoryDataCacheRegistry(folder),
            DataCacheIndex(),
            FakeImages(),
            FakeOrders(),
        )
        self.now: float | None = None
        self.pause: float | None = None
        self.start()

    def start(self) -> None:
        """A new start of the operator."""
        self.known = DataCacheIndex()
        allowed = AllowList((), (), DATA_CACHE_OBJECTS)
        self.reconciler = Reconciler(
            self.caches, self.known, self.images, self.orders, allowed, lambda: self.now or 2e9
        )

    def make(
        self, path: str = "/a", options: Mapping[str, str] = HUB, type: str = "URL", **more: object
    ) -> DataCache:
        made = self.caches.add(
            DataCache("", "", 0, 0.0, parse_data_cache("", path, type, options, **more)), {}
        )  # type: ignore[arg-type]
        self.now = self.now or made.created_at
        return made

    def look(self, cache: DataCache) -> DataCache:
        """Look once, as after a change; the cache as it is then."""
        self.known.apply_event(cache.name, self.caches.get(cache.name))
        self.pause = self.reconciler.reconcile(cache.name)
        found = self.caches.get(cache.name)
        known = self.known.get(cache.name)
        assert found
        assert known
        assert known.state == found.state
        return found


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    made = Cluster(tmp_path)
    made.images.origin["/a"] = made.images.origin["/b"] = content("a")
    return made


def test_a_cache_is_resolved_then_filled_by_a_node_then_available(cluster: Cluster) -> None:
    made = cluster.make()
    first = cluster.look(made)
    assert (first.state.phase, first.state.next_content, first.state.content) == (
        Phase.LOADING,
        content("a"),
        None,
    )
    assert cluster.orders.placed == {made.name: content("a").digest}
    cluster.orders.say(made.name, PrewarmState.FILLING, 40)
    assert (cluster.look(made).state.phase, cluster.look(made).state.percent) == (Phase.LOADING, 40)
    cluster.orders.say(made.name, PrewarmState.STORING, 70)
    assert cluster.look(made).state.phase is Phase.CREATING
    cluster.orders.say(made.name, PrewarmState.READY, 100)
    ready = cluster.look(made).state
    assert (ready.phase, ready.percent, ready.content, ready.next_content) == (
        Phase.AVAILABLE,
        100,
        content("a"),
        None,
    )
    assert [note.reason for note in ready.events] == ["Resolved", "Available"]
    assert len(cluster.images.asked) == 1
    assert cluster.orders.placed


def test_a_start_of_the_operator_asks_and_fills_nothing_twice(cluster: Cluster) -> None:
    made = cluster.make()
    cluster.look(made)
    cluster.start()
    cluster.look(made)
    cluster.orders.say(made.name, PrewarmState.READY, 100)
    cluster.look(made)
    cluster.start()
    before = cluster.caches.get(made.name)
    assert cluster.look(made) == before
    assert len(cluster.images.asked) == 1


def test_with_an_image_store_a_known_image_is_available_at_once_and_no_node_is_asked(
    cluster: Cluster,
) -> None:
    cluster.images.store = {content("a").digest: content("a")}
    found = cluster.look(cluster.make()).state
    assert (found.phase, found.in_image_store) == (Phase.AVAILABLE, True)
    assert cluster.orders.placed == {}


def test_an_image_of_another_place_is_not_taken_by_hearsay(cluster: Cluster) -> None:
    cluster.images.store = {content("a").digest: content("a", repo="org/other")}
    assert cluster.look(cluster.make()).state.phase is Phase.LOADING


def test_what_another_cache_of_the_place_has_is_available_at_once(cluster: Cluster) -> None:
    first, second = cluster.make(), cluster.make("/b")
    cluster.look(first)
    cluster.orders.say(first.name, PrewarmState.READY)
    cluster.look(first)
    assert cluster.look(second).state.phase is Phase.AVAILABLE
    assert second.name in cluster.orders.placed


def test_once_it_is_in_the_image_store_its_node_is_free_unless_nodes_are_named(cluster: Cluster) -> None:
    cluster.images.store, cluster.images.origin["/b"] = {}, content("b")
    plain, placed = cluster.make(), cluster.make("/b", node_selector={"pool": "gpu"})
    for cache, letter in ((plain, "a"), (placed, "b")):
        cluster.look(cache)
        cluster.images.store[content(letter).digest] = content(letter)
        cluster.orders.say(cache.name, PrewarmState.READY)
        assert cluster.look(cache).state.in_image_store
    assert list(cluster.orders.placed) == [placed.name]


def test_a_new_source_is_made_ready_beside_the_old_one(cluster: Cluster) -> None:
    made = cluster.make()
    cluster.look(made)
    cluster.orders.say(made.name, PrewarmState.READY)
    cluster.look(made)
    cluster.images.origin["/a"] = content("b")
    cluster.caches.change(
        made, lambda cache: replace(cache, spec=replace(cache.spec, options={**HUB, "revision": "v2"}))
    )
    updating = cluster.look(made).state
    assert (updating.phase, updating.content, updating.next_content) == (
        Phase.UPDATING,
        content("a"),
        content("b"),
    )
    cluster.orders.say(made.name, PrewarmState.FAILED, 0, "no space")
    failed = cluster.look(made).state
    assert (failed.phase, failed.content, failed.message) == (Phase.UPDATE_FAILED, content("a"), "no space")
    cluster.orders.say(made.name, PrewarmState.READY)
    assert cluster.look(made).state.content == content("b")


def test_an_update_that_cannot_be_resolved_leaves_what_there_is(cluster: Cluster) -> None:
    made = cluster.make()
    cluster.look(made)
    cluster.orders.say(made.name, PrewarmState.READY)
    cluster.look(made)
    cluster.images.origin["/a"] = SourceNotFound("no such revision")
    cluster.caches.change(
        made, lambda cache: replace(cache, spec=replace(cache.spec, options={**HUB, "revision": "no"}))
    )
    failed = cluster.look(made).state
    assert (failed.phase, failed.content, failed.next_content) == (Phase.UPDATE_FAILED, content("a"), None)
    cluster.images.origin["/a"] = content("c")
    assert cluster.look(made).state.next_content == content("c")


def test_content_over_an_explicit_size_fails_with_both_numbers(cluster: Cluster) -> None:
    cluster.images.origin["/a"] = content("a", 3 * GIB)
    failed = cluster.look(cluster.make(size_gib=2)).state
    assert failed.phase is Phase.FAILED
    assert str(3 * GIB) in failed.message
    assert "2 GiB" in failed.message
    assert cluster.orders.placed == {}


@pytest.mark.parametrize(
    ("type", "options", "words"),
    [
        ("URL", {**HUB, "repoID2": "x"}, "unknown parameter 'repoID2'"),
        ("NAS", NAS, "--allow-inline-nas nas.example.com:/models"),
        ("OSS", {"bucket": "abc", "url": "oss.example.com"}, "--allow-origins oss.example.com"),
        ("OSS", {"bucket": "abc", "url": "oss-cn-beijing.aliyuncs.com", "ramRole": "admin"}, "ramRole"),
    ],
)
def test_a_source_that_cannot_be_or_is_not_allowed_fails_and_no_origin_is_asked(
    cluster: Cluster, type: str, options: Mapping[str, str], words: str
) -> None:
    failed = cluster.look(cluster.make(options=options, type=type)).state
    assert failed.phase is Phase.FAILED
    assert words in failed.message
    assert cluster.images.asked == []


def test_an_origin_that_is_away_is_asked_again_after_longer_and_longer_pauses(cluster: Cluster) -> None:
    cluster.images.origin["/a"] = OriginUnavailable("the hub does not answer")
    made, pauses = cluster.make(), []
    for _ in range(3):
        failed = cluster.look(made).state
        pauses.append(cluster.pause)
    assert failed.phase is Phase.FAILED
    assert [(note.reason, note.count) for note in failed.events] == [("Failed", 3)]
    assert pauses[0]
    assert pauses[1] == 2 * pauses[0]
    assert pauses[2] == 4 * pauses[0]
    cluster.images.origin["/a"] = content("a")
    assert cluster.look(made).state.phase is Phase.LOADING


def test_a_resolve_that_takes_longer_is_loading_and_looked_at_soon(cluster: Cluster) -> None:
    cluster.images.origin["/a"] = Busy("still resolving; call again")
    found = cluster.look(cluster.make()).state
    assert (found.phase, found.message) == (Phase.LOADING, "still resolving; call again")
    assert cluster.pause
    assert cluster.pause < 10


def test_credentials_among_the_options_are_moved_and_used(cluster: Cluster) -> None:
    made = cluster.make(options={**HUB, "accessToken": "hf_x"})
    cluster.look(made)
    moved = cluster.look(made)
    assert moved.spec.options == HUB
    assert cluster.caches.read_credential(moved) == {"accessToken": "hf_x"}
    assert cluster.images.asked == [(made.name, {"accessToken": "hf_x"})]
    assert moved.state.next_content == content("a")


def test_a_credential_of_another_source_is_not_used(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.caches, "is_credential_in_scope", lambda cache: False)
    found = cluster.look(cluster.make()).state
    assert found.phase is Phase.FAILED
    assert "its credential was given for another kind of source or other hosts" in found.message
    assert cluster.images.asked == []


def test_an_empty_credential_is_none(cluster: Cluster) -> None:
    made = cluster.make(options={**HUB, "accessToken": " "})
    cluster.look(made)
    moved = cluster.look(made)
    assert moved.spec.options == HUB
    assert moved.secret_ref is None
    assert moved.state.next_content == content("a")


def test_of_two_of_one_name_the_older_counts_and_the_other_says_so(cluster: Cluster) -> None:
    first = cluster.make()
    second = replace(first, name="other", uid="other", created_at=first.created_at + 1)
    cluster.known.apply_event(first.name, first)
    changed: list[str] = []
    with cluster.known.notify_on_change(changed.append):
        cluster.known.apply_event(second.name, second)
        assert changed == sorted([first.name, "other"])
        cluster.known.apply_event(first.name, None)
        assert changed[2:] == sorted([first.name, "other"])
        cluster.known.apply_event(first.name, first)
    with pytest.raises(Exception, match=first.name):
        cluster.reconciler._check_unique_name(second)
    cluster.reconciler._check_unique_name(first)


def test_a_cache_is_deleted_when_its_days_are_over(cluster: Cluster) -> None:
    made = cluster.make(retention_days=1)
    found = cluster.look(made)
    assert made.created_at + 86_400 >= found.state.expires_at > made.created_at + 86_398
    assert cluster.pause
    assert cluster.pause <= 86_400
    assert cluster.now
    cluster.now += 86_401
    assert cluster.reconciler.reconcile(made.name) is None
    assert cluster.caches.find() == []


def test_no_more_notes_are_kept_than_people_read(cluster: Cluster) -> None:
    made = cluster.make()
    for number in range(MAX_EVENTS + 5):
        cluster.images.origin["/a"] = SourceNotFound(f"not there: {number}")
        found = cluster.look(made)
    assert len(found.state.events) == MAX_EVENTS
    assert found.state.events[-1].message.endswith(str(MAX_EVENTS + 4))


def test_what_is_gone_is_not_looked_at(cluster: Cluster) -> None:
    assert cluster.reconciler.reconcile("edc-none") is None


def test_the_prewarm_request_of_a_deleted_cache_is_cancelled(cluster: Cluster) -> None:
    made, other = cluster.make(), cluster.make("/b")
    for cache in (made, other):
        cluster.look(cache)
    cluster.caches.delete(made)
    cluster.known.apply_event(made.name, None)
    assert cluster.reconciler.reconcile(made.name) is None
    assert list(cluster.orders.placed) == [other.name]


def test_a_cache_that_the_index_does_not_know_yet_keeps_its_prewarm_request(cluster: Cluster) -> None:
    made = cluster.make()
    cluster.look(made)
    cluster.start()
    assert cluster.reconciler.reconcile(made.name) is not None
    assert list(cluster.orders.placed) == [made.name]
    assert cluster.known.get(made.name)


def test_a_malformed_cache_fails_with_the_field_and_recovers_when_it_is_mended(
    cluster: Cluster, tmp_path: Path
) -> None:
    made = cluster.make()
    cluster.look(made)
    cluster.orders.say(made.name, PrewarmState.READY, 100)
    cluster.look(made)
    file = tmp_path / "data-caches" / f"{made.name}.json"
    file.write_text(file.read_text().replace('"/a"', '"a"'))
    cluster.known.apply_event(made.name, None)
    assert cluster.reconciler.reconcile(made.name) is not None
    status = json.loads(file.read_text())["status"]
    assert status["status"] == "Failed"
    assert "path is 'a'; it is an absolute path" in status["message"]
    assert status["conditions"][0]["message"] == status["message"]
    assert list(cluster.orders.placed) == [made.name]
    file.write_text(file.read_text().replace('"a"', '"/a"'))
    found = cluster.look(made)
    assert found.state.phase is Phase.AVAILABLE
    assert found.state.content == content("a")


def test_requests_of_caches_deleted_while_no_operator_ran_are_cancelled_at_its_start(tmp_path: Path) -> None:
    first, requests = Cluster(tmp_path), DirectoryPrewarmRequests(tmp_path)
    kept, deleted = first.make(), first.make("/b")
    for cache in (kept, deleted):
        requests.submit(replace(cache, state=replace(cache.state, next_content=content("a"))))
    first.caches.delete(deleted)
    first.images.origin["/a"] = content("a")
    reconciler = Reconciler(
        first.caches, first.known, first.images, requests, AllowList((), (), DATA_CACHE_OBJECTS)
    )
    with DataCacheController(first.caches, first.known, requests, reconciler).run_in_background():
        assert wait_until(lambda: requests.list_data_caches() == {kept.name}, 20)


def test_what_a_cache_is_to_hold_is_written_before_a_node_is_told_to_make_it_ready(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, seen = cluster.make(), []
    place = cluster.orders.submit

    def placed(cache: DataCache) -> PrewarmProgress:
        found = cluster.caches.get(cache.name)
        seen.append(found and found.state.next_content)
        return place(cache)

    monkeypatch.setattr(cluster.orders, "submit", placed)
    cluster.look(made)
    assert seen == [content("a")]


def test_a_state_that_cannot_be_written_has_no_node_told_and_is_written_the_next_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cluster.make()
    with monkeypatch.context() as broken:
        broken.setattr(cluster.caches, "write_state", raising(ClusterUnavailable("away")))
        with pytest.raises(ClusterUnavailable):
            cluster.look(made)
    assert cluster.orders.placed == {}
    assert cluster.look(made).state.next_content == content("a")
    assert cluster.orders.placed


def raising(error: Exception) -> Callable[..., None]:
    def fails(*given: object) -> None:
        raise error

    return fails


def available(cluster: Cluster, path: str = "/a", **more: object) -> DataCache:
    made = cluster.make(path, **more)  # type: ignore[arg-type]
    cluster.look(made)
    cluster.orders.say(made.name, PrewarmState.READY)
    found = cluster.look(made)
    assert found.state.phase is Phase.AVAILABLE
    return found


def test_a_fault_of_what_keeps_it_leaves_an_available_cache_as_it_is_and_asks_no_origin(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = available(cluster)
    cluster.images.origin["/a"] = content("b")
    with monkeypatch.context() as broken:
        broken.setattr(cluster.orders, "submit", raising(ClusterUnavailable("the API server is away")))
        found = cluster.look(made).state
        assert (found.phase, found.content, found.message) == (
            Phase.AVAILABLE,
            content("a"),
            "the API server is away",
        )
        broken.setattr(
            cluster.orders, "submit", lambda cache: PrewarmProgress(message="no node", has_node=False)
        )
        assert cluster.look(made).state.message == "no node"
    after = cluster.look(made).state
    assert (after.phase, after.content, after.message) == (Phase.AVAILABLE, content("a"), "")
    assert len(cluster.images.asked) == 1


def test_a_new_cache_waits_for_a_node_that_can_have_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cluster.make()
    with monkeypatch.context() as empty:
        empty.setattr(
            cluster.orders, "submit", lambda cache: PrewarmProgress(message="no node", has_node=False)
        )
        found = cluster.look(made).state
        assert (found.phase, found.next_content, found.message) == (Phase.LOADING, content("a"), "no node")
        assert cluster.pause
        assert cluster.pause <= 60
    cluster.look(made)
    cluster.orders.say(made.name, PrewarmState.READY)
    assert cluster.look(made).state.phase is Phase.AVAILABLE
    assert len(cluster.images.asked) == 1


def test_what_a_node_is_done_with_is_kept_once_the_image_store_has_it(cluster: Cluster) -> None:
    cluster.images.store = {}
    made = available(cluster)
    assert not made.state.in_image_store
    assert "--image-store" in made.state.message
    assert cluster.orders.placed == {}
    cluster.look(made)
    cluster.images.store[content("a").digest] = content("a")
    cluster.orders.say(made.name, PrewarmState.READY)
    found = cluster.look(made).state
    assert found.in_image_store
    assert found.message == ""


def test_an_image_that_people_remove_from_the_image_store_is_brought_there_again(cluster: Cluster) -> None:
    cluster.images.store = {content("a").digest: content("a")}
    made = cluster.look(cluster.make())
    assert made.state.in_image_store
    assert cluster.now
    cluster.images.store.clear()
    assert cluster.look(made).state.in_image_store, "it is asked now and then alone"
    cluster.now += 4000
    found = cluster.look(made).state
    assert (found.in_image_store, found.phase, list(cluster.orders.placed)) == (
        False,
        Phase.AVAILABLE,
        [made.name],
    )


def test_the_same_address_in_another_network_is_another_place(cluster: Cluster) -> None:
    networked = content("a")
    held = replace(networked, access={**networked.access, "egressProfile": "vpc-a"})
    cluster.images.store = {held.digest: held}
    assert cluster.look(cluster.make()).state.phase is Phase.LOADING


def test_a_credential_goes_out_of_an_object_whose_name_is_taken_too(cluster: Cluster) -> None:
    first = cluster.make()
    second = cluster.make("/b", {**HUB, "accessToken": "hf_x"})
    cluster.known.apply_event(first.name, replace(first, spec=replace(first.spec, path="/b")))
    cluster.look(second)
    found = cluster.caches.get(second.name)
    assert found
    assert found.spec.options == HUB
    assert cluster.caches.read_credential(found) == {"accessToken": "hf_x"}


def test_a_new_leader_goes_on_from_what_the_last_one_left_and_not_from_what_it_saw_itself(
    cluster: Cluster,
) -> None:
    made, follower = cluster.make(), DataCacheIndex()
    follower.apply_event(made.name, made)
    cluster.look(made)
    cluster.orders.say(made.name, PrewarmState.READY)
    left = cluster.look(made)
    follower.resync(cluster.caches.find)
    assert follower.get(made.name) == left
    follower.apply_event(made.name, made)
    assert follower.get(made.name) == left, "a watch may tell of it later"


def test_what_is_heard_while_one_looks_is_not_lost(cluster: Cluster) -> None:
    old, gone = cluster.make(), cluster.make("/b")
    known = DataCacheIndex()
    for cache in (old, gone):
        known.apply_event(cache.name, cache)
    newer = replace(old, generation=2)

    def find() -> list[DataCache]:
        found = cluster.caches.find()
        known.apply_event(old.name, newer)
        known.apply_event(gone.name, None)
        known.apply_event("edc-new", replace(old, name="edc-new", uid="new"))
        return found

    known.resync(find)
    assert {cache.name: cache.generation for cache in known.list_all()} == {old.name: 2, "edc-new": 1}
    known.apply_event(old.name, old)
    assert known.get(old.name) == newer, "a watch that is behind brings no old spec back"


def test_who_met_all_knows_those_too_that_the_watch_has_not_told_of(cluster: Cluster) -> None:
    known, made = DataCacheIndex(), cluster.make()
    known.fetch_missing(cluster.caches.find)
    assert known.list_all() == [made]
    known.apply_event(made.name, None)
    known.fetch_missing(lambda: [made])
    assert known.list_all() == [made]


@pytest.mark.parametrize("mended_before_the_status_is_written", [False, True])
def test_what_was_being_prepared_before_an_object_was_malformed_is_not_taken_for_a_later_spec(
    cluster: Cluster, mended_before_the_status_is_written: bool, tmp_path: Path
) -> None:
    made = cluster.make()
    cluster.look(made)
    file = tmp_path / "data-caches" / f"{made.name}.json"
    stored = json.loads(file.read_text())
    stored["metadata"]["generation"] = 2
    stored["spec"]["dataSource"]["options"]["repoId"] = "org/other"
    cluster.images.origin["/a"] = content("b", repo="org/other")
    path = stored["spec"]["path"]
    if mended_before_the_status_is_written:
        file.write_text(json.dumps(stored))
        cluster.caches.write_malformed(made.name, "malformed")
    else:
        file.write_text(json.dumps(stored | {"spec": stored["spec"] | {"path": "a"}}))
        cluster.known.apply_event(made.name, None)
        cluster.reconciler.reconcile(made.name)
        stored = json.loads(file.read_text())
        assert stored["status"]["status"] == "Failed"
        stored["spec"]["path"] = path
        file.write_text(json.dumps(stored))
    cluster.start()
    cluster.look(made)
    cluster.orders.say(made.name, PrewarmState.READY, 100)
    assert cluster.look(made).state.content == content("b", repo="org/other")
