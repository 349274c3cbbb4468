"""How the two programs start, and refuse to: sockets, stores and flags that others hold or that are wrong.

What they log of each call.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.pb import csi_pb2 as pb
from csi.pb import registration_pb2 as registration
from datacache.client import PluginClient
from tests.kernel import requests
from tests.kernel.conftest import Start
from tests.kernel.machine import Machine, json_lines, until
from tests.kernel.requests import OK
from tests.node_plugin.test_registration import asked_by_kubelet
from tests.origins.hub import Hub

pytestmark = pytest.mark.kernel

MODEL = {"repoId": "org/model"}


@pytest.fixture(autouse=True)
def model(hub: Hub) -> None:
    """A repository to create volumes from."""
    hub.repo("org/model", {"config.json": b"{}"})


def refused(machine: Machine, program: str, **changed: str) -> str:
    """Start a second `program` with flags changed; its last words.

    It must leave with exit status 1 and no stack trace.
    """
    command = list(getattr(machine.plugins, program).command)
    for flag, value in changed.items():
        name = f"--{flag.replace('_', '-')}"
        if name in command:
            command[command.index(name) + 1] = value
        else:
            command += [name, value]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **machine.plugins.node.environment},
    )
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert ".py" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_socket_that_a_killed_plugin_left_is_replaced(start: Start) -> None:
    machine = start()
    machine.plugins.node.kill()
    assert Path(machine.plugins.node.endpoint.removeprefix("unix://")).is_socket()
    machine.restart_node()
    assert machine.inline("pod", MODEL) == (OK, "")


@pytest.fixture
def registry() -> Iterator[Path]:
    """A folder of a short name: a socket's path has 107 bytes at most, and kubelet's folder is
    /var/lib/kubelet/plugins_registry."""
    with tempfile.TemporaryDirectory(prefix="registry-") as folder:
        yield Path(folder)


def test_kubelet_finds_the_driver_and_its_health_until_it_leaves(start: Start, registry: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    machine = start(
        "--plugins-registry", str(registry), "--health-address", address, "--host-endpoint", "/host/csi.sock"
    )
    assert until((registry / "datacache.csi.io-reg.sock").is_socket)
    info = asked_by_kubelet(registry, registration.RegistrationStatus(plugin_registered=True))
    assert info.endpoint == "/host/csi.sock"
    with urllib.request.urlopen(f"http://{address}/healthz", timeout=30) as answer:
        assert answer.read() == b"ok"
    assert machine.plugins.node.stop() == 0
    assert list(registry.iterdir()) == []


@pytest.mark.parametrize("program", ["node", "controller"])
def test_prometheus_reads_how_long_calls_took(start: Start, program: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ["--metrics-address", address]
    machine = start(*flags) if program == "node" else start(controller=flags)
    assert machine.stage(machine.create("volume", MODEL)) == (OK, "")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        found = answer.read().decode()
    method = {"node": "NodeStageVolume", "controller": "CreateVolume"}[program]
    assert f'datacache_rpc_seconds_count{{code="OK",method="{method}"}} 1.0' in found
    assert "process_resident_memory_bytes" in found


def test_the_controller_answers_external_resizer_that_it_is_no_node(start: Start) -> None:
    with PluginClient(start().plugins.controller.endpoint) as controller:
        assert list(controller.node.NodeGetCapabilities(pb.NodeGetCapabilitiesRequest()).capabilities) == []


@pytest.mark.parametrize("program", ["node", "controller"])
def test_a_socket_that_answers_is_refused(start: Start, tmp_path: Path, program: str) -> None:
    machine = start()
    other = {"store": str(tmp_path / "other")} if program == "node" else {"registry": str(tmp_path / "other")}
    assert "another process answers on" in refused(machine, program, **other)
    assert machine.inline("pod", MODEL) == (OK, "")
    assert machine.create("volume", MODEL).volume_id


def test_a_file_in_the_place_of_the_socket_is_kept(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("data")
    words = refused(start(), "node", endpoint=f"unix://{file}", store=str(tmp_path / "other"))
    assert "is not a socket" in words
    assert file.read_text() == "data"


def test_a_store_has_one_owner(start: Start, tmp_path: Path) -> None:
    machine = start()
    words = refused(machine, "node", endpoint=f"unix://{tmp_path}/second.sock")
    assert "belongs to another running process" in words
    assert "--store" in words
    assert machine.inline("pod", MODEL) == (OK, "")


@pytest.mark.parametrize(
    ("program", "flag", "value", "words"),
    [
        ("node", "endpoint", "tcp://127.0.0.1:1", "unix://"),
        ("node", "store_size", "much", "500Gi"),
        ("node", "allow_inline_nas", "nas", "server:/path"),
        ("node", "fill_grace", "soon", "10m"),
        ("node", "store", "/proc/nowhere/store", "/proc/nowhere"),
        ("controller", "registry", "/proc/nowhere/registry", "/proc/nowhere"),
        ("controller", "driver_name", "-", "driver name"),
    ],
)
def test_a_flag_that_cannot_be_used_is_one_line(
    start: Start, tmp_path: Path, program: str, flag: str, value: str, words: str
) -> None:
    machine = start()
    folder = "store" if program == "node" else "registry"
    other = {"endpoint": f"unix://{tmp_path}/second.sock", folder: str(tmp_path / "other")}
    assert words in refused(machine, program, **{**other, flag: value})


def test_two_programs_leave_no_socket_when_they_leave(start: Start) -> None:
    machine = start()
    assert machine.plugins.node.stop() == machine.plugins.controller.stop() == 0
    assert list(machine.folder.glob("*.sock")) == []


def calls(machine: Machine) -> list[tuple[str, str, str, str]]:
    """One of each: method, volume, code and the reason's beginning that its log line must have."""
    volume = machine.create("volume", MODEL)
    known, inline = volume.volume_id, requests.inline_id("pod")
    machine.stage(volume)
    machine.publish(volume, "pod1")
    machine.inline("pod", {"repoIdd": "org/model"})
    machine.unpublish("pod1", known)
    machine.unstage(known)
    requests.answer(machine.controller.DeleteVolume, requests.delete(known))
    requests.answer(machine.controller.CreateVolume, requests.create("bad", {}))
    return [
        ("CreateVolume", "volume", "OK", ""),
        ("NodeStageVolume", known, "OK", ""),
        ("NodePublishVolume", known, "OK", ""),
        ("NodePublishVolume", inline, "INVALID_ARGUMENT", "unknown parameter 'repoIdd'"),
        ("NodeUnpublishVolume", known, "OK", ""),
        ("NodeUnstageVolume", known, "OK", ""),
        ("DeleteVolume", known, "OK", ""),
        ("CreateVolume", "bad", "INVALID_ARGUMENT", "no source is named"),
    ]


