"""Keeping a rate: frame n leaves n periods after the first."""

from __future__ import annotations

import time

__all__ = ["Pace"]


class Pace:
    """Waits so that turns come `rate_hz` times a second; None: at once.

    A turn that is late does not make the next ones hurry by more than a
    second's worth: what was missed by then is let go.
    """

    def __init__(self, rate_hz: float | None) -> None:
        if rate_hz is not None and not rate_hz > 0:
            raise ValueError(f"rate_hz={rate_hz} must be positive")
        self._period_s = 1.0 / rate_hz if rate_hz else 0.0
        self._next = time.monotonic()

    def wait(self) -> None:
        """Sleep until the next turn is due."""
        if self._period_s:
            now = time.monotonic()
            if self._next > now:
                time.sleep(self._next - now)  # for the clock: there is no other event
            elif now - self._next > 1.0:
                self._next = now
            self._next += self._period_s
