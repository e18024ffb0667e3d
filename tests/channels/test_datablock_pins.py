"""Pinned frames: without a copy, untouched until they are released, and what they cost."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import pickle
import random
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhub import (
    AdmissionRefused,
    CapacityError,
    ChannelClosed,
    DataBlockConsumer,
    DataBlockProducer,
    Frame,
    LayoutError,
    PinnedFrame,
    WaitTimeout,
)
from pyhub.datablock.reader import ReaderState, admitted_readers
from pyhub.names import lease_path

Start = Callable[..., Any]
N_PINS = 6


def publish(cam: DataBlockProducer, number: int) -> bool:
    return cam.put(np.full(cam.shape, number % 256, "u1"), {"n": number})


def states(cam: DataBlockProducer) -> list[ReaderState]:
    return admitted_readers(cam._block, str(lease_path()))


def ring(slots: int = 4, shape: int = 4, **options: Any) -> DataBlockProducer:
    return DataBlockProducer.create("cam", dtype="u1", shape=shape, slots=slots, **options)


def attach(policy: str | None = None, reader: str | None = "r") -> DataBlockConsumer:
    return DataBlockConsumer.attach("cam", policy=policy, reader=reader)


@pytest.fixture
def cam() -> Iterator[DataBlockProducer]:
    with ring() as producer:
        yield producer


@pytest.fixture
def view(cam: DataBlockProducer) -> Iterator[DataBlockConsumer]:
    """An admitted reader that takes every frame in order."""
    with attach("every") as consumer:
        yield consumer


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


def checksum(frame: Frame) -> int:
    return zlib.crc32(frame.data.tobytes())


def is_itself(frame: Frame) -> bool:
    """Whether the bytes are those that belong to the parameters."""
    return bool((frame.data == frame.flex["n"] % 256).all())


# What a pinned frame is


def test_a_pinned_frame_lies_in_the_readers_own_mapping(
    cam: DataBlockProducer, view: DataBlockConsumer, shm: Path
) -> None:
    publish(cam, 1)
    with view.pin(0) as frame:
        at = address(frame.data)
        for line in Path("/proc/self/maps").read_text().splitlines():
            first, last = (int(edge, 16) for edge in line.split()[0].split("-"))
            if first <= at < last:
                assert str(shm) in line
                assert line.split()[1] == "r--s"
                break
        else:
            pytest.fail("it lies in no mapping")
        assert not frame.data.flags.owndata
        assert address(frame.data) == address(view.latest(0).data)


def test_a_pinned_frame_has_all_that_a_frame_has(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    with attach("every", None) as other:
        publish(cam, 0)
        cam.put(np.full(4, 1, "u1"), {"n": 1}, frame_id=77, timestamp_ns=5_000_000_000)
        for _ in range(2):
            copied = other.read(0)
            with view.pin(0) as frame:
                assert isinstance(frame, Frame)
                assert (frame.data == copied.data).all()
                for name in ("flex", *(name for name in Frame.__slots__ if name[0] != "_")):
                    if name != "data":
                        assert getattr(frame, name) == getattr(copied, name), name
        assert (frame.frame_id, frame.timestamp_ns) == (77, 5_000_000_000)


def test_a_pinned_frame_cannot_be_written_to(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 1)
    with view.pin(0) as frame:
        assert not frame.data.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            frame.data[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            frame.data.flags.writeable = True


def test_fewer_rows_are_pinned_as_they_are(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    cam.put(np.arange(3, dtype="u1"))
    with view.pin(0) as frame:
        assert frame.data.tolist() == [0, 1, 2]


def test_without_a_policy_the_newest_is_pinned_once(cam: DataBlockProducer) -> None:
    with attach(None) as view:
        for n in range(3):
            publish(cam, n)
        with view.pin(0) as frame:
            assert (frame.frame_id, frame.n_lost) == (2, 2)
            with pytest.raises(WaitTimeout):
                view.pin(0)
            # New parameters are news: the same frame, once more.
            cam.put(flex={"n": 2, "more": 1})
            with view.pin(0) as again:
                assert (again.frame_id, again.flex["more"], again.has_new_data) == (2, 1, False)
                assert address(again.data) == address(frame.data)
                assert "more" not in frame.flex


def test_pins_and_reads_take_turns(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    for n in range(4):
        publish(cam, n)
    with view.pin(0) as first:
        assert view.read(0).frame_id == 1
        with view.pin(0) as third:
            assert (first.frame_id, third.frame_id, view.read(0).frame_id) == (0, 2, 3)
    assert (view.n_read, view.n_lost) == (4, 0)


def test_who_was_not_admitted_may_not_pin(cam: DataBlockProducer) -> None:
    publish(cam, 1)
    with (
        attach("every", None) as view,
        pytest.raises(AdmissionRefused, match=r"may not pin.*\n.*reader='viewer'"),
    ):
        view.pin(0)


@pytest.mark.parametrize("timeout_s", [0, None])
def test_a_channel_of_parameters_has_nothing_to_pin(timeout_s: float | None) -> None:
    with DataBlockProducer.create("cam") as cam, attach() as view:
        cam.put(flex={"n": 1})
        with pytest.raises(LayoutError, match=r"'cam' has parameters only.*\n.*read"):
            view.pin(timeout_s)
        assert view.read(0).flex == {"n": 1}


def test_parameters_that_come_before_the_first_frame_are_waited_out(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    cam.put(flex={"n": 1})
    with pytest.raises(WaitTimeout):
        view.pin(0.01)
    publish(cam, 2)
    with view.pin(0) as frame:
        assert (frame.frame_id, frame.flex) == (0, {"n": 2})


# Nobody writes there


@pytest.mark.parametrize("policy", [None, "every", "drop_oldest"])
def test_pinned_bytes_stay_while_the_producer_goes_many_laps(
    cam: DataBlockProducer, policy: str | None
) -> None:
    publish(cam, 0)
    with attach(policy) as view, view.pin(0) as frame:
        before = frame.data.tobytes()
        for n in range(1, 400):
            assert publish(cam, n)
        assert frame.data.tobytes() == before
        assert is_itself(frame)
        assert cam.header().n_dropped == 0
        # The ring of 4 is one of 3 meanwhile.
        assert view.read(0).frame_id in ([399] if policy is None else [397, 398])
        while view.lag_frames:
            view.read(0)
        assert view.n_read + view.n_lost == 400


PRODUCER = """
import select
cam = DataBlockProducer.create("cam", dtype="u1", shape=100_000, slots=8)
say("up")
generator = np.random.default_rng(5)
n = 0
image = generator.integers(0, 256, 100_000, "u1")
while not select.select([sys.stdin], [], [], 0)[0]:
    image[n % 100_000] = n % 256
    image[: 50_000] += 1
    with cam.publish() as slot:
        slot.data[...] = image
        slot.flex = {"crc": zlib.crc32(slot.data), "n": n}
    n += 1