def test_every_call_is_one_line_of_text(start: Start) -> None:
    machine = start()
    wanted = calls(machine)
    for method, volume, code, reason in wanted:
        tail = f' reason="{re.escape(reason)}.*"' if reason else "$"
        level = "INFO" if code == "OK" else "WARNING"
        line = rf"^\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z {level} rpc method={method} volume={volume} code={code} ms=\d+(\.\d+)?{tail}"  # noqa: E501
        assert len(machine.logged(line)) == 1, (line, machine.logs())
    assert len(machine.logged(" rpc method=(?!Probe)")) == len(wanted)


def test_every_call_is_one_json_object(start: Start) -> None:
    machine = start("--log-format", "json", controller=["--log-format", "json"])
    wanted = calls(machine)
    lines = [
        line for line in json_lines(machine.logs()) if line["message"] == "rpc" and line["method"] != "Probe"
    ]
    assert len(machine.logs().splitlines()) == len(json_lines(machine.logs()))
    for method, volume, code, reason in wanted:
        (line,) = [
            line for line in lines if (line["method"], line["volume"], line["code"]) == (method, volume, code)
        ]
        assert line["ms"] >= 0
        assert line.get("reason", "").startswith(reason)
        assert ("reason" in line) == bool(reason)
    assert len(lines) == len(wanted)
