"""docs/reliability.md says what was measured, and nothing was measured that breaks the promise."""

from dataclasses import replace

from scripts import write_reliability
from tests.chaos.scenarios import read_scenarios


def test_the_page_says_what_was_measured() -> None:
    page = write_reliability.PATH.read_text()

    assert write_reliability.render(write_reliability.read_sums()) == page, (
        "run `python -m scripts.write_reliability build/chaos.jsonl`"
    )


def test_every_scenario_was_tried_and_no_line_lost() -> None:
    sums = write_reliability.read_sums()

    assert {each.scenario for each in sums} == set(read_scenarios())
    assert {(each.lost, each.doubled) for each in sums} == {(0, 0)}


def test_every_run_held() -> None:
    assert {each.violations for each in write_reliability.read_sums()} == {0}


def test_a_broken_promise_is_told_by_its_scenario() -> None:
    [first, *others] = write_reliability.read_sums()
    broken = replace(first, violations=2)

    page = write_reliability.render([broken, *(replace(each, violations=0) for each in others)])

    assert "broke their promise: 2 (SIGKILL of a run worker)" in page


def test_a_scenarios_runs_are_summed_up() -> None:
    record = {
        "scenario": "kill_run_worker",
        "lines": 2000,
        "stage_hit": "in_progress",
        "violations": [],
        "lost": 0,
        "doubled": 0,
        "duplicates": 3,
        "in_flight": 9,
        "takeover_seconds": 4.0,
        "standstill_seconds": 9.0,
    }
    worse = record | {"lost": 1, "duplicates": 7, "in_flight": 5, "violations": ["lost"]}
    other = record | {"scenario": "kill_beat", "takeover_seconds": None, "stage_hit": "completed"}

    [killed, beat] = write_reliability.sum_up([record, worse | {"takeover_seconds": 6.0}, other])

    assert (killed.runs, killed.violations, killed.lost) == (2, 1, 1)
    assert (killed.repeated, killed.in_flight) == (7, 9)
    assert (killed.median_seconds, killed.max_seconds) == (5.0, 6.0)
    assert (killed.stages, killed.late) == ({"in_progress": 2}, 0)
    assert (beat.stages, beat.late) == ({"completed": 1}, 1)
    assert (beat.scenario, beat.median_seconds) == ("kill_beat", 9.0)
