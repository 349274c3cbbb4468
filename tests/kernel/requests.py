"""What kubelet and external-provisioner send, and what is answered as (gRPC code, message)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc

from csi.parameters.access_modes import AccessMode
from csi.pb import csi_pb2 as pb
from datacache.client import volume_capability

OK = grpc.StatusCode.OK
ROX, RWO = AccessMode.MULTI_NODE_READER_ONLY, AccessMode.SINGLE_NODE_WRITER
Answer = tuple[grpc.StatusCode, str]
Words = Mapping[str, str]


def answer(call: Callable[..., Any], request: Any, timeout: float = 60.0) -> Answer:
    """Make the call, wait for its end."""
    return answer_of(call.future(request, timeout=timeout), timeout + 10)


def answer_of(future: Any, seconds: float = 60.0) -> Answer:
    """How a call under way ends, within `seconds`."""
    try:
        future.result(seconds)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    except grpc.FutureCancelledError:
        return grpc.StatusCode.CANCELLED, ""
    return OK, ""


def create(
    name: str, parameters: Words, secrets: Words | None = None, mode: AccessMode = ROX, **more: Any
) -> pb.CreateVolumeRequest:
    """As external-provisioner asks for a PVC."""
    capabilities = more.pop("volume_capabilities", [volume_capability(mode)])
    return pb.CreateVolumeRequest(
        name=name, parameters=parameters, secrets=secrets or {}, volume_capabilities=capabilities, **more
    )


def stage(
    volume: pb.Volume, staging: Path, secrets: Words | None = None, mode: AccessMode = ROX
) -> pb.NodeStageVolumeRequest:
    """As kubelet asks for a persistent volume's first pod."""
    return pb.NodeStageVolumeRequest(
        volume_id=volume.volume_id,
        staging_target_path=str(staging),
        volume_context=volume.volume_context,
        secrets=secrets or {},
        volume_capability=volume_capability(mode),
    )


def publish(
    volume: pb.Volume, staging: Path, target: Path, mode: AccessMode = ROX
) -> pb.NodePublishVolumeRequest:
    """As kubelet asks for each pod of a staged volume."""
    return pb.NodePublishVolumeRequest(
        volume_id=volume.volume_id,
        staging_target_path=str(staging),
        target_path=str(target),
        volume_context=volume.volume_context,
        volume_capability=volume_capability(mode),
        readonly=True,
    )


def inline(
    pod: str, target: Path, attributes: Words, secrets: Words | None = None
) -> pb.NodePublishVolumeRequest:
    """As kubelet asks for an inline volume: always a writer mode, and facts of the pod among the
    attributes."""
    facts = {
        "csi.storage.k8s.io/ephemeral": "true",
        "csi.storage.k8s.io/pod.name": pod,
        "csi.storage.k8s.io/pod.namespace": "default",
    }
    return pb.NodePublishVolumeRequest(
        volume_id=inline_id(pod),
        target_path=str(target),
        volume_context={**attributes, **facts},
        secrets=secrets or {},
        volume_capability=volume_capability(RWO),
    )


def inline_id(pod: str) -> str:
    """The id that kubelet gives to a pod's inline volume."""
    return "csi-" + hashlib.sha256(pod.encode()).hexdigest()


def unpublish(volume_id: str, target: Path) -> pb.NodeUnpublishVolumeRequest:
    """As kubelet asks when a pod goes."""
    return pb.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))


def unstage(volume_id: str, staging: Path) -> pb.NodeUnstageVolumeRequest:
    """As kubelet asks when a volume's last pod is gone."""
    return pb.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=str(staging))


def stats(volume_id: str, path: Path) -> pb.NodeGetVolumeStatsRequest:
    """As kubelet asks every minute."""
    return pb.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=str(path))


def modify(volume_id: str, parameters: Words) -> pb.ControllerModifyVolumeRequest:
    """As external-resizer asks when a PVC gets another VolumeAttributesClass."""
    return pb.ControllerModifyVolumeRequest(volume_id=volume_id, mutable_parameters=parameters)


def delete(volume_id: str) -> pb.DeleteVolumeRequest:
    """As external-provisioner asks when a PV goes."""
    return pb.DeleteVolumeRequest(volume_id=volume_id)
