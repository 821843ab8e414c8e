"""The loops, each run in a process of its own over an input file."""

import sys
from importlib import metadata
from pathlib import Path

from benchmarks.processes import run_program
from benchmarks.yardsticks.environments import environment
from benchmarks.yardsticks.outcome import Outcome

OPENAI_LOOP = Path(__file__).with_name("openai_loop.py")


def bare_loop(source: Path, base_url: str, *, in_flight: int) -> Outcome:
    """Nothing but aiohttp, uvloop and orjson."""
    argv = [sys.executable, "-m", "benchmarks.yardsticks.bare_loop"]
    return _run(f"a bare loop, {in_flight} in flight", argv, source, base_url, in_flight)


def openai_loop(
    source: Path, base_url: str, *, in_flight: int, use_aiohttp: bool = False
) -> Outcome:
    """The official client, of the version that this project is tested with."""
    version = metadata.version("openai")
    programs = environment("openai", f"openai[aiohttp]=={version}")
    argv = [str(programs / "python"), str(OPENAI_LOOP)]
    options = ["--aiohttp"] if use_aiohttp else []
    transport = " on aiohttp" if use_aiohttp else ""
    name = f"AsyncOpenAI {version}{transport}, {in_flight} in flight"
    return _run(name, argv, source, base_url, in_flight, *options)


def _run(
    name: str, argv: list[str], source: Path, base_url: str, in_flight: int, *options: str
) -> Outcome:
    target = source.with_suffix(".out")
    measured = run_program(
        *argv, str(source), base_url, str(target), "--in-flight", str(in_flight), *options
    )
    target.unlink()
    return Outcome(
        name=name,
        lines_per_second=measured["lines_per_second"],
        cpu_ms_a_line=1000 * measured["cpu_seconds"] / measured["lines"],
        peak_mb=measured["peak_rss_mb"],
    )
