"""Nothing that a log repeats can begin a line of its own."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from models.logline import JsonLine, OneLine, bound_ids, context_with_ids

FORGED = "2026-01-01 00:00:00,000 ERROR overnight: all is lost"
BREAKS = ["\n", "\r", "\r\n", "\v", "\f", "\x1b[2K", "\0", "\x7f", "\x85", "\u2028", "\u2029"]


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger, and what it writes."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(OneLine("%(levelname)s: %(message)s"))
    logger = logging.Logger("test")  # noqa: LOG001  # of no tree, so that nobody else hears it
    logger.addHandler(handler)
    yield logger, written
    handler.close()


@pytest.mark.parametrize("separator", BREAKS)
def test_a_message_is_one_line(log: tuple[logging.Logger, io.StringIO], separator: str) -> None:
    logger, written = log
    logger.warning("the model %s is away", f"m{separator}{FORGED}")
    assert written.getvalue().splitlines() == [written.getvalue()[:-1]]
    assert written.getvalue()[:-1].isprintable()
    assert FORGED in written.getvalue()


def test_plain_text_stays_as_it_is(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    logger.info("batch %s: ☃ ñ 'quoted' \\n", "batch_1")
    assert written.getvalue() == "INFO: batch batch_1: ☃ ñ 'quoted' \\n\n"


@pytest.mark.parametrize("separator", BREAKS)
def test_a_traceback_is_indented(log: tuple[logging.Logger, io.StringIO], separator: str) -> None:
    logger, written = log
    try:
        int("x" + separator + FORGED)
    except ValueError as error:
        # Its own words are quoted; another library's would not be.
        error.args = ("x" + separator + FORGED,)
        logger.exception("failed", stack_info=True)
    first, *others = written.getvalue().splitlines()
    assert first == "ERROR: failed"
    assert len(others) > 3
    assert all(line.startswith("    ") for line in others)
    assert FORGED in written.getvalue()


def test_ids_follow_a_message_that_does_not_tell_them(
    log: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, written = log
    with bound_ids(batch="batch_1", shard=7):
        logger.info("batch %s: slow", "batch_1")
    logger.info("done")
    assert written.getvalue() == "INFO: batch batch_1: slow shard=7\nINFO: done\n"


def test_a_context_has_its_own_ids_alone(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    with bound_ids(request="req_1"):
        context_with_ids(batch="batch_1").run(logger.info, "begun")
    assert written.getvalue() == "INFO: begun batch=batch_1\n"


@pytest.mark.parametrize("separator", BREAKS)
def test_in_json_every_record_is_one_object(
    log: tuple[logging.Logger, io.StringIO], separator: str
) -> None:
    logger, written = log
    logger.handlers[0].setFormatter(JsonLine())
    try:
        int("x" + separator + FORGED)
    except ValueError:
        with bound_ids(batch="batch_1"):
            logger.exception("the model %s is away", f"m{separator}{FORGED}")
    (line,) = written.getvalue().splitlines()
    told = json.loads(line)
    assert told["message"] == f"the model m{separator}{FORGED} is away"
    assert (told["level"], told["logger"], told["batch"]) == ("ERROR", "test", "batch_1")
    assert told["exception"].startswith("Traceback")
    assert told["time"].endswith("Z")
