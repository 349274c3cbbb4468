"""The images that the driver is installed from: built from the project's own Dockerfile, and they run."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi import __version__
from tests.cluster import driver_image as building
from tests.cluster import programs
from tests.cluster.images import Archive
from tests.cluster.lab import Lab
from tests.cluster.pods import applied, pod

pytestmark = pytest.mark.cluster

_SUCCEEDED = "Succeeded"


def output(lab: Lab, name: str, image: Archive, command: list[str]) -> str:
    """What a pod of the image wrote that ran to its end."""
    with applied(lab.kubectl, pod(name, command, image.name, restartPolicy="Never")):
        ended = lab.kubectl.wait(
            "pod", name, lambda found: found["status"]["phase"] in (_SUCCEEDED, "Failed")
        )
        said = lab.kubectl.logs(name)
        assert ended["status"]["phase"] == _SUCCEEDED, said
        return said


def test_every_image_is_on_the_node(lab: Lab, driver_image: Archive, sidecars: list[Archive]) -> None:
    assert {driver_image.name, *(sidecar.name for sidecar in sidecars)} <= set(lab.nodes[0].images())


@pytest.mark.parametrize("program", ["datacache-controller", "datacache-node", "datacache"])
def test_the_image_has_each_program(lab: Lab, driver_image: Archive, program: str) -> None:
    assert __version__ in output(lab, program, driver_image, [program, "--version"])


def test_the_image_has_what_sources_load_and_nothing_that_installs(lab: Lab, driver_image: Archive) -> None:
    script = """
import importlib.util, ssl
import huggingface_hub, modelscope_hub, obstore, pycurl
from csi.sources.nfs import libnfs
libnfs._load_library()
print(ssl.create_default_context().cert_store_stats()["x509_ca"] > 100, [importlib.util.find_spec(name) for name in ("pip", "setuptools")])
"""  # noqa: E501
    assert (
        output(lab, "loads", driver_image, ["/opt/datacache/bin/python", "-c", script])
        == "True [None, None]\n"
    )


def test_a_pod_is_who_its_service_account_is(lab: Lab, driver_image: Archive) -> None:
    script = """
import json, os, ssl, urllib.request
place = "/run/secrets/kubernetes.io/serviceaccount/"
request = urllib.request.Request(f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    "/apis/authentication.k8s.io/v1/selfsubjectreviews", b'{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}',
    {"Authorization": "Bearer " + open(place + "token").read(), "Content-Type": "application/json"})
answer = urllib.request.urlopen(request, context=ssl.create_default_context(cafile=place + "ca.crt"))
print(json.load(answer)["status"]["userInfo"]["username"])
"""  # noqa: E501
    said = output(lab, "account", driver_image, ["/opt/datacache/bin/python", "-c", script])
    assert said == "system:serviceaccount:default:default\n"


@pytest.mark.parametrize("number", [0, 1], ids=["provisioner", "resizer"])
def test_a_sidecar_runs(lab: Lab, sidecars: list[Archive], number: int) -> None:
    name = sidecars[number].name.split("/")[1].split(":")[0]
    assert name in output(lab, name, sidecars[number], [f"/{name}", "--version"])


def test_an_image_is_of_its_content(lab: Lab, driver_image: Archive, tmp_path: Path) -> None:
    """Another checkout with the same files has the same image.

    One byte more is another image, of another name.
    """
    assert building.ready(programs.TREE, programs.cache()) == driver_image
    copied = {path.relative_to(programs.TREE) for path in building.context(programs.TREE)}
    assert {Path("csi"), Path("requirements/runtime.txt")} <= copied
    assert Path("tests") not in copied
