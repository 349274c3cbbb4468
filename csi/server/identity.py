"""CSI's Identity service, shared by both plugins."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from csi import __version__
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc

_CAPABILITIES = (
    pb.PluginCapability.Service.CONTROLLER_SERVICE,
    pb.PluginCapability.Service.VOLUME_ACCESSIBILITY_CONSTRAINTS,
)


class IdentityServicer(csi_pb2_grpc.IdentityServicer):
    """Identity service of a plugin.

    `healthy` is called on each Probe and raises an error of csi.errors if the plugin is not.
    """

    def __init__(self, driver_name: str, healthy: Callable[[], None] = lambda: None) -> None:
        self._driver_name = driver_name
        self._healthy = healthy

    def GetPluginInfo(
        self, request: pb.GetPluginInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetPluginInfoResponse:
        """Return the driver's name and version."""
        return pb.GetPluginInfoResponse(name=self._driver_name, vendor_version=__version__)

    def GetPluginCapabilities(
        self, request: pb.GetPluginCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.GetPluginCapabilitiesResponse:
        """Return the plugin's capabilities."""
        services = (
            pb.PluginCapability(service=pb.PluginCapability.Service(type=kind)) for kind in _CAPABILITIES
        )
        return pb.GetPluginCapabilitiesResponse(capabilities=services)

    def Probe(self, request: pb.ProbeRequest, context: grpc.ServicerContext) -> pb.ProbeResponse:
        """Report ready at once.

        Long work runs in the background, and kubelet would restart a plugin that reports `ready=false`.
        """
        self._healthy()
        reply = pb.ProbeResponse()
        reply.ready.value = True
        return reply
