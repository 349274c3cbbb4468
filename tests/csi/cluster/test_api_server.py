"""Calls to a real API server: what its refusals become, rotated tokens, client certificates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from csi.cluster.access import ClusterAccess
from csi.cluster.api_server import ApiServer as Client
from csi.cluster.api_server import ResourceExpired, error_from_status
from csi.errors import (
    ClusterConflict,
    ClusterForbids,
    ClusterUnavailable,
    FailedPrecondition,
    InvalidParameter,
    NotFound,
)
from csi.server import grpc_server
from tests.apiserver import ApiServer

SPACES = "/api/v1/namespaces"


def test_what_is_not_there_is_not_found(api_server: ApiServer) -> None:
    with pytest.raises(NotFound, match="nobody"):
        api_server.client().call("GET", f"{SPACES}/nobody")


def test_what_somebody_else_changed_is_a_conflict(api_server: ApiServer) -> None:
    space = api_server.client().call("GET", f"{SPACES}/default")
    space["metadata"]["resourceVersion"] = "1"
    with pytest.raises(ClusterConflict):
        api_server.client().call("PUT", f"{SPACES}/default", body=space)


def test_what_the_server_does_not_accept_says_why(api_server: ApiServer) -> None:
    with pytest.raises(InvalidParameter, match="RFC 1123"):
        api_server.client().call(
            "POST", SPACES, body={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "NOT_A_NAME"}}
        )


def test_a_token_that_was_rotated_is_taken_up_at_once(api_server: ApiServer, tmp_path: Path) -> None:
    good, file = api_server.access(), tmp_path / "token"
    file.write_text("expired")
    client = Client(replace(good, token="", token_file=file))
    with pytest.raises(ClusterForbids, match="Unauthorized") as error:
        client.call("GET", f"{SPACES}/default")
    assert "expired" not in str(error.value)
    file.write_text(good.token)
    assert client.call("GET", f"{SPACES}/default")["metadata"]["name"] == "default"
    with client.stream(SPACES, {"watch": "1", "timeoutSeconds": "1"}, 30.0) as stream:
        assert [event["type"] for event in stream][:1] == ["ADDED"]


def test_watches_that_are_left_early_keep_no_connection(api_server: ApiServer) -> None:
    """There are four: what is kept of them is missing to everybody else."""
    client = api_server.client()
    for _ in range(9):
        with client.stream(SPACES, {"watch": "1", "timeoutSeconds": "60"}, 90.0):
            pass
        with client.stream(SPACES, {"watch": "1", "timeoutSeconds": "60"}, 90.0) as stream:
            next(iter(stream))
        with pytest.raises(InvalidParameter):
            client.stream(SPACES, {"watch": "1", "labelSelector": "=="}, 90.0)
    assert client.call("GET", f"{SPACES}/default", timeout=5)["metadata"]["name"] == "default"


def test_a_server_that_is_not_the_one_of_the_ca_is_not_spoken_to(api_server: ApiServer) -> None:
    client = Client(replace(api_server.access(), ca_file=""))
    with pytest.raises(ClusterUnavailable, match="certificate is not trusted"):
        client.call("GET", f"{SPACES}/default")


def test_a_ca_that_is_no_certificate_is_said(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nonsense")
    for path in (tmp_path / "ca.crt", tmp_path / "missing.crt"):
        with pytest.raises(FailedPrecondition, match=str(path)):
            Client(ClusterAccess("https://127.0.0.1:1", ca_file=str(path))).call("GET", "/")


def test_a_client_certificate_is_loaded_and_leaves_no_file(api_server: ApiServer, tmp_path: Path) -> None:
    folder = api_server.folder / "certificates"
    pair = {
        "certificate": (folder / "apiserver.crt").read_text(),
        "key": (folder / "apiserver.key").read_text(),
    }
    client = Client(replace(api_server.access(), **pair))
    assert client.call("GET", f"{SPACES}/default")["metadata"]["name"] == "default"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (401, ClusterForbids),
        (403, ClusterForbids),
        (409, ClusterConflict),
        (410, ResourceExpired),
        (413, InvalidParameter),
        (422, InvalidParameter),
    ]
    + [(code, ClusterUnavailable) for code in (429, 500, 502, 503, 504, 418)],
)
def test_every_refusal_is_an_error_of_the_tree(code: int, kind: type[Exception]) -> None:
    assert type(error_from_status(code, {"message": "because"}, "7")) is kind
    assert "because" in str(error_from_status(code, {"message": "because"}))


def test_callers_learn_that_trying_again_helps() -> None:
    codes = [
        grpc_server.code_of(error).name
        for error in (ClusterUnavailable("x"), ClusterForbids("x"), ClusterConflict("x"))
    ]
    assert codes == ["UNAVAILABLE", "FAILED_PRECONDITION", "ABORTED"]
