"""A consumer's own figures: rate, latency, what it missed."""

from __future__ import annotations

import time
from collections import deque
from itertools import islice
from typing import Any

import numpy as np

from pyhub.datablock import Frame

__all__ = ["Meter"]


class Meter:
    """Counts the frames that a consumer was given, and how late they were.

    Rates and percentiles are over the last `window` frames. Latency runs from
    the producer's time stamp to `note`, on the wall clock of one host.
    """

    def __init__(self, window: int = 500) -> None:
        self._stamps: deque[tuple[int, float, int]] = deque(maxlen=window)
        self.n_frames = 0
        self.n_lost = 0

    def note(self, frame: Frame) -> None:
        """Count `frame`, received now."""
        latency_s = (time.time_ns() - frame.timestamp_ns) * 1e-9
        self._stamps.append((time.monotonic_ns(), latency_s, frame.data.nbytes))
        self.n_frames += 1
        self.n_lost += frame.n_lost

    def summary(self, lag_frames: int = 0) -> dict[str, Any]:
        """Return the figures, by names that end with their units."""
        if not self._stamps:
            return {"n_frames": 0, "n_lost": 0}
        first, last = self._stamps[0][0], self._stamps[-1][0]
        latencies = np.array([latency for _, latency, _ in self._stamps])
        p50, p99 = np.percentile(latencies, (50, 99))
        span_s = max((last - first) * 1e-9, 1e-9)
        n_spans = len(self._stamps) - 1
        return {
            "n_frames": self.n_frames,
            "n_lost": self.n_lost,
            "lag_frames": lag_frames,
            "rate_hz": n_spans / span_s,
            # The first frame came before the first span.
            "rate_bytes_s": sum(size for _, _, size in islice(self._stamps, 1, None)) / span_s,
            "latency_p50_s": float(p50),
            "latency_p99_s": float(p99),
        }
