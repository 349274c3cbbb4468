"""For all tests: no example of hypothesis fails for being slow, since a busy machine is no fault of the code; what needs the guest is left to it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.apiserver import NODE, NOT_RUN, STRANGER, ApiServer, programs

# The modules that tests share say what was not equal, too.
pytest.register_assert_rewrite("tests.kernel", "tests.guest", "tests.plugins")

settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

_NOT_RUN = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """One API server with the CRDs for all tests, and whatever other tests left in it."""
    if programs() is None:
        pytest.skip(NOT_RUN)
    with ApiServer([STRANGER, NODE]) as server:
        yield server


@pytest.fixture
def cluster(api_server: ApiServer) -> ApiServer:
    """The API server, with no volume."""
    api_server.forget_volumes()
    return api_server


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests marked "guest" to the guest."""
    away = [] if os.environ.get("IN_TEST_GUEST") else [item for item in items if item.get_closest_marker("guest")]
    config.stash[_NOT_RUN] = len(away)
    if away:
        config.hook.pytest_deselected(items=away)
        items[:] = [item for item in items if item not in away]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left."""
    if count := config.stash.get(_NOT_RUN, 0):
        terminalreporter.write_line(f"NOT RUN here: {count} tests that need systemd and cgroup v2 to themselves; make test-guest runs them")
