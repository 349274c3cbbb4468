"""Several sources in one volume: each by its own rules, with its own credential, one namespace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from csi.errors import InvalidParameter, OriginUnavailable, SourceChanged, SourceNotFound, Unauthenticated
from csi.images.fill.fill import fill
from csi.images.layout.layout import build_layout
from csi.manifest.manifest import EntryKind
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.composite import CompositeSpec
from csi.parameters.dialects.hub import is_commit
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.sources.catalog import open_source
from csi.sources.composite import CompositeSource
from csi.sources.source import Source
from tests.conformance.hub_kit import pointed_at
from tests.conformance.trees import entry, read
from tests.origins.faults import Fault
from tests.origins.hub import Hub
from tests.origins.web import Site, WebServer

WEIGHTS = b"weights" * 100_000
SECRETS = {"model.token": "hf_model", "extra.accessToken": "url_extra", "data.token": "hf_data"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running, pointed_at(running.endpoint):
        running.repo(
            "org/model",
            {"a/weights.safetensors": WEIGHTS, "config.json": b"{}"},
            private=True,
            tokens={"hf_model"},
        )
        running.repo("org/data", {"rows.json": b"[]"}, kind="dataset", private=True, tokens={"hf_data"})
        yield running


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as running:
        running.files["/one.bin"] = b"one" * 1000
        running.sites["/"] = Site({"url_extra"})
        yield running


def sources(web: WebServer) -> dict[str, str]:
    parts = [
        {"folder": "model", "repoId": "org/model"},
        {"folder": "data", "repoSource": "HuggingFace/DataSet", "repoId": "org/data"},
        {"folder": "extra", "url": f"{web.url}/one.bin", "sha256": hashlib.sha256(b"one" * 1000).hexdigest()},
    ]
    return {"sources": json.dumps(parts)}


def opened(web: WebServer, secrets: dict[str, str] = SECRETS) -> Source:
    return open_source(parse_volume_parameters(sources(web)).spec, secrets)


def test_the_top_folders_of_the_volume_are_the_sources(hub: Hub, web: WebServer, tmp_path: Path) -> None:
    with closing(opened(web)) as subject:
        manifest = subject.resolve(subject.pin())
        subject.check_read_access(manifest)
        layout = build_layout(manifest)
        fill(layout, tmp_path / "image", tmp_path / "journal", lambda: subject.open_reader(manifest))
    image = (tmp_path / "image").read_bytes()
    found = {
        extent.entry.path: image[extent.offset : extent.offset + extent.entry.size]
        for extent in layout.extents
    }
    expected = {
        "model/a/weights.safetensors": WEIGHTS,
        "model/config.json": b"{}",
        "data/rows.json": b"[]",
        "extra/one.bin": b"one" * 1000,
    }
    assert found == expected
    assert {e.path for e in manifest.entries if e.kind is EntryKind.DIRECTORY} == {
        "model",
        "model/a",
        "data",
        "extra",
    }


def test_what_can_be_pinned_is_and_a_moved_branch_changes_nothing(hub: Hub, web: WebServer) -> None:
    with closing(opened(web)) as subject:
        pinned = subject.pin()
        before = subject.resolve(pinned)
    assert isinstance(pinned.source, CompositeSpec)
    assert [is_commit(getattr(source, "revision", "")) for _, source in pinned.source.parts] == [
        True,
        False,
        True,
    ]
    assert parse_volume_parameters(before.access).spec == pinned
    hub.repositories["model", "org/model"].update({"config.json": b"{1}"})
    with closing(open_source(parse_volume_parameters(before.access).spec, SECRETS)) as subject:
        assert subject.resolve(subject.pin()).digest == before.digest
        assert read(subject, before, "model/config.json") == b"{}"
    with closing(opened(web)) as subject:
        assert subject.resolve(subject.pin()).digest != before.digest


def test_each_credential_goes_to_its_own_source_only(hub: Hub, web: WebServer) -> None:
    with closing(opened(web)) as subject:
        subject.check_read_access(subject.resolve(subject.pin()))
    assert hub.counters.authorizations["hub"] == {"Bearer hf_model", "Bearer hf_data"}
    assert web.counters.authorizations["web"] == {"Bearer url_extra"}
    for name in SECRETS:
        lacking = {key: value for key, value in SECRETS.items() if key != name}
        with (
            closing(opened(web, lacking)) as subject,
            pytest.raises(Unauthenticated, match=f"^{name.partition('.')[0]}: "),
        ):
            subject.resolve(subject.pin())


def test_a_secret_without_folders_is_no_use_and_says_how_to_write_it(web: WebServer) -> None:
    with pytest.raises(InvalidParameter, match="FOLDER.KEY with one of the folders data, extra, model"):
        opened(web, {"token": "hf_model"})


@pytest.mark.parametrize(
    "key", ["modell.token", "Model.token", "model.v2.token", "gone.sessionToken", "token", "accessToken"]
)
def test_a_credential_of_no_source_is_refused_so_that_none_is_read_as_anybody(
    web: WebServer, key: str
) -> None:
    with pytest.raises(
        InvalidParameter,
        match=f"the Secret's `{key}` belongs to no source of this volume; .* data, extra, model,",
    ):
        opened(web, {**SECRETS, key: "verySecret123"})
    opened(web, {**SECRETS, "tls.crt": "another's"}).close()


def test_each_source_is_read_at_the_lower_of_its_limit_and_the_volumes() -> None:
    limits = {"a": "1Mi", "b": "9Mi", "c": ""}
    parts = [
        {"folder": folder, "repoId": "org/name", "bandwidthLimit": limit} for folder, limit in limits.items()
    ]
    seen: list[int | None] = []

    def opening(spec: CacheSpec, secrets: Mapping[str, str]) -> Source:
        seen.append(spec.bandwidth_limit)
        return open_source(spec, secrets)

    for more, expected in (
        ({}, [1 << 20, 9 << 20, None]),
        ({"bandwidthLimit": "5Mi"}, [1 << 20, 5 << 20, 5 << 20]),
    ):
        seen.clear()
        CompositeSource(
            parse_volume_parameters({"sources": json.dumps(parts), **more}).spec, {}, opening
        ).close()
        assert seen == expected


def test_an_error_says_which_source_it_is_about(hub: Hub, web: WebServer) -> None:
    with closing(opened(web)) as subject:
        manifest = subject.resolve(subject.pin())
        web.files["/one.bin"] = b"two" * 1000
        with pytest.raises(SourceChanged, match="^extra: "):
            read(subject, manifest, "extra/one.bin")
        hub.faults.add(Fault("status", "org/model/*", status=503, retry_after="7"))
        with pytest.raises(OriginUnavailable, match="^model: ") as throttled:
            read(subject, manifest, "model/config.json")
        assert getattr(throttled.value, "retry_after", 0) == 7
    del hub.repositories["dataset", "org/data"]
    with closing(opened(web)) as subject, pytest.raises((SourceNotFound, Unauthenticated), match="^data: "):
        subject.resolve(subject.pin())


def test_a_reader_takes_the_files_of_all_in_turns(hub: Hub, web: WebServer) -> None:
    with closing(opened(web)) as subject:
        manifest = subject.resolve(subject.pin())
        with subject.open_reader(manifest) as reader:
            for offset in (0, 1000, 2000):
                for path, data in (
                    ("model/a/weights.safetensors", WEIGHTS),
                    ("extra/one.bin", b"one" * 1000),
                ):
                    buffer = bytearray(1000)
                    reader.read_into(entry(manifest, path), offset, memoryview(buffer))
                    assert buffer == data[offset : offset + 1000]