say("end", n, cam.header().n_dropped)
"""


def test_checksums_of_pinned_frames_hold_while_another_process_publishes(start: Start) -> None:
    """Seed 5. Six at a time, released in any order; two slots remain for the producer."""
    child = start(PRODUCER)
    child.expect("up")
    order = random.Random(5)
    with attach("every") as view:
        held: list[PinnedFrame] = []
        for _ in range(300):
            if len(held) == N_PINS:
                frame = held.pop(order.randrange(N_PINS))
                assert checksum(frame) == frame.flex["crc"]
                frame.release()
            held.append(view.pin(10))
            assert checksum(held[-1]) == held[-1].flex["crc"]
        versions = [frame.version for frame in held]
        assert len({address(frame.data) for frame in held}) == N_PINS
        # Pins that move while a producer looks for a slot may meet it at each one; these stand.
        begin = view.header()
        while view.header().structured_buffer_version < begin.structured_buffer_version + 100:
            pass  # dozens of laps over the two that are left
        assert [checksum(f) for f in held] == [f.flex["crc"] for f in held]
        assert [frame.version for frame in held] == versions
        child.go()
        n_put, n_dropped = map(int, child.expect("end").split())
        assert n_put >= 400
        assert n_dropped - begin.n_dropped <= 1  # one may have been under way at the first look
        assert [checksum(f) for f in held] == [f.flex["crc"] for f in held]
    child.end()


def test_without_a_pin_the_same_bytes_do_change(cam: DataBlockProducer) -> None:
    """The negative control: after the release, the checks above would fail."""
    publish(cam, 0)
    with attach("every") as view:
        frame = view.pin(0)
        frame.release()
        for n in range(1, 9):
            publish(cam, n)
        assert not is_itself(frame)


# How many, and what is left for the producer


def test_a_reader_holds_six_frames_and_no_more() -> None:
    with ring(16) as cam, attach("every") as view:
        for n in range(8):
            publish(cam, n)
        held = [view.pin(0) for _ in range(N_PINS)]
        assert states(cam)[0].n_pinned == N_PINS
        with pytest.raises(CapacityError, match=r"holds 6 frames.*\n.*Release one"):
            view.pin(0)
        assert view.n_read == N_PINS  # which was not counted
        held[3].release()
        with view.pin(0) as frame:
            assert (frame.frame_id, frame.n_lost) == (6, 0)
        assert [is_itself(frame) for frame in held] == [True] * N_PINS
        held.clear()
        frame.release()
        assert states(cam)[0].n_pinned == 0


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_with_all_slots_pinned_frames_are_dropped_and_counted(slots: int) -> None:
    with ring(slots) as cam, attach("every") as view:
        for n in range(slots):
            publish(cam, n)
        held = [view.pin(0) for _ in range(slots)]
        assert [publish(cam, n) for n in range(slots, slots + 5)] == [False] * 5
        with cam.publish() as slot:
            slot.data[...] = 200
        assert slot.is_dropped
        header = cam.header()
        assert (header.n_dropped, header.structured_buffer_version) == (6, slots)
        assert (states(cam)[0].n_dropped, states(cam)[0].stalled_s) == (6, 0.0)
        assert [is_itself(frame) for frame in held] == [True] * slots
        held[-1].release()
        assert publish(cam, slots + 6)
        with view.pin(0) as frame:
            assert (frame.frame_id, frame.n_lost) == (slots + 6, 6)
            assert address(frame.data) == address(held[-1].data)
        for pinned in held:
            pinned.release()
        assert (view.n_read, view.n_lost) == (slots + 1, 6)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_pins_are_released_in_any_order(
    cam: DataBlockProducer, view: DataBlockConsumer, order: tuple[int, ...]
) -> None:
    for n in range(4):
        publish(cam, n)
    held = dict(enumerate(view.pin(0) for _ in range(3)))
    n = 4
    for which in order:
        held.pop(which).release()
        for _ in range(9):
            assert publish(cam, n)
            n += 1
        assert [is_itself(frame) for frame in held.values()] == [True] * len(held)
        assert states(cam)[0].n_pinned == len(held)
    last = None
    while view.lag_frames:
        last = view.read(0)
        assert is_itself(last)
    assert last is not None
    assert view.n_read + view.n_lost == n


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_pins_and_puts_leaves_frames_whole_and_counts_exact(seed: int) -> None:
    """Against a model: which slots are pinned, and which numbers each reader may see."""
    order = random.Random(seed)
    slots = order.choice([1, 2, 3, 5, 8])
    with (
        ring(slots) as cam,
        attach("every", "a") as a,
        attach(None, "b") as b,
        attach("drop_oldest", "c") as c,
    ):
        views = [a, b, c]
        held: list[tuple[PinnedFrame, int]] = []
        newest = [-1, -1, -1]
        n_dropped = n = 0
        for _ in range(2000):
            act = order.random()
            which = order.randrange(3)
            view = views[which]
            if act < 0.5:
                offsets = {offset for _, offset in held}
                assert publish(cam, n) == (len(offsets) < slots)
                n_dropped += len(offsets) == slots
                n += 1
            elif act < 0.75:
                n_mine = sum(1 for frame, _ in held if frame.flex["reader"] == which)
                try:
                    frame = view.pin(0)
                except WaitTimeout:
                    assert not view.lag_frames
                    continue
                except CapacityError:
                    assert n_mine == N_PINS
                    continue
                frame.flex["reader"] = which  # remembered with it
                held.append((frame, address(frame.data) - first_slot(view)))
                assert frame.frame_id > newest[which]
                newest[which] = frame.frame_id
            elif act < 0.85:
                try:
                    got = view.read(0)
                except WaitTimeout:
                    assert not view.lag_frames
                    continue
                assert is_itself(got)
                assert got.frame_id > newest[which]
                newest[which] = got.frame_id
            elif held:
                held.pop(order.randrange(len(held)))[0].release()
            assert all(is_itself(frame) for frame, _ in held)
            for reader, last in zip(views, newest, strict=True):
                assert reader.n_read + reader.n_lost == last + 1
        assert cam.header().n_dropped == n_dropped
        assert cam.header().structured_buffer_version == n - n_dropped
        assert n_dropped > 0 or slots > 3


def first_slot(view: DataBlockConsumer) -> int:
    """Where slot 0 lies in the mapping of `view`."""

    block = view._attachment.block
    assert block is not None
    return address(np.frombuffer(block.segment, "u1")) + block.slot_offset(0)


def test_other_readers_lose_nothing_by_a_pin(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 0)
    with view.pin(0), attach("every", None) as copying, attach("block", "b") as blocking:
        assert copying.read(0).frame_id == blocking.read(0).frame_id == 0
        for n in range(1, 50):
            publish(cam, n)
            for other in (copying, blocking):
                frame = other.read(0)
                assert (frame.frame_id, frame.n_lost, is_itself(frame)) == (n, 0, True)


def test_what_is_passed_over_is_no_loss(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    """Positions that a pin left empty hold no frame, so nobody can have lost one there."""
    for n in range(4):
        publish(cam, n)
    with attach("every", None) as late, attach("block", "b") as blocking:
        held = [view.pin(0), view.pin(0)]
        for n in range(4, 6):
            for other in (late, blocking):
                while other.lag_frames:
                    other.read(0)
            assert publish(cam, n)
        held[0].release()
        assert publish(cam, 6)
        for other in (late, blocking):
            ids = []
            while other.lag_frames:
                frame = other.read(0)
                assert is_itself(frame)
                ids.append((frame.frame_id, frame.n_lost))
            assert ids == [(5, 0), (6, 0)]
            assert (other.n_read, other.n_lost) == (4, 0)
        held[1].release()


# How a pin ends


def test_a_with_block_releases_also_when_it_fails(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 1)
    with pytest.raises(ZeroDivisionError), view.pin(0) as frame:
        assert frame.is_pinned
        _ = 1 // 0
    assert not frame.is_pinned
    assert states(cam)[0].n_pinned == 0
    frame.release()  # twice is once


def test_a_second_release_does_not_touch_the_next_pin(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    for n in range(2):
        publish(cam, n)
    first = view.pin(0)
    first.release()
    with view.pin(0) as second:  # has the number that the first one had
        first.release()
        del first
        assert states(cam)[0].n_pinned == 1
        for n in range(2, 20):
            publish(cam, n)
        assert is_itself(second)


@pytest.mark.parametrize("cycle", [False, True])
def test_a_forgotten_frame_is_released(
    cam: DataBlockProducer, view: DataBlockConsumer, cycle: bool
) -> None:
    publish(cam, 1)
    frame: Any = view.pin(0)
    assert states(cam)[0].n_pinned == 1
    if cycle:
        frame.flex["me"] = frame
    data = frame.data
    del frame
    gc.collect()
    assert states(cam)[0].n_pinned == 0
    assert data[0] == 1  # mapped still


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle"])
def test_a_copy_of_a_pinned_frame_is_a_frame_of_its_own(
    cam: DataBlockProducer, view: DataBlockConsumer, how: str
) -> None:
    ways: dict[str, Callable[[PinnedFrame], Frame]] = {
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "pickle": lambda frame: pickle.loads(pickle.dumps(frame)),
    }
    publish(cam, 1)
    with view.pin(0) as frame:
        own = ways[how](frame)
        assert (type(own), own.flex, own.frame_id) == (Frame, {"n": 1}, 0)
        del own
        own = ways[how](frame)
        assert states(cam)[0].n_pinned == 1  # the one that went did not release it
    for n in range(2, 20):
        publish(cam, n)
    assert is_itself(own)


PINS = """
view = DataBlockConsumer.attach("cam", policy="every", reader="r", timeout_s=60)
say("ready")
wait_for_go()
held = [view.pin(10) for _ in range(4)]
say("held", [frame.frame_id for frame in held])
wait_for_go()
"""


def test_the_pins_of_a_killed_reader_are_gone_when_a_producer_meets_them(
    start: Start, cam: DataBlockProducer
) -> None:
    child = start(PINS)
    child.expect("ready")
    for n in range(4):
        publish(cam, n)
    child.go()
    assert child.expect("held") == "[0, 1, 2, 3]"
    assert not publish(cam, 4)
    child.stop()
    assert not publish(cam, 5)  # stopped is not dead
    child.kill()
    assert [(reader.n_pinned, reader.is_alive) for reader in states(cam)] == [(4, False)]
    assert publish(cam, 6)
    assert states(cam) == []
    assert cam.header().n_dropped == 2
    with attach("every") as view:  # whose name is free
        assert view.read(0).frame_id == 6


# Frames outlive their channel


@pytest.mark.parametrize("ends", ["consumer", "producer", "both", "forgotten"])
def test_a_pinned_frame_can_be_looked_at_after_the_end_of(ends: str) -> None:
    cam: DataBlockProducer | None = ring()
    view: DataBlockConsumer | None = attach("every")
    assert cam is not None
    assert view is not None
    publish(cam, 7)
    frame = view.pin(0)
    if ends in ("consumer", "both"):
        view.close()
    if ends in ("producer", "both"):
        cam.close()
    if ends == "forgotten":
        view = cam = None
        gc.collect()
    assert (frame.data == 7).all()
    assert frame.flex == {"n": 7}
    data = frame.data
    frame.release()
    del frame
    gc.collect()
    assert (data == 7).all()
    for end in (view, cam):
        if end is not None:
            end.close()


def test_after_the_consumers_end_its_pins_are_released(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    for n in range(4):
        publish(cam, n)
    held = [view.pin(0) for _ in range(4)]
    view.close()
    assert all(publish(cam, n) for n in range(4, 12))
    assert cam.header().n_dropped == 0
    with attach("every", "next") as other:
        publish(cam, 12)
        with other.pin(0) as frame:  # in the place, and with the number, that held[0] had
            for old in held:
                old.release()
            assert states(cam)[0].n_pinned == 1
            for n in range(13, 30):
                publish(cam, n)
            assert is_itself(frame)


def test_a_forgotten_consumer_stays_admitted_as_long_as_its_frame_is_held(
    cam: DataBlockProducer,
) -> None:
    publish(cam, 1)
    view: DataBlockConsumer | None = attach("every")
    assert view is not None
    frame = view.pin(0)
    view = None
    for n in range(2, 20):
        publish(cam, n)
    assert is_itself(frame)
    frame.release()
    gc.collect()
    assert states(cam) == []


@pytest.mark.parametrize("way", ["close", "kill"])
def test_a_frame_stays_pinned_over_a_restart_of_its_producer(start: Start, way: str) -> None:
    child = start("""
