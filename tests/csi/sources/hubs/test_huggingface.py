"""What is the hub's own about the Hugging Face source; what all sources promise is in tests/conformance."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from csi.errors import (
    InvalidParameter,
    OriginThrottled,
    OriginUnavailable,
    PermissionDenied,
    SourceNotFound,
    Unauthenticated,
)
from csi.manifest.manifest import Manifest
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.nas import NasSpec
from csi.sources.http import connections
from csi.sources.hubs import hub_client
from csi.sources.hubs.huggingface import HuggingFaceSource
from tests.conformance.hub_kit import pointed_at
from tests.conformance.trees import read, read_all
from tests.kernel.machine import until
from tests.origins.faults import Fault
from tests.origins.hub import Hub
from tests.origins.repositories import Declared
from tests.origins.scripted import Server

FILES = {
    ".gitattributes": b"*.bin filter=lfs\n",
    "README.md": b"# readme\n",
    "config.json": b"{}\n",
    "model.safetensors": os.urandom(300_000),
    "onnx/model.onnx": os.urandom(200_000),
    "onnx/model.json": b"{}",
    "onnx/deep/config.json": b"[]",
    "[odd] name?.txt": b"odd",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running, pointed_at(running.endpoint):
        yield running


Patterns = tuple[str, ...]


def spec(
    name: str = "org/model",
    revision: str = "main",
    allow: Patterns = (),
    ignore: Patterns = (),
    kind: str = "Model",
) -> CacheSpec:
    return CacheSpec(HubSpec(f"HuggingFace/{kind}", name, revision, allow, ignore))


def resolved(wanted: CacheSpec, token: str | None = None) -> Manifest:
    with closing(HuggingFaceSource(wanted, token)) as source:
        return source.resolve(source.pin())


def pinned(wanted: CacheSpec) -> str:
    with closing(HuggingFaceSource(wanted, None)) as source:
        found = source.pin().source
    assert isinstance(found, HubSpec)
    return found.revision


def test_digests_are_those_the_hub_states(hub: Hub) -> None:
    repository = hub.repo("org/model", FILES)
    stored = repository.commits[repository.branches["main"]].files
    digests = {file.path: file.digest for file in resolved(spec()).files}
    assert digests == {
        path: f"sha256:{file.sha256}" if file.sha256 else f"git:{file.oid}" for path, file in stored.items()
    }


def test_branches_and_tags_are_pinned_and_commits_cost_nothing(hub: Hub) -> None:
    repository = hub.repo("org/model", FILES)
    first = repository.branches["main"]
    repository.tag("v1")
    second = repository.update({"new.txt": b"new"})
    repository.branches["feature/a b"] = first
    assert [pinned(spec(revision=r)) for r in ("main", "v1", "feature/a b")] == [second, first, first]
    hub.counters.reset()
    assert pinned(spec(revision=first)) == first
    assert hub.counters.requests == {}
    assert "new.txt" not in {file.path for file in resolved(spec(revision="feature/a b")).files}


@pytest.mark.parametrize(("name", "kind"), [("gpt2", "Model"), ("squad", "DataSet"), ("org/data", "DataSet")])
def test_names_without_an_organisation_and_datasets_work(hub: Hub, name: str, kind: str) -> None:
    hub.repo(name, FILES, kind=kind.lower())
    with closing(HuggingFaceSource(spec(name, kind=kind), None)) as source:
        manifest = source.resolve(source.pin())
        source.check_read_access(manifest)
    assert {file.path for file in manifest.files} == set(FILES)


@pytest.mark.parametrize(
    ("allow", "ignore"),
    [
        ((), ()),
        (("*.json",), ()),
        (("onnx/",), ()),
        (("onnx/*", "README.md"), ("*.onnx",)),
        ((), ("*.safetensors", "onnx/deep/")),
        (("[[]odd]*",), ()),
        (("*.JSON", "config.json"), ()),
        (("?onfig.json",), ()),
    ],
)
def test_patterns_choose_what_hf_download_chooses(
    hub: Hub, tmp_path: Path, allow: tuple[str, ...], ignore: tuple[str, ...]
) -> None:
    hub.repo("org/model", FILES)
    patterns = [
        word
        for key, values in (("--include", allow), ("--exclude", ignore))
        for value in values
        for word in (key, value)
    ]
    hf = [
        str(Path(sys.executable).with_name("hf")),
        "download",
        "org/model",
        "--local-dir",
        str(tmp_path / "out"),
        *patterns,
    ]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    subprocess.run(hf, env=environment, check=True, capture_output=True, timeout=120)
    out = tmp_path / "out"
    expected = {
        str(p.relative_to(out))
        for p in out.rglob("*")
        if p.is_file() and ".cache" not in p.relative_to(out).parts
    }
    assert {file.path for file in resolved(spec(allow=allow, ignore=ignore)).files} == expected


def test_patterns_that_leave_nothing_are_refused(hub: Hub) -> None:
    hub.repo("org/model", FILES)
    with pytest.raises(InvalidParameter, match="allowPatterns.*none of the 8 files"):
        resolved(spec(allow=("*.gguf",)))


def test_a_long_listing_is_followed_to_its_end(hub: Hub) -> None:
    hub.repo("org/model", {f"part-{n:05}.txt": b"%d" % n for n in range(2500)})
    assert len(list(resolved(spec()).files)) == 2500
    assert hub.counters.requests["tree"] == 3


def test_a_cached_create_costs_round_trips_only(hub: Hub) -> None:
    hub.repo("org/model", {**FILES, "big.bin": Declared(80 << 30, "a" * 64)})
    for _ in range(3):
        hub.counters.reset()
        with closing(HuggingFaceSource(spec(), None)) as source:
            source.check_read_access(source.resolve(source.pin()))
        assert hub.counters.requests == {"info": 1, "tree": 1, "auth-check": 1, "resolve": 1}
        # The hub counts a byte after it has sent it.
        assert until(lambda: sum(hub.counters.bytes_sent.values()) == 1)
    # One connection of huggingface_hub's client and one of the proofs', from one source to the next.
    assert hub.counters.accepted["hub"] == 2


def test_a_large_file_is_proved_at_its_other_host(hub: Hub) -> None:
    hub.repo(
        "org/model",
        {"empty": b"", "model.safetensors": FILES["model.safetensors"]},
        private=True,
        tokens={"hf_x"},
    )
    with closing(HuggingFaceSource(spec(), "hf_x")) as source:
        source.check_read_access(source.resolve(source.pin()))
    assert hub.counters.requests["cdn"] == 1
    assert hub.counters.bytes_sent == {"org/model/model.safetensors": 1}
    assert hub.counters.authorizations == {"hub": {"Bearer hf_x"}, "cdn": set()}


def test_a_repository_of_empty_files_is_proved_by_the_permission_check(hub: Hub) -> None:
    hub.repo("org/model", {"empty": b""}, gated=True, granted={"hf_in"}, tokens={"hf_out"})
    manifest = resolved(spec(), "hf_out")
    with closing(HuggingFaceSource(spec(), "hf_in")) as source:
        source.check_read_access(manifest)
    with closing(HuggingFaceSource(spec(), "hf_out")) as source, pytest.raises(PermissionDenied):
        source.check_read_access(manifest)


def test_files_in_xet_are_as_those_in_lfs(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their sha256, over the redirect, in ranges: no client of Xet's is there, and no token for its
    store is asked for."""
    monkeypatch.setitem(sys.modules, "hf_xet", None)
    hub.repo("org/lfs", FILES)
    hub.repo("org/xet", FILES, xet=True)
    lfs = resolved(spec("org/lfs"))
    hub.counters.reset()
    with closing(HuggingFaceSource(spec("org/xet"), None)) as source:
        manifest = source.resolve(source.pin())
        source.check_read_access(manifest)
        assert manifest.digest == lfs.digest
        assert (
            read(source, manifest, "model.safetensors", 100_000, 70_000)
            == FILES["model.safetensors"][100_000:170_000]
        )
        assert read_all(source, manifest) == FILES
    assert set(hub.counters.requests) == {"info", "tree", "auth-check", "resolve", "cdn"}


