"""docs/install.md, followed to the letter on a cluster without the driver, with Helm and with kubectl.

What docs/troubleshooting.md looks with.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.images import Archive
from tests.cluster.installed import NAMESPACE, Driver
from tests.cluster.lab import Lab
from tests.cluster.programs import TREE
from tests.origins.hub import Hub
from tests.origins.versitygw import ROOT_ID, ROOT_SECRET, ObjectServer

pytestmark = pytest.mark.cluster

INSTALL, TROUBLES = (TREE / "docs" / name for name in ("install.md", "troubleshooting.md"))
# What the text calls the reader's own, and what it is here; the hub of the example is not to be reached from
# a test.
REGISTRY, TAG, NEW = "registry.example.com/storage", "0.1.0", "NEW"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OR = re.compile(r"^.*# or: (.*)$", re.MULTILINE)
_SECONDS = 600.0


class Reader:
    """Somebody who types what the document says, in a checkout, at the cluster.

    `known` are the values of their own.
    """

    def __init__(self, lab: Lab, known: dict[str, str]) -> None:
        self._lab, self._known = lab, known
        path = f"{lab.programs}:{Path(sys.executable).parent}:/usr/bin:/bin"
        self._environment = {**os.environ, "PATH": path, "KUBECONFIG": str(lab.kubectl.kubeconfig)}

    @property
    def outside(self) -> str:
        """An address that the cluster reaches, for servers."""
        return self._lab.outside[0]

    def knows(self, **values: str) -> Reader:
        """They, with more values of their own."""
        return Reader(self._lab, self._known | values)

    def theirs(self, text: str) -> str:
        """A text of the document with their values."""
        for word, value in self._known.items():
            text = text.replace(word, value)
        return text

    def types(self, script: str, folder: Path = TREE) -> str:
        """What is printed; AssertionError where a command fails."""
        script = self.theirs(script)
        done = subprocess.run(
            ["sh", "-ec", script],
            cwd=folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        pods = self._lab.kubectl.run("-n", NAMESPACE, "describe", "pods")[-4000:] if done.returncode else ""
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}\n{pods}"
        return done.stdout


def blocks(document: Path, heading: str, kind: str = "") -> list[str]:
    """The blocks of a kind below a heading: its commands, or its "yaml"."""
    sections = re.split(r"^## ", document.read_text(), flags=re.MULTILINE)
    (section,) = (one for one in sections if one.startswith(f"{heading}\n"))
    return [text for found, text in _BLOCK.findall(section) if found == kind]


@pytest.fixture
def images_in_their_registry(
    lab: Lab, driver_image: Archive, sidecars: list[Archive], python_image: Archive
) -> None:
    """Every node has the images under the names that the document has for them, as if it had pulled them."""
    names = [(driver_image, f"datacache-csi:{TAG}"), (driver_image, "datacache-csi:0.2.0")]
    names += [
        (sidecars[0], "sig-storage/csi-provisioner:v6.3.0"),
        (sidecars[1], "sig-storage/csi-resizer:v2.3.0"),
    ]
    for node in lab.nodes:
        for archive, name in names:
            node.tag(archive, f"{REGISTRY}/{name}")


@pytest.fixture
def reader(lab: Lab, driver: Driver, hub: Hub, images_in_their_registry: None) -> Iterator[Reader]:
    """Of a cluster that has no driver, before and after."""
    hub.repo(
        "sentence-transformers/all-MiniLM-L6-v2",
        {"config.json": b"{}", "model.safetensors": os.urandom(1 << 20), "vocab.txt": b"a\n"},
    )
    driver.uninstall()
    lab.kubectl.run("delete", "--ignore-not-found", "-f", str(TREE / "deploy/crds"))
    lab.kubectl.run("delete", "namespace", NAMESPACE, "--ignore-not-found")
    # The lab's hub has private addresses, where DataCaches may be led by nobody but the cluster's owner.
    private = f"--set hfEndpoint={hub.endpoint} --set 'allowOrigins={{{','.join(lab.outside)}}}'"
    hubs = {
        f"--set image.tag={TAG}": f"--set image.tag={TAG} {private}",
        "https://hub.example.com": hub.endpoint,
    }
    yield Reader(lab, {**hubs, f"image.tag={NEW}": "image.tag=0.2.0"})
    assert (
        lab.kubectl.run("get", "namespace", NAMESPACE, "--ignore-not-found")
        == lab.kubectl.run("get", "crds", "-o", "name")
        == ""
    )
    for node in lab.nodes:
        assert driver.mounts(node) == driver.loops(node) == []


def works(reader: Reader) -> None:
    """The part "Does it work", and what the other document looks with."""
    *looks, doctor, cluster, example, removed = blocks(INSTALL, "Does it work")
    assert "datacache.csi.io" in "".join(map(reader.types, looks))
    assert "mounting an image" in reader.types(f"{doctor.rstrip()} || true")
    assert "CSIDriver" in reader.types(cluster)
    assert "model.safetensors" in reader.types(example)
    pods, *_ = blocks(TROUBLES, "Where to look")
    reader.types(next(line for line in pods.splitlines() if "cachevolumes,cachepins" in line))
    reader.types(removed)


def keeps_images(reader: Reader, objects: ObjectServer, folder: Path) -> None:
    """The part "An image store, and DataCaches", for a bucket."""
    heading = "An image store, and DataCaches"
    secrets, upgraded, listed, cached = blocks(INSTALL, heading)
    own = {
        "https://minio.example.com:9000": objects.endpoint,
        "datacache-images": objects.bucket({}),
        "eu-central-1": "us-east-1",
        "values.yaml": str(folder / "values.yaml"),
    }
    reader = reader.knows(**own)
    for name, value in {
        "accessKeyId": ROOT_ID,
        "secretAccessKey": ROOT_SECRET,
        "LTAI5tExample": "secret-of-the-api",
    }.items():
        (folder / name).write_text(value)
    (folder / "values.yaml").write_text(reader.theirs(blocks(INSTALL, heading, "yaml")[0]))
    reader.types(secrets, folder)
    reader.types(upgraded)
    assert "all-MiniLM-L6-v2" not in reader.types(listed)
    reader.types(cached)
    assert "all-MiniLM-L6-v2" in reader.types(listed)
    reader.types("kubectl delete edc minilm --timeout=60s")


def removes(reader: Reader, other: bool) -> None:
    """The part "Removing", by its first way or by the `other` one."""
    named, gone = blocks(INSTALL, "Removing")
    assert reader.types(named) == ""
    reader.types("while kubectl get cachevolumes -o name | grep .; do sleep 1; done")
    reader.types(_OR.sub(r"\1", gone) if other else gone)


def test_the_way_with_helm_an_image_store_and_an_upgrade(reader: Reader, tmp_path: Path) -> None:
    for block in (*blocks(INSTALL, "The namespace"), *blocks(INSTALL, "With Helm")):
        reader.types(block)
    works(reader)
    with ObjectServer(address=reader.outside) as objects:
        keeps_images(reader, objects, tmp_path)
    for block in blocks(INSTALL, "Upgrading"):
        reader.types(block)
    works(reader)
    removes(reader, other=False)


def test_the_way_with_kubectl(reader: Reader) -> None:
    for block in (*blocks(INSTALL, "The namespace"), *blocks(INSTALL, "With kubectl")):
        reader.types(block)
    works(reader)
    removes(reader, other=True)
