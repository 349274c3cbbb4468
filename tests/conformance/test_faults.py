"""Whatever goes wrong at an origin, a fill through the product's own engine ends right, or with an error that
says which file and why.

Never with wrong bytes, and never after more attempts for one range than MAX_ATTEMPTS allows: the origin
counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from csi.errors import (
    CorruptContent,
    DataCacheError,
    OriginThrottled,
    OriginUnavailable,
    SourceChanged,
    Unauthenticated,
)
from csi.images.fill import retrying_reader
from csi.images.fill.fill import fill
from csi.images.fill.request_gate import RequestGate
from csi.images.fill.retrying_reader import MAX_ATTEMPTS
from csi.images.layout.layout import build_layout
from csi.manifest.manifest import Entry, Manifest
from csi.manifest.reader import Reader
from csi.parameters.cache_spec import CacheSpec
from csi.sources.http import connections, throughput
from csi.sources.http.connections import Connections
from csi.sources.http.curl_response import CurlResponse
from csi.sources.http.file_urls import MAX_REDIRECTS
from csi.sources.http.sites import Site
from tests.conformance import trees
from tests.conformance.conftest import FAULTY_KITS, name_of
from tests.conformance.kit import FaultyKit, Tree
from tests.conformance.trees import BIG
from tests.origins.faults import Fault


@dataclass(frozen=True)
class Shape:
    """A tree, and in how large pieces a fill asks for it; BIG is in it."""

    name: str
    files: Tree
    chunk: int

    @property
    def expected(self) -> dict[str, bytes]:
        """What an image of it holds: every file that is not empty."""
        return {path: data for path, data in trees.contents(self.files).items() if data}

    @property
    def half(self) -> int:
        """A byte in the middle of BIG."""
        return len(self.expected[BIG]) // 2


LARGE = Shape("in-parts", trees.tree(seed=9, big=6_000_001), 1 << 18)
# Files of at most 1 MiB that are asked for at once come another way (`csi.sources.http.curl_fetch`).
SMALL = Shape(
    "at-once", {BIG: trees.tree(seed=8, big=900_001)[BIG], "config.json": b"{}", "empty.txt": b""}, 1 << 20
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses, and what is too long a silence, in the time of a test."""
    monkeypatch.setattr(retrying_reader, "MIN_RETRY_PAUSE", 0.001)
    monkeypatch.setattr(retrying_reader, "MAX_RETRY_PAUSE", 0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_TIMEOUT", 0.15)
    monkeypatch.setattr(throughput, "MEASURING_WINDOW", 0.1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every kit with parts; what is fetched at once is the same code for all kits, so two have to do."""
    pairs = [(kit, LARGE) for kit in FAULTY_KITS]
    if "large_only" not in metafunc.fixturenames:
        pairs += [(kit, SMALL) for kit in FAULTY_KITS if kit[1] in ("HubKit", "UrlKit")]
    ids = [f"{name_of(kit)}-{shape.name}" for kit, shape in pairs]
    metafunc.parametrize(("faulty", "shape"), pairs, indirect=True, ids=ids, scope="module")


@pytest.fixture(scope="module")
def shape(request: pytest.FixtureRequest) -> Shape:
    chosen: Shape = request.param
    return chosen


@pytest.fixture
def large_only() -> None:
    """For what happens in the middle of a file that comes in parts."""


@pytest.fixture
def place(faulty: FaultyKit, shape: Shape) -> Iterator[CacheSpec]:
    yield faulty.place(shape.files)
    faulty.faults.clear()


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


class Run:
    """One fill of a place with `shape` in it."""

    def __init__(self, faulty: FaultyKit, spec: CacheSpec, shape: Shape, folder: Path) -> None:
        self.faulty, self.spec, self.shape, self._folder = faulty, spec, shape, folder
        self.key = faulty.key(spec, BIG)
        self.manifest = self.resolved()

    def resolved(self) -> Manifest:
        """What the place holds now."""
        with closing(self.faulty.open(self.spec, self.faulty.credential)) as source:
            return source.resolve(source.pin())

    def add(self, fault: Fault) -> Fault:
        """Have `fault` happen to BIG."""
        return self.faulty.faults.add(replace(fault, match=self.key))

    def fill(self, readers: int = 4, midway: Midway | None = None) -> dict[str, bytes]:
        """What the filled image holds: every file that is not empty."""
        layout, watched = build_layout(self.manifest), midway or Midway(0, lambda: None)
        image, journal = self._folder / "image", self._folder / "journal"
        with closing(self.faulty.open(self.spec, self.faulty.credential)) as source:

            def reader() -> AbstractContextManager[Reader]:
                return watched.reader(source.open_reader(self.manifest))

            fill(layout, image, journal, reader, max_connections=readers, chunk_bytes=self.shape.chunk)
        data = image.read_bytes()
        return {
            e.entry.path: data[e.offset : e.offset + e.entry.size] for e in layout.extents if e.entry.size
        }

    @property
    def verifiable(self) -> bool:
        """Whether the origin gives a digest of BIG."""
        return trees.entry(self.manifest, BIG).is_verifiable


@pytest.fixture
def run(faulty: FaultyKit, place: CacheSpec, shape: Shape, tmp_path: Path) -> Run:
    return Run(faulty, place, shape, tmp_path)


def named(fault: Fault) -> str:
    return f"{fault.action}-{fault.status}" if fault.action == "status" else fault.action


def test_the_two_shapes_come_by_the_two_ways(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, get_small = list[int](), Connections.get_with_curl

    def seen(
        self: Connections, url: str, headers: Mapping[str, str], home: Site | None, wanted: int
    ) -> CurlResponse | None:
        asked.append(wanted)
        return get_small(self, url, headers, home, wanted)

    monkeypatch.setattr(Connections, "get_with_curl", seen)
    assert run.fill() == run.shape.expected
    assert (len(run.shape.expected[BIG]) in asked) is (run.shape is SMALL)


SLOW = ("stall", "trickle")
PASSING = [
    Fault("status", status=429, times=3),
    Fault("status", status=500, times=MAX_ATTEMPTS - 1),
    Fault("status", status=503, times=MAX_ATTEMPTS - 1),
    Fault("hang-up", times=MAX_ATTEMPTS - 1),
    Fault("reset", after=1000, times=MAX_ATTEMPTS - 1),
    Fault("drop", after=1000, times=MAX_ATTEMPTS - 1),
    Fault("stall", after=1000, seconds=2, times=2),
    Fault("trickle", after=1000, seconds=0.02, times=2),
    Fault("truncate", after=1000, times=MAX_ATTEMPTS - 1),
    Fault("redirect-loop", times=MAX_REDIRECTS + 1),
]


@pytest.mark.parametrize("fault", PASSING, ids=named)
def test_what_passes_is_survived(run: Run, fault: Fault, impatient: None) -> None:
    if run.shape is SMALL and fault.action in SLOW:
        # libcurl looks once a second, and at what came in the last few.
        fault = replace(fault, times=1, after=0)
    happens = run.add(fault)
    assert run.fill() == run.shape.expected
    assert happens.count == fault.times


LASTING = [
    (Fault("status", status=429), OriginThrottled, MAX_ATTEMPTS),
    (Fault("status", status=500), OriginUnavailable, MAX_ATTEMPTS),
    (Fault("status", status=503), OriginThrottled, MAX_ATTEMPTS),
    # One more: that a connection which was kept has ended is no failure.
    (Fault("hang-up"), OriginUnavailable, MAX_ATTEMPTS + 1),
    (Fault("reset", after=1000), OriginUnavailable, MAX_ATTEMPTS),
    (Fault("drop", after=1000), OriginUnavailable, MAX_ATTEMPTS),
    (Fault("stall", after=1000, seconds=1), OriginUnavailable, MAX_ATTEMPTS),
    (Fault("trickle", after=1000, seconds=0.02), OriginUnavailable, MAX_ATTEMPTS),
    (Fault("truncate", after=1000), OriginUnavailable, MAX_ATTEMPTS),
    (Fault("redirect-loop"), OriginUnavailable, MAX_ATTEMPTS * (MAX_REDIRECTS + 1)),
    (Fault("wrong-length"), SourceChanged, 1),
]


@pytest.mark.parametrize(
    ("fault", "expected", "tries"),
    LASTING,
    ids=lambda value: named(value) if isinstance(value, Fault) else "",
)
def test_what_lasts_is_an_error_that_names_the_file_after_bounded_tries(
    run: Run,
    fault: Fault,
    expected: type[DataCacheError],
    tries: int,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if run.shape is SMALL and fault.action in SLOW:
        monkeypatch.setattr(retrying_reader, "MAX_ATTEMPTS", 1)
        fault, tries = replace(fault, after=0, seconds=3 * fault.seconds), 1
    happens = run.add(fault)
    with pytest.raises(expected) as error:
        run.fill(readers=1)
    assert BIG in str(error.value)
    assert 0 < happens.count <= tries


def test_the_seconds_that_the_origin_asks_for_are_given(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    holds, hold = list[float](), RequestGate.pause_all

    def noted(flow: RequestGate, seconds: float) -> None:
        holds.append(seconds)
        hold(flow, seconds)

    monkeypatch.setattr(RequestGate, "pause_all", noted)
    happens = run.add(Fault("status", status=429, retry_after="1", times=1))
    assert run.fill() == run.shape.expected
    assert happens.count == 1
    assert holds == [1]


def test_bytes_that_are_wrong_once_are_put_right_where_a_digest_tells(run: Run) -> None:
    happens = run.add(Fault("corrupt", after=run.shape.half, times=1))
    assert run.fill() == (run.shape.expected if run.verifiable else _with_one_wrong(run.shape))
    assert happens.count == 1


def test_bytes_that_stay_wrong_are_never_taken_where_a_digest_tells(run: Run) -> None:
    happens = run.add(Fault("corrupt", after=run.shape.half))
    assert run.verifiable or not run.faulty.verifies
    if run.verifiable:
        with pytest.raises(CorruptContent, match=BIG):
            run.fill()
        assert happens.count == 2
    else:
        # The origin's word is all there is; this shows that the byte was wrong.
        assert run.fill() == _with_one_wrong(run.shape)


@pytest.mark.parametrize("more", [(), ("no-length",)], ids=["with-length", "without-length"])
def test_an_origin_that_ignores_ranges_sends_not_much_more_than_its_bytes(
    run: Run, more: tuple[str, ...]
) -> None:
    happens = run.add(Fault("ignore-range"))
    for action in more:
        run.add(Fault(action))
    # Slow enough that what was asked for in vain has not been sent before it is refused.
    run.faulty.faults.rate = 20e6
    before = run.faulty.counters.bytes_sent[run.key]
    assert run.fill() == run.shape.expected
    assert 0 < happens.count <= 6
    assert run.faulty.counters.bytes_sent[run.key] - before < 2 * len(run.shape.expected[BIG])


def test_answers_without_a_length_are_as_good(run: Run) -> None:
    happens = run.add(Fault("no-length"))
    assert run.fill() == run.shape.expected
    assert happens.count > 0


def test_an_origin_that_sends_small_files_whole_is_read_by_all_readers(run: Run, large_only: None) -> None:
    happens = run.faulty.faults.add(Fault("ignore-range", match=run.faulty.key(run.spec, "many/*")))
    assert run.fill() == run.shape.expected
    assert happens.count == 30


def test_signed_addresses_that_end_during_a_fill_are_signed_anew(run: Run, large_only: None) -> None:
    before, ended = run.faulty.counters.requests["ended"], list[bool]()
    assert (
        run.fill(midway=Midway(run.shape.half, lambda: ended.append(run.faulty.expire())))
        == run.shape.expected
    )
    if ended == [False]:
        pytest.skip(f"{run.faulty.name} was filled without signed addresses: it gives none out")
    assert ended == [True]
    assert run.faulty.counters.requests["ended"] > before


def test_a_file_that_changes_during_a_fill_is_never_mixed(run: Run, large_only: None) -> None:
    data = run.shape.expected[BIG]
    other = _flipped(data[:1000]) + data[1000:-1000] + _flipped(data[-1000:])
    midway = Midway(run.shape.half, lambda: run.faulty.change(run.spec, BIG, other))
    if run.faulty.pins_revisions:
        assert run.fill(midway=midway) == run.shape.expected
    else:
        with pytest.raises(run.faulty.changed, match=BIG):
            run.fill(midway=midway)
    assert run.resolved().digest != run.manifest.digest


def test_a_credential_that_is_revoked_during_a_fill_ends_it(run: Run, large_only: None) -> None:
    def revoke() -> None:
        run.faulty.forbid(run.spec)
        run.faulty.expire()

    with pytest.raises((*run.faulty.forbidden, Unauthenticated)) as error:
        run.fill(midway=Midway(run.shape.half, revoke))
    assert BIG in str(error.value) or run.spec.source.display_name.split("@")[0] in str(error.value)
    assert run.faulty.credential is None or run.faulty.credential not in str(error.value)


def _with_one_wrong(shape: Shape) -> dict[str, bytes]:
    """What is expected, but for the byte that `corrupt` flips."""
    data, half = shape.expected[BIG], shape.half
    return {**shape.expected, BIG: data[:half] + _flipped(data[half : half + 1]) + data[half + 1 :]}


def _flipped(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data)
