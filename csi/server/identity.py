"""CSI's Identity service, the same for both plugins."""

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
    """Says who the plugin is and that it is alive. `healthy` is asked on each Probe and raises an error of csi.errors where it is not."""

    def __init__(self, driver_name: str, healthy: Callable[[], None] = lambda: None) -> None:
        self._driver_name = driver_name
        self._healthy = healthy

    def GetPluginInfo(
        self, request: pb.GetPluginInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetPluginInfoResponse:
        """The driver's name and version."""
        return pb.GetPluginInfoResponse(name=self._driver_name, vendor_version=__version__)

    def GetPluginCapabilities(
        self, request: pb.GetPluginCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.GetPluginCapabilitiesResponse:
        """The plugin's capabilities."""
        services = (
            pb.PluginCapability(service=pb.PluginCapability.Service(type=kind)) for kind in _CAPABILITIES
        )
        return pb.GetPluginCapabilitiesResponse(capabilities=services)

    def Probe(self, request: pb.ProbeRequest, context: grpc.ServicerContext) -> pb.ProbeResponse:
        """Ready at once: long work is in the background, and a `ready=false` would have the plugin restarted."""
        self._healthy()
        reply = pb.ProbeResponse()
        reply.ready.value = True
        return reply
