"""Tries docker-compose.yml for real: `make compose-test`.

Brings the stack up from nothing with two workers and the simulated model server, runs a batch of
2,000 lines through the published API, kills one worker container in the middle, and asks for every
line exactly once. It then stops everything, checks that every process ended by itself, and takes
containers, network, volumes and image away, whatever happened. Without a Docker engine it says so
and succeeds.

It uses a project name, secrets, a port and a settings file of its own, so that a stack that is
already running on this machine is not touched.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

REPOSITORY = Path(__file__).resolve().parents[2]
LINES = 2_000
WORKERS = 2
# With a second for each answer, 64 calls in flight a worker, the batch takes some twenty seconds:
# long enough to be hit in the middle. Shards are small enough for both workers to hold some.
SETTINGS = {
    "SIMULATED_LATENCY_SECONDS": "1",
    "OVERNIGHT_UPSTREAM_URL": "http://simulator:9000/v1",
    "OVERNIGHT_MAX_IN_FLIGHT": "64",
    "OVERNIGHT_SHARD_LINES": "100",
    "OVERNIGHT_SHARDS_PER_WORKER": "4",
}
# One-shot and supporting services: how each must stand once the stack is up.
HEALTHY = {"api", "postgres", "redis", "simulator"}
KILLED = 128 + signal.SIGKILL

Seen = TypeVar("Seen")


class CheckFailed(Exception):
    """Something about the stack is not as it must be."""


def say(text: str) -> None:
    """Print a step, with the time, at once."""
    print(f"{time.strftime('%H:%M:%S')} compose-test: {text}", flush=True)


def engine_is_missing() -> str | None:
    """Why there is nothing to run this on, or None."""
    try:
        for command in (["docker", "version"], ["docker", "compose", "version"]):
            answer = subprocess.run(command, capture_output=True, timeout=60, check=False)
            if answer.returncode != 0:
                return f"`{' '.join(command)}` fails"
    except FileNotFoundError:
        return "there is no `docker` command"
    except subprocess.TimeoutExpired:
        return "the Docker engine does not answer"
    return None


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class Stack:
    """One run of the compose project, under a name that nothing else has."""

    env_file: Path
    name: str = field(default_factory=lambda: f"overnight-test-{secrets.token_hex(4)}")
    api_key: str = field(default_factory=lambda: secrets.token_hex(16))
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        """Write the settings file that stands in for .env."""
        settings = {
            **SETTINGS,
            "POSTGRES_PASSWORD": secrets.token_hex(16),
            "OVERNIGHT_API_KEY": self.api_key,
            "OVERNIGHT_PORT": str(self.port),
            "OVERNIGHT_ENV_FILE": str(self.env_file),
            "OVERNIGHT_VERSION": self.name,
        }
        lines = [f"{name}={value}\n" for name, value in settings.items()]
        self.env_file.write_text("".join(lines), encoding="utf-8")

    def compose(self, *arguments: str, seconds: float = 120, check: bool = True) -> str:
        """Run `docker compose` on this project and return what it printed."""
        command = ["docker", "compose", "--project-name", self.name]
        command += ["--env-file", str(self.env_file), "--profile", "simulate", *arguments]
        return run(command, seconds=seconds, check=check)

    def containers(self, *services: str) -> list[dict[str, Any]]:
        """What `docker compose ps` knows of each container, stopped ones included."""
        listed = self.compose("ps", "--all", "--format", "json", *services)
        return [json.loads(line) for line in listed.splitlines() if line.strip()]

    def simulator_calls(self) -> int:
        """How many calls the simulated model server has received."""
        program = "import urllib.request as u;print(u.urlopen('http://127.0.0.1:9000/stats').read().decode())"
        answer = self.compose("exec", "-T", "simulator", "python", "-c", program)
        calls: int = json.loads(answer)["calls"]
        return calls

    def take_down(self) -> None:
        """Remove every trace, and complain about what stays."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)
        run(["docker", "image", "rm", "--force", f"overnight:{self.name}"], check=False)
        label = f"label=com.docker.compose.project={self.name}"
        for kind in (["container", "ls", "--all"], ["volume", "ls"], ["network", "ls"]):
            left = run(["docker", *kind, "--quiet", "--filter", label])
            if left.strip():
                message = f"left behind by {kind[0]}: {left.split()}"
                raise CheckFailed(message)


