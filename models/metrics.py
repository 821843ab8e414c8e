"""Every metric that the engine tells Prometheus, and the counts that any process may add to.

Promises: docs/observability.md lists them all; a label holds what the operator or this code named, never a
word of a tenant, a client or a model server.

Where a process counts something rarely, it adds to one of the counters below. What happens at every call is
counted in plain numbers instead, and read when somebody asks (`worker.flow.tally`).
"""

import importlib.metadata

from prometheus_client.metrics_core import Metric

from models.lifecycle import FINAL
from models.telling import DESCRIBED, describe

API, ENGINE, RUN, WORKER, EVERY = "api", "api, of the engine", "run worker", "worker", "api, worker"

FAST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SLOW_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

PART_UP = describe("overnight_part_up", "gauge", ENGINE, "Whether a part answers.", "part")
BATCHES = describe("overnight_batches", "gauge", ENGINE, "Open batches.", "status")
BATCHES_PAUSED = describe(
    "overnight_batches_paused", "gauge", ENGINE, "Batches in progress that are paused."
)
BATCH_DEADLINE = describe(
    "overnight_batch_deadline_seconds",
    "gauge",
    ENGINE,
    "Time until the window of the most pressing batch closes, of those not yet finalizing or cancelling;"
    " not told while there is none.",
)
BATCH_TRIES = describe(
    "overnight_batch_tries",
    "gauge",
    ENGINE,
    "Times that the present stage of a batch was begun without an end, the most of any.",
    "status",
)
BATCH_ENDING = describe(
    "overnight_batch_ending_seconds",
    "gauge",
    ENGINE,
    "For how long a batch has been finalizing or cancelling, the most of any.",
)
SHARDS_WAITING = describe(
    "overnight_shards_waiting",
    "gauge",
    ENGINE,
    "Shards that a worker could claim now: what to scale workers by. Counted up to 5,000.",
)
LINES_WAITING = describe(
    "overnight_lines_waiting",
    "gauge",
    ENGINE,
    "Lines without a result in those shards.",
)
SHARDS = describe(
    "overnight_shards",
    "gauge",
    ENGINE,
    "Shards at work, by whether their lease is held or has run out.",
    "lease",
)
SHARD_LAPSES = describe(
    "overnight_shard_lapses",
    "gauge",
    ENGINE,
    "Leases of a shard that ran out in a row with nothing recorded, the most of any.",
)
CALLS_IN_FLIGHT = describe(
    "overnight_calls_in_flight",
    "gauge",
    ENGINE,
    "Calls in flight, as the workers last wrote it down.",
)

HTTP_REQUESTS = describe(
    "overnight_http_requests_total",
    "counter",
    API,
    "Requests answered, by the route's pattern; `unknown` is a path that there is none for.",
    "method",
    "route",
    "status",
)
HTTP_DURATION = describe(
    "overnight_http_request_duration_seconds",
    "histogram",
    API,
    "From a request's head to the end of its answer.",
    "method",
    "route",
)

LINES = describe(
    "overnight_lines_total",
    "counter",
    RUN,
    "Lines whose result was recorded: `succeeded` or `failed`.",
    "upstream",
    "model",
    "outcome",
)
TOKENS = describe(
    "overnight_tokens_total",
    "counter",
    RUN,
    "Tokens that the answers of recorded lines tell of: `input`, `cached` (part of input), `output`.",
    "upstream",
    "model",
    "kind",
)
UPSTREAM_CALLS = describe(
    "overnight_upstream_calls_total",
    "counter",
    RUN,
    "Calls that ended, by the answer's status: `2xx`, `3xx`, `4xx`, `5xx`, and `429` by itself; without"
    " one, `unreachable`, `timeout`, `disconnected` or `broken`.",
    "upstream",
    "model",
    "status",
)
UPSTREAM_RETRIES = describe(
    "overnight_upstream_retries_total",
    "counter",
    RUN,
    "Calls that were made again for a line whose earlier call failed.",
    "upstream",
    "model",
)
UPSTREAM_DURATION = describe(
    "overnight_upstream_call_duration_seconds",
    "histogram",
    RUN,
    "How long the calls took that succeeded.",
    "upstream",
    "model",
)
UPSTREAM_IN_FLIGHT = describe(
    "overnight_upstream_calls_in_flight",
    "gauge",
    RUN,
    "Calls in flight now.",
    "upstream",
    "model",
)
UPSTREAM_SHARE = describe(
    "overnight_upstream_concurrency_share",
    "gauge",
    RUN,
    "Calls that this worker may have in flight; of all workers together, at most the limit.",
    "upstream",
    "model",
)
UPSTREAM_LIMIT = describe(
    "overnight_upstream_concurrency_limit",
    "gauge",
    RUN,
    "Calls that all workers together may have in flight, as found or as set; every worker tells the same.",
    "upstream",
    "model",
    is_shared=True,
)
BREAKER_OPEN = describe(
    "overnight_upstream_breaker_open",
    "gauge",
    RUN,
    "1 while it is taken to be down, and asked by one call at a time.",
    "upstream",
    "model",
    is_shared=True,
)
LEASES_LOST = describe(
    "overnight_leases_lost_total",
    "counter",
    RUN,
    "Shards that another worker took over while this one was at work on them.",
).counter()

STAGE_DURATION = describe(
    "overnight_stage_duration_seconds",
    "histogram",
    WORKER,
    "How long a bell took to answer: `validate_batch`, `finalize_batch`, `notify`, `sweep`;"
    " `look_for_shards` only wakes whoever calls lines.",
    "stage",
).histogram(SLOW_SECONDS)
STAGE_FAILURES = describe(
    "overnight_stage_failures_total",
    "counter",
    WORKER,
    "Bells whose answer ended in an error; the sweep rings again.",
    "stage",
).counter("validate_batch", "finalize_batch", "notify", "sweep", "look_for_shards")
WEBHOOK_TRIES = describe(
    "overnight_webhook_tries_total",
    "counter",
    WORKER,
    "Webhooks sent: `delivered`, `pending` (failed, to be tried again), `failed` (given up), or `lost` (no"
    " longer this worker's).",
    "outcome",
).counter("delivered", "pending", "failed", "lost")

BATCHES_ENDED = describe(
    "overnight_batches_ended_total",
    "counter",
    EVERY,
    "Batches that came to their end, by their last status.",
    "status",
).counter(*sorted(FINAL))
DATABASE_ERRORS = describe(
    "overnight_database_errors_total",
    "counter",
    EVERY,
    "Statements and transactions that failed: `away` (no server answered) or `refused` (it said no).",
    "kind",
).counter("away", "refused")
BROKER_ERRORS = describe(
    "overnight_broker_errors_total",
    "counter",
    EVERY,
    "Uses of Redis that failed: a `bell` not rung, a `share` of calls not agreed upon.",
    "use",
).counter("bell", "share")
BROKER_AWAY = describe(
    "overnight_broker_away",
    "gauge",
    EVERY,
    "1 from a use of Redis that failed to one that succeeds.",
    "use",
    is_shared=True,
).gauge()
BUILD_INFO = describe(
    "overnight_build_info",
    "gauge",
    EVERY,
    "1, with the version as its label.",
    "version",
    is_shared=True,
)

ALL = DESCRIBED
"""By name, in the order in which they are documented."""


def build_info() -> Metric:
    """Which version tells this."""
    try:
        version = importlib.metadata.version("overnight")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return BUILD_INFO.family([([version], 1)])
