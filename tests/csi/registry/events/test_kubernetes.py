"""What an announcer does in a cluster beyond the fake: few calls, Events that kubectl shows, a server that
is away, missing rights."""

from __future__ import annotations

import json
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.cluster.access import ClusterAccess
from csi.cluster.api_server import ApiServer
from csi.cluster.outbox import Outbox
from csi.errors import ClusterForbids
from csi.parameters.performance_keys import Performance
from csi.registry.events.kubernetes import KubernetesEventRecorder
from csi.registry.events.recorder import ObjectReference
from csi.registry.volumes.fill_status import (
    FILL_STATUS_KEYS,
    MAX_FILLING_NODES,
    FillStatusWriter,
    patch_with_fill,
)
from csi.registry.volumes.kubernetes import KubernetesVolumeRegistry
from tests import apiserver
from tests.apiserver import NODE, VOLUMES
from tests.csi.registry.events.recorders import InCluster, events
from tests.csi.registry.events.test_recorders import pod
from tests.csi.registry.kinds import record
from tests.csi.registry.rights import CONTROLLER_EVENT_RIGHTS, NODE_RIGHTS, NODE_TELLING_RIGHTS, grant
from tests.csi.registry.volumes.test_kubernetes import Counted, forbidden, said
from tests.origins.onc_rpc import free_port, wait_until


def announcer(server: ApiServer, instance: str = "node-1") -> KubernetesEventRecorder:
    return KubernetesEventRecorder(server, "datacache-node", instance, Outbox(write_interval=0.0))


def test_kubectl_describe_shows_them(cluster: apiserver.ApiServer) -> None:
    name = f"reader-{uuid.uuid4().hex[:8]}"
    container = {"name": "main", "image": "example.com/none"}
    thing = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container], "automountServiceAccountToken": False},
    }
    cluster.kubectl("create", "serviceaccount", "default") if "default" not in cluster.kubectl(
        "get", "serviceaccounts", "-o", "name"
    ) else None
    cluster.kubectl("create", "-f", "-", stdin=thing)
    uid = cluster.kubectl("get", "pod", name, "-o", "jsonpath={.metadata.uid}")
    told = announcer(cluster.client())
    told.record(
        ObjectReference("Pod", "default", name, uid),
        "CacheFilling",
        "1.0 GiB of 7.6 GiB (13%), 94 MB/s, about 75 s left",
    )
    assert wait_until(lambda: "CacheFilling" in cluster.kubectl("describe", "pod", name), 20)
    (row,) = [
        line for line in cluster.kubectl("describe", "pod", name).splitlines() if "CacheFilling" in line
    ]
    assert row.split()[0] == "Normal"
    assert "datacache-node" in row
    assert "about 75 s left" in row
    told.close()
    cluster.kubectl("delete", "pod", name, "--force", "--grace-period=0")


