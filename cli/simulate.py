"""`overnight simulate`: the simulated model server as a command.

Prints its base URL, alone on one line, once it listens. Ends with status 0 on SIGTERM or Ctrl-C.
"""

import asyncio
import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from cli.console import CommandError, UsageError
from cli.simulator.server import SimulatedServer
from cli.simulator.settings import SimulatorSettings


class Over(StrEnum):
    """What happens to a call above the capacity."""

    REFUSE = "refuse"
    QUEUE = "queue"


class DownMode(StrEnum):
    """What an outage looks like."""

    STATUS_503 = "503"
    CLOSE = "close"


class Metrics(StrEnum):
    """Whose names `/metrics` uses."""

    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMACPP = "llamacpp"


def simulate(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8001,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model name to serve; repeat for several.", show_default="any name"),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Answer 401 to calls without this bearer key.")
    ] = None,
    latency: Annotated[float, typer.Option(help="Median seconds a call takes.")] = 0.0,
    latency_sigma: Annotated[
        float, typer.Option(help="Spread of the latency (log-normal sigma).")
    ] = 0.0,
    token_latency: Annotated[
        float, typer.Option(help="Further seconds for each token of the answer.")
    ] = 0.0,
    load_latency: Annotated[
        float,
        typer.Option(help="Share of all that by which each other call in service lengthens it."),
    ] = 0.0,
    capacity: Annotated[
        int | None, typer.Option(help="Most calls in service at once.", show_default="no limit")
    ] = None,
    over: Annotated[
        Over, typer.Option(help="Above the capacity: refuse with 429, or queue.")
    ] = Over.REFUSE,
    retry_after: Annotated[
        float, typer.Option(help="Seconds named in the headers of a full server's 429.")
    ] = 1.0,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="Calls let in a minute; 429 above.", show_default="no limit")
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(help="Tokens let in a minute; 429 above.", show_default="no limit"),
    ] = None,
    prefix_cache: Annotated[
        int, typer.Option(help="Prompt prefixes kept, the latest used; 0: no cache.")
    ] = 0,
    prefix_miss_latency: Annotated[
        float, typer.Option(help="Further seconds for a call whose prefix is not kept.")
    ] = 0.0,
    metrics: Annotated[
        Metrics | None,
        typer.Option(help="Serve /metrics under the names of this server.", show_default="off"),
    ] = None,
    control: Annotated[
        bool,
        typer.Option(
            "--control",
            help="For testing only: let POST /control change the behaviour, "
            "and POST /stats/reset begin the counts anew.",
        ),
    ] = False,
    down_mode: Annotated[
        DownMode, typer.Option(help="When /control says down: answer 503, or close.")
    ] = DownMode.STATUS_503,
    error_rate: Annotated[float, typer.Option(help="Share of calls that fail, 0 to 1.")] = 0.0,
    error_status: Annotated[int, typer.Option(help="Status of those failures.")] = 500,
    drop_rate: Annotated[
        float, typer.Option(help="Share of answers cut off in the middle of their body.")
    ] = 0.0,
    hang_rate: Annotated[float, typer.Option(help="Share of calls never answered.")] = 0.0,
    fail_marker: Annotated[
        str | None, typer.Option(help="Text in a body that makes its call fail every time.")
    ] = None,
    fail_status: Annotated[int, typer.Option(help="Status of such a call.")] = 500,
    bad_request_marker: Annotated[
        str | None, typer.Option(help="Text in a body that gets 400 every time.")
    ] = None,
    video_seconds: Annotated[float, typer.Option(help="Seconds until a video is completed.")] = 1.0,
    video_fail_marker: Annotated[
        str | None, typer.Option(help="Text in a body that makes its video end as failed.")
    ] = None,
    poll_error_rate: Annotated[
        float, typer.Option(help="Share of polls for a video that get the error status, 0 to 1.")
    ] = 0.0,
    reply_bytes: Annotated[
        int | None,
        typer.Option(help="Exact size of the reply text.", show_default="a short sentence"),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Append a line a call: time, idempotency-key, status; tab separated."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Make latencies and faults repeatable.")] = None,
) -> None:
    """Start a simulated model server, for trying things.

    Every answer is made up, at once and for nothing. The base URL is printed when it listens;
    /stats beside it counts what has been asked.
    """
    try:
        settings = SimulatorSettings(
            host=host,
            port=port,
            models=tuple(model or ()),
            api_key=api_key,
            latency=latency,
            latency_sigma=latency_sigma,
            token_latency=token_latency,
            load_latency=load_latency,
            capacity=capacity,
            over=over.value,
            retry_after=retry_after,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            prefix_cache=prefix_cache,
            prefix_miss_latency=prefix_miss_latency,
            metrics=metrics.value if metrics else None,
            control=control,
            down_mode=down_mode.value,
            error_rate=error_rate,
            error_status=error_status,
            drop_rate=drop_rate,
            hang_rate=hang_rate,
            fail_marker=fail_marker,
            fail_status=fail_status,
            bad_request_marker=bad_request_marker,
            video_seconds=video_seconds,
            video_fail_marker=video_fail_marker,
            poll_error_rate=poll_error_rate,
            reply_bytes=reply_bytes,
            log=log,
            seed=seed,
        )
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    try:
        uvloop.run(_serve(settings))
    except OSError as error:
        # A taken port, an unwritable log: the system's own words say it best.
        raise CommandError(f"The simulated server cannot start: {error}.") from error


async def _serve(settings: SimulatorSettings) -> None:
    server = SimulatedServer(settings)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await server.start()
    typer.echo(server.url)
    typer.echo("Simulated model server: every answer is made up. Ctrl-C stops it.", err=True)
    try:
        await stopped.wait()
    finally:
        await server.stop()
