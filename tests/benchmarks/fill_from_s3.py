"""A fill from an S3 store against s5cmd, the fastest of its clients, onto the same disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.benchmarks.contents import make
from tests.benchmarks.race import Race, Tool
from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table, at_least
from tests.benchmarks.volume import Setting
from tests.origins import versitygw
from tests.origins.versitygw import ROOT_ID, ROOT_SECRET, ObjectServer

_S5CMD = str(Path(sys.executable).parent / "s5cmd")


def measure(setting: Setting) -> Iterator[Table]:
    """The store's files are in memory.

    s5cmd at its default (256 workers, 5 parts a file) and with more parts. It checks no digest.
    """
    if versitygw.missing() or not Path(_S5CMD).exists():
        say(
            "left out: "
            f"{versitygw.missing() or 's5cmd is not installed (it is built with Go, which is not here)'}"
        )
        return
    for shape in ("one", "small"):
        with ObjectServer(memory=True) as server:
            say(f"making a bucket, {shape}")
            bucket = server.bucket({})
            files = make(server.root / bucket, shape, setting.total)
            yield _race(setting, server, bucket, files)


def _race(setting: Setting, server: ObjectServer, bucket: str, files: Mapping[str, Path]) -> Table:
    key = {"AWS_ACCESS_KEY_ID": ROOT_ID, "AWS_SECRET_ACCESS_KEY": ROOT_SECRET, "AWS_REGION": "us-east-1"}

    def s5cmd(*flags: str) -> Tool:
        argv = [_S5CMD, "--endpoint-url", server.endpoint, "cp", *flags, f"s3://{bucket}/*"]
        return Tool(lambda folder: [*argv, f"{folder}/"], lambda folder: key, at_least(1.0))

    parameters = {"type": "S3", "endpoint": server.endpoint, "bucket": bucket}
    secrets = {"accessKeyId": ROOT_ID, "secretAccessKey": ROOT_SECRET}
    tools = {"s5cmd": s5cmd(), "s5cmd, 16 parts of 16 MiB": s5cmd("--concurrency", "16", "--part-size", "16")}
    return Race("Fill from S3 (versitygw)", files, parameters, tools, secrets=secrets).run(setting)
