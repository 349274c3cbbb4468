"""Egress profiles: what fetches in one has its network's address and its rate, over HTTP and over NFS."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kernel.machine import MIB, Machine, content
from tests.kernel.networks import Network, network
from tests.origins.ganesha import Export, Ganesha
from tests.origins.web import WebServer

pytestmark = pytest.mark.kernel
SIZE = 24 * MIB
RATES = (60_000_000, 120_000_000)


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
        """Bits per second while the middle of a fill of SIZE went on."""
        first = next(sample for sample in self._seen if sample[1] > SIZE * 0.2)
        last = next(sample for sample in self._seen if sample[1] > SIZE * 0.9)
        return (last[1] - first[1]) * 8 / (last[0] - first[0])


@pytest.fixture(scope="module")
def networks() -> Iterator[list[Network]]:
    if shutil.which("ip") is None:
        pytest.skip(
            "egress profiles were not tried: the program ip (Debian package iproute2) is not installed"
        )
    with ExitStack() as stack:
        yield [stack.enter_context(network()) for _ in RATES]


@pytest.fixture
def machine(networks: list[Network], tmp_path: Path) -> Iterator[Machine]:
    flags = [
        f"--egress-profile=net{n}=netns:{one.path},rate:{rate // 1_000_000}mbit"
        for n, (one, rate) in enumerate(zip(networks, RATES, strict=True))
    ]
    flags.append("--egress-profile=gone=netns:/run/netns/datacache-test-not-there")
    with Machine(tmp_path, node=flags, controller=flags) as running:
        yield running


def test_http_goes_through_the_profiles_network_at_its_rate(
    machine: Machine, networks: list[Network], tmp_path: Path
) -> None:
    file = content(tmp_path / "data.bin", SIZE)
    for number, (one, rate) in enumerate(zip(networks, RATES, strict=True)):
        with WebServer(one.host) as web, Meter(one) as meter:
            web.files["/data.bin"] = file
            volume = machine.create(
                f"http{number}", {"url": f"{web.url}/data.bin", "egressProfile": f"net{number}"}
            )
            shown = machine.show(volume, f"http{number}")
        assert (shown / "data.bin").read_bytes() == file.read_bytes()
        assert web.clients == {one.address}
        print(f"HTTP at {rate / 1e6:.0f} Mbit/s: {meter.rate() / 1e6:.1f}")
        assert meter.rate() == pytest.approx(rate, rel=0.1)
        _take_away(machine, volume.volume_id, f"http{number}")


def test_nfs_goes_through_the_profiles_network_at_its_rate(machine: Machine, networks: list[Network]) -> None:
    for number, (one, rate) in enumerate(zip(networks, RATES, strict=True)):
        with tempfile.TemporaryDirectory(prefix="datacache-egress-") as folder:
            export = Path(folder)
            export.chmod(0o755)
            # Of another length each: an image that is there already would not be fetched.
            file = content(export / "data.bin", SIZE + number)
            # The server itself lets nobody else in.
            with Ganesha([Export(export, clients=one.address)], server=one.host) as nas, Meter(one) as meter:
                parameters = {
                    "server": one.host,
                    "path": folder,
                    "options": f"port={nas.port},mountport={nas.mount_port},timeo=100",
                }
                volume = machine.create(f"nfs{number}", parameters | {"egressProfile": f"net{number}"})
                shown = machine.show(volume, f"nfs{number}")
                assert (shown / "data.bin").read_bytes() == file.read_bytes()
        print(f"NFS at {rate / 1e6:.0f} Mbit/s: {meter.rate() / 1e6:.1f}")
        assert meter.rate() == pytest.approx(rate, rel=0.1)
        _take_away(machine, volume.volume_id, f"nfs{number}")


def test_a_limit_holds_without_a_network_of_its_own(tmp_path: Path) -> None:
    flags = ["--egress-profile=slow=rate:48mbit"]
    with WebServer() as web, Machine(tmp_path, node=flags, controller=flags) as machine:
        data = content(tmp_path / "data.bin", SIZE // 4)
        urls = [f"{web.url}/{number}.bin" for number in range(3)]
        web.files.update({f"/{number}.bin": data for number in range(3)})
        one_of_many = {"sources": json.dumps([{"folder": "slow", "url": urls[2], "bandwidthLimit": "6Mi"}])}
        for number, limited in enumerate(
            (
                {"url": urls[0], "bandwidthLimit": "6Mi"},
                {"url": urls[1], "egressProfile": "slow"},
                one_of_many,
            )
        ):
            volume = machine.create(f"limited{number}", limited)
            begun = time.monotonic()
            machine.show(volume, f"limited{number}")
            assert time.monotonic() - begun >= 0.9 * (SIZE // 4) / (6 * MIB), limited


def test_a_profile_that_is_not_known_or_whose_network_is_gone_is_said(
    machine: Machine, networks: list[Network]
) -> None:
    attributes = {"url": f"http://{networks[0].host}:1/x"}
    for profile, words in (
        ("nowhere", "known are net0, net1, gone"),
        ("gone", "/run/netns/datacache-test-not-there of an egress profile"),
    ):
        code, message = _refused(machine, attributes | {"egressProfile": profile})
        assert code == "FAILED_PRECONDITION" and words in message


def _refused(machine: Machine, parameters: dict[str, str]) -> tuple[str, str]:
    import grpc

    with pytest.raises(grpc.RpcError) as error:
        machine.create("refused", parameters)
    return error.value.code().name, error.value.details()


def _take_away(machine: Machine, volume_id: str, pod: str) -> None:
    machine.unpublish(pod, volume_id)
    machine.unstage(volume_id)
