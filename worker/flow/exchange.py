"""What the processes agree on at a gate: each tells what it did, and gets its share of the limit.

Everything is in Redis, in one value for each gate, and changed by one script (`exchange.lua`), by Redis'
own clock. Promises: what all processes may have in flight never exceeds the limit because of a raise; a
process that is not heard of for three seconds loses its share to the others; nothing here takes longer
than half a second. Redis may lose everything: a limit is then learned again.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

KEY_PREFIX = "overnight:flow:"

_SCRIPT = files("worker.flow").joinpath("exchange.lua").read_text(encoding="utf-8")
_TIMEOUT_SECONDS = 0.5
_AWAY_SECONDS = 1.0
_CONNECTIONS = 4
_FIRST_INTERVAL_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one process did at a gate since its last exchange that succeeded."""

    in_flight: int
    """Calls in flight now."""

    demand: int
    """Calls in flight, and lines that wait for a slot, now."""

    cut: int
    """Slots of its share that it gave up after refusals; the share is that much smaller already."""

    succeeded: int
    refused: int
    failed: int
    latency_seconds: float
    """The sum over the succeeded ones."""

    slot_seconds: float
    """The integral of the calls in flight over time."""

    limited_seconds: float
    """For how long lines waited although the share was used up."""

    pause_seconds: float
    """For how long, from now, the server asked for silence; 0 if it did not."""

    requests: int
    """Permits wanted from the rate of requests; below zero: given back."""

    tokens: int
    """Permits wanted from the rate of tokens; below zero: given back."""

    overdrawn_tokens: int = 0
    """Tokens used beyond all permits: taken from the rate at once, be it into debt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a gate lets through. A change applies with the next exchange."""

    fixed: int | None
    """Calls in flight of all processes; null to learn how many the server takes."""

    start: int
    """The limit to begin learning with."""

    most: int
    """The limit is never learned to be above this."""

    requests_per_minute: float | None
    tokens_per_minute: float | None
    """Of all processes. Permits are kept for two seconds, so that no minute gets more than the rate and
    a thirtieth, or one request more (another thirtieth when Redis was emptied)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What all processes did since the last step of the controller; the sums are those of `Report`."""

    seconds: float
    limit: int
    """The limit now, what was cut already taken off."""

    cut: int
    succeeded: int
    refused: int
    failed: int
    latency_seconds: float
    slot_seconds: float
    limited_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a process may do until its next exchange.

    It lapses: whoever made the last one more than two seconds ago makes another before beginning a call,
    and goes on without only if Redis is away. A share that became smaller is others' from the next
    exchange on, so making that at once hands it on sooner.
    """

    cap: int
    """Calls that this process may have in flight."""

    limit: int
    """Calls that all processes may have in flight."""

    processes: int
    """Those who are at the gate, this one among them."""

    pause_seconds: float
    """Begin no call for so long."""

    requests: int
    tokens: int
    """Permits granted; all that was asked for where there is no such rate."""

    totals: Totals | None = None
    """Given to the one process that is to step the controller, and `commit` what it says."""

    state: str = ""
    """With `totals`: the controller's, as it was committed last; empty if it never was."""

    epoch: int = 0
    """With `totals`: names the offer to `commit`."""


class ExchangeAway(Exception):
    """Redis cannot be asked: go on with the last share, and ask again."""


@dataclass(slots=True)
class _Standing:
    """What this process last heard at a gate."""

    cap: int = 0
    serial: int = 0


class Exchange:
    """One process's connection to the gates; opened on first use, on the loop that runs then."""

    def __init__(
        self,
        redis_url: str,
        process: str,
        *,
        liveness_seconds: float = 3.0,
        first_interval_seconds: float = _FIRST_INTERVAL_SECONDS,
    ) -> None:
        """`process` is a name that no other process has, and no earlier one had.

        `liveness_seconds` must be the same for all processes.
        """
        self._url = redis_py_url(redis_url)
        self._process = process
        self._liveness_ms = round(1000 * liveness_seconds)
        self._first_interval_ms = round(1000 * first_interval_seconds)
        self._client: Redis | None = None
        self._script: AsyncScript | None = None
        self._away_until = 0.0
        self._standings: dict[str, _Standing] = {}

    async def exchange(self, gate: str, report: Report, limits: Limits) -> Grant:
        """Tell the others, and get a share; one at a time for each gate.

        Raises ExchangeAway within about half a second, and then at once for a second. The report was
        then not taken: the next one must have what it said, too.
        """
        standing = self._standings.setdefault(gate, _Standing())
        answer = await self._call(
            gate,
            "exchange",
            {
                "report": report,
                "limits": limits,
                "held": standing.cap,
                "serial": standing.serial,
                "liveness_ms": self._liveness_ms,
                "first_interval_ms": self._first_interval_ms,
            },
        )
        grant = msgspec.json.decode(answer, type=Grant)
        standing.cap = grant.cap
        standing.serial += 1
        return grant

    async def commit(
        self, gate: str, grant: Grant, *, limit: int, state: str, interval_seconds: float
    ) -> bool:
        """Set what the controller made of the grant's totals, and when it is to be stepped again.

        False if it came too late: slots were cut meanwhile, another process was asked, or Redis was
        emptied. The totals are then offered again, with what has been added since.
        """
        step = {
            "epoch": grant.epoch,
            "limit": limit,
            "state": state,
            "interval_ms": round(1000 * interval_seconds),
        }
        return bool(await self._call(gate, "commit", step))

    async def leave(self, gate: str) -> None:
        """Give the share back, with no call in flight. An idle process does this, or goes on exchanging."""
        self._standings.pop(gate, None)
        await self._call(gate, "leave", {})

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client, self._script = self._client, None, None
        if client is not None:
            with contextlib.suppress(RedisError, OSError):
                await client.aclose()

    async def _call(self, gate: str, deed: str, rest: dict[str, Any]) -> Any:
        if time.monotonic() < self._away_until:
            raise ExchangeAway("not asked again yet")
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                if self._client is None or self._script is None:
                    self._client = self._connect()
                    self._script = self._client.register_script(_SCRIPT)
                return await self._script(
                    keys=[KEY_PREFIX + gate], args=[deed, self._process, msgspec.json.encode(rest)]
                )
        except (RedisError, OSError) as error:
            self._away_until = time.monotonic() + _AWAY_SECONDS
            raise ExchangeAway(type(error).__name__) from error

    def _connect(self) -> Redis:
        pool = BlockingConnectionPool.from_url(
            self._url,
            max_connections=_CONNECTIONS,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            # Trying again is the business of the next exchange.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        return Redis.from_pool(pool)


def redis_py_url(broker_url: str) -> str:
    """The broker's URL, as redis-py writes what Celery reads from it."""
    # Celery takes several, to try one after the other.
    first, *_ = broker_url.split(";")
    place, _, query = first.partition("?")
    options = dict(parse_qsl(query))
    scheme, _, rest = place.partition("://")
    if scheme == "redis+socket":
        database = options.get("virtual_host") or options.get("db") or "0"
        return f"unix://{rest}?{urlencode({'db': database.strip('/')})}"
    if scheme not in {"redis", "rediss"}:
        raise ValueError(f"no URL of a Redis: {scheme}://")
    secured = {name: value for name, value in options.items() if name.startswith("ssl_")}
    if "ssl_cert_reqs" in secured:
        secured["ssl_cert_reqs"] = secured["ssl_cert_reqs"].removeprefix("CERT_").lower()
    return f"{place}?{urlencode(secured)}" if secured else place
