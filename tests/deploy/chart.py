"""What the chart makes: of its own values, as deploy/manifests has it, and of others, as helm renders it."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.deploy.objects import ROOT

CHART, MANIFESTS = ROOT / "deploy/chart/datacache-csi", ROOT / "deploy/manifests"
NAMESPACE = "datacache-csi"
Object = dict[str, Any]


def generator() -> ModuleType:
    """deploy/generate.py."""
    spec = importlib.util.spec_from_file_location("deploy_generate", ROOT / "deploy/generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def helm(*words: str | Path, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm; `values` are what `-f -` reads. Skips, with the reason, where there is no helm."""
    program = generator().helm()
    if not program:
        pytest.skip(generator().NOT_RUN.format(what="what the chart makes of other values is not tested"))
    return subprocess.run(
        [program, *map(str, words)],
        input=yaml.safe_dump(dict(values or {})),
        capture_output=True,
        text=True,
        timeout=60,
    )


def rendered(values: Mapping[str, Any]) -> list[Object]:
    """The objects that the chart makes of `values`; AssertionError with helm's words where it refuses."""
    done = helm("template", "datacache-csi", CHART, "--namespace", NAMESPACE, "-f", "-", values=values)
    assert done.returncode == 0, done.stderr
    return [thing for thing in yaml.safe_load_all(done.stdout) if thing]


def refusal(values: Mapping[str, Any]) -> str:
    """What helm says of values that it refuses."""
    done = helm("template", "datacache-csi", CHART, "-f", "-", values=values)
    assert done.returncode != 0, "these values were taken"
    return done.stderr


def manifests() -> list[Object]:
    """The objects of deploy/manifests."""
    return [
        thing for path in sorted(MANIFESTS.glob("*.yaml")) for thing in yaml.safe_load_all(path.read_text())
    ]


def kinds(things: list[Object], kind: str) -> list[Object]:
    """Those of one kind."""
    return [thing for thing in things if thing["kind"] == kind]


def pod(things: list[Object], kind: str) -> Object:
    """The spec of the pods of the only object of a kind (DaemonSet, Deployment)."""
    (owner,) = kinds(things, kind)
    spec: Object = owner["spec"]["template"]["spec"]
    return spec


def container(spec: Object, name: str) -> Object:
    """A container by its name."""
    (found,) = (one for one in spec["containers"] if one["name"] == name)
    return dict(found)


def programs(things: list[Object]) -> Iterator[tuple[str, Object]]:
    """The containers of both programs of ours, by the programs' names."""
    for kind, name in (("DaemonSet", "datacache-node"), ("Deployment", "datacache-controller")):
        yield name, container(pod(things, kind), name)


def environment(of: Object) -> dict[str, str]:
    """The environment of a container that has its values in the object; of others the source, as text."""
    return {entry["name"]: entry.get("value") or str(entry["valueFrom"]) for entry in of["env"]}


def rules(things: list[Object], name: str) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of each rule of the roles called `name`, those that hold for some names only
    marked by "*" behind the resource."""
    found = set()
    for role in [
        thing
        for thing in things
        if thing["kind"] in ("Role", "ClusterRole") and thing["metadata"]["name"] == name
    ]:
        for rule in role["rules"]:
            mark = "*" if "resourceNames" in rule else ""
            found |= {
                (group, resource + mark, verb)
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    return found
