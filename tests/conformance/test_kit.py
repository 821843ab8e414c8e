"""The conformance kit against this engine, and against itself: every fact has its cases."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest

from scripts import write_compatibility
from tests.conformance.kit.case import Case
from tests.conformance.kit.catalogue import ALL
from tests.conformance.kit.expect import NotApplicable
from tests.conformance.kit.facts import DIFFERENT, PARTLY_SEEN, UNSEEN, read_facts
from tests.conformance.kit.own import own_server
from tests.conformance.kit.report import Outcome, run_cases
from tests.conformance.kit.subject import Subject

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """Overnight, with everything begun that cases share."""
    with own_server(tmp_path_factory.mktemp("kit")) as server:
        server.begin()
        yield server


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.number)
def test_case(case: Case, subject: Subject) -> None:
    """One case of the kit; none may be out of reach here."""
    try:
        case.run(subject)
    except NotApplicable as reason:
        pytest.fail(f"{case.title}: not applicable, {reason}")


def test_every_fact_has_a_case_or_a_reason() -> None:
    facts = set(read_facts())
    cited = {fact for case in ALL for fact in case.facts}
    assert cited <= facts
    assert facts - cited == set(UNSEEN)
    assert set(DIFFERENT) | set(PARTLY_SEEN) <= cited


def test_numbers_are_given_once() -> None:
    counts = Counter(case.number for case in ALL)
    assert [number for number, count in counts.items() if count > 1] == []


def test_every_case_says_what_it_looks_at() -> None:
    titles = Counter((case.facts[0], case.title) for case in ALL)
    assert [title for title, count in titles.items() if count > 1 or not title[1]] == []


def test_the_page_is_current() -> None:
    """Run `make compatibility` when this fails."""
    page = write_compatibility.PATH.read_text()
    assert write_compatibility.render(write_compatibility.read_page(page)) == page


def test_the_page_tells_of_what_does_not_pass() -> None:
    outcomes = [Outcome(case.number, "passed") for case in ALL]
    outcomes[3] = Outcome(ALL[3].number, "failed", "it is 'x' | not 'y'")
    page = write_compatibility.render(outcomes)
    assert f"{len(ALL) - 1} of {len(ALL)} cases passed" in page
    told = [outcome for outcome in write_compatibility.read_page(page) if outcome.reason]
    assert told == [Outcome(ALL[3].number, "failed", "it is 'x' / not 'y'")]


def test_a_case_that_stumbles_has_failed() -> None:
    """No server listens there: every case must say so, and none may pass unseen."""
    with closing(Subject("http://127.0.0.1:9/v1", "sk-none")) as nowhere:
        chosen = [case for case in ALL if case.facts[0] in {"1.9", "3.30", "3.16", "7.6"}]
        said: list[str] = []
        outcomes = run_cases(chosen, nowhere, said.append)
    assert {outcome.verdict for outcome in outcomes} == {"failed"}
    assert said[-1] == f"0 of {len(chosen)} passed, {len(chosen)} failed, 0 skipped"
