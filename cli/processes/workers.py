"""The two kinds of worker process, as programs to supervise.

Imports nothing of the workers: who only starts them need not load their code.
"""

import math
import os
from collections.abc import Mapping
from enum import StrEnum

from cli.program import Program, overnight

#: The default of OVERNIGHT_DRAIN_SECONDS; a test keeps it equal to the workers' own.
DRAIN_SECONDS = 30.0
# What a worker may take, on top of its drain time, to record results and to close connections.
_MARGIN_SECONDS = 10.0


class Only(StrEnum):
    """The two kinds of worker process."""

    RUN = "run"
    CONTROL = "control"


def worker_program(
    only: Only, *, name: str, env: Mapping[str, str], stage: int = 0, gate_fd: int | None = None
) -> Program:
    """One worker process, as a program to supervise."""
    gate = () if gate_fd is None else ("--gate-fd", str(gate_fd))
    return Program(
        name=name,
        argv=overnight("worker", "--only", only.value, *gate),
        env=env,
        stage=stage,
        stop_seconds=read_number("OVERNIGHT_DRAIN_SECONDS", DRAIN_SECONDS) + _MARGIN_SECONDS,
        pass_fds=() if gate_fd is None else (gate_fd,),
    )


def read_number(name: str, default: float) -> float:
    """A setting of the processes that their supervisor has to know, too."""
    try:
        number = float(os.environ.get(name) or default)
    except ValueError:
        # The process that it belongs to will refuse it in a sentence of its own.
        return default
    return number if math.isfinite(number) else default
