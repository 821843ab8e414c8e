"""How long a model server's own queue is, from what it publishes for Prometheus.

vLLM, SGLang and llama.cpp do, at `/metrics`. Promises: nothing here raises or waits long, and nothing is
said of a queue that was not seen within three seconds. A server that publishes none is asked again once a
minute; nobody is asked while nobody wants to know.
"""

import asyncio
import logging
import math
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from models.upstreams import ModelServer

log = logging.getLogger(__name__)

_RUNNING = frozenset(
    {"vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing"}
)
_WAITING = frozenset(
    {"vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred"}
)
# A page of vLLM has a thousand lines of histograms, and parsing them all would hold up the loop.
_LINES = re.compile(rf"^(?:{'|'.join(sorted(_RUNNING | _WAITING))})[ {{].*$", re.MULTILINE)
# Ranks that do one model's work together, each of which may publish the same numbers.
_RANKS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank"})

_POLL_SECONDS = 1.0
_STALE_SECONDS = 3.0
_LONGEST_WAIT_SECONDS = 60.0
_TIMEOUT_SECONDS = 1.0
_MOST_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class QueueGauge:
    """The calls of one model that its server works on, and those that wait there."""

    running: int
    waiting: int


class NoQueuePublished(Exception):
    """The server answers, but not with a queue's length; it would do the same again."""


def parse_queues(text: str) -> dict[str, QueueGauge]:
    """Each model's queue, by its name there; the name is empty if the page gives none.

    What does not read as a metric is passed over.
    """
    # By model, whether it waits, and engine: several engines of one model add up, ranks do not.
    values: dict[tuple[str, bool], dict[frozenset[tuple[str, str]], float]] = defaultdict(dict)
    for line in _LINES.findall(text):
        try:
            samples = [
                sample
                for family in text_string_to_metric_families(f"{line}\n")
                for sample in family.samples
            ]
        except (ValueError, LookupError, TypeError):
            continue
        for sample in samples:
            if not (math.isfinite(sample.value) and sample.value >= 0):
                continue
            model = sample.labels.get("model_name") or sample.labels.get("model") or ""
            engine = frozenset(each for each in sample.labels.items() if each[0] not in _RANKS)
            of_model = values[model, sample.name in _WAITING]
            of_model[engine] = max(sample.value, of_model.get(engine, 0.0))
    return {
        model: QueueGauge(
            running=round(sum(values.get((model, False), {}).values())),
            waiting=round(sum(of_model.values())),
        )
        for (model, is_waiting), of_model in values.items()
        if is_waiting
    }


def find_queue(queues: Mapping[str, QueueGauge], model: str | None) -> QueueGauge | None:
    """The queue of a model; that of the only one there is, for a server may have several names for it."""
    found = None if model is None else queues.get(model)
    if found is None and len(queues) == 1:
        return next(iter(queues.values()))
    return found


Fetch = Callable[[], Awaitable[str]]
"""Gets the page of metrics. Raises NoQueuePublished, or what `QueueWatch` counts as being away."""


class QueueWatch:
    """Looks at one server's queue about every second, for as long as somebody says `touch`."""

    def __init__(
        self,
        server: ModelServer,
        *,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._page = MetricsPage(server)
        self._fetch = fetch or self._page.fetch
        self._clock = clock
        self._queues: Mapping[str, QueueGauge] = {}
        self._seen_at = -math.inf
        self._next_at = -math.inf
        self._failures = 0
        self._is_found = False
        self._task: asyncio.Task[None] | None = None

    def touch(self) -> None:
        """Say that the queue is of interest now. Costs nothing; begins a look when one is due."""
        if self._server.metrics_url is None or self._clock() < self._next_at:
            return
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look())

    def waiting(self, model: str | None) -> int | None:
        """How many calls of the model wait at the server; null if that is not known at present."""
        if self._clock() - self._seen_at > _STALE_SECONDS:
            return None
        queue = find_queue(self._queues, model)
        return None if queue is None else queue.waiting

    async def aclose(self) -> None:
        """Let a look that is under way end, which takes a second at most, and close the connection."""
        self._next_at = math.inf
        if self._task is not None:
            await asyncio.wait([self._task])
        await self._page.aclose()

    async def _look(self) -> None:
        began = self._clock()
        wait_seconds = await self._read(began)
        if self._next_at != math.inf:
            self._next_at = began + wait_seconds

    async def _read(self, began: float) -> float:
        """Look once; the seconds until the next time."""
        try:
            queues = parse_queues(await self._fetch())
        except NoQueuePublished:
            return _LONGEST_WAIT_SECONDS
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            # A busy server may be late, and one that is started again comes back.
            self._failures += 1
            return min(_LONGEST_WAIT_SECONDS, _POLL_SECONDS * 2.0 ** min(self._failures, 10))
        self._failures = 0
        if not queues:
            return _LONGEST_WAIT_SECONDS
        self._queues, self._seen_at = queues, began
        if not self._is_found:
            self._is_found = True
            log.info("model server %s publishes the length of its queue", self._server.name)
        return _POLL_SECONDS


class MetricsPage:
    """Gets a server's page of metrics, over a session of its own that is opened when it is first used."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self) -> str:
        """The page. Raises NoQueuePublished, or an error of aiohttp or of the time limit."""
        async with self._open().get(
            self._server.metrics_url or "", headers=self._headers(), allow_redirects=False
        ) as response:
            if response.status >= 500:
                response.raise_for_status()
            if response.status != 200:
                raise NoQueuePublished
            page = bytearray()
            async for piece in response.content.iter_any():
                page += piece
                if len(page) > _MOST_BYTES:
                    raise NoQueuePublished
        return page.decode(errors="replace")

    async def aclose(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()

    def _headers(self) -> dict[str, str]:
        """The server's own, its key among them; none if the page is elsewhere, or less well guarded."""
        server, page = urlsplit(self._server.url), urlsplit(self._server.metrics_url or "")
        is_there = page.hostname == server.hostname and page.scheme in {"https", server.scheme}
        return self._server.own_headers() if is_there else {}

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS),
                trust_env=not self._server.is_local,
            )
        return self._session