@pytest.mark.parametrize("status", [401, 404])
def test_a_mirror_that_knows_the_plainest_calls_only_is_enough(hub: Hub, status: int) -> None:
    """No permission check, no facts of files in a repository's, no ranges, no host of its own for large
    files."""
    hub.repo("org/model", FILES)
    hub.redirects = False
    for call in ("auth-check", "info-with-blobs"):
        hub.faults.add(Fault("status", f"api/{call}/*", status=status))
    hub.faults.add(Fault("ignore-range", "org/model/*"))
    with closing(HuggingFaceSource(spec(), None)) as source:
        manifest = source.resolve(source.pin())
        source.check_read_access(manifest)
        assert read_all(source, manifest) == FILES
    assert set(hub.counters.requests) == {"info", "tree", "auth-check", "resolve"}


def test_a_mirror_that_refuses_the_permission_check_and_the_bytes_is_refused(hub: Hub) -> None:
    hub.repo("org/model", {**FILES, "small": b"1"})
    hub.repo("org/empty", {"empty": b""})
    hub.faults.add(Fault("status", "api/auth-check/*", status=401))
    hub.faults.add(Fault("status", "org/model/small", status=401))
    for name in ("org/model", "org/empty"):
        manifest = resolved(spec(name))
        with (
            closing(HuggingFaceSource(spec(name), None)) as source,
            pytest.raises(Unauthenticated, match=name),
        ):
            source.check_read_access(manifest)


