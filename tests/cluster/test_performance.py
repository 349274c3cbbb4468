"""What a pod has bought is what a program in its container reads, no more and no less."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from csi.performance import essd
from tests.cluster import direct_reads
from tests.cluster.images import Archive
from tests.cluster.installed import Driver
from tests.cluster.kubectl import Object
from tests.cluster.lab import Lab
from tests.cluster.pods import applied, pod
from tests.cluster.test_volumes import pods, settled, volumes_of
from tests.cluster.volumes import claim, claim_volume, inline_volume
from tests.kernel.fio import Result
from tests.origins.hub import Hub

pytestmark = pytest.mark.cluster

MIB = 1 << 20
MODEL = {"repoId": "org/measured"}
GIB, PROVISIONED = 4, 500
# AutoPL without bursting, which is off unless it is asked for.
BOUGHT = essd.baseline_iops(GIB) + PROVISIONED
# What the kernel saved up for a reader that has not read for a moment, up to a fifth of a second's worth, is gone after the first second.
WARM_SECONDS, SECONDS, FREE_SECONDS, THREADS = 1.0, 6.0, 1.0, 8
PERFORMANCE = {"performanceLevel": "AutoPL", "provisionedIops": str(PROVISIONED)}


@pytest.fixture(scope="module", autouse=True)
def models(hub: Hub) -> None:
    """A model to read pages of."""
    hub.repo("org/measured", {"model.bin": os.urandom(64 * MIB)})


def measuring(name: str, image: Archive, bought: Object) -> Object:
    """A pod with Python that has the volume `bought` at /bought and the same model without a limit at /free."""
    free = inline_volume(MODEL)
    made = pod(
        name, ["sleep", "3600"], image.name, volumes=[{**bought, "name": "bought"}, {**free, "name": "free"}]
    )
    made["spec"]["containers"][0]["volumeMounts"] = [
        {"name": each, "mountPath": f"/{each}", "readOnly": True} for each in ("bought", "free")
    ]
    return made


def reads(lab: Lab, name: str, volume: str, seconds: float) -> float:
    """The reads a second of a program in the pod's container over `seconds`, by its own count."""
    script = Path(direct_reads.__file__).read_text()
    argv = ["python3", "-c", script, f"/{volume}/model.bin", str(WARM_SECONDS + seconds), str(THREADS)]
    moments = json.loads(lab.kubectl.exec(name, argv))
    result = Result(WARM_SECONDS + seconds, len(moments), len(moments) * 4096, moments)
    counted = result.between(WARM_SECONDS, WARM_SECONDS + seconds)
    print(f"\n{name}, {volume}: {counted:.1f} reads of 4 KiB a second, half seconds {result.series()}")
    return counted


@pytest.mark.parametrize("kind", ["inline", "claim"])
def test_provisioned_iops_are_what_a_container_reads(
    lab: Lab, driver: Driver, driver_image: Archive, kind: str
) -> None:
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
        free = reads(lab, name, "free", FREE_SECONDS)
        assert free > 1.2 * BOUGHT, (
            f"this machine's disk gives {free:.0f} IOPS: too little to show a limit of {BOUGHT}"
        )
        ratio = reads(lab, name, "bought", SECONDS) / BOUGHT
        print(f"{name}: {ratio:.4f} of the {BOUGHT} IOPS that were bought")
        assert ratio == pytest.approx(1, rel=0.03)
    settled(lab, driver)
