"""`datacache image-store` on a folder and on a real S3 server: what it tells of images, what it removes,
and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import pytest

from csi.image_store.backend import Backend
from csi.image_store.location import parse_image_store_url
from csi.image_store.store import ImageStore, open_backend
from csi.image_store.stored_image import StoredImage, index_key, manifest_key, parts_folder
from csi.manifest.manifest import Manifest, build_manifest
from datacache import __main__
from datacache.__main__ import cli
from tests.csi.image_store.conftest import PART, sealed, tree
from tests.csi.images.trees import file
from tests.origins.versitygw import ROOT_ID, ROOT_SECRET, ObjectServer

HUB = {"type": "URL", "repoSource": "HuggingFace/Model", "repoId": "org/model", "revision": "a" * 40}
COMMAND = str(Path(sys.executable).with_name("datacache"))


@dataclass(frozen=True)
class Done:
    """What a command said, and its exit status."""

    status: int
    out: str
    err: str


Run = Callable[..., Done]


@dataclass(frozen=True)
class Place:
    """An image store: its flags, and what puts images there."""

    flags: tuple[str, ...]
    backend: Backend
    scratch: Path

    def bring(self, manifest: Manifest) -> StoredImage:
        return ImageStore(self.backend, PART).add(sealed(self.scratch / manifest.digest, manifest))

    def damage(self, digest: str) -> None:
        self.backend.put(index_key(digest), b'{"format": 1, "\\u001b[31m": 1}')

    def cut(self, digest: str) -> None:
        """As an upload that was cut leaves it."""
        self.backend.delete(index_key(digest))


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "file":
        (tmp_path / "shared").mkdir()
        url, flags, secrets = f"file://{tmp_path}/shared", (), {}
    else:
        server: ObjectServer = request.getfixturevalue("objects")
        url = f"s3://{server.bucket({})}/kept?endpoint={quote(server.endpoint)}"
        secrets = {"accessKeyId": ROOT_ID, "secretAccessKey": ROOT_SECRET}
        flags = ("--image-store-secret", str(secret(tmp_path, **secrets)))
    backend = open_backend(parse_image_store_url(url), secrets)
    yield Place(("--image-store", url, *flags), backend, tmp_path)
    backend.close()


def secret(folder: Path, **keys: str) -> Path:
    """A Secret as kubelet mounts it."""
    made = folder / "secret"
    made.mkdir()
    for key, value in keys.items():
        (made / key).write_text(value)
    return made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `datacache image-store` as `main` does."""

    def ran(*arguments: object) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["datacache", "image-store", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            __main__.main()
        said, code = capsys.readouterr(), left.value.code
        return (
            Done(code, said.out, said.err)
            if isinstance(code, int)
            else Done(1, said.out, f"{said.err}{code}\n")
        )

    return ran


@pytest.fixture
def manifest() -> Manifest:
    return replace(tree(*range(20, 45)), access=HUB)


def listed(run: Run, place: Place) -> dict[str, dict[str, object]]:
    done = run("list", *place.flags, "--json")
    assert done.status == 0, done.err
    return {one["digest"]: one for one in json.loads(done.out)}


def rows(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_an_empty_store_has_no_image(run: Run, place: Place) -> None:
    assert listed(run, place) == {}
    assert len(rows(run("list", *place.flags).out)) == 1


def test_each_image_is_told_with_its_sizes_when_it_came_and_from_where(
    run: Run, place: Place, manifest: Manifest
) -> None:
    stored, other = place.bring(manifest), place.bring(tree(1))
    found = listed(run, place)
    assert list(found) == sorted([stored.digest, other.digest])
    one = found[stored.digest]
    assert (one["snapshotId"], one["contentBytes"], one["imageBytes"]) == (
        stored.snapshot_id,
        stored.content_bytes,
        stored.image_bytes,
    )
    assert one["source"] == f"HuggingFace/Model org/model@{'a' * 40}"
    assert (one["state"], one["why"]) == (
        "whole",
        None,
    )
    when = time.strptime(str(one["storedAt"]), "%Y-%m-%dT%H:%M:%SZ")
    assert time.strftime("%Y", when) == time.strftime("%Y", time.gmtime(stored.stored_at))
    titles, *shown = rows(run("list", *place.flags).out)
    (row,) = (dict(zip(titles, row, strict=True)) for row in shown if row[0] == stored.digest[:12])
    assert row == {
        "image": stored.digest[:12],
        "snapshot": stored.snapshot_id,
        "content": "0.0 MiB",
        "size": "0.1 MiB",
        "stored": one["storedAt"],
        "source": one["source"],
        "state": "whole",
    }


def test_output_json_and_json_are_the_same(run: Run, place: Place, manifest: Manifest) -> None:
    stored = place.bring(manifest)
    for words in (("list",), ("show", stored.digest)):
        assert run(*words, *place.flags, "-o", "json") == run(*words, *place.flags, "--json")


def test_a_damaged_record_and_an_upload_that_was_cut_hide_no_image(
    run: Run, place: Place, manifest: Manifest
) -> None:
    whole, damaged, cut = place.bring(manifest), place.bring(tree(1)).digest, place.bring(tree(2)).digest
    place.damage(damaged)
    place.cut(cut)
    found = listed(run, place)
    assert {digest: one["state"] for digest, one in found.items()} == {
        whole.digest: "whole",
        damaged: "damaged",
        cut: "parts",
    }
    assert f"remove images/{damaged}" in str(found[damaged]["why"])
    assert "continues" in str(found[cut]["why"])
    done = run("list", *place.flags)
    assert done.status == 0
    assert all(line.isprintable() for line in done.out.split("\n"))
    assert any(row[0] == damaged[:12] and row[-1].startswith("damaged: ") for row in rows(done.out))


@pytest.mark.parametrize(
    "access",
    [
        {**HUB, "accessToken": "hf_s3cret"},
        {"url": "https://me:hf_s3cret@files.example.com/x"},
        {},
        {"new": "hf_s3cret"},
    ],
)
def test_what_a_record_should_not_have_of_its_place_is_not_told(
    run: Run, place: Place, manifest: Manifest, access: dict[str, str]
) -> None:
    stored = place.bring(manifest)
    place.backend.put(index_key(stored.digest), replace(stored, access=access).encode())
    assert listed(run, place)[stored.digest]["source"] is None
    for words in (("list",), ("show", stored.digest)):
        for form in ("text", "json"):
            done = run(*words, *place.flags, "-o", form)
            assert done.status == 0
            assert "s3cret" not in done.out + done.err


def test_show_tells_the_record_and_the_first_files_and_all_where_asked(
    run: Run, place: Place, manifest: Manifest
) -> None:
    stored = place.bring(manifest)
    place.bring(tree(1))
    files = [
        {"path": entry.path, "bytes": entry.size, "digest": entry.digest or None} for entry in manifest.files
    ]
    for name in (stored.digest, stored.snapshot_id, stored.digest[:5], stored.snapshot_id[:7]):
        found = json.loads(run("show", name, *place.flags, "--json").out)
        assert (found["digest"], found["files"], found["pinned"], found["parts"]) == (
            stored.digest,
            len(files),
            HUB,
            len(stored.parts),
        )
        assert found["list"] == files[:10]
    assert json.loads(run("show", stored.digest, *place.flags, "--json", "--files").out)["list"] == files
    told = run("show", stored.digest, *place.flags).out
    assert f"snapshotId: {stored.snapshot_id}" in told
    assert f"files: {len(files)}" in told
    assert "revision=aaaa" in told
    assert files[9]["path"] in told
    assert files[10]["path"] not in told
    assert f"and {len(files) - 10} more" in told
    told = run("show", stored.digest, *place.flags, "--files").out
    assert all(str(one["path"]) in told for one in files)
    assert "more" not in told


def test_the_names_of_files_are_shown_and_never_obeyed(run: Run, place: Place) -> None:
    names = ["[bold red]x[_]", "a\x1b[31mb", "c\nd"]
    stored = place.bring(build_manifest([file(name, 5) for name in names], HUB))
    done = run("show", stored.digest, *place.flags)
    assert all(line.isprintable() for line in done.out.split("\n"))
    assert {"[bold red]x[_]", r"a\x1b[31mb", r"c\nd"} <= {row[0] for row in rows(done.out)}


def test_what_cannot_be_shown_says_why(run: Run, place: Place) -> None:
    damaged, cut, headless = (place.bring(tree(size)).digest for size in (1, 2, 3))
    place.damage(damaged)
    place.cut(cut)
    place.backend.delete(manifest_key(headless))
    for digest, words in (
        (damaged, "is damaged"),
        (cut, "is incomplete"),
        (headless, "the manifest of image"),
        ("0" * 64, "has no image"),
    ):
        done = run("show", digest, *place.flags)
        assert done.status == 1
        assert done.out == ""
        assert words in done.err
        assert done.err.startswith("datacache: ")
        assert done.err.count("\n") == 1
        assert done.err.strip().isprintable()


def test_delete_removes_nothing_before_it_is_told_yes(run: Run, place: Place, manifest: Manifest) -> None:
    doomed, kept = place.bring(manifest), place.bring(tree(1))
    done = run("delete", doomed.snapshot_id, *place.flags)
    assert done.status == 1
    assert "--yes" in done.err
    assert doomed.snapshot_id in done.out
    assert kept.snapshot_id not in done.out
    assert listed(run, place).keys() == {doomed.digest, kept.digest}
    done = run("delete", doomed.snapshot_id, doomed.digest, *place.flags, "--yes")
    assert (done.status, done.out) == (0, f"removed {doomed.digest}\n")
    assert listed(run, place).keys() == {kept.digest}
    assert not list(place.backend.list_objects(f"images/{doomed.digest}"))


def test_what_is_damaged_or_was_cut_can_be_deleted(run: Run, place: Place) -> None:
    damaged, cut = place.bring(tree(1)).digest, place.bring(tree(2)).digest
    place.damage(damaged)
    place.cut(cut)
    assert run("delete", damaged[:8], cut[:8], *place.flags, "--yes").status == 0
    assert listed(run, place) == {}
    assert not list(place.backend.list_objects("images"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("abcd", "matches 2 images (abcd0"),
        ("s-abcd", "matches 2 images"),
        ("ffff", "has no image ffff"),
        ("abc", "does not name an image"),
        ("", "does not name an image"),
        ("../images", "does not name an image"),
        ("s-" + "a" * 21, "does not name an image"),
    ],
)
def test_a_name_that_means_no_image_or_several_has_nothing_removed(
    run: Run, place: Place, name: str, words: str
) -> None:
    kept, *twins = place.bring(tree(1)).digest, f"abcd{'0' * 60}", f"abcd{'1' * 60}"
    for digest in twins:
        place.backend.put(f"{parts_folder(digest)}/x", b"")
    done = run("delete", "--yes", *place.flags, kept, name)
    assert done.status == 1
    assert words in done.err
    assert done.out == ""
    assert listed(run, place).keys() == {kept, *twins}
    shown = run("show", *place.flags, "--", name)
    assert shown.status == 1
    assert words in shown.err


def test_the_flags_may_come_from_the_environment(
    run: Run, place: Place, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = place.bring(manifest)
    for flag, value in zip(place.flags[::2], place.flags[1::2], strict=True):
        monkeypatch.setenv("DATACACHE_" + flag.lstrip("-").replace("-", "_").upper(), value)
    assert stored.snapshot_id in run("list").out


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://me:w0rd@example.com/x", "image store"),
        ("s3://me:w0rd@bucket", "carries a credential"),
        ("s3://bucket?secret=w0rd", "unknown option"),
        ("file:///nowhere/at/all", "mount it"),
    ],
)
def test_a_store_that_cannot_be_is_told_in_one_line_without_what_is_secret(
    run: Run, url: str, words: str
) -> None:
    done = run("list", "--image-store", url)
    assert done.status == 1
    assert words in done.err
    assert done.err.startswith("datacache: ")
    assert done.err.count("\n") == 1
    assert "w0rd" not in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"accessKeyId": ROOT_ID, "secretAccessKey": "w0rd"}, "access key"),
        ({"accessKeyId": "nobody", "secretAccessKey": "w0rd"}, "access key"),
        ({"accessKeyId": "nobody", "other": "w0rd"}, "secretAccessKey"),
    ],
)
def test_a_key_that_does_not_do_is_told_by_the_real_command_without_its_value(
    objects: ObjectServer, tmp_path: Path, keys: dict[str, str], words: str
) -> None:
    url = f"s3://{objects.bucket({})}/kept?endpoint={quote(objects.endpoint)}"
    argv = [
        COMMAND,
        "image-store",
        "list",
        "--image-store",
        url,
        "--image-store-secret",
        str(secret(tmp_path, **keys)),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("datacache: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert "w0rd" not in done.stderr


def test_a_secret_folder_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    done = run("list", "--image-store", "s3://bucket", "--image-store-secret", tmp_path / "none")
    assert done.status == 1
    assert str(tmp_path / "none") in done.err
    assert "--image-store-secret" in done.err


def test_a_bucket_and_a_server_that_are_not_there_are_told(
    run: Run, tmp_path: Path, objects: ObjectServer
) -> None:
    kept = secret(tmp_path, accessKeyId=ROOT_ID, secretAccessKey=ROOT_SECRET)
    for bucket, endpoint, words in (
        ("absent", objects.endpoint, "no such bucket"),
        ("bucket", "http://127.0.0.1:1", "cannot be reached"),
    ):
        done = run(
            "list", "--image-store", f"s3://{bucket}?endpoint={quote(endpoint)}", "--image-store-secret", kept
        )
        assert done.status == 1
        assert words in done.err
        assert f"{bucket}/" in done.err
        assert ROOT_SECRET not in done.err


def test_without_a_store_nothing_is_looked_at(run: Run) -> None:
    done = run("list")
    assert done.status == 2
    assert "--image-store" in done.err


def test_other_commands_do_not_load_what_this_one_needs() -> None:
    script = "import sys, datacache.__main__; print(*sys.modules)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert not {"obstore", "csi.image_store", "csi.images.layout.layout", "datacache.image_store"} & set(
        done.stdout.split()
    )


def test_who_removes_what_nobody_wants_is_said(run: Run) -> None:
    said = run("--help")
    assert said.status == 0
    assert "--image-store-grace" in said.out
    assert "datacache-operator" in said.out
    commands = cli.commands["image-store"].commands  # type: ignore[attr-defined]
    assert set(commands) == {"list", "show", "delete"}
    assert all(command.help for command in commands.values())
