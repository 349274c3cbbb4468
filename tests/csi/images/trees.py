"""Trees for tests: hypothesis strategies for manifests, the bytes of their files, images written and
mounted."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from csi.images.layout.layout import Layout, build_layout
from csi.manifest.manifest import Entry, EntryKind, Manifest, build_manifest

NAME_TEXT = st.characters(blacklist_categories=("Cs",), blacklist_characters="/\0")
SIZES = st.one_of(st.sampled_from([0, 1, 4095, 4096, 4097, 8191, 8192, 8193]), st.integers(0, 40_000))
TIMES = st.integers(0, 2**33 * 10**9)
OWNERS = st.integers(0, 2**32 - 2)


def content(path: str, size: int) -> bytes:
    """`size` bytes that only a file of this path has."""
    return hashlib.shake_128(path.encode()).digest(size)


def file(path: str, size: int, digest: str = "sha256", **more: int) -> Entry:
    """A file entry whose digest is that of `content(path, size)`, in the form `digest`: sha256, git or
    token."""
    return Entry(path, EntryKind.FILE, size, digest=digest_of(content(path, size), digest), **more)


def digest_of(data: bytes, form: str) -> str:
    if form == "git":
        return "git:" + hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return "sha256:" + hashlib.sha256(data).hexdigest() if form == "sha256" else "token:test"


def _is_name(text: str) -> bool:
    return text not in (".", "..") and len(text.encode()) <= 255


names = st.one_of(
    st.text(NAME_TEXT, min_size=1, max_size=12),
    st.sampled_from(
        [
            "!",
            "-",
            ".a",
            "...",
            "a",
            "a-b",
            "a.b",
            "\u00e9",
            "\uffff",
            "\U00010000",
            "z" * 255,
            "\u00fc" * 127,
        ]
    ),
).filter(_is_name)


@st.composite
def manifests(draw: st.DrawFn, sizes: st.SearchStrategy[int] = SIZES) -> Manifest:
    """Any tree of some folders, files and symlinks, with modes, times and owners of their own."""
    folders = [""]
    entries: dict[str, Entry] = {}
    for _ in range(draw(st.integers(0, 25))):
        parent = draw(st.sampled_from(folders))
        path = f"{parent}/{draw(names)}".lstrip("/")
        if path in entries or len(path.encode()) > 3000:
            continue
        kind = draw(st.sampled_from([EntryKind.FILE, EntryKind.FILE, EntryKind.DIRECTORY, EntryKind.SYMLINK]))
        more = {
            "mtime_ns": draw(TIMES),
            "mode": draw(st.integers(0, 0o7777)),
            "uid": draw(OWNERS),
            "gid": draw(OWNERS),
        }
        if kind is EntryKind.FILE:
            entries[path] = file(path, draw(sizes), draw(st.sampled_from(["sha256", "git", "token"])), **more)
        elif kind is EntryKind.DIRECTORY:
            entries[path] = Entry(path, kind, **more)
            folders.append(path)
        else:
            target = draw(
                st.one_of(
                    names,
                    st.integers(1, 4095).map(
                        lambda n: ("t" * 200 + "/") * (n // 201) + "t" * (n % 201) or "t"
                    ),
                )
            )
            entries[path] = Entry(path, kind, target=target, **more)
    return build_manifest(entries.values(), {}, preserve_ownership=draw(st.booleans()))


def write_image(layout: Layout, path: Path) -> None:
    """Write the whole image plainly, as the fill has to."""
    with path.open("wb") as out:
        out.truncate(layout.size)
        out.write(layout.metadata)
        for extent in layout.extents:
            out.seek(extent.offset)
            out.write(content(extent.entry.path, extent.entry.size))


def image_of(manifest: Manifest, path: Path) -> Layout:
    layout = build_layout(manifest)
    write_image(layout, path)
    return layout


def fsck(path: Path) -> None:
    done = subprocess.run(["fsck.erofs", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    """The image, mounted by the kernel through a read-only loop device of its own."""
    at.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "erofs", "-o", "ro,loop", str(image), str(at)], check=True, capture_output=True
    )
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def _seen(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every path below `root` as the kernel lists it."""
    pending = [""]
    while pending:
        folder = pending.pop()
        for name in os.listdir(root / folder):
            path = f"{folder}/{name}".lstrip("/")
            status = os.lstat(root / path)
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)


def compare(manifest: Manifest, root: Path) -> None:
    """Assert that the tree at `root` is exactly the manifest: names, kinds, sizes, modes, times, owners,
    targets, bytes."""
    seen = dict(_seen(root))
    assert seen.keys() == {e.path for e in manifest.entries}
    types = {EntryKind.FILE: stat.S_IFREG, EntryKind.DIRECTORY: stat.S_IFDIR, EntryKind.SYMLINK: stat.S_IFLNK}
    for entry in manifest.entries:
        status = seen[entry.path]
        assert status.st_mode == types[entry.kind] | entry.mode
        assert (status.st_mtime_ns, status.st_uid, status.st_gid) == (entry.mtime_ns, entry.uid, entry.gid)
        if entry.kind is EntryKind.FILE:
            assert status.st_size == entry.size
            assert (root / entry.path).read_bytes() == content(entry.path, entry.size)
        elif entry.kind is EntryKind.SYMLINK:
            assert os.readlink(os.fsencode(root / entry.path)) == entry.target.encode(
                errors="surrogateescape"
            )
        else:
            folders = sum(
                1
                for e in manifest.entries
                if e.kind is EntryKind.DIRECTORY and e.path.rpartition("/")[0] == entry.path
            )
            assert status.st_nlink == 2 + folders
