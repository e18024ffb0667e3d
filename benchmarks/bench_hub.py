"""How long do commands, state and events take, by way of the broker?

The references are bare sockets with the same encryption: a message there and
back through a process that only forwards, and straight to the other process.
What pyhub promises of them is in `hub_ratios.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hub_partners import WAYS, payloads, way_to_ask
from pytest_benchmark.fixture import BenchmarkFixture

import pyhub


@pytest.fixture
def hub() -> Iterator[pyhub.MessageHub]:
    """A hub, and the broker that it starts."""
    with pyhub.MessageHub() as hub:
        yield hub


@pytest.mark.parametrize("way", WAYS)
def bench_round_trip(benchmark: BenchmarkFixture, way: str) -> None:
    """What does a command that does nothing cost beside bare messages? And a request?"""
    benchmark.group = "there and back, commands"
    asked = itertools.cycle(payloads())
    with way_to_ask(way) as ask:

        def round_trip() -> None:
            payload = next(asked)
            assert ask(payload) == payload, "another answer came back"

        benchmark(round_trip)


def bench_set_state(benchmark: BenchmarkFixture, hub: pyhub.MessageHub) -> None:
    """How long until a change of the state is written down and answered?"""
    benchmark.group = "the broker's answer"
    numbers = itertools.count()
    benchmark(lambda: hub.state.set("bench/value", next(numbers)))
    assert hub.state["bench/value"] == next(numbers) - 1


def bench_get_state(benchmark: BenchmarkFixture, hub: pyhub.MessageHub) -> None:
    """How long until a value is there?"""
    benchmark.group = "the broker's answer"
    hub.state["bench/value"] = 17
    assert benchmark(lambda: hub.state["bench/value"]) == 17


def bench_publish_event(benchmark: BenchmarkFixture, hub: pyhub.MessageHub) -> None:
    """How long until the broker has an event, and the publisher's own feed too?"""
    benchmark.group = "the broker's answer"
    numbers = itertools.count()
    with hub.events("bench/*") as feed:

        def publish() -> None:
            number = next(numbers)
            hub.publish("bench/event", number)
            assert feed.get(5).value == number, "another event came"

        benchmark(publish)
    assert feed.n_lost == 0
