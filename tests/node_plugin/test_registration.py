"""kubelet finds the driver: what it is told through the socket in its folder of plugins, and when that
socket is there."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import grpc
import pytest

from csi.errors import AlreadyExists, FailedPrecondition
from csi.pb import registration_pb2 as pb
from csi.pb import registration_pb2_grpc
from node_plugin import registration
from node_plugin.registration import serve_registration

NAME, ENDPOINT = "datacache.csi.io", "/var/lib/kubelet/plugins/datacache.csi.io/csi.sock"


def asked_by_kubelet(folder: Path, status: pb.RegistrationStatus) -> pb.PluginInfo:
    """What kubelet does with a socket that it finds: it asks, and says what came of it."""
    with grpc.insecure_channel(f"unix:{folder}/{NAME}-reg.sock") as channel:
        stub = registration_pb2_grpc.RegistrationStub(channel)
        info = stub.GetInfo(pb.InfoRequest(), timeout=10)
        stub.NotifyRegistrationStatus(status, timeout=10)
    return info


def test_kubelet_is_told_where_the_driver_is(tmp_path: Path) -> None:
    with serve_registration(str(tmp_path), NAME, ENDPOINT):
        info = asked_by_kubelet(tmp_path, pb.RegistrationStatus(plugin_registered=True))
    assert (info.type, info.name, info.endpoint, list(info.supported_versions)) == (
        "CSIPlugin",
        NAME,
        ENDPOINT,
        ["1.0.0"],
    )


def test_the_socket_goes_with_the_plugin_and_a_killed_ones_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/{NAME}-reg.sock")
    with serve_registration(str(tmp_path), NAME, ENDPOINT):
        assert asked_by_kubelet(tmp_path, pb.RegistrationStatus(plugin_registered=True)).name == NAME
    assert list(tmp_path.iterdir()) == []


def test_two_plugins_of_one_name_do_not_share_a_folder(tmp_path: Path) -> None:
    with serve_registration(str(tmp_path), NAME, ENDPOINT):
        second = serve_registration(str(tmp_path), NAME, "/x")
        with pytest.raises(AlreadyExists, match="another process answers"), second:
            pass


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    elsewhere = serve_registration(f"{tmp_path}/misspelt", NAME, ENDPOINT)
    with pytest.raises(FailedPrecondition, match="--plugins-registry is .*misspelt"), elsewhere:
        pass


@pytest.mark.parametrize("comes", [True, False])
def test_that_kubelet_does_not_come_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    monkeypatch.setattr(registration, "_KUBELET_TIMEOUT", 0.5)
    with (
        caplog.at_level(logging.WARNING, "datacache.registration"),
        serve_registration(str(tmp_path), NAME, ENDPOINT),
    ):
        if comes:
            asked_by_kubelet(tmp_path, pb.RegistrationStatus(plugin_registered=True))
        time.sleep(1)
    assert [record.message for record in caplog.records] == (
        [] if comes else ["no registration call from kubelet yet"]
    )


def test_only_root_may_open_the_socket(tmp_path: Path) -> None:
    with serve_registration(str(tmp_path), NAME, ENDPOINT):
        assert (tmp_path / f"{NAME}-reg.sock").stat().st_mode & 0o777 == 0o600


def test_why_kubelet_did_not_register_the_driver_is_logged_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    with (
        caplog.at_level(logging.INFO, "datacache.registration"),
        serve_registration(str(tmp_path), NAME, ENDPOINT, told.append),
    ):
        asked_by_kubelet(tmp_path, pb.RegistrationStatus(plugin_registered=False, error="no such node"))
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.fields["reason"] for record in errors] == told == ["no such node"]  # type: ignore[attr-defined]
