"""Turns come no sooner than they are due."""

from __future__ import annotations

import time

import pytest

from pyhub.sources.pace import Pace


def test_turn_n_comes_no_sooner_than_n_periods_after_the_first() -> None:
    start = time.monotonic()
    pace = Pace(200)
    for n in range(20):
        pace.wait()
        assert time.monotonic() - start >= n / 200


def test_without_a_rate_nothing_is_waited_for() -> None:
    pace = Pace(None)
    for _ in range(100_000):  # a day, at the slowest rate that one would call one
        pace.wait()


def test_what_was_missed_for_more_than_a_second_is_let_go() -> None:
    pace = Pace(20)
    time.sleep(1.2)
    late = time.monotonic()
    for _ in range(5):
        pace.wait()
    assert time.monotonic() - late >= 4 / 20


@pytest.mark.parametrize("rate_hz", [0, -1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate_hz: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Pace(rate_hz)
