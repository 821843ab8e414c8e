"""`overnight simulate` as a process."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_prints_its_url_serves_and_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "witness.log"
    command = [sys.executable, "-m", "cli.main", "simulate", "--port", "0", "--log", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            body = {"model": "m", "prompt": "Hello"}
            answer = httpx.post(f"{url}/completions", json=body, headers={"idempotency-key": "k"})
            assert answer.status_code == 200
            process.send_signal(number)
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert log.read_text().endswith("\tk\t200\n")


def test_nonsense_is_a_usage_error() -> None:
    command = [sys.executable, "-m", "cli.main", "simulate", "--error-rate", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert "error_rate must be a probability" in done.stderr


def test_taken_port_is_said_plainly() -> None:
    command = [sys.executable, "-m", "cli.main", "simulate", "--port"]
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            port = str(httpx.URL(first.stdout.readline().strip()).port)
            second = subprocess.run(
                [*command, port], capture_output=True, text=True, check=False, timeout=30
            )
        finally:
            first.terminate()
    assert second.returncode == 1
    assert "cannot start" in second.stderr