def run(command: list[str], *, seconds: float = 120, check: bool = True) -> str:
    """Run a command in the repository, without this shell's own settings."""
    own = ("OVERNIGHT_", "COMPOSE_", "POSTGRES_", "SIMULATED_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if check and done.returncode != 0:
        message = f"{' '.join(command)} exited {done.returncode}:\n{done.stdout}{done.stderr}"
        raise CheckFailed(message)
    return done.stdout


def wait_until(what: str, look: Callable[[], Seen | None], *, seconds: float) -> Seen:
    """Look again and again until there is something to see."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen = look()
        if seen is not None:
            return seen
        time.sleep(0.2)
    message = f"not within {seconds:.0f} s: {what}"
    raise CheckFailed(message)


def expect(holds: bool, otherwise: str) -> None:
    """Fail with `otherwise` unless it holds."""
    if not holds:
        raise CheckFailed(otherwise)


def input_lines() -> bytes:
    """A batch of chat requests, told apart by custom_id alone."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}
    request = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = (json.dumps({"custom_id": f"line-{n}", **request}) for n in range(LINES))
    return "\n".join(lines).encode()


def has_settled(stack: Stack) -> bool | None:
    """Whether no health check is still waiting for its first answer."""
    return all(container["Health"] != "starting" for container in stack.containers()) or None


def check_standing(stack: Stack, *, workers: int) -> None:
    """Every service is up (and healthy where it can tell), and the migration ended well."""
    wait_until("all health checks have spoken", lambda: has_settled(stack), seconds=60)
    running: Counter[str] = Counter()
    for container in stack.containers():
        service, state, health = container["Service"], container["State"], container["Health"]
        if service == "migrate":
            ended = (state, container["ExitCode"])
            expect(ended == ("exited", 0), f"migrate is {state}, exit {container['ExitCode']}")
        elif state == "running":
            running[service] += 1
            expect(service not in HEALTHY or health == "healthy", f"{service} is {health}")
    wanted = Counter(dict.fromkeys([*HEALTHY, "beat"], 1) | {"worker": workers})
    expect(running == wanted, f"running: {dict(running)}, wanted: {dict(wanted)}")


def check_confined(stack: Stack) -> None:
    """No process has a privilege, a place to write, or a way that it does not need."""
    for service in ("api", "worker", "beat", "redis"):
        status = stack.compose("exec", "-T", service, "cat", "/proc/1/status")
        read = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        expect(read["Uid"].split()[0] != "0", f"{service} runs as root")
        expect(int(read["CapEff"], 16) == 0, f"{service} has capabilities: {read['CapEff']}")
        expect(read["NoNewPrivs"].strip() == "1", f"{service} may gain privileges")
        mounts = stack.compose("exec", "-T", service, "cat", "/proc/1/mounts").splitlines()
        [root] = [fields for line in mounts if (fields := line.split())[1] == "/"]
        expect("ro" in root[3].split(","), f"{service} has a root file system that can be written")
    names = "cat /proc/[0-9]*/cmdline"
    shown = stack.compose("exec", "-T", "worker", "sh", "-c", names, check=False)
    expect(stack.api_key not in shown, "a key is on a command line")
    ways = stack.compose("exec", "-T", "redis", "cat", "/proc/net/route").splitlines()[1:]
    expect(all(way.split()[1] != "00000000" for way in ways), "redis has a way out")
    say("confined: no root, no capabilities, nothing to write to, no way out for the broker")


def check_logs(stack: Stack) -> None:
    """No secret has come into a log."""
    logs = stack.compose("logs", "--no-color")
    expect(len(logs.splitlines()) > 10, "nothing was logged")
    settings = dict(line.split("=", 1) for line in stack.env_file.read_text().splitlines())
    for name in ("POSTGRES_PASSWORD", "OVERNIGHT_API_KEY"):
        expect(settings[name] not in logs, f"{name} is in a log")
    expect("Say hello." not in logs, "a prompt is in a log")


def run_batch(stack: Stack, client: httpx.Client) -> None:
    """Upload, create, kill a worker in the middle, wait, download, count."""
    uploaded = client.post("files", data={"purpose": "batch"}, files={"file": input_lines()})
    uploaded.raise_for_status()
    order = {
        "input_file_id": uploaded.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    created = client.post("batches", json=order)
    created.raise_for_status()
    path = f"batches/{created.json()['id']}"
    began = time.monotonic()

    def batch() -> dict[str, Any]:
        answer = client.get(path).raise_for_status()
        read: dict[str, Any] = answer.json()
        return read

    def is_under_way() -> dict[str, Any] | None:
        read = batch()
        ended = read["status"] in {"completed", "failed", "expired", "cancelled"}
        expect(not ended, f"the batch ended before a worker could be killed: {read['status']}")
        return read if read["request_counts"]["completed"] >= LINES // 5 else None

    middle = wait_until("a fifth of the lines is done", is_under_way, seconds=90)
    victim = min(stack.containers("worker"), key=lambda worker: str(worker["Name"]))
    run(["docker", "kill", "--signal", "KILL", victim["ID"]])
    say(f"killed {victim['Name']} at {middle['request_counts']['completed']} of {LINES} lines")

    def has_ended() -> dict[str, Any] | None:
        read = batch()
        return read if read["status"] in {"completed", "failed", "expired", "cancelled"} else None

    ended = wait_until("the batch ends", has_ended, seconds=180)
    counts = {"total": LINES, "completed": LINES, "failed": 0}
    expect(ended["status"] == "completed", f"the batch ended {ended['status']}: {ended['errors']}")
    expect(ended["request_counts"] == counts, f"counts are {ended['request_counts']}")
    expect(ended["error_file_id"] is None, "there is an error file")
    say(f"completed {time.monotonic() - began:.0f} s after it was created")

    output = client.get(f"files/{ended['output_file_id']}/content").raise_for_status()
    seen = Counter(json.loads(line)["custom_id"] for line in output.text.splitlines())
    wanted = Counter(f"line-{n}" for n in range(LINES))
    lost, repeated = len(wanted - seen), len(seen - wanted)
    expect(seen == wanted, f"the output file lacks {lost} lines and has {repeated} too many")
    calls = stack.simulator_calls()
    expect(calls > LINES, f"{calls} calls for {LINES} lines: the kill interrupted nothing")
    say(f"every line once; {calls - LINES} calls were repeated, those in flight at the kill")


def check_stopping(stack: Stack) -> None:
    """Everything still running ends by itself on SIGTERM, before Docker loses patience."""
    before = {c["ID"] for c in stack.containers() if c["State"] == "running"}
    began = time.monotonic()
    stack.compose("stop", seconds=180)
    say(f"stopped in {time.monotonic() - began:.0f} s")
    for container in stack.containers():
        code = container["ExitCode"]
        if container["ID"] in before:
            expect(code != KILLED, f"{container['Name']} had to be killed")
            expect(code == 0, f"{container['Name']} exited {code}")


def try_stack(stack: Stack) -> None:
    """The whole story, from an empty project to a stopped one."""
    say(f"building, as {stack.name}")
    stack.compose("build", seconds=1200)
    began = time.monotonic()
    stack.compose("up", "--detach", "--scale", f"worker={WORKERS}", seconds=300)
    base_url = f"http://127.0.0.1:{stack.port}/"
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    with httpx.Client(base_url=f"{base_url}v1/", headers=headers, timeout=60) as client:

        def is_ready() -> bool | None:
            with contextlib.suppress(httpx.TransportError):
                return client.get(f"{base_url}readyz").status_code == 200 or None
            return None

        wait_until("the API is ready", is_ready, seconds=60)
        say(f"up and ready in {time.monotonic() - began:.0f} s from an empty volume")
        check_standing(stack, workers=WORKERS)
        check_confined(stack)
        run_batch(stack, client)
        check_standing(stack, workers=WORKERS - 1)
    check_stopping(stack)
    check_logs(stack)


@contextlib.contextmanager
def throwaway_stack() -> Iterator[Stack]:
    """A stack that is gone afterwards; its logs are shown if something went wrong."""
    with tempfile.TemporaryDirectory(prefix="overnight-compose-") as folder:
        stack = Stack(env_file=Path(folder) / "env")
        try:
            yield stack
        except BaseException:
            say("failed; the state and the last lines of each log:")
            print(stack.compose("ps", "--all", check=False))
            print(stack.compose("logs", "--no-color", "--tail", "40", check=False), flush=True)
            raise
        finally:
            stack.take_down()


def main() -> int:
    """Run it all; the exit status says how it went."""
    missing = engine_is_missing()
    if missing:
        say(f"SKIPPED: {missing}; this needs a Docker engine with Compose")
        return 0
    # A stop from outside must take the stack down too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with throwaway_stack() as stack:
            try_stack(stack)
    except (CheckFailed, subprocess.TimeoutExpired, httpx.HTTPError) as error:
        say(f"FAILED: {error}")
        return 1
    say("PASSED")
    return 0


if __name__ == "__main__":
    sys.exit(main())
