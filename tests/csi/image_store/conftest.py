"""Every kind of image store, each empty, and an image in a node's store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from csi.image_store.backend import Backend
from csi.image_store.location import parse_image_store_url
from csi.image_store.store import open_backend
from csi.images.fill.fill import fill, seal
from csi.images.layout.layout import build_layout
from csi.images.node_store.records import ImagePaths
from csi.manifest.manifest import Entry, Manifest, build_manifest
from tests.csi.images.origin import FakeOrigin
from tests.csi.images.trees import file
from tests.origins.versitygw import ROOT_ID, ROOT_SECRET, ObjectServer

SECRET = {
    "S3": {"accessKeyId": ROOT_ID, "secretAccessKey": ROOT_SECRET},
    "OSS": {"akId": ROOT_ID, "akSecret": ROOT_SECRET},
}
PART = 1 << 16


@dataclass(frozen=True)
class Opens:
    """Opens one store again and again, as several processes would."""

    url: str
    secrets: dict[str, str]

    def __call__(self) -> Backend:
        return open_backend(parse_image_store_url(self.url), self.secrets)


@pytest.fixture(params=["file", "s3", "oss"])
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Opens:
    if request.param == "file":
        shared = tmp_path / "shared"
        shared.mkdir()
        return Opens(f"file://{shared}", {})
    server: ObjectServer = request.getfixturevalue("objects")
    url = f"{request.param}://{server.bucket({})}/a%20b?endpoint={quote(server.endpoint)}"
    return Opens(url, SECRET[request.param.upper()])


@pytest.fixture
def backend(opens: Opens) -> Iterator[Backend]:
    opened = opens()
    yield opened
    opened.close()


def tree(*sizes: int) -> Manifest:
    return build_manifest(
        [
            Entry("folder/empty", file("x", 0).kind),
            *(file(f"file-{number}", size) for number, size in enumerate(sizes)),
        ],
        {"repoId": "org/m"},
    )


def sealed(folder: Path, manifest: Manifest) -> ImagePaths:
    """The image of `manifest`, filled and sealed in `folder`."""
    folder.mkdir()
    paths = ImagePaths(folder)
    with paths.manifest.open("xb") as stream:
        manifest.write(stream)
    fill(build_layout(manifest), paths.partial, paths.journal, FakeOrigin().open)
    seal(paths.partial, paths.image, paths.journal)
    return paths


@pytest.fixture
def manifest() -> Manifest:
    return tree(10, 300_000, 5000, 200_001)


@pytest.fixture
def image(tmp_path: Path, manifest: Manifest) -> ImagePaths:
    return sealed(tmp_path / "image", manifest)
