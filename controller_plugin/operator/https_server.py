"""HTTP servers of the operator, run in threads, with TLS certificates that can be replaced while they run."""

from __future__ import annotations

import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from controller_plugin.operator.certificates import Certificates
from csi.errors import FailedPrecondition

_START_TIMEOUT = 30.0


class ReloadableTls:
    """TLS of a server, version 1.2 or later, with the certificates loaded last."""

    def __init__(self, certificates: Certificates) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.load(certificates)

    def load(self, certificates: Certificates) -> None:
        """Use these certificates from the next connection on."""
        # The ssl module loads files only; this one is in memory, and removed at once.
        with tempfile.NamedTemporaryFile("w", dir=_memory_folder()) as file:
            file.write(certificates.key + certificates.certificate)
            file.flush()
            self.context.load_cert_chain(file.name)


def _memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def health_app() -> Starlette:
    """Build an application that reports that the program is alive."""

    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/healthz", answer), Route("/readyz", answer)])


def _build_server(app: Starlette, host: str, port: int, tls: ReloadableTls | None) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        loop="asyncio",
        http="h11",
    )
    config.load()
    if tls:
        config.ssl = tls.context
    server = uvicorn.Server(config)
    # Signals are handled by the program (csi.program.lifecycle), not by each of its servers.
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    return server


@contextmanager
def serve_app(app: Starlette, host: str, port: int, tls: ReloadableTls | None = None) -> Iterator[int]:
    """Serve `app` at `host`:`port` (0 for any free one) from a thread during the block, and give the port.

    Raises FailedPrecondition if the server cannot start.
    """
    server = _build_server(app, host, port, tls)
    ended, failed = threading.Event(), threading.Event()

    def run() -> None:
        try:
            server.run()
        except (OSError, SystemExit):
            failed.set()
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="http", daemon=True)
    thread.start()
    # uvicorn signals its start by a flag only.
    give_up_at = time.monotonic() + _START_TIMEOUT
    while not (server.started or ended.wait(0.02)) and time.monotonic() < give_up_at:
        pass
    if failed.is_set() or not server.started:
        server.should_exit = True
        raise FailedPrecondition(
            f"the server cannot listen at {host}:{port}; "
            "is the port taken, or the address of another machine?"
        )
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
