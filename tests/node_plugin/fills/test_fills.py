"""Fills in the background: one for each image, waited for by all, stopped when nobody wants them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.concurrency.deadline import Deadline
from csi.errors import (
    Busy,
    CorruptContent,
    DataCacheError,
    NoSpace,
    NotFound,
    OriginUnavailable,
    PermissionDenied,
    SourceChanged,
)
from csi.images.progress import FillProgress, read_progress
from csi.parameters.content_ref import ContentRef, Secrets
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.worker.operations import FillImage, ResolveSource
from tests.node_plugin.node import HUB, MIB, Node


def adopt(node: Node) -> str:
    """Resolve what the source holds and put its manifest into the store; the image's digest."""
    manifest = node.store.new_temp_path()
    spec = parse_volume_parameters(HUB).spec
    found = node.source.call("resolve", ResolveSource(spec, Secrets(), manifest))
    node.store.adopt_manifest(found.digest, manifest, found.image_bytes)
    return str(found.digest)


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end and not holds():
        time.sleep(0.005)
    return holds()


def wait(
    node: Node, digest: str, seconds: float = 30, key: str = "vol", secrets: dict[str, str] | None = None
) -> None:
    node.fills.ensure_sealed(key, ContentRef(digest, secrets=Secrets(secrets or {})), Deadline(seconds))


def all_at_once(works: list[Callable[[], None]]) -> list[DataCacheError | None]:
    answers: list[DataCacheError | None] = []

    def run(work: Callable[[], None]) -> None:
        try:
            answers.append(work())
        except DataCacheError as error:
            answers.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


def test_all_who_want_an_image_wait_for_one_fill(node: Node) -> None:
    digest = adopt(node)
    node.source.go_fill.clear()
    threading.Timer(0.1, node.source.go_fill.set).start()
    assert all_at_once([lambda: wait(node, digest)] * 8) == [None] * 8
    assert node.source.operations.count("fill-image") == 1
    assert node.store.find_sealed(digest)
    wait(node, digest, seconds=0)
    assert node.source.operations.count("fill-image") == 1
    assert node.fills.get_progress() == {}


def test_who_runs_out_of_time_hears_the_progress_and_the_fill_goes_on(node: Node) -> None:
    digest = adopt(node)
    node.source.go_fill.clear()
    with pytest.raises(Busy):
        wait(node, digest, seconds=0.05)
    assert eventually(
        lambda: node.fills.get_progress()[digest] == FillProgress(MIB, 5 * MIB, MIB, 1.0 * MIB, 4.0)
    )
    with pytest.raises(
        Busy, match="filling the cache: 1 of 5 MiB, 1.0 MiB/s, about 4 s left; call again, the fill goes on"
    ):
        wait(node, digest, seconds=0)
    node.source.go_fill.set()
    wait(node, digest)
    assert node.source.operations.count("fill-image") == 1


def test_progress_is_there_for_whoever_looks_into_the_store_and_goes_with_the_fill(node: Node) -> None:
    digest = adopt(node)
    paths = node.store.get_paths(digest)
    node.source.go_fill.clear()
    node.fills.start(ContentRef(digest))
    assert eventually(paths.progress.exists)
    assert read_progress(paths.progress) == FillProgress.from_json(json.loads(paths.progress.read_text()))
    node.source.go_fill.set()
    wait(node, digest)
    assert eventually(lambda: not paths.progress.exists())
    assert read_progress(paths.progress) is None


def test_what_ended_a_fill_is_told_to_all_who_began_it_with_the_same_credential(node: Node) -> None:
    digest = adopt(node)
    node.source.fill_error = OriginUnavailable("the origin is down")
    node.source.go_fill.clear()
    threading.Timer(0.1, node.source.go_fill.set).start()
    answers = all_at_once([lambda: wait(node, digest)] * 4)
    assert [str(answer) for answer in answers] == ["the origin is down"] * 4
    assert node.store.find_partial(digest)


def test_another_volumes_credential_that_fails_is_not_held_against_this_one(node: Node) -> None:
    digest = adopt(node)
    node.source.readers = {"right"}
    node.source.go_fill.clear()
    wrong = threading.Thread(
        target=lambda: pytest.raises(PermissionDenied, wait, node, digest, secrets={"token": "wrong"})
    )
    wrong.start()
    assert node.source.filling.acquire(timeout=20)
    threading.Timer(0.1, node.source.go_fill.set).start()
    wait(node, digest, secrets={"token": "right"})
    wrong.join(20)
    assert node.store.find_sealed(digest)
    assert node.source.operations.count("fill-image") == 2


