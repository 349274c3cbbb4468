"""An image is handed to a volume of another place only after its bytes were compared with what that place
sends."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from csi.concurrency.deadline import Deadline
from csi.errors import Busy, CorruptContent, OriginUnavailable, PermissionDenied
from csi.images.node_store.provenance import MAX_VERIFIED_SCOPES
from csi.linux.durable_files import write_json
from csi.manifest.manifest import Entry
from csi.parameters.content_ref import ContentRef, Secrets
from csi.parameters.origin_scope import compute_origin_scope
from tests.node_plugin.fills.test_fills import adopt, eventually
from tests.node_plugin.node import HUB, Node

OTHER = {**HUB, "repoId": "org/copy"}
THIRD = {**HUB, "repoId": "org/third"}


def wait(
    node: Node,
    digest: str,
    access: dict[str, str],
    secrets: dict[str, str] | None = None,
    seconds: float = 30,
) -> None:
    content, deadline = ContentRef(digest, access, Secrets(secrets or {})), Deadline(seconds)
    node.fills.ensure_sealed("vol", content, deadline)
    node.verification.ensure_verified("vol", content, deadline)


def pretender(entry: Entry, offset: int, buffer: memoryview) -> None:
    """Knows the length of every file and the bytes of none."""
    buffer[:] = bytes(len(buffer))


@pytest.fixture
def digest(node: Node) -> str:
    """An image that was filled from HUB."""
    digest = adopt(node)
    wait(node, digest, HUB)
    assert node.source.operations == ["resolve-source", "fill-image"]
    return digest


def test_another_place_is_compared_once_and_every_file_is_looked_at(node: Node, digest: str) -> None:
    node.source.origin.asked.clear()
    wait(node, digest, OTHER)
    assert node.source.operations[2:] == ["verify-image"]
    assert node.source.asked[-1].content.source == OTHER
    assert node.source.origin.asked.keys() == {
        extent.path for extent in node.store.read_manifest(digest).files
    }
    assert node.source.origin.bytes - 10_021 <= 20 + 1 + 4096, "files over 4 KiB are not read whole"
    for access in (OTHER, HUB, {**OTHER, "revision": "b" * 40}):
        wait(node, digest, access)
    assert node.source.operations.count("verify-image") == 1


def test_the_same_address_in_another_network_is_another_place(node: Node, digest: str) -> None:
    wait(node, digest, {**HUB, "egressProfile": "tenant-b"})
    assert node.source.operations[2:] == ["verify-image"]


def test_a_verified_scope_is_known_after_a_restart(node: Node, digest: str) -> None:
    wait(node, digest, OTHER)
    node.close()
    again = Node(node.folder)
    wait(again, digest, OTHER)
    assert again.source.operations == []
    wait(again, digest, THIRD)
    assert again.source.operations == ["verify-image"]
    again.close()


@pytest.mark.parametrize("path", ["config.json", "weights/a.bin"])
def test_a_place_that_sends_other_bytes_gets_nothing_and_the_image_stays(
    node: Node, digest: str, path: str
) -> None:
    node.source.origin.fault = lambda entry, offset, buffer: (
        pretender(entry, offset, buffer) if entry.path == path else None
    )
    for _ in range(3):
        with pytest.raises(CorruptContent, match=path):
            wait(node, digest, OTHER)
    node.source.origin.fault = None
    asked = len(node.source.asked)
    wait(node, digest, HUB)
    assert len(node.source.asked) == asked
    assert node.store.find_sealed(digest)


def test_who_tries_again_is_asked_for_the_same_bytes(node: Node, digest: str) -> None:
    """Else who knows a part of a file need only try until that part is asked for."""
    seen: list[tuple[str, int]] = []

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        seen.append((entry.path, offset))
        if entry.path == "weights/a.bin":
            pretender(entry, offset, buffer)

    node.source.origin.fault = fault
    for access in (OTHER, OTHER, THIRD):
        with pytest.raises(CorruptContent):
            wait(node, digest, access)
    rounds = [offset for path, offset in seen if path == "weights/a.bin"]
    assert rounds[0] == rounds[1] != rounds[2]


def test_a_credential_that_may_not_read_hears_so(node: Node, digest: str) -> None:
    node.source.readers = {"right"}
    with pytest.raises(PermissionDenied):
        wait(node, digest, OTHER, {"token": "wrong"})
    wait(node, digest, OTHER, {"token": "right"})


def test_an_unreachable_origin_verifies_nothing(
    node: Node, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csi.images.fill.retrying_reader.MIN_RETRY_PAUSE", 0.001)
    monkeypatch.setattr("csi.images.fill.retrying_reader.MAX_RETRY_PAUSE", 0.001)

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        raise OriginUnavailable("nobody there")

    node.source.origin.fault = fault
    with pytest.raises(OriginUnavailable):
        wait(node, digest, OTHER)
    wait(node, digest, HUB)


def test_who_waited_for_another_places_fill_is_compared_too(node: Node) -> None:
    digest = adopt(node)
    node.source.go_fill.clear()
    first = threading.Thread(target=wait, args=(node, digest, HUB))
    first.start()
    assert node.source.filling.acquire(timeout=20)
    node.source.origin.fault = lambda entry, offset, buffer: (
        None if node.store.find_partial(digest) else pretender(entry, offset, buffer)
    )
    threading.Timer(0.1, node.source.go_fill.set).start()
    with pytest.raises(CorruptContent):
        wait(node, digest, OTHER)
    first.join(20)
    assert node.source.operations.count("fill-image") == 1


def test_a_fill_that_two_places_gave_a_part_of_each_makes_neither_known(node: Node, digest: str) -> None:
    """The second one verified what it sent, but never sent what the first had."""
    paths = node.store.get_paths(digest)
    paths.image.rename(paths.partial)
    paths.partial.chmod(0o600)
    wait(node, digest, OTHER)
    assert node.source.operations[2:] == ["fill-image", "verify-image"]
    wait(node, digest, HUB)
    assert node.source.operations[4:] == ["verify-image"]


def test_a_fill_that_began_from_nothing_makes_its_own_place_known_whoever_tried_before(node: Node) -> None:
    digest = adopt(node)
    node.source.fill_error = OriginUnavailable("gone")
    with pytest.raises(OriginUnavailable):
        wait(node, digest, OTHER)
    node.source.fill_error = None
    wait(node, digest, HUB)
    assert "verify-image" not in node.source.operations
    wait(node, digest, OTHER)
    assert node.source.operations[-1] == "verify-image"


def test_an_image_of_an_older_version_is_its_manifests_places(node: Node, digest: str) -> None:
    node.store.get_paths(digest).provenance.unlink()
    wait(node, digest, HUB)
    assert "verify-image" not in node.source.operations
    wait(node, digest, OTHER)
    assert node.source.operations.count("verify-image") == 1
    wait(node, digest, HUB)
    assert node.source.operations.count("verify-image") == 1


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(b"{"), lambda path: write_json(path, {"format": 1, "filled": 3})]
)
def test_a_damaged_record_lets_nobody_in_unseen(
    node: Node, digest: str, spoil: Callable[[object], None]
) -> None:
    spoil(node.store.get_paths(digest).provenance)
    wait(node, digest, HUB)
    assert node.source.operations.count("verify-image") == 1


def test_the_record_of_places_is_bounded(node: Node, digest: str) -> None:
    for number in range(MAX_VERIFIED_SCOPES + 9):
        node.store.mark_verified(digest, f"{number:064x}")
    known = node.store.get_provenance(digest)
    assert len(known) == MAX_VERIFIED_SCOPES + 1
    assert known[0] == f"{MAX_VERIFIED_SCOPES + 8:064x}"
    assert known[-1] == compute_origin_scope(HUB)
    wait(node, digest, HUB)
    assert "verify-image" not in node.source.operations


def test_all_who_ask_the_same_wait_for_one_comparison(node: Node, digest: str) -> None:
    node.source.go_verify.clear()
    with pytest.raises(Busy, match="comparing the cached files"):
        wait(node, digest, OTHER, seconds=0.05)
    threads = [threading.Thread(target=wait, args=(node, digest, OTHER)) for _ in range(4)]
    for thread in threads:
        thread.start()
    node.source.go_verify.set()
    for thread in threads:
        thread.join(20)
    assert node.source.operations.count("verify-image") == 1
    assert compute_origin_scope(OTHER) in node.store.get_provenance(digest)


def test_an_error_that_came_when_nobody_waited_is_told_to_the_next_caller_once(
    node: Node, digest: str
) -> None:
    node.source.origin.fault = pretender
    node.source.go_verify.clear()
    with pytest.raises(Busy):
        wait(node, digest, OTHER, seconds=0.05)
    node.source.go_verify.set()
    assert eventually(lambda: "verify" not in {thread.name for thread in threading.enumerate()})
    with pytest.raises(CorruptContent):
        wait(node, digest, OTHER, seconds=0)
    assert node.source.operations.count("verify-image") == 1
    node.source.origin.fault = None
    wait(node, digest, OTHER)


def test_stopping_ends_comparisons(node: Node, digest: str) -> None:
    node.source.go_verify.clear()
    threading.Timer(0.1, node.verification.stop).start()
    with pytest.raises(Busy, match="stopped"):
        wait(node, digest, OTHER)


def test_a_volume_is_not_shown_what_its_place_does_not_send(node: Node) -> None:
    """From the call on: an inline volume and a persistent one without a controller (a static PV)."""
    node.stage("mine", "staging1")
    node.source.origin.fault = pretender
    other = {**OTHER, "csi.storage.k8s.io/ephemeral": "true"}
    with pytest.raises(CorruptContent):
        node.inline(context=other)
    with pytest.raises(CorruptContent):
        node.stage("theirs", "staging2", context=OTHER)
    assert node.shown == ["staging1"]
    node.source.origin.fault = None
    node.inline(context=other)
    node.stage("theirs", "staging2", context=OTHER)
    assert node.shown == ["pod1", "staging1", "staging2"]
