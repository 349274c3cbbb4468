"""The layout is judged by the kernel and by fsck.erofs, not by a second copy of its formulae."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from csi.errors import OutOfRange
from csi.images.layout import erofs
from csi.images.layout.layout import build_layout
from csi.manifest.manifest import DEFAULT_MTIME_NS, Entry, EntryKind, Manifest, build_manifest
from tests.csi.images.trees import compare, file, fsck, image_of, manifests, mounted


def check(manifest: Manifest, folder: Path) -> None:
    image = folder / "image"
    layout = image_of(manifest, image)
    assert layout.size == image.stat().st_size
    assert layout.size % 4096 == 0
    fsck(image)
    with mounted(image, folder / "mnt") as root:
        compare(manifest, root)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(manifest=manifests())
def test_any_tree_is_read_back_by_the_kernel_as_it_was_described(manifest: Manifest) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(manifest, Path(folder))


def test_an_empty_volume_has_a_read_only_root_of_a_fixed_time(tmp_path: Path) -> None:
    manifest = build_manifest([], {})
    check(manifest, tmp_path)
    with mounted(tmp_path / "image", tmp_path / "mnt") as root:
        status = root.stat()
        assert (status.st_mode & 0o7777, status.st_mtime_ns, status.st_nlink) == (0o555, DEFAULT_MTIME_NS, 2)


def test_sizes_around_a_block_empty_files_and_empty_folders(tmp_path: Path) -> None:
    sizes = [0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 3 * 1024 * 1024 + 5]
    check(
        build_manifest(
            [
                *(file(f"s{n}", n) for n in sizes),
                Entry("empty", EntryKind.DIRECTORY),
                Entry("a/b/c", EntryKind.DIRECTORY),
            ],
            {},
        ),
        tmp_path,
    )


def test_folders_of_many_blocks_with_long_and_utf8_names(tmp_path: Path) -> None:
    entries = [file(f"thousand/{n}", n % 3) for n in range(1000)]
    entries += [file(f"long/{n:03d}" + "x" * 252, 1) for n in range(100)]
    entries += [file(f"deep/{'é' * 120}{n}/f", 2) for n in range(40)]
    check(build_manifest(entries, {}), tmp_path)


def test_folders_just_around_the_size_that_fits_behind_an_inode(tmp_path: Path) -> None:
    entries = []
    # "." and ".." take 27 bytes, a name of 240 bytes takes 252: 15 of them and one more name around 4096 - 64
    # - 27 and 4096 - 27.
    for folder in range(220, 245):
        entries += [file(f"f{folder}/{n:03d}" + "x" * 237, 0) for n in range(15)]
        entries.append(file(f"f{folder}/" + "y" * (folder - 12), 0))
    entries += [file(f"g/{n:02d}" + "y" * 20, 0) for n in range(119)]
    check(build_manifest(entries, {}), tmp_path)


@pytest.mark.parametrize("count", [*range(76, 128, 4), 86, 87, 88, 89])
def test_a_top_folder_of_any_size_is_found(tmp_path: Path, count: int) -> None:
    # An entry takes 33 bytes: from some 85 files on, the root and what is behind its inode do not fit behind
    # the super block any more.
    check(build_manifest([file(f"model-{n:05}-of-00150.st", 1) for n in range(count)], {}), tmp_path)


def test_names_that_sort_differently_as_text_and_as_bytes(tmp_path: Path) -> None:
    names = [
        "!",
        "#",
        "-",
        ".-",
        "...",
        ".a",
        "..a",
        "0",
        "a",
        "a!",
        "a-b",
        "a.b",
        "\uffff",
        "\U00010000",
        "\x7f",
        "\x01",
    ]
    entries = [file(name, 1) for name in names]
    entries += [file(f"a{c}/f", 1) for c in "#+,0"]
    check(build_manifest(entries, {}), tmp_path)


def test_symlinks_of_every_length(tmp_path: Path) -> None:
    def target(length: int) -> str:
        return ("t" * 200 + "/") * (length // 201) + "t" * (length % 201) or "t"

    lengths = [*range(1, 200, 7), 1000, 2000, 3900, *range(4025, 4040), 4094, 4095]
    check(
        build_manifest([Entry(f"l{n}", EntryKind.SYMLINK, target=target(n)) for n in lengths], {}), tmp_path
    )


def test_a_symlink_is_followed_and_undecodable_targets_keep_their_bytes(tmp_path: Path) -> None:
    manifest = build_manifest(
        [
            file("d/f", 5),
            Entry("d/up", EntryKind.SYMLINK, target="../d/f"),
            Entry("raw", EntryKind.SYMLINK, target="x\udcff"),
        ],
        {},
    )
    check(manifest, tmp_path)
    with mounted(tmp_path / "image", tmp_path / "mnt") as root:
        assert (root / "d/up").read_bytes() == (root / "d/f").read_bytes()


def test_times_before_1970_and_far_ahead_keep_their_nanoseconds(tmp_path: Path) -> None:
    times = [-1, -(10**9) - 1, 0, 1, 2**31 * 10**9 + 7, 2**33 * 10**9 + 999_999_999]
    check(build_manifest([file(f"t{n}", 1, mtime_ns=time) for n, time in enumerate(times)], {}), tmp_path)


def test_the_same_manifest_gives_the_same_bytes_whatever_order_it_was_listed_in(tmp_path: Path) -> None:
    entries = [file(f"{n % 7}/{n}", n) for n in range(50)]
    one, two = (
        build_layout(build_manifest(entries, {"a": "1"})),
        build_layout(build_manifest(reversed(entries), {"b": "2"})),
    )
    assert (one.metadata, one.size, one.extents) == (two.metadata, two.size, two.extents)


def test_other_content_gives_another_file_system_uuid() -> None:
    one, two = (
        build_layout(build_manifest([file("a", 1, "sha256")], {})),
        build_layout(build_manifest([file("a", 1, "git")], {})),
    )
    assert one.metadata != two.metadata
    assert one.size == two.size


@pytest.mark.parametrize("at", [1024, 1036, 1038, 1040, 1088, 1151, 2000])
def test_a_flipped_byte_of_the_first_block_is_refused_by_the_kernel(tmp_path: Path, at: int) -> None:
    image = tmp_path / "image"
    image_of(build_manifest([file("a", 10)], {}), image)
    with image.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 0x10]))
    done = subprocess.run(
        ["mount", "-t", "erofs", "-o", "ro,loop", str(image), str(tmp_path)], capture_output=True
    )
    assert done.returncode != 0
    assert not os.path.ismount(tmp_path)


def test_files_stand_in_the_manifests_order_without_gaps() -> None:
    layout = build_layout(
        build_manifest([file(f"f{n}", size) for n, size in enumerate([5, 0, 4096, 9000, 1])], {})
    )
    at = len(layout.metadata)
    for extent in layout.extents:
        assert extent.offset == at
        at += erofs.align(extent.entry.size)
    assert at == layout.size
    assert [e.entry.path for e in layout.extents] == ["f0", "f2", "f3", "f4"]


def test_an_image_over_16_tib_is_refused_with_both_numbers() -> None:
    size = 2**44
    with pytest.raises(OutOfRange, match=rf"{size + 4096} .*{(2**32 - 1) * 4096}"):
        build_layout(build_manifest([Entry("big", EntryKind.FILE, size, digest="token:x")], {}))


def test_a_file_of_terabytes_is_laid_out_without_its_bytes() -> None:
    layout = build_layout(
        build_manifest([Entry("big", EntryKind.FILE, 2**43 + 1, digest="token:x"), file("small", 3)], {})
    )
    assert layout.size == 2**43 + 3 * 4096
    assert len(layout.metadata) == 4096


def test_crc32c_is_that_of_rfc_3720() -> None:
    assert erofs.crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283
    assert erofs.crc32c(bytes(32)) ^ 0xFFFFFFFF == 0x8A9136AA
