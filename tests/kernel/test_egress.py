"""Egress profiles: what fetches in one has its network's address and goes through its rate, over HTTP and
over NFS.

How fast that is `make bench` measures (egress_rates).
"""

from __future__ import annotations

import json
import shutil
import tempfile
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


@pytest.fixture(scope="module")
def networks() -> Iterator[list[Network]]:
    if shutil.which("ip") is None:
        pytest.skip(
            "egress profiles were not tried: the program ip (Debian package iproute2) is not installed"
        )
    with ExitStack() as stack:
        yield [stack.enter_context(network()) for _ in RATES]


def profiles(networks: list[Network]) -> list[str]:
    """The flags that make each of `networks` a profile, at its rate of RATES."""
    return [
        f"--egress-profile=net{n}=netns:{one.path},rate:{rate // 1_000_000}mbit"
        for n, (one, rate) in enumerate(zip(networks, RATES, strict=True))
    ]


@pytest.fixture
def machine(networks: list[Network], tmp_path: Path) -> Iterator[Machine]:
    flags = profiles(networks)
    flags.append("--egress-profile=gone=netns:/run/netns/datacache-test-not-there")
    with Machine(tmp_path, node=flags, controller=flags) as running:
        yield running


def test_http_goes_through_the_profiles_network_at_its_rate(
    machine: Machine, networks: list[Network], tmp_path: Path
) -> None:
    file = content(tmp_path / "data.bin", SIZE)
    for number, (one, rate) in enumerate(zip(networks, RATES, strict=True)):
        before = one.let_on()
        with WebServer(one.host) as web:
            web.files["/data.bin"] = file
            volume = machine.create(
                f"http{number}", {"url": f"{web.url}/data.bin", "egressProfile": f"net{number}"}
            )
            shown = machine.show(volume, f"http{number}")
        assert (shown / "data.bin").read_bytes() == file.read_bytes()
        assert web.clients == {one.address}
        assert one.rate() == rate
        assert one.let_on() - before > SIZE
        _take_away(machine, volume.volume_id, f"http{number}")


def test_nfs_goes_through_the_profiles_network_at_its_rate(machine: Machine, networks: list[Network]) -> None:
    for number, (one, rate) in enumerate(zip(networks, RATES, strict=True)):
        with tempfile.TemporaryDirectory(prefix="datacache-egress-") as folder:
            export = Path(folder)
            export.chmod(0o755)
            # Of another length each: an image that is there already would not be fetched.
            file = content(export / "data.bin", SIZE + number)
            # The server itself lets nobody else in.
            before = one.let_on()
            with Ganesha([Export(export, clients=one.address)], server=one.host) as nas:
                parameters = {
                    "server": one.host,
                    "path": folder,
                    "options": f"port={nas.port},mountport={nas.mount_port},timeo=100",
                }
                volume = machine.create(f"nfs{number}", parameters | {"egressProfile": f"net{number}"})
                shown = machine.show(volume, f"nfs{number}")
                assert (shown / "data.bin").read_bytes() == file.read_bytes()
        assert one.rate() == rate
        assert one.let_on() - before > SIZE
        _take_away(machine, volume.volume_id, f"nfs{number}")


def test_what_is_limited_without_a_network_of_its_own_comes_whole(tmp_path: Path) -> None:
    flags = ["--egress-profile=slow=rate:48mbit"]
    with WebServer() as web, Machine(tmp_path, node=flags, controller=flags) as machine:
        data = content(tmp_path / "data.bin", SIZE // 4)
        for name, limited in limited_volumes(web, data).items():
            shown = machine.show(machine.create(name, limited), name)
            (file,) = (path for path in shown.rglob("*") if path.is_file())
            assert file.read_bytes() == data.read_bytes(), name


def limited_volumes(web: WebServer, file: Path) -> dict[str, dict[str, str]]:
    """Volumes of `file` that may come at 6 MiB/s, or at what the profile "slow" says."""
    names = ("bandwidth", "profile", "one-of-many")
    web.files.update({f"/{name}.bin": file for name in names})
    urls = {name: f"{web.url}/{name}.bin" for name in names}
    return {
        "bandwidth": {"url": urls["bandwidth"], "bandwidthLimit": "6Mi"},
        "profile": {"url": urls["profile"], "egressProfile": "slow"},
        "one-of-many": {
            "sources": json.dumps([{"folder": "slow", "url": urls["one-of-many"], "bandwidthLimit": "6Mi"}])
        },
    }


def test_a_profile_that_is_not_known_or_whose_network_is_gone_is_said(
    machine: Machine, networks: list[Network]
) -> None:
    attributes = {"url": f"http://{networks[0].host}:1/x"}
    for profile, words in (
        ("nowhere", "known are net0, net1, gone"),
        ("gone", "/run/netns/datacache-test-not-there of an egress profile"),
    ):
        code, message = _refused(machine, attributes | {"egressProfile": profile})
        assert code == "FAILED_PRECONDITION"
        assert words in message


def _refused(machine: Machine, parameters: dict[str, str]) -> tuple[str, str]:
    import grpc

    with pytest.raises(grpc.RpcError) as error:
        machine.create("refused", parameters)
    return error.value.code().name, error.value.details()


def _take_away(machine: Machine, volume_id: str, pod: str) -> None:
    machine.unpublish(pod, volume_id)
    machine.unstage(volume_id)
