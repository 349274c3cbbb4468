"""Fills from every kind of origin over a network of 400 MB/s: what there is, is used."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from pyroute2 import netns

from tests.benchmarks.contents import make
from tests.benchmarks.fill_from_nas import nas_parameters
from tests.benchmarks.nginx import Nginx
from tests.benchmarks.origins import in_memory
from tests.benchmarks.race import fill
from tests.benchmarks.rounds import command, interleaved, say, seconds
from tests.benchmarks.table import Series, Table, at_least
from tests.benchmarks.volume import Setting, hub_parameters
from tests.origins import versitygw
from tests.origins.ganesha import Export, Ganesha
from tests.origins.hub import Hub
from tests.origins.modelscope import ModelScopeHub
from tests.origins.versitygw import ROOT_ID, ROOT_SECRET, ObjectServer

LIMIT = 400e6


@dataclass(frozen=True)
class _Origin:
    """How a volume names it."""

    parameters: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)


def measure(setting: Setting) -> Iterator[Table]:
    """One file, in memory at the origin.

    The loopback of a network namespace of its own lets LIMIT bytes a second on, all connections together.
    """
    with _network(LIMIT), ExitStack() as stack:
        origins = _origins(stack, setting)
        size = setting.total / 1e6
        url = origins["URL"].parameters["url"]
        measures = {
            name: lambda origin=origin: size / _seconds(setting, origin) for name, origin in origins.items()
        }
        figures = interleaved(setting.rounds, {"curl": lambda: size / _curl(url), **measures})
        table = Table(f"Fill, 1 file, {size / 1e3:.1f} GB, over a network of {LIMIT / 1e6:.0f} MB/s", "MB/s")
        table.row("curl, to nowhere", figures.pop("curl"))
        limit = Series((LIMIT / 1e6,) * setting.rounds)
        for name, series in figures.items():
            table.compare(f"NodeStage, {name}", series, [("the limit", limit, at_least(0.9))])
        yield table


def _seconds(setting: Setting, origin: _Origin) -> float:
    return fill(setting, origin.parameters, origin.environment, origin.secrets).seconds


def _curl(url: str) -> float:
    return seconds(lambda: command(["curl", "-sSf", "-o", "/dev/null", url]))


def _origins(stack: ExitStack, setting: Setting) -> dict[str, _Origin]:
    """Every kind, all with the same file."""
    say("making a file")
    root = stack.enter_context(in_memory("limited"))
    files = make(root / "org" / "one", "one", setting.total)
    nginx = stack.enter_context(Nginx(root))
    hub = stack.enter_context(Hub(cdn_base=nginx.base))
    hub.repo("org/one", files, digests=root / ".hub-digests")
    modelscope = stack.enter_context(ModelScopeHub(redirect_over=1, store_base=nginx.base))
    modelscope.repo("org/one", files)
    nas = stack.enter_context(Ganesha([Export(root, attribute_seconds=60)]))
    (path,) = files.values()
    origins = {
        "Hugging Face": _Origin(hub_parameters("org/one"), {"HF_ENDPOINT": hub.endpoint}),
        "ModelScope": _Origin(
            {"repoSource": "ModelScope/Model", "repoId": "org/one"},
            {"MODELSCOPE_ENDPOINT": modelscope.endpoint},
        ),
        "URL": _Origin({"type": "URL", "url": f"{nginx.base}/org/one/{path.name}"}),
        "NAS": _Origin(nas_parameters(nas, root / "org")),
    }
    if why := versitygw.missing():
        say(f"S3 is left out: {why}")
        return origins
    store = stack.enter_context(ObjectServer(memory=True))
    bucket = store.bucket({})
    os.link(path, store.root / bucket / path.name)
    keys = {"accessKeyId": ROOT_ID, "secretAccessKey": ROOT_SECRET}
    return {
        **origins,
        "S3": _Origin(
            {"type": "S3", "endpoint": store.endpoint, "bucket": bucket, "pathStyle": "true"}, secrets=keys
        ),
    }


@contextmanager
def _network(rate: float) -> Iterator[None]:
    """This process, and what it starts, in a network namespace whose loopback has `rate` bytes a second.

    Gone afterwards.
    """
    name = f"datacache-bench-{os.getpid()}"
    netns.create(name)
    try:
        netns.pushns(name)
        try:
            # With a loopback alone resolvers take no address for one of this machine (AI_ADDRCONFIG), and
            # nfs-ganesha does not start.
            other = (
                "ip link add other type veth peer name another",
                "ip addr add 198.18.0.1/32 dev other",
                "ip link set other up",
            )
            for words in (
                *other,
                "ip link set lo up",
                f"tc qdisc add dev lo root tbf rate {int(rate * 8)} burst 2mb limit 16mb",
            ):
                subprocess.run(words.split(), check=True)
            yield
        finally:
            netns.popns()
    finally:
        netns.remove(name)
