"""A person reaches a cluster as with kubectl: by several files, a context, a program that gives the
credential, or a pod's account."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from csi.cluster.api_server import ApiServer as Client
from csi.errors import ClusterUnavailable, DataCacheError, FailedPrecondition, InvalidParameter
from datacache.cluster.access import find_user_access
from tests.apiserver import STRANGER, ApiServer
from tests.datacache.cluster.well_cluster import kubeconfig

VERSION = "client.authentication.k8s.io/v1"


def who(access: Any) -> str:
    """Who the server takes one for."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    found = Client(access).call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=review)
    return str(found["status"]["userInfo"]["username"])


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def giving(credential: dict[str, str]) -> str:
    return f"echo '{json.dumps({'apiVersion': VERSION, 'kind': 'ExecCredential', 'status': credential})}'"


def logged_in_by(command: str, folder: Path, server: ApiServer, **more: Any) -> Path:
    """A kubeconfig whose user has a program for a credential."""
    user = {"exec": {"apiVersion": VERSION, "command": command, **more}}
    ca = str(server.folder / "certificates/apiserver.crt")
    return kubeconfig(folder / "config", server.url, user, **{"certificate-authority": ca})


def test_the_usual_file_is_the_one_at_home(api_server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / ".kube").mkdir()
    ca = str(api_server.folder / "certificates/apiserver.crt")
    kubeconfig(
        tmp_path / ".kube/config",
        api_server.url,
        {"token": api_server.access(STRANGER).token},
        **{"certificate-authority": ca},
    )
    assert who(find_user_access(environment={}, home=tmp_path)) == STRANGER


def test_a_pod_asks_with_its_service_account(api_server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(api_server.access(STRANGER).token)
    (tmp_path / "ca.crt").write_text((api_server.folder / "certificates/apiserver.crt").read_text())
    pod = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api_server.port)}
    assert who(find_user_access(environment=pod, home=tmp_path, account=tmp_path)) == STRANGER


def test_a_file_that_is_named_counts_before_kubeconfig_and_home(
    api_server: ApiServer, tmp_path: Path
) -> None:
    elsewhere = {"KUBECONFIG": str(api_server.kubeconfig())}
    assert (
        who(find_user_access(api_server.kubeconfig(STRANGER), environment=elsewhere, home=tmp_path))
        == STRANGER
    )
    assert who(find_user_access(environment=elsewhere, home=tmp_path)) == "admin"


def test_without_any_the_message_says_where_was_looked(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=f"{tmp_path}/.kube/config does not exist.*--kubeconfig"):
        find_user_access(environment={}, home=tmp_path)


def test_of_several_files_each_adds_what_the_first_have_not(api_server: ApiServer, tmp_path: Path) -> None:
    first, second = api_server.kubeconfig(STRANGER), tmp_path / "second"
    context = {"name": "more", "context": {"cluster": "test", "user": "admin"}}
    clusters = [{"name": "test", "cluster": {"server": "https://127.0.0.1:1"}}]
    users = [{"name": "admin", "user": {"tokenFile": "token"}}]
    second.write_text(
        json.dumps({"current-context": "more", "contexts": [context], "users": users, "clusters": clusters})
    )
    (tmp_path / "token").write_text(api_server.access().token)
    environment = {"KUBECONFIG": os.pathsep.join(map(str, (tmp_path / "missing", first, second)))}
    assert who(find_user_access(environment=environment)) == STRANGER
    # The cluster is the first file's, and the token is beside the second.
    assert who(find_user_access(context="more", environment=environment)) == "admin"


def test_files_of_which_none_is_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=f"{tmp_path}/a: No such file"):
        find_user_access(environment={"KUBECONFIG": f"{tmp_path}/a{os.pathsep}{tmp_path}/b"})