cam = DataBlockProducer.create("cam", dtype="u1", shape=4, slots=2)
cam.put(np.full(4, 1, "u1"), {"n": 1})
cam.put(np.full(4, 2, "u1"), {"n": 2})
say("up")
wait_for_go()
cam.close()
""")
    child.expect("up")
    with attach("every") as view:
        old = view.pin(0)
        if way == "kill":
            child.kill()
        else:
            child.go()
            child.end()
        with ring(2) as cam:
            publish(cam, 11)
            with view.pin(10) as new:
                assert (new.is_restart, new.flex, old.flex) == (True, {"n": 11}, {"n": 2})
                assert [reader.n_pinned for reader in states(cam)] == [1]
                old.release()  # has the same number, in the former table
                assert [reader.n_pinned for reader in states(cam)] == [1]
                for n in range(12, 30):
                    assert publish(cam, n)
                assert is_itself(new)
                assert is_itself(old)
            assert view.n_restarts == 1


# A single buffer


def test_a_single_buffer_is_pinned_between_publications() -> None:
    with ring(1) as cam, attach(None) as view:
        for n in range(0, 20, 2):
            assert publish(cam, n)
            with view.pin(0) as frame:
                assert is_itself(frame)
                assert not publish(cam, n + 1)
                assert is_itself(frame)
        assert (cam.header().n_dropped, view.n_read) == (10, 10)
        assert view.n_lost == 9  # the last one dropped is not known to it yet


def test_a_single_buffer_that_is_being_written_cannot_be_pinned() -> None:
    with ring(1) as cam, attach(None) as view:
        publish(cam, 1)
        cam.begin_publish()
        cam.get_structured_data_buffer()[...] = 2
        with pytest.raises(WaitTimeout):
            view.pin(0.03)
        assert states(cam)[0].n_pinned == 0
        cam.abort_publish()  # the frame is gone, though
        with pytest.raises(WaitTimeout):
            view.pin(0)
        publish(cam, 3)
        with view.pin(0) as frame:
            assert frame.flex == {"n": 3}


# DLPack


@pytest.mark.parametrize("dtype", ["u1", "<i2", "f4", "c16", "?"])
def test_numpy_takes_a_pinned_frame_without_a_copy(dtype: str) -> None:
    image = np.arange(12).reshape(3, 4).astype(dtype)
    with (
        DataBlockProducer.create("cam", dtype=dtype, shape=(3, 4), slots=2) as cam,
        attach("every") as view,
    ):
        cam.put(image)
        with view.pin(0) as frame:
            lent: Any = np.from_dlpack(frame)
            assert address(lent) == address(frame.data)
            assert (lent.dtype, lent.shape) == (image.dtype, image.shape)
            assert (lent == image).all()
            assert not lent.flags.writeable
            assert frame.__dlpack_device__() == (1, 0)
        view.close()
        cam.close()
        del frame
        gc.collect()
        assert (lent == image).all()  # it keeps the mapping


class Plain:
    """One that asks for DLPack's protocol without versions, as JAX does."""

    def __init__(self, frame: PinnedFrame) -> None:
        self.frame = frame

    def __dlpack__(self, **_: Any) -> Any:
        return self.frame.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.frame.__dlpack_device__()