def test_kubectl_describe_shows_those_of_a_node(cluster: apiserver.ApiServer) -> None:
    name = f"node-{uuid.uuid4().hex[:8]}"
    cluster.kubectl(
        "create", "-f", "-", stdin={"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    )
    told = announcer(cluster.client(), name)
    for message in ("no EROFS", "no EROFS yet"):
        told.record(ObjectReference.for_node(name), "CannotMountVolumes", message, warning=True)
        assert wait_until(lambda message=message: message in cluster.kubectl("describe", "node", name), 20)
    told.close()
    cluster.kubectl("delete", "node", name)


def test_saying_a_thing_again_is_one_call_and_one_event(cluster: apiserver.ApiServer) -> None:
    server, about = Counted(cluster.access()), pod()
    told = announcer(server)
    for number in range(4):
        told.record(about, "CacheFilling", str(number))
        assert wait_until(
            lambda number=number: [event["message"] for event in events(cluster, about)] == [str(number)], 20
        )
    assert [call.split()[0] for call in server.calls] == ["POST", "PATCH", "PATCH", "PATCH"]
    (event,) = events(cluster, about)
    assert event["count"] == 4
    assert event["firstTimestamp"] <= event["lastTimestamp"]
    assert event["source"] == {"component": "datacache-node", "host": "node-1"}
    assert event["reportingComponent"] == "datacache-node"
    told.close()


def test_a_program_that_started_anew_goes_on_with_its_event_and_another_node_has_its_own(
    cluster: apiserver.ApiServer,
) -> None:
    about = pod()
    for count, instance in enumerate(("node-1", "node-1", "node-2"), 1):
        told = announcer(cluster.client(), instance)
        told.record(about, "CacheFilling", f"said {count}")
        assert wait_until(
            lambda count=count: f"said {count}" in {event["message"] for event in events(cluster, about)}, 20
        )
        told.close()
    assert sorted((event["message"], event["source"]["host"]) for event in events(cluster, about)) == [
        ("said 2", "node-1"),
        ("said 3", "node-2"),
    ]


def test_an_event_that_went_meanwhile_is_made_anew(cluster: apiserver.ApiServer) -> None:
    about, told = pod(), announcer(cluster.client())
    told.record(about, "CacheFilling", "before")
    assert wait_until(lambda: bool(events(cluster, about)), 20)
    cluster.client().call(
        "DELETE", f"/api/v1/namespaces/default/events/{events(cluster, about)[0]['metadata']['name']}"
    )
    told.record(about, "CacheFilling", "after")
    assert wait_until(
        lambda: [(event["message"], event["count"]) for event in events(cluster, about)] == [("after", 1)], 20
    )
    told.close()


def test_a_message_of_any_length_and_a_name_of_any_kind_do_no_harm(cluster: apiserver.ApiServer) -> None:
    told, about = announcer(cluster.client()), pod()
    long = ObjectReference("Pod", "default", "x" * 63 + "." + "y" * 150, str(uuid.uuid4()))
    for subject in (
        ObjectReference("Pod", "../kube-system", "a/b", ""),
        ObjectReference("Pod", "no-such-namespace", "a", ""),
        long,
    ):
        told.record(subject, "CacheFilling", "ü" * 5000)
    told.record(about, "CacheFilling", "last")
    assert wait_until(lambda: bool(events(cluster, about)), 20)
    assert len(events(cluster, long)[0]["message"].encode()) <= 1024
    told.close()


def test_while_the_server_is_away_nothing_waits_or_piles_up_and_one_line_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = ApiServer(ClusterAccess(f"https://127.0.0.1:{free_port()}", token="s3cr3t"))
    told, about = announcer(server), pod()
    for number in range(2000):
        told.record(about, "CacheFilling", str(number))
        told.report_fill("dc-1", number % 100)
    # Both are written by a thread of their own: here they are put down alone.
    assert len(told._outbox._waiting) <= 2
    assert wait_until(lambda: bool(caplog.records), 20)
    time.sleep(2)
    told.close()
    assert len(caplog.records) == 1
    assert "s3cr3t" not in str(getattr(caplog.records[0], "fields", ""))
    assert len(told._outbox._waiting) == 0


def test_the_end_of_a_fill_is_told_when_the_server_is_back(cluster: apiserver.ApiServer) -> None:
    registry = KubernetesVolumeRegistry(cluster.client())
    registry.put(record("dc-1"))
    told = InCluster(cluster)
    told.announcer.report_fill("dc-1", 5)
    assert wait_until(lambda: told.fills() == {"dc-1": 5}, 20)
    cluster.stop()
    try:
        told.announcer.report_fill("dc-1", None)
        time.sleep(0.5)
    finally:
        cluster.start()
    assert wait_until(lambda: told.fills() == {}, 60)
    told.announcer.close()


def test_nodes_that_fill_one_volume_are_shown_with_the_slowest(cluster: apiserver.ApiServer) -> None:
    registry = KubernetesVolumeRegistry(cluster.client())
    registry.put(record("dc-1"))
    one, other = (FillStatusWriter(cluster.client(), name) for name in ("node-1", "node-2"))
    one.write("dc-1", 40)
    other.write("dc-1", 7)
    assert said(cluster, "dc-1")["filling"] == "7% on 2 nodes"
    assert "7% on 2 nodes" in cluster.kubectl("get", "dcv", "dc-1")
    registry.change("dc-1", lambda found: record("dc-1", performance=Performance(read_iops=9)))
    assert len(said(cluster, "dc-1")["fills"]) == 2, "a change of the volume is no change of its fills"
    other.write("dc-1", None)
    assert said(cluster, "dc-1") == {
        "filling": "40%",
        "fills": [{**said(cluster, "dc-1")["fills"][0], "node": "node-1", "percent": 40}],
    }
    one._last_seen.clear()
    one.write("dc-1", None)
    assert said(cluster, "dc-1") == {}


def test_who_tends_a_volume_leaves_its_fills_alone(cluster: apiserver.ApiServer) -> None:
    registry = KubernetesVolumeRegistry(cluster.client())
    registry.put(record("dc-1"))
    FillStatusWriter(cluster.client(), "node-1").write("dc-1", 40)
    with registry.maintain_statuses():
        assert wait_until(lambda: "conditions" in said(cluster, "dc-1"), 30)
    assert said(cluster, "dc-1")["filling"] == "40%"


@given(nodes=st.lists(st.tuples(st.integers(0, 40), st.none() | st.integers(0, 100)), max_size=80))
def test_a_status_has_at_most_so_many_nodes_and_says_what_they_have(
    nodes: list[tuple[int, int | None]],
) -> None:
    status: dict = {}
    for step, (node, percent) in enumerate(nodes):
        patch = patch_with_fill(status, f"node-{node}", percent, 1e9 + step)
        for key, value in (patch or {}).items():
            status = {name: kept for name, kept in status.items() if name != key} | (
                {} if value is None else {key: value}
            )
        fills = status.get("fills", [])
        assert len(fills) <= MAX_FILLING_NODES
        assert bool(fills) == ("filling" in status)
        assert set(status) <= set(FILL_STATUS_KEYS)
        if fills:
            assert status["filling"].startswith(f"{min(fill['percent'] for fill in fills)}%")
    assert len(json.dumps(status)) < 4096


def test_nodes_that_were_lost_in_a_fill_go_with_the_next_write() -> None:
    old = patch_with_fill({}, "lost", 5, 1e9)
    assert old
    assert [fill["node"] for fill in (patch_with_fill(old, "other", 9, 1e9 + 300) or {})["fills"]] == [
        "other"
    ]


def test_a_node_plugin_needs_each_of_its_rights_to_tell_and_no_other(cluster: apiserver.ApiServer) -> None:
    registry, about = KubernetesVolumeRegistry(cluster.client()), pod()
    registry.put(record("dc-1"))

    def tell() -> str:
        node = KubernetesEventRecorder(cluster.client(NODE), "datacache-node", "node-1", Outbox())

        def work() -> None:
            for message in ("first", "again"):
                node._write_event(
                    about,
                    "CacheFilling",
                    {"message": message, "type": "Normal", "lastTimestamp": "2026-01-31T12:00:00Z"},
                )
            node._fills.write("dc-1", 5)
            node._fills.write("dc-1", None)

        return forbidden(work)

    rights = [*NODE_RIGHTS, *NODE_TELLING_RIGHTS]
    grant(cluster, NODE, rights)
    assert wait_until(lambda: not tell(), 30)
    for missing in NODE_TELLING_RIGHTS:
        grant(cluster, NODE, [right for right in rights if right != missing])
        assert wait_until(lambda missing=missing: f"cannot {missing[2]} resource" in tell(), 30), missing
    grant(cluster, NODE, [])
    assert [right for right in NODE_TELLING_RIGHTS if right[1] == "events"] == CONTROLLER_EVENT_RIGHTS


def test_a_right_that_is_missing_is_logged_and_the_rest_is_told(
    cluster: apiserver.ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    grant(cluster, NODE, [right for right in NODE_TELLING_RIGHTS if right[1] == "events"])
    about = pod()
    with pytest.raises(ClusterForbids):
        FillStatusWriter(cluster.client(NODE), "node-1").write("dc-1", 5)
    told = announcer(cluster.client(NODE))
    told.report_fill("dc-1", 5)

    def heard() -> bool:
        told.record(about, "CacheFilling", "x")
        return bool(events(cluster, about))

    assert wait_until(heard, 30)
    assert any("cannot get resource" in str(getattr(line, "fields", "")) for line in caplog.records)
    told.close()
    grant(cluster, NODE, [])


def test_the_registry_shows_no_fill_in_a_record(cluster: apiserver.ApiServer) -> None:
    registry = KubernetesVolumeRegistry(cluster.client())
    registry.put(record("dc-1"))
    FillStatusWriter(cluster.client(), "node-1").write("dc-1", 40)
    assert registry.get("dc-1") == record("dc-1")
    assert cluster.client().call("GET", f"{VOLUMES}/dc-1")["metadata"]["generation"] == 1


def test_showing_a_fill_is_one_call_for_the_node_that_fills_alone(cluster: apiserver.ApiServer) -> None:
    KubernetesVolumeRegistry(cluster.client()).put(record("dc-1"))
    server = Counted(cluster.access())
    shown = FillStatusWriter(server, "node-1")
    for percent in (1, 2, 3, None):
        shown.write("dc-1", percent)
    assert [call.split()[0] for call in server.calls] == ["GET", "PATCH", "PATCH", "PATCH", "PATCH"]