def test_a_certificate_may_be_for_another_name_than_the_address(
    api_server: ApiServer, tmp_path: Path
) -> None:
    ca = str(api_server.folder / "certificates/apiserver.crt")
    user = {"token": api_server.access().token}
    named = {"certificate-authority": ca, "tls-server-name": "kubernetes.default.svc"}
    assert who(find_user_access(kubeconfig(tmp_path / "config", api_server.url, user, **named))) == "admin"
    with pytest.raises(ClusterUnavailable, match="certificate"):
        who(
            find_user_access(
                kubeconfig(
                    tmp_path / "config", api_server.url, user, **{**named, "tls-server-name": "other.example"}
                )
            )
        )


@pytest.mark.parametrize(
    ("cluster", "user", "words"),
    [
        ({"proxy-url": "http://proxy.example.com"}, {}, "cluster 'c' has proxy-url.*without a proxy"),
        ({}, {"as": "root"}, "user 'c' has as, which is not supported"),
    ],
)
def test_what_would_have_us_ask_otherwise_than_kubectl_is_refused(
    tmp_path: Path, cluster: dict[str, str], user: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidParameter, match=words):
        find_user_access(kubeconfig(tmp_path / "config", "https://api.example.com", user, **cluster))


def test_a_program_gives_the_credential(api_server: ApiServer, tmp_path: Path) -> None:
    told = tmp_path / "told"
    login = program(
        tmp_path / "login",
        f'echo "$1 $PROFILE $KUBERNETES_EXEC_INFO" > {told}\n{giving({"token": api_server.access(STRANGER).token})}',  # noqa: E501
    )
    config = logged_in_by(
        str(login), tmp_path, api_server, args=["get-token"], env=[{"name": "PROFILE", "value": "mine"}]
    )
    assert who(find_user_access(config)) == STRANGER
    assert told.read_text().startswith("get-token mine {")
    asked = json.loads(told.read_text().removeprefix("get-token mine "))
    assert asked == {"apiVersion": VERSION, "kind": "ExecCredential", "spec": {"interactive": False}}


def test_a_program_is_told_of_the_cluster_where_it_asks_for_that(
    api_server: ApiServer, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    program(tmp_path / "login", f'echo "$KUBERNETES_EXEC_INFO" > {told}\n{giving({"token": "t"})}')
    access = find_user_access(logged_in_by("./login", tmp_path, api_server, provideClusterInfo=True))
    ca = (api_server.folder / "certificates/apiserver.crt").read_bytes()
    assert json.loads(told.read_text())["spec"]["cluster"] == {
        "server": api_server.url,
        "certificate-authority-data": base64.b64encode(ca).decode(),
    }
    assert access.token == "t"
    assert "token='t'" not in repr(access)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "gave none .exit status 3.; try kubectl get nodes"),
        ("echo hush", "gave none .exit status 0."),
        (giving({}), "gave none .exit status 0."),
        (f"{giving({'token': 'hush'})}; exit 1", "gave none .exit status 1."),
    ],
)
def test_a_program_that_gives_none_is_named(
    api_server: ApiServer, tmp_path: Path, script: str, words: str
) -> None:
    login = program(tmp_path / "login", script)
    with pytest.raises(
        FailedPrecondition, match=f"{login}, which KUBECONFIG names for the credential, {words}"
    ) as error:
        find_user_access(logged_in_by(str(login), tmp_path, api_server))
    assert "hush" not in str(error.value)


def test_a_program_that_is_not_there_is_named_with_how_it_is_had(
    api_server: ApiServer, tmp_path: Path
) -> None:
    config = logged_in_by("no-such-program", tmp_path, api_server, installHint="get it from your provider")
    with pytest.raises(
        FailedPrecondition, match="no-such-program, .* is not installed; get it from your provider"
    ):
        find_user_access(config)


def test_an_exec_without_a_command_is_named(api_server: ApiServer, tmp_path: Path) -> None:
    config = kubeconfig(tmp_path / "config", api_server.url, {"exec": {"apiVersion": VERSION}})
    with pytest.raises(DataCacheError, match="exec of user 'c' has no command"):
        find_user_access(config)
