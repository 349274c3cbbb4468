"""Fills through egress profiles and bandwidth limits: what comes beside the rate that it may come at."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

from tests.benchmarks.rounds import seconds
from tests.benchmarks.table import Series, Table, at_most
from tests.benchmarks.throttled import within
from tests.benchmarks.volume import Setting
from tests.kernel.machine import MIB, Machine, content
from tests.kernel.networks import Network, network
from tests.kernel.test_egress import RATES, SIZE, limited_volumes, profiles
from tests.origins.ganesha import Export, Ganesha
from tests.origins.web import WebServer


class Meter(threading.Thread):
    """Looks at what a network's rate lets on, ten times a second."""

    def __init__(self, watched: Network) -> None:
        super().__init__(daemon=True)
        self._watched, self._ended = watched, threading.Event()
        self._seen: list[tuple[float, int]] = []
        self._before = watched.let_on()

    def __enter__(self) -> Meter:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.1):
            before = time.monotonic()
            count = self._watched.let_on() - self._before
            self._seen.append(((before + time.monotonic()) / 2, count))

    def rate(self) -> float:
        """Mbit/s while the middle of a fill of SIZE went on."""
        first = next(sample for sample in self._seen if sample[1] > SIZE * 0.2)
        last = next(sample for sample in self._seen if sample[1] > SIZE * 0.9)
        return (last[1] - first[1]) * 8e-6 / (last[0] - first[0])


def measure(setting: Setting) -> list[Table]:
    """Mbit/s, one fill of 24 MiB each."""
    return [_profiles(setting), _limits(setting)]


def _profiles(setting: Setting) -> Table:
    table = Table("Fills through the networks of egress profiles", "Mbit/s", 1)
    folder = setting.folder / "profiles"
    export = folder / "export"
    export.mkdir(parents=True)
    export.chmod(0o755)
    with ExitStack() as stack:
        networks = [stack.enter_context(network()) for _ in RATES]
        flags = profiles(networks)
        machine = stack.enter_context(Machine(folder, node=flags, controller=flags))
        for number, (one, rate) in enumerate(zip(networks, RATES, strict=True)):
            # Of another length each: an image that is there already would not be fetched.
            file = content(export / "data.bin", SIZE + 2 * number)
            with WebServer(one.host) as web:
                web.files["/data.bin"] = file
                parameters = {"url": f"{web.url}/data.bin", "egressProfile": f"net{number}"}
                within(table, "HTTP", _rate(machine, one, f"http{number}", parameters), rate / 1e6, 0.1)
            content(export / "data.bin", SIZE + 2 * number + 1)
            with Ganesha([Export(export, clients=one.address)], server=one.host) as nas:
                options = f"port={nas.port},mountport={nas.mount_port},timeo=100"
                parameters = {
                    "server": one.host,
                    "path": str(export),
                    "options": options,
                    "egressProfile": f"net{number}",
                }
                within(table, "NFS", _rate(machine, one, f"nfs{number}", parameters), rate / 1e6, 0.1)
    return table


def _rate(machine: Machine, through: Network, name: str, parameters: dict[str, str]) -> float:
    with Meter(through) as meter:
        volume = machine.create(name, parameters)
        machine.show(volume, name)
    machine.unpublish(name, volume.volume_id)
    machine.unstage(volume.volume_id)
    return meter.rate()


def _limits(setting: Setting) -> Table:
    table = Table("Fills at 6 MiB/s without a network of their own", "MiB/s", 2)
    flags, folder = ["--egress-profile=slow=rate:48mbit"], setting.folder / "limits"
    folder.mkdir()
    with WebServer() as web, Machine(folder, node=flags, controller=flags) as machine:
        for name, parameters in limited_volumes(web, content(folder / "data.bin", SIZE)).items():
            volume = machine.create(name, parameters)
            taken = seconds(lambda volume=volume, name=name: machine.show(volume, name))
            table.row(name, Series((SIZE / MIB / taken,)), at_most(6.6, " MiB/s"))
            machine.unpublish(name, volume.volume_id)
            machine.unstage(volume.volume_id)
    return table
