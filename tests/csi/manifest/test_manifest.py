"""The manifest: one text and one digest for one tree, and no tree that could harm a node."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.errors import DataCacheError, OutOfRange, UnsafeContent
from csi.manifest import manifest as module
from csi.manifest.manifest import DEFAULT_MTIME_NS, Entry, EntryKind, Manifest, build_manifest
from tests.csi.images.trees import manifests

FILE, FOLDER, LINK = EntryKind.FILE, EntryKind.DIRECTORY, EntryKind.SYMLINK
# Every image is named after such a digest: when this one changes, all images of all nodes are filled anew.
GOLDEN = "28c9486dc4348c3af5bc44ee0df262a47db26e069ee8384efa92e7b9ffb48186"


def sample() -> Manifest:
    entries = [
        Entry("config.json", FILE, 3, 0o600, 1_700_000_000_000_000_001, 7, 8, "git:" + "0" * 40),
        Entry("weights/größe.bin", FILE, 5 * 2**30, 0o755, digest="sha256:" + "a" * 64),
        Entry("weights/latest", LINK, target="größe.bin"),
        Entry("empty", FOLDER),
    ]
    return build_manifest(entries, {"repoId": "org/name"})


def file(path: str) -> Entry:
    return Entry(path, FILE, 1, digest="token:x")


def link(path: str, target: str) -> Entry:
    return Entry(path, LINK, target=target)


def refusal(*entries: Entry) -> str:
    with pytest.raises(UnsafeContent) as error:
        build_manifest(entries, {})
    return str(error.value)


def test_the_digest_of_a_known_tree_never_changes() -> None:
    assert sample().digest == GOLDEN


def test_the_digest_is_of_the_content_half_alone() -> None:
    entries = sample().entries
    assert Manifest(entries, {"repoId": "other/name"}).digest == Manifest(entries, {}).digest


@pytest.mark.parametrize(
    "change",
    [
        {"size": 4},
        {"mode": 0o555},
        {"mtime_ns": 5},
        {"uid": 1},
        {"gid": 1},
        {"digest": "git:1"},
        {"path": "b"},
        {"kind": FOLDER},
    ],
)
def test_whatever_shows_in_a_mount_changes_the_digest(change: dict) -> None:
    base = {
        "path": "a",
        "kind": FILE,
        "size": 3,
        "mode": 0o444,
        "mtime_ns": 9,
        "uid": 0,
        "gid": 0,
        "digest": "git:0",
    }
    one, other = (
        build_manifest([Entry(**values)], {}, preserve_ownership=True) for values in (base, base | change)
    )
    assert one.digest != other.digest


@given(manifests(), st.randoms(use_true_random=False))
def test_the_order_of_a_listing_makes_no_difference(tree: Manifest, order: random.Random) -> None:
    shuffled = list(tree.entries)
    order.shuffle(shuffled)
    again = build_manifest(shuffled, tree.access, preserve_ownership=True)
    assert again == tree
    assert again.digest == tree.digest


@given(manifests())
def test_a_manifest_that_was_written_is_read_back(tree: Manifest) -> None:
    stream = io.BytesIO()
    tree.write(stream)
    stream.seek(0)
    again = Manifest.read(stream)
    assert again == tree
    assert again.digest == tree.digest
    assert again.content_bytes == sum(e.size for e in tree.entries if e.kind is FILE)


@given(manifests(), st.data())
def test_a_stored_manifest_that_is_cut_or_changed_is_never_believed(
    tree: Manifest, data: st.DataObject
) -> None:
    stream = io.BytesIO()
    tree.write(stream)
    whole = stream.getvalue()
    at = data.draw(st.integers(0, len(whole) - 2))
    for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
        try:
            found = Manifest.read(io.BytesIO(damaged))
        except DataCacheError:
            continue
        assert found.entries == tree.entries, "only the access half is outside the digest"


def test_a_manifest_of_another_format_is_refused_with_both_numbers() -> None:
    stream = io.BytesIO(b'{"format":99,"digest":"","access":{}}\n')
    with pytest.raises(DataCacheError, match="format 99, this driver reads 1"):
        Manifest.read(stream)


def test_entries_are_ordered_by_the_bytes_of_their_paths() -> None:
    paths = ["a/b", "a-b", "a.b", "é", "z", "Z", "\U00010000", "\uffff"]
    made = build_manifest([file(path) for path in paths], {})
    assert [entry.path for entry in made.entries] == sorted([*paths, "a"], key=str.encode)


def test_folders_that_a_listing_leaves_out_are_added() -> None:
    made = build_manifest([file("a/b/c")], {})
    assert [(entry.path, entry.kind, entry.mode) for entry in made.entries[:2]] == [
        ("a", FOLDER, 0o555),
        ("a/b", FOLDER, 0o555),
    ]


def test_owners_and_modes_become_plain_unless_they_are_to_be_kept() -> None:
    entries = [
        Entry("run", FILE, 1, 0o4711, 0, 12, 13, "token:"),
        Entry("data", FILE, 1, 0o600, 0, 12, 13, "token:"),
        Entry("d", FOLDER, mode=0o700),
    ]
    plain = {entry.path: (entry.mode, entry.uid, entry.gid) for entry in build_manifest(entries, {}).entries}
    assert plain == {"run": (0o555, 0, 0), "data": (0o444, 0, 0), "d": (0o555, 0, 0)}
    kept = {
        entry.path: (entry.mode, entry.uid, entry.gid)
        for entry in build_manifest(entries, {}, preserve_ownership=True).entries
    }
    assert kept == {"run": (0o4711, 12, 13), "data": (0o600, 12, 13), "d": (0o700, 0, 0)}


def test_a_source_without_times_gets_one_that_zip_takes() -> None:
    assert Entry("a", FILE).mtime_ns == DEFAULT_MTIME_NS == 315_532_800_000_000_000


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "git:" + "0" * 40])
def test_a_change_token_verifies_nothing(digest: str) -> None:
    assert Entry("a", FILE, digest=digest).is_verifiable
    assert not Entry("a", FILE, digest="token:x").is_verifiable


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/a",
        "a//b",
        "a/",
        "./a",
        "a/./b",
        "..",
        "../a",
        "a/../b",
        "a/..",
        "a\0b",
        "a" * 256,
        "é" * 128,
        "x/" * 2048 + "x",
    ],
)
def test_a_path_that_could_harm_a_node_is_refused_by_name(path: str) -> None:
    assert "in the source" in refusal(file(path))


def test_a_name_that_is_not_utf_8_is_refused() -> None:
    assert "not UTF-8" in refusal(file("caf\udce9"))


@pytest.mark.parametrize(
    "path", ["a" * 255, "é" * 127, "...", "..a", "a..", " ", "a b", "\n", "x/" * 2000 + "x", "-rf", "\u202e"]
)
def test_odd_names_that_harm_nobody_are_kept(path: str) -> None:
    assert build_manifest([file(path)], {}).entries[-1].path == path


def test_a_path_that_is_listed_twice_is_refused() -> None:
    assert "twice" in refusal(file("a"), file("a"))
    assert "twice" in refusal(file("a"), Entry("a", FOLDER))


@pytest.mark.parametrize(
    "entries",
    [
        (file("a"), file("a/b")),
        (file("a/b"), file("a")),
        (link("a", "b"), file("a/c")),
        (file("x/y/z"), link("x/y", "q")),
    ],
)
def test_a_file_or_symlink_that_is_used_as_a_folder_is_refused(entries: tuple[Entry, ...]) -> None:
    assert "both as a file and as a folder" in refusal(*entries)


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "//x", "..", "../..", "a/../../b", "../../c/d/../x", "./../../x"]
)
def test_a_symlink_that_leaves_the_tree_is_refused_by_name(target: str) -> None:
    message = refusal(
        link("c/link" if target.startswith(("../", "./")) and target != ".." else "link", target),
        Entry("a", FOLDER),
    )
    assert "link" in message
    assert "outside the volume" in message


@pytest.mark.parametrize(
    "links",
    [
        [("d/up", "."), ("d/x", "up/../../y")],
        [("a/b/c", "../.."), ("z", "a/b/c/../x")],
        [("deep/er/here", "../../shallow"), ("q", "deep/er/here/../../x")],
        [("loop", "loop/.."), ("k", "loop")],
    ],
)
def test_a_symlink_that_goes_up_behind_another_symlink_is_refused(links: list[tuple[str, str]]) -> None:
    assert "outside the volume" in refusal(
        *(link(path, target) for path, target in links), Entry("shallow", FOLDER)
    )


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("a", "b"),
        ("d/a", "../b"),
        ("d/e/a", "../../x/../b"),
        ("a", "."),
        ("a", "./b//c/"),
        ("a", "missing/x"),
        ("a", "d/.."),
        ("a", "t" * 4095),
    ],
)
def test_a_symlink_that_stays_inside_is_kept_as_it_is(path: str, target: str) -> None:
    made = build_manifest([link(path, target), Entry("d", FOLDER)], {})
    assert {entry.path: entry.target for entry in made.entries}[path] == target


@pytest.mark.parametrize("target", ["", "a\0b", "t" * 4096])
def test_a_symlink_that_no_file_system_could_hold_is_refused(target: str) -> None:
    assert "target" in refusal(link("a", target))


def test_more_entries_than_a_volume_may_have_are_refused_with_the_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 10)
    assert len(build_manifest([file(f"f{n}") for n in range(10)], {}).entries) == 10
    with pytest.raises(OutOfRange, match="more than 10 files.*allowPatterns"):
        build_manifest((file(f"f{n}") for n in range(10**9)), {})