@pytest.mark.parametrize("error", [CorruptContent("wrong bytes"), SourceChanged("another file")])
def test_bytes_that_no_next_try_could_use_are_removed(node: Node, error: DataCacheError) -> None:
    digest = adopt(node)
    node.source.fill_error = error
    with pytest.raises(type(error)):
        wait(node, digest)
    assert eventually(lambda: node.store.list_images() == [])


def test_a_fill_that_nobody_wants_is_stopped_after_a_grace_and_its_bytes_stay(
    tmp_path: Path, node: Node
) -> None:
    node.close()
    hasty = Node(tmp_path, grace=0.0)
    digest = adopt(hasty)
    hasty.source.go_fill.clear()
    hasty.fills.start(ContentRef(digest))
    assert eventually(lambda: hasty.fills.get_progress() == {})
    assert hasty.store.find_partial(digest)
    hasty.source.go_fill.set()
    wait(hasty, digest)
    hasty.close()


def test_a_fill_that_is_waited_for_is_not_stopped_by_the_grace(tmp_path: Path, node: Node) -> None:
    node.close()
    hasty = Node(tmp_path, grace=0.0)
    digest = adopt(hasty)
    hasty.source.go_fill.clear()
    threading.Timer(0.3, hasty.source.go_fill.set).start()
    wait(hasty, digest)
    assert hasty.source.operations.count("fill-image") == 1
    hasty.close()


def test_stopping_all_ends_them_and_tells_who_waits(node: Node) -> None:
    digest = adopt(node)
    node.source.go_fill.clear()
    threading.Timer(0.1, node.fills.stop).start()
    with pytest.raises(Busy, match="stopped"):
        wait(node, digest)
    assert node.fills.get_progress() == {}


def test_an_image_that_was_never_resolved_cannot_be_filled(node: Node) -> None:
    with pytest.raises(NotFound, match="has to be resolved first"):
        wait(node, "d" * 64)
    assert node.fills.get_progress() == {}


def test_what_cannot_fit_is_told_at_once_and_nothing_is_begun(tmp_path: Path, node: Node) -> None:
    node.close()
    small = Node(tmp_path, budget=3 * MIB)
    digests = []
    for name in ("a", "b"):
        small.source.files = {name: 2 * MIB}
        digests.append(adopt(small))
    small.source.go_fill.clear()
    small.fills.start(ContentRef(digests[0]))
    with pytest.raises(NoSpace, match="the image needs 2"):
        wait(small, digests[1])
    small.source.go_fill.set()
    wait(small, digests[0])
    wait(small, digests[1])
    assert [bool(small.store.find_sealed(digest)) for digest in digests] == [False, True]
    small.close()


def test_a_fill_ends_also_where_its_progress_cannot_be_removed(node: Node) -> None:
    digest = adopt(node)
    node.store.get_paths(digest).progress.mkdir()
    wait(node, digest, seconds=10)
    assert node.fills.get_progress() == {}
    assert node.store.find_sealed(digest)


def test_no_image_goes_for_a_fill_that_nobody_waits_for(tmp_path: Path, node: Node) -> None:
    node.close()
    small = Node(tmp_path, budget=3 * MIB)
    small.source.files = {"a": 2 * MIB}
    sealed = adopt(small)
    wait(small, sealed)
    small.source.files = {"b": 2 * MIB}
    left = adopt(small)
    with pytest.raises(NoSpace):
        small.fills.start(ContentRef(left))
    assert small.store.find_sealed(sealed)
    wait(small, left)
    assert small.store.find_sealed(left)
    assert not small.store.find_sealed(sealed)
    small.close()


def test_a_full_waiting_room_answers_at_once_and_the_fills_go_on(tmp_path: Path, node: Node) -> None:
    node.close()
    full = Node(tmp_path, seats=1)
    digest = adopt(full)
    full.source.go_fill.clear()
    seated = threading.Thread(target=wait, args=(full, digest))
    seated.start()
    assert full.source.filling.acquire(timeout=20)
    with pytest.raises(Busy, match="1 calls are waiting already"):
        wait(full, digest)
    full.source.go_fill.set()
    seated.join(20)
    assert full.store.find_sealed(digest)
    full.close()


def test_a_fill_without_a_source_goes_through_the_egress_profile_of_the_manifests_own(node: Node) -> None:
    manifest = node.store.new_temp_path()
    spec = parse_volume_parameters({**HUB, "egressProfile": "tenant-b"}).spec
    found = node.source.call("resolve", ResolveSource(spec, Secrets(), manifest))
    node.store.adopt_manifest(found.digest, manifest, found.image_bytes)
    # As at a start, when a fill is resumed of which only the digest is known.
    node.fills.start(ContentRef(found.digest))
    node.fills.ensure_sealed("vol", ContentRef(found.digest), Deadline(30))
    fills = [operation for operation in node.source.asked if isinstance(operation, FillImage)]
    assert [fill.egress_profile for fill in fills] == ["tenant-b"]
