"""The lanes of a process, and their agreement with those of other processes.

Promises: a lane is made when it is first asked for, and forgotten when nothing has gone through it for ten
minutes; every lane in use agrees with the other processes ten times a second, and at once when it is new;
without Redis it goes on with the share that it had, and leaves the lines to others if that is none.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from models.faults import describe
from models.metrics import BROKER_AWAY, BROKER_ERRORS
from models.upstreams import FlowLimits, ModelServer
from worker.flow.controller import Controller
from worker.flow.exchange import Exchange, ExchangeAway, Grant, Limits
from worker.flow.gate import Gate
from worker.flow.lane import Lane, LaneKey
from worker.flow.local_share import LocalShare, interval_of
from worker.flow.server_metrics import QueueWatch
from worker.flow.tally import Tallies
from worker.settings import RunSettings

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
_IDLE_SECONDS = 600.0
_SURELY_AWAY_SECONDS = 3.0
"""Redis may only have been slow: whoever never had a share waits for so long before taking one unasked."""

_SHUT_SECONDS = 10.0
"""How often a process without a share and without Redis looks whether that has changed."""

_START = 32
_MOST = 10_000
_ABOUT_SO_MANY_PROCESSES = 4
"""Taken for their number by one that has never agreed with the others."""


class Lanes:
    """By model server and model. Everything happens on one event loop."""

    def __init__(
        self,
        servers: Mapping[str, ModelServer],
        *,
        settings: RunSettings,
        exchange: Exchange | None,
        on_change: Callable[[], None] = lambda: None,
        tallies: Tallies | None = None,
    ) -> None:
        """`on_change` is called whenever there may be room where there was none."""
        self.tallies = Tallies() if tallies is None else tallies
        self._servers = servers
        self._settings = settings
        self._exchange = exchange
        self._on_change = on_change
        self._lanes: dict[LaneKey, Lane] = {}
        self._server_gates: dict[str, Gate] = {}
        self._watches: dict[str, QueueWatch] = {}
        self._local: dict[str, LocalShare] = {}
        self._in_use: dict[str, Gate] = {}
        self._away_since: float | None = None
        self._is_wanted = asyncio.Event()
        self.nowhere = Lane(
            LaneKey("", ""),
            [
                Gate(
                    "",
                    Limits(
                        fixed=1, start=1, most=1, requests_per_minute=None, tokens_per_minute=None
                    ),
                    _clock,
                )
            ],
            settings=settings,
            clock=_clock,
            tally=self.tallies.of("", ""),
        )
        """Of lines that no server may get."""

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def find(self, key: LaneKey, own: FlowLimits | None = None) -> Lane:
        """The lane; `own` are the model's own limits, if it has any."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = self._make(key, own)
        return lane

    def want(self) -> None:
        """A lane has something to do: agree about it now, and from now on."""
        self._is_wanted.set()

    async def keep_agreeing(self) -> None:
        """Go on until cancelled; sleeps while no lane is in use."""
        while True:
            self._is_wanted.clear()
            is_in_use = True
            # Whatever goes wrong with one lane, the others of the process must go on.
            try:
                is_in_use = await self.agree()
            except Exception as error:  # noqa: BLE001
                log.error("no agreement on the lanes: %s", describe(error))  # noqa: TRY400
            try:
                self._on_change()
            except Exception as error:  # noqa: BLE001
                log.error("lanes: %s", describe(error))  # noqa: TRY400
            timeout = TICK_SECONDS if is_in_use else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_wanted.wait(), timeout)

    async def agree(self) -> bool:
        """Agree with the other processes once, about every lane in use; say whether there is any."""
        busy = [lane for lane in self._lanes.values() if lane.is_in_use]
        in_use: dict[str, Gate] = {}
        waiting: dict[str, int] = {}
        for lane in busy:
            lane.tick()
            for gate in lane.gates:
                in_use[gate.name] = gate
                waiting[gate.name] = waiting.get(gate.name, 0) + lane.waiting
        lengths = {lane.own.name: self._queue_length(lane.key) for lane in busy}
        tokens = {gate.name: lane.tokens_a_line for lane in busy for gate in lane.gates}
        left = [gate for name, gate in self._in_use.items() if name not in in_use]
        self._in_use = in_use
        outcomes = await asyncio.gather(
            *(self._leave(gate) for gate in left),
            *(
                self._agree(
                    gate,
                    waiting=waiting[name],
                    tokens_a_line=tokens[name],
                    queue_length=lengths.get(name),
                )
                for name, gate in in_use.items()
            ),
            return_exceptions=True,
        )
        self._forget_unused()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return bool(busy)

    async def aclose(self) -> None:
        """Give every share back, and close the connections."""
        await asyncio.gather(*(self._leave(gate) for gate in self._in_use.values()))
        for watch in self._watches.values():
            await watch.aclose()
        if self._exchange is not None:
            await self._exchange.aclose()

    async def _agree(
        self, gate: Gate, *, waiting: int, tokens_a_line: int, queue_length: int | None
    ) -> None:
        report = gate.report(waiting=waiting, tokens_a_line=tokens_a_line)
        if self._exchange is not None:
            try:
                grant = await self._exchange.exchange(gate.name, report, gate.limits)
            except ExchangeAway:
                BROKER_ERRORS.labels("share").inc()
                if self._away_since is None:
                    log.warning("the broker is away: every model's share of calls stays as it is")
                    BROKER_AWAY.labels("share").set(1)
                    self._away_since = _clock()
                if self._is_new(gate) and _clock() - self._away_since < _SURELY_AWAY_SECONDS:
                    return
            else:
                if self._away_since is not None:
                    log.info("the broker is back: shares of calls are agreed upon again")
                    BROKER_AWAY.labels("share").set(0)
                self._away_since = None
                self._local.pop(gate.name, None)
                gate.shut_until = float("-inf")
                if grant.cap < gate.cap:
                    # What this process gives up is the others' from its next exchange on.
                    self._is_wanted.set()
                gate.agree(report, grant)
                await self._step(gate, grant, queue_length)
                return
        local = self._local.get(gate.name)
        if local is None:
            local = self._local[gate.name] = self._local_share(gate)
        gate.agree(report, local.exchange(report, now=_clock(), waiting=queue_length))
        gate.shut_until = _clock() + _SHUT_SECONDS if not gate.cap else float("-inf")

    async def _step(self, gate: Gate, grant: Grant, queue_length: int | None) -> None:
        """Move the limit for all processes, if it is this one's turn to."""
        if self._exchange is None or grant.totals is None:
            return
        controller = (
            Controller.load(grant.state, most=gate.limits.most)
            if grant.state
            else Controller(most=gate.limits.most, start=gate.limits.start)
        )
        controller.step(interval_of(grant.totals, waiting=queue_length))
        if controller.limit != grant.limit:
            log.debug("%s: %s calls in flight, after %s", gate.name, controller.limit, grant.limit)
        with contextlib.suppress(ExchangeAway):
            await self._exchange.commit(
                gate.name,
                grant,
                limit=controller.limit,
                state=controller.dump(),
                interval_seconds=controller.interval_seconds,
            )

    def _is_new(self, gate: Gate) -> bool:
        """Whether the others may have all of its limit, for all that this process knows."""
        return gate.agreed_at is None and gate.name not in self._local

    def _local_share(self, gate: Gate) -> LocalShare:
        if self._exchange is None:
            return LocalShare(gate.limits, cap=None, processes=1)
        if gate.agreed_at is None:
            part = max(1, (gate.limits.fixed or gate.limits.start) // _ABOUT_SO_MANY_PROCESSES)
            return LocalShare(gate.limits, cap=part, processes=_ABOUT_SO_MANY_PROCESSES)
        return LocalShare(gate.limits, cap=gate.cap, processes=gate.processes)

    async def _leave(self, gate: Gate) -> None:
        """Say what was done last, and give the share and what is left of the permits back."""
        # From here on no call is begun: what is given back may be somebody else's at once.
        gate.agreed_at = None
        if self._exchange is not None:
            with contextlib.suppress(ExchangeAway):
                report = gate.last_report()
                grant = await self._exchange.exchange(gate.name, report, gate.limits)
                gate.agree(report, grant)
                gate.agreed_at = None
                await self._exchange.leave(gate.name)

    def _make(self, key: LaneKey, own: FlowLimits | None) -> Lane:
        server = self._servers[key.server]
        gates = [Gate(str(key), _limits_of_model(own, server.flow), _clock)]
        if (limits := _limits_of_server(server.flow)) is not None:
            if key.server not in self._server_gates:
                self._server_gates[key.server] = Gate(f"={key.server}", limits, _clock)
            gates.append(self._server_gates[key.server])
        if server.metrics_url is not None and key.server not in self._watches:
            self._watches[key.server] = QueueWatch(server)
        return Lane(
            key,
            gates,
            settings=self._settings,
            clock=_clock,
            hours=server.active_hours,
            pause_server=partial(self._pause_server, key.server),
            tally=self.tallies.of(key.server, key.model),
        )

    def _pause_server(self, name: str, seconds: float) -> None:
        for lane in self._lanes.values():
            if lane.key.server == name:
                lane.own.pause_everywhere(seconds)

    def _queue_length(self, key: LaneKey) -> int | None:
        watch = self._watches.get(key.server)
        if watch is None:
            return None
        watch.touch()
        return watch.waiting(key.model)

    def _forget_unused(self) -> None:
        now = _clock()
        for key, lane in list(self._lanes.items()):
            if now - lane.used_at > _IDLE_SECONDS and not lane.is_in_use:
                del self._lanes[key]


def _limits_of_model(own: FlowLimits | None, server: FlowLimits) -> Limits:
    """Of one model: what its table says, or else adaptive below what its server takes in all."""
    flow = own or FlowLimits(max_in_flight=server.max_in_flight, adaptive=server.adaptive)
    most = min(flow.max_in_flight or _MOST, server.max_in_flight or _MOST)
    return Limits(
        fixed=None if flow.adaptive else most,
        start=min(_START, most),
        most=most,
        requests_per_minute=flow.requests_per_minute,
        tokens_per_minute=flow.tokens_per_minute,
    )


def _limits_of_server(flow: FlowLimits) -> Limits | None:
    """Of all models of a server together; null if it has none."""
    if (flow.max_in_flight, flow.requests_per_minute, flow.tokens_per_minute) == (None, None, None):
        return None
    most = flow.max_in_flight or _MOST
    return Limits(
        fixed=most,
        start=most,
        most=most,
        requests_per_minute=flow.requests_per_minute,
        tokens_per_minute=flow.tokens_per_minute,
    )


def _clock() -> float:
    return time.monotonic()
