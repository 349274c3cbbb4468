"""A run over every source at debug level: what was secret is in no log, error, file, context, environment
or command line."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from tests.kernel import requests
from tests.kernel.machine import Machine
from tests.kernel.requests import OK
from tests.kernel.traces import leaks
from tests.origins import versitygw
from tests.origins.faults import Fault
from tests.origins.hub import Hub
from tests.origins.modelscope import ModelScopeHub
from tests.origins.scripted import Server
from tests.origins.versitygw import READER_ID, READER_SECRET, ObjectServer
from tests.origins.web import Site, WebServer

pytestmark = pytest.mark.kernel
MODELSCOPE = "ms_s3cr3tOfModelScope"
HUB, WEB, WRONG = "hf_s3cr3tOfTheHub", "s3cr3tOfTheWeb", "s3cr3tThatIsWrong"
ROLE_TOKEN, METADATA_TOKEN = "s3cr3tOfTheRole", "s3cr3tOfTheMetadataService"
ROLE = "/latest/meta-data/ram/security-credentials/reader"
SECRETS = (
    HUB,
    MODELSCOPE,
    WEB,
    READER_SECRET,
    WRONG,
    ROLE_TOKEN,
    METADATA_TOKEN,
    "Signature=",
    "X-Amz-Credential",
)
DATA = b"data" * 50_000


@dataclass(frozen=True)
class Case:
    """A source, the Secret that opens it, and the same with wrong values."""

    name: str
    parameters: dict[str, str]
    secrets: dict[str, str] = field(repr=False)

    @property
    def wrong(self) -> dict[str, str]:
        return {key: value if value == READER_ID else WRONG for key, value in self.secrets.items()}


@dataclass(frozen=True)
class Origins:
    hub: Hub
    modelscope: ModelScopeHub
    web: WebServer
    metadata: Server
    cases: list[Case]
    role: dict[str, str] | None
    """Parameters of a bucket that the role of the instance opens; None where there is no object store."""


@pytest.fixture
def origins(hub: Hub) -> Iterator[Origins]:
    with ExitStack() as stack:
        hub.repo(
            "org/private",
            {"config.json": b"{}", "model.safetensors": DATA},
            private=True,
            tokens={HUB},
            lfs_over=1000,
        )
        modelscope = stack.enter_context(ModelScopeHub(redirect_over=1000))
        modelscope.repo(
            "org/private",
            {"config.json": b"{}", "model.safetensors": DATA},
            private=True,
            tokens={MODELSCOPE},
        )
        web = stack.enter_context(WebServer())
        web.files["/data.bin"], web.sites["/"] = DATA, Site({WEB})
        cases = [
            Case("hub", {"repoId": "org/private"}, {"token": HUB}),
            Case(
                "modelscope",
                {"repoSource": "ModelScope/Model", "repoId": "org/private"},
                {"token": MODELSCOPE},
            ),
            Case("url", {"url": f"{web.url}/data.bin"}, {"accessToken": WEB}),
        ]
        metadata, role = stack.enter_context(Server()), None
        stack.callback(metadata.shutdown)
        _grant(metadata)
        if why := versitygw.missing():
            print(f"object stores were left out: {why}")
        else:
            cases += _buckets(stack.enter_context(ObjectServer()))
            role = {**cases[-1].parameters, "ramRole": "reader"}
        yield Origins(hub, modelscope, web, metadata, [*cases, _several(cases)], role)


def _grant(metadata: Server, token: str = "") -> None:
    """The instance has the role "reader". The object server knows no keys with a token and refuses those."""
    ends = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    key = {
        "AccessKeyId": READER_ID,
        "AccessKeySecret": READER_SECRET,
        "SecurityToken": token,
        "Expiration": ends,
    }
    metadata.behave["PUT /latest/api/token"] = lambda handler: handler.say(200, METADATA_TOKEN.encode())
    metadata.behave[ROLE] = lambda handler: handler.say(200, json.dumps(key).encode())


def _buckets(server: ObjectServer) -> list[Case]:
    where = {"bucket": server.bucket({"data.bin": DATA}), "pathStyle": "true"}
    return [
        Case(
            "s3",
            {"type": "S3", "endpoint": server.endpoint, **where},
            {"accessKeyId": READER_ID, "secretAccessKey": READER_SECRET},
        ),
        Case(
            "oss",
            {"type": "OSS", "url": server.endpoint, **where},
            {"akId": READER_ID, "akSecret": READER_SECRET},
        ),
    ]


def _several(cases: list[Case]) -> Case:
    parts = [{"folder": case.name, **case.parameters} for case in cases]
    secrets = {f"{case.name}.{key}": value for case in cases for key, value in case.secrets.items()}
    return Case("several", {"sources": json.dumps(parts)}, secrets)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_of_any_source_is_found_anywhere(origins: Origins, tmp_path: Path, log_format: str) -> None:
    flags = ["--log-level", "DEBUG", "--log-format", log_format, "--proof-ttl", "0s"]
    endpoints = {
        "HF_ENDPOINT": origins.hub.endpoint,
        "MODELSCOPE_ENDPOINT": origins.modelscope.endpoint,
        "ALIBABA_CLOUD_ECS_METADATA": origins.metadata.url,
    }
    with Machine(tmp_path, endpoints, flags, flags) as machine:
        said = [text for case in origins.cases for text in _lead(machine, origins, case)]
        assert len(said) > 4 * len(origins.cases)
        said += _lead_by_role(machine, origins)
        # The workers are warm still: their environments and command lines are looked at too.
        _assert_searched(machine, origins.hub.endpoint)
        for secret in SECRETS:
            assert leaks(machine, secret, *said) == []


def _assert_searched(machine: Machine, endpoint: str) -> None:
    """What is known to be in a place is found there, so that to find nothing says something.

    `endpoint` is in the programs' environment.
    """
    workers, found = machine.workers(), leaks(machine, endpoint, f"asked {endpoint}")
    assert workers
    assert f"message: asked {endpoint}" in found
    processes = {f"/proc/{pid}" for pid in machine.plugins.processes()}
    assert (
        {f"/proc/{pid}" for pid in workers}
        < processes
        == {line.partition("/environ")[0] for line in found if line.startswith("/proc")}
    )
    assert {f"/proc/{pid}/cmdline: csi.worker_process" for pid in workers} <= set(
        leaks(machine, "csi.worker_process")
    )
    # Of what workers say at debug level.
    logs = {str(program.log) for program in (machine.plugins.node, machine.plugins.controller)}
    assert logs <= set(leaks(machine, "operation"))
    planted = machine.store / "planted"
    for path, data in ((planted, b"it is pl4nted here"), (planted.with_name("pl4nted"), b"")):
        path.write_bytes(data)
        assert leaks(machine, "pl4nted") == [str(path)]
        path.unlink()


def _lead_by_role(machine: Machine, origins: Origins) -> list[str]:
    """Lead a bucket of the instance's role through success and failure, where there is one.

    What was said on the way.
    """
    if origins.role is None:
        return []
    volume = machine.create("role", origins.role)
    origins.metadata.behave[ROLE] = lambda handler: handler.say(500, ROLE_TOKEN.encode())
    away, broken = machine.stage(volume)
    _grant(origins.metadata, ROLE_TOKEN)
    wrong, refused = machine.stage(volume)
    assert (away, wrong) == (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED), (broken, refused)
    _grant(origins.metadata)
    assert machine.stage(volume) == (OK, "")
    assert machine.publish(volume, "role") == (OK, "")
    return [str(volume), broken, refused, str(machine.condition("role", volume.volume_id))]


def _lead(machine: Machine, origins: Origins, case: Case) -> list[str]:
    """Lead a case through success and failures; what was said and given back on the way."""
    said: list[str] = []
    for secrets in (case.wrong, {}):
        code, message = requests.answer(
            machine.controller.CreateVolume, requests.create(case.name, case.parameters, secrets)
        )
        assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT), message
        said.append(message)
    volume = machine.create(case.name, case.parameters, case.secrets)
    said += [str(volume), *_failing_stages(machine, origins, case, volume)]
    assert machine.stage(volume, case.secrets) == (OK, "")
    assert machine.publish(volume, case.name) == (OK, "")
    code, message = machine.inline(f"inline-{case.name}", case.parameters, case.wrong)
    assert code is not OK
    assert machine.inline(f"inline-{case.name}", case.parameters, case.secrets) == (OK, "")
    return [
        *said,
        message,
        str(machine.condition(case.name, volume.volume_id)),
        str(machine.condition(f"inline-{case.name}")),
    ]


def _failing_stages(machine: Machine, origins: Origins, case: Case, volume: object) -> Iterator[str]:
    for faults in (origins.hub.faults, origins.modelscope.faults, origins.web.faults):
        faults.add(Fault("status", "*", status=403))
    for secrets in (case.secrets, case.wrong):
        code, message = machine.stage(volume, secrets)  # type: ignore[arg-type]
        # versitygw has no faults: there only the wrong key is refused.
        assert code is not OK or case.name in ("s3", "oss")
        yield message
    machine.unstage(volume.volume_id)  # type: ignore[attr-defined]
    for faults in (origins.hub.faults, origins.modelscope.faults, origins.web.faults):
        faults.clear()
