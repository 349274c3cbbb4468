"""ModelScope: half a listing is none, refusals in words, redirects judged.

Answers written here where a hub would not give them.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from csi.destinations.destinations import Destinations
from csi.errors import (
    DataCacheError,
    InvalidParameter,
    OriginThrottled,
    OriginUnavailable,
    OriginUntrusted,
    PermissionDenied,
    SourceNotFound,
    Unauthenticated,
)
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.sources.catalog import open_source
from csi.sources.http.environment import CA_BUNDLE_VARIABLES
from csi.sources.hubs.modelscope import ModelScopeSource
from tests.origins.faults import Fault
from tests.origins.modelscope import ModelScopeHub
from tests.origins.scripted import Answer, Server

FILES = {"config.json": b"{}", "deep/er/model.safetensors": b"m" * 200_000, "deep/notes.md": b"notes"}
DIGEST = "0" * 64


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScopeHub]:
    with ModelScopeHub(limit=3000) as running:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.endpoint)
        yield running


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url)
        yield running
        running.shutdown()


def source(
    kind: str = "Model",
    token: str | None = None,
    where: Destinations | None = None,
    **more: tuple[str, ...] | str,
) -> ModelScopeSource:
    return ModelScopeSource(
        CacheSpec(HubSpec(f"ModelScope/{kind}", "org/name", **{"revision": "master", **more})), token, where
    )  # type: ignore[arg-type]


def paths(subject: ModelScopeSource) -> list[str]:
    with closing(subject):
        return [entry.path for entry in subject.resolve(subject.pin()).files]


def failing(subject: ModelScopeSource) -> DataCacheError:
    with closing(subject), pytest.raises(DataCacheError) as error:
        subject.resolve(subject.pin())
    assert "s3cr3t" not in str(error.value)
    assert "http" not in str(error.value).replace("http or https", "")
    return error.value


@pytest.mark.parametrize("kind", ["Model", "DataSet"])
def test_patterns_choose_files_as_they_do_for_hugging_face(hub: ModelScopeHub, kind: str) -> None:
    hub.repo("org/name", FILES, kind=kind.lower())
    assert paths(source(kind)) == sorted(FILES)
    assert paths(source(kind, allow_patterns=("deep/", "*.json"), ignore_patterns=("*.md",))) == [
        "config.json",
        "deep/er/model.safetensors",
    ]
    error = failing(source(kind, allow_patterns=("*.onnx",)))
    assert isinstance(error, InvalidParameter)
    assert "leave none of the 3 files" in str(error)


def test_the_hub_of_a_spec_is_chosen_by_its_repo_source(hub: ModelScopeHub) -> None:
    hub.repo("org/name", FILES, private=True, tokens={"s3cr3t"})
    spec = CacheSpec(HubSpec("ModelScope/Model", "org/name", "master"))
    for secrets in ({"token": "s3cr3t"}, {"MODELSCOPE_API_TOKEN": "s3cr3t"}):
        with closing(open_source(spec, secrets)) as subject:
            assert isinstance(subject, ModelScopeSource)
            assert subject.resolve(subject.pin()).content_bytes == 200_007


def test_a_folder_that_the_hub_cuts_is_refused(hub: ModelScopeHub) -> None:
    hub.repo("org/name", {f"many/{number:05}": b"" for number in range(3001)})
    error = failing(source())
    assert isinstance(error, OriginUnavailable)
    assert "cut the listing of org/name short" in str(error)


def test_a_folder_of_a_dataset_may_have_any_number_of_files(hub: ModelScopeHub) -> None:
    hub.repo("org/name", {f"{number:05}.jpg": b"" for number in range(3001)}, kind="dataset")
    assert len(paths(source("DataSet"))) == 3001


def test_a_repository_that_is_larger_than_one_answer_is_walked(hub: ModelScopeHub) -> None:
    hub.repo(
        "org/name", {f"{folder}/{number:05}": b"" for folder in ("a", "b", "c") for number in range(1500)}
    )
    assert len(paths(source())) == 4500


def test_a_folder_that_is_listed_without_what_is_in_it_is_refused(scripted: Server) -> None:
    rows = [
        {"Path": "deep", "Type": "tree"},
        {"Path": "config.json", "Type": "blob", "Size": 2, "Sha256": DIGEST},
    ]
    scripted.behave["/api/v1/models/org/name/repo/files"] = lambda handler: handler.say(
        200, _wrapped({"Files": rows})
    )
    error = failing(source())
    assert "cut the listing of org/name short: it lists the folder 'deep' without entries" in str(error)


def test_a_page_of_a_dataset_that_fails_with_a_success_status_is_refused(scripted: Server) -> None:
    def page(handler: Answer) -> None:
        if _number(handler) == 1:
            rows = [{"Path": f"{n:03}", "Type": "blob", "Size": 1, "Sha256": DIGEST} for n in range(200)]
            handler.say(200, _wrapped({"Files": rows}))
        else:
            handler.say(
                200, json.dumps({"Code": 500, "Success": False, "Message": "s3cr3t", "Data": None}).encode()
            )

    scripted.behave["/api/v1/datasets/org/name/repo/tree"] = page
    assert isinstance(failing(source("DataSet")), OriginUnavailable)


def test_a_hundred_thousand_files_of_a_dataset_come_in_pages(scripted: Server) -> None:
    def page(handler: Answer) -> None:
        start = (_number(handler) - 1) * 200
        rows = [
            {"Path": f"{n // 1000:03}/{n:06}", "Type": "blob", "Size": 1, "Sha256": DIGEST}
            for n in range(start, min(start + 200, 100_000))
        ]
        handler.say(200, _wrapped({"Files": rows}))

    scripted.behave["/api/v1/datasets/org/name/repo/tree"] = page
    assert len(paths(source("DataSet"))) == 100_000


def test_each_refusal_is_said_in_its_own_words(hub: ModelScopeHub) -> None:
    assert isinstance(failing(source()), SourceNotFound)
    repository = hub.repo("org/name", FILES, private=True, tokens={"s3cr3t-good"})
    hub.tokens.add("s3cr3t-other")
    for token, kind, words in (
        (None, Unauthenticated, "is private, or does not exist"),
        ("s3cr3t-wrong", Unauthenticated, "it is wrong, revoked or expired"),
        ("s3cr3t-other", PermissionDenied, "check the token's rights"),
    ):
        error = failing(source(token=token))
        assert type(error) is kind
        assert words in str(error)
    assert "check repoSource, repoId, revision" in str(failing(source(token="s3cr3t-good", revision="v9")))
    assert paths(source(token="s3cr3t-good")) == sorted(repository.revisions["master"])


def test_patience_that_the_hub_asks_for_is_passed_on(hub: ModelScopeHub) -> None:
    hub.repo("org/name", FILES)
    hub.faults.add(Fault("status", "api/model/org/name", status=429, retry_after="1"))
    error = failing(source())
    assert isinstance(error, OriginThrottled)
    assert error.retry_after == 1


def test_a_token_of_the_machine_is_not_used(
    hub: ModelScopeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "s3cr3t-persons")
    hub.repo("org/name", FILES)
    with closing(source()) as subject:
        subject.check_read_access(subject.resolve(subject.pin()))
    assert hub.counters.authorizations["hub"] == set()


def test_the_token_stays_with_the_hub(hub: ModelScopeHub) -> None:
    hub.repo("org/name", {"large": b"l" * 200_000}, private=True, tokens={"s3cr3t"})
    with closing(source(token="s3cr3t")) as subject:
        subject.check_read_access(subject.resolve(subject.pin()))
    assert hub.counters.authorizations == {"hub": {"Bearer s3cr3t"}, "store": set()}


def test_a_listing_is_not_led_to_where_a_pod_may_not_go(scripted: Server) -> None:
    with Server("127.0.0.2") as inner:
        inner.behave["/x"] = lambda handler: handler.say(200, _wrapped({"Files": []}))
        scripted.behave["/api/v1/models/org/name/repo/files"] = lambda handler: handler.say(
            302, Location=f"{inner.url}/x"
        )
        assert isinstance(failing(source(where=Destinations(trusted=False))), PermissionDenied)
        assert inner.seen == []
        inner.shutdown()


def test_a_listing_is_not_led_to_a_name_with_an_address_that_may_not_be_asked(
    scripted: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    hosts = {"mixed.test": ("127.0.0.1", "127.0.0.2")}
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **options: [
            one for h in hosts.get(host, (host,)) for one in real(h, *more, **options)
        ],
    )
    to = scripted.url.replace("127.0.0.1", "mixed.test")
    scripted.behave["/x"] = lambda handler: handler.say(200, _wrapped({"Files": []}))
    scripted.behave["/api/v1/models/org/name/repo/files"] = lambda handler: handler.say(
        302, Location=f"{to}/x"
    )
    error = failing(source(where=Destinations(("127.0.0.1",), trusted=False)))
    assert isinstance(error, PermissionDenied)
    assert "127.0.0.2" in str(error)
    assert [path for path, _, _ in scripted.seen if path == "/x"] == []


def test_a_listing_is_trusted_by_the_bundle_that_its_bytes_are(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"Path": "config.json", "Type": "blob", "Size": 2, "Sha256": DIGEST}]
    for key in CA_BUNDLE_VARIABLES:
        monkeypatch.delenv(key, raising=False)
    with Server(tls=certificate) as secure:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", secure.url)
        secure.behave["/api/v1/models/org/name/repo/files"] = lambda handler: handler.say(
            200, _wrapped({"Files": rows})
        )
        assert isinstance(failing(source()), OriginUntrusted)
        for key in CA_BUNDLE_VARIABLES:
            with monkeypatch.context() as environment:
                environment.setenv(key, str(certificate.with_name("cert")))
                assert paths(source()) == ["config.json"]
        secure.shutdown()


def test_what_is_no_hub_is_named(scripted: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted.behave["/api/v1/models/org/name/repo/files"] = lambda handler: handler.say(200, b"<html>")
    assert "does not answer as ModelScope does" in str(failing(source()))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://hub.example:port")
    with pytest.raises(InvalidParameter, match="MODELSCOPE_ENDPOINT"):
        source()


def _wrapped(data: object) -> bytes:
    return json.dumps({"Code": 200, "Success": True, "Data": data}).encode()


def _number(handler: Answer) -> int:
    return int(parse_qs(urlsplit(handler.path).query)["PageNumber"][0])
