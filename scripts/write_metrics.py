"""Write the table of metrics in `docs/observability.md` from what can be told: run it after changing one.

A test compares the file with `render()`, so the two cannot drift.
"""

from pathlib import Path

from models.metrics import ALL
from models.telling import Described

PATH = Path(__file__).parents[1] / "docs" / "observability.md"
_BEGIN, _END = "<!-- written by scripts/write_metrics.py -->\n", "<!-- end of what it wrote -->\n"


def render() -> str:
    """The whole page, with its table as it should be."""
    before, _, rest = PATH.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    rows = "\n".join(_row(each) for each in ALL.values())
    head = "| metric | kind | labels | told by | |\n|---|---|---|---|---|\n"
    return f"{before}{_BEGIN}\n{head}{rows}\n\n{_END}{after}"


def _row(metric: Described) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.told_by} | {metric.words} |"


if __name__ == "__main__":
    PATH.write_text(render())
