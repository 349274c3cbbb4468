"""Volumes that live in a pod's manifest: one call from the source to the mount, and whatever a pod's
author may write."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi.errors import InvalidParameter, PermissionDenied
from tests.node_plugin.node import HUB, INLINE, Node

NAS = {"server": "nas", "path": "/models", "csi.storage.k8s.io/ephemeral": "true"}


def test_an_inline_volume_is_one_call_to_bring_and_one_to_take_away(node: Node) -> None:
    for _ in range(3):
        node.inline()
    assert node.shown == ["pod1"]
    node.unpublish("csi-1")
    node.unpublish("csi-1")
    assert node.left == []
    assert not node.path("pod1").exists()


def test_an_inline_volume_may_name_any_repository_but_only_listed_shares(tmp_path: Path, node: Node) -> None:
    with pytest.raises(PermissionDenied, match="--allow-inline-nas nas:/models"):
        node.inline(context=NAS)
    assert node.source.asked == []
    node.close()
    listed = Node(tmp_path, nas=("nas:/models",))
    listed.inline(context=NAS)
    assert listed.shown == ["pod1"]
    listed.close()


@pytest.mark.parametrize("key", ["manifestDigest", "capacityBytes"])
def test_an_inline_volume_cannot_claim_what_only_a_controller_writes(node: Node, key: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{key} is not for inline volumes"):
        node.inline(context={**INLINE, key: "5" if key == "capacityBytes" else "c" * 64})


def test_an_inline_volume_cannot_be_forged_by_another_spelling_of_kubelets_key(node: Node) -> None:
    with pytest.raises(InvalidParameter, match="unknown parameter"):
        node.stage(context={**HUB, "CSI.storage.k8s.io/ephemeral": "true"})
