"""What a publish changes, in which order, and what it leaves alone."""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import pytest

import pyhub
from pyhub import (
    CapacityError,
    ChannelClosed,
    CodecError,
    DataBlockConsumer,
    DataBlockProducer,
    Encoding,
    Frame,
    Header,
    LayoutError,
    Notification,
    PublishError,
    WaitTimeout,
    WriterStalled,
    ZoneUpdateInfo,
)
from pyhub._reading import Cursor
from pyhub.names import segment_path

PAGE = 4096
ZONES = (
    "flex_zone_size",
    "flex_zone_version",
    "structured_buffer_size",
    "structured_buffer_version",
)


@pytest.fixture
def told() -> list[Notification]:
    """What the producer of the test told its hub."""
    return []


@pytest.fixture
def cam(told: list[Notification]) -> Iterator[DataBlockProducer]:
    """A producer of small frames, in a ring of three."""
    with DataBlockProducer.create(
        "cam", flexible_zone_size=256, dtype="<u2", shape=(4, 3), slots=3, notify=told.append
    ) as producer:
        yield producer


@pytest.fixture
def view(cam: DataBlockProducer) -> Iterator[DataBlockConsumer]:
    """A consumer of the same channel."""
    with DataBlockConsumer.attach("cam") as consumer:
        yield consumer


def image(value: int, rows: int = 4) -> npt.NDArray[np.uint16]:
    return np.full((rows, 3), value, "<u2")


