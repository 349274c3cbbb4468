"""A real S3 server (versitygw over a folder) on loopback: `with ObjectServer() as server:
server.bucket({...})`."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from obstore.store import S3Store

from tests.origins.onc_rpc import wait_until

ADDRESS = "127.0.0.1"
DOMAIN = "s3.example"
"""Buckets are names below it too, for who reaches the server by such a name."""
ROOT_ID, ROOT_SECRET = "rootid", "rootsecret"
READER_ID, READER_SECRET = "readerid", "readersecret"
PROGRAM = shutil.which("versitygw", path=str(Path(sys.executable).parent)) or shutil.which("versitygw") or ""
_START_SECONDS, _STOP_SECONDS = 30.0, 10.0


def missing() -> str:
    """Why it cannot run here, in words; empty when it can."""
    return "" if PROGRAM else "versitygw is not installed (it is built with Go, which is not here)"


class ObjectServer:
    """The server, its buckets on disk or in `memory`.

    `reader` (READER_ID, READER_SECRET) is a user who may read what a bucket's policy lets them.
    """

    def __init__(self, memory: bool = False, address: str = ADDRESS) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="versitygw-", dir="/dev/shm" if memory else None))
        self.root = self._folder / "root"
        for name in ("root", "iam"):
            (self._folder / name).mkdir()
        self.address = address
        self.port, self._admin_port = _free_port(address), _free_port(address)
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0

    def __enter__(self) -> Self:
        self.start()
        self._admin("create-user", "--access", READER_ID, "--secret", READER_SECRET, "--role", "user")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:{self.port}"

    def start(self) -> None:
        """Start, or start again on the same port, and wait until it answers."""
        if self._process:
            return
        environment = {
            "ROOT_ACCESS_KEY": ROOT_ID,
            "ROOT_SECRET_KEY": ROOT_SECRET,
            "VGW_VIRTUAL_DOMAIN": DOMAIN,
            "PATH": "/usr/bin:/bin",
        }
        argv = [
            PROGRAM,
            "--port",
            f"{self.address}:{self.port}",
            "--admin-port",
            f"{self.address}:{self._admin_port}",
            "--keep-alive",
            "--quiet",
        ]
        argv += ["--iam-dir", str(self._folder / "iam"), "posix", str(self.root)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if not wait_until(
            lambda: _answers(self.address, self.port) and _answers(self.address, self._admin_port),
            _START_SECONDS,
        ):
            self.stop()
            raise RuntimeError(
                f"versitygw did not start; the end of its log:\n{(self._folder / 'log').read_text()[-2000:]}"
            )

    def stop(self) -> None:
        """Stop; buckets stay."""
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def bucket(self, files: dict[str, bytes], *, anonymous: bool = False) -> str:
        """A new bucket that the reader may list and read (anybody, where `anonymous`); returns its name."""
        self._count += 1
        name = f"bucket-{self._count}"
        self._curl("PUT", f"/{name}")
        self.allow(name, "s3:ListBucket", "s3:GetObject", principal="*" if anonymous else READER_ID)
        self.put(name, files)
        return name

    def put(self, bucket: str, files: dict[str, bytes]) -> None:
        """Write objects, through S3 itself: what lies in the folder by another way has no ETag."""
        store = self.store(bucket)
        for key, data in files.items():
            store.put(key, data)

    def allow(self, bucket: str, *actions: str, principal: str = READER_ID) -> None:
        """From now on `principal` may do `actions` in the bucket, and nothing else."""
        things = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
        statements = [
            {
                "Effect": "Allow",
                "Principal": principal if principal == "*" else {"AWS": [principal]},
                "Action": action,
                "Resource": resource,
            }
            for action in actions
            for resource in things[action == "s3:GetObject" :][:1]
        ]
        if statements:
            self._curl(
                "PUT", f"/{bucket}?policy=", json.dumps({"Version": "2012-10-17", "Statement": statements})
            )
        else:
            self._curl("DELETE", f"/{bucket}?policy=")

    def remove(self, bucket: str) -> None:
        """Take a bucket away with all that is in it."""
        shutil.rmtree(self.root / bucket)

    def store(self, bucket: str) -> S3Store:
        """A client of one bucket, with all rights."""
        options: dict[str, Any] = {"allow_http": True}
        return S3Store(
            bucket,
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=ROOT_ID,
            secret_access_key=ROOT_SECRET,
            virtual_hosted_style_request=False,
            client_options=options,
        )

    def _admin(self, *words: str) -> None:
        own = [
            "--access",
            ROOT_ID,
            "--secret",
            ROOT_SECRET,
            "--endpoint-url",
            f"http://{self.address}:{self._admin_port}",
        ]
        _run([PROGRAM, "admin", *own, *words])

    def _curl(self, method: str, path: str, body: str = "") -> None:
        digest = hashlib.sha256(body.encode()).hexdigest()
        signed = [
            "--aws-sigv4",
            "aws:amz:us-east-1:s3",
            "--user",
            f"{ROOT_ID}:{ROOT_SECRET}",
            "-H",
            f"x-amz-content-sha256: {digest}",
        ]
        _run(
            [
                "curl",
                "-sS",
                "--fail-with-body",
                "-X",
                method,
                *signed,
                *(["--data-binary", body] if body else []),
                self.endpoint + path,
            ]
        )


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{argv[0]} failed ({done.returncode}): {done.stdout}{done.stderr}"


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _answers(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((address, port)) == 0
