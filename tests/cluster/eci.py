"""The driver with its operator, an image store and ECI's API, and an origin of every kind, as the examples
of deploy/examples/eci name them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.installed import NAMESPACE, Driver
from tests.cluster.kubectl import Object
from tests.cluster.lab import Lab
from tests.cluster.programs import TREE
from tests.cluster.volumes import secret
from tests.origins.ganesha import Export, Ganesha
from tests.origins.hub import Hub
from tests.origins.modelscope import ModelScopeHub
from tests.origins.versitygw import ROOT_ID, ROOT_SECRET, ObjectServer
from tests.origins.web import WebServer

EXAMPLES = TREE / "deploy/examples/eci"
KEY_ID, KEY_SECRET = "LTAIexample", "a-secret-of-the-api"


@dataclass
class Eci:
    """What an ECI user's cluster has. `folder` is what the NAS exports.

    `objects` keeps buckets, the image store's among them.
    """

    driver: Driver
    hub: Hub
    nas: Ganesha
    folder: Path
    objects: ObjectServer
    images: str
    modelscope: ModelScopeHub
    web: WebServer

    @property
    def lab(self) -> Lab:
        """Its cluster."""
        return self.driver.lab

    @property
    def api(self) -> tuple[str, int]:
        """Address and port of the API."""
        return self.driver.pod("operator")["status"]["podIP"], 8080

    def example(self, name: str, **words: str) -> list[Object]:
        """The objects of an example, with the origins' real addresses and other `words` for some of its
        own."""
        known = {
            "nas.example.com": self.nas.server,
            "/models/portraits/": f"{self.folder}/",
            "noresvport": f"noresvport,port={self.nas.port},mountport={self.nas.mount_port}",
            "https://oss.example.com": self.objects.endpoint,
            "AKID": ROOT_ID,
            "AKSECRET": ROOT_SECRET,
            "https://files.example.com": self.web.url,
            **words,
        }
        text = (EXAMPLES / f"{name}.yaml").read_text()
        for word, real in known.items():
            text = text.replace(word, real)
        return [one for one in yaml.safe_load_all(text) if one]


@contextmanager
def eci(driver: Driver, hub: Hub) -> Iterator[Eci]:
    """The origins serve for the block; the driver keeps what it has got."""
    address, store = driver.lab.outside
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nas-")))
        nas = stack.enter_context(Ganesha([Export(folder)], server=address))
        objects = stack.enter_context(ObjectServer(address=address))
        modelscope = stack.enter_context(ModelScopeHub(addresses=(address, store)))
        web = stack.enter_context(WebServer(address))
        images = objects.bucket({})
        lab = driver.lab
        lab.kubectl.apply(
            secret("image-store", NAMESPACE, accessKeyId=ROOT_ID, secretAccessKey=ROOT_SECRET),
            secret("api-keys", NAMESPACE, **{KEY_ID: KEY_SECRET}),
        )
        url = f"s3://{images}/cluster?endpoint={objects.endpoint}"
        values: dict[str, Any] = {
            "imageStore": {"url": url, "secret": "image-store"},
            "modelscopeEndpoint": modelscope.endpoint,
            "operator": {"enabled": True, "replicas": 1, "api": {"enabled": True, "keysSecret": "api-keys"}},
        }
        yield Eci(driver.changed(**values), hub, nas, folder, objects, images, modelscope, web)
