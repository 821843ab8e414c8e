"""What every test stands on: clean settings, and the fixtures of `tests/fixtures/`."""

import os
import signal
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # has no types

pytest_plugins = [
    "tests.fixtures.database",
    "tests.fixtures.broker",
    "tests.fixtures.upstream",
    "tests.fixtures.client",
    "tests.fixtures.engine",
    "tests.fixtures.runtime",
]

# Settings of whoever runs the tests, and proxies between a test and its own server.
_LEAKING = ("OVERNIGHT_", "OPENAI_", "LITELLM_", "FORWARDED_ALLOW_IPS")
_PROXIES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}


# The tests of these share what is expensive to start: an engine takes ten seconds of processor time.
_SHARED = {
    "test_browser.py": "engine",
    "test_end_to_end.py": "engine",
    "test_extensions.py": "engine",
    "test_guides.py": "engine",
    "test_up.py": "engine",
    "test_chaos.py": "engine of chaos",
    "test_one_result_a_line.py": "engine that is killed",
    "test_failpoints.py": "nodes that die",
    "test_webhooks.py": "engine with webhooks",
    "test_kit.py": "engine of the kit",
}


class _Schedule(LoadScopeScheduling):  # type: ignore[misc]  # the same
    """Each test goes to the next free process; those that share an engine go to one, and first."""

    def _split_scope(self, nodeid: str) -> str:
        return _SHARED.get(nodeid.partition("::")[0].rpartition("/")[2], nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Schedule:
    """Distribute tests over processes as above."""
    return _Schedule(config, log)


def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores for `-n auto`: much of a whole engine's test is waiting."""
    return (os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Forget the settings of the shell before anything reads them."""
    del config
    # A shell without job control has its background jobs, and their children, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in list(os.environ):
        if name.startswith(_LEAKING) or name.upper() in _PROXIES:
            del os.environ[name]