def up(size: int) -> int:
    return -(-size // PAGE) * PAGE


def zones(header: Header) -> tuple[int, ...]:
    return tuple(getattr(header, field) for field in ZONES)


# The seed's layout


def test_the_segment_is_header_flex_zone_and_structured_buffer_in_this_order(
    cam: DataBlockProducer,
) -> None:
    """Seed 1. One file, three contiguous regions; the bytes lie where they are said to."""
    cam.put(image(0x1234), {"a": 1})
    flex, structured = cam._block.flex_offset(0), cam._block.slot_offset(0)
    raw = segment_path("cam").read_bytes()
    constants, words, tables = 1536, 64 + 512, 64 * 3 + 64 * 4
    assert flex == up(constants + words + tables)
    assert structured == flex + up(4 * 256)
    assert len(raw) == structured + up(3 * 64)
    assert raw[flex:].startswith(msgpack.packb({"a": 1}))
    assert raw[structured:].startswith(b"\x34\x12" * 12)


def test_capacities_are_fixed_at_creation(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    """Seed 2."""
    size = segment_path("cam").stat().st_size
    for rows in (4, 1, 0, 3):
        cam.put(image(7, rows), {"rows": [0] * rows})
        header = view.header()
        assert header.flex_zone_capacity == 256
        assert header.structured_buffer_capacity == 4 * 3 * 2
    assert segment_path("cam").stat().st_size == size


@pytest.mark.parametrize("zone", ["flexible_zone", "structured_data"])
def test_the_lock_is_held_for_a_write_to_either_zone(cam: DataBlockProducer, zone: str) -> None:
    """Seed 3. One lock covers both zones, from begin to end."""
    with DataBlockProducer.attach("cam") as other:
        cam.begin_publish()
        getattr(cam, f"get_{zone}_buffer")()
        assert in_thread(lambda: other.begin_publish(timeout_s=0.01)) is WriterStalled
        cam.abort_publish()
        other.begin_publish(timeout_s=0)
        other.abort_publish()


def in_thread(call: Any) -> type[BaseException] | None:
    """Call in another thread; the type of what it raised."""
    raised: list[type[BaseException]] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(type(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_is_writing_is_seen_without_the_lock(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """Seed 4."""
    assert not view.header().is_writing
    cam.begin_publish()
    assert view.header().is_writing
    cam.get_structured_data_buffer()
    cam.end_publish(ZoneUpdateInfo(structured_buffer=True))
    assert not view.header().is_writing
    cam.begin_publish()
    cam.abort_publish()
    assert not view.header().is_writing


def test_the_header_has_the_seeds_fields(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    """Seed 5, for Python; tests/c/test_layout.py has the bytes."""
    header = view.header()
    assert header._fields[:8] == (
        "flex_zone_capacity",
        "flex_zone_size",
        "flex_zone_version",
        "structured_buffer_capacity",
        "structured_buffer_size",
        "structured_buffer_version",
        "timestamp",
        "is_writing",
    )
    assert [type(value) for value in header[:8]] == [int] * 6 + [float, bool]
    assert header[:8] == (256, 0, 0, 24, 0, 0, 0.0, False)
    assert cam.header() == header


def test_the_header_says_what_channel_it_is_of(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    before = time.time()
    header = view.header()
    assert (header.name, header.dtype.str, header.shape, header.n_slots) == (
        "cam",
        "<u2",
        (4, 3),
        3,
    )
    assert (header.n_filled, header.commit, header.is_closed) == (0, 0, False)
    assert (header.n_recovered, header.n_aborted) == (0, 0)
    assert header.owner_pid > 0
    assert 0 < header.created <= before
    assert re.fullmatch("[0-9a-f]{32}", header.segment_id)


def test_a_version_rises_with_each_update_of_its_zone_and_only_then(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """Seed 6. Sizes are the valid bytes, and change with their zone only."""
    cam.put(image(1), {"a": 1})
    assert zones(view.header()) == (3 + 1, 1, 24, 1)
    cam.put(flex={"longer": 2})
    assert zones(view.header()) == (9, 2, 24, 1)
    cam.put(image(2, rows=1))
    assert zones(view.header()) == (9, 2, 6, 2)
    cam.put(image(3, rows=0))
    assert zones(view.header()) == (9, 2, 0, 3)
    cam.put(image(4), {})
    assert zones(view.header()) == (1, 3, 24, 4)
    assert view.header().commit == 5


def test_the_timestamp_is_that_of_the_last_update_of_any_zone(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """Seed 7."""
    before = time.time()
    cam.put(image(1), {})
    first = view.header().timestamp
    cam.put(flex={"a": 2})
    second = view.header().timestamp
    cam.put(image(2))
    third = view.header().timestamp
    after = time.time()
    assert before <= first <= second <= third <= after


def test_the_timestamp_resolves_microseconds(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """Seed 7. A double of seconds since 1970; the frame has the nanoseconds."""
    stamp = 1_790_000_000_123_456_789
    cam.put(image(1), timestamp_ns=stamp)
    frame = view.read(0)
    assert frame.timestamp_ns == stamp
    assert math.isclose(view.header().timestamp, stamp / 1e9, rel_tol=0, abs_tol=1e-6)
    assert math.isclose(frame.timestamp, stamp / 1e9, rel_tol=0, abs_tol=1e-6)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_the_flex_zone_holds_exactly_one_object(
    cam: DataBlockProducer, view: DataBlockConsumer, encoding: Encoding
) -> None:
    """Seed 8. MessagePack or JSON, as any program writes it, and nothing around it."""
    parameters = {"exposure_s": 0.01, "gain": 3, "mode": "fast"}
    cam.put(image(1), parameters, encoding=encoding)
    header = view.header()
    offset = cam._block.flex_offset(0)
    raw = segment_path("cam").read_bytes()[offset : offset + header.flex_zone_size]
    found = msgpack.unpackb(raw) if encoding == Encoding.MSGPACK else json.loads(raw)
    assert found == parameters
    assert view.get_flexible_zone_data() == parameters


def test_a_frame_is_contiguous_and_aligned_for_numpy(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """Seed 9. No two frames share a cache line."""
    for number in range(3):
        cam.put(image(number))
        data = view.get_structured_data()
        assert data is not None
        assert data.flags.c_contiguous
        assert data.flags.aligned
        assert cam._block.slot_offset(number) % 64 == 0
        assert data.__array_interface__["data"][0] % 64 == 0


SIGNALS = "pthread_cond|sem_(init|post|wait)|eventfd|pthread_barrier|mq_|msgsnd|semop"


def test_the_headers_use_no_signalling_primitive() -> None:
    """Seed 10. The block is passive: a lock for producers, and words to look at.

    Who sleeps does so on a word that is there anyway: a producer that waits for
    readers, in their table, and a reader on the commit word.
    """
    for header in Path(pyhub.get_include(), "pyhub").glob("*.h"):
        code = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
        assert re.search(rf"\b({SIGNALS})", code) is None, header
        sleeps = re.findall(r"\w+ phb_futex_\w+\(.*|phb_futex_\w+\(&?([^,;]+)[,)]", code)
        for word in sleeps:
            assert word.rpartition(">")[2] in (
                "",
                "released.word",
                "phb_low_half(commit)",
                "commit)",
            )


# Order and notification


def test_a_notification_comes_after_the_unlock_and_after_the_header(
    cam: DataBlockProducer, view: DataBlockConsumer, told: list[Notification]
) -> None:
    """Seed 14. Lock, write, update header, unlock, notify; the message names the zones."""
    seen: list[Any] = []

    def look(notification: Notification) -> None:
        with DataBlockProducer.attach("cam") as other:
            other.begin_publish(timeout_s=0)  # the lock is free
            other.abort_publish()
        frame = view.read(0)
        header = view.header()
        seen.append((frame.data[0, 0], frame.flex, header.is_writing, zones(header)))
        told.append(notification)

    cam._notify = look
    cam.put(image(5), {"a": 1}, frame_id=77)
    assert seen == [(5, {"a": 1}, False, (4, 1, 24, 1))]
    assert told == [Notification(1, 1, 1, zones=3, frame_id=77)]


def test_nothing_is_told_before_the_end(cam: DataBlockProducer, told: list[Notification]) -> None:
    """Seed 14."""
    with cam.publish() as slot:
        slot.data[...] = 1
        slot.flex = {"a": 1}
        assert told == []
    assert len(told) == 1


def test_one_end_publish_is_one_notification_even_if_both_zones_changed(
    cam: DataBlockProducer, told: list[Notification]
) -> None:
    """Seed 15."""
    cam.put(image(1), {"a": 1})
    cam.put(flex={"a": 2})
    cam.put(image(2))
    assert [(n.flex_zone, n.structured_buffer) for n in told] == [
        (True, True),
        (True, False),
        (False, True),
    ]
    assert [n.commit for n in told] == [1, 2, 3]
    assert [(n.flex_zone_version, n.structured_buffer_version) for n in told] == [
        (1, 1),
        (2, 1),
        (2, 2),
    ]
    assert [n.frame_id for n in told] == [0, -1, 1]


def test_a_camera_and_a_gui_share_a_frame_and_its_settings(
    cam: DataBlockProducer, view: DataBlockConsumer, told: list[Notification]
) -> None:
    """Seed 24. One end_publish, one event, and both zones are read."""
    camera, gui = cam, view
    camera.begin_publish()
    camera.get_structured_data_buffer()[...] = image(9)
    settings = msgpack.packb({"exposure_s": 0.01, "gain": 2.0})
    camera.get_flexible_zone_buffer()[: len(settings)] = settings
    camera.end_publish(
        ZoneUpdateInfo(flex_zone=True, structured_buffer=True, flex_zone_size=len(settings))
    )
    (event,) = told
    assert event.flex_zone
    assert event.structured_buffer
    assert gui.get_flexible_zone_data() == {"exposure_s": 0.01, "gain": 2.0}
    data = gui.get_structured_data()
    assert data is not None
    assert (data == 9).all()


# The explicit form


def test_buffers_are_had_between_begin_and_end_only(cam: DataBlockProducer) -> None:
    """Seed 21."""
    for take in (cam.get_structured_data_buffer, cam.get_flexible_zone_buffer):
        with pytest.raises(PublishError, match="begun and ended once"):
            take()
        cam.begin_publish()
        take()
        cam.abort_publish()
        with pytest.raises(PublishError, match="begun and ended once"):
            take()


def test_buffers_are_writable_and_as_large_as_the_zones(cam: DataBlockProducer) -> None:
    """Seed 21."""
    cam.begin_publish()
    data, flex = cam.get_structured_data_buffer(), cam.get_flexible_zone_buffer()
    assert data.flags.writeable
    assert (data.shape, data.dtype.str) == ((4, 3), "<u2")
    assert not flex.readonly
    assert len(flex) == 256
    cam.abort_publish()


def test_the_same_buffer_is_given_within_one_publication(cam: DataBlockProducer) -> None:
    cam.begin_publish()
    cam.get_structured_data_buffer()[...] = 5
    assert (cam.get_structured_data_buffer() == 5).all()
    cam.abort_publish()


@pytest.mark.parametrize(
    "update",
    [
        ZoneUpdateInfo(),
        ZoneUpdateInfo(flex_zone=True),
        ZoneUpdateInfo(structured_buffer=True),
        ZoneUpdateInfo(flex_zone=True, structured_buffer=True),
    ],
)
def test_a_zone_whose_buffer_was_not_taken_cannot_be_published(
    cam: DataBlockProducer, view: DataBlockConsumer, update: ZoneUpdateInfo
) -> None:
    cam.begin_publish()
    with pytest.raises(PublishError):
        cam.end_publish(update)
    cam.abort_publish()
    assert view.header().commit == 0


def test_an_end_without_a_begin_is_refused(cam: DataBlockProducer) -> None:
    with pytest.raises(PublishError):
        cam.end_publish(ZoneUpdateInfo(structured_buffer=True))


def test_a_second_begin_by_the_same_thread_is_refused_and_the_first_one_stays(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    cam.begin_publish()
    cam.get_structured_data_buffer()[...] = 5
    with pytest.raises(PublishError):
        cam.begin_publish(timeout_s=5)
    cam.end_publish(ZoneUpdateInfo(structured_buffer=True))
    assert (view.read(0).data == 5).all()


@pytest.mark.parametrize(
    ("update", "error"),
    [
        (ZoneUpdateInfo(structured_buffer=True, structured_buffer_size=30), CapacityError),
        (ZoneUpdateInfo(structured_buffer=True, structured_buffer_size=7), LayoutError),
        (ZoneUpdateInfo(flex_zone=True, flex_zone_size=257), CapacityError),
    ],
)
def test_after_a_wrong_size_the_publication_is_still_open(
    cam: DataBlockProducer,
    view: DataBlockConsumer,
    update: ZoneUpdateInfo,
    error: type[Exception],
) -> None:
    cam.begin_publish()
    cam.get_structured_data_buffer()[...] = 5
    cam.get_flexible_zone_buffer()[0] = 0x80
    with pytest.raises(error):
        cam.end_publish(update)
    assert view.header().commit == 0
    cam.end_publish(ZoneUpdateInfo(flex_zone=True, structured_buffer=True, flex_zone_size=1))
    frame = view.read(0)
    assert (frame.data == 5).all()
    assert frame.flex == {}


@pytest.mark.parametrize("size", [-1, 2**64])
def test_a_size_that_is_none_is_refused(cam: DataBlockProducer, size: int) -> None:
    cam.begin_publish()
    cam.get_flexible_zone_buffer()
    with pytest.raises((CapacityError, OverflowError)):
        cam.end_publish(ZoneUpdateInfo(flex_zone=True, flex_zone_size=size))
    cam.abort_publish()


def test_giving_up_what_was_not_begun_does_nothing(cam: DataBlockProducer) -> None:
    cam.abort_publish()
    assert cam.header().n_aborted == 0


def test_a_closed_producer_publishes_nothing(cam: DataBlockProducer) -> None:
    cam.close()
    with pytest.raises(ChannelClosed, match="Create it again"):
        cam.begin_publish()
    with pytest.raises(ChannelClosed):
        cam.put(image(1))
    assert cam.is_closed


# The context


def test_what_was_filled_in_is_published_at_the_end_of_the_block(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    with cam.publish() as slot:
        slot.data[...] = image(3)
        slot.flex = {"a": 1}
        slot.frame_id = 42
        slot.timestamp_ns = 1_000_000_007
    frame = view.read(0)
    assert (frame.data == 3).all()
    assert (frame.flex, frame.frame_id, frame.timestamp_ns) == ({"a": 1}, 42, 1_000_000_007)


def test_frames_are_counted_from_0_unless_numbered(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    ids = []
    for frame_id in (None, None, 2**64 - 1, None):
        cam.put(image(1), frame_id=frame_id)
        ids.append(view.read(0).frame_id)
    assert ids == [0, 1, 2**64 - 1, 3]


def test_a_slot_may_be_computed_in_place(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    with cam.publish() as slot:
        slot.data[...] = 20
        slot.data += image(3)
    assert (view.read(0).data == 23).all()
    with cam.publish() as slot:
        slot.data = image(4, rows=2)
    assert view.read(0).data.tolist() == image(4, rows=2).tolist()


def test_a_block_may_publish_fewer_rows(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    with cam.publish() as slot:
        slot.data[:2] = 5
        slot.n_rows = 2
    assert view.read(0).data.tolist() == image(5, rows=2).tolist()


@pytest.mark.parametrize("n_rows", [-1, 5])
def test_rows_that_the_frame_has_not_are_refused(
    cam: DataBlockProducer, view: DataBlockConsumer, n_rows: int
) -> None:
    with pytest.raises(CapacityError, match=f"n_rows={n_rows}"), cam.publish() as slot:
        slot.data[...] = 5
        slot.n_rows = n_rows
    assert view.header().commit == 0
    cam.put(image(1), timeout_s=0)


class Oops(Exception):
    pass


@pytest.mark.parametrize("error", [Oops, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_in_the_block_publishes_nothing_and_frees_the_lock(
    cam: DataBlockProducer,
    view: DataBlockConsumer,
    told: list[Notification],
    error: type[BaseException],
) -> None:
    cam.put(image(1), {"a": 1})
    with pytest.raises(error), cam.publish() as slot:
        slot.data[...] = 2
        slot.flex = {"a": 2}
        raise error
    assert len(told) == 1
    header = view.header()
    assert (header.commit, header.n_aborted, header.is_writing) == (1, 1, False)
    frame = view.read(0)
    assert (frame.data == 1).all()
    assert frame.flex == {"a": 1}
    with DataBlockProducer.attach("cam") as other:
        other.put(image(3), timeout_s=0)  # the lock is free
    assert (view.read(0).data == 3).all()


def test_frames_go_on_without_a_gap_after_an_exception(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    for number in range(7):
        cam.put(image(number), {"n": number})
        with pytest.raises(Oops), cam.publish() as slot:
            slot.data[...] = 99
            slot.flex = {"n": 99}
            raise Oops
        frame = view.read(0)
        assert (frame.data == number).all()
        assert (frame.flex, frame.frame_id, frame.n_lost) == ({"n": number}, number, 0)


def test_a_block_that_fills_in_nothing_publishes_nothing(
    cam: DataBlockProducer, view: DataBlockConsumer, told: list[Notification]
) -> None:
    with cam.publish():
        pass
    with pytest.raises(LayoutError, match="nothing to publish"):
        cam.put()
    assert (view.header().commit, view.header().is_writing, told) == (0, False, [])


def test_a_notification_that_fails_has_been_published_all_the_same(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    def fail(notification: Notification) -> None:
        raise Oops

    cam._notify = fail
    with pytest.raises(Oops):
        cam.put(image(1))
    cam._notify = None
    assert (view.read(0).data == 1).all()
    cam.put(image(2), timeout_s=0)
    assert view.read(0).n_lost == 0


# One zone alone


def test_new_parameters_alone_make_no_new_frame(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """Decision 9. The same frame_id, with the new parameters."""
    cam.put(image(1), {"a": 1}, frame_id=10)
    first = view.read(0)
    cam.put(flex={"a": 2})
    again = view.read(0)
    assert (first.frame_id, first.flex) == (10, {"a": 1})
    assert (again.frame_id, again.flex) == (10, {"a": 2})
    assert (again.version, again.timestamp_ns) == (first.version, first.timestamp_ns)
    assert np.array_equal(again.data, first.data)
    assert (again.has_new_data, again.has_new_flex, again.n_lost) == (False, True, 0)


def test_new_parameters_leave_older_frames_theirs(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    frames = view.frames(timeout_s=0)
    cam.put(image(0), {"a": 0})
    cam.put(image(1))
    cam.put(flex={"a": 1})
    found = [(frame.frame_id, frame.flex) for frame in (next(frames), next(frames))]
    assert found == [(0, {"a": 0}), (1, {"a": 1})]


def test_a_frame_alone_carries_the_parameters_over_without_copying_them(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """Decision 9. It refers to the same entry; no byte of the flex zone changes."""

    def flex_zone() -> bytes:
        raw = segment_path("cam").read_bytes()
        return raw[cam._block.flex_offset(0) : cam._block.slot_offset(0)]

    cam.put(image(0), {"a": 1})
    first, zone = view.read(0), flex_zone()
    for number in range(1, 8):  # more often than there are slots
        cam.put(image(number))
        frame = view.read(0)
        assert (frame.frame_id, frame.flex) == (number, {"a": 1})
        assert frame.flex_version == first.flex_version
        assert (frame.has_new_data, frame.has_new_flex) == (True, False)
        assert flex_zone() == zone


def test_parameters_may_come_before_the_first_frame(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    cam.put(flex={"a": 1})
    frame = view.read(0)
    assert (frame.data.size, frame.version, frame.flex) == (0, 0, {"a": 1})
    assert view.get_structured_data() is None
    cam.put(image(1))
    frame = view.read(0)
    assert (frame.frame_id, frame.flex, frame.n_lost) == (0, {"a": 1}, 0)


def test_frames_without_any_parameters_have_an_empty_object(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    cam.put(image(1))
    assert view.read(0).flex == {}
    assert view.get_flexible_zone_data() is None


@pytest.mark.parametrize("n_slots", [1, 2, 3, 7])
def test_every_order_of_updates_keeps_frames_and_parameters_together(n_slots: int) -> None:
    """A model that remembers what belongs together is followed through all orders."""
    with (
        DataBlockProducer.create("pairs", 4, 64, slots=n_slots) as cam,
        DataBlockConsumer.attach("pairs") as view,
    ):
        ring: list[list[Any]] = []  # frame number, its parameters
        flex: dict[str, Any] = {}
        number = 0
        order = np.random.default_rng(5).integers(0, 5, 400)
        for step, kind in enumerate(order):
            if kind in (0, 1):  # both
                flex = {"step": step}
                cam.put(np.full(4, number % 256, "u1"), flex, frame_id=number)
                ring.append([number, flex])
                number += 1
            elif kind == 2:  # a frame
                cam.put(np.full(4, number % 256, "u1"), frame_id=number)
                ring.append([number, flex])
                number += 1
            elif kind == 3:  # parameters
                flex = {"step": step}
                cam.put(flex=flex)
                if ring:
                    ring[-1][1] = flex
            else:  # neither
                with pytest.raises(Oops), cam.publish() as slot:
                    slot.flex = {"step": "never"}
                    raise Oops
            ring = ring[-n_slots:]
            cursor = Cursor(cam._block, from_first=True)
            # Of a ring that was lapped a reader leaves out the slot that is next.
            for frame_number, parameters in ring[number > n_slots > 2 :]:
                found = cursor.read(Frame, True, None)
                assert found is not None
                assert found.frame_id == frame_number
                assert found.flex == parameters
        assert view.header().n_filled == n_slots


# Any dtype, any shape


DTYPES: list[Any] = [
    "?",
    "i1",
    "u1",
    "<u2",
    ">u2",
    "<i4",
    ">i8",
    "<f2",
    "<f4",
    ">f8",
    np.longdouble,
    "<c8",
    ">c16",
    "S5",
    "<U3",
    "V7",
    "<M8[ns]",
    ">m8[us]",
    [("x", "<f4"), ("n", ">i8", (3,)), ("name", "U4")],
    [("when", "<M8[us]"), ("inner", [("a", "u1"), ("b", "<f8")])],
    np.dtype([("a", "u1"), ("b", "<f8")], align=True),
]


def filled(dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return an array of arbitrary bytes that its dtype allows."""
    size = np.dtype(dtype).itemsize * math.prod(shape)
    if np.dtype(dtype) == "?" or np.dtype(dtype).kind == "U":
        raw = bytes(i % 2 for i in range(size))
        return np.frombuffer(raw, "u1").reshape(*shape, -1)[..., :1].squeeze(-1).astype(dtype)
    return np.frombuffer(bytes(i % 251 for i in range(size)), "u1").view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_frame_of_any_fixed_size_dtype_arrives_bit_for_bit(dtype: Any) -> None:
    array, out = filled(dtype, (3, 2)), np.empty((3, 2), dtype)
    with (
        DataBlockProducer.create("any", dtype=dtype, shape=(3, 2)) as cam,
        DataBlockConsumer.attach("any") as view,
    ):
        cam.put(array)
        with view.latest() as seen:
            found = [view.read(0).data, seen.data]
            cam.put(array)
            found.append(view.read(0, out=out).data)
            for data in found:
                assert (data.dtype, data.shape) == (array.dtype, array.shape)
                assert data.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_frame_of_any_fixed_size_dtype_is_filled_in_place(dtype: Any) -> None:
    array = np.zeros((3, 2), dtype)
    array[1] = filled(dtype, (2,))
    with (
        DataBlockProducer.create("any", dtype=dtype, shape=(3, 2)) as cam,
        DataBlockConsumer.attach("any") as view,
    ):
        with cam.publish() as slot:
            slot.data[...] = array
        assert str(view.read(0).data) == str(array)


@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (7,), (2, 3, 4), (5, 0), (0, 5), (1,) * 8, (2,) * 8], ids=str
)
def test_a_frame_of_any_shape_arrives(shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape), dtype="<f8").reshape(shape)
    with (
        DataBlockProducer.create("any", dtype="<f8", shape=shape) as cam,
        DataBlockConsumer.attach("any") as view,
    ):
        cam.put(array, {"a": 1})
        frame = view.read(0)
        assert frame.data.shape == shape
        assert np.array_equal(frame.data, array)
        assert frame.flex == {"a": 1}
        assert view.header().structured_buffer_size == array.nbytes


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("step", [1, 2, -1])
def test_an_array_in_any_memory_order_is_published_as_it_reads(order: Any, step: int) -> None:
    array = np.asarray(np.arange(24).reshape(4, 6), order=order)[::1, ::step]
    with (
        DataBlockProducer.create("any", dtype=array.dtype, shape=array.shape) as cam,
        DataBlockConsumer.attach("any") as view,
    ):
        cam.put(array)
        assert np.array_equal(view.read(0).data, array)


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("rows", range(5))
def test_a_frame_may_have_fewer_rows(rows: int, slots: int) -> None:
    """A larger one before it in the same slot does not show through."""
    with (
        DataBlockProducer.create("rows", dtype="<u2", shape=(4, 3), slots=slots) as cam,
        DataBlockConsumer.attach("rows") as view,
    ):
        for _ in range(slots):
            cam.put(image(9))
        cam.put(image(5, rows))
        assert view.read(0).data.tolist() == image(5, rows).tolist()
        with view.latest() as seen:
            assert seen.data.tolist() == image(5, rows).tolist()
        data = view.get_structured_data()
        assert data is not None
        assert data.tolist() == image(5, rows).tolist()
        assert view.header().structured_buffer_size == rows * 6


def test_a_scalar_frame_without_valid_bytes_is_refused_where_it_is_published() -> None:
    with DataBlockProducer.create("scalar", dtype="<f8", shape=()) as cam:
        cam.begin_publish()
        cam.get_structured_data_buffer()
        with pytest.raises(LayoutError):
            cam.end_publish(ZoneUpdateInfo(structured_buffer=True, structured_buffer_size=0))
        cam.abort_publish()


def test_a_channel_of_bytes_is_the_seeds_form() -> None:
    """Seed 20: create_datablock_producer(name, structured_buffer_size, flexible_zone_size)."""
    with (
        DataBlockProducer.create("bytes", 1000, 64) as cam,
        DataBlockConsumer.attach("bytes") as view,
    ):
        assert (cam.dtype.name, cam.shape, cam.n_slots) == ("uint8", (1000,), 1)
        cam.put(np.frombuffer(b"abc", "u1"))
        assert view.read(0).data.tobytes() == b"abc"


def test_a_channel_may_have_parameters_only() -> None:
    with (
        DataBlockProducer.create("state", flexible_zone_size=64) as motor,
        DataBlockConsumer.attach("state") as view,
    ):
        for position in range(10):
            motor.put(flex={"position": position})
        frame = view.read(0)
        assert (frame.flex, frame.data.size) == ({"position": 9}, 0)
        motor.put(flex={"position": 10})
        assert next(iter(view)).flex == {"position": 10}


def test_a_channel_may_have_frames_only() -> None:
    with (
        DataBlockProducer.create("raw", 8, 0) as cam,
        DataBlockConsumer.attach("raw") as view,
    ):
        cam.put(np.arange(8, dtype="u1"))
        assert view.read(0).data.tolist() == list(range(8))
        with pytest.raises(CapacityError, match=r"takes 1 bytes.*has room for 0"):
            cam.put(flex={})


# What does not fit


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((4, 3), "<i2"), LayoutError),
        (np.zeros((4, 3), ">u2"), LayoutError),
        (np.zeros((3, 4), "<u2"), LayoutError),
        (np.zeros(12, "<u2"), LayoutError),
        (np.zeros((4, 3, 1), "<u2"), LayoutError),
        (np.zeros((5, 3), "<u2"), CapacityError),
        ([[1, 2, 3]], LayoutError),
        ("text", LayoutError),
        (object(), LayoutError),
    ],
    ids=str,
)
def test_a_frame_that_does_not_fit_is_refused_and_nothing_published(
    cam: DataBlockProducer, view: DataBlockConsumer, array: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        cam.put(array, {"a": 1})
    with pytest.raises(error), cam.publish() as slot:
        slot.data = array
    assert zones(view.header()) == (0, 0, 0, 0)
    cam.put(image(1), timeout_s=0)


def test_parameters_too_large_are_refused_with_both_sizes_and_nothing_published(
    cam: DataBlockProducer, view: DataBlockConsumer, told: list[Notification]
) -> None:
    large = {"text": "x" * 300}
    size = len(msgpack.packb(large))
    message = f"takes {size} bytes.*has room for 256.*\n.*larger flexible_zone_size"
    with pytest.raises(CapacityError, match=message):
        cam.put(image(1), large)
    with pytest.raises(CapacityError, match=message), cam.publish() as slot:
        slot.data[...] = 1
        slot.flex = large
    assert (view.header().commit, told) == (0, [])
    cam.put(image(1), timeout_s=0)


def test_parameters_that_just_fit_are_published(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    largest = {"text": "x" * (256 - len(msgpack.packb({"text": "x" * 200})) + 200)}
    cam.put(flex=largest)
    assert view.header().flex_zone_size == 256
    assert view.read(0).flex == largest


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("value", [object(), {1}, 2**64, np.array([None])], ids=str)
def test_parameters_that_cannot_be_written_are_refused_and_nothing_published(
    cam: DataBlockProducer, view: DataBlockConsumer, value: Any, encoding: Encoding
) -> None:
    with pytest.raises(CodecError):
        cam.put(image(1), {"a": value}, encoding=encoding)
    with pytest.raises(CodecError), cam.publish() as slot:
        slot.data[...] = 1
        slot.encoding = encoding
        slot.flex = {"a": value}
    assert view.header().commit == 0
    cam.put(image(1), timeout_s=0)


def test_a_block_may_go_on_after_parameters_were_refused(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    with cam.publish() as slot:
        slot.data[...] = 1
        slot.flex = {"a": 1}
        with pytest.raises(CapacityError):
            slot.flex = {"text": "x" * 300}
    frame = view.read(0)
    assert (frame.data[0, 0], frame.flex) == (1, {"a": 1})


def test_the_encoding_that_is_published_is_the_one_that_was_written(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    with cam.publish() as slot:
        slot.flex = {"a": 1}
        slot.encoding = Encoding.JSON  # too late for what is written already
    assert view.read(0).flex == {"a": 1}


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize(
    "wrong",
    [
        {"flex": {"text": "x" * 999}},
        {"frame_id": -1},
        {"frame_id": 1 << 64},
    ],
    ids=["flex", "negative", "huge"],
)
def test_a_put_that_fails_costs_no_frame_that_was_there(slots: int, wrong: dict[str, Any]) -> None:
    image = np.arange(4, dtype="u1")
    with (
        DataBlockProducer.create(
            "kept", dtype="u1", shape=4, slots=slots, flexible_zone_size=64
        ) as cam,
        DataBlockConsumer.attach("kept") as view,
    ):
        for _ in range(slots):
            cam.put(image)
        with pytest.raises(ValueError):  # CapacityError, LayoutError
            cam.put(image, **wrong)
        assert [frame.frame_id for frame in _frames_there(view)] == list(range(slots))


def _frames_there(view: DataBlockConsumer) -> list[Frame]:
    view._cursor = 0  # a reader from the first frame on
    frames = []
    with contextlib.suppress(WaitTimeout):
        for frame in view.frames(timeout_s=0.0):
            frames.append(frame)
    return frames
