"""CSI's Controller service: checks requests, calls `ControllerVolumes`, builds replies."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from controller_plugin.pvc_annotations import check_storage_class
from controller_plugin.volumes import ControllerVolumes, CreateRequest
from csi.errors import InvalidParameter, NoSpace
from csi.parameters import access_modes
from csi.parameters.access_modes import AccessMode
from csi.parameters.performance_keys import Performance, compute_limits
from csi.parameters.volume_parameters import (
    MAX_VOLUME_BYTES,
    canonicalize_parameters,
    check_mutable,
    parse_mutable,
    parse_volume_parameters,
)
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc
from csi.registry.volumes.record import VolumeRecord
from csi.server.grpc_server import call_deadline, require_fields
from csi.topology import can_mount_in, volume_segments

_RPC = pb.ControllerServiceCapability.RPC
# Sidecars and csi-sanity make the calls of each capability that is listed here.
_CAPABILITIES = (
    _RPC.CREATE_DELETE_VOLUME,
    _RPC.LIST_VOLUMES,
    _RPC.GET_CAPACITY,
    _RPC.GET_VOLUME,
    _RPC.MODIFY_VOLUME,
    _RPC.CLONE_VOLUME,
)
# external-provisioner gives up after 10 s; the reply must arrive before.
_MAX_CREATE_WAIT_SECONDS = 8.0


class ControllerServicer(csi_pb2_grpc.ControllerServicer):
    """Controller service over `volumes`.

    Every volume is accessible from each node that can mount images (`csi.topology`).
    """

    def __init__(self, volumes: ControllerVolumes, driver_name: str) -> None:
        self._volumes, self._driver = volumes, driver_name
        self._topology = pb.Topology(segments=volume_segments(driver_name))

    def ControllerGetCapabilities(
        self, request: pb.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.ControllerGetCapabilitiesResponse:
        """Return the capabilities of this controller."""
        rpcs = (pb.ControllerServiceCapability(rpc=_RPC(type=kind)) for kind in _CAPABILITIES)
        return pb.ControllerGetCapabilitiesResponse(capabilities=rpcs)

    def CreateVolume(
        self, request: pb.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> pb.CreateVolumeResponse:
        """Resolve the source and record the volume; nothing is fetched."""
        require_fields(request, "name", "volume_capabilities")
        self._check_topology(request.accessibility_requirements)
        record = self._volumes.create(
            self._build_create_request(request), call_deadline(context, _MAX_CREATE_WAIT_SECONDS)
        )
        return pb.CreateVolumeResponse(volume=self._build_volume(record))

    def _check_topology(self, requirement: pb.TopologyRequirement) -> None:
        """Raise NoSpace if images can be mounted in none of the requested topologies.

        CSI requires its code RESOURCE_EXHAUSTED.
        """
        if requirement.requisite and not any(
            can_mount_in(self._driver, topology.segments) for topology in requirement.requisite
        ):
            required = ", ".join(f"{key}={value}" for key, value in self._topology.segments.items())
            raise NoSpace(
                f"none of the requested topologies has {required}; "
                "volumes are accessible from nodes that run the node plugin and can mount images"
            )

    def _build_create_request(self, request: pb.CreateVolumeRequest) -> CreateRequest:
        return CreateRequest(
            name=request.name,
            parameters=request.parameters,
            secrets=request.secrets,
            access_modes=parse_access_modes(request.volume_capabilities),
            mount_flags=[
                flag for capability in request.volume_capabilities for flag in capability.mount.mount_flags
            ],
            mutable_parameters=request.mutable_parameters,
            required_bytes=request.capacity_range.required_bytes,
            limit_bytes=request.capacity_range.limit_bytes,
            source_volume_id=_source_volume_id(request),
        )

    def DeleteVolume(
        self, request: pb.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> pb.DeleteVolumeResponse:
        """Delete the volume's record; an unknown id is no error."""
        require_fields(request, "volume_id")
        self._volumes.delete(request.volume_id)
        return pb.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(
        self, request: pb.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.ValidateVolumeCapabilitiesResponse:
        """Confirm the requested capabilities, or return a message why not."""
        require_fields(request, "volume_id", "volume_capabilities")
        record = self._volumes.get(request.volume_id)
        try:
            _check_matches(request, record)
        except InvalidParameter as error:
            return pb.ValidateVolumeCapabilitiesResponse(message=str(error))
        confirmed = pb.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
            mutable_parameters=request.mutable_parameters,
        )
        return pb.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    def ListVolumes(
        self, request: pb.ListVolumesRequest, context: grpc.ServicerContext
    ) -> pb.ListVolumesResponse:
        """Return one page of volumes, in the order of their ids."""
        records, token = self._volumes.list_page(request.starting_token, request.max_entries)
        entries = (pb.ListVolumesResponse.Entry(volume=self._build_volume(record)) for record in records)
        return pb.ListVolumesResponse(entries=entries, next_token=token)

    def GetCapacity(
        self, request: pb.GetCapacityRequest, context: grpc.ServicerContext
    ) -> pb.GetCapacityResponse:
        """Return the largest possible volume.

        A volume takes no space until a node fills it, so there is no total to report.
        """
        if request.parameters:
            check_storage_class(request.parameters)
        reply = pb.GetCapacityResponse(available_capacity=MAX_VOLUME_BYTES)
        reply.maximum_volume_size.value = MAX_VOLUME_BYTES
        reply.minimum_volume_size.value = 0
        return reply

    def ControllerGetVolume(
        self, request: pb.ControllerGetVolumeRequest, context: grpc.ServicerContext
    ) -> pb.ControllerGetVolumeResponse:
        """Return one volume by its id."""
        require_fields(request, "volume_id")
        record = self._volumes.get(request.volume_id)
        status = pb.ControllerGetVolumeResponse.VolumeStatus()
        return pb.ControllerGetVolumeResponse(volume=self._build_volume(record), status=status)

    def ControllerModifyVolume(
        self, request: pb.ControllerModifyVolumeRequest, context: grpc.ServicerContext
    ) -> pb.ControllerModifyVolumeResponse:
        """Change performance keys of a live volume."""
        require_fields(request, "volume_id")
        check_mutable(request.mutable_parameters)
        self._volumes.modify(request.volume_id, request.mutable_parameters)
        return pb.ControllerModifyVolumeResponse()

    def _build_volume(self, record: VolumeRecord) -> pb.Volume:
        volume = pb.Volume(
            volume_id=record.id,
            capacity_bytes=record.capacity_bytes,
            volume_context=record.to_context(),
            accessible_topology=[self._topology],
        )
        if record.cloned_from:
            volume.content_source.volume.volume_id = record.cloned_from
        return volume


