"""Telling kubelet where the driver's socket is, as its own sidecar would: a socket in the folder that kubelet watches."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc

from csi import rpc
from csi.pb import registration_pb2 as pb
from csi.pb import registration_pb2_grpc

log = logging.getLogger("datacache.registration")

_TYPE, _VERSIONS = "CSIPlugin", ("1.0.0",)
_THREADS = 2


class RegistrationServicer(registration_pb2_grpc.RegistrationServicer):
    """Answers kubelet: the driver `name` is at `endpoint`, a path of the host."""

    def __init__(self, name: str, endpoint: str) -> None:
        self._info = pb.PluginInfo(type=_TYPE, name=name, endpoint=endpoint, supported_versions=_VERSIONS)

    def GetInfo(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.PluginInfo:
        """What the plugin is."""
        return self._info

    def NotifyRegistrationStatus(self, request: pb.RegistrationStatus, context: grpc.ServicerContext) -> pb.RegistrationStatusResponse:
        """kubelet asks again by itself where it did not register the plugin; the log says why it did not."""
        if request.plugin_registered:
            log.info("registered with kubelet", extra={"fields": {"driver": self._info.name}})
        else:
            log.error("kubelet did not register the driver", extra={"fields": {"driver": self._info.name, "reason": request.error}})
        return pb.RegistrationStatusResponse()


@contextmanager
def registered(folder: str, name: str, endpoint: str) -> Iterator[None]:
    """Be found by kubelet for the block: `folder` is its folder of plugins (plugins_registry) as seen here, `endpoint` as for the servicer.

    When the block ends kubelet forgets the driver until the next one. Raises AlreadyExists where another plugin of the name answers.
    """
    path = f"{folder}/{name}-reg.sock"
    server = rpc.listening(
        path, _THREADS, lambda server: registration_pb2_grpc.add_RegistrationServicer_to_server(RegistrationServicer(name, endpoint), server)
    )
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        server.stop(None).wait()
