"""Telling kubelet where the driver's socket is, as its own sidecar would: a socket in the folder that kubelet watches."""

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

_TYPE, _VERSIONS = "CSIPlugin", ("1.0.0",)
_MAX_THREADS = 2
_KUBELET_TIMEOUT = 60.0


class RegistrationServicer(registration_pb2_grpc.RegistrationServicer):
    """Answers kubelet: the driver `name` is at `endpoint`, a path of the host. `refused` is told why kubelet did not take it."""

    def __init__(self, name: str, endpoint: str, refused: Callable[[str], None]) -> None:
        self._info = pb.PluginInfo(type=_TYPE, name=name, endpoint=endpoint, supported_versions=_VERSIONS)
        self._asked, self._refused = False, refused

    def GetInfo(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.PluginInfo:
        """What the plugin is."""
        self._asked = True
        return self._info

    def warn_unasked(self, path: str) -> None:
        """Say so where kubelet has not come to `path` yet."""
        if not self._asked:
            fields = {"socket": path, "reason": "is --plugins-registry kubelet's own folder, seen from here?"}
            log.warning("kubelet has not asked for the driver", extra={"fields": fields})

    def NotifyRegistrationStatus(
        self, request: pb.RegistrationStatus, context: grpc.ServicerContext
    ) -> pb.RegistrationStatusResponse:
        """kubelet asks again by itself where it did not register the plugin; the log and people are told why it did not."""
        if request.plugin_registered:
            log.info("registered with kubelet", extra={"fields": {"driver": self._info.name}})
        else:
            log.error(
                "kubelet did not register the driver",
                extra={"fields": {"driver": self._info.name, "reason": request.error}},
            )
            self._refused(request.error)
        return pb.RegistrationStatusResponse()


@contextmanager
def serve_registration(
    folder: str, name: str, endpoint: str, on_refused: Callable[[str], None] = lambda reason: None
) -> Iterator[None]:
    """Be found by kubelet for the block: `folder` is its folder of plugins (plugins_registry) as seen here, all else as for the servicer.

    When the block ends kubelet forgets the driver until the next one. Raises AlreadyExists where another plugin of the name answers,
    FailedPrecondition where there is no such folder. Where kubelet does not come, the log says so.
    """
    if not os.path.isdir(folder):
        raise FailedPrecondition(
            f"--plugins-registry is {folder}, and there is no such folder; mount kubelet's plugins_registry there"
        )
    path, servicer = f"{folder}/{name}-reg.sock", RegistrationServicer(name, endpoint, on_refused)
    server = grpc_server.start_server(
        path,
        _MAX_THREADS,
        lambda server: registration_pb2_grpc.add_RegistrationServicer_to_server(servicer, server),
    )
    os.chmod(path, 0o600)
    unasked_timer = threading.Timer(_KUBELET_TIMEOUT, servicer.warn_unasked, [path])
    unasked_timer.daemon = True
    unasked_timer.start()
    try:
        yield
    finally:
        unasked_timer.cancel()
        with suppress(FileNotFoundError):
            os.unlink(path)
        server.stop(None).wait()
