"""What csi.sources.source.Source promises, proved for every source against its kit's real origin."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from csi.errors import DataCacheError, OriginUnavailable, SourceChanged, SourceNotFound, Unauthenticated
from csi.manifest.manifest import EntryKind, Manifest
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.volume_parameters import parse_volume_parameters
from tests.conformance import trees
from tests.conformance.kit import Kit, Tree
from tests.conformance.trees import BIG, EMPTY, ONE, SMALL

ROOT = Path(__file__).resolve().parent.parent.parent
_ELSEWHERE = """
import json, pickle, sys
sys.path.insert(0, sys.argv[1])
{program}
spec, credential = pickle.loads(bytes.fromhex(sys.stdin.read()))
source = open(spec, credential)
manifest = source.resolve(source.pin())
source.check_read_access(manifest)
source.close()
print(json.dumps([manifest.digest, len(manifest.entries), manifest.content_bytes]))
"""


@pytest.fixture
def files(origin: Kit) -> Tree:
    return trees.tree(top=origin.top_files)


@pytest.fixture
def place(origin: Kit, files: Tree) -> CacheSpec:
    return origin.place(files)


def resolved(origin: Kit, spec: CacheSpec) -> Manifest:
    with closing(origin.open(spec, origin.credential)) as source:
        return source.resolve(source.pin())


@pytest.fixture
def stopped(origin: Kit) -> Iterator[Kit]:
    """The kit, whose origin the test may stop; it runs again afterwards."""
    yield origin
    origin.start()


def test_the_manifest_holds_every_file_of_the_origin(origin: Kit, place: CacheSpec, files: Tree) -> None:
    manifest = resolved(origin, place)
    found = {e.path: e.size for e in manifest.files}
    assert found == {path: len(data) for path, data in trees.contents(files).items()}
    folders = {e.path for e in manifest.entries if e.kind is EntryKind.DIRECTORY}
    assert {"weights", "deep/er/and/deep", "names/\u00fcber/\u65e5\u672c\u8a9e"} <= folders


def test_every_byte_is_the_origins(origin: Kit, place: CacheSpec, files: Tree) -> None:
    manifest = resolved(origin, place)
    with closing(origin.open(place, origin.credential)) as source:
        assert trees.read_all(source, manifest) == trees.contents(files)


def test_two_resolutions_are_alike(origin: Kit, place: CacheSpec) -> None:
    first, second = resolved(origin, place), resolved(origin, place)
    assert first.digest == second.digest
    assert first == second


def test_another_machine_resolves_the_same(origin: Kit, place: CacheSpec, tmp_path: Path) -> None:
    here = resolved(origin, place)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "LANG": "C",
        "TZ": "Asia/Tokyo",
        **origin.environment(),
    }
    told = pickle.dumps((place, origin.credential)).hex()
    program = _ELSEWHERE.format(program=origin.program())
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)],
        input=told,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [here.digest, len(here.entries), here.content_bytes]


def test_the_access_half_is_the_pinned_spec(origin: Kit, place: CacheSpec) -> None:
    with closing(origin.open(place, origin.credential)) as source:
        pinned = source.pin()
        manifest = source.resolve(pinned)
    assert manifest.access == pinned.to_context()
    assert parse_volume_parameters(manifest.access).spec == pinned
    assert origin.credential is None or origin.credential not in json.dumps(manifest.access)


def test_a_pinned_spec_is_its_own_pin(origin: Kit, place: CacheSpec) -> None:
    with closing(origin.open(place, origin.credential)) as source:
        pinned = source.pin()
    with closing(origin.open(pinned, origin.credential)) as source:
        assert source.pin() == pinned


def test_any_range_is_the_files(origin: Kit, place: CacheSpec, files: Tree) -> None:
    data = trees.contents(files)[BIG]
    manifest = resolved(origin, place)
    rng = random.Random(1)
    spans = [(0, 1), (len(data) - 1, 1), (0, len(data)), (4095, 2), (1 << 20, 1 << 20), (len(data) - 3, 3)]
    spans += [
        (start, rng.randint(1, min(900_000, len(data) - start)))
        for start in (rng.randrange(len(data)) for _ in range(12))
    ]
    big = trees.entry(manifest, BIG)
    with closing(origin.open(place, origin.credential)) as source, source.open_reader(manifest) as reader:
        for start, length in spans:
            buffer = bytearray(length)
            reader.read_into(big, start, memoryview(buffer))
            assert buffer == data[start : start + length], (start, length)


def test_files_can_be_read_in_turns_by_one_reader(origin: Kit, place: CacheSpec, files: Tree) -> None:
    manifest = resolved(origin, place)
    data = trees.contents(files)
    with closing(origin.open(place, origin.credential)) as source, source.open_reader(manifest) as reader:
        for turn in range(4):
            for path in (BIG, "deep/page", ONE):
                start = min(turn * 500_000, len(data[path]) - 1)
                buffer = bytearray(min(500_000, len(data[path]) - start))
                reader.read_into(trees.entry(manifest, path), start, memoryview(buffer))
                assert buffer == data[path][start : start + len(buffer)]


def test_an_empty_file_is_read_and_nothing_beyond_the_end_is(origin: Kit, place: CacheSpec) -> None:
    manifest = resolved(origin, place)
    with closing(origin.open(place, origin.credential)) as source:
        assert trees.read(source, manifest, EMPTY) == b""
        for path, offset in ((BIG, 5_000_003), (BIG, 4_999_999), (SMALL, 1 << 40), (EMPTY, 0)):
            with pytest.raises(SourceChanged):
                trees.read(source, manifest, path, offset, 5)


def test_readers_of_several_threads_do_not_disturb_each_other(
    origin: Kit, place: CacheSpec, files: Tree
) -> None:
    manifest = resolved(origin, place)
    expected = trees.contents(files)
    wrong: list[object] = []

    def work(source_reads: int) -> None:
        try:
            for _ in range(source_reads):
                if trees.read_all(source, manifest) != expected:
                    wrong.append("other bytes")
        except Exception as error:
            wrong.append(error)

    with closing(origin.open(place, origin.credential)) as source:
        threads = [threading.Thread(target=work, args=(3,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_reading_goes_on_after_a_cut_connection(origin: Kit, place: CacheSpec, files: Tree) -> None:
    manifest = resolved(origin, place)
    if not origin.cut(place, BIG, 700_000):
        origin.stop()
        origin.start()
    with closing(origin.open(place, origin.credential)) as source:
        for _ in range(5):
            try:
                assert trees.read(source, manifest, BIG) == trees.contents(files)[BIG]
                break
            except OriginUnavailable:
                continue
        else:
            pytest.fail("the reader did not recover in five tries")


def test_a_moved_source_is_a_new_manifest(origin: Kit, place: CacheSpec, files: Tree) -> None:
    with closing(origin.open(place, origin.credential)) as source:
        pinned = source.pin()
        before = source.resolve(pinned)
    changed = b"changed " * 700_000
    origin.change(place, BIG, changed)
    after = resolved(origin, place)
    assert after.digest != before.digest
    assert trees.entry(after, BIG).size == len(changed)
    with closing(origin.open(pinned, origin.credential)) as source:
        if origin.pins_revisions:
            assert source.resolve(source.pin()).digest == before.digest
            assert trees.read(source, before, BIG) == trees.contents(files)[BIG]
        else:
            with pytest.raises(SourceChanged, match=BIG):
                trees.read(source, before, BIG)
        assert trees.read(source, after, BIG) == changed


def test_what_is_not_there_is_not_found(origin: Kit, place: CacheSpec) -> None:
    manifest = resolved(origin, place)
    origin.remove(place)
    for ask in ("pin and resolve", "prove"):
        with (
            closing(origin.open(place, origin.credential)) as source,
            pytest.raises((SourceNotFound, SourceChanged)),
        ):
            source.check_read_access(manifest) if ask == "prove" else source.resolve(source.pin())


def test_the_right_to_read_is_proved(origin: Kit, place: CacheSpec) -> None:
    manifest = resolved(origin, place)
    with closing(origin.open(place, origin.credential)) as source:
        source.check_read_access(manifest)


def test_a_forbidden_source_is_refused(origin: Kit, place: CacheSpec) -> None:
    manifest = resolved(origin, place)
    origin.forbid(place)
    with closing(origin.open(place, origin.credential)) as source, pytest.raises(origin.forbidden):
        source.resolve(source.pin())
    with closing(origin.open(place, origin.credential)) as source, pytest.raises(origin.forbidden):
        source.check_read_access(manifest)


def test_a_source_that_lists_but_does_not_read_is_refused(origin: Kit, place: CacheSpec) -> None:
    before = resolved(origin, place)
    origin.forbid_reading(place)
    if origin.lists_by_reading:
        with pytest.raises(origin.unreadable):
            resolved(origin, place)
    manifest = before if origin.lists_by_reading else resolved(origin, place)
    with closing(origin.open(place, origin.credential)) as source, pytest.raises(origin.unreadable):
        source.check_read_access(manifest)


@pytest.mark.parametrize("credential", [None, "wrong-credential"])
def test_a_missing_or_wrong_credential_is_refused_and_not_repeated(
    origin: Kit, place: CacheSpec, credential: str | None
) -> None:
    if origin.credential is None:
        pytest.skip(
            f"no wrong credential was tried against {origin.name}: it knows users and machines, not "
            "credentials"
        )
    manifest = resolved(origin, place)
    for ask in ("resolve", "prove"):
        with closing(origin.open(place, credential)) as source, pytest.raises(Unauthenticated) as refused:
            source.check_read_access(manifest) if ask == "prove" else source.resolve(source.pin())
        assert str(credential) not in str(refused.value)


def test_an_unreachable_origin_is_named(stopped: Kit, place: CacheSpec) -> None:
    manifest = resolved(stopped, place)
    stopped.stop()
    for ask in ("resolve", "prove", "read"):
        with (
            closing(stopped.open(place, stopped.credential)) as source,
            pytest.raises(OriginUnavailable) as error,
        ):
            {
                "resolve": lambda: source.resolve(source.pin()),
                "prove": lambda: source.check_read_access(manifest),
                "read": lambda: trees.read(source, manifest, BIG),
            }[ask]()
        assert "127.0.0" in str(error.value) or "localhost" in str(error.value)


def test_an_origin_that_comes_back_is_read_again(stopped: Kit, place: CacheSpec, files: Tree) -> None:
    with closing(stopped.open(place, stopped.credential)) as source:
        manifest = source.resolve(source.pin())
        assert trees.read(source, manifest, ONE) == b"1"
        stopped.stop()
        with pytest.raises(OriginUnavailable):
            trees.read(source, manifest, SMALL)
        stopped.start()
        deadline = time.monotonic() + 60
        while True:
            try:
                assert trees.read(source, manifest, BIG) == trees.contents(files)[BIG]
                break
            except OriginUnavailable:
                assert time.monotonic() < deadline
                time.sleep(0.2)


def test_closing_lets_go_of_connections(origin: Kit, place: CacheSpec) -> None:
    manifest = resolved(origin, place)
    source = origin.open(place, origin.credential)
    readers = [source.open_reader(manifest) for _ in range(8)]
    for context in readers:
        reader = context.__enter__()
        reader.read_into(trees.entry(manifest, BIG), 0, memoryview(bytearray(100_000)))
    assert origin.open_connections() > 0
    for context in readers:
        context.__exit__(None, None, None)
    source.close()
    deadline = time.monotonic() + 10
    while origin.open_connections() > origin.idle_connections and time.monotonic() < deadline:
        time.sleep(0.05)
    assert origin.open_connections() <= origin.idle_connections


def test_no_error_says_more_than_it_should(origin: Kit, place: CacheSpec) -> None:
    """Errors are the project's own, with a message, and hold neither the credential nor a signed address."""
    manifest = resolved(origin, place)
    origin.forbid(place)
    for operation in ("resolve", "prove", "read"):
        with closing(origin.open(place, origin.credential)) as source, pytest.raises(DataCacheError) as error:
            if operation == "resolve":
                source.resolve(source.pin())
            elif operation == "prove":
                source.check_read_access(manifest)
            else:
                trees.read(source, manifest, SMALL)
        message = str(error.value)
        assert len(message) > 20
        assert "Signature=" not in message
        assert origin.credential is None or origin.credential not in message
