"""What a node is to the scheduler, and what people are told where it can mount no volumes."""

from __future__ import annotations

import logging

import pytest

from controller_plugin.servicer import ControllerServicer
from csi.errors import NoSpace, UnsupportedByNode
from csi.pb import csi_pb2 as pb
from csi.registry.events.recorder import ObjectReference
from csi.topology import node_segments
from node_plugin.topology import CANNOT_MOUNT_REASON, REGISTRATION_REFUSED_REASON, NodeTopology
from tests.csi.registry.events.recorders import FakeAnnouncer

DRIVER, NODE = "datacache.csi.io", ObjectReference.for_node("node-a")
PLUGIN, MOUNTS = f"{DRIVER}/plugin", f"{DRIVER}/mounts"


class Kernel:
    """Of a node: `lacks` is what it says where it cannot mount images."""

    def __init__(self, lacks: str = "") -> None:
        self.lacks, self.announcer = lacks, FakeAnnouncer()
        self.topology = NodeTopology(DRIVER, "node-a", self._check, self.announcer)

    def _check(self) -> None:
        if self.lacks:
            raise UnsupportedByNode(self.lacks)


def test_a_node_that_can_mount_images_says_so_and_nothing_is_told() -> None:
    kernel = Kernel()
    assert kernel.topology.segments() == {PLUGIN: "true", MOUNTS: "true"}
    assert kernel.announcer.history == []


def test_a_node_that_cannot_has_the_plugin_alone_and_its_people_are_told_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kernel = Kernel("this node's kernel has no EROFS; load the module erofs at boot")
    assert kernel.topology.segments() == {PLUGIN: "true"}
    said = kernel.announcer.said(NODE)[CANNOT_MOUNT_REASON]
    assert said.warning
    assert "no EROFS; load the module" in said.message
    assert "delete the plugin's pod on this node" in said.message
    assert [(line.levelno, line.message) for line in caplog.records] == [
        (logging.ERROR, "node cannot mount volumes")
    ]


def test_what_was_put_right_is_found_at_the_next_look() -> None:
    kernel = Kernel("no EROFS")
    kernel.topology.segments()
    kernel.lacks = ""
    assert kernel.topology.segments()[MOUNTS] == "true"


def test_people_are_told_why_kubelet_did_not_take_the_driver() -> None:
    kernel = Kernel()
    kernel.topology.report_refused_registration("no such node")
    assert "no such node" in kernel.announcer.said(NODE)[REGISTRATION_REFUSED_REASON].message


@pytest.mark.parametrize(
    ("places", "there"),
    [
        ([], True),
        ([node_segments(DRIVER, True)], True),
        ([{MOUNTS: "true"}], True),
        ([{PLUGIN: "true"}], True),
        ([{"zone": "a"}, {MOUNTS: "true"}], True),
        ([{MOUNTS: "false"}], False),
        ([{PLUGIN: "true", MOUNTS: "false"}], False),
        ([{"zone": "a"}], False),
    ],
)
def test_a_volume_is_made_where_some_node_may_be_able_to_mount_it(
    places: list[dict[str, str]], there: bool
) -> None:
    """A pod whose first choice is a node that cannot asks for {plugin}: its volume tells the scheduler
    where it can go."""
    servicer = ControllerServicer(None, DRIVER)  # type: ignore[arg-type]
    asked = pb.TopologyRequirement(requisite=[pb.Topology(segments=place) for place in places])
    if there:
        servicer._check_topology(asked)
    else:
        with pytest.raises(
            NoSpace, match=f"{MOUNTS}=true; volumes are accessible from nodes that .* can mount images"
        ):
            servicer._check_topology(asked)
