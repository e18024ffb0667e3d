"""What a benchmark compares: pyhub, and what the same work costs without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Pair", "dict_loop"]


class Pair(NamedTuple):
    """Two ways to do one thing, and the proof that both did it.

    `check` is called after any number of calls of either; it raises if one
    of them was fast because it did not do its work.
    """

    pyhub: Callable[[], object]
    reference: Callable[[], object]
    check: Callable[[], None]


def dict_loop() -> None:
    """Do what Python does most: look up, add, store. The reference for calls."""
    counts = {0: 0, 1: 0, 2: 0, 3: 0}
    for i in range(40):
        counts[i & 3] = counts[i & 3] + 1
    assert counts[3] == 10
