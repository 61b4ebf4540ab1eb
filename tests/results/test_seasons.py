"""The class of a season: more evidence wins, one wrong date does not, ties and nothing are unknown; windows of dates."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from pipeline.errors import Refused
from pipeline.results.changes import NO_CLASS
from pipeline.results.seasons import Evidence, SeasonClass, SeasonSettings, SeasonWindow, evidence_of
from tests.results.real_series import day


def season_of(dates: list[tuple[float, list[float], list[float]]]) -> SeasonClass:
    """The class of one parcel from (valid share, class shares, confidences) of its dates."""
    evidence = Evidence(len(dates[0][1]), 1)
    for valid, shares, confidence in dates:
        evidence.add(evidence_of(np.array([valid]), np.array(shares)[:, None], np.array(confidence)[:, None]))
    return evidence.decide()


NONE = [np.nan] * 3


def test_evidence_is_the_formula():
    found = evidence_of(np.array([0.8]), np.array([[0.75], [0.25], [0.0]]), np.array([[90.0], [40.0], [np.nan]]))[:, 0]
    assert found == pytest.approx([0.8 * 0.75 * (1 + np.log(0.9) / np.log(3)), 0.8 * 0.25 * (1 + np.log(0.4) / np.log(3)), 0.0])
    chance = evidence_of(np.ones(1), np.array([[1.0], [0.0], [0.0]]), np.array([[100 / 3], [np.nan], [np.nan]]))
    assert chance.max() == pytest.approx(0.0, abs=1e-12)
    assert evidence_of(np.ones(1), np.array([[1.0], [0.0]]), np.array([[0.0], [np.nan]])).max() == 0


def test_the_class_of_most_dates_wins_and_says_its_share():
    found = season_of([(1.0, [0.9, 0.1, 0.0], NONE)] * 3 + [(0.5, [0.0, 1.0, 0.0], NONE)])
    assert found.position == 0 and found.dates == 4
    assert found.share == pytest.approx(2.7 / 3.5)


@pytest.mark.parametrize("classes", [2, 5])
def test_one_wrong_date_that_is_wholly_sure_changes_nothing(classes: int):
    """Of three dates or more, where the others have three quarters of the parcel and 90 % of confidence."""
    random = np.random.default_rng(0)
    for _ in range(100):
        true, wrong = random.choice(classes, 2, replace=False)
        dates = []
        for _ in range(random.integers(2, 8)):
            shares = np.full(classes, 0.25 / (classes - 1))
            shares[true] = 0.75
            dates.append((random.uniform(0.9, 1), shares.tolist(), [90.0] * classes))
        alone = np.eye(classes)[wrong].tolist()
        dates.insert(random.integers(len(dates) + 1), (1.0, alone, [100.0] * classes))
        found = season_of(dates)
        assert found.position == true or len(dates) < 4


def test_ties_no_evidence_and_no_class_are_unknown():
    tie = season_of([(1.0, [1.0, 0.0, 0.0], NONE), (1.0, [0.0, 1.0, 0.0], NONE)])
    assert tie.position == NO_CLASS and np.isnan(tie.share[0]) and tie.dates == 2
    nothing = season_of([(0.0, [0.0, 0.0, 0.0], NONE)])
    assert nothing.position == NO_CLASS and nothing.dates == 0
    assert Evidence(0, 2).decide().position.tolist() == [NO_CLASS, NO_CLASS]


def test_windows_are_calendar_years_or_what_was_asked_for():
    days = [day("2015-07-11"), day("2017-12-22"), day("2017-01-01")]
    assert [window.name for window in SeasonSettings().windows_of(days)] == ["2015", "2017"]
    assert SeasonSettings().windows_of(days)[1].days == (day("2017-01-01"), day("2017-12-31"))
    assert SeasonSettings().windows_of([]) == []
    winter = SeasonWindow.parse({"name": "2017", "from": "2016-11-01", "to": "2017-10-31"})
    empty = SeasonWindow("2014", date(2014, 1, 1), date(2014, 12, 31))
    assert SeasonSettings((empty, winter)).windows_of(days) == [winter]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("2017", "must have name, from and to"),
        ({"name": "a", "from": "2017-01-01"}, "must have name, from and to"),
        ({"name": "a", "from": "spring", "to": "2017-01-01"}, "must be dates"),
        ({"name": "a", "from": "2018-01-01", "to": "2017-01-01"}, "ends on 2017-01-01, before it begins"),
    ],
)
def test_windows_that_are_none_are_refused(said: object, message: str):
    with pytest.raises(Refused, match=message):
        SeasonWindow.parse(said)


def test_two_windows_of_one_name_are_refused():
    window = SeasonWindow("2017", date(2017, 1, 1), date(2017, 12, 31))
    with pytest.raises(Refused, match="two have one name"):
        SeasonSettings((window, window))
