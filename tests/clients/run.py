"""Runs every client, unmodified, against a running Overnight: `make test-clients`.

Each program gets the address and a key by `OPENAI_BASE_URL` and `OPENAI_API_KEY`, a temporary folder
to work in, and says on standard output which library it is (`client NAME VERSION`) and what it has
done and checked (`passed STEP`). Prints a table of them all; exits with 1 if one of them failed, and
also if one could not be run here, unless `--allow-skips` is given. `--write` puts what was run into
docs/clients.md.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.clients.catalogue import CLIENTS, Client
from tests.clients.environments import InstallFailed, NotAvailable, prepared
from tests.clients.server import KEY, REPOSITORY, running_overnight

PAGE = REPOSITORY / "docs" / "clients.md"
TABLE_BEGINS = "<!-- written by make test-clients -->\n"
TABLE_ENDS = "<!-- end -->"
_FLOW_SECONDS = 300
_SHOWN_LINES = 40


@dataclass
class Outcome:
    """How a client fared."""

    client: Client
    result: str = "failed"
    versions: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def read(self, output: str) -> None:
        """Take in what the program said."""
        for line in output.splitlines():
            word, _, rest = line.partition(" ")
            if word == "client":
                self.versions.append(rest)
            elif word == "passed":
                self.steps.append(rest)

    @property
    def version(self) -> str:
        """The versions that were really run, the client's own first."""
        return ", ".join(self.versions) or f"{self.client.package} {self.client.version}"


def main() -> int:
    """Run what is asked for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients.run")
    names = [client.name for client in CLIENTS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--allow-skips", action="store_true", help="succeed without those")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    wanted = parser.parse_args()
    if unknown := set(wanted.names) - set(names):
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    clients = [client for client in CLIENTS if client.name in (wanted.names or names)]

    # One after the other, and all installed before the first is run: the server idles for no one.
    outcomes = [Outcome(client) for client in clients]
    commands = {outcome.client.name: _prepare(outcome) for outcome in outcomes}
    with running_overnight() as overnight:
        for outcome in outcomes:
            if command := commands[outcome.client.name]:
                _run(outcome, command, overnight.base_url)
    print(f"\n{table(outcomes)}")
    results = [outcome.result for outcome in outcomes]
    print(f"\n{results.count('passed')} of {len(results)} clients passed")
    if wanted.write and set(results) == {"passed"} and len(results) == len(CLIENTS):
        _write(table(outcomes))
    is_good = all(r == "passed" or (wanted.allow_skips and r.startswith("skip")) for r in results)
    return 0 if is_good else 1


def table(outcomes: list[Outcome]) -> str:
    """A table in Markdown of what was run."""
    rows = [
        f"| {outcome.client.title} | {outcome.version} | {outcome.client.pointed_by} |"
        f" {'; '.join(outcome.steps)} | {outcome.result} |"
        for outcome in outcomes
    ]
    head = "| client | version | pointed at Overnight by | what was run | result |\n"
    return head + "|---|---|---|---|---|\n" + "\n".join(rows)


def _prepare(outcome: Outcome) -> list[str] | None:
    """Make the client ready; nothing where that cannot be done."""
    try:
        return prepared(outcome.client)
    except NotAvailable as error:
        outcome.result = f"skipped: {error}"
    except (InstallFailed, subprocess.TimeoutExpired) as error:
        outcome.result = "failed: not installed"
        print(f"{outcome.client.name} cannot be installed:\n{error}\n", file=sys.stderr)
    return None


def _run(outcome: Outcome, command: list[str], base_url: str) -> None:
    name = outcome.client.name
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"overnight-{name}-") as folder:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(base_url),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=_FLOW_SECONDS)
        except subprocess.TimeoutExpired:
            # Whatever it has started (a proxy, say) ends with it.
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            output += "\n(not within its time)"
        is_passed = process.returncode == 0
    outcome.read(output)
    # A program that checked nothing has shown nothing, nor has one of another version.
    asked_for = f"{outcome.client.package} {outcome.client.version}"
    if is_passed and outcome.steps and asked_for in outcome.versions:
        outcome.result = "passed"
    else:
        said = "\n".join(output.splitlines()[-_SHOWN_LINES:])
        print(f"{name} failed after {outcome.steps}; it said:\n{said}\n", file=sys.stderr)
    print(f"{name}: {outcome.result} ({time.monotonic() - began:.0f} s)", flush=True)


def _environment(base_url: str) -> dict[str, str]:
    """What a client's program sees: nothing of this project's own environment."""
    ours = ("OVERNIGHT_", "OPENAI_", "PYTHON", "LITELLM_", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": KEY,
        # Else LiteLLM fetches a price list, and tiktoken its tables, which LiteLLM brings along.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "TIKTOKEN_CACHE_DIR": str(_tokenizer_tables()),
        "NO_PROXY": "127.0.0.1,localhost",
    }


def _tokenizer_tables() -> Path:
    found = importlib.util.find_spec("litellm")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "litellm_core_utils" / "tokenizers"


def _write(text: str) -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(TABLE_BEGINS)
    _, _, after = rest.partition(TABLE_ENDS)
    PAGE.write_text(f"{before}{TABLE_BEGINS}{text}\n{TABLE_ENDS}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
