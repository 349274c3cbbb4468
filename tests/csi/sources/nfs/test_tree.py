"""What a NAS folder holds, listed and read over a real NFS server."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from csi.errors import UnsafeContent
from csi.manifest.manifest import EntryKind
from tests.csi.sources.nfs.origin import by_path, contents, opened, resolved, write
from tests.origins.ganesha import Ganesha

MTIME_NS = 1_600_000_000_123_456_789


def test_nested_folders_and_their_bytes_are_read(nas: Ganesha, folder: Path, version: str) -> None:
    files = {
        "a": b"x",
        "b/c/d/e/f": random.randbytes(5 << 20),
        "b/c/g": random.randbytes(12345),
        "h/.hidden/.snapshot/i": b"kept",
    }
    for name, data in files.items():
        write(folder / name, data)
    assert contents(nas.spec(folder, version)) == files
    assert contents(nas.spec(folder, version), chunk=700_001) == files


def test_a_tree_deeper_than_one_compound_of_lookups_is_read(nas: Ganesha, folder: Path, version: str) -> None:
    name = "/".join(f"level-{n}" for n in range(40)) + "/file"
    write(folder / name, b"deep")
    assert contents(nas.spec(folder, version)) == {name: b"deep"}


def test_empty_files_and_folders_are_kept(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "empty", b"")
    (folder / "nothing/in/here").mkdir(parents=True)
    found = by_path(resolved(nas.spec(folder, version)))
    assert {path: entry.kind for path, entry in found.items()} == {
        "empty": EntryKind.FILE, "nothing": EntryKind.DIRECTORY, "nothing/in": EntryKind.DIRECTORY, "nothing/in/here": EntryKind.DIRECTORY,  # noqa: E501
    }  # fmt: skip
    assert contents(nas.spec(folder, version)) == {"empty": b""}


def test_an_empty_source_is_a_source(nas: Ganesha, folder: Path, version: str) -> None:
    assert resolved(nas.spec(folder, version)).entries == ()


def test_symlinks_keep_their_target(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "blobs/1", b"data")
    links = {"link": "blobs/1", "snap/model": "../blobs/1", "dangling": "nowhere"}
    for name, target in links.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)
    found = by_path(resolved(nas.spec(folder, version)))
    assert {name: found[name].target for name in links} == links
    assert all(found[name].kind is EntryKind.SYMLINK for name in links)


def test_modes_owners_and_mtimes_are_kept_where_asked(nas: Ganesha, folder: Path, version: str) -> None:
    path = write(folder / "sub/run", b"#!")
    os.chown(path, 1234, 567)
    path.chmod(0o4751)
    (folder / "sub").chmod(0o711)
    os.utime(path, ns=(1, MTIME_NS))
    os.utime(folder / "sub", ns=(1, MTIME_NS + 1))
    found = by_path(resolved(nas.spec(folder, version), preserve_ownership=True))
    run, sub = found["sub/run"], found["sub"]
    assert (run.mode, run.uid, run.gid, run.mtime_ns) == (0o4751, 1234, 567, MTIME_NS)
    assert (sub.mode, sub.uid, sub.gid, sub.mtime_ns) == (0o711, 0, 0, MTIME_NS + 1)
    plain = by_path(resolved(nas.spec(folder, version)))["sub/run"]
    assert (plain.mode, plain.uid, plain.gid, plain.mtime_ns) == (0o555, 0, 0, MTIME_NS)


def test_names_in_any_script_and_of_255_bytes_are_kept(nas: Ganesha, folder: Path, version: str) -> None:
    names = {
        "模型/权重 1.bin",
        "Ünï cödé",
        "emoji-🤗",
        "with\nnewline",
        "quote'\"\\",
        "%41#?&",
        " leading",
        "n" * 255,
        "é" * 127,
    }
    for name in names:
        write(folder / name, name.encode())
    assert contents(nas.spec(folder, version)) == {name: name.encode() for name in names}


def test_a_path_with_blanks_and_umlauts_is_found(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "mit Ümlaut & 100%/f", b"1")
    assert contents(nas.spec(folder / "mit Ümlaut & 100%", version)) == {"f": b"1"}


def test_hard_links_are_files_of_their_own(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "one", b"same")
    os.link(folder / "one", folder / "two")
    assert contents(nas.spec(folder, version)) == {"one": b"same", "two": b"same"}


def test_the_path_may_be_written_with_more_slashes(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "sub/f", b"1")
    path = f"/{folder}//sub/"
    assert resolved(nas.spec(path, version)).digest == resolved(nas.spec(folder / "sub", version)).digest


def test_both_versions_and_every_resolve_give_the_same_digest(nas: Ganesha, folder: Path) -> None:
    for n in range(300):
        write(folder / f"d{n % 7}/f{n}", b"x" * n)
    digests = {resolved(nas.spec(folder, v)).digest for v in ("3", "4.0", "3", "4.0")}
    assert len(digests) == 1


def test_a_file_written_again_has_another_digest(nas: Ganesha, folder: Path, version: str) -> None:
    path = write(folder / "f", b"1")
    before = by_path(resolved(nas.spec(folder, version)))["f"].digest
    os.utime(path, ns=(1, MTIME_NS))
    touched = by_path(resolved(nas.spec(folder, version)))["f"].digest
    write(folder / "other", b"2")
    os.utime(folder / "other", ns=(1, MTIME_NS))
    (folder / "other").rename(path)
    replaced = by_path(resolved(nas.spec(folder, version)))["f"].digest
    assert len({before, touched, replaced}) == 3


def test_look_alikes_of_two_folders_do_not_meet(nas: Ganesha, folder: Path, version: str) -> None:
    write(folder / "one/f", b"1")
    (folder / "two").mkdir()
    os.link(folder / "one/f", folder / "two/f")
    assert (
        resolved(nas.spec(folder / "one", version)).digest
        != resolved(nas.spec(folder / "two", version)).digest
    )


@pytest.mark.parametrize("kind", ["fifo", "socket", "block device", "character device"])
def test_special_files_are_refused_by_name(
    nas: Ganesha, folder: Path, version: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sub").mkdir()
    path = str(folder / "sub/odd")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(folder / "sub")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("odd")
    else:
        os.mknod(path, (0o060644 if kind == "block device" else 0o020644), os.makedev(1, 3))
    with pytest.raises(UnsafeContent, match=f"'sub/odd' is a {kind}"):
        resolved(nas.spec(folder, version))


def test_a_name_that_is_not_utf8_is_refused_with_its_bytes_escaped(
    nas: Ganesha, folder: Path, version: str
) -> None:
    write(folder / "sub/good", b"")
    Path(os.fsdecode(os.fsencode(folder) + b"/sub/bad-\xff\xfe")).touch()
    with pytest.raises(UnsafeContent, match=r"in the folder '/sub' is not UTF-8: 'bad-\\xff\\xfe'"):
        resolved(nas.spec(folder, version))


def test_a_symlink_out_of_the_tree_is_refused(nas: Ganesha, folder: Path, version: str) -> None:
    (folder / "out").symlink_to("../secret")
    with pytest.raises(UnsafeContent, match="'out'.*outside"):
        resolved(nas.spec(folder, version))


@pytest.mark.parametrize("version", ["3"])
def test_a_hundred_thousand_files_are_listed(nas: Ganesha, folder: Path, version: str) -> None:
    for d in range(100):
        (folder / f"{d:03}").mkdir()
        base = os.open(folder / f"{d:03}", os.O_DIRECTORY)
        for f in range(1000):
            os.close(os.open(f"shard-{f:05}.bin", os.O_CREAT | os.O_WRONLY, dir_fd=base))
        os.close(base)
    with opened(nas.spec(folder, version, timeout=60)) as source:
        manifest = source.resolve(source.pin())
    assert len(list(manifest.files)) == 100_000
    assert len(manifest.entries) == 100_100


def test_a_folder_of_twenty_thousand_files_is_listed(nas: Ganesha, folder: Path, version: str) -> None:
    for f in range(20_000):
        os.close(os.open(folder / f"{f}", os.O_CREAT | os.O_WRONLY))
    with opened(nas.spec(folder, version, timeout=60)) as source:
        assert len(source.resolve(source.pin()).entries) == 20_000
