"""A place with DataCaches: an operator, as many nodes as are wanted, an image store, and pods that read."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.controller_plugin.operator.openapi.sdks import KINDS, REGION, Sdk
from tests.operator_program import OperatorProgram
from tests.origins.hub import Hub
from tests.origins.versitygw import ROOT_ID, ROOT_SECRET, ObjectServer
from tests.plugins import Plugins

KEYS = {"LTAIexample": "a-secret"}


@dataclass(frozen=True)
class Store:
    """An image store by its `url`, what it keeps lying in `root` too.

    `secret` is the folder with its access key.
    """

    url: str
    root: Path
    secret: Path | None = None

    @property
    def flags(self) -> list[str]:
        """What the programs are told of it."""
        return [
            "--image-store",
            self.url,
            *(["--image-store-secret", str(self.secret)] if self.secret else []),
        ]

    def copy_flags(self, region: str) -> list[str]:
        """What the operator of another place is told of it."""
        secret = ["--copy-region-secret", f"{region}={self.secret}"] if self.secret else []
        return ["--copy-region", f"{region}={self.url}", *secret]

    def parts(self) -> list[Path]:
        """The parts of all images."""
        return sorted(self.root.glob("images/*/parts/[!.]*"))

    def images(self) -> list[Path]:
        """The records of images that are whole."""
        return sorted(self.root.glob("images/*/index.json"))


def folder_store(folder: Path) -> Store:
    """One in a folder, made for it."""
    folder.mkdir()
    return Store(f"file://{folder}", folder)


def bucket_store(server: ObjectServer, secret: Path) -> Store:
    """One in a bucket of its own; `secret` is made."""
    secret.mkdir()
    (secret / "accessKeyId").write_text(ROOT_ID)
    (secret / "secretAccessKey").write_text(ROOT_SECRET)
    bucket = server.bucket({})
    return Store(
        f"s3://{bucket}/prod?endpoint={quote(server.endpoint)}", server.root / bucket / "prod", secret
    )


class Place:
    """An operator and nodes over one registry in `folder`, with a hub and, where there is one, an image
    store."""

    def __init__(
        self,
        folder: Path,
        hub: Hub,
        store: Store | None,
        stack: ExitStack,
        *operator: str,
        region: str = REGION,
    ) -> None:
        self.folder, self.hub, self.stack = folder, hub, stack
        self.region, self.store = region, store.flags if store else []
        self.registry = folder / "registry"
        self.environment = {"HF_ENDPOINT": hub.endpoint}
        flags = [*self.store, "--api-region", region, *operator]
        self.operator = stack.enter_context(
            OperatorProgram(folder, str(self.registry), KEYS, self.environment, *flags)
        )

    def node(self, name: str) -> Plugins:
        """One more node."""
        made = Plugins(
            self.folder / name, self.environment, node=["--registry", str(self.registry), *self.store]
        )
        made.folder.mkdir()
        return self.stack.enter_context(made)

    def sdk(self, kind: Any = KINDS[0]) -> Sdk:
        """A client of its API."""
        made: Sdk = kind(self.operator.port, *next(iter(KEYS.items())), region=self.region)
        return made


def status(sdk: Sdk, cache_id: str) -> str:
    """What the API says of a cache."""
    (found,) = sdk("DescribeDataCaches", DataCacheId=[cache_id])["DataCaches"]
    return str(found["Status"])


def read(node: Plugins, name: str, path: str = "/models/cached", **attributes: str) -> dict[str, str]:
    """SHA-256 of each file that a pod reads, which names the cache by its path."""
    target = node.folder / f"pods/{name}/volumes/kubernetes.io~csi/v/mount"
    context = {
        "cachePath": path,
        "csi.storage.k8s.io/ephemeral": "true",
        "csi.storage.k8s.io/pod.namespace": "default",
        **attributes,
    }
    with node.client() as client:
        client.publish(f"csi-{name}", str(target), context)
        found = {
            str(file.relative_to(target)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in target.rglob("*")
            if file.is_file()
        }
        client.unpublish(f"csi-{name}", str(target))
    return found
