"""The supervisor with small programs in the place of servers."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import supervisor as supervisor_module
from cli.childlog import ChildLog, LogFile
from cli.console import Terminal, UsageError
from cli.program import Program, child_environment
from cli.stopping import StopSignals
from cli.supervisor import Child, ChildGaveUp, Supervisor

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""
# Says its name when it is asked to stop, and takes a moment to do so.
POLITE = """
import signal, sys, time
def stop(*_):
    time.sleep(0.1)
    open(sys.argv[1], "a").write(sys.argv[2] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
print("up", flush=True)
time.sleep(60)
"""


class Listening(Terminal):
    """A terminal that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.shown: list[str] = []

    def say(self, text: str = "") -> None:
        self.said.append(text)

    def show_line(self, name: str, line: str) -> None:
        self.shown.append(f"{name}: {line}")


def program(name: str, code: str, *arguments: object, **options: object) -> Program:
    argv = (sys.executable, "-c", code, *(str(each) for each in arguments))
    return Program(name=name, argv=argv, env=dict(os.environ), **options)  # type: ignore[arg-type]  # forwarded


async def eventually(holds: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


async def until_up(child: Child) -> int:
    await eventually(lambda: "up" in child.log.recent())
    assert child.pid is not None
    return child.pid


def is_alive(pid: int) -> bool:
    """A zombie has ended; somebody just has not looked yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_a_child_that_is_killed_is_started_again() -> None:
    terminal = Listening()
    async with Supervisor(terminal=terminal) as supervisor:
        child = supervisor.start(program("sleeper", SLEEPER))
        first = await until_up(child)
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: child.pid != first)
        second = await until_up(child)
        assert is_alive(second)
    assert terminal.said == ["sleeper died (SIGKILL); starting it again."]
    assert not is_alive(second)


async def test_one_that_keeps_dying_ends_everything_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE_SECONDS", 0.001)
    other = 0

    async def supervise() -> None:
        nonlocal other
        async with Supervisor(terminal=Listening(), logs=tmp_path) as supervisor:
            other = await until_up(supervisor.start(program("other", SLEEPER)))
            supervisor.start(program("broken", "print('no disk'); raise SystemExit(7)"))
            await asyncio.Event().wait()

    with pytest.raises(ChildGaveUp) as caught:
        await supervise()
    assert "broken does not stay up (exit status 7)" in str(caught.value)
    assert str(caught.value).count("no disk") == 1
    assert str(tmp_path / "broken.log") in str(caught.value)
    assert (tmp_path / "broken.log").read_text().count("no disk") == 5
    assert not is_alive(other)


async def test_one_that_is_killed_at_its_start_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE_SECONDS", 0.001)
    code = """
import os, pathlib, sys, time
starts = pathlib.Path(sys.argv[1])
starts.open("a").write(".")
if len(starts.read_text()) <= 6:
    os.kill(os.getpid(), 9)
print("up", flush=True)
time.sleep(60)
"""
    async with Supervisor(terminal=Listening()) as supervisor:
        await until_up(supervisor.start(program("doomed", code, tmp_path / "starts")))


async def test_a_usage_error_is_not_tried_again() -> None:
    terminal = Listening()

    async def supervise() -> None:
        async with Supervisor(terminal=terminal) as supervisor:
            code = "print('overnight: OVERNIGHT_X is not set.'); raise SystemExit(2)"
            supervisor.start(program("misled", code))
            await asyncio.Event().wait()

    with pytest.raises(UsageError) as caught:
        await supervise()
    assert str(caught.value) == "OVERNIGHT_X is not set."
    assert terminal.said == []


async def test_children_are_stopped_stage_by_stage(tmp_path: Path) -> None:
    order = tmp_path / "order"
    async with Supervisor(terminal=Listening()) as supervisor:
        children = [
            supervisor.start(program(name, POLITE, order, name, stage=stage))
            for name, stage in (("postgres", 9), ("worker", 2), ("api", 1), ("beat", 3))
        ]
        for child in children:
            await until_up(child)
    assert order.read_text().split() == ["api", "worker", "beat", "postgres"]


async def test_one_that_will_not_stop_is_killed_after_its_grace_period() -> None:
    async with Supervisor(terminal=Listening()) as supervisor:
        pid = await until_up(supervisor.start(program("deaf", DEAF, stop_seconds=0.2)))
        began = time.monotonic()
    assert 0.2 <= time.monotonic() - began < 10
    assert not is_alive(pid)


async def test_hurry_cuts_the_grace_period_short() -> None:
    async with Supervisor(terminal=Listening()) as supervisor:
        pid = await until_up(supervisor.start(program("deaf", DEAF, stop_seconds=60)))
        asyncio.get_running_loop().call_later(0.1, supervisor.hurry.set)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert not is_alive(pid)


async def test_what_a_child_has_started_goes_with_it(tmp_path: Path) -> None:
    async with Supervisor(terminal=Listening()) as supervisor:
        child = supervisor.start(program("parent", PARENT, tmp_path / "pid"))
        first = await until_up(child)
        grandchild = int((tmp_path / "pid").read_text())
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: not is_alive(grandchild))


async def test_a_terminals_signals_reach_the_supervisor_alone() -> None:
    async with Supervisor(terminal=Listening()) as supervisor:
        pid = await until_up(supervisor.start(program("sleeper", SLEEPER)))
        assert os.getsid(pid) == os.getpgid(pid) == pid


async def test_a_program_that_is_to_end_is_waited_for() -> None:
    async with Supervisor(terminal=Listening()) as supervisor:
        await supervisor.run_to_end(program("fine", "pass"))
        with pytest.raises(ChildGaveUp, match="no room"):
            await supervisor.run_to_end(program("initdb", "raise SystemExit('no room')"))


async def test_the_first_signal_stops_and_the_second_hurries() -> None:
    began = time.monotonic()
    async with StopSignals() as signals, Supervisor(terminal=Listening()) as supervisor:
        signals.hurries(supervisor.hurry)
        pid = await until_up(supervisor.start(program("deaf", DEAF, stop_seconds=60)))
        loop = asyncio.get_running_loop()
        loop.call_later(0.0, os.kill, os.getpid(), signal.SIGINT)
        # The same Ctrl-C, passed on by a wrapper: not impatience.
        loop.call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
        loop.call_later(1.0, os.kill, os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
    assert signals.received is signal.SIGINT
    assert 0.9 < time.monotonic() - began < 30
    assert not is_alive(pid)


async def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.05)
        assert signals.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


SUPERVISED = """
import asyncio, sys
from cli.console import Terminal
from cli.program import Program
from cli.supervisor import Supervisor

async def main():
    async with Supervisor(terminal=Terminal()) as supervisor:
        for name in "ab":
            code = "import time; print('up', flush=True); time.sleep(60)"
            child = supervisor.start(Program(name=name, argv=(sys.executable, "-c", code), env={}))
            while "up" not in child.log.recent():
                await asyncio.sleep(0.01)
            print(child.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills orphans")
def test_nothing_outlives_a_killed_supervisor() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISED], stdout=subprocess.PIPE, env=child_environment()
    ) as process:
        assert process.stdout is not None
        children = [int(process.stdout.readline()) for _ in range(2)]
        assert all(is_alive(pid) for pid in children)
        process.kill()
    asyncio.run(eventually(lambda: not any(is_alive(pid) for pid in children)))


def test_the_terminal_shows_what_matters_and_the_log_file_everything(tmp_path: Path) -> None:
    terminal = Listening()
    log = ChildLog("api", terminal=terminal, file=LogFile(tmp_path / "api.log"))
    log.feed(b"2026-01-01 10:00:00,000 INFO x: an ERROR mentioned\n2026-01-01 WARN")
    log.feed(b"ING x: disk nearly full\n  more about it\n")
    log.feed(b"[2026-01-01 10:00:00,000: ERROR/MainProcess] lost\n")
    log.feed(b"2026-01-01 10:00 GMT [1] LOG:  ready\nwithout an end")
    log.close()
    assert terminal.shown == [
        "api: 2026-01-01 WARNING x: disk nearly full",
        "api: [2026-01-01 10:00:00,000: ERROR/MainProcess] lost",
    ]
    assert len((tmp_path / "api.log").read_text().splitlines()) == 6


def test_the_same_complaint_is_shown_once_in_a_while() -> None:
    terminal = Listening()
    log = ChildLog("control", terminal=terminal, file=None)
    for second in range(5):
        log.feed(
            f"2026-01-01 10:00:0{second} ERROR x: Task sweep[ad6a-{second}f] failed\n".encode()
        )
    log.feed(b"2026-01-01 10:00:09 ERROR x: another matter\n")
    assert len(terminal.shown) == 2


def test_a_log_file_never_grows_beyond_its_size(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "api.log", max_bytes=100)
    for number in range(50):
        log.write(f"line {number:04}".encode())
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"api.log", "api.log.1"}
    assert max(sizes.values()) <= 100
    assert (tmp_path / "api.log").read_text().endswith("line 0049\n")


def test_a_disk_that_takes_no_log_does_not_stop_the_child(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "no such folder" / "api.log")
    log.write(b"lost")
    log.close()
