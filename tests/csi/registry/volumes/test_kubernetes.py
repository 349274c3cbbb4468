"""What a registry in a cluster does beyond a folder: any id, replicas, missing rights, status.

On a real API server.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller_plugin.leader import Leader
from controller_plugin.pvc_annotations import ClusterPvcs
from csi.cluster.access import ClusterAccess
from csi.cluster.api_server import JSON, ApiServer
from csi.errors import ClusterForbids, ClusterUnavailable, DataCacheError, FailedPrecondition
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.performance_keys import Performance
from csi.registry.factories import find_api_server
from csi.registry.pins.kubernetes import KubernetesPinRegistry, pins_path
from csi.registry.prewarms.kubernetes import KubernetesNodePrewarms
from csi.registry.prewarms.prewarms import PrewarmedCache
from csi.registry.volumes.codec import decode, encode, object_name
from csi.registry.volumes.kubernetes import MAX_SELECTED_VOLUMES, KubernetesVolumeRegistry
from csi.registry.volumes.record import WatchedVolumes
from tests import apiserver
from tests.apiserver import NODE, STRANGER, VOLUMES
from tests.controller_plugin.test_cluster_pvcs import InCluster
from tests.csi.registry.kinds import Told, record
from tests.csi.registry.pins.test_pins import NODE as NODE_HOLDER
from tests.csi.registry.pins.test_pins import VOLUME, pin
from tests.csi.registry.prewarms import kinds
from tests.csi.registry.rights import CONTROLLER_RIGHTS, NODE_RIGHTS, grant
from tests.origins.onc_rpc import free_port, wait_until

NAS = CacheSpec(NasSpec("nas.example.com", "/models"))


class Counted(ApiServer):
    """A client that counts its calls, watches among them."""

    def __init__(self, access: ClusterAccess) -> None:
        super().__init__(access)
        self.calls: list[str] = []

    def _send_authorized(self, method: str, url: str, *more: Any, **named: Any) -> Any:
        self.calls.append(f"{method} {url}")
        return super()._send_authorized(method, url, *more, **named)


def said(cluster: apiserver.ApiServer, name: str) -> dict[str, Any]:
    return cluster.client().call("GET", f"{VOLUMES}/{name}").get("status", {})


def said_of_pin(cluster: apiserver.ApiServer) -> object:
    return cluster.client().call("GET", pins_path("default", pin().name)).get("status")


IDS = [
    "dc-1",
    "UPPER",
    "fake vol id",
    "../../etc/passwd",
    "ü" * 100,
    "x" * 1024,
    "hashed-1",
    "a_b",
    "-a",
    "a..b",
    "a/b?c=d#e",
    "\t",
    "a.b-c",
]


@pytest.mark.parametrize("volume_id", IDS)
def test_ids_of_any_form_are_kept(cluster: apiserver.ApiServer, volume_id: str) -> None:
    registry, kept = KubernetesVolumeRegistry(cluster.client()), record(volume_id)
    told = Told()
    with registry.watch(told), registry.watch(told, WatchedVolumes([volume_id])):
        registry.put(kept)
        assert {told.until(volume_id).pop(), told.until(volume_id).pop()} == {volume_id}
    assert registry.get(volume_id) == kept
    assert registry.list_page("", 0) == [kept]
    registry.delete(volume_id)
    assert registry.get(volume_id) is None
    assert registry.list_page("", 0) == []


@settings(max_examples=200)
@given(ids=st.lists(st.text(min_size=1, max_size=300), min_size=2, max_size=2, unique=True))
def test_every_id_has_one_name_that_no_other_has(ids: list[str]) -> None:
    names = [object_name(volume_id) for volume_id in ids]
    assert names == [object_name(volume_id) for volume_id in ids]
    assert len(set(names)) == 2
    assert all(len(name) <= 253 and name == name.lower() and name.isascii() for name in names)


@given(
    created=st.floats(0, 2**33),
    capacity=st.integers(5, 2**44),
    iops=st.none() | st.integers(1, 10**6),
    bursting=st.none() | st.booleans(),
)
def test_a_record_and_its_object_say_the_same(
    created: float, capacity: int, iops: int | None, bursting: bool | None
) -> None:
    created = round(created, 7)
    kept = record(
        "dc-1",
        created_at=created,
        capacity_bytes=capacity,
        performance=Performance(provisioned_iops=iops, bursting=bursting),
    )
    assert decode(json.loads(json.dumps(encode(kept)))) == kept


def test_replicas_that_make_one_volume_at_once_agree(cluster: apiserver.ApiServer) -> None:
    """Each has resolved a moving revision to another commit; all answer with the one that counts."""
    for turn in range(5):
        gate, answers = threading.Barrier(4), []

        def add(
            number: int, turn: int = turn, gate: threading.Barrier = gate, answers: list[str] = answers
        ) -> None:
            replica = KubernetesVolumeRegistry(cluster.client())
            mine = record(f"dc-{turn}", digest=f"{number:064x}", created_at=1e9 + number)
            gate.wait(30)
            answers.append(replica.add(mine).digest)

        threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 4
        assert len(set(answers)) == 1


def test_a_change_does_not_bring_a_deleted_volume_back(cluster: apiserver.ApiServer) -> None:
    registry, other = KubernetesVolumeRegistry(cluster.client()), KubernetesVolumeRegistry(cluster.client())
    registry.put(record("dc-1"))

    def while_deleted(found: Any) -> Any:
        other.delete("dc-1")
        return record("dc-1", performance=Performance(read_iops=9))

    assert registry.change("dc-1", while_deleted) is None
    assert registry.get("dc-1") is None


def test_a_call_makes_few_requests_and_a_watch_of_nothing_none(cluster: apiserver.ApiServer) -> None:
    server = Counted(cluster.access())
    registry, told, wanted = KubernetesVolumeRegistry(server), Told(), WatchedVolumes()
    registry.add(record("dc-1"))
    registry.get("dc-1")
    registry.change("dc-1", lambda found: record("dc-1", performance=Performance(read_iops=9)))
    registry.delete("dc-1")
    assert [call.split()[0] for call in server.calls] == ["PATCH", "GET", "GET", "PATCH", "DELETE"]
    server.calls.clear()
    registry.put(record("dc-1"))
    with registry.watch(told, wanted):
        assert len(server.calls) == 1
        for number in range(50):
            wanted.add(f"dc-{number}")
        told.until("dc-1")
        registry.put(record("dc-1", performance=Performance(read_iops=9)))
        told.until("dc-1")
    assert len(server.calls) <= 12, "what is wanted at once is asked for at once"


def test_more_volumes_than_a_url_may_name_are_watched(cluster: apiserver.ApiServer) -> None:
    registry, told = KubernetesVolumeRegistry(cluster.client()), Told()
    with registry.watch(told, WatchedVolumes(f"dc-{number}" for number in range(MAX_SELECTED_VOLUMES + 1))):
        registry.put(record("dc-other"))
        registry.put(record("dc-7"))
        assert told.until("dc-7") == {"dc-7"}


def test_an_object_that_cannot_be_read_is_told_by_its_name_and_harms_no_other(
    cluster: apiserver.ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    registry, bad = KubernetesVolumeRegistry(cluster.client()), encode(record("dc-1"))
    bad["spec"]["parameters"] = {"type": "NoSuchSource"}
    cluster.kubectl("apply", "-f", "-", stdin=bad)
    registry.put(record("dc-2"))
    with pytest.raises(DataCacheError, match="CacheVolume dc-1 cannot be read"):
        registry.get("dc-1")
    assert registry.list_page("", 0) == [record("dc-2")]
    assert "dc-1" in str([getattr(line, "fields", {}) for line in caplog.records])
    registry.delete("dc-1")


def test_a_missing_right_is_named(cluster: apiserver.ApiServer) -> None:
    registry = KubernetesVolumeRegistry(cluster.client(STRANGER))
    with pytest.raises(
        ClusterForbids,
        match=f'"{STRANGER}" cannot get resource "cachevolumes" in API group "datacache.csi.io"',
    ):
        registry.get("dc-1")
    with pytest.raises(ClusterForbids, match="cannot patch"):
        registry.put(record("dc-1"))
    with pytest.raises(ClusterForbids, match="cannot list"):
        registry.list_page("", 0)


def test_a_server_that_is_not_there_is_unavailable_and_found_so_once(tmp_path: Path) -> None:
    registry, told = (
        KubernetesVolumeRegistry(
            ApiServer(ClusterAccess(f"https://127.0.0.1:{free_port()}", token="s3cr3t"))
        ),
        Told(),
    )
    for _ in range(3):
        with pytest.raises(ClusterUnavailable, match="cannot be reached") as error:
            registry.get("dc-1")
        assert "s3cr3t" not in str(error.value)
    with registry.watch(told), registry.maintain_statuses():
        pass
    assert told.silent


def test_a_server_without_the_crds_says_what_to_apply() -> None:
    if apiserver.programs() is None:
        pytest.skip(apiserver.NOT_RUN)
    with (
        apiserver.ApiServer(crds=False) as bare,
        pytest.raises(FailedPrecondition, match="apply deploy/crds"),
    ):
        KubernetesVolumeRegistry(bare.client()).get("dc-1")


def test_outside_of_a_cluster_the_word_kubernetes_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FailedPrecondition, match="KUBECONFIG"):
        find_api_server("kubernetes")


def test_who_tends_says_in_the_status_what_a_volume_is(cluster: apiserver.ApiServer) -> None:
    registry = KubernetesVolumeRegistry(cluster.client())
    registry.put(record("dc-before", content_bytes=7 * 2**30, capacity_bytes=8 * 2**30))
    with registry.maintain_statuses():
        registry.put(record("dc-nas", requested_spec=NAS, spec=NAS))
        assert wait_until(lambda: bool(said(cluster, "dc-before") and said(cluster, "dc-nas")), 30)
        status = said(cluster, "dc-before")
        (condition,) = status.pop("conditions")
        hub = {
            "source": "HuggingFace/Model org/name",
            "revision": "main",
            "pin": "0123456789ab",
            "image": "a" * 12,
            "size": "7Gi",
        }
        assert status == {"observedGeneration": 1, **hub}
        assert (condition["type"], condition["status"], condition["reason"]) == ("Resolved", "True", "Pinned")
        assert said(cluster, "dc-nas")["source"] == "NAS nas.example.com:/models"
        row = cluster.kubectl("get", "dcv", "dc-before", "--no-headers").split()
        assert row[:7] == [
            "dc-before",
            "HuggingFace/Model",
            "org/name",
            "main",
            "0123456789ab",
            "7Gi",
            "a" * 12,
        ]


def test_a_status_follows_its_volume_and_says_what_cannot_be_read(cluster: apiserver.ApiServer) -> None:
    registry = KubernetesVolumeRegistry(cluster.client())
    registry.put(record("dc-1"))

    def condition() -> dict[str, Any]:
        return next(iter(said(cluster, "dc-1").get("conditions", [])), {})

    with registry.maintain_statuses():
        assert wait_until(lambda: condition().get("status") == "True", 30)
        since = condition()["lastTransitionTime"]
        registry.change("dc-1", lambda found: record("dc-1", performance=Performance(read_iops=9)))
        assert wait_until(lambda: condition()["observedGeneration"] == 2, 30)
        assert condition()["lastTransitionTime"] == since
        cluster.client().call(
            "PATCH",
            f"{VOLUMES}/dc-1",
            {},
            {"spec": {"parameters": {"type": "NoSuchSource"}}},
            "application/merge-patch+json",
        )
        assert wait_until(lambda: condition()["status"] == "False", 30)
        assert condition()["reason"] == "Unreadable"
        assert "type is 'NoSuchSource'" in condition()["message"]


def test_a_status_wakes_no_watcher(cluster: apiserver.ApiServer) -> None:
    registry, told = KubernetesVolumeRegistry(cluster.client()), Told()
    with registry.watch(told):
        registry.put(record("dc-1"))
        told.until("dc-1")
        with registry.maintain_statuses():
            assert wait_until(lambda: bool(said(cluster, "dc-1")), 30)
        registry.put(record("dc-2"))
        assert told.until("dc-2") == {"dc-2"}


def test_a_node_plugin_needs_no_right_to_write(cluster: apiserver.ApiServer) -> None:
    grant(cluster, NODE, NODE_RIGHTS)
    registry, node, told = (
        KubernetesVolumeRegistry(cluster.client()),
        KubernetesVolumeRegistry(cluster.client(NODE)),
        Told(),
    )
    assert wait_until(lambda: not forbidden(lambda: node.get("dc-1")), 30)
    registry.put(record("dc-1"))
    with node.watch(told, WatchedVolumes(["dc-1"])):
        registry.put(record("dc-1", performance=Performance(read_iops=9)))
        told.until("dc-1")
    assert node.get("dc-1") == record("dc-1", performance=Performance(read_iops=9))
    assert "cannot patch" in forbidden(lambda: node.put(record("dc-1")))


def forbidden(call: Callable[[], object]) -> str:
    """What the server says when it forbids the call, "" where it does not."""
    try:
        call()
    except ClusterForbids as error:
        return str(error)
    return ""


def controller_life(
    cluster: apiserver.ApiServer, registry: KubernetesVolumeRegistry, caplog: pytest.LogCaptureFixture
) -> str:
    """All that a controller does with its registry; what was forbidden of it, "" for nothing."""
    caplog.clear()
    name = f"life-{uuid.uuid4().hex[:8]}"
    pins = KubernetesPinRegistry(registry._server)
    leader = Leader(registry._server, registry, pins)

    def logged() -> str:
        return "".join(
            str(getattr(line, "fields", ""))
            for line in caplog.records
            if "cannot" in str(getattr(line, "fields", ""))
        )

    def live() -> None:
        registry.add(record("dc-1"))
        registry.change("dc-1", lambda found: record("dc-1", performance=Performance(read_iops=9)))
        registry.list_page("", 0)
        pins.add_holder(pin(), VOLUME)
        with leader.campaign(name):
            wait_until(lambda: bool((said(cluster, "dc-1") and said_of_pin(cluster)) or logged()), 30)
        pins.add_holder(pin(), NODE_HOLDER)
        show_a_node_that_is_gone(cluster)
        sweeper = leader.build_garbage_collector()
        for _ in range(2):
            sweeper.collect()
        for holder in (VOLUME, NODE_HOLDER):
            pins.remove_holder("default", pin().name, holder)
        registry.delete("dc-1")
        ClusterPvcs(registry._server).read_annotations("default", "models")

    return forbidden(live) or logged()


def show_a_node_that_is_gone(cluster: apiserver.ApiServer) -> None:
    orders = kinds.InCluster(cluster)
    made = orders.put(kinds.order("swept", PrewarmedCache({"repoId": "org/model"})))
    KubernetesNodePrewarms(cluster.client(), "node-gone", orders.registry)._write_status(made, kinds.READY)
    orders.close()


def test_a_controller_needs_each_of_its_rights_and_no_other(
    cluster: apiserver.ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = cluster.client(STRANGER)
    registry = KubernetesVolumeRegistry(server)
    grant(cluster, STRANGER, CONTROLLER_RIGHTS)
    InCluster(cluster).put("default", "models", {})
    assert wait_until(lambda: not controller_life(cluster, registry, caplog), 60)
    for missing in CONTROLLER_RIGHTS:
        if missing[1:] in (("cachevolumes", "watch"), ("cachepins", "watch")):
            continue  # the first list is told without it, and so the only status here
        cluster.forget_volumes()
        grant(cluster, STRANGER, [right for right in CONTROLLER_RIGHTS if right != missing])
        wanted = f"cannot {missing[2]} resource"
        assert wait_until(lambda wanted=wanted: wanted in controller_life(cluster, registry, caplog), 30), (
            missing
        )  # type: ignore[misc]
    grant(cluster, STRANGER, [])


def test_what_a_newer_driver_wrote_is_refused_where_the_crd_is_older(cluster: apiserver.ApiServer) -> None:
    newer = encode(record("dc-1"))
    newer["spec"]["flavour"] = "vanilla"
    with pytest.raises(FailedPrecondition, match="older than this driver.*flavour.*apply deploy/crds"):
        KubernetesVolumeRegistry(cluster.client())._apply(newer)
    assert cluster.client().call("GET", VOLUMES, accept=JSON)["items"] == []
