"""How long a caller waits."""

from __future__ import annotations

import math
import threading
import time

__all__ = ["deadline_after", "left_until"]

_LONGEST_S = threading.TIMEOUT_MAX  # that a lock can be waited for


def deadline_after(timeout_s: float | None) -> float:
    """Return when a wait of `timeout_s` ends, in monotonic time; None: never, infinity.

    Raises
    ------
    ValueError
        It is no time: negative, or not a number.
    """
    if timeout_s is None:
        return math.inf
    try:
        seconds = float(timeout_s + 0.0)  # a text is no time, though float() takes it
    except OverflowError:  # an integer beyond all floats
        return math.inf
    if not seconds >= 0:  # NaN neither
        raise ValueError(
            f"timeout_s={timeout_s!r} is no time to wait.\n"
            "  Use seconds, 0 for not at all, or None for as long as it takes."
        )
    return time.monotonic() + seconds


def left_until(deadline: float) -> float:
    """Return the seconds that are left: not below 0, and what a lock can wait at most."""
    left_s = deadline - time.monotonic()
    return 0.0 if left_s <= 0 else left_s if left_s < _LONGEST_S else _LONGEST_S
