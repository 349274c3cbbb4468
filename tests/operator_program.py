"""datacache-operator as a process of its own, as a test wants it: `with OperatorProgram(folder, ...) as
operator`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.origins.onc_rpc import free_port, wait_until
from tests.plugins import LOOPBACK, children_of

_PROGRAM = Path(sys.executable).parent / "datacache-operator"
_STOP_SECONDS = 60.0


class OperatorProgram:
    """The operator over the registry `registry`, with an API for the access `keys`; `port` is the API's."""

    def __init__(
        self,
        folder: Path,
        registry: str,
        keys: Mapping[str, str],
        environment: Mapping[str, str],
        *flags: str,
    ) -> None:
        self.log, self.port = folder / "operator.log", free_port()
        self._keys, self._values = folder / "api-keys", keys
        api = ["--api-address", f"127.0.0.1:{self.port}", "--api-keys", str(self._keys)]
        self._command = [
            str(_PROGRAM),
            "--registry",
            registry,
            "--state-dir",
            str(folder / "operator-state"),
            *api,
            *flags,
        ]
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> OperatorProgram:
        self._keys.mkdir(mode=0o700, exist_ok=True)
        for name, secret in self._values.items():
            (self._keys / name).write_text(secret)
        self.start()
        return self

    def start(self) -> None:
        """Start it and return when it has started."""
        begun = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            environment = {**os.environ, **LOOPBACK, **self._environment}
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        assert wait_until(lambda: self._is_at_work(begun), 30), self.text()

    def _is_at_work(self, begun: int) -> bool:
        assert self.process
        assert self.process.poll() is None, self.text()
        return "operator started" in self.text()[begun:]

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.process
        return self.process.pid

    def processes(self) -> list[int]:
        """Its process id and those of its workers."""
        return [self.pid, *children_of(self.pid)]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(_STOP_SECONDS) == 0, self.text()[-4000:]