@pytest.mark.parametrize("status", [404, 501])
def test_a_mirror_without_the_permission_check_is_proved_by_its_bytes(hub: Hub, status: int) -> None:
    hub.repo("org/model", FILES)
    hub.faults.add(Fault("status", "api/auth-check/*", status=status))
    manifest = resolved(spec())
    with closing(HuggingFaceSource(spec(), None)) as source:
        if status == 404:
            source.check_read_access(manifest)
            assert sum(hub.counters.bytes_sent.values()) == 1
        else:
            with pytest.raises(OriginUnavailable):
                source.check_read_access(manifest)


def test_the_nodes_own_token_is_never_used(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.repo("org/secret", FILES, private=True, tokens={"hf_node"})
    (tmp_path / "token").write_text("hf_node")
    monkeypatch.setenv("HF_TOKEN", "hf_node")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(
        Unauthenticated, match="does not exist, or is private: check repoId or give a token in a Secret"
    ):
        resolved(spec("org/secret"))
    hub.repo("org/model", FILES)
    with closing(HuggingFaceSource(spec(), None)) as source:
        source.check_read_access(source.resolve(source.pin()))
    assert hub.counters.authorizations["hub"] == set()


def test_each_refusal_says_what_to_do(hub: Hub) -> None:
    hub.repo("org/open", FILES)
    hub.repo("org/secret", FILES, private=True, tokens={"hf_in"})
    hub.repo("org/gated", FILES, gated=True, tokens={"hf_in"})
    hub.tokens["hf_out"] = "somebody"
    cases = [
        (spec("org/none"), None, Unauthenticated, "does not exist, or is private"),
        (spec("org/none"), "hf_in", SourceNotFound, "org/none@main does not exist on 127.0.0.1"),
        (spec("org/secret"), "hf_out", SourceNotFound, "this token may not see it"),
        (spec("org/open"), "hf_bad", Unauthenticated, "refuses the token for .* wrong, revoked or expired"),
        (spec("org/open", "nope"), None, SourceNotFound, "has no revision 'nope'"),
        (spec("org/open", "0" * 40), None, SourceNotFound, "has no revision '0000"),
        (spec("org/o--pen/x"), None, InvalidParameter, "repoId 'org/o--pen/x' is not a repository id"),
    ]
    for wanted, token, kind, words in cases:
        with pytest.raises(kind, match=words):
            resolved(wanted, token)
    for token, words in (
        ("hf_in", "with the account of this token$"),
        (None, "none was given: put one in a Secret"),
    ):
        manifest = resolved(spec("org/gated"), token)
        with (
            closing(HuggingFaceSource(spec("org/gated"), token)) as source,
            pytest.raises(PermissionDenied, match=words) as error,
        ):
            source.check_read_access(manifest)
        assert f"accept the terms at {hub.endpoint}/org/gated" in str(error.value)


def test_a_revoked_token_is_refused_from_then_on(hub: Hub) -> None:
    hub.repo("org/secret", FILES, private=True, tokens={"hf_in"})
    manifest = resolved(spec("org/secret"), "hf_in")
    hub.revoke("hf_in")
    with closing(HuggingFaceSource(spec("org/secret"), "hf_in")) as source:
        for ask in (source.pin, lambda: source.check_read_access(manifest)):
            with pytest.raises(Unauthenticated):
                ask()


def test_another_source_is_refused() -> None:
    with pytest.raises(InvalidParameter):
        HuggingFaceSource(CacheSpec(NasSpec("server", "/path")), None)


def test_a_plea_for_patience_is_passed_on_at_once(hub: Hub) -> None:
    hub.repo("org/model", FILES)
    hub.faults.add(Fault("status", "api/tree/*", times=1, status=429, retry_after="42"))
    hub.faults.add(Fault("status", "api/info/*", times=1, status=503))
    with pytest.raises(OriginThrottled) as busy:
        resolved(spec())
    with pytest.raises(OriginThrottled) as told:
        resolved(spec())
    assert (busy.value.retry_after, told.value.retry_after) == (0, 42)
    assert hub.counters.requests == {"info": 2, "tree": 1}
    assert len(list(resolved(spec()).files)) == len(FILES)


def test_a_silent_hub_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo("org/model", FILES)
    monkeypatch.setattr(hub_client, "_TIMEOUT", hub_client.httpx2.Timeout(0.3))
    monkeypatch.setattr(connections, "READ_TIMEOUT", 0.3)
    manifest = resolved(spec())
    hub.faults.latency = 3.0
    with closing(HuggingFaceSource(spec(), None)) as source:
        for ask in (source.pin, lambda: source.resolve(spec()), lambda: source.check_read_access(manifest)):
            with pytest.raises(OriginUnavailable, match="no answer"):
                ask()


def test_offline_mode_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OriginUnavailable, match="HF_HUB_OFFLINE"):
        resolved(spec())


