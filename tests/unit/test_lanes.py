"""The lanes of a process without Redis: which there are, and what one says of its server to the others."""

import pytest

from models.upstreams import FlowLimits, ModelServer
from tests.fixtures.runtime import run_settings
from tests.unit.test_lane import Source
from worker.flow.exchange import ExchangeAway
from worker.flow.lane import Lane, LaneKey
from worker.flow.lanes import Lanes


def server(name: str, **flow: object) -> ModelServer:
    return ModelServer(
        name=name,
        url="http://localhost:1/v1",
        call_timeout_seconds=1,
        connect_timeout_seconds=1,
        max_response_bytes=1,
        flow=FlowLimits(**flow),  # type: ignore[arg-type]  # the dataclass's fields
    )


def lanes_of(*servers: ModelServer) -> Lanes:
    return Lanes({each.name: each for each in servers}, settings=run_settings(), exchange=None)


def pauses(*lanes: Lane) -> list[bool]:
    return [lane.own.paused_until > lane.clock() for lane in lanes]


async def test_a_lane_is_made_once() -> None:
    lanes = lanes_of(server("a"))
    made = lanes.find(LaneKey("a", "m"))
    assert lanes.find(LaneKey("a", "m")) is made
    assert list(lanes) == [made]


@pytest.mark.parametrize(("is_of_server", "others"), [(False, False), (True, True)])
async def test_only_a_server_s_own_wish_pauses_all_its_models(
    is_of_server: bool, others: bool
) -> None:
    lanes = lanes_of(server("a"), server("b"))
    one, other, elsewhere = (
        lanes.find(LaneKey(*names)) for names in (("a", "m"), ("a", "n"), ("b", "m"))
    )
    one.started(1)
    one.refused(30.0, seconds=0.1, is_of_server=is_of_server, tokens=1, hint=None)
    assert pauses(one, other, elsewhere) == [True, others, False]


async def test_models_of_a_limited_server_share_its_gate() -> None:
    lanes = lanes_of(server("a", max_in_flight=8), server("b"))
    one, other = lanes.find(LaneKey("a", "m")), lanes.find(LaneKey("a", "n"))
    assert one.gates[1] is other.gates[1]
    assert one.own is not other.own
    assert one.gates[1].limits.fixed == 8
    # What a model may have is found by trying, and is never more than what its server may.
    assert (one.own.limits.fixed, one.own.limits.start, one.own.limits.most) == (None, 8, 8)
    free = lanes.find(LaneKey("b", "m"))
    assert (len(free.gates), free.own.limits.fixed) == (1, None)


async def test_a_model_s_own_limits_come_first() -> None:
    lanes = lanes_of(server("a", max_in_flight=8))
    own = FlowLimits(max_in_flight=3, adaptive=False, requests_per_minute=60.0)
    limits = lanes.find(LaneKey("a", "m"), own).own.limits
    assert (limits.fixed, limits.most, limits.requests_per_minute) == (3, 3, 60.0)


class SlowExchange:
    """Redis that does not answer in time."""

    async def exchange(self, *_: object) -> None:
        raise ExchangeAway


async def test_whoever_never_had_a_share_takes_none_before_redis_is_surely_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("worker.flow.lanes._clock", lambda: now)
    lanes = Lanes(
        {"a": server("a", max_in_flight=8, adaptive=False)},
        settings=run_settings(),
        exchange=SlowExchange(),  # type: ignore[arg-type]  # all that is asked of it
    )
    lane = lanes.find(LaneKey("a", "m"))
    lane.queue.add(Source(100))
    caps = []
    for _ in range(5):
        await lanes.agree()
        caps.append(lane.own.cap)
        now += 1.0
    # Another process may have all eight of them.
    assert caps == [0, 0, 0, 2, 2]
