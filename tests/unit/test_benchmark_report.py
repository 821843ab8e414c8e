"""Whether a target is reached is computed from the figures, and shown."""

import pytest

from benchmarks.report import (
    Measure,
    Result,
    Target,
    at_least,
    at_most,
    below,
    render_score,
    render_subject,
    summarize,
)
from benchmarks.run import replace_section


@pytest.mark.parametrize(
    ("target", "reached", "missed"),
    [(at_least(95), 95, 94.9), (at_most(3), 3, 3.1), (below(200), 199.9, 200)],
)
def test_a_target_is_met_up_to_its_limit(target: Target, reached: float, missed: float) -> None:
    assert target.is_met(reached)
    assert not target.is_met(missed)


def test_the_median_of_the_runs_counts_and_the_largest_where_the_worst_is_asked_for() -> None:
    runs = [
        [Measure("speed", speed, target=at_least(10)), Measure("memory", memory, is_worst=True)]
        for speed, memory in ((9, 3), (12, 1), (11, 2))
    ]
    speed, memory = summarize(runs)
    assert (speed.value, speed.is_reached, memory.value) == (11, True, 3)


def test_what_only_some_runs_could_measure_is_taken_from_those() -> None:
    (result,) = summarize([[Measure("speed", None, reason="away")], [Measure("speed", 5.0)], []])
    assert result.values == (5.0,)


def test_a_target_that_was_not_measured_is_not_reached() -> None:
    (result,) = summarize([[Measure("speed", None, target=at_least(1), reason="no Python 3.12")]])
    assert result.is_reached is None
    assert "not measured: no Python 3.12" in render_subject("Title", "About.", [result])
    assert "0 of the 1 targets" in render_score([("Title", [result])])


def test_a_page_shows_marks_and_rows_of_several_figures() -> None:
    results = summarize(
        [
            [
                Measure("share", 96.25, "%", 1, at_least(95)),
                Measure("refused", 3, "%", 0, below(2)),
                Measure("ours", 1234.5, "", 0, column="lines/s"),
                Measure("ours", 20, "MB", 0, column="peak"),
            ]
        ]
    )
    text = render_subject("A server", "About.", results)
    assert "| share | 96.2 % |  | ≥ 95 % | reached |" in text
    assert "| refused | 3 % |  | < 2 % | **not reached** |" in text
    assert "| | lines/s | peak |" in text
    assert "| ours | 1,234 | 20 MB |" in text
    score = render_score([("A server", results)])
    assert score.startswith("1 of the 2 targets below are reached.")
    assert "- A server: refused: 3 % (< 2 % was asked for)" in score


def test_a_result_survives_being_kept() -> None:
    (result,) = summarize([[Measure("share", 96.0, "%", 1, at_least(95))]])
    assert Result.from_json(result.as_json()) == result


def test_only_the_section_of_a_page_is_replaced() -> None:
    page = "before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n"
    new = replace_section(page, "new")
    assert new == "before\n<!-- bench:begin -->\nnew\n<!-- bench:end -->\nafter\n"
    with pytest.raises(RuntimeError):
        replace_section("no markers", "new")