class _NoHub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    body = b"<html>Sign in to the hotel's network</html>"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.send_header("Set-Cookie", "who=somebody")
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    "body", [b"<html>Sign in</html>", b"[]", b"{}", b'{"id": "org/model", "sha": "main"}', b'"text"']
)
def test_an_endpoint_that_is_no_hub_is_said(body: bytes) -> None:
    handler = type("Handler", (_NoHub,), {"body": body})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with pointed_at(f"http://127.0.0.1:{server.server_address[1]}"):
            for wanted in (spec(), spec(revision="0" * 40)):
                with pytest.raises((OriginUnavailable, SourceNotFound), match="HF_ENDPOINT"):
                    resolved(wanted)
        server.shutdown()


def test_an_endpoint_that_is_no_url_is_said() -> None:
    with pointed_at("hub.local"), pytest.raises(InvalidParameter, match="HF_ENDPOINT"):
        HuggingFaceSource(spec(), None)


def test_an_expired_address_is_asked_for_again_in_the_middle_of_a_file(hub: Hub) -> None:
    hub.repo("org/model", FILES)
    manifest = resolved(spec())
    file = next(f for f in manifest.files if f.path == "model.safetensors")
    data = FILES["model.safetensors"]
    with closing(HuggingFaceSource(spec(), None)) as source, source.open_reader(manifest) as reader:
        got = bytearray(file.size)
        for start in range(0, file.size, 100_000):
            hub.expire_urls()
            reader.read_into(file, start, memoryview(got)[start : start + 100_000])
    assert got == data
    assert hub.counters.requests["resolve"] == 3


def test_a_hub_that_comes_back_is_asked_on_a_fresh_connection(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repo("org/model", FILES)
    first = resolved(spec())
    hub.stop()
    pauses: list[float] = []
    with monkeypatch.context() as patched, pytest.raises(OriginUnavailable, match="connection refused"):
        patched.setattr(time, "sleep", pauses.append)
        resolved(spec())
    # huggingface_hub by itself would try again and again for half a minute.
    assert pauses == []
    hub.start()
    assert resolved(spec()).digest == first.digest


def test_a_proxy_of_the_environment_carries_facts_and_bytes(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repo("org/model", FILES)
    hub.redirects = False
    monkeypatch.setenv("http_proxy", hub.endpoint)
    # The hub answers whole URLs as a proxy does; this name leads nowhere without one.
    with pointed_at("http://hub.invalid"), closing(HuggingFaceSource(spec(), None)) as source:
        manifest = source.resolve(source.pin())
        source.check_read_access(manifest)
        with source.open_reader(manifest) as reader:
            for file in manifest.files:
                buffer = bytearray(file.size)
                reader.read_into(file, 0, memoryview(buffer))
                assert buffer == FILES[file.path]


def test_a_ca_bundle_of_the_environment_is_trusted_for_facts_too(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with Server(tls=certificate) as server:
        server.behave["/api/models/org/model/revision/main"] = lambda answer: answer.say(
            200, b'{"id": "org/model", "sha": "%s"}' % (b"5" * 40)
        )
        with pointed_at(server.url):
            with pytest.raises(OriginUnavailable, match="certificate is not trusted"):
                pinned(spec())
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.with_name("cert")))
            # A worker reads its environment once; this process has to be told.
            close_session()
            assert pinned(spec()) == "5" * 40
        server.shutdown()
