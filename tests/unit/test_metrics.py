"""Counts of calls, and those of several processes as one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from cli.console import UsageError
from cli.processes.metrics import served_metrics
from models import metrics
from models.metrics_folder import CountsFile, merged, named_folder
from models.telling import render
from models.upstreams import FlowLimits, ModelServer, Route, Upstreams
from worker.answer import Usage
from worker.flow.tally import CallTally, Tallies
from worker.metrics import _by_class
from worker.recorder import Row

SERVER = ModelServer(
    name="big",
    url="http://model/v1",
    call_timeout_seconds=1,
    connect_timeout_seconds=1,
    max_response_bytes=1,
)
UPSTREAMS = Upstreams(
    {"big": SERVER},
    default=SERVER,
    routes={"gpt-4o": Route(SERVER, "llama", FlowLimits()), "qwen": Route(SERVER)},
)


def samples(families: list[Metric]) -> dict[str, float]:
    """Every value, by its name and its labels' values."""
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(render(families).decode())
        for sample in family.samples
    }


def test_only_names_of_the_settings_become_labels() -> None:
    tallies = Tallies(UPSTREAMS)
    assert tallies.label_of("big", "llama") == ("big", "llama")
    assert tallies.label_of("big", "qwen") == ("big", "qwen")
    assert tallies.label_of("big", "gpt-4o") == ("big", "")
    assert tallies.of("big", "a client's own") is tallies.of("big", "another")
    assert set(tallies.by_label) == {("big", "")}


def test_calls_are_told_by_class() -> None:
    tally = CallTally()
    ends = (200, 201, 429, 404, 500, 503, 302, "upstream_timeout", "upstream_unreachable")
    for how in (*ends, "upstream_disconnected", "upstream_broken_answer", "internal_error"):
        tally.ended(how)
    assert _by_class(tally) == {
        "2xx": 2,
        "3xx": 1,
        "4xx": 1,
        "429": 1,
        "5xx": 2,
        "timeout": 1,
        "unreachable": 1,
        "disconnected": 1,
        "broken": 2,
    }


def test_recorded_lines_and_their_tokens() -> None:
    tally = CallTally()
    usage = Usage(input_tokens=10, cached_tokens=4, output_tokens=3)
    tally.recorded(
        [
            Row(1, succeeded=True, line=b"", usage=usage),
            Row(2, succeeded=False, line=b"", usage=Usage()),
        ]
    )
    assert (tally.succeeded, tally.failed) == (1, 1)
    assert (tally.input_tokens, tally.cached_tokens, tally.output_tokens) == (10, 4, 3)


def test_a_histogram_has_cumulative_buckets() -> None:
    tally = CallTally()
    for seconds in (0.01, 0.05, 0.2, 10_000):
        tally.took(seconds)
    family = metrics.UPSTREAM_DURATION.histogram_family(
        metrics.SLOW_SECONDS, [(("big", ""), tally.buckets, tally.seconds)]
    )
    found = samples([family])
    name = "overnight_upstream_call_duration_seconds"
    assert found[f"{name}_bucket 0.05  big"] == 2
    assert found[f"{name}_bucket 0.25  big"] == 3
    assert found[f"{name}_bucket 600.0  big"] == 3
    assert found[f"{name}_bucket +Inf  big"] == found[f"{name}_count  big"] == 4
    assert found[f"{name}_sum  big"] == 10_000.26


def told(*, lines: int, in_flight: int, limit: int) -> list[Metric]:
    label = ("big", "")
    return [
        metrics.LINES.family([((*label, "succeeded"), lines)]),
        metrics.UPSTREAM_IN_FLIGHT.family([(label, in_flight)]),
        metrics.UPSTREAM_LIMIT.family([(label, limit)]),
    ]


def test_processes_add_up_and_agree_on_what_they_share(tmp_path: Path) -> None:
    CountsFile(tmp_path).write(told(lines=5, in_flight=2, limit=32))
    found = samples(merged(tmp_path, told(lines=7, in_flight=3, limit=32)))
    assert found == {
        "overnight_lines_total  succeeded big": 12,
        "overnight_upstream_calls_in_flight  big": 5,
        "overnight_upstream_concurrency_limit  big": 32,
    }


def test_of_a_process_that_has_ended_the_counts_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    CountsFile(tmp_path).write(told(lines=5, in_flight=2, limit=32))
    (file,) = tmp_path.glob(f"{os.getpid()}-*")
    file.rename(tmp_path / f"{ended.pid}-of-the-dead.prom")
    found = samples(merged(tmp_path, told(lines=7, in_flight=3, limit=16)))
    assert found == {
        "overnight_lines_total  succeeded big": 12,
        "overnight_upstream_calls_in_flight  big": 3,
        "overnight_upstream_concurrency_limit  big": 16,
    }


def test_a_folder_that_is_gone_costs_counts_and_nothing_else(tmp_path: Path) -> None:
    file = CountsFile(tmp_path / "gone")
    file.write(told(lines=5, in_flight=2, limit=32))
    (tmp_path / f"{os.getpid()}-torn.prom").write_bytes(b"\xff overnight_lines_total{")
    assert merged(tmp_path) == []


def test_a_worker_serves_what_its_processes_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERNIGHT_METRICS_PORT", "0")
    with served_metrics() as port:
        # A child must neither serve, nor look for another place to write to.
        assert os.environ["OVERNIGHT_METRICS_PORT"] == ""
        folder = named_folder()
        assert folder is not None
        CountsFile(folder).write(told(lines=5, in_flight=2, limit=32))
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics").raise_for_status()
        assert (
            'overnight_lines_total{model="",outcome="succeeded",upstream="big"} 5.0' in answer.text
        )
    assert named_folder() is None
    assert not folder.exists()


def test_a_port_that_is_taken_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("OVERNIGHT_METRICS_PORT", str(taken.getsockname()[1]))
        with (
            pytest.raises(UsageError, match="set another OVERNIGHT_METRICS_PORT"),
            served_metrics(),
        ):
            pass


def test_names_follow_the_conventions() -> None:
    for name, metric in metrics.ALL.items():
        assert name.startswith("overnight_")
        assert name.endswith("_total") == (metric.kind == "counter")
        assert metric.kind != "histogram" or name.endswith("_seconds")
        assert not {"project", "batch", "tenant", "key", "user"} & set(metric.labels)
