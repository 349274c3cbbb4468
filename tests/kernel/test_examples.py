"""Every volume of deploy/examples is created, filled, mounted and read, with origins of this machine in
the place of those it names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import yaml

from csi.pb import csi_pb2 as pb
from tests.conformance.url_kit import metalink
from tests.deploy.objects import ROOT, Asked, asked
from tests.kernel.machine import Machine
from tests.kernel.requests import OK
from tests.origins import versitygw
from tests.origins.ganesha import Ganesha
from tests.origins.hub import Hub
from tests.origins.modelscope import ModelScopeHub
from tests.origins.versitygw import READER_ID, READER_SECRET, ObjectServer
from tests.origins.web import Site, WebServer

pytestmark = pytest.mark.kernel
EXAMPLES = [example for example in asked() if example.name.startswith("deploy/")]
TOKEN = "example-token"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "notes.md": b"# notes",
    "vocab.txt": b"a\nb\n",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Relocated:
    """Origins that hold what the examples name, and the parameters that name them there.

    `private`: hubs want the token.
    """

    def __init__(self, stack: ExitStack, nas: Ganesha) -> None:
        self.nas, self.export, self.private = nas, nas.exports[0].path, True
        self.hub, self.modelscope, self.web = (
            stack.enter_context(origin) for origin in (Hub(), ModelScopeHub(), WebServer())
        )
        self.web.sites["/"] = Site({TOKEN})
        self.objects = None if versitygw.missing() else stack.enter_context(ObjectServer())

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.hub.endpoint, "MODELSCOPE_ENDPOINT": self.modelscope.endpoint}

    def parameters(self, written: dict[str, str]) -> dict[str, str]:
        """`written`, for here."""
        if "sources" in written:
            parts = [
                {"folder": part.pop("folder"), **self.parameters(part)}
                for part in json.loads(written["sources"])
            ]
            return {**written, "sources": json.dumps(parts)}
        if "repoId" in written:
            return self._repository(written)
        if "server" in written:
            return self._share(written)
        return self._bucket(written) if "bucket" in written else self._urls(written)

    def secrets(self, name: str) -> dict[str, str]:
        """The Secret of that name among the examples, with values that open the origins here."""
        keys = next((keys for found, keys in _secrets() if found == name), [])
        return {key: _value(key) for key in keys}

    def _repository(self, written: dict[str, str]) -> dict[str, str]:
        kind = "dataset" if written.get("repoSource", "").endswith("DataSet") else "model"
        hub = self.modelscope if written.get("repoSource", "").startswith("ModelScope") else self.hub
        repository = hub.repo(written["repoId"], FILES, kind=kind, private=self.private, tokens={TOKEN})
        pinned = {"revision": repository.branches["main"]} if written.get("revision") == COMMIT else {}  # type: ignore[union-attr]
        return {**written, **pinned}

    def _share(self, written: dict[str, str]) -> dict[str, str]:
        path = written.get("path") or f"{written['share']}/{written.get('subDir', '')}"
        folder = self.export / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in FILES.items():
            (folder / name).write_bytes(data)
        others = {key: value for key, value in written.items() if key not in ("share", "subDir")}
        ports = f"port={self.nas.port},mountport={self.nas.mount_port}"
        return {
            **others,
            "server": self.nas.server,
            "path": str(folder),
            "options": ",".join(filter(None, (written.get("options"), ports))),
        }

    def _bucket(self, written: dict[str, str]) -> dict[str, str]:
        if self.objects is None:
            pytest.skip(f"this example was not run: {versitygw.missing()}")
        prefix = written["path"].strip("/")
        bucket = self.objects.bucket({f"{prefix}/{name}": data for name, data in FILES.items()})
        return {**written, "bucket": bucket, "url" if "url" in written else "endpoint": self.objects.endpoint}

    def _urls(self, written: dict[str, str]) -> dict[str, str]:
        if "metalink" in written:
            return {**written, "metalink": self._document(written["metalink"])}
        for path in re.findall(r"https://[^/\s]+(/\S+)", written["url"]):
            self.web.files[path] = FILES["model.safetensors"]
        return {**written, "url": re.sub(r"https://[^/\s]+", self.web.url, written["url"])}

    def _document(self, url: str) -> str:
        folder, name = re.sub(r"https://[^/]+", "", url).rsplit("/", 1)
        self.web.files |= {f"{folder}/{path}": data for path, data in FILES.items()}
        self.web.files[f"{folder}/{name}"] = metalink(
            {path: (f"{self.web.url}{folder}/{path}", data) for path, data in FILES.items()}
        )
        return f"{self.web.url}{folder}/{name}"


def _secrets() -> Iterator[tuple[str, list[str]]]:
    for path in sorted((ROOT / "deploy/examples").glob("*.yaml")):
        for thing in yaml.safe_load_all(path.read_text()):
            if thing["kind"] == "Secret":
                yield thing["metadata"]["name"], list(thing["stringData"])


def _value(key: str) -> str:
    name = key.rpartition(".")[2]
    return {
        "akId": READER_ID,
        "accessKeyId": READER_ID,
        "akSecret": READER_SECRET,
        "secretAccessKey": READER_SECRET,
    }.get(name, TOKEN)


@pytest.fixture(scope="module")
def origins(nas: Ganesha) -> Iterator[Relocated]:
    with ExitStack() as stack:
        yield Relocated(stack, nas)


@pytest.fixture(scope="module")
def machine(origins: Relocated, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("examples")
    with Machine(
        folder, origins.environment, ["--allow-inline-nas", f"{origins.nas.server}:{origins.export}"]
    ) as running:
        yield running


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda example: example.name.removeprefix("deploy/examples/")
)
def test_an_example_is_mounted_and_read(origins: Relocated, machine: Machine, example: Asked) -> None:
    origins.private = bool(example.secret)
    parameters = origins.parameters(dict(example.parameters))
    secrets = origins.secrets(example.secret)
    name = re.sub(r"\W", "-", example.name)
    if example.inline:
        assert machine.inline(name, parameters, secrets) == (OK, "")
    else:
        # A static PV's attributes are what its node resolves; a claim's capacity is in its class's own tests.
        volume = machine.create(name, parameters, secrets, **_capacity(example))
        assert machine.stage(volume, secrets) == (OK, "")
        assert machine.publish(volume, name) == (OK, "")
    found = [path for path in machine.target(name).rglob("*") if path.is_file()]
    assert found
    assert all(path.read_bytes() in FILES.values() for path in found)


def _capacity(example: Asked) -> dict[str, object]:
    """Performance that has a price needs a size; the claim beside the class asks for it."""
    return (
        {"capacity_range": pb.CapacityRange(required_bytes=500 << 30)}
        if "provisionedIops" in example.parameters
        else {}
    )
