"""The counts of several processes as one: each writes its own into a folder, and one reads them all.

Promises: a file is whole or not there; a full disk costs metrics, never the process; a count outlives the
process that made it, a gauge does not. (Prometheus' client can share memory-mapped files instead. A write
to one of those on a full disk kills the process that writes.)
"""

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from models.metrics import ALL
from models.telling import render

FOLDER_VARIABLE = "OVERNIGHT_METRICS_FOLDER"
"""By which whoever tells the metrics names the folder to those whose counts they are."""

_SUFFIX = ".prom"


def named_folder() -> Path | None:
    """The folder that this process is to write its counts into, if somebody reads them there."""
    name = os.environ.get(FOLDER_VARIABLE)
    return Path(name) if name else None


class CountsFile:
    """This process's file."""

    def __init__(self, folder: Path) -> None:
        # With a random part, for the kernel gives the number of a process to another when it has ended.
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"

    def write(self, families: Iterable[Metric]) -> None:
        """Replace what was told before."""
        part = self._path.with_suffix(".part")
        with contextlib.suppress(OSError):
            part.write_bytes(render(families))
            part.replace(self._path)


def merged(folder: Path, own: Iterable[Metric] = ()) -> list[Metric]:
    """What all processes of the folder counted, and this one."""
    found: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    sources = [(True, list(own))]
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with contextlib.suppress(OSError, ValueError):
            text = path.read_text(encoding="utf-8")
            sources.append((_is_alive(path), list(text_string_to_metric_families(text))))
    for is_alive, families in sources:
        for family in families:
            if family.type == "gauge" and not is_alive:
                continue
            found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            sums = values.setdefault(family.name, {})
            is_shared = family.name in ALL and ALL[family.name].is_shared
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                before = sums.get(key)
                if before is None:
                    sums[key] = sample.value
                else:
                    sums[key] = max(before, sample.value) if is_shared else before + sample.value
    for name, family in found.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    return list(found.values())


def _is_alive(path: Path) -> bool:
    try:
        os.kill(int(path.name.partition("-")[0]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
