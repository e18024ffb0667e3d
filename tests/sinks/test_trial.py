"""A recorder that cannot keep up is found out, and no other is suspected.

Channel, recorder and clock are played here, so that no busy machine can spoil it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pyhub.sinks import trial
from pyhub.sinks.trial import Pace, Trial

N_WARM = 4
FRAME = np.zeros(1000, "u1")


class Play:
    """A ring into which frames come at given times, and a clock that goes when one works."""

    def __init__(self, times: Iterable[float], n_slots: int) -> None:
        self.now = 0.0
        self.n_slots = n_slots
        self._times = iter(times)
        self._next = next(self._times)
        self._n_came = self._n_passed = 0
        self.n_lost = 0

    def monotonic(self) -> float:
        return self.now

    def header(self) -> Any:
        return SimpleNamespace(n_slots=self.n_slots)

    @property
    def lag_frames(self) -> int:
        while self._next <= self.now:
            self._n_came += 1
            self._next = next(self._times, float("inf"))
        return self._n_came - self._n_passed

    def take(self) -> Any:
        if not self.lag_frames:
            self.now = self._next
        n_lost = max(self.lag_frames - self.n_slots, 0)
        self._n_passed += n_lost + 1
        self.n_lost += n_lost
        return SimpleNamespace(data=FRAME, n_lost=n_lost, is_restart=False)


def outcome(
    play: Play,
    monkeypatch: pytest.MonkeyPatch,
    write_s: Callable[[int], float],
    n_frames: int | None = None,
    n_given: int = 20_000,
) -> Pace | None:
    """Record up to `n_given` frames, the k-th in `write_s(k)`; return the trial's finding."""
    monkeypatch.setattr(trial, "time", play)
    tried = Trial(play, n_frames, N_WARM)  # type: ignore[arg-type]
    for k in range(n_given if n_frames is None else min(n_given, n_frames)):
        tried.ask()
        frame = play.take()
        tried.take(frame)
        play.now += write_s(k)
        if (found := tried.write()) is not None:
            return found
    return None


def steady(rate_hz: float, n: int = 100_000) -> Iterable[float]:
    return (0.1 + k / rate_hz for k in range(n))


@pytest.mark.parametrize("rate_hz", [0.3, 2.0, 100.0, 5000.0])
@pytest.mark.parametrize("n_slots", [1, 2, 16])
@pytest.mark.parametrize("times_too_slow", [1.1, 3.0, 100.0])
def test_who_is_too_slow_all_the_time_is_found_out(
    monkeypatch: pytest.MonkeyPatch, rate_hz: float, n_slots: int, times_too_slow: float
) -> None:
    play = Play(steady(rate_hz), n_slots)
    found = outcome(play, monkeypatch, lambda k: times_too_slow / rate_hz)
    assert found is not None
    assert found.is_too_slow
    assert found.came_hz / found.written_hz == pytest.approx(times_too_slow, rel=0.5)
    assert found.came_bytes_s == pytest.approx(1000 * found.came_hz)
    assert found.written_bytes_s == pytest.approx(1000 * rate_hz / times_too_slow, rel=0.1)
    if rate_hz >= 100 and times_too_slow == 3.0:
        assert play.now < 2.5, "it is found out in the first seconds"


@pytest.mark.parametrize("rate_hz", [2.0, 100.0, 5000.0])
@pytest.mark.parametrize("n_slots", [1, 2, 16])
def test_who_keeps_up_passes(monkeypatch: pytest.MonkeyPatch, rate_hz: float, n_slots: int) -> None:
    play = Play(steady(rate_hz), n_slots)
    found = outcome(play, monkeypatch, lambda k: 0.9 / rate_hz)
    assert found is not None
    assert not found.is_too_slow
    assert found.written_hz > found.came_hz == pytest.approx(rate_hz, rel=0.3)


def test_a_slow_start_is_no_slow_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcome(
        Play(steady(100.0), 16), monkeypatch, lambda k: 3.0 if k < N_WARM - 1 else 0.005
    )
    assert found is not None
    assert not found.is_too_slow


@pytest.mark.parametrize("at", range(N_WARM, 200, 7))
def test_a_moment_in_which_the_machine_is_busy_is_none(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    found = outcome(Play(steady(100.0), 16), monkeypatch, lambda k: 1.2 if k == at else 0.008)
    assert found is not None
    assert not found.is_too_slow


@pytest.mark.parametrize("n_slots", [64, 500])
def test_a_burst_that_the_ring_can_hold_is_none(
    monkeypatch: pytest.MonkeyPatch, n_slots: int
) -> None:
    bursts = (10.0 * burst + k / 2000 for burst in range(9) for k in range(n_slots))
    play = Play(bursts, n_slots)
    found = outcome(play, monkeypatch, lambda k: 2.0 / n_slots, n_given=9 * n_slots)
    assert found is None or not found.is_too_slow
    assert play.n_lost == 0


@pytest.mark.parametrize("rate_hz", [20.0, 100.0, 1000.0])
def test_a_series_that_the_ring_holds_as_a_whole_is_none(
    monkeypatch: pytest.MonkeyPatch, rate_hz: float
) -> None:
    play = Play(steady(rate_hz, n=200), 200)
    found = outcome(play, monkeypatch, lambda k: 10 / rate_hz, n_given=200)
    assert found is None or not found.is_too_slow
    assert play.n_lost == 0


def test_who_fills_a_large_ring_is_found_out_before_frames_are_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play = Play(steady(250.0), 256)
    found = outcome(play, monkeypatch, lambda k: 0.01)
    assert found is not None
    assert found.is_too_slow
    assert play.n_lost == 0
    assert play.now < 2.5


def test_frames_asked_for_that_the_ring_can_hold_are_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Twice too slow: the 300th frame is asked for when 300 wait behind it.
    for n_frames, is_too_slow in ((300, False), (900, True)):
        play = Play(steady(100.0), 400)
        found = outcome(play, monkeypatch, lambda k: 0.02, n_frames=n_frames)
        assert found is not None
        assert found.is_too_slow == is_too_slow
        assert play.n_lost == 0


def test_who_falls_behind_slowly_in_a_large_ring_may_try(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcome(Play(steady(100.0), 1000), monkeypatch, lambda k: 0.0105)
    assert found is not None
    assert not found.is_too_slow
    assert found.written_hz < found.came_hz


def test_a_channel_that_stands_still_now_and_then_begins_the_trial_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play = Play(steady(100.0), 16)
    monkeypatch.setattr(trial, "time", play)
    tried = Trial(play, None, 0)  # type: ignore[arg-type]
    for k in range(1000):
        tried.ask()
        if k % 40 == 39:
            tried.pause()
        tried.take(play.take())
        play.now += 0.03
        assert tried.write() is None
