"""`overnight estimate`: how much a file of requests is, and how long it may take.

Promises: says where each number comes from. Tokens are the server's approximation, one for every four
bytes of a body; the rate is what the server's batches of the same model and endpoint have shown.
"""

from typing import Annotated, Any, NamedTuple

import typer

from cli.client.checkfile import Judged
from cli.client.http import BatchClient
from cli.client.pace import counts
from cli.client.server import ApiKeyFile, Server, Url, find_server, on_server
from cli.client.source import shown_name
from cli.client.validate import EndpointName, Sources, judge_source, read_endpoint_name
from cli.console import CommandError, ExitStatus
from cli.tables import AsJson, show_bytes, show_duration, show_facts, show_json

_MOST_BATCHES = 5


class Rate(NamedTuple):
    """How fast lines end."""

    lines_per_second: float
    source: str
    output_tokens_per_line: float | None = None


def estimate(
    sources: Sources,
    *,
    endpoint: EndpointName = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Requests that end in a second.",
            show_default="that of the newest batches of the same model",
        ),
    ] = None,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Estimate how much a file of requests is, and how long it takes.

    Lines and bytes are counted; tokens are one for every four bytes of a body; the time is that of the
    lines at the rate which the newest batches of the same model and endpoint had.

    Exit status: 0, or 4 for a file that would fail its check.
    """
    wanted = read_endpoint_name(endpoint)
    server = find_server(url, api_key_file)
    bad = 0
    for source in sources:
        judged = judge_source(source, wanted)
        found = Rate(rate, "--rate") if rate is not None else _measured(server, judged)
        name = shown_name(source)
        if as_json:
            show_json(_as_object(name, judged, found))
        else:
            _show(name, judged, found)
        bad += not judged.is_good
    if bad:
        raise typer.Exit(ExitStatus.BATCH_FAILED)


def _measured(server: Server, judged: Judged) -> Rate | None:
    async def read(client: BatchClient) -> list[dict[str, Any]]:
        page = await client.get("batches", {"limit": "100"}, tries=1)
        return list(page["data"])

    try:
        return rate_of(on_server(server, read), model=judged.model, endpoint=judged.endpoint.value)
    except CommandError as error:
        typer.echo(f"No rate could be asked for. {error}", err=True)
        return None


def rate_of(batches: list[dict[str, Any]], *, model: str | None, endpoint: str) -> Rate | None:
    """The mean rate of the newest completed batches like this one; nothing if there is none. Pure."""
    lines = seconds = tokens = used = 0
    for batch in batches:
        is_like = batch.get("model") == model and batch.get("endpoint") == endpoint
        began, ended = batch.get("in_progress_at"), batch.get("finalizing_at")
        if not is_like or batch["status"] != "completed" or began is None or ended is None:
            continue
        lines += counts(batch)[0]
        # Times are whole seconds: a short batch took one at most.
        seconds += max(ended - began, 1)
        tokens += int((batch.get("usage") or {}).get("output_tokens") or 0)
        used += 1
        if used == _MOST_BATCHES:
            break
    if not lines:
        return None
    what = "batch" if used == 1 else f"{used} batches"
    return Rate(lines / seconds, f"the newest {what} of {model or endpoint}", tokens / lines)


def _as_object(name: str, judged: Judged, rate: Rate | None) -> dict[str, Any]:
    return {
        "input": name,
        "lines": judged.lines,
        "bytes": judged.size_bytes,
        "endpoint": judged.endpoint.value,
        "model": judged.model,
        "prompt_tokens": judged.prompt_tokens,
        "output_tokens": _output_tokens(judged, rate),
        "lines_per_second": None if rate is None else rate.lines_per_second,
        "rate_source": None if rate is None else rate.source,
        "seconds": None if rate is None else judged.lines / rate.lines_per_second,
        "valid": judged.is_good,
    }


def _output_tokens(judged: Judged, rate: Rate | None) -> int | None:
    if rate is None or rate.output_tokens_per_line is None:
        return None
    return round(judged.lines * rate.output_tokens_per_line)


def _show(name: str, judged: Judged, rate: Rate | None) -> None:
    facts = [
        ("File", name),
        ("Requests", f"{judged.lines:,} for {judged.endpoint}, {show_bytes(judged.size_bytes)}"),
        ("Tokens in", f"about {judged.prompt_tokens:,} (one for every four bytes of a body)"),
    ]
    if output_tokens := _output_tokens(judged, rate):
        facts.append(("Tokens out", f"about {output_tokens:,} (as many a request as before)"))
    if rate is None:
        facts.append(
            ("Time", "not known, with no completed batch of its model seen; --rate says one")
        )
    else:
        took = show_duration(judged.lines / rate.lines_per_second)
        words = f"about {took} at {rate.lines_per_second:,.3g} requests/s ({rate.source})"
        facts.append(("Time", words))
    show_facts(facts)
    if not judged.is_good:
        words = f"It would fail its check: `overnight validate {name}` says why."
        typer.echo(words, err=True)