def test_the_protocol_without_versions_gives_the_same_memory(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 5)
    with view.pin(0) as frame:
        assert '"dltensor"' in repr(frame.__dlpack__())
        assert '"dltensor_versioned"' in repr(frame.__dlpack__(max_version=(1, 1)))
        lent: Any = np.from_dlpack(Plain(frame))
        assert address(lent) == address(frame.data)
        assert (lent == 5).all()


@pytest.mark.parametrize(
    "asked",
    [{"copy": True}, {"dl_device": (2, 0)}, {"stream": 1}],
    ids=lambda asked: next(iter(asked)),
)
def test_what_a_pin_cannot_give_is_refused(
    cam: DataBlockProducer, view: DataBlockConsumer, asked: dict[str, Any]
) -> None:
    publish(cam, 5)
    with view.pin(0) as frame, pytest.raises(BufferError):
        frame.__dlpack__(**asked)


def test_a_dtype_that_dlpack_does_not_know_is_refused_as_it_asks_for() -> None:
    with (
        DataBlockProducer.create("cam", dtype=">u2", shape=4) as cam,
        attach("every") as view,
    ):
        cam.put(np.arange(4, dtype=">u2"))
        with view.pin(0) as frame, pytest.raises(BufferError, match="byte order"):
            np.from_dlpack(frame)


