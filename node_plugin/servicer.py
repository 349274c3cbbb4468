"""CSI's Node service: each call checks its request, calls one method of `NodeVolumes`, and replies."""

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
# Seconds; kubelet gives up after 120, and the reply, which has the progress, must arrive before.
_MAX_MOUNT_WAIT_SECONDS = 100.0


class NodeServicer(csi_pb2_grpc.NodeServicer):
    """The Node service of the node `node_id`."""

    def __init__(self, volumes: NodeVolumes, node_id: str, topology: NodeTopology) -> None:
        self._volumes, self._node_id, self._topology = volumes, node_id, topology

    def NodeGetInfo(
        self, request: pb.NodeGetInfoRequest, context: grpc.ServicerContext
    ) -> pb.NodeGetInfoResponse:
        """Return the node's name and topology segments, which include whether it can mount images."""
        return pb.NodeGetInfoResponse(
            node_id=self._node_id, accessible_topology=pb.Topology(segments=self._topology.segments())
        )

    def NodeGetCapabilities(
        self, request: pb.NodeGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.NodeGetCapabilitiesResponse:
        """Return the optional calls that this driver implements."""
        rpcs = (pb.NodeServiceCapability(rpc=_RPC(type=kind)) for kind in _CAPABILITIES)
        return pb.NodeGetCapabilitiesResponse(capabilities=rpcs)

    def NodeStageVolume(
        self, request: pb.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> pb.NodeStageVolumeResponse:
        """Fill the image if needed, mount it, and mount its marker at the staging path."""
        require_fields(request, "volume_id", "staging_target_path", "volume_capability")
        self._volumes.stage(
            _build_mount_request(request, request.staging_target_path),
            call_deadline(context, _MAX_MOUNT_WAIT_SECONDS),
        )
        return pb.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self, request: pb.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> pb.NodeUnstageVolumeResponse:
        """Unmount the volume from the staging path."""
        require_fields(request, "volume_id", "staging_target_path")
        self._volumes.unstage(request.volume_id, Path(request.staging_target_path))
        return pb.NodeUnstageVolumeResponse()

    def NodePublishVolume(
        self, request: pb.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> pb.NodePublishVolumeResponse:
        """Bind-mount the volume for one pod; an inline volume is resolved and filled first."""
        require_fields(request, "volume_id", "target_path", "volume_capability")
        mount_request = replace(
            _build_mount_request(request, request.target_path),
            readonly=request.readonly,
            staging_path=request.staging_target_path,
        )
        self._volumes.publish(mount_request, call_deadline(context, _MAX_MOUNT_WAIT_SECONDS))
        return pb.NodePublishVolumeResponse()

    def NodeUnpublishVolume(
        self, request: pb.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> pb.NodeUnpublishVolumeResponse:
        """Unmount the volume from the target path and remove the path."""
        require_fields(request, "volume_id", "target_path")
        self._volumes.unpublish(request.volume_id, Path(request.target_path))
        return pb.NodeUnpublishVolumeResponse()

    def NodeGetVolumeStats(
        self, request: pb.NodeGetVolumeStatsRequest, context: grpc.ServicerContext
    ) -> pb.NodeGetVolumeStatsResponse:
        """Return bytes, inodes and condition of a volume.

        Used bytes are relative to the capacity: as a read-only file system the volume would always seem full.
        """
        require_fields(request, "volume_id", "volume_path")
        stats = self._volumes.get_stats(request.volume_id, Path(request.volume_path))
        # CSI: none of these numbers may be negative.
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
    # The controller refuses block access as well, but static volumes do not pass through it.
    if capability.HasField("block"):
        raise InvalidParameter(
            "block access is requested, but a data cache is a file system; use volumeMode: Filesystem"
        )
    return parse_access_mode(capability.access_mode.mode)
