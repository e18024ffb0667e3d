"""How long does it take to wake up a reader in another process?

All of these are round trips of 64 bytes between two processes that sleep
while they wait: two hand-overs and two wake-ups.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from echo import partner, round_trip
from pairs import Pair
from pytest_benchmark.fixture import BenchmarkFixture


@contextmanager
def wake_up(kind: str, reference: str) -> Iterator[Pair]:
    """Go there and back over the link `kind`, and over `reference`."""
    with ExitStack() as stack:
        ours, theirs = stack.enter_context(partner(kind)), stack.enter_context(partner(reference))
        numbers = itertools.count(1000)
        # Nothing is left to check: round_trip compares what comes back.
        yield Pair(
            lambda: round_trip(ours, next(numbers)),
            lambda: round_trip(theirs, next(numbers)),
            lambda: None,
        )


def _run(benchmark: BenchmarkFixture, kind: str) -> None:
    numbers = itertools.count(1000)
    with partner(kind) as link:
        benchmark(lambda: round_trip(link, next(numbers)))


@pytest.mark.parametrize("link", ["notification", "hub", "pyzmq"])
def bench_wake_up_by_notification(benchmark: BenchmarkFixture, link: str) -> None:
    """What does a frame, found through its notification, cost beside a bare message?

    ``notification`` waits on the notification socket and then reads, ``hub``
    leaves the waiting to `read`, ``pyzmq`` is PUB/SUB over ipc with the bytes
    in the message.
    """
    benchmark.group = "there and back, hub"
    _run(benchmark, link)


@pytest.mark.parametrize("link", ["word", "pipe"])
def bench_wake_up_by_commit_word(benchmark: BenchmarkFixture, link: str) -> None:
    """Without a hub a reader sleeps on the commit word: how late is it, beside a pipe?"""
    benchmark.group = "there and back, no hub"
    _run(benchmark, link)