# Threads, forks, Ctrl-C


@pytest.mark.parametrize("policy", [None, "every", "block"])
def test_a_close_ends_a_pin_that_waits_in_another_thread(
    cam: DataBlockProducer, policy: str | None
) -> None:
    errors: list[BaseException] = []

    with attach(policy) as reader:

        def wait() -> None:
            try:
                reader.pin(None)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.03)
        assert thread.is_alive()
        reader.close()
        thread.join()
    assert [type(error) for error in errors] == [ChannelClosed]
    assert "this consumer of channel 'cam' was closed" in str(errors[0])
    assert states(cam) == []
    assert publish(cam, 1)


def test_a_close_right_after_a_pin_was_set_leaves_none(
    cam: DataBlockProducer, view: DataBlockConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another thread may: between the pin and its frame."""
    publish(cam, 1)
    way: Any = view._reader.way
    pass_ = way._pass

    def close_first(*arguments: Any) -> Any:
        view.close()
        return pass_(*arguments)

    monkeypatch.setattr(way, "_pass", close_first)
    with contextlib.suppress(ChannelClosed):
        view.pin(0).release()
    gc.collect()
    assert states(cam) == []


@pytest.mark.parametrize("call", ["read", "pin"])
def test_a_close_while_a_frame_is_counted_is_told_as_one(
    cam: DataBlockProducer, view: DataBlockConsumer, call: str
) -> None:
    """As another thread may: between two lines of the reader."""
    publish(cam, 1)
    way: Any = view._reader.way
    admission = way._admission

    class Closing:
        def __getattr__(self, name: str) -> Any:
            return getattr(admission, name)

        def pass_(self, *arguments: Any) -> None:
            view.close()
            admission.pass_(*arguments)

    way._admission = Closing()
    with pytest.raises(ChannelClosed, match="this reader of channel 'cam' was closed"):
        getattr(view, call)(0)
    gc.collect()
    assert states(cam) == []


def test_frames_may_be_forgotten_by_another_thread(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    for n in range(4):
        publish(cam, n)
    held = [view.pin(0) for _ in range(4)]
    thread = threading.Thread(target=held.clear)  # which forgets them all
    thread.start()
    thread.join()
    assert all(publish(cam, n) for n in range(4, 20))


FORKED = """
cam = DataBlockProducer.create("cam", dtype="u1", shape=4, slots=2)
view = DataBlockConsumer.attach("cam", policy="every", reader="parent")
cam.put(np.full(4, 1, "u1"), {"n": 1})
frame = view.pin(0)

def refused(call):
    try:
        call()
    except pyhub.ForkedHandle as error:
        assert "opened before a fork" in str(error) and "spawn" in str(error)
        return
    raise AssertionError("not refused")

pid = os.fork()
if pid == 0:
    assert (frame.data == 1).all() and (np.from_dlpack(frame) == 1).all()
    CHILD
    sys.exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, status
from pyhub.datablock.reader import admitted_readers
from pyhub.names import lease_path
[me] = admitted_readers(cam._block, str(lease_path()))
assert (me.name, me.n_pinned, me.is_alive, me.pid) == ("parent", 1, True, os.getpid()), me
for n in range(2, 20):
    assert cam.put(np.full(4, n, "u1"), {"n": n}, timeout_s=0)
assert (frame.data == 1).all()
frame.release()
last = view.read(0)
assert last.flex == {"n": 19} and view.n_read + view.n_lost == 19, (last, view.n_lost)
cam.put(np.full(4, 20, "u1"), {"n": 20})
with view.pin(0) as frame:
    assert frame.flex == {"n": 20} and frame.n_lost == 0
view.close()
assert admitted_readers(cam._block, str(lease_path())) == []
say("fine")
"""

IN_CHILD = {
    "nothing": "pass",
    "release": "frame.release()",
    "forget": "del frame, view, cam; import gc; gc.collect()",
    "close": "view.close(); cam.close()",
    "pin": "refused(lambda: view.pin(0))",
    "pin and wait": "refused(lambda: view.pin(10))",
    "read": "refused(lambda: view.read(0))",
    "killed": "os.kill(os.getpid(), signal.SIGSTOP) if False else os._exit(0)",
    "own": """
    with DataBlockConsumer.attach("cam", policy="every", reader="child") as mine:
        with mine.pin(0) as own:
            assert own.flex == {"n": 1}
""",
}


@pytest.mark.parametrize("act", IN_CHILD)
def test_a_forked_child_leaves_the_parents_place_and_pins_alone(start: Start, act: str) -> None:
    child = start(FORKED.replace("CHILD", IN_CHILD[act]))
    child.expect("fine")
    child.end()


def test_processes_that_are_spawned_pin_frames_of_their_own(
    cam: DataBlockProducer, tmp_path: Path
) -> None:
    publish(cam, 3)
    script = tmp_path / "spawning.py"
    script.write_text("""
import multiprocessing, os, pyhub

def work(number):
    with pyhub.DataBlockConsumer.attach("cam", reader=f"w{number}") as view, view.pin(10) as frame:
        return int(frame.data[0]), frame.flex

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(work, range(4)))
""")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"{[(3, {'n': 3})] * 4}\n", "")
    assert publish(cam, 4)
    assert states(cam) == []


INTERRUPTED = """
signal.signal(signal.SIGINT, signal.default_int_handler)
view = DataBlockConsumer.attach("cam", policy=sys.argv[1], reader="r")
try:
    say("waiting")
    {wait}
