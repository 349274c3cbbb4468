"""The Kubernetes objects of the examples, and what each says to the driver."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from csi.parameters.annotations import apply_annotations
from csi.parameters.volume_parameters import PVC_ANNOTATIONS_KEY

ROOT = Path(__file__).parents[2]
DRIVER = "datacache.csi.io"
_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """The parameters that one object gives the driver, with its mount options and access modes, and the
    name of its Secret."""

    name: str
    parameters: dict[str, str]
    flags: list[str]
    modes: list[str]
    inline: bool = False
    secret: str = ""
    by_user: bool = False


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object: those of `deploy/examples`, then those in the blocks of the README and the guides.

    With where it is.
    """
    for path in sorted((ROOT / "deploy/examples").glob("*.yaml")):
        for thing in yaml.safe_load_all(path.read_text()):
            yield f"{path.relative_to(ROOT)}:{thing['kind']}/{thing['metadata']['name']}", thing
    for page in (ROOT / "README.md", *sorted((ROOT / "docs/guides").glob("*.md"))):
        for number, block in enumerate(_BLOCK.findall(page.read_text()), 1):
            for thing in yaml.safe_load_all(block):
                yield f"{page.relative_to(ROOT)}:{number}:{thing['kind']}/{thing['metadata']['name']}", thing


def asked() -> Iterator[Asked]:
    """What each object asks of the driver; objects that ask nothing are left out."""
    for name, thing in objects():
        if thing["kind"] == "StorageClass":
            secret = thing["parameters"].get("csi.storage.k8s.io/node-stage-secret-name", "")
            whole = thing["parameters"]
            if PVC_ANNOTATIONS_KEY in whole:
                claim = annotating(name, thing["metadata"]["name"])
                whole = dict(
                    apply_annotations(whole, claim["annotations"], f"default/{claim['name']}").parameters
                )
            yield Asked(
                name,
                whole,
                thing.get("mountOptions", []),
                [],
                secret=secret,
                by_user=PVC_ANNOTATIONS_KEY in thing["parameters"],
            )
        if thing["kind"] == "PersistentVolume":
            spec = thing["spec"]
            yield Asked(
                name,
                spec["csi"]["volumeAttributes"],
                spec.get("mountOptions", []),
                spec["accessModes"],
                secret=_named(spec["csi"], "nodeStageSecretRef"),
            )
        for volume in pod_volumes(thing):
            # A DataCache is named, and asks for nothing itself.
            if "csi" in volume and "cachePath" not in volume["csi"]["volumeAttributes"]:
                secret = _named(volume["csi"], "nodePublishSecretRef")
                yield Asked(name, volume["csi"]["volumeAttributes"], [], [], inline=True, secret=secret)


def pod_volumes(thing: dict[str, Any]) -> list[dict[str, Any]]:
    """The volumes of a Pod, or of the pods of a Deployment; none of another kind."""
    spec = thing.get("spec", {})
    pod = {"Pod": spec, "Deployment": spec.get("template", {}).get("spec", {})}.get(thing["kind"], {})
    volumes: list[dict[str, Any]] = pod.get("volumes", [])
    return volumes


def annotating(where: str, storage_class: str) -> dict[str, Any]:
    """The metadata of the PVC beside an example's StorageClass that names the source in annotations."""
    beside = (
        thing
        for name, thing in objects()
        if name.partition(":")[0] == where.partition(":")[0] and thing["kind"] == "PersistentVolumeClaim"
    )
    return next(thing["metadata"] for thing in beside if thing["spec"]["storageClassName"] == storage_class)


def _named(source: dict[str, Any], key: str) -> str:
    return source.get(key, {}).get("name", "")
