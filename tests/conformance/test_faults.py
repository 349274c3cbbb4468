"""Whatever goes wrong at an origin, a fill through the product's own engine ends right, or with an error that says which file and why.

Never with wrong bytes, and never after more tries than `csi.images.fetch.MAX_FAILURES` of one range: the origin counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from csi.errors import CorruptContent, DataCacheError, OriginThrottled, OriginUnavailable, SourceChanged, Unauthenticated
from csi.images import fetch
from csi.images.fetch import MAX_FAILURES
from csi.images.fill import fill
from csi.images.layout import lay_out
from csi.sources import connections, tempo
from csi.sources.http import MAX_REDIRECTS
from csi.spec.access import Reader
from csi.spec.cache import CacheSpec
from csi.spec.manifest import Entry, Manifest
from tests.conformance import trees
from tests.conformance.kit import FaultyKit
from tests.conformance.trees import BIG
from tests.origins.faults import Fault

FILES = trees.tree(seed=9, big=6_000_001)
EXPECTED = {path: data for path, data in trees.contents(FILES).items() if data}
HALF = 3_000_000
_CHUNK = 1 << 18


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses, and what is too long a silence, in the time of a test."""
    monkeypatch.setattr(fetch, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(fetch, "LONGEST_PAUSE", 0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENCE_SECONDS", 0.15)
    monkeypatch.setattr(tempo, "WINDOW_SECONDS", 0.1)


@pytest.fixture
def place(faulty: FaultyKit) -> Iterator[CacheSpec]:
    yield faulty.place(FILES)
    faulty.faults.clear()


@pytest.fixture
def manifest(faulty: FaultyKit, place: CacheSpec) -> Manifest:
    return resolved(faulty, place)


def resolved(faulty: FaultyKit, spec: CacheSpec) -> Manifest:
    with closing(faulty.open(spec, faulty.credential)) as source:
        return source.resolve(source.pin())


class Midway:
    """Lets readers through, and does `action` once, when `after` bytes have passed."""

    def __init__(self, after: int, action: Callable[[], object]) -> None:
        self._left, self._action, self._guard = after, action, threading.Lock()

    @contextmanager
    def reader(self, inner: AbstractContextManager[Reader]) -> Iterator[Reader]:
        with inner as reader:
            yield _Watched(reader, self)

    def passed(self, count: int) -> None:
        with self._guard:
            before, self._left = self._left, self._left - count
            if before > 0 >= self._left:
                self._action()


class _Watched:
    def __init__(self, inner: Reader, midway: Midway) -> None:
        self._inner, self._midway = inner, midway

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        self._inner.read_into(entry, offset, buffer)
        self._midway.passed(len(buffer))


def filled(faulty: FaultyKit, spec: CacheSpec, manifest: Manifest, folder: Path, readers: int = 4, midway: Midway | None = None) -> dict[str, bytes]:
    """What an image that is filled in `folder` holds: every file that is not empty."""
    layout, watched = lay_out(manifest), midway or Midway(0, lambda: None)
    with closing(faulty.open(spec, faulty.credential)) as source:
        fill(
            layout,
            folder / "image",
            folder / "journal",
            lambda: watched.reader(source.reader(manifest)),
            connections=readers,
            chunk_bytes=_CHUNK,
        )
    image = (folder / "image").read_bytes()
    return {e.entry.path: image[e.offset : e.offset + e.entry.size] for e in layout.extents if e.entry.size}


def add(faulty: FaultyKit, spec: CacheSpec, fault: Fault) -> Fault:
    return faulty.faults.add(replace(fault, match=faulty.key(spec, BIG)))


def named(fault: Fault) -> str:
    return f"{fault.action}-{fault.status}" if fault.action == "status" else fault.action


PASSING = [
    Fault("status", status=429, times=3),
    Fault("status", status=500, times=MAX_FAILURES - 1),
    Fault("status", status=503, times=MAX_FAILURES - 1),
    Fault("hang-up", times=MAX_FAILURES - 1),
    Fault("reset", after=1000, times=MAX_FAILURES - 1),
    Fault("drop", after=1000, times=MAX_FAILURES - 1),
    Fault("stall", after=1000, seconds=2, times=2),
    Fault("trickle", after=1000, seconds=0.02, times=2),
    Fault("truncate", after=1000, times=MAX_FAILURES - 1),
    Fault("redirect-loop", times=MAX_REDIRECTS + 1),
]


@pytest.mark.parametrize("fault", PASSING, ids=named)
def test_what_passes_is_survived(faulty: FaultyKit, place: CacheSpec, manifest: Manifest, tmp_path: Path, fault: Fault, impatient: None) -> None:
    happens = add(faulty, place, fault)
    assert filled(faulty, place, manifest, tmp_path) == EXPECTED
    assert happens.count == fault.times


LASTING = [
    (Fault("status", status=429), OriginThrottled, MAX_FAILURES),
    (Fault("status", status=500), OriginUnavailable, MAX_FAILURES),
    (Fault("status", status=503), OriginThrottled, MAX_FAILURES),
    # One more: that a connection which was kept has ended is no failure.
    (Fault("hang-up"), OriginUnavailable, MAX_FAILURES + 1),
    (Fault("reset", after=1000), OriginUnavailable, MAX_FAILURES),
    (Fault("drop", after=1000), OriginUnavailable, MAX_FAILURES),
    (Fault("stall", after=1000, seconds=1), OriginUnavailable, MAX_FAILURES),
    (Fault("trickle", after=1000, seconds=0.02), OriginUnavailable, MAX_FAILURES),
    (Fault("truncate", after=1000), OriginUnavailable, MAX_FAILURES),
    (Fault("redirect-loop"), OriginUnavailable, MAX_FAILURES * (MAX_REDIRECTS + 1)),
    (Fault("wrong-length"), SourceChanged, 1),
]


@pytest.mark.parametrize(("fault", "expected", "tries"), LASTING, ids=lambda value: named(value) if isinstance(value, Fault) else "")
def test_what_lasts_is_an_error_that_names_the_file_after_bounded_tries(
    faulty: FaultyKit,
    place: CacheSpec,
    manifest: Manifest,
    tmp_path: Path,
    fault: Fault,
    expected: type[DataCacheError],
    tries: int,
    impatient: None,
) -> None:
    happens = add(faulty, place, fault)
    with pytest.raises(expected) as error:
        filled(faulty, place, manifest, tmp_path, readers=1)
    assert BIG in str(error.value) and 0 < happens.count <= tries


def test_the_seconds_that_the_origin_asks_for_are_given(faulty: FaultyKit, place: CacheSpec, manifest: Manifest, tmp_path: Path) -> None:
    happens = add(faulty, place, Fault("status", status=429, retry_after="1", times=1))
    began = time.monotonic()
    assert filled(faulty, place, manifest, tmp_path) == EXPECTED
    assert happens.count == 1 and time.monotonic() - began >= 1


def test_bytes_that_are_wrong_once_are_put_right(faulty: FaultyKit, place: CacheSpec, manifest: Manifest, tmp_path: Path) -> None:
    happens = add(faulty, place, Fault("corrupt", after=HALF, times=1))
    found = filled(faulty, place, manifest, tmp_path)
    assert happens.count == 1
    assert found == EXPECTED or not trees.entry(manifest, BIG).verifiable


def test_bytes_that_stay_wrong_are_never_taken(faulty: FaultyKit, place: CacheSpec, manifest: Manifest, tmp_path: Path) -> None:
    happens = add(faulty, place, Fault("corrupt", after=HALF))
    if trees.entry(manifest, BIG).verifiable:
        with pytest.raises(CorruptContent, match=BIG):
            filled(faulty, place, manifest, tmp_path)
        assert happens.count == 2
    else:
        assert not faulty.verifies


@pytest.mark.parametrize("more", [(), ("no-length",)], ids=["with-length", "without-length"])
def test_an_origin_that_ignores_ranges_sends_not_much_more_than_its_bytes(
    faulty: FaultyKit, place: CacheSpec, manifest: Manifest, tmp_path: Path, more: tuple[str, ...]
) -> None:
    happens = add(faulty, place, Fault("ignore-range"))
    for action in more:
        add(faulty, place, Fault(action))
    # Slow enough that what was asked for in vain has not been sent before it is refused.
    faulty.faults.rate = 20e6
    before = faulty.counters.bytes_sent[faulty.key(place, BIG)]
    assert filled(faulty, place, manifest, tmp_path) == EXPECTED
    assert 0 < happens.count <= 6
    assert faulty.counters.bytes_sent[faulty.key(place, BIG)] - before < 2 * len(EXPECTED[BIG])


def test_answers_without_a_length_are_as_good(faulty: FaultyKit, place: CacheSpec, manifest: Manifest, tmp_path: Path) -> None:
    happens = add(faulty, place, Fault("no-length"))
    assert filled(faulty, place, manifest, tmp_path) == EXPECTED
    assert happens.count > 0


def test_an_origin_that_sends_small_files_whole_is_read_by_all_readers(
    faulty: FaultyKit, place: CacheSpec, manifest: Manifest, tmp_path: Path
) -> None:
    faulty.faults.add(Fault("ignore-range", match=faulty.key(place, "many/*")))
    assert filled(faulty, place, manifest, tmp_path) == EXPECTED


def test_signed_addresses_that_end_during_a_fill_are_signed_anew(faulty: FaultyKit, place: CacheSpec, manifest: Manifest, tmp_path: Path) -> None:
    ended: list[bool] = []
    assert filled(faulty, place, manifest, tmp_path, midway=Midway(HALF, lambda: ended.append(faulty.expire()))) == EXPECTED
    assert len(ended) == 1


def test_a_file_that_changes_during_a_fill_is_never_mixed(faulty: FaultyKit, place: CacheSpec, manifest: Manifest, tmp_path: Path) -> None:
    data = EXPECTED[BIG]
    other = _flipped(data[:1000]) + data[1000:-1000] + _flipped(data[-1000:])
    midway = Midway(HALF, lambda: faulty.change(place, BIG, other))
    if faulty.pins_revisions:
        assert filled(faulty, place, manifest, tmp_path, midway=midway) == EXPECTED
    else:
        # Where nothing but the digest tells one state of the file from another, the digest does.
        with pytest.raises(CorruptContent if faulty.verifies else SourceChanged, match=BIG):
            filled(faulty, place, manifest, tmp_path, midway=midway)
    assert resolved(faulty, place).digest != manifest.digest


def test_a_credential_that_is_revoked_during_a_fill_ends_it(faulty: FaultyKit, place: CacheSpec, manifest: Manifest, tmp_path: Path) -> None:
    def revoke() -> None:
        faulty.forbid(place)
        faulty.expire()

    with pytest.raises((*faulty.forbidden, Unauthenticated)) as error:
        filled(faulty, place, manifest, tmp_path, midway=Midway(HALF, revoke))
    assert BIG in str(error.value) or place.source.shown.split("@")[0] in str(error.value)
    assert faulty.credential is None or faulty.credential not in str(error.value)


def _flipped(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data)
