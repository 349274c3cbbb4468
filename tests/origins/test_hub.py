"""The local hub against the clients that people use: the unmodified `hf download` and huggingface_hub."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import default_client_factory

from tests.origins.faults import Fault
from tests.origins.hub import Hub

HF = Path(sys.executable).with_name("hf")
FILES = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "config.json": b'{"a": 1}\n',
    "empty.txt": b"",
    "model.safetensors": os.urandom(3_000_000),
    "onnx/deep/er/model.onnx": os.urandom(200_000),
    "data set/\u00fcber 100%.txt": b"a name to be quoted",
}


@pytest.fixture(autouse=True)
def the_client_of_huggingface_hub_itself() -> None:
    """A source that ran in this process has given huggingface_hub its own client, which sends tokens to
    that source's hub alone."""
    set_client_factory(default_client_factory)


def hf(
    hub: Hub, folder: Path, *arguments: str, token: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **more,
    }
    if token:
        environment["HF_TOKEN"] = token
    command = [str(HF), "download", *arguments, "--local-dir", str(folder / "out")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def fetched(folder: Path) -> dict[str, bytes]:
    out = folder / "out"
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and ".cache" not in p.relative_to(out).parts
    }


@pytest.mark.parametrize("name", ["org/model", "gpt2"])
@pytest.mark.parametrize("relative_redirects", [False, True])
def test_hf_download_gets_a_model_file_for_file(tmp_path: Path, name: str, relative_redirects: bool) -> None:
    with Hub(page=2, relative_redirects=relative_redirects) as hub:
        hub.repo(name, FILES)
        done = hf(hub, tmp_path, name)
        assert done.returncode == 0, done.stderr
        assert fetched(tmp_path) == FILES
        assert hub.counters.requests["cdn"] == 2
        assert hub.counters.requests["tree"] > 3


def test_hf_download_gets_a_dataset_at_a_revision(tmp_path: Path) -> None:
    with Hub() as hub:
        repository = hub.repo("org/data", FILES, kind="dataset")
        repository.tag("v1")
        repository.commit({"other.txt": b"later"})
        done = hf(hub, tmp_path, "org/data", "--repo-type", "dataset", "--revision", "v1")
        assert done.returncode == 0, done.stderr
        assert fetched(tmp_path) == FILES


def test_files_in_xet_are_told_as_the_client_knows_them_and_downloaded_without_it(tmp_path: Path) -> None:
    with Hub() as hub:
        repository = hub.repo("org/model", FILES, xet=True)
        stored = repository.commits[repository.branches["main"]].files["model.safetensors"]
        api = HfApi(endpoint=hub.endpoint, token=False)
        listed = {
            item.path: item.xet_hash
            for item in api.list_repo_tree("org/model", recursive=True)
            if isinstance(item, RepoFile)
        }
        assert listed == {
            path: stored.xet_hash if path == "model.safetensors" else listed[path] for path in FILES
        }
        assert listed["config.json"] is None
        assert listed["onnx/deep/er/model.onnx"]
        told = get_hf_file_metadata(
            hf_hub_url("org/model", "model.safetensors", endpoint=hub.endpoint), token=False
        ).xet_file_data
        assert told is not None
        assert told.file_hash == stored.xet_hash
        done = hf(hub, tmp_path, "org/model", HF_HUB_DISABLE_XET="1")
        assert done.returncode == 0, done.stderr
        assert fetched(tmp_path) == FILES


def test_hf_download_honours_patterns(tmp_path: Path) -> None:
    with Hub() as hub:
        hub.repo("org/model", FILES)
        done = hf(
            hub, tmp_path, "org/model", "--include", "*.json", "--include", "onnx/*", "--exclude", "*.txt"
        )
        assert done.returncode == 0, done.stderr
        assert sorted(fetched(tmp_path)) == ["config.json", "onnx/deep/er/model.onnx"]


def test_hf_download_gets_a_private_model_with_its_token_only(tmp_path: Path) -> None:
    with Hub() as hub:
        hub.repo("org/secret", FILES, private=True, tokens={"hf_good"})
        assert hf(hub, tmp_path, "org/secret").returncode != 0
        assert hf(hub, tmp_path, "org/secret", token="hf_wrong").returncode != 0
        assert fetched(tmp_path) == {}
        hub.counters.reset()
        done = hf(hub, tmp_path, "org/secret", token="hf_good")
        assert done.returncode == 0, done.stderr
        assert fetched(tmp_path) == FILES
        assert hub.counters.authorizations == {"hub": {"Bearer hf_good"}, "cdn": set()}


def test_hf_download_survives_a_cut_connection(tmp_path: Path) -> None:
    with Hub() as hub:
        hub.repo("org/model", FILES)
        hub.faults.add(Fault("drop", "*/model.safetensors", times=1, after=1_000_000))
        done = hf(hub, tmp_path, "org/model")
        assert done.returncode == 0, done.stderr
        assert fetched(tmp_path) == FILES


