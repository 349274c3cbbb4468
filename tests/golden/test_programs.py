"""The Leases by which replicas of the programs take turns: one of another name would let two versions lead
at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.recorded_cluster import RecordedCluster, recorded_cluster
from tests.origins.onc_rpc import wait_until
from tests.plugins import LOOPBACK

_BIN = Path(sys.executable).parent


def leases(cluster: RecordedCluster) -> set[str]:
    """The paths of the Leases that were made."""
    return {path for path in cluster.objects if "/leases/" in path}


@pytest.mark.parametrize(
    ("program", "driver", "lease"),
    [
        ("datacache-controller", "Datacache.csi.io", "datacache.csi.io-controller"),
        ("datacache-operator", "Datacache.csi.io", "datacache.csi.io-operator"),
    ],
)
def test_the_lease_of_a_program(program: str, driver: str, lease: str, tmp_path: Path) -> None:
    with recorded_cluster() as cluster:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": cluster.url}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "here"}}
            ],
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        flags = ["--registry", "kubernetes", "--driver-name", driver, "--state-dir", str(tmp_path / "state")]
        flags += ["--endpoint", f"unix://{tmp_path}/csi.sock"] if program == "datacache-controller" else []
        environment = {
            **os.environ,
            **LOOPBACK,
            "KUBECONFIG": str(tmp_path / "kubeconfig"),
            "POD_NAME": "pod-1",
        }
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen([str(_BIN / program), *flags], env=environment, stdout=log, stderr=log)
            try:
                assert wait_until(lambda: bool(leases(cluster)), 30), (tmp_path / "log").read_text()
            finally:
                process.kill()
                process.wait()
        assert leases(cluster) == {f"/apis/coordination.k8s.io/v1/namespaces/here/leases/{lease}"}
