"""Registration of the driver with kubelet, as the sidecar node-driver-registrar does it.

A socket in the folder that kubelet watches answers with the path of the driver's own socket.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import grpc

from csi.errors import FailedPrecondition
from csi.pb import registration_pb2 as pb
from csi.pb import registration_pb2_grpc
from csi.server import grpc_server

log = logging.getLogger("datacache.registration")

# Plugin type and CSI versions, as kubelet's plugin watcher checks them.
_TYPE, _VERSIONS = "CSIPlugin", ("1.0.0",)
_MAX_THREADS = 2
# Seconds without a call of kubelet after which a warning is logged.
_KUBELET_TIMEOUT = 60.0


class RegistrationServicer(registration_pb2_grpc.RegistrationServicer):
    """Registration service: the driver `name` is at `endpoint`, a path on the host.

    `on_refused` gets the reason if kubelet does not register it.
    """

    def __init__(self, name: str, endpoint: str, on_refused: Callable[[str], None]) -> None:
        self._info = pb.PluginInfo(type=_TYPE, name=name, endpoint=endpoint, supported_versions=_VERSIONS)
        self._has_been_called = False
        self._on_refused = on_refused

    def GetInfo(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.PluginInfo:
        """Return the driver's name, endpoint and supported CSI versions."""
        self._has_been_called = True
        return self._info

    def warn_if_not_called(self, path: str) -> None:
        """Log a warning if kubelet has not called the socket at `path` yet."""
        if not self._has_been_called:
            fields = {"socket": path, "reason": "check that --plugins-registry is kubelet's own folder"}
            log.warning("no registration call from kubelet yet", extra={"fields": fields})

    def NotifyRegistrationStatus(
        self, request: pb.RegistrationStatus, context: grpc.ServicerContext
    ) -> pb.RegistrationStatusResponse:
        """Log the result, and pass a refusal to `on_refused`; kubelet retries by itself."""
        if request.plugin_registered:
            log.info("registered with kubelet", extra={"fields": {"driver": self._info.name}})
        else:
            fields = {"driver": self._info.name, "reason": request.error}
            log.error("kubelet did not register the driver", extra={"fields": fields})
            self._on_refused(request.error)
        return pb.RegistrationStatusResponse()


@contextmanager
def serve_registration(
    folder: str, name: str, endpoint: str, on_refused: Callable[[str], None] = lambda reason: None
) -> Iterator[None]:
    """Offer the driver to kubelet for the block; when it ends, kubelet unregisters the driver.

    `folder` is kubelet's plugins_registry as mounted here; the other arguments are those of the servicer.
    Raises AlreadyExists if another plugin of that name answers there, FailedPrecondition if the folder does
    not exist. Logs a warning if kubelet does not call.
    """
    if not os.path.isdir(folder):
        raise FailedPrecondition(
            f"--plugins-registry is {folder}, which is not a folder; mount kubelet's plugins_registry there"
        )
    path = f"{folder}/{name}-reg.sock"
    servicer = RegistrationServicer(name, endpoint, on_refused)
    server = grpc_server.start_server(
        path,
        _MAX_THREADS,
        lambda server: registration_pb2_grpc.add_RegistrationServicer_to_server(servicer, server),
    )
    # Nobody but kubelet, which runs as root, has to call it.
    os.chmod(path, 0o600)
    warning_timer = threading.Timer(_KUBELET_TIMEOUT, servicer.warn_if_not_called, [path])
    warning_timer.daemon = True
    warning_timer.start()
    try:
        yield
    finally:
        warning_timer.cancel()
        with suppress(FileNotFoundError):
            os.unlink(path)
        server.stop(None).wait()
