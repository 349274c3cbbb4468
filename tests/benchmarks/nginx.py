"""nginx on loopback: the fastest origin there is here, for the bytes of a local hub's large files."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

from tests.origins.onc_rpc import free_port

_CONFIGURATION = """
daemon off; user root; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; client_body_temp_path {folder}/body;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


class Nginx:
    """Serves the files below `root`; `base` is its address.

    With `meek` it takes only the CPU that nobody else wants.
    """

    def __init__(self, root: Path, meek: bool = False) -> None:
        self.root, self._port, self._meek = root, free_port(), meek
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="nginx-"))
        path = self._folder / "nginx.conf"
        path.write_text(_CONFIGURATION.format(folder=self._folder, root=self.root, port=self._port))
        command = [
            *(["nice", "-n", "19"] if self._meek else []),
            "nginx",
            "-c",
            str(path),
            "-p",
            str(self._folder),
            "-e",
            str(self._folder / "error.log"),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while not self._answers():
            if time.monotonic() > end:
                raise RuntimeError(f"nginx did not start: {(self._folder / 'error.log').read_text()[-1000:]}")
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        try:
            urlopen(f"{self.base}/", timeout=2).close()
        except URLError as error:
            # An error status is an answer too.
            return hasattr(error, "code")
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process
        self._process.terminate()
        self._process.wait(10)
        shutil.rmtree(self._folder)
