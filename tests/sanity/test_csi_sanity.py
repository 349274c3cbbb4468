"""csi-sanity, a client nobody here wrote, against both programs as separate processes, once for each
source."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.apiserver import ApiServer
from tests.origins.ganesha import Export, Ganesha
from tests.origins.hub import Hub
from tests.plugins import Plugins

_SANITY = Path(sys.executable).parent / "csi-sanity"
_TOTAL = re.compile(r"Ran (\d+) of (\d+) Specs")
_RESULT = re.compile(r"(\d+) Passed \| (\d+) Failed \| (\d+) Pending \| (\d+) Skipped")

pytestmark = pytest.mark.skipif(
    not _SANITY.exists() and shutil.which("go") is None,
    reason="NOT RUN: csi-sanity, because Go is not installed",
)


def run_sanity(
    plugins: Plugins, parameters: Mapping[str, str], secrets: Mapping[str, str], folder: Path
) -> str:
    files = {
        "parameters": parameters,
        "mutable": {"provisionedIops": "2000", "burstingEnabled": "true"},
        "secrets": _all_secrets(secrets),
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(json.dumps(content))
    command = [
        str(_SANITY),
        f"-csi.endpoint={plugins.node.endpoint}",
        f"-csi.controllerendpoint={plugins.controller.endpoint}",
        f"-csi.stagingdir={folder}/staging",
        f"-csi.mountdir={folder}/mount",
        f"-csi.testvolumeparameters={folder}/parameters.yaml",
        f"-csi.testvolumemutableparameters={folder}/mutable.yaml",
        f"-csi.secrets={folder}/secrets.yaml",
        f"-csi.testvolumesize={8 * 2**30}",
        "-ginkgo.no-color",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    return done.stdout + done.stderr


def _all_secrets(secrets: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    kinds = (
        "CreateVolumeSecret",
        "DeleteVolumeSecret",
        "NodeStageVolumeSecret",
        "NodePublishVolumeSecret",
        "ControllerValidateVolumeCapabilitiesSecret",
    )
    return dict.fromkeys(kinds, secrets) if secrets else {}


def assert_passed(output: str, plugins: Plugins) -> None:
    ran, result = _TOTAL.search(output), _RESULT.search(output)
    assert ran, output[-3000:]
    assert result, output[-3000:]
    print(f"csi-sanity: {ran[0]}, {result[0]}")
    assert int(result[2]) == 0, output[-12000:]
    assert int(ran[1]) >= 49, ran[0]
    assert plugins.leftovers() == []


@pytest.mark.kernel
def test_csi_sanity_passes_with_a_private_hugging_face_source(tmp_path: Path) -> None:
    with Hub() as hub:
        hub.repo(
            "org/tiny",
            files={"config.json": b"{}", "model.safetensors": b"\0" * 3_000_000},
            private=True,
            tokens={"good-token"},
        )
        with Plugins(tmp_path, {"HF_ENDPOINT": hub.endpoint}) as plugins:
            parameters = {
                "type": "URL",
                "repoSource": "HuggingFace/Model",
                "repoId": "org/tiny",
                "writerAccessModes": "downgrade",
            }
            assert_passed(run_sanity(plugins, parameters, {"token": "good-token"}, tmp_path), plugins)


@pytest.mark.kernel
def test_csi_sanity_passes_with_a_nas_source(tmp_path: Path) -> None:
    share = tmp_path / "share"
    (share / "models").mkdir(parents=True)
    (share / "models" / "weights.bin").write_bytes(b"w" * 2_000_000)
    with Ganesha([Export(share)]) as server, Plugins(tmp_path) as plugins:
        options = f"nolock,proto=tcp,port={server.port},mountport={server.mount_port}"
        parameters = {
            "type": "NAS",
            "server": "127.0.0.1",
            "path": f"{share}/models",
            "vers": "3",
            "options": options,
            "writerAccessModes": "downgrade",
        }
        assert_passed(run_sanity(plugins, parameters, {}, tmp_path), plugins)


@pytest.mark.kernel
def test_csi_sanity_passes_with_a_cluster_for_a_registry(cluster: ApiServer, tmp_path: Path) -> None:
    with Hub() as hub:
        hub.repo("org/tiny", files={"config.json": b"{}", "model.safetensors": b"\0" * 3_000_000})
        with Plugins(tmp_path, {"HF_ENDPOINT": hub.endpoint}, kubeconfig=cluster.kubeconfig()) as plugins:
            parameters = {"repoId": "org/tiny", "writerAccessModes": "downgrade"}
            assert_passed(run_sanity(plugins, parameters, {}, tmp_path), plugins)
    assert cluster.kubectl("get", "dcv", "-o", "name") == ""
