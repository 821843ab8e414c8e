"""Other engines that execute batches, set up as their own documents say, pinned.

OGX: `ogx run --insecure` with its reference batches provider, files on the local disk, and
`remote::vllm` at the model server. AIBrix: its metadata service, see `aibrix_service.py`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.batch import BatchClient, run_batch
from benchmarks.inputs import MODEL, write_input
from benchmarks.machine import Watch
from benchmarks.processes import free_port, server
from benchmarks.yardsticks.environments import environment
from benchmarks.yardsticks.outcome import Outcome

OGX, AIBRIX = "1.5.0", "0.8.0"
_SERVICE = Path(__file__).with_name("aibrix_service.py")
_LINE_BYTES = 350


class Running(NamedTuple):
    """An engine that answers."""

    base_url: str
    process: psutil.Process
    model: str
    """What it calls the model."""


Start = Callable[[Path, str], AbstractContextManager[Running]]
"""Starts an engine with a folder to write to and a model server."""


class Engine(NamedTuple):
    """An engine and how to start it."""

    name: str
    start: Start


@contextmanager
def _ogx(folder: Path, upstream_url: str, *, in_flight: int) -> Iterator[Running]:
    programs = environment("ogx", f"ogx=={OGX}", oldest=(3, 12))
    port = free_port()
    config = folder / "ogx.yaml"
    # JSON is YAML, too.
    config.write_text(json.dumps(_ogx_config(folder, upstream_url, port, in_flight)), "utf-8")
    base_url = f"http://127.0.0.1:{port}/v1"
    argv = (str(programs / "ogx"), "run", "--insecure", str(config))
    with server(argv, probe_url=f"{base_url}/models", log=folder / "ogx.log") as process:
        yield Running(base_url, process, f"vllm/{MODEL}")


def _ogx_config(folder: Path, upstream_url: str, port: int, in_flight: int) -> dict[str, object]:
    def provider(kind: str, name: str, **config: object) -> list[dict[str, object]]:
        return [{"provider_id": name, "provider_type": kind, "config": config}]

    def table(name: str) -> dict[str, str]:
        return {"table_name": name, "backend": "sql_default"}

    return {
        "version": 2,
        "distro_name": "bench",
        "apis": ["batches", "files", "inference"],
        "providers": {
            "inference": provider("remote::vllm", "vllm", base_url=upstream_url, max_tokens=4096),
            "files": provider(
                "inline::localfs",
                "files",
                storage_dir=str(folder / "files"),
                metadata_store=table("files"),
            ),
            "batches": provider(
                "inline::reference",
                "reference",
                sqlstore=table("batches"),
                max_concurrent_requests_per_batch=in_flight,
            ),
        },
        "storage": {
            "backends": {
                "kv_default": {"type": "kv_sqlite", "db_path": str(folder / "kv.db")},
                "sql_default": {"type": "sql_sqlite", "db_path": str(folder / "sql.db")},
            },
            "stores": {"metadata": {"namespace": "registry", "backend": "kv_default"}},
        },
        "server": {"port": port},
    }


@contextmanager
def _aibrix(folder: Path, upstream_url: str) -> Iterator[Running]:
    programs = environment("aibrix", f"aibrix=={AIBRIX}")
    port = free_port()
    base_url = f"http://127.0.0.1:{port}/v1"
    argv = (str(programs / "python"), str(_SERVICE), upstream_url.removesuffix("/v1"), str(port))
    with server(
        argv,
        probe_url=f"{base_url}/batches",
        log=folder / "aibrix.log",
        STORAGE_LOCAL_PATH=str(folder / "storage"),
    ) as process:
        yield Running(base_url, process, MODEL)


def ogx(in_flight: int) -> Engine:
    """OGX, with so many calls in flight a batch (10 is its default)."""
    return Engine(
        f"OGX {OGX}, {in_flight} in flight",
        lambda folder, upstream_url: _ogx(folder, upstream_url, in_flight=in_flight),
    )


def aibrix() -> Engine:
    """AIBrix's metadata service, which finds out itself how many calls to keep in flight."""
    return Engine(f"AIBrix {AIBRIX}, adaptive", _aibrix)


def run_engine(engine: Engine, folder: Path, upstream_url: str, *, lines: int) -> Outcome:
    """Start it, take one batch through it, stop it."""
    folder.mkdir()
    with engine.start(folder, upstream_url) as running:
        source = folder / "input.jsonl"
        write_input(source, lines=lines, line_bytes=_LINE_BYTES, model=running.model)
        with BatchClient(running.base_url) as client, Watch(running.process) as watch:
            timing = run_batch(client, source)
    return Outcome(
        name=engine.name,
        lines_per_second=timing.lines_per_second,
        cpu_ms_a_line=1000 * sum(watch.cpu_seconds().values()) / lines,
        peak_mb=max(watch.peaks_mb().values()),
    )
