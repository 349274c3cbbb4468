"""A source's bytes through the product's own fill: whole, resumed without fetching twice, wrong bytes
caught."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from csi.errors import CorruptContent, FillStopped
from csi.images.fill.fill import fill
from csi.images.layout.layout import Layout, build_layout
from csi.manifest.manifest import Entry, Manifest
from csi.manifest.reader import Reader
from csi.parameters.cache_spec import CacheSpec
from tests.conformance import trees
from tests.conformance.kit import Kit, Tree
from tests.conformance.trees import BIG


@pytest.fixture
def files(origin: Kit) -> Tree:
    return trees.tree(seed=7, big=40_000_001, top=origin.top_files)


@pytest.fixture
def place(origin: Kit, files: Tree) -> CacheSpec:
    return origin.place(files)


def resolved(origin: Kit, spec: CacheSpec) -> Manifest:
    with closing(origin.open(spec, origin.credential)) as source:
        return source.resolve(source.pin())


class Tap:
    """Lets `limit` bytes through to the fill (None: all), then makes every read wait until the fill has
    heard that it is to stop."""

    def __init__(self, limit: int | None) -> None:
        self._limit, self._passed, self._lock = limit, 0, threading.Lock()

    @property
    def dry(self) -> bool:
        return self._limit is not None and self._passed >= self._limit

    @contextmanager
    def reader(self, inner: AbstractContextManager[Reader]) -> Iterator[Reader]:
        with inner as reader:
            yield _TappedReader(reader, self)

    def passed(self, count: int) -> None:
        with self._lock:
            self._passed += count


class _TappedReader:
    def __init__(self, inner: Reader, tap: Tap) -> None:
        self._inner, self._tap = inner, tap

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        if self._tap.dry:
            time.sleep(0.5)
        self._inner.read_into(entry, offset, buffer)
        self._tap.passed(len(buffer))


def run(
    origin: Kit, spec: CacheSpec, manifest: Manifest, folder: Path, stop_after: int | None = None
) -> Layout:
    """Fill an image of `manifest` in `folder`.

    With `stop_after`, tell it to stop once so many bytes were read.
    """
    layout = build_layout(manifest)
    tap = Tap(stop_after)
    with closing(origin.open(spec, origin.credential)) as source:
        fill(
            layout,
            folder / "image.partial",
            folder / "journal",
            lambda: tap.reader(source.open_reader(manifest)),
            max_connections=2,
            chunk_bytes=1 << 20,
            should_stop=lambda: tap.dry,
        )
    return layout


def in_image(layout: Layout, folder: Path) -> Tree:
    with (folder / "image.partial").open("rb") as image:
        found: Tree = {}
        for extent in layout.extents:
            image.seek(extent.offset)
            found[extent.entry.path] = image.read(extent.entry.size)
        return found


def test_the_image_holds_the_origins_bytes(
    origin: Kit, place: CacheSpec, files: Tree, tmp_path: Path
) -> None:
    layout = run(origin, place, resolved(origin, place), tmp_path)
    expected = {path: data for path, data in trees.contents(files).items() if data}
    assert {path: data for path, data in in_image(layout, tmp_path).items() if data} == expected


def test_a_fill_that_was_stopped_fetches_the_rest_only(
    origin: Kit, place: CacheSpec, files: Tree, tmp_path: Path
) -> None:
    manifest = resolved(origin, place)
    before = origin.bytes_sent(place, BIG)
    with pytest.raises(FillStopped):
        run(origin, place, manifest, tmp_path, stop_after=20_000_000)
    layout = run(origin, place, manifest, tmp_path)
    assert in_image(layout, tmp_path)[BIG] == trees.contents(files)[BIG]
    after = origin.bytes_sent(place, BIG)
    if before is not None and after is not None:
        # Two readers' chunks were on their way, and up to 16 done ones not yet in the journal.
        assert after - before <= 40_000_001 + (2 + 16 + 4) * (1 << 20)


def test_wrong_bytes_are_caught_where_a_digest_tells(
    origin: Kit, place: CacheSpec, files: Tree, tmp_path: Path
) -> None:
    manifest = resolved(origin, place)
    origin.corrupt(place, BIG)
    assert trees.entry(manifest, BIG).is_verifiable is origin.verifies
    if origin.verifies:
        with pytest.raises(CorruptContent, match=BIG):
            run(origin, place, manifest, tmp_path)
    else:
        # The origin's word is all there is; this shows that the bytes were wrong.
        assert in_image(run(origin, place, manifest, tmp_path), tmp_path)[BIG] != trees.contents(files)[BIG]
