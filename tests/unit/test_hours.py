"""Active hours: what a range means, also on the days on which the clocks are changed."""

import math
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from models.hours import ActiveHours

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = "UTC", *, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)


@pytest.mark.parametrize(
    ("text", "moment", "is_open"),
    [
        # 2026-11-23 is a Monday.
        ("09:00-17:30", "2026-11-23 08:59:59", False),
        ("09:00-17:30", "2026-11-23 09:00", True),
        ("09:00-17:30", "2026-11-23 17:29:59.9", True),
        ("09:00-17:30", "2026-11-23 17:30", False),
        ("22:00-06:00", "2026-11-23 23:00", True),
        ("22:00-06:00", "2026-11-23 05:59", True),
        ("22:00-06:00", "2026-11-23 06:00", False),
        ("22:00-00:00", "2026-11-23 23:59", True),
        ("22:00-00:00", "2026-11-24 00:00", False),
        # Over midnight: the night of Friday ends on Saturday, that of Sunday never began.
        ("mon-fri 19:00-07:00", "2026-11-28 06:59", True),
        ("mon-fri 19:00-07:00", "2026-11-28 19:00", False),
        ("mon-fri 19:00-07:00", "2026-11-23 06:59", False),
        ("sat,sun 00:00-24:00", "2026-11-28 00:00", True),
        ("sat,sun 00:00-24:00", "2026-11-29 23:59:59", True),
        ("sat,sun 00:00-24:00", "2026-11-30 00:00", False),
        ("fri-mon 10:00-11:00", "2026-11-23 10:30", True),
        ("fri-mon 10:00-11:00", "2026-11-24 10:30", False),
        ("Mon, 10:00 - 11:00", "", False),
        ("tue 10:00-11:00; mon 12:00-13:00", "2026-11-23 12:00", True),
    ],
)
def test_when_it_is_open(text: str, moment: str, *, is_open: bool) -> None:
    if not moment:
        with pytest.raises(ValueError, match="has no day ''"):
            ActiveHours.parse([text])
        return
    assert ActiveHours.parse([text]).is_open(at(moment)) is is_open


def test_the_clock_on_the_wall_is_that_of_the_zone() -> None:
    hours = ActiveHours.parse(["22:00-06:00"], "Asia/Kolkata")
    assert hours.is_open(datetime(2026, 11, 23, 16, 30, tzinfo=UTC))
    assert not hours.is_open(datetime(2026, 11, 23, 16, 29, tzinfo=UTC))
    assert hours.is_open(datetime(2026, 11, 23, 20, tzinfo=timezone(timedelta(hours=3))))
    assert str(hours) == "22:00-06:00 (Asia/Kolkata)"
    with pytest.raises(ValueError, match="needs a time zone"):
        hours.is_open(datetime(2026, 11, 23))  # noqa: DTZ001  # the point of it


def test_how_long_until_it_opens_and_closes() -> None:
    hours = ActiveHours.parse(["mon-fri 19:00-07:00", "sat,sun 00:00-24:00"])
    monday = at("2026-11-23 18:59:30")
    assert (hours.seconds_until_open(monday), hours.seconds_until_close(monday)) == (30, 0)
    night = at("2026-11-23 19:00")
    assert (hours.seconds_until_open(night), hours.seconds_until_close(night)) == (0, 12 * 3600)
    # Ranges that meet are one: from Friday's evening to the end of Sunday.
    friday = at("2026-11-27 20:00")
    assert hours.seconds_until_close(friday) == 52 * 3600
    assert (
        ActiveHours.parse(["tue 10:00-11:00"]).seconds_until_open(at("2026-11-24 11:00"))
        == (7 * 24 - 1) * 3600
    )
    always = ActiveHours.parse(["00:00-24:00"])
    assert always.seconds_until_close(night) == math.inf


def test_the_night_of_the_change_to_summer_time_is_an_hour_shorter() -> None:
    hours = ActiveHours.parse(["22:00-06:00"], BERLIN)
    evening = at("2027-03-27 22:00", BERLIN)
    assert hours.seconds_until_close(evening) == 7 * 3600
    assert hours.seconds_until_open(at("2027-03-27 12:00", BERLIN)) == 10 * 3600
    assert hours.seconds_until_open(at("2027-03-28 12:00", BERLIN)) == 10 * 3600


