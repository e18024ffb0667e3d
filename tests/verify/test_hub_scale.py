"""A thousand channels: finding one is as fast as among ten, and the broker rests."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhub import MessageHub
from pyhub.hub import protocol
from tests.conftest import eventually
from tests.verify.brokers import (
    MEGABYTE,
    WATCHDOG_S,
    Harmed,
    broker,
    cpu_s,
    resident_bytes,
)

FEW, MANY = 10, 1000
N_REGISTRATIONS = 10_000
REGISTRATIONS_S = 10.0
MAX_RATIO = 1.5
MAX_BYTES = 64 * MEGABYTE
IDLE_S = 10.0
N_LOOK_UPS = 3000
BLOCK = 50


def register(hub: MessageHub, names: list[str]) -> None:
    """Register channels through the protocol alone: nobody publishes in them."""
    begun = [
        hub._connection.begin(
            protocol.Register(
                protocol.ChannelInfo(name, "datablock", "|u1", (4,), 4, name, "host", 1)
            )
        )
        for name in names
    ]
    for each in begun:
        assert isinstance(hub._connection.wait(each), protocol.Registered)


@contextlib.contextmanager
def with_channels(directory: Path, n_channels: int) -> Iterator[tuple[Harmed, MessageHub]]:
    directory.mkdir()
    with broker(directory) as harmed, MessageHub(harmed.config) as hub:
        register(hub, [f"channel{n}" for n in range(n_channels)])
        yield harmed, hub


def look_up_s(hub: MessageHub, n_channels: int) -> list[float]:
    """Return how long each of some look-ups took."""
    times = []
    for n in range(BLOCK):
        name = f"channel{n * 7 % n_channels}"
        begun = time.perf_counter()
        found = hub._connection.ask(protocol.LookUp(name), protocol.Found)
        times.append(time.perf_counter() - begun)
        assert found.channel is not None
        assert found.channel.name == name
    return times


def test_a_look_up_takes_no_longer_among_a_thousand_channels(tmp_path: Path) -> None:
    with (
        with_channels(tmp_path / "few", FEW) as (_, few),
        with_channels(tmp_path / "many", MANY) as (harmed, many),
    ):
        # In turns, and the shortest of each: both without what others do with the processors.
        pairs = [
            (min(look_up_s(few, FEW)), min(look_up_s(many, MANY)))
            for _ in range(N_LOOK_UPS // BLOCK)
        ]
        ratio = statistics.median(many_s / few_s for few_s, many_s in pairs)
        medians = [1e6 * statistics.median(each) for each in zip(*pairs, strict=True)]
        size = resident_bytes(harmed.pid)
        print(
            f"a look-up: {medians[0]:.0f} us among {FEW}, {medians[1]:.0f} us among {MANY}, "
            f"ratio {ratio:.2f}; the broker has {size / MEGABYTE:.1f} MiB"
        )
        assert ratio <= MAX_RATIO
        assert size < MAX_BYTES


def test_ten_thousand_registrations_are_taken(tmp_path: Path) -> None:
    register_many(tmp_path)


@pytest.mark.verify
def test_ten_thousand_registrations_take_ten_seconds_at_most(tmp_path: Path) -> None:
    assert register_many(tmp_path) <= REGISTRATIONS_S


def register_many(directory: Path) -> float:
    """Register 10,000 channels from one process; how long it took, s."""
    with broker(directory) as harmed, contextlib.ExitStack() as stack:
        # A program may have 4,096: these are three, in one process.
        hubs = [stack.enter_context(MessageHub(harmed.config)) for _ in range(3)]
        begun = time.monotonic()
        for number, hub in enumerate(hubs):
            register(hub, [f"channel{n}" for n in range(number, N_REGISTRATIONS, len(hubs))])
        took_s = time.monotonic() - begun
        size = resident_bytes(harmed.pid)
        print(
            f"{N_REGISTRATIONS} registrations took {took_s:.2f} s; the broker has "
            f"{size / MEGABYTE:.1f} MiB"
        )
        assert eventually(lambda: len(hubs[0].channels()) == N_REGISTRATIONS, WATCHDOG_S)
        return took_s


@pytest.mark.verify
def test_a_broker_of_a_thousand_channels_uses_no_processor_when_nothing_happens(
    tmp_path: Path,
) -> None:
    with with_channels(tmp_path / "many", MANY) as (harmed, hub):
        used_s = cpu_s(harmed.pid)
        begun = time.monotonic()
        with hub.events("nothing") as nothing:
            assert not eventually(lambda: bool(nothing.taken()), IDLE_S)
        share = (cpu_s(harmed.pid) - used_s) / (time.monotonic() - begun)
        print(f"idle, with {MANY} channels: {100 * share:.2f} % of a processor")
        assert share < 0.01
        # The control: work is seen.
        used_s = cpu_s(harmed.pid)
        look_up_s(hub, MANY)
        while cpu_s(harmed.pid) - used_s < 0.02:
            look_up_s(hub, MANY)
