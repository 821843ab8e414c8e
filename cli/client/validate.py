"""`overnight validate`: a file of requests, looked at before it is sent.

Promises: it asks no server and says what the server would; the limits are those of the settings
(`OVERNIGHT_…`) as this command finds them, which are OpenAI's unless somebody has set them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from api.settings import ApiSettings
from cli.client.checkfile import Fault, Judged, first_endpoint, judge
from cli.client.source import on_disk, shown_name
from cli.console import ExitStatus, UsageError
from cli.tables import AsJson, show_bytes, show_json
from models.input_check import InputLimits
from models.lines import Endpoint, LineError
from models.settings import UpstreamSettings
from models.upstreams import Upstreams
from worker.settings import ValidateSettings

_MOST_SHOWN = 20

Sources = Annotated[
    list[Path],
    typer.Argument(metavar="INPUT.jsonl…", help="Files of requests; - is standard input."),
]
EndpointName = Annotated[
    str | None,
    typer.Option(
        "--endpoint", help="The endpoint of the batch.", show_default="the first line's url"
    ),
]


def validate(
    sources: Sources,
    *,
    endpoint: EndpointName = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="A file of model servers: are the models and endpoints there that the requests name?",
        ),
    ] = None,
    most: Annotated[
        int, typer.Option("--most", min=1, help="Show so many faults of a file at most.")
    ] = _MOST_SHOWN,
    as_json: AsJson = False,
) -> None:
    """Check files of requests as the server would, without one.

    Says every bad line, and what to do about it.

    Exit status: 0 all would run, 4 some would fail their check.
    """
    wanted = read_endpoint_name(endpoint)
    upstreams = None if config is None else UpstreamSettings(config=config).upstreams()
    bad = 0
    for source in sources:
        judged = judge_source(source, wanted, upstreams)
        bad += not judged.is_good
        if as_json:
            show_json({"input": shown_name(source)} | as_object(judged))
        else:
            typer.echo("\n".join(_report(shown_name(source), judged, most)))
    if bad:
        raise typer.Exit(ExitStatus.BATCH_FAILED)


def judge_source(
    source: Path, endpoint: Endpoint | None, upstreams: Upstreams | None = None
) -> Judged:
    """Check a file under the limits of the settings."""
    settings = ValidateSettings()

    def find_model_fault(model: str | None) -> LineError | None:
        if upstreams is None:
            return None
        # Asked of good lines only, which are all for one endpoint.
        found = upstreams.find(judged_endpoint, model)
        return found if isinstance(found, LineError) else None

    with on_disk(source) as file:
        judged_endpoint = endpoint or first_endpoint(file)
        return judge(
            file,
            endpoint=judged_endpoint,
            limits=InputLimits(
                lines=settings.max_lines,
                embedding_inputs=settings.max_embedding_inputs,
                line_bytes=settings.max_line_bytes,
                errors=settings.max_batch_errors,
            ),
            max_file_bytes=ApiSettings().max_bytes_of("batch"),
            find_model_fault=find_model_fault,
        )


def read_endpoint_name(name: str | None) -> Endpoint | None:
    """The endpoint of this name; null if none is named."""
    if name is None:
        return None
    try:
        return Endpoint(name)
    except ValueError:
        known = ", ".join(each.value for each in Endpoint)
        raise UsageError(f"A batch cannot call {name!r}; it can call {known}.") from None


def as_object(judged: Judged) -> dict[str, Any]:
    """What was found, for scripts."""
    return {
        "valid": judged.is_good,
        "endpoint": judged.endpoint.value,
        "model": judged.model,
        "lines": judged.lines,
        "bytes": judged.size_bytes,
        "prompt_tokens": judged.prompt_tokens,
        "upload_refusal": judged.upload_refusal,
        "errors": [each.error.as_dict() | {"hint": each.hint} for each in judged.faults],
    }


def _report(name: str, judged: Judged, most: int) -> Iterator[str]:
    if judged.is_good:
        of = "" if judged.model is None else f" of {judged.model}"
        yield (
            f"{name} is good: {judged.lines:,} requests{of} for {judged.endpoint},"
            f" {show_bytes(judged.size_bytes)}, about {judged.prompt_tokens:,} prompt tokens."
        )
        return
    count = len(judged.faults)
    seen = f"{'the first ' if judged.is_cut else ''}{judged.lines:,} requests"
    yield f"{name} would fail its check: {count:,} {'fault' if count == 1 else 'faults'} in {seen}."
    if judged.upload_refusal is not None:
        yield f"  upload: {judged.upload_refusal}"
    told: set[str] = set()
    for fault in judged.faults[:most]:
        yield from _say_fault(fault, told)
    if count > most:
        yield f"  … and {count - most:,} more; --most {count} shows them."


def _say_fault(fault: Fault, told: set[str]) -> Iterator[str]:
    where = "" if fault.error.line is None else f"line {fault.error.line:,}: "
    yield f"  {where}{fault.error.message}"
    if fault.hint is not None and fault.hint not in told:
        told.add(fault.hint)
        yield f"    → {fault.hint}"
