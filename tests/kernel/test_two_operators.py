"""Two replicas of the operator at a real API server: one leads, the other goes on from what it left, and
both know what was asked of either."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from aliyunsdkcore.utils import parameter_helper

from csi.program.flags import DRIVER_NAME
from csi.registry.datacaches.data_caches import Phase
from csi.registry.datacaches.kubernetes import KubernetesDataCacheRegistry
from csi.topology import volume_segments
from tests.apiserver import NOT_RUN, ApiServer, programs
from tests.controller_plugin.operator.openapi.sdks import ApiError, Sdk1
from tests.csi.registry.prewarms.kinds import make_node
from tests.kernel.place import KEYS, status
from tests.operator_program import OperatorProgram
from tests.origins.hub import Hub
from tests.origins.onc_rpc import wait_until
from tests.plugins import Plugins

pytestmark = pytest.mark.kernel

SOURCE = {"Type": "URL", "Options": {"repoSource": "HuggingFace/Model", "repoId": "org/cached"}}
# A lease is taken when its holder was silent for 45 s.
TAKE = 120.0


class Replicas:
    """A cluster with a node that fills, and operators."""

    def __init__(self, folder: Path, cluster: ApiServer, hub: Hub, stack: ExitStack) -> None:
        self.folder, self.cluster, self.hub, self.stack = folder, cluster, hub, stack
        self.environment = {"HF_ENDPOINT": hub.endpoint, "POD_NAMESPACE": "default"}
        make_node(cluster, "node-1", {"kubernetes.io/hostname": "node-1", **volume_segments(DRIVER_NAME)})
        ready = [{"type": "Ready", "status": "True", "reason": "Said", "message": ""}]
        cluster.kubectl(
            "patch",
            "node",
            "node-1",
            "--subresource=status",
            "--type=merge",
            "-p",
            json.dumps({"status": {"conditions": ready}}),
        )
        (folder / "node").mkdir()
        stack.enter_context(Plugins(folder / "node", self.environment, kubeconfig=cluster.kubeconfig()))

    def operator(self, name: str) -> OperatorProgram:
        """One more replica."""
        (self.folder / name).mkdir()
        environment = {**self.environment, "POD_NAME": name, "KUBECONFIG": str(self.cluster.kubeconfig())}
        return self.stack.enter_context(OperatorProgram(self.folder / name, "kubernetes", KEYS, environment))


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Replicas]:
    if programs() is None:
        pytest.skip(NOT_RUN)
    with ExitStack() as stack:
        hub = stack.enter_context(Hub())
        hub.repo("org/cached", {"model.bin": b"x" * 100_000})
        yield Replicas(tmp_path, stack.enter_context(ApiServer()), hub, stack)


def sdk(operator: OperatorProgram) -> Sdk1:
    return Sdk1(operator.port, *next(iter(KEYS.items())))


def leads(operator: OperatorProgram) -> bool:
    return "leading started" in operator.text()


def test_what_one_replica_made_available_stays_so_under_the_next_one(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replicas.operator("first")
    assert wait_until(lambda: leads(first), TAKE), first.text()
    second = replicas.operator("second")
    made = sdk(second)("CreateDataCache", Path="/models/cached", DataSource=SOURCE)["DataCacheId"]
    assert wait_until(lambda: status(sdk(second), made) == "Available", TAKE), first.text()
    before = KubernetesDataCacheRegistry(replicas.cluster.client(), "default").find((made,))[0].state
    replicas.hub.stop()
    first.kill()
    assert wait_until(lambda: leads(second), TAKE), second.text()
    later = sdk(second)("CreateDataCache", Path="/models/later", DataSource=SOURCE)["DataCacheId"]
    assert wait_until(lambda: status(sdk(second), later) == "Failed", TAKE), second.text()
    assert KubernetesDataCacheRegistry(replicas.cluster.client(), "default").find((made,))[0].state == before
    assert before.phase is Phase.AVAILABLE
    assert before.content
    # The first has died with its flags; it comes back so that its end is looked at as any other's.
    first.start()
    monkeypatch.setattr(parameter_helper, "get_uuid", lambda: "the-same")
    assert sdk(second)("DeleteDataCache", Bucket="default", Path="/models/later")["RequestId"]
    with pytest.raises(ApiError, match="SignatureNonceUsed"):
        sdk(first)("DeleteDataCache", Bucket="default", Path="/models/cached")
