"""Whatever is published, dropped or given up, each reader is given what a simple model says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pytest

from pyhub import (
    DataBlockConsumer,
    DataBlockProducer,
    Frame,
    LiveView,
    PinnedFrame,
    WaitTimeout,
    ZoneUpdateInfo,
)
from pyhub.codec import encode

N_STEPS = 400


@dataclass
class Published:
    """A frame, as it was published."""

    version: int
    value: int
    slot: int
    position: int
    n_dropped: int  # frames that had been dropped by then
    flex: dict[str, int]
    flex_version: int


@dataclass
class Ring:
    """What lies in a channel's slots. `newest` stays when its slot is overwritten."""

    n_slots: int
    slots: list[Published | None] = field(default_factory=list)
    newest: Published | None = None
    flex: dict[str, int] = field(default_factory=dict)
    flex_version: int = 0
    n_dropped: int = 0
    n_published: int = 0
    pinned: set[int] = field(default_factory=set)  # slots

    def __post_init__(self) -> None:
        self.slots = [None] * self.n_slots

    def next_place(self) -> tuple[int, int] | None:
        """Return slot and position of the next frame; None: all are pinned."""
        slot, position = (self.newest.slot, self.newest.position) if self.newest else (-1, 0)
        for ahead in range(1, self.n_slots + 1):
            at = (slot + ahead) % self.n_slots
            if at not in self.pinned:
                return at, position + ahead
        return None

    def set_flex(self, flex: dict[str, int]) -> None:
        self.flex, self.flex_version = flex, self.flex_version + 1

    def put(self, value: int, flex: dict[str, int] | None) -> bool:
        place = self.next_place()
        if place is None:
            self.n_dropped += 1
            return False
        self.commit(place, value, flex)
        return True

    def commit(self, place: tuple[int, int], value: int, flex: dict[str, int] | None) -> None:
        if flex is not None:
            self.set_flex(flex)
        self.n_published += 1
        slot, position = place
        self.newest = self.slots[slot] = Published(
            self.n_published, value, slot, position, self.n_dropped, self.flex, self.flex_version
        )

    def put_flex(self, flex: dict[str, int]) -> None:
        self.set_flex(flex)
        if self.newest is not None:
            self.newest.flex, self.newest.flex_version = self.flex, self.flex_version

    def begin(self) -> tuple[int, int] | None:
        """Begin a frame: what was in its slot is gone."""
        place = self.next_place()
        if place is not None:
            self.slots[place[0]] = None
        return place

    def has(self, frame: Published) -> bool:
        return self.slots[frame.slot] is frame

    def after(self, version: int) -> list[Published]:
        """Return what can be found and was published after `version`, in order.

        Not what is still there for a pin alone, a lap behind.
        """
        lap = min(self.n_published, self.n_slots)
        found = [
            frame
            for frame in self.slots
            if frame is not None
            and self.newest is not None
            and frame.version > version
            and frame.position > self.newest.position - lap
        ]
        return sorted(found, key=lambda frame: frame.version)


@dataclass
class Reader:
    """A consumer, what it was given last, and what it was given in all."""

    view: DataBlockConsumer
    way: str
    in_order: bool
    last: Published | None = None
    flex_version: int = 0
    n_read: int = 0
    n_lost: int = 0
    looked_at: list[tuple[LiveView, Published]] = field(default_factory=list)

    def take(self) -> Frame | None:
        try:
            if self.way == "look":
                return self.view.look(0)
            if self.way == "frames":
                return next(self.view.frames(0))
            return self.view.read(0)
        except WaitTimeout:
            return None

    def expected(self, ring: Ring) -> list[Published | None]:
        """Return what it may be given next; None: nothing."""
        version = self.last.version if self.last else 0
        newest = ring.newest
        if not self.in_order:
            is_new = newest is not None and (
                newest.version > version or ring.flex_version > self.flex_version
            )
            return [newest if newest is not None and is_new and ring.has(newest) else None]
        there = ring.after(version)
        may_be: list[Published | None] = [*there[:2]]  # lapped: the oldest is the next to go
        if there and there[0].version == version + 1:
            return [there[0]]
        if newest is None or newest.version == version or not ring.has(newest):
            may_be.append(None)  # it is over, or the newest is being overwritten
        # A lap behind, and still there for a pin: found by who comes right to it.
        return may_be + [
            frame
            for frame in ring.slots
            if frame is not None
            and frame.version == version + 1
            and self.last is not None
            and frame.position == self.last.position + 1
        ]

    def step(self, ring: Ring) -> None:
        expected = self.expected(ring)
        frame = self.take()
        if frame is None:
            assert None in expected, expected
            return
        if frame.version == 0:  # parameters came before the first frame
            assert not self.in_order
            assert ring.newest is None
            assert ring.flex_version > self.flex_version
            assert (frame.data.size, frame.has_new_data, frame.n_lost) == (0, False, 0)
            assert frame.flex == ring.flex
            self.flex_version = ring.flex_version
            self.n_read += 1
            return
        (given,) = [one for one in expected if one is not None and one.version == frame.version]
        is_new = self.last is None or given.version != self.last.version
        n_lost = 0
        if is_new:
            before = (self.last.version, self.last.n_dropped) if self.last else (0, 0)
            n_lost = given.version - before[0] - 1 + given.n_dropped - before[1]
        self.n_lost += n_lost
        self.n_read += is_new
        assert (frame.has_new_data, frame.n_lost) == (is_new, n_lost)
        assert frame.has_new_flex == (given.flex_version != self.flex_version)
        assert frame.flex_version == given.flex_version
        assert frame.frame_id == given.version - 1 + given.n_dropped
        assert (frame.data == given.value).all()
        assert frame.flex == given.flex
        assert (self.view.n_read, self.view.n_lost) == (self.n_read, self.n_lost)
        self.last, self.flex_version = given, given.flex_version
        if isinstance(frame, LiveView):
            self.looked_at = [*self.looked_at[-5:], (frame, given)]

    def check_views(self, ring: Ring) -> None:
        for view, given in self.looked_at:
            assert view.is_valid() == ring.has(given)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("wait", ["futex", "spin"])
