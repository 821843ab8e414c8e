"""A model server that answers at once and means nothing by it.

It speaks the eight batchable endpoints of OpenAI's API with complete, valid objects whose text says
it is simulated, and it misbehaves on request: slow, full, failing, cut off, silent. It exists for
trying, for tests and for benchmarks, so it must cost next to nothing beside what is measured.

In a coroutine: `SimulatedServer(SimulatorSettings(latency=0.1))` with `start()` and `stop()`.
In synchronous code: `with simulated_server(latency=0.1) as server`.
"""

from cli.simulator.hosting import ThreadedServer, simulated_server
from cli.simulator.record import Call, Stats
from cli.simulator.server import SimulatedServer
from cli.simulator.settings import SimulatorSettings
from cli.simulator.text import simulated_text

__all__ = [
    "Call",
    "SimulatedServer",
    "SimulatorSettings",
    "Stats",
    "ThreadedServer",
    "simulated_server",
    "simulated_text",
]
