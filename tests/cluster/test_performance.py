"""What a pod has bought is what the kernel holds its container to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from csi.performance import essd
from csi.performance.limits import Rate
from tests.cluster import direct_reads
from tests.cluster.images import Archive
from tests.cluster.installed import Driver
from tests.cluster.kubectl import Object
from tests.cluster.lab import Lab
from tests.cluster.pods import applied, pod
from tests.cluster.test_volumes import pods, settled, volumes_of
from tests.cluster.volumes import claim, claim_volume, inline_volume
from tests.kernel.kubelet import ROOT, limit_of, served_to
from tests.origins.hub import Hub

pytestmark = pytest.mark.cluster

MIB = 1 << 20
MODEL = {"repoId": "org/measured"}
GIB, PROVISIONED = 4, 500
# AutoPL without bursting, which is off unless it is asked for.
BOUGHT = essd.baseline_iops(GIB) + PROVISIONED
SECONDS, THREADS = 1.0, 8
PERFORMANCE = {"performanceLevel": "AutoPL", "provisionedIops": str(PROVISIONED)}


@pytest.fixture(scope="module", autouse=True)
def models(hub: Hub) -> None:
    """A model to read pages of."""
    hub.repo("org/measured", {"model.bin": os.urandom(64 * MIB)})


def measuring(name: str, image: Archive, bought: Object) -> Object:
    """A pod with Python that has the volume `bought` at /bought and the same model without a limit at
    /free."""
    free = inline_volume(MODEL)
    made = pod(
        name, ["sleep", "3600"], image.name, volumes=[{**bought, "name": "bought"}, {**free, "name": "free"}]
    )
    made["spec"]["containers"][0]["volumeMounts"] = [
        {"name": each, "mountPath": f"/{each}", "readOnly": True} for each in ("bought", "free")
    ]
    return made


def device_of(lab: Lab, name: str, volume: str) -> str:
    """The device ("major:minor") that the pod reads at /`volume`."""
    code = f"import os; device = os.stat('/{volume}').st_dev; print(f'{{os.major(device)}}:{{os.minor(device)}}')"  # noqa: E501
    return lab.kubectl.exec(name, ["python3", "-c", code]).strip()


def group_of(lab: Lab, name: str) -> Path:
    """The cgroup of the pod's container as this machine sees it."""
    (status,) = lab.kubectl.get("pod", name)["status"]["containerStatuses"]
    (group,) = ROOT.rglob(status["containerID"].rpartition("/")[2])
    return group


def reads(lab: Lab, name: str, volume: str) -> int:
    """The reads of a program in the pod's container, by its own count."""
    script = Path(direct_reads.__file__).read_text()
    return len(
        json.loads(
            lab.kubectl.exec(
                name, ["python3", "-c", script, f"/{volume}/model.bin", str(SECONDS), str(THREADS)]
            )
        )
    )


@pytest.mark.parametrize("kind", ["inline", "claim"])
def test_provisioned_iops_are_what_the_kernel_holds_a_container_to(
    lab: Lab, driver: Driver, driver_image: Archive, kind: str
) -> None:
    """That so many are what it reads then `make bench` measures (bought_iops)."""
    name = f"measured-{kind}"
    bought = (
        inline_volume({**MODEL, **PERFORMANCE, "size": f"{GIB}Gi"})
        if kind == "inline"
        else claim_volume("bought")
    )
    with (
        volumes_of(lab, {**MODEL, **PERFORMANCE}),
        applied(lab.kubectl, claim("bought", "models", size=f"{GIB}Gi")),
        pods(lab, measuring(name, driver_image, bought)),
    ):
        group, limited, free = (
            group_of(lab, name),
            device_of(lab, name, "bought"),
            device_of(lab, name, "free"),
        )
        assert limit_of(group, limited).iops == BOUGHT
        assert limit_of(group, free) == Rate()
        before = served_to(group, limited)
        count = reads(lab, name, "bought")
        assert served_to(group, limited).since(before).ios == count
    settled(lab, driver)
