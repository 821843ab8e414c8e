"""What every test stands on: clean settings, and the fixtures of `tests/fixtures/`."""

import os
import signal

import pytest

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


def pytest_configure(config: pytest.Config) -> None:
    """Forget the settings of the shell before anything reads them."""
    del config
    # A shell without job control has its background jobs, and their children, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in list(os.environ):
        if name.startswith(_LEAKING) or name.upper() in _PROXIES:
            del os.environ[name]
