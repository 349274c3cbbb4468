"""Where the API server is: in a pod, by KUBECONFIG, and what is wrong with either."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from csi.cluster.access import BearerToken
from csi.cluster.kubeconfig import find_cluster_access, load_kubeconfig
from csi.errors import FailedPrecondition, InvalidParameter


def account(folder: Path, token: str = "first", namespace: str = "datacache") -> Path:
    (folder / "token").write_text(f"{token}\n")
    (folder / "ca.crt").write_text("")
    (folder / "namespace").write_text(namespace)
    return folder


def config(
    folder: Path, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **more: Any
) -> Path:
    parts = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "models"}}],
        "clusters": [
            {"name": "c", "cluster": {"server": "https://api.example.com:6443/", **(cluster or {})}}
        ],
        "users": [{"name": "u", "user": user or {"token": "s3cr3t"}}],
    }
    path = folder / "config"
    path.write_text(json.dumps({**parts, **more}))
    return path


@pytest.mark.parametrize(
    ("host", "url"), [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_a_pod_asks_with_its_service_account(tmp_path: Path, host: str, url: str) -> None:
    access = find_cluster_access(
        {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"}, account(tmp_path)
    )
    assert (access.server, access.namespace, access.ca_file) == (url, "datacache", str(tmp_path / "ca.crt"))
    assert BearerToken(access).get() == "first"


def test_a_token_is_read_again_when_it_is_refused(tmp_path: Path) -> None:
    token = BearerToken(find_cluster_access({"KUBERNETES_SERVICE_HOST": "h"}, account(tmp_path)))
    assert token.get() == "first"
    (tmp_path / "token").write_text("second")
    assert (token.get(), token.get(force_refresh=True), token.get()) == ("first", "second", "second")


def test_a_token_is_read_again_after_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("csi.cluster.access.time.monotonic", lambda: clock[0])
    token = BearerToken(find_cluster_access({"KUBERNETES_SERVICE_HOST": "h"}, account(tmp_path)))
    assert token.get() == "first"
    (tmp_path / "token").write_text("second")
    clock[0] += 61
    assert token.get() == "second"


def test_a_pod_without_its_token_says_which_file_is_missing(tmp_path: Path) -> None:
    token = BearerToken(find_cluster_access({"KUBERNETES_SERVICE_HOST": "h"}, tmp_path))
    with pytest.raises(FailedPrecondition, match=f"{tmp_path}/token cannot be read"):
        token.get()


def test_a_kubeconfig_is_read_as_kubectl_reads_it(tmp_path: Path) -> None:
    (tmp_path / "token.txt").write_text("of-the-file")
    ca = base64.b64encode(b"PEM").decode()
    access = find_cluster_access(
        {"KUBECONFIG": str(config(tmp_path, {"certificate-authority-data": ca}, {"tokenFile": "token.txt"}))}
    )
    assert (access.server, access.namespace, access.ca) == ("https://api.example.com:6443", "models", "PEM")
    assert BearerToken(access).get() == "of-the-file"
    assert load_kubeconfig([config(tmp_path)]).token == "s3cr3t"


@pytest.mark.parametrize("text", ["", "{", "- a: [", "just words", "\x00"])
def test_a_file_that_is_no_kubeconfig_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(InvalidParameter, match="not a kubeconfig"):
        load_kubeconfig([tmp_path / "config"])


def test_a_kubeconfig_may_be_yaml(tmp_path: Path) -> None:
    path = config(tmp_path)
    path.write_text(yaml.safe_dump(json.loads(path.read_text())))
    assert load_kubeconfig([path]).server == "https://api.example.com:6443"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"current-context": "other"}, "not a kubeconfig"),
        ({"users": None}, "not a kubeconfig"),
        ({"cluster": {"certificate-authority-data": "%%%"}}, "not a kubeconfig"),
        ({"cluster": {"insecure-skip-tls-verify": True}}, "insecure-skip-tls-verify"),
        ({"cluster": {"certificate-authority": "missing.crt"}}, "cannot be read"),
        ({"user": {"exec": {"command": "aws"}}}, "'u' has exec"),
        ({"user": {"username": "u", "password": "s3cr3t"}}, "'u' has username"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_says_what_is_wrong(
    tmp_path: Path, more: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidParameter, match=reason) as error:
        load_kubeconfig([config(tmp_path, **more)])
    assert str(tmp_path) in str(error.value)
    assert "s3cr3t" not in str(error.value)


def test_no_secret_is_in_the_words_for_an_access(tmp_path: Path) -> None:
    assert "s3cr3t" not in repr(load_kubeconfig([config(tmp_path)]))
