"""Client of the plugins' sockets: CSI's calls with plain arguments, and errors of `csi.errors`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import grpc

from csi.errors import DataCacheError
from csi.parameters.access_modes import AccessMode
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc
from csi.server.grpc_server import CODES, grpc_target

_T = TypeVar("_T")
_READER = AccessMode.MULTI_NODE_READER_ONLY
# Of several classes with one code, the first in CODES counts.
_KINDS = {code: kind for kind, code in reversed(CODES.items()) if issubclass(kind, DataCacheError)}


def volume_capability(mode: AccessMode = _READER) -> pb.VolumeCapability:
    """Return a mount capability with an access mode."""
    return pb.VolumeCapability(
        mount=pb.VolumeCapability.MountVolume(),
        access_mode=pb.VolumeCapability.AccessMode(
            mode=pb.VolumeCapability.AccessMode.Mode.ValueType(mode.value)
        ),
    )


class PluginClient:
    """Client of one plugin at a unix:// endpoint. `timeout` is in seconds per call.

    Methods raise the error of `csi.errors` that the gRPC code stands for.
    """

    def __init__(self, endpoint: str, timeout: float = 120.0) -> None:
        self._channel = grpc.insecure_channel(grpc_target(endpoint))
        self._timeout = timeout
        self.identity = csi_pb2_grpc.IdentityStub(self._channel)
        self.controller = csi_pb2_grpc.ControllerStub(self._channel)
        self.node = csi_pb2_grpc.NodeStub(self._channel)

    def __enter__(self) -> PluginClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def probe(self) -> bool:
        """Return whether the plugin reports that it is ready."""
        return self._call(self.identity.Probe, pb.ProbeRequest()).ready.value

    def create(
        self, name: str, parameters: Mapping[str, str], secrets: Mapping[str, str] | None = None, **extra: Any
    ) -> pb.Volume:
        """Call CreateVolume with a reader mode; `extra` has further fields of CreateVolumeRequest."""
        capabilities = extra.pop("volume_capabilities", [volume_capability()])
        request = pb.CreateVolumeRequest(
            name=name, parameters=parameters, secrets=secrets or {}, volume_capabilities=capabilities, **extra
        )
        return self._call(self.controller.CreateVolume, request).volume

    def delete(self, volume_id: str) -> None:
        """Call DeleteVolume."""
        self._call(self.controller.DeleteVolume, pb.DeleteVolumeRequest(volume_id=volume_id))

    def list_volumes(self) -> list[pb.Volume]:
        """Call ListVolumes until the last page."""
        volumes: list[pb.Volume] = []
        token = ""
        while True:
            reply = self._call(
                self.controller.ListVolumes, pb.ListVolumesRequest(max_entries=500, starting_token=token)
            )
            volumes += [entry.volume for entry in reply.entries]
            token = reply.next_token
            if not token:
                return volumes

    def modify(self, volume_id: str, parameters: Mapping[str, str]) -> None:
        """Call ControllerModifyVolume."""
        self._call(
            self.controller.ControllerModifyVolume,
            pb.ControllerModifyVolumeRequest(volume_id=volume_id, mutable_parameters=parameters),
        )

    def stage(
        self,
        volume_id: str,
        staging: str,
        context: Mapping[str, str],
        secrets: Mapping[str, str] | None = None,
        mode: AccessMode = _READER,
    ) -> None:
        """Call NodeStageVolume; raises Busy if the fill continues after the plugin's own wait."""
        request = pb.NodeStageVolumeRequest(
            volume_id=volume_id,
            staging_target_path=staging,
            volume_context=context,
            secrets=secrets or {},
            volume_capability=volume_capability(mode),
        )
        self._call(self.node.NodeStageVolume, request)

    def publish(
        self,
        volume_id: str,
        target: str,
        context: Mapping[str, str],
        staging: str = "",
        secrets: Mapping[str, str] | None = None,
        mode: AccessMode = _READER,
    ) -> None:
        """Call NodePublishVolume; without `staging` the context must be an inline volume's."""
        request = pb.NodePublishVolumeRequest(
            volume_id=volume_id,
            target_path=target,
            staging_target_path=staging,
            volume_context=context,
            secrets=secrets or {},
            volume_capability=volume_capability(mode),
            readonly=True,
        )
        self._call(self.node.NodePublishVolume, request)

    def unpublish(self, volume_id: str, target: str) -> None:
        """Call NodeUnpublishVolume."""
        self._call(
            self.node.NodeUnpublishVolume,
            pb.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=target),
        )

    def unstage(self, volume_id: str, staging: str) -> None:
        """Call NodeUnstageVolume."""
        self._call(
            self.node.NodeUnstageVolume,
            pb.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=staging),
        )

    def get_stats(self, volume_id: str, path: str) -> pb.NodeGetVolumeStatsResponse:
        """Call NodeGetVolumeStats."""
        return self._call(
            self.node.NodeGetVolumeStats, pb.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=path)
        )

    def _call(self, method: Callable[..., _T], request: Any) -> _T:
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            kind = _KINDS.get(error.code(), DataCacheError)
            raise kind(error.details() or error.code().name) from error
