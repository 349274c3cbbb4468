"""No program of the driver may do more than it does, and none is refused what it does.

Judged last of all tests, over what all of them did.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack

import pytest

from csi.registry.custom_resource import GROUP, VERSION
from tests.cluster.installed import Driver
from tests.cluster.kubectl import Object, condition
from tests.cluster.lab import Lab
from tests.cluster.pods import applied
from tests.cluster.rights import Right, granted, used
from tests.cluster.test_volumes import settled
from tests.cluster.volumes import DRIVER, claim, claim_volume, inline_volume, reader, secret, storage_class
from tests.origins.hub import Hub

pytestmark = pytest.mark.cluster

_LIST_FIRST = "an API server that does not stream lists is asked for the list before it is asked to watch; the lab's streams them"  # noqa: E501
_SAID_AGAIN = "an Event that is said again is written anew; in the tests it seldom has anything to say twice"
NEVER_USED = {
    Right(
        "controller", "create", "cachevolumes.datacache.csi.io"
    ): "to apply what is not there yet; asked for as patch, which is all that the log has",
    Right(
        "operator", "create", "cacheprewarms.datacache.csi.io"
    ): "to apply an order that is not there yet; asked for as patch, which is all that the log has",
    Right(
        "operator", "update", "secrets"
    ): "nonces of the OpenAPI, where tests have called it, and the webhook's certificate, which ends in weeks",  # noqa: E501
    Right(
        "controller", "list", "nodes"
    ): "pins of nodes that are gone are let go, at a look every five minutes",
    Right("controller", "patch", "events"): _SAID_AGAIN,
    Right("resizer", "patch", "events"): _SAID_AGAIN,
    **{
        Right("provisioner", "list", resource): _LIST_FIRST
        for resource in (
            "csinodes.storage.k8s.io",
            "nodes",
            "persistentvolumeclaims",
            "persistentvolumes",
            "storageclasses.storage.k8s.io",
        )
    },
    **{
        Right("resizer", "list", resource): _LIST_FIRST
        for resource in (
            "persistentvolumeclaims",
            "persistentvolumes",
            "volumeattributesclasses.storage.k8s.io",
        )
    },
}
"""Why a right is there that tests use by chance, or never."""


def test_the_roles_of_the_chart_are_what_the_programs_use(lab: Lab, driver: Driver, hub: Hub) -> None:
    rights = granted(lab)
    reasons = (
        NEVER_USED
        if any(right.program == "operator" for right in rights)
        else {k: v for k, v in NEVER_USED.items() if k.program != "operator"}
    )
    assert reasons.keys() <= rights, (
        f"reasons for what no role has: {sorted(map(str, reasons.keys() - rights))}"
    )
    if rights - used(lab, rights) - NEVER_USED.keys():
        # Not all tests have run before.
        everything(lab, driver, hub)
    unused = rights - used(lab, rights)
    print(
        "\nrights that no test used:",
        *(f"  {right}: {NEVER_USED.get(right, '?')}" for right in sorted(unused)),
        sep="\n",
    )
    assert unused <= NEVER_USED.keys(), (
        f"nobody uses these, and no reason is given: {sorted(map(str, unused - NEVER_USED.keys()))}"
    )


def everything(lab: Lab, driver: Driver, hub: Hub) -> None:
    """A short life of a volume of every kind."""
    hub.repo("org/right", {"model.bin": b"right"}, private=True, tokens={"right-token"})
    hub.repo("org/inline-right", {"model.bin": b"inline"})
    hub.repo("org/long-right", {"model.bin": os.urandom(8 << 20)})
    with ExitStack() as stack:
        for objects in (_classes(), [secret("right", token="right-token")], _claims(), _pods()):
            stack.enter_context(applied(lab.kubectl, *objects))
        # Long enough for two Events of its fill.
        hub.faults.rate = (8 << 20) / 24
        stack.callback(setattr, hub.faults, "rate", None)
        _modified(lab)
        lab.kubectl.wait_running("long-right", seconds=180)
        hub.faults.rate = None
        stack.enter_context(applied(lab.kubectl, _prewarm()))
        lab.kubectl.wait("cacheprewarm", "right", lambda found: condition(found, "Ready") == "True")
        for name in ("right", "cloned", "inline-right"):
            lab.kubectl.wait_running(name)
    settled(lab, driver)


def _classes() -> list[Object]:
    of_secret = {
        f"csi.storage.k8s.io/{stage}-secret-name": "right" for stage in ("provisioner", "node-stage")
    }
    of_secret |= {
        f"csi.storage.k8s.io/{stage}-secret-namespace": "default" for stage in ("provisioner", "node-stage")
    }
    attributes = [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "VolumeAttributesClass",
            "metadata": {"name": name},
            "driverName": DRIVER,
            "parameters": parameters,
        }
        for name, parameters in (("right-slow", {"readIops": "500"}), ("right-fast", {"readIops": "5000"}))
    ]
    return [
        *attributes,
        storage_class("right", {"pvcAnnotations": "repoId", **of_secret}),
        storage_class("long-right", {"repoId": "org/long-right"}),
        storage_class("wrong", {"repoId": "org/no-right"}),
    ]


def _claims() -> list[Object]:
    annotated, cloned = claim("right", "right", attributes="right-slow"), claim("cloned", "right")
    for one in (annotated, cloned):
        one["metadata"]["annotations"] = {"datacache.csi.io/repoId": "org/right"}
    cloned["spec"]["dataSource"] = {"kind": "PersistentVolumeClaim", "name": "right"}
    return [annotated, cloned, claim("long-right", "long-right"), claim("wrong", "wrong")]


def _pods() -> list[Object]:
    readers = [reader(name, claim_volume(name)) for name in ("right", "cloned", "long-right")]
    return [*readers, reader("inline-right", inline_volume({"repoId": "org/inline-right"}))]


def _modified(lab: Lab) -> None:
    """Another VolumeAttributesClass, in force."""
    bound = lab.kubectl.wait("pvc", "right", lambda found: found["status"]["phase"] == "Bound")
    lab.kubectl.run(
        "patch",
        "pvc",
        "right",
        "--type=merge",
        "-p",
        json.dumps({"spec": {"volumeAttributesClassName": "right-fast"}}),
    )
    volume = lab.kubectl.get("pv", bound["spec"]["volumeName"])["spec"]["csi"]["volumeHandle"]
    lab.kubectl.wait(
        "cachevolume", volume, lambda found: found["spec"].get("performance") == {"readIops": 5000}
    )


def _prewarm() -> Object:
    about = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "CachePrewarm",
        "metadata": {"name": "right", "namespace": "default"},
    }
    return {
        **about,
        "spec": {"nodeSelector": {"kubernetes.io/os": "linux"}, "caches": [{"claimName": "long-right"}]},
    }
