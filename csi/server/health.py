"""`GET /healthz` for kubelet's probes, which calls CSI's Probe on the plugin's own socket."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6

import grpc

from csi.errors import DataCacheError
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc
from csi.server.grpc_server import grpc_target

log = logging.getLogger("datacache.health")

_PATHS = ("/healthz", "/readyz")
PROBE_SECONDS = 5.0


class _HealthServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, endpoint: str) -> None:
        self.address_family = AF_INET6 if ":" in host else AF_INET
        super().__init__((host, port), _HealthHandler)
        self.channel = grpc.insecure_channel(grpc_target(endpoint))

    def probe(self) -> str:
        """Return why the plugin is not healthy, "" if it is."""
        try:
            reply = csi_pb2_grpc.IdentityStub(self.channel).Probe(pb.ProbeRequest(), timeout=PROBE_SECONDS)
        except grpc.RpcError as error:
            return f"Probe: {error.code().name} {error.details()}"
        return "" if reply.ready.value else "Probe: not ready"


class _HealthHandler(BaseHTTPRequestHandler):
    server: _HealthServer
    timeout = 2 * PROBE_SECONDS

    def do_GET(self) -> None:
        if self.path not in _PATHS:
            self.send_error(404)
            return
        reason = self.server.probe()
        if reason:
            log.warning("health check failed", extra={"fields": {"reason": reason}})
        body = (reason or "ok").encode()
        self.send_response(500 if reason else 200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: probes arrive every few seconds."""


@contextmanager
def serve_health(address: tuple[str, int] | None, endpoint: str) -> Iterator[int]:
    """Serve health checks on host and port (0 for any free one) during the block, and give the port.

    `endpoint` is the plugin's unix:// endpoint; without an `address` nothing is served. The reply is 200
    "ok", or 500 and the reason. Raises DataCacheError if the address cannot be bound.
    """
    if address is None:
        yield 0
        return
    host, port = address
    try:
        server = _HealthServer(host, port, endpoint)
    except OSError as error:
        raise DataCacheError(
            f"--health-address {host}:{port} cannot be served: {error.strerror or error}; choose another"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        server.channel.close()