def test_errors_are_the_ones_the_client_knows() -> None:
    with Hub() as hub:
        hub.repo("org/open", FILES)
        hub.repo("org/secret", FILES, private=True, tokens={"hf_good"})
        hub.repo("org/gated", FILES, gated=True, granted={"hf_granted"})
        hub.repo("org/other", FILES, private=True, tokens={"hf_stranger"})
        api = HfApi(endpoint=hub.endpoint)
        with pytest.raises(RepositoryNotFoundError) as anonymous:
            api.repo_info("org/secret", token=False)
        with pytest.raises(RepositoryNotFoundError) as stranger:
            api.repo_info("org/secret", token="hf_stranger")
        assert (anonymous.value.response.status_code, stranger.value.response.status_code) == (401, 404)
        with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
            api.repo_info("org/open", token="hf_wrong")
        with pytest.raises(RevisionNotFoundError):
            api.repo_info("org/open", revision="nope", token=False)
        assert len(list(api.list_repo_tree("org/gated", recursive=True, token=False))) > len(FILES)
        with pytest.raises(GatedRepoError):
            api.auth_check("org/gated", token="hf_good")
        api.auth_check("org/gated", token="hf_granted")
        assert api.whoami(token="hf_good")["type"] == "user"
        hub.revoke("hf_good")
        with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
            api.repo_info("org/secret", token="hf_good")


def ask(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_ranges_are_answered_as_http_says() -> None:
    with Hub() as hub:
        data = FILES["model.safetensors"]
        hub.repo("org/model", FILES)
        url = f"{hub.endpoint}/org/model/resolve/main/model.safetensors"
        assert ask(url)[2] == data
        status, headers, body = ask(url, Range="bytes=1000-1999")
        assert (status, headers["Content-Range"], body) == (
            206,
            f"bytes 1000-1999/{len(data)}",
            data[1000:2000],
        )
        assert ask(url, Range="bytes=-5")[2] == data[-5:]
        assert ask(url, Range=f"bytes={len(data) - 3}-")[2] == data[-3:]
        status, headers, _ = ask(url, Range=f"bytes={len(data)}-")
        assert (status, headers["Content-Range"]) == (416, f"bytes */{len(data)}")
        assert hub.counters.bytes_sent["org/model/model.safetensors"] == len(data) + 1000 + 5 + 3


def test_faults_happen_as_often_as_asked() -> None:
    with Hub() as hub:
        hub.repo("org/model", FILES)
        url = f"{hub.endpoint}/org/model/resolve/main/model.safetensors"
        hub.faults.add(Fault("corrupt", "org/model/*", times=1, after=7))
        assert [ask(url)[2] == FILES["model.safetensors"] for _ in range(2)] == [False, True]
        hub.faults.add(Fault("status", "org/model/*", times=1, status=429, retry_after="3"))
        status, headers, _ = ask(url)
        assert (status, headers["Retry-After"]) == (429, "3")
        hub.faults.add(Fault("ignore-range", "org/model/*"))
        assert ask(url, Range="bytes=5-9")[0] == 200


def test_a_signed_address_ends() -> None:
    with Hub() as hub:
        repository = hub.repo("org/model", FILES)
        url = hub.signed(
            repository,
            "model.safetensors",
            repository.commits[repository.branches["main"]].files["model.safetensors"].sha256,
        )
        assert ask(url)[0] == 200
        hub.expire_urls()
        assert ask(url)[0] == 403


def test_a_stopped_hub_refuses_and_comes_back_where_it_was() -> None:
    with Hub() as hub:
        hub.repo("org/model", FILES)
        before = hub.endpoint
        hub.stop()
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{before}/api/models/org/model", timeout=5)
        hub.start()
        assert hub.endpoint == before
        assert ask(f"{before}/api/models/org/model")[0] == 200


def test_the_program_serves_folders(tmp_path: Path) -> None:
    for path, data in FILES.items():
        for base in (tmp_path / "org" / "model", tmp_path / "datasets" / "org" / "data"):
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            (base / path).write_bytes(data)
    big = os.urandom(40_000_000)
    (tmp_path / "org" / "model" / "big.bin").write_bytes(big)
    command = [sys.executable, "-m", "tests.origins.hub", "--root", str(tmp_path)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        lines = [program.stdout.readline().strip() for _ in range(3)]
        assert [line.rpartition(" at ")[0] for line in lines[:2]] == ["model org/model", "dataset org/data"]
        endpoint = lines[2].removeprefix("HF_ENDPOINT=")
        for kind in ("", "datasets/"):
            name = "org/data" if kind else "org/model"
            assert (
                ask(f"{endpoint}/{kind}{name}/resolve/main/model.safetensors")[2]
                == FILES["model.safetensors"]
            )
        assert ask(f"{endpoint}/org/model/resolve/main/big.bin")[2] == big
    finally:
        program.terminate()
        assert program.wait(10) == 0
