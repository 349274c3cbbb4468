"""CSI's Node service: checks the request, calls one method of `NodeVolumes`, builds the reply."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc

from csi.errors import InvalidParameter
from csi.parameters.access_modes import AccessMode, parse_access_mode
from csi.parameters.content_ref import Secrets
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc
from csi.server.grpc_server import call_deadline, require_fields
from node_plugin.topology import NodeTopology
from node_plugin.volumes.mount_request import MountRequest
from node_plugin.volumes.volumes import NodeVolumes

_RPC = pb.NodeServiceCapability.RPC
_CAPABILITIES = (_RPC.STAGE_UNSTAGE_VOLUME, _RPC.GET_VOLUME_STATS, _RPC.VOLUME_CONDITION)
# kubelet gives up after 120 s; the answer, with the progress, must leave before.
_MAX_WAIT_SECONDS = 100.0


class NodeServicer(csi_pb2_grpc.NodeServicer):
    """The Node service over `volumes`, on the node `node_id`, which is where `topology` says."""

    def __init__(self, volumes: NodeVolumes, node_id: str, topology: NodeTopology) -> None:
        self._volumes, self._node_id, self._topology = volumes, node_id, topology

    def NodeGetInfo(
        self, request: pb.NodeGetInfoRequest, context: grpc.ServicerContext
    ) -> pb.NodeGetInfoResponse:
        """The node's name, and whether it can mount images."""
        return pb.NodeGetInfoResponse(
            node_id=self._node_id, accessible_topology=pb.Topology(segments=self._topology.segments())
        )

    def NodeGetCapabilities(
        self, request: pb.NodeGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.NodeGetCapabilitiesResponse:
        """What this node plugin can do."""
        rpcs = (pb.NodeServiceCapability(rpc=_RPC(type=kind)) for kind in _CAPABILITIES)
        return pb.NodeGetCapabilitiesResponse(capabilities=rpcs)

    def NodeStageVolume(
        self, request: pb.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> pb.NodeStageVolumeResponse:
        """Fill the image where needed, mount it, and mark the staging path with it."""
        require_fields(request, "volume_id", "staging_target_path", "volume_capability")
        self._volumes.stage(
            _build_mount_request(request, request.staging_target_path),
            call_deadline(context, _MAX_WAIT_SECONDS),
        )
        return pb.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self, request: pb.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> pb.NodeUnstageVolumeResponse:
        """Take the volume away from the staging path."""
        require_fields(request, "volume_id", "staging_target_path")
        self._volumes.unstage(request.volume_id, Path(request.staging_target_path))
        return pb.NodeUnstageVolumeResponse()

    def NodePublishVolume(
        self, request: pb.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> pb.NodePublishVolumeResponse:
        """Show the volume to one pod; an inline volume is resolved and filled here."""
        require_fields(request, "volume_id", "target_path", "volume_capability")
        mount_request = replace(
            _build_mount_request(request, request.target_path),
            readonly=request.readonly,
            staging_path=request.staging_target_path,
        )
        self._volumes.publish(mount_request, call_deadline(context, _MAX_WAIT_SECONDS))
        return pb.NodePublishVolumeResponse()

    def NodeUnpublishVolume(
        self, request: pb.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> pb.NodeUnpublishVolumeResponse:
        """Take the volume away from one pod and remove the target."""
        require_fields(request, "volume_id", "target_path")
        self._volumes.unpublish(request.volume_id, Path(request.target_path))
        return pb.NodeUnpublishVolumeResponse()

    def NodeGetVolumeStats(
        self, request: pb.NodeGetVolumeStatsRequest, context: grpc.ServicerContext
    ) -> pb.NodeGetVolumeStatsResponse:
        """Bytes, inodes and condition. Bytes show the content against the capacity: a read-only file system would always look full."""
        require_fields(request, "volume_id", "volume_path")
        stats = self._volumes.get_stats(request.volume_id, Path(request.volume_path))
        free = max(0, stats.capacity_bytes - stats.content_bytes)
        return pb.NodeGetVolumeStatsResponse(
            usage=[
                pb.VolumeUsage(
                    unit=pb.VolumeUsage.BYTES,
                    total=stats.capacity_bytes,
                    used=stats.content_bytes,
                    available=free,
                ),
                pb.VolumeUsage(
                    unit=pb.VolumeUsage.INODES, total=stats.inodes, used=stats.inodes, available=0
                ),
            ],
            volume_condition=pb.VolumeCondition(abnormal=stats.is_abnormal, message=stats.message),
        )


def _build_mount_request(
    request: pb.NodeStageVolumeRequest | pb.NodePublishVolumeRequest, path: str
) -> MountRequest:
    return MountRequest(
        request.volume_id,
        Path(path),
        _parse_access_mode(request.volume_capability),
        dict(request.volume_context),
        Secrets(dict(request.secrets)),
        tuple(request.volume_capability.mount.mount_flags),
    )


def _parse_access_mode(capability: pb.VolumeCapability) -> AccessMode:
    if capability.HasField("block"):
        raise InvalidParameter(
            "block access is asked, but a data cache is a file system; use volumeMode: Filesystem"
        )
    return parse_access_mode(capability.access_mode.mode)