def _check_matches(request: pb.ValidateVolumeCapabilitiesRequest, record: VolumeRecord) -> None:
    """Raise InvalidParameter, with the reason, if the volume does not match the request.

    A volume that can be modified to match counts as matching.
    """
    for mode in parse_access_modes(request.volume_capabilities):
        access_modes.check_access_mode(mode, record.downgrade_writers)
    if request.volume_context and parse_volume_parameters(request.volume_context).spec != record.spec:
        raise InvalidParameter(f"volume_context names another source than {record.spec.source.display_name}")
    for values in (request.volume_context, request.parameters):
        compute_limits(Performance().with_changes(canonicalize_parameters(values)), record.capacity_bytes)
    compute_limits(parse_mutable(request.mutable_parameters, record.performance), record.capacity_bytes)


def parse_access_modes(capabilities: Iterable[pb.VolumeCapability]) -> list[AccessMode]:
    """Return the access mode of each capability.

    Raises InvalidParameter for block access, which read-only file trees do not have.
    """
    modes = []
    for capability in capabilities:
        if capability.HasField("block"):
            raise InvalidParameter(
                "block access is requested, but a data cache is a file system; "
                "use volumeMode: Filesystem in the PVC"
            )
        modes.append(access_modes.parse_access_mode(capability.access_mode.mode))
    return modes


def _source_volume_id(request: pb.CreateVolumeRequest) -> str:
    if not request.HasField("volume_content_source"):
        return ""
    source = request.volume_content_source
    if not source.HasField("volume"):
        raise InvalidParameter(
            "volume_content_source names a snapshot; this driver clones volumes only, so name a volume"
        )
    if not source.volume.volume_id:
        raise InvalidParameter("volume_content_source names no volume id")
    return source.volume.volume_id


class NodeServiceStub(csi_pb2_grpc.NodeServicer):
    """Node service for external-resizer on the controller's socket.

    It asks what nodes can do, and exits if nothing answers.
    """

    def NodeGetCapabilities(
        self, request: pb.NodeGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.NodeGetCapabilitiesResponse:
        """Return no capabilities: there is no node here."""
        return pb.NodeGetCapabilitiesResponse()