except KeyboardInterrupt:
    say("interrupted")
with view.pin(60) as frame:
    say("then", frame.flex["n"], frame.n_lost)
"""


@pytest.mark.parametrize("policy", ["latest", "every", "block"])
@pytest.mark.parametrize("wait", ["view.pin(None)", "view.pin(1e6)", "list(view)"])
def test_ctrl_c_ends_the_wait_for_a_frame(
    start: Start, cam: DataBlockProducer, policy: str, wait: str
) -> None:
    child = start(INTERRUPTED.format(wait=wait), policy)
    child.expect("waiting")
    child.interrupt()
    child.expect("interrupted")
    publish(cam, 1)
    assert child.expect("then") == "1 0"
    child.end()
    assert states(cam) == []


HOLDS_AND_BLOCKS = """
with DataBlockConsumer.attach("cam", policy="block", reader="dead") as view:
    frame = view.pin(5)
    say("holding")
    wait_for_go()
"""


def test_a_dead_holder_behind_a_living_one_is_not_waited_for(start: Start) -> None:
    patience_s = 5.0
    with (
        DataBlockProducer.create("cam", dtype="u1", shape=4, slots=1, patience_s=patience_s) as cam,
        DataBlockConsumer.attach("cam", policy="latest", reader="alive") as view,
    ):
        cam.put(np.zeros(4, "u1"))
        with view.pin(0):
            child = start(HOLDS_AND_BLOCKS)
            child.expect("holding")
            child.kill()
            assert not cam.put(np.ones(4, "u1"))
            readers = admitted_readers(cam._block, str(lease_path()))
        assert [(reader.name, reader.stalled_s) for reader in readers] == [("alive", 0.0)]


COLLECTED = """
import gc
import numpy as np
from pyhub import CapacityError, DataBlockConsumer, DataBlockProducer

class Late:
    pass

def fill(view):
    held = []
    try:
        while True:
            held.append(view.pin(0.1))
    except CapacityError as error:
        return error
    finally:
        held.clear()

with DataBlockProducer.create("cam", dtype="u1", shape=4, slots=8) as cam:
    view = DataBlockConsumer.attach("cam", policy="every", reader="collected")
    for n in range(8):
        cam.put(np.zeros(4, "u1"))
    gc.collect()
    error = fill(view)
    late = Late()  # younger than what the traceback holds, and in a cycle with it
    late.me, late.error = late, error
    del view, error, late
    gc.collect()
"""


def test_a_reader_that_the_garbage_collector_takes_leaves_its_place() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLLECTED], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
