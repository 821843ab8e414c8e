"""Write `docs/configuration.md` from the settings themselves: run it after changing one.

A test compares the file with `render()`, so the two cannot drift.
"""

from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from api.settings import ApiSettings
from models.settings import (
    BrokerSettings,
    DatabaseSettings,
    MetricsSettings,
    UpstreamSettings,
    WebhookSettings,
)
from worker.settings import ControlSettings, NotifySettings, RunSettings, ValidateSettings

PATH = Path(__file__).parents[1] / "docs" / "configuration.md"
_HEAD = """\
# Configuration

Every setting is an environment variable; an empty one counts as not set. A process refuses to start with a
setting that makes no sense, and says which. `overnight check` tries the whole set-up.

This page is written by `scripts/write_configuration.py`.

## The command

Each is also an option of `overnight up` or `overnight api`, which wins.

| variable | default | |
|---|---|---|
| `OVERNIGHT_HOST` | `127.0.0.1` | Address that the API listens on. |
| `OVERNIGHT_PORT` | `8080` | Port that the API listens on. |
| `OVERNIGHT_DATA_DIR` | `~/.local/share/overnight` | Where `overnight up` keeps data, key and logs. |
| `OVERNIGHT_LOG_LEVEL` | `INFO` | From which level on the single processes log. |
| `OVERNIGHT_LOG_FORMAT` | `console` | How: `console`, or \
`json` for an object a line ([fields](observability.md#logs)). |
"""
_SECTIONS: dict[str, tuple[str, type[BaseSettings]]] = {
    "Database": ("every process", DatabaseSettings),
    "Broker": ("every process", BrokerSettings),
    "Model server": ("api and worker", UpstreamSettings),
    "API": ("api", ApiSettings),
    "Webhooks": ("api and worker", WebhookSettings),
    "Sending webhooks": ("control workers", NotifySettings),
    "Validation": ("control workers", ValidateSettings),
    "Running": ("run workers", RunSettings),
    "Metrics": ("worker", MetricsSettings),
    "Control": ("control workers and beat", ControlSettings),
}


def render() -> str:
    """The whole page."""
    sections = [_HEAD]
    for title, (processes, settings) in _SECTIONS.items():
        rows = [_row(name, field) for name, field in settings.model_fields.items()]
        table = "\n".join(["| variable | default | |", "|---|---|---|", *rows])
        sections.append(f"## {title}\n\nRead by: {processes}.\n\n{table}\n")
    return "\n".join(sections)


def _row(name: str, field: FieldInfo) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        default = "*required*"
    else:
        value = field.get_default(call_default_factory=True, validated_data={})
        default = "" if value is None else f"`{value}`"
    return f"| `OVERNIGHT_{name.upper()}` | {default} | {field.description or ''} |"


if __name__ == "__main__":
    PATH.write_text(render())
