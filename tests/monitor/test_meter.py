"""A consumer's figures are those of the frames that it was given."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pyhub.datablock import Frame
from pyhub.monitor.meter import Meter


def frame(n_lost: int = 0, late_s: float = 0.0, nbytes: int = 100) -> Frame:
    stamp = time.time_ns() - int(late_s * 1e9)
    made = Frame(np.zeros(nbytes, np.uint8), 0, stamp, 1, 1, 1, None)
    made.n_lost = n_lost
    return made


def test_nothing_noted_gives_no_rates() -> None:
    assert Meter().summary() == {"n_frames": 0, "n_lost": 0}


def test_one_frame_gives_no_rate_yet() -> None:
    meter = Meter()
    meter.note(frame())
    summary = meter.summary(3)
    assert (summary["n_frames"], summary["lag_frames"], summary["rate_hz"]) == (1, 3, 0.0)
    assert summary["rate_bytes_s"] == 0.0


def test_frames_and_losses_are_counted_beyond_the_window() -> None:
    meter = Meter(window=4)
    for k in range(10):
        meter.note(frame(n_lost=k))
    summary = meter.summary()
    assert (summary["n_frames"], summary["n_lost"]) == (10, 45)


def test_the_rate_is_that_of_the_spans_between_frames() -> None:
    meter = Meter()
    before = time.monotonic()
    for _ in range(6):
        meter.note(frame())
        time.sleep(0.01)
    elapsed = time.monotonic() - before
    summary = meter.summary()
    assert 5 / elapsed <= summary["rate_hz"] <= 1 / 0.01
    assert summary["rate_bytes_s"] == pytest.approx(100 * summary["rate_hz"])


def test_latencies_are_percentiles_of_the_window() -> None:
    meter = Meter(window=100)
    meter.note(frame(late_s=1e6))  # leaves the window
    for k in range(100):
        meter.note(frame(late_s=100.0 if k == 99 else 10.0))
    summary = meter.summary()
    assert 10.0 <= summary["latency_p50_s"] < 100.0
    assert summary["latency_p99_s"] >= summary["latency_p50_s"]
    assert summary["latency_p99_s"] < 1e6
