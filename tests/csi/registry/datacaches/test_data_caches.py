"""What every keeper of DataCaches does: a folder, and the objects of a cluster on a real API server."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from csi.errors import AlreadyExists, Busy, DataCacheError, FailedPrecondition
from csi.linux.inotify import FileEvent, FileEventKind, FolderWatcher
from csi.parameters.data_cache import parse_data_cache
from csi.registry.datacaches.data_caches import (
    DataCache,
    DataCacheContent,
    DataCacheEvent,
    DataCacheRegistry,
    DataCacheState,
    MalformedDataCache,
    Phase,
    SecretRef,
    data_cache_id_from_uid,
    find_longest_match,
)
from csi.registry.datacaches.directory import DirectoryDataCacheRegistry
from csi.registry.datacaches.kubernetes import KubernetesDataCacheRegistry
from tests.apiserver import ApiServer

HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/name"}
CONTENT = DataCacheContent("a" * 64, {"repoId": "org/name", "revision": "0" * 40}, 8192, 5)
READY = DataCacheState(
    Phase.AVAILABLE,
    100,
    1,
    CONTENT,
    None,
    True,
    "",
    2e9,
    0.0,
    (DataCacheEvent("Normal", "Filled", "5 bytes", 2, 1e9, 1.1e9),),
)
NAMESPACE = "default"


@pytest.fixture(params=["directory", "kubernetes"])
def caches(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DataCacheRegistry]:
    """Empty ones."""
    if request.param == "directory":
        yield DirectoryDataCacheRegistry(tmp_path)
    else:
        cluster: ApiServer = request.getfixturevalue("cluster")
        yield KubernetesDataCacheRegistry(cluster.client(), NAMESPACE)


def wanted(path: str = "/models/one", bucket: str = "", **more: object) -> DataCache:
    """A DataCache to add, with `more` in place of what it has."""
    spec = parse_data_cache(
        bucket,
        path,
        "URL",
        HUB,
        size_gib=30,
        retention_days=2,
        networks=("vsw-1",),
        namespaces=("team",),
        node_selector={"pool": "a"},
        refresh="1",
    )
    base = DataCache(
        "",
        "",
        0,
        0.0,
        spec,
        title="llama",
        tags={"team": "a", "empty": ""},
        resource_group="rg-1",
        client_token="once",
    )
    return replace(base, **more)  # type: ignore[arg-type]


def test_what_is_added_is_found_as_it_was_given(caches: DataCacheRegistry) -> None:
    made = caches.add(wanted(), {})
    assert replace(made, name="", uid="", generation=0, created_at=0.0) == wanted()
    assert made.id.startswith("edc-")
    assert made.generation == 1
    assert (
        caches.find((made.id,))
        == caches.find(bucket="default", path="/models/one")
        == caches.find(bucket="default")
        == caches.find()
        == [made]
    )
    assert caches.get(made.name) == made
    assert (
        caches.find(("edc-other",))
        == caches.find(bucket="other")
        == caches.find(bucket="default", path="/models")
        == []
    )
    assert caches.get("other") is None


def test_several_are_found_oldest_first(caches: DataCacheRegistry) -> None:
    made = [caches.add(wanted(f"/models/{name}", bucket), {}) for name in "cab" for bucket in ("x", "y")]
    assert {one.id for one in caches.find()} == {one.id for one in made}
    assert len({one.id for one in made}) == 6
    found = caches.find(tuple(one.id for one in made[:2]))
    assert {one.id for one in found} == {made[0].id, made[1].id}
    assert found == sorted(found, key=lambda one: (one.created_at, one.uid))


def test_a_bucket_and_path_are_the_name_of_one(caches: DataCacheRegistry) -> None:
    caches.add(wanted(), {})
    with pytest.raises(AlreadyExists, match="bucket default, path /models/one"):
        caches.add(wanted(), {})
    caches.add(wanted(bucket="other"), {})


def test_of_many_who_add_at_once_one_does(caches: DataCacheRegistry) -> None:
    results: queue.Queue[object] = queue.Queue()

    def add() -> None:
        try:
            results.put(caches.add(wanted(), {}))
        except AlreadyExists as error:
            results.put(error)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [one for one in (results.get_nowait() for _ in threads) if isinstance(one, DataCache)]
    assert len(made) == 1
    assert caches.find() == made


def test_another_of_the_same_place_after_the_first_is_gone_is_another(caches: DataCacheRegistry) -> None:
    first = caches.add(wanted(), {})
    caches.delete(first)
    assert caches.find((first.id,)) == []
    assert caches.get(first.name) is None
    second = caches.add(wanted(), {})
    assert second.id != first.id
    caches.delete(first)
    assert caches.find() == [second]


def test_a_change_is_another_generation_and_leaves_the_state(caches: DataCacheRegistry) -> None:
    made = caches.add(wanted(), {})
    caches.write_state(made, READY)
    other = parse_data_cache("", "/models/one", "NAS", {"server": "nas", "path": "/a"})
    changed = caches.change(made, lambda cache: replace(cache, spec=other, title="new", tags={}))
    assert changed
    assert changed.generation > made.generation
    assert (changed.spec, changed.title, changed.tags) == (other, "new", {})
    assert changed.state == READY
    assert caches.find((made.id,)) == [changed]
    assert caches.change(made, lambda cache: cache) == changed
    assert caches.change(replace(made, uid="other"), lambda cache: cache) is None


def test_changes_at_once_lose_none(caches: DataCacheRegistry) -> None:
    made = caches.add(wanted(), {})

    def tag(name: str) -> None:
        caches.change(made, lambda cache: replace(cache, tags={**cache.tags, name: ""}))

    threads = [threading.Thread(target=tag, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set("abcd") <= caches.find((made.id,))[0].tags.keys()


def test_a_state_is_read_as_it_was_put_and_is_of_that_very_cache(caches: DataCacheRegistry) -> None:
    made = caches.add(wanted(), {})
    caches.write_state(made, READY)
    assert caches.find((made.id,)) == [replace(made, state=READY)]
    bare = DataCacheState(Phase.UPDATE_FAILED, 0, 1, None, CONTENT, False, "the hub is gone")
    caches.write_state(made, bare)
    assert caches.find((made.id,))[0].state == bare
    caches.write_state(replace(made, uid="another"), READY)
    assert caches.find((made.id,))[0].state == bare


def test_when_it_was_asked_for_stays_through_other_states(caches: DataCacheRegistry) -> None:
    made = caches.add(wanted(), {})
    caches.write_match_time(made, 1.5e9)
    caches.write_state(made, READY)
    assert caches.find((made.id,))[0].state == replace(READY, last_matched_at=1.5e9)
    caches.delete(made)
    caches.write_match_time(made, 1.6e9)
    caches.write_state(made, READY)
    assert caches.find() == []


def test_a_credential_is_kept_apart_and_goes_with_its_cache(
    caches: DataCacheRegistry, tmp_path: Path
) -> None:
    made = caches.add(wanted(), {"accessToken": "hf_1"})
    assert made.secret_ref
    assert caches.read_credential(made) == {"accessToken": "hf_1"}
    assert "hf_1" not in repr(made)
    changed = caches.change(made, lambda cache: replace(cache, title="new"), {"accessToken": "hf_2"})
    assert changed
    assert caches.read_credential(changed) == {"accessToken": "hf_2"}
    without = caches.add(wanted("/models/two"), {})
    assert caches.read_credential(without) == {}
    later = caches.change(without, lambda cache: cache, {"token": "late"})
    assert later
    assert later.secret_ref
    assert caches.read_credential(later) == {"token": "late"}


def test_a_credential_that_is_not_wanted_any_more_goes(caches: DataCacheRegistry, tmp_path: Path) -> None:
    made = caches.add(wanted(), {"accessToken": "hf_1"})
    changed = caches.change(made, lambda cache: replace(cache, secret_ref=None))
    assert changed
    assert changed.secret_ref is None
    assert caches.read_credential(changed) == {}
    assert made.secret_ref
    if isinstance(caches, DirectoryDataCacheRegistry):
        assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"hf_1" in file.read_bytes()]
    else:
        assert caches.read_credential(made) == {}
    assert caches.change(changed, lambda cache: cache, {"accessToken": "hf_2"})
    assert caches.read_credential(made) == {"accessToken": "hf_2"}


@pytest.mark.parametrize("networks", [(), ("vsw-1",), ("", "sg-1"), ("vsw-1", "sg-1"), ("same", "same")])
def test_a_vswitch_and_a_security_group_stay_what_they_are(
    caches: DataCacheRegistry, networks: tuple[str, ...]
) -> None:
    made = caches.add(wanted(spec=parse_data_cache("", "/models/one", "URL", HUB, networks=networks)), {})
    changed = caches.change(made, lambda cache: replace(cache, title="new"))
    assert made.spec.networks == networks
    assert changed
    assert changed.spec == made.spec


def test_what_is_no_id_finds_nothing_and_harms_no_other(caches: DataCacheRegistry) -> None:
    made = caches.add(wanted(), {})
    odd = ("edc-bp1a7n7uawwwol******", "x" * 100, "edc 1", "", "a,b)")
    assert caches.find((*odd, made.id)) == [made]
    assert caches.find(odd) == []


def test_a_credential_that_is_not_there_is_named(caches: DataCacheRegistry) -> None:
    made = caches.add(wanted(), {})
    with pytest.raises(FailedPrecondition, match="does not exist"):
        caches.read_credential(
            replace(
                made,
                secret_ref=SecretRef(
                    "" if isinstance(caches, DirectoryDataCacheRegistry) else NAMESPACE, "edc-lost"
                ),
            )
        )


def test_all_images_are_told_that_any_holds_or_is_to_hold(caches: DataCacheRegistry) -> None:
    coming = replace(CONTENT, digest="b" * 64)
    for path, state in (("/a", READY), ("/b", replace(READY, next_content=coming)), ("/c", DataCacheState())):
        caches.write_state(caches.add(wanted(path), {}), state)
    assert caches.list_digests() == {"a" * 64, "b" * 64}


def test_images_of_what_cannot_be_read_are_told_of_too(tmp_path: Path) -> None:
    caches = DirectoryDataCacheRegistry(tmp_path)
    made = caches.add(wanted(), {})
    caches.write_state(made, READY)
    file = tmp_path / "data-caches" / f"{made.name}.json"
    file.write_text(file.read_text().replace('"/models/one"', '"models"'))
    assert caches.find() == []
    assert caches.list_digests() == {"a" * 64}


def test_a_malformed_cache_shows_what_is_wrong_and_keeps_its_image(tmp_path: Path) -> None:
    caches = DirectoryDataCacheRegistry(tmp_path)
    made = caches.add(wanted(), {})
    caches.write_state(made, READY)
    file = tmp_path / "data-caches" / f"{made.name}.json"
    whole = file.read_text()
    file.write_text(whole.replace('"/models/one"', '"models"'))
    with pytest.raises(MalformedDataCache, match="path is .*models.*; it is an absolute path"):
        caches.get(made.name)
    for _ in range(2):
        caches.write_malformed(made.name, "it is malformed")
        written = file.stat().st_ino
    assert caches.list_names() == {made.name}
    assert caches.list_digests() == {"a" * 64}
    file.write_text(file.read_text().replace('"models"', '"/models/one"'))
    mended = caches.get(made.name)
    assert mended
    assert mended.state.phase is Phase.FAILED
    assert mended.state.message == "it is malformed"
    assert mended.state.content == CONTENT
    assert file.stat().st_ino == written


def test_an_object_that_cannot_be_read_shows_it_in_kubectl_get_until_it_is_mended(cluster: ApiServer) -> None:
    """The server cannot check a path as thoroughly as the driver, and others may write a status."""
    caches = KubernetesDataCacheRegistry(cluster.client(), NAMESPACE)
    made = caches.add(wanted(), {})
    caches.write_state(made, READY)
    patch = ("patch", "edc", made.name, "--subresource=status", "--type=merge", "-p")
    heard: queue.Queue[tuple[str, DataCache | None]] = queue.Queue()
    with caches.watch(lambda name, cache: heard.put((name, cache))):
        assert heard.get(timeout=30)[1]
        by_hand = {
            "apiVersion": "eci.aliyun.com/v1alpha1",
            "kind": "DataCache",
            "metadata": {"name": "by-hand"},
            "spec": {"path": "/models/a\u00a0b", "dataSource": {"type": "URL", "options": HUB}},
        }
        cluster.kubectl("create", "-f", "-", stdin=by_hand)
        assert heard.get(timeout=30) == ("by-hand", None)
    with pytest.raises(MalformedDataCache, match="path is ") as unreadable:
        caches.get("by-hand")
    caches.write_malformed("by-hand", str(unreadable.value))
    shown = cluster.kubectl("get", "edc", "by-hand", "-o", "wide")
    assert "Failed" in shown
    assert "it is an absolute path below /" in shown
    assert caches.list_names() == {made.name, "by-hand"}
    cluster.kubectl(*patch, '{"status": {"progress": "half"}}')
    with pytest.raises(MalformedDataCache, match="status: .*half") as unreadable:
        caches.get(made.name)
    caches.write_malformed(made.name, str(unreadable.value))
    mended = caches.get(made.name)
    assert mended
    assert mended.state.phase is Phase.FAILED
    assert mended.state.content == CONTENT


def test_a_credential_that_is_just_being_written_is_waited_for(
    cluster: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = KubernetesDataCacheRegistry(cluster.client(), NAMESPACE)
    made = caches.add(wanted(), {"accessToken": "hf_1"})
    assert made.secret_ref
    cluster.kubectl("delete", "secret", made.secret_ref.name)
    with pytest.raises(Busy, match="is being written"):
        caches.read_credential(made)
    with pytest.raises(FailedPrecondition, match="does not exist; create it"):
        caches.read_credential(replace(made, created_at=made.created_at - 3600))


def test_a_credential_is_in_its_secret_before_the_object_is_without_it(
    cluster: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = KubernetesDataCacheRegistry(cluster.client(), NAMESPACE)
    spec = parse_data_cache("", "/models/one", "URL", {**HUB, "accessToken": "hf_1"})
    made = caches.add(DataCache("", "", 0, 0.0, spec), {})

    def killed(*given: object) -> DataCache:
        raise KeyboardInterrupt

    monkeypatch.setattr(caches, "_replace_spec", killed)
    with pytest.raises(KeyboardInterrupt):
        caches.change(
            made, lambda cache: replace(cache, spec=cache.spec.with_options(HUB)), {"accessToken": "hf_1"}
        )
    there = caches.find()[0]
    assert there.spec == spec
    assert caches.read_credential(replace(there, secret_ref=caches._owned_secret_ref(there.name))) == {
        "accessToken": "hf_1"
    }


def test_a_credential_is_for_the_source_that_it_was_given_for(caches: DataCacheRegistry) -> None:
    made = caches.add(wanted(), {"accessToken": "hf_1"})
    assert caches.is_credential_in_scope(made)
    assert caches.is_credential_in_scope(caches.add(wanted("/models/two"), {}))
    other = replace(made, spec=made.spec.with_options({**HUB, "repoId": "org/other", "revision": "v2"}))
    assert caches.is_credential_in_scope(other)
    caches.change(made, lambda cache: replace(cache, title="new"), {"accessToken": "hf_2"})
    assert caches.is_credential_in_scope(made)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "https://files.example.org/a.bin"},
        {**HUB, "repoSource": "ModelScope/Model"},
        {"nothing": "known"},
    ],
)
def test_whoever_changes_an_object_does_not_get_its_credential_sent_elsewhere(
    cluster: ApiServer, options: dict[str, str]
) -> None:
    caches = KubernetesDataCacheRegistry(cluster.client(), NAMESPACE)
    made = caches.add(wanted(), {"accessToken": "hf_1"})
    moved = caches.change(made, lambda cache: replace(cache, spec=cache.spec.with_options(options)))
    assert moved
    assert moved.secret_ref == made.secret_ref
    assert not caches.is_credential_in_scope(moved)
    assert made.secret_ref
    assert not caches.is_credential_in_scope(replace(moved, secret_ref=SecretRef("", made.secret_ref.name)))
    assert not caches.is_credential_in_scope(replace(moved, name="somebody-elses"))
    given = caches.change(moved, lambda cache: cache, {"accessToken": "another"})
    assert given
    assert caches.is_credential_in_scope(given)
    assert caches.is_credential_in_scope(replace(moved, secret_ref=SecretRef("team", "their-own")))


@pytest.mark.parametrize("path", ["/models/hand/", "//models//hand"])
def test_an_object_whose_path_is_spelled_in_another_way_can_be_changed(cluster: ApiServer, path: str) -> None:
    caches = KubernetesDataCacheRegistry(cluster.client(), NAMESPACE)
    source = {"type": "URL", "options": {**HUB, "accessToken": "hf_1"}}
    net = {"vSwitchId": "vsw-1", "securityGroupId": "sg-1", "netConfig": {"vSwitchId": "vsw-2"}}
    meta = {"apiVersion": "eci.aliyun.com/v1alpha1", "kind": "DataCache", "metadata": {"name": "spelled"}}
    cluster.kubectl("create", "-f", "-", stdin={**meta, "spec": {"path": path, "dataSource": source, **net}})
    made = caches.get("spelled")
    assert made
    assert made.spec.path == "/models/hand"
    assert made.spec.networks == ("vsw-2", "sg-1")
    changed = caches.change(
        made, lambda cache: replace(cache, spec=cache.spec.with_options(HUB)), {"accessToken": "hf_1"}
    )
    assert changed
    assert changed.spec.options == HUB
    assert changed.spec.networks == made.spec.networks
    assert caches.read_credential(changed) == {"accessToken": "hf_1"}
    resized = caches.change(changed, lambda cache: replace(cache, spec=replace(cache.spec, size_gib=40)))
    assert resized
    assert resized.spec.size_gib == 40
    assert [one.name for one in caches.find(bucket="default", path="/models/hand")] == ["spelled"]


def test_a_watcher_hears_of_all_there_are_and_of_what_comes_and_goes(caches: DataCacheRegistry) -> None:
    told: queue.Queue[tuple[str, DataCache | None]] = queue.Queue()

    def next_of(name: str) -> DataCache | None:
        while True:
            heard, cache = told.get(timeout=30)
            if heard == name:
                return cache

    first = caches.add(wanted(), {})
    with caches.watch(lambda name, cache: told.put((name, cache))):
        assert next_of(first.name) == first
        second = caches.add(wanted("/models/two"), {})
        heard = next_of(second.name)
        assert heard
        assert heard.id == second.id
        changed = caches.change(second, lambda cache: replace(cache, title="new"))
        while (heard := next_of(second.name)) != changed:
            assert heard
        caches.delete(first)
        assert next_of(first.name) is None


def test_the_longest_path_that_holds_another_is_its_match() -> None:
    def at(path: str, bucket: str = "default", created: float = 1.0) -> DataCache:
        return DataCache(path, path, 1, created, parse_data_cache(bucket, path, "URL", HUB))

    there = [
        at("/models"),
        at("/models/llama"),
        at("/models/llama-2"),
        at("/models/llama", "other"),
        at("/models/llama", created=0.5),
    ]
    assert find_longest_match(there, "default", "/models/llama/tokenizer") == there[4]
    assert find_longest_match(there, "default", "/models/llama-3") == there[0]
    assert find_longest_match(there, "default", "/model") is None
    assert find_longest_match(there, "none", "/models") is None


def test_an_object_made_by_hand_is_found_by_id_and_place_once_a_watcher_has_labelled_it(
    cluster: ApiServer,
) -> None:
    caches = KubernetesDataCacheRegistry(cluster.client(), NAMESPACE)
    meta = {"apiVersion": "eci.aliyun.com/v1alpha1", "kind": "DataCache", "metadata": {"name": "by-hand"}}
    cluster.kubectl(
        "create",
        "-f",
        "-",
        stdin={**meta, "spec": {"path": "/models/hand", "dataSource": {"type": "URL", "options": HUB}}},
    )
    heard: queue.Queue[DataCache | None] = queue.Queue()
    with caches.watch(lambda name, cache: heard.put(cache)):
        cache = heard.get(timeout=30)
        assert cache
        assert caches.find((cache.id,)) == caches.find(bucket="default", path="/models/hand") == []
        caches.apply_labels(cache)
        assert (
            [one.name for one in caches.find((cache.id,))]
            == [one.name for one in caches.find(bucket="default", path="/models/hand")]
            == ["by-hand"]
        )


def test_an_object_made_of_anothers_manifest_has_an_id_of_its_own(cluster: ApiServer) -> None:
    caches, assigned = KubernetesDataCacheRegistry(cluster.client(), NAMESPACE), "edc-" + "0a" * 10
    first = caches.add(wanted(assigned_id=assigned), {})
    manifest = json.loads(cluster.kubectl("get", "edc", first.name, "-o", "json"))
    manifest["metadata"]["name"] = "copied"
    for field in ("uid", "resourceVersion"):
        del manifest["metadata"][field]
    cluster.kubectl("create", "-f", "-", stdin=manifest)
    heard: queue.Queue[DataCache | None] = queue.Queue()
    with caches.watch(lambda name, cache: heard.put(cache)):
        for _ in range(2):
            cache = heard.get(timeout=30)
            assert cache
            caches.apply_labels(cache)
    copied = caches.get("copied")
    assert copied
    assert first.id == assigned
    assert copied.id == data_cache_id_from_uid(copied.uid)
    assert copied.client_token == ""
    assert caches.find((first.id,)) == [first]
    assert caches.find((copied.id,)) == [copied]
    cluster.kubectl("delete", "edc", first.name)
    assert caches.find((first.id,)) == []


def test_a_record_that_cannot_be_read_is_not_one_that_does_not_exist(tmp_path: Path) -> None:
    """Whoever lists what is wanted, to remove the rest, must not take it for gone."""
    caches = DirectoryDataCacheRegistry(tmp_path)
    made = caches.add(wanted(), {})
    record = next(path for path in tmp_path.rglob(f"{made.name}.json"))
    record.unlink()
    record.mkdir()
    with pytest.raises(DataCacheError, match=f"{made.name}.json cannot be read: Is a directory"):
        caches.list_digests()
    assert caches.find() == []


def test_what_changed_while_events_were_lost_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches, told = DirectoryDataCacheRegistry(tmp_path), queue.SimpleQueue[str]()
    made = caches.add(wanted(), {})
    lost = queue.SimpleQueue[list[FileEvent]]()
    monkeypatch.setattr(FolderWatcher, "wait", lambda self, timeout=None: lost.get())
    monkeypatch.setattr(FolderWatcher, "wake", lambda self: lost.put([]))
    with caches.watch(lambda name, cache: told.put(name)):
        assert told.get(timeout=60) == made.name
        lost.put([FileEvent(FileEventKind.OVERFLOW)])
        assert told.get(timeout=60) == made.name