@pytest.mark.parametrize("may_pin", [False, True], ids=["alone", "pinned"])
@pytest.mark.parametrize("n_slots", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(6))
def test_every_reader_is_given_what_the_model_says(
    stack: ExitStack, seed: int, n_slots: int, may_pin: bool, wait: str
) -> None:
    chance = random.Random(f"{seed} {n_slots} {may_pin}")
    cam = stack.enter_context(DataBlockProducer.create("cam", 4, 64, slots=n_slots))
    ring = Ring(n_slots)

    def attach(policy: str | None = None, reader: str | None = None) -> DataBlockConsumer:
        return stack.enter_context(
            DataBlockConsumer.attach("cam", policy=policy, reader=reader, wait=wait)
        )

    readers = [
        Reader(attach(), "read", in_order=False),
        Reader(attach("latest"), "look", in_order=False),
        Reader(attach(), "look", in_order=False),
        Reader(attach("every"), "read", in_order=True),
        Reader(attach("every"), "look", in_order=True),
        Reader(attach(), "frames", in_order=True),
    ]
    keeps_up = readers[chance.randrange(len(readers))]
    pins: list[PinnedFrame] = []
    holder = attach(reader="holder") if may_pin else None
    place: tuple[int, int] | None = None  # of the frame that is being written
    met = dict.fromkeys(["put", "dropped", "flex", "given up"], 0)

    for number in range(N_STEPS):
        kind = chance.random()
        flex = {"n": number} if chance.random() < 0.5 else None
        value = number % 251
        if place is not None and kind < 0.2:
            if kind < 0.08:
                cam.abort_publish()
                met["given up"] += 1
            else:
                cam.get_structured_data_buffer()[...] = value
                packed = b"" if flex is None else encode(flex)
                if packed:
                    cam.get_flexible_zone_buffer()[: len(packed)] = packed
                cam.end_publish(ZoneUpdateInfo(bool(packed), True, len(packed)))
                ring.commit(place, value, flex)
                met["put"] += 1
            place = None
        elif place is None and kind < 0.35:
            was_put = cam.put(np.full(4, value, "u1"), flex)
            assert was_put == ring.put(value, flex)
            met["put" if was_put else "dropped"] += 1
        elif place is None and kind < 0.45:
            cam.put(flex={"n": number})
            ring.put_flex({"n": number})
            met["flex"] += 1
        elif place is None and kind < 0.5:
            cam.begin_publish()
            place = ring.begin()
            if place is None:
                cam.abort_publish()
            else:
                cam.get_structured_data_buffer()[...] = 255
        elif kind < 0.6 and holder is not None:
            if pins and chance.random() < 0.6:
                pins.pop(chance.randrange(len(pins))).release()
            elif len(pins) < 6:
                try:
                    pins.append(holder.pin(0))
                except WaitTimeout:
                    pass
                else:
                    assert ring.newest is not None
                    assert pins[-1].version == ring.newest.version
            ring.pinned = {one.slot for one in pins_of(ring, pins)}
        else:
            chance.choice(readers).step(ring)
        if number % 100 < 50:
            keeps_up.step(ring)
        for reader in readers:
            reader.check_views(ring)
    for pinned in pins:
        pinned.release()
    if place is not None:
        cam.abort_publish()
    # Or it shows nothing. A single slot is pinned most of the time.
    if n_slots > 1 or not may_pin:
        assert met["put"] > N_STEPS // 10
        assert met["given up"] > 0
    assert min(met["put"], met["flex"]) > 0


def pins_of(ring: Ring, pins: list[PinnedFrame]) -> list[Published]:
    """Return the frames that are pinned: they are all there."""
    versions = {pin.version for pin in pins}
    found = [one for one in ring.slots if one is not None and one.version in versions]
    assert len(found) == len(versions)
    return found
