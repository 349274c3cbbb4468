"""For all tests: no example of hypothesis fails for being slow, since a busy machine is no fault of the code.

Some tests are left to others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.apiserver import NODE, NOT_RUN, STRANGER, ApiServer, programs
from tests.origins import versitygw
from tests.origins.ganesha import rpcbind
from tests.origins.versitygw import ObjectServer
from tests.scratch import keep_to_a_disk

keep_to_a_disk()

# The modules that tests share say what was not equal, too.
pytest.register_assert_rewrite("tests.kernel", "tests.guest", "tests.cluster", "tests.plugins")

settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# What runs tests marked so says by the environment that it does; elsewhere they are left out.
_ELSEWHERE = {
    "guest": ("IN_TEST_GUEST", "systemd and cgroup v2 to themselves; make test-guest runs them"),
    "cluster": ("IN_TEST_CLUSTER", "a Kubernetes; make test-cluster runs them"),
}
_NOT_RUN = pytest.StashKey[dict[str, int]]()


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """One API server with the CRDs for all tests, and whatever other tests left in it."""
    if programs() is None:
        pytest.skip(NOT_RUN)
    with ApiServer([STRANGER, NODE]) as server:
        yield server


@pytest.fixture(scope="session")
def objects() -> Iterator[ObjectServer]:
    """One S3 server for all tests that ask for buckets of their own."""
    if why := versitygw.missing():
        pytest.skip(why)
    with ObjectServer() as server:
        yield server


@pytest.fixture
def cluster(api_server: ApiServer) -> ApiServer:
    """The API server, with no volume."""
    api_server.forget_volumes()
    return api_server


def pytest_configure(config: pytest.Config) -> None:
    """Where several processes run the tests, hold for all of them what the machine has but once: each
    would end it for the others."""
    if config.getoption("numprocesses", None) and os.geteuid() == 0 and shutil.which("rpcbind"):
        config.add_cleanup(rpcbind.keep())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests marked "guest" to the guest, and those marked "cluster" to the cluster.

    Several processes begin with the longest.
    """
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (item.path.name != "test_kills.py", "kernel" not in item.path.parts))
    left = [marker for marker, (variable, _) in _ELSEWHERE.items() if not os.environ.get(variable)]
    away = {marker: [item for item in items if item.get_closest_marker(marker)] for marker in left}
    config.stash[_NOT_RUN] = counts = {marker: len(found) for marker, found in away.items()}
    if hasattr(config, "workeroutput"):
        config.workeroutput["not_run"] = counts
    for found in filter(None, away.values()):
        config.hook.pytest_deselected(items=found)
        items[:] = [item for item in items if item not in found]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear what a process that ran tests for this one has left; each of them has seen all."""
    node.config.stash[_NOT_RUN] = getattr(node, "workeroutput", {}).get("not_run", {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left."""
    for marker, count in config.stash.get(_NOT_RUN, {}).items():
        if count:
            terminalreporter.write_line(f"NOT RUN here: {count} tests that need {_ELSEWHERE[marker][1]}")