def test_the_hour_that_is_left_out_is_left_out() -> None:
    # 2027-03-28: 01:59:59 is followed by 03:00.
    before = at("2027-03-28 01:30", BERLIN)
    within = ActiveHours.parse(["02:30-04:00"], BERLIN)
    assert within.seconds_until_open(before) == 1800
    assert within.is_open(datetime(2027, 3, 28, 1, 0, tzinfo=UTC))
    assert within.seconds_until_close(datetime(2027, 3, 28, 1, 0, tzinfo=UTC)) == 3600
    until = ActiveHours.parse(["01:00-02:30"], BERLIN)
    assert until.seconds_until_close(before) == 1800
    never = ActiveHours.parse(["sun 02:15-02:45"], BERLIN)
    # Wall-clock arithmetic: seven days from 01:30 to 02:15, less the hour that is left out.
    assert never.seconds_until_open(before) == 7 * 24 * 3600 + 45 * 60 - 3600


def test_the_night_of_the_change_from_summer_time_is_an_hour_longer() -> None:
    hours = ActiveHours.parse(["22:00-06:00"], BERLIN)
    assert hours.seconds_until_close(at("2026-10-24 22:00", BERLIN)) == 9 * 3600


def test_the_hour_that_comes_twice_counts_twice() -> None:
    # 2026-10-25: 02:59:59 is followed by 02:00 again.
    hours = ActiveHours.parse(["02:30-06:00"], BERLIN)
    once, again = (at("2026-10-25 02:30", BERLIN, fold=fold) for fold in (0, 1))
    assert hours.is_open(once)
    assert hours.seconds_until_close(once) == 1800
    change = at("2026-10-25 02:00", BERLIN, fold=1)
    assert not hours.is_open(change)
    assert hours.seconds_until_open(change) == 1800
    assert hours.seconds_until_close(again) == 3.5 * 3600
    early = ActiveHours.parse(["01:00-02:30"], BERLIN)
    assert early.seconds_until_close(at("2026-10-25 01:00", BERLIN)) == 1.5 * 3600
    assert early.seconds_until_open(once) == 1800
    assert early.seconds_until_close(change) == 1800


@pytest.mark.parametrize("zone", [BERLIN, "America/New_York", "Australia/Lord_Howe", "UTC"])
def test_what_it_says_is_what_one_finds_by_looking_at_the_clock(zone: str) -> None:
    # Across both changes of each zone, by the quarter of an hour.
    hours = ActiveHours.parse(["sat-mon 23:15-02:15", "sun 02:30-02:45", "tue 12:00-13:00"], zone)
    step = timedelta(minutes=15)
    for text in ("2026-10-03", "2026-10-24", "2027-03-13", "2027-03-27", "2027-04-03"):
        moments = [at(text).astimezone(UTC) + step * number for number in range(300)]
        states = [hours.is_open(each) for each in moments]
        for number, moment in list(enumerate(moments))[::7]:
            ahead = states[number:]
            for wanted, said in (
                (True, hours.seconds_until_open(moment)),
                (False, hours.seconds_until_close(moment)),
            ):
                if wanted in ahead:
                    assert said == ahead.index(wanted) * 900
        assert len(set(states)) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "night",
            (
                "'night' must be a range such as '22:00-06:00', 'mon-fri 19:00-07:00' or"
                " 'sat,sun 00:00-24:00'"
            ),
        ),
        ("9:00-17:00", "'9:00-17:00' must be a range such as '22:00-06:00', 'mon-fri 19:00-07:00'"),
        ("09:00-25:00", "'09:00-25:00' has no time '25:00' on a clock; there are 00:00 to 24:00"),
        ("09:60-10:00", "'09:60-10:00' has no time '09:60' on a clock; there are 00:00 to 24:00"),
        ("09:00-24:01", "'09:00-24:01' has no time '24:01' on a clock; there are 00:00 to 24:00"),
        ("09:00-09:00", "'09:00-09:00' has no length; a whole day is 00:00-24:00"),
        ("24:00-06:00", "'24:00-06:00' must begin before 24:00"),
        (
            "mo 09:00-10:00",
            "'mo 09:00-10:00' has no day 'mo'; there are mon, tue, wed, thu, fri, sat, sun",
        ),
        (" ; ", "it must have one range at least, such as '22:00-06:00'; leave it out for always"),
    ],
)
def test_a_mistake_in_a_range(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        ActiveHours.parse([text])
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("zone", "sentence"),
    [
        ("Europe/Berln", "there is no time zone 'Europe/Berln'; did you mean 'Europe/Berlin'?"),
        ("Europe", "there is no time zone 'Europe'"),
        ("/etc/passwd", "there is no time zone '/etc/passwd', such as 'Europe/Berlin'"),
        ("", "there is no time zone ''"),
        ("a\0b", "there is no time zone 'a\0b'"),
    ],
)
def test_a_mistake_in_a_time_zone(zone: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="time zone") as caught:
        ActiveHours.parse(["22:00-06:00"], zone)
    assert str(caught.value).startswith(sentence)
