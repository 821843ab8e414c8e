"""How a batch went over its life: lines that ended, how long their calls took, how many were in flight.

It is told from the results themselves, so nobody writes anything for it as the batch goes along; when the
results are dropped at the batch's end, what this says of them is kept in its row (`Batch.history`).
In flight are the last calls of lines that have ended: those before a retry, and those still under way, are
not in the results.
"""

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_MOST_POINTS = 120
_SLOWEST = 20
_MIN_INTERVAL_SECONDS = 1.0

# A line's call takes up the intervals from the one that it began in to the one that it ended in, each to
# the part that it lasted there. Results are written together, up to a second after their calls ended.
_POINTS = text(
    """
    WITH timed AS (
        SELECT succeeded, coalesce(seconds, 0)::float8 AS seconds,
            extract(epoch FROM recorded_at)::float8 - :begins_at AS ended
        FROM results WHERE batch_pk = :batch_pk
    ), placed AS (
        SELECT succeeded, seconds, ended,
            least(greatest(floor((ended - seconds) / :width), 0), :last)::int AS first_no,
            least(greatest(floor(ended / :width), 0), :last)::int AS no
        FROM timed
    ), ended AS (
        SELECT no, count(*) FILTER (WHERE succeeded) AS completed,
            count(*) FILTER (WHERE NOT succeeded) AS failed,
            percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY seconds)
                FILTER (WHERE seconds > 0) AS latencies
        FROM placed GROUP BY no
    ), busy AS (
        SELECT part AS no, sum(greatest(0,
            least(ended, (part + 1) * :width) - greatest(ended - seconds, part * :width)
        )) / :width AS in_flight
        FROM placed, generate_series(first_no, no) AS part
        WHERE seconds > 0 GROUP BY part
    )
    SELECT no, coalesce(completed, 0) AS completed, coalesce(failed, 0) AS failed,
        latencies[1] AS p50, latencies[2] AS p95, coalesce(in_flight, 0) AS in_flight
    FROM ended FULL JOIN busy USING (no) ORDER BY no
    """
)
_SLOW_LINES = text(
    """
    SELECT line_no, seconds, succeeded FROM results
    WHERE batch_pk = :batch_pk AND seconds > 0
    ORDER BY seconds DESC, line_no LIMIT :most
    """
)


_ENDS_AT = text(
    """
    SELECT extract(epoch FROM CASE WHEN :so_far THEN clock_timestamp() ELSE max(recorded_at) END)
        ::float8 AS ends_at
    FROM results WHERE batch_pk = :batch_pk
    """
)


async def history_of(
    session: AsyncSession, batch_pk: int, *, begins_at: float, so_far: bool = False
) -> dict[str, Any]:
    """The history of a batch's results, as it is kept; times are Unix seconds.

    It goes to the last result, or until now if it is told `so_far`.

    `points` has, for each interval in which something was, its number and
    `completed, failed, latency_p50, latency_p95, in_flight`; `slowest` has `line, seconds, succeeded`.
    """
    ends_at = await session.scalar(_ENDS_AT, {"batch_pk": batch_pk, "so_far": so_far})
    seconds = max(0.0, (ends_at or begins_at) - begins_at)
    width = max(_MIN_INTERVAL_SECONDS, seconds / _MOST_POINTS)
    last = max(0, min(_MOST_POINTS, int(seconds / width)))
    values = {"batch_pk": batch_pk, "begins_at": begins_at, "width": width, "last": last}
    points = [
        [row.no, row.completed, row.failed, _short(row.p50), _short(row.p95), _short(row.in_flight)]
        for row in await session.execute(_POINTS, values)
    ]
    slowest = [
        [row.line_no, _short(row.seconds), row.succeeded]
        for row in await session.execute(_SLOW_LINES, {"batch_pk": batch_pk, "most": _SLOWEST})
    ]
    return {
        "begins_at": round(begins_at, 3),
        "interval_seconds": round(width, 3),
        "points": points,
        "slowest": slowest,
    }


def _short(number: float | None) -> float | None:
    return None if number is None else round(float(number), 3)
