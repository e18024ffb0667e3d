"""What a reader is given: whole frames, its own, with exact counts of what it missed."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pyhub import (
    CapacityError,
    ChannelClosed,
    CodecError,
    DataBlockConsumer,
    DataBlockProducer,
    Encoding,
    LayoutError,
    Overrun,
    PyhubError,
    WaitTimeout,
    ZoneUpdateInfo,
)

Start = Callable[..., Any]
Eventually = Callable[[Callable[[], object]], None]


@pytest.fixture(params=[1, 2, 4], ids=lambda n: f"{n}slots")
def cam(request: pytest.FixtureRequest) -> Iterator[DataBlockProducer]:
    """A producer of small frames; every test meets it with one slot, with two, with four."""
    with DataBlockProducer.create(
        "cam", flexible_zone_size=256, dtype="<u2", shape=(4, 3), slots=request.param
    ) as producer:
        yield producer


@pytest.fixture
def view(cam: DataBlockProducer) -> Iterator[DataBlockConsumer]:
    with DataBlockConsumer.attach("cam") as consumer:
        yield consumer


def image(value: int) -> npt.NDArray[np.uint16]:
    return np.full((4, 3), value, "<u2")


def publish(cam: DataBlockProducer, *values: int) -> None:
    for value in values:
        cam.put(image(value), {"value": value})


# The newest


def test_read_gives_the_newest_frame_with_what_belongs_to_it(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    cam.put(image(1), {"value": 1}, frame_id=40, timestamp_ns=1_700_000_000_123_456_789)
    frame = view.read(0)
    assert (frame.data == 1).all()
    assert (frame.flex, frame.frame_id, frame.version) == ({"value": 1}, 40, 1)
    assert frame.timestamp_ns == 1_700_000_000_123_456_789
    assert (frame.n_lost, frame.has_new_data, frame.has_new_flex) == (0, True, True)
    assert not frame.is_restart
    assert repr(frame) == "<Frame 40: uint16 (4, 3), version 1, 0 lost before it>"


def test_a_frame_is_given_once(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    publish(cam, 1)
    view.read(0)
    with pytest.raises(WaitTimeout):
        view.read(0)
    publish(cam, 2)
    assert view.read(0).flex == {"value": 2}


def test_a_frame_that_was_read_is_the_readers_own(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 1)
    frame = view.read(0)
    assert frame.data.flags.owndata
    assert frame.data.flags.writeable
    publish(cam, *range(2, 10))
    assert (frame.data == 1).all()
    assert frame.flex == {"value": 1}


def test_passed_over_frames_are_counted(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    n_lost = []
    for burst in (1, 5, 2, 1):
        publish(cam, *range(burst))
        n_lost.append(view.read(0).n_lost)
    assert n_lost == [0, 4, 1, 0]
    assert (view.n_read, view.n_lost) == (4, 5)


def test_lag_is_what_was_published_and_not_yet_given(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    lags = [view.lag_frames]
    publish(cam, 1, 2, 3)
    lags.append(view.lag_frames)
    view.read(0)
    lags.append(view.lag_frames)
    assert lags == [0, 3, 0]


def test_a_late_reader_begins_with_the_newest_frame(cam: DataBlockProducer) -> None:
    publish(cam, 1, 2, 3)
    with DataBlockConsumer.attach("cam") as late:
        assert late.lag_frames == 1
        frame = late.read(0)
        assert (frame.flex, frame.n_lost) == ({"value": 3}, 0)
    with DataBlockConsumer.attach("cam") as late:
        first = next(late.frames(timeout_s=0))
        assert (first.flex, first.n_lost) == ({"value": 3}, 0)


def test_every_reader_gets_every_frame(cam: DataBlockProducer) -> None:
    with DataBlockConsumer.attach("cam") as one, DataBlockConsumer.attach("cam") as other:
        for value in range(5):
            publish(cam, value)
            assert one.read(0).flex == other.read(0).flex == {"value": value}


# Into an array of one's own


def test_a_frame_may_be_copied_into_the_readers_array(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    out = np.empty((4, 3), "<u2")
    for value in (1, 2):
        publish(cam, value)
        frame = view.read(0, out=out)
        assert frame.data is out
        assert (out == value).all()


def test_a_smaller_frame_fills_the_first_rows_of_the_readers_array(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    out = np.full((4, 3), 9, "<u2")
    cam.put(image(1)[:2])
    frame = view.read(0, out=out)
    assert np.shares_memory(frame.data, out)
    assert out.tolist() == [[1] * 3] * 2 + [[9] * 3] * 2


READ_ONLY = np.zeros((4, 3), "<u2")
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.empty((4, 3), "<i2"), LayoutError),
        (np.empty((4, 3), ">u2"), LayoutError),
        (np.empty((3, 4), "<u2"), LayoutError),
        (np.empty((4, 2), "<u2"), LayoutError),
        (np.empty((3, 4), "<u2").T, LayoutError),
        (READ_ONLY, (CapacityError, ValueError)),
    ],
    ids=["dtype", "byte order", "shape", "small", "memory order", "read-only"],
)
def test_an_array_that_cannot_take_a_frame_is_refused_and_the_frame_kept(
    cam: DataBlockProducer, view: DataBlockConsumer, out: Any, error: Any
) -> None:
    publish(cam, 1)
    with pytest.raises(error):
        view.read(0, out=out)
    frame = view.read(0)
    assert (frame.flex, frame.n_lost) == ({"value": 1}, 0)


# All of them, in order


def test_frames_come_in_order_and_the_loop_ends_when_the_channel_is_closed(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, *range(cam.n_slots))
    frames = iter(view)
    got = [next(frames)]
    cam.close()
    got += frames
    assert [frame.flex["value"] for frame in got][-1] == cam.n_slots - 1
    assert sum(1 + frame.n_lost for frame in got) == cam.n_slots


@pytest.mark.parametrize("behind", [1, 2, 3, 4, 7, 50])
def test_gaps_are_counted_exactly(
    cam: DataBlockProducer, view: DataBlockConsumer, behind: int
) -> None:
    frames = view.frames(timeout_s=0)
    publish(cam, 0)
    got = [next(frames)]
    publish(cam, *range(1, behind + 1))
    while view.lag_frames:
        got.append(next(frames))
    assert [frame.frame_id for frame in got] == sorted({frame.frame_id for frame in got})
    for before, after in itertools.pairwise(got):
        assert after.frame_id - before.frame_id == 1 + after.n_lost
    assert got[-1].frame_id == behind
    assert view.n_lost == behind + 1 - len(got)


def test_a_ring_keeps_as_many_frames_as_it_has_slots(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """All of them if the reader is no further behind; decision 9."""
    publish(cam, 0)
    frames = view.frames(timeout_s=0)
    next(frames)
    publish(cam, *range(1, cam.n_slots + 1))
    got = [next(frames).frame_id for _ in range(cam.n_slots)]
    assert got == list(range(1, cam.n_slots + 1))
    assert view.n_lost == 0


def test_a_reader_that_was_lapped_goes_on_with_what_is_left(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """The slot that will be overwritten next is left out: it would be lost again."""
    publish(cam, *range(20))
    first = next(view.frames(timeout_s=0))
    n_left = 20 - first.frame_id
    assert first.n_lost == first.frame_id
    assert n_left == (cam.n_slots - 1 if cam.n_slots > 2 else cam.n_slots)


def test_a_reader_that_is_lapped_again_and_again_leaves_out_more() -> None:
    """Up to a quarter of the ring; less again once it keeps up for a while."""
    with (
        DataBlockProducer.create("ring", dtype="u1", shape=4, slots=16) as cam,
        DataBlockConsumer.attach("ring", policy="every") as view,
    ):

        def lap() -> int:
            """Frames that it leaves out of those that are there."""
            for value in range(40):
                cam.put(np.full(4, value, "u1"))
            oldest = cam.header().structured_buffer_version - 16
            return view.read(0).frame_id - oldest

        left_out = [lap() for _ in range(6)]
        assert left_out[0] == 1
        assert left_out == sorted(left_out)
        assert left_out[-1] == 4
        while view.lag_frames:
            view.read(0)
        for _ in range(16):  # it keeps up for a while
            cam.put(np.zeros(4, "u1"))
            view.read(0)
        left_out = [lap(), lap()]
        assert left_out[-1] < 4
        assert view.n_read + view.n_lost == cam.header().structured_buffer_version - view.lag_frames


def test_two_ways_of_reading_share_one_count(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 0)
    assert view.read(0).frame_id == 0
    publish(cam, 1)
    assert next(view.frames(timeout_s=0)).frame_id == 1
    publish(cam, 2, 3)
    assert view.read(0).n_lost == 1


def test_a_loop_over_frames_is_not_given_new_parameters_of_old_frames(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    frames = view.frames(timeout_s=0)
    publish(cam, 0)
    next(frames)
    cam.put(flex={"value": "new"})
    with pytest.raises(WaitTimeout):
        next(frames)


OVERLOAD = """
with DataBlockProducer.create("fast", dtype="<i8", shape=1000, slots=int(sys.argv[1])) as cam:
    say("ready")
    wait_for_go()
    for number in range(20000):
        cam.put(np.full(1000, number), {"number": number})
    say("done")
    wait_for_go()
"""


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_read_and_lost_frames_add_up_under_overload(
    start: Start, eventually: Eventually, slots: int
) -> None:
    """Each frame is given once, whole, in order, or counted as lost."""
    child = start(OVERLOAD, slots)
    child.expect("ready")
    with DataBlockConsumer.attach("fast") as view:
        child.go()
        frames = view.frames(timeout_s=30)
        last, n_accounted = -1, 0
        while last != 19999:
            frame = next(frames)
            n_accounted += 1 + frame.n_lost
            assert frame.frame_id == last + 1 + frame.n_lost
            assert (frame.data == frame.frame_id).all()
            assert frame.flex == {"number": frame.frame_id}
            last = frame.frame_id
            if view.n_read % 20 == 1 and last < 19000:  # a slow reader
                eventually(lambda: view.lag_frames > 2 * slots)
        assert n_accounted == 20000
        assert view.n_lost > 0, "the reader was never overrun: this proves nothing"
        assert (view.n_read + view.n_lost, view.lag_frames) == (20000, 0)
    child.go()
    child.expect("done")
    child.end()


# Whole frames, with their parameters, against a producer that never rests

# A frame: [number, number of the frame that the parameters were published for,
# noise ..., checksum]. Frames come with parameters, without, and get new ones.
STRESS = """
slots, size = int(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(1)
frame = np.empty(size, "<u4")
with DataBlockProducer.create("stress", dtype="<u4", shape=size, slots=slots) as cam:
    say("ready")
    number = belongs = 0
    while not os.path.exists(sys.argv[3]):
        kind = number % 3
        rows = size - 7 * (number % 5)
        with cam.publish() as slot:
            if kind != 1:
                belongs = number
                slot.flex = {"belongs": number, "text": "x" * (number % 50)}
            frame[2:-1] = rng.integers(0, 2**32, size - 3)
            frame[:2] = number, belongs
            frame[rows - 1] = zlib.crc32(frame[:rows - 1])
            slot.data = frame[:rows]
        if kind == 2:
            cam.put(flex={"belongs": number, "again": True})
        number += 1
"""


def is_whole(data: npt.NDArray[Any]) -> bool:
    return bool(data[-1] == zlib.crc32(data[:-1].tobytes()))


@pytest.mark.parametrize(("slots", "size"), [(1, 200), (1, 50_000), (2, 5_000), (8, 200)])
def test_no_reader_sees_half_a_frame_or_another_frames_parameters(
    start: Start, tmp_path: Any, slots: int, size: int
) -> None:
    """Decision 9. By copy, in order, and by view; whatever was published in between."""
    child = start(STRESS, slots, size, tmp_path / "stop")
    child.expect("ready")
    n_seen = {"read": 0, "frames": 0, "latest": 0}

    def check(way: str, data: npt.NDArray[Any], flex: dict[str, Any]) -> None:
        assert is_whole(data), way
        number, belongs = int(data[0]), int(data[1])
        # The parameters of this frame, or newer ones that it got later.
        assert flex["belongs"] in (belongs, number), way
        n_seen[way] += 1

    with (
        DataBlockConsumer.attach("stress") as newest,
        DataBlockConsumer.attach("stress") as ordered,
    ):
        frames = ordered.frames(timeout_s=30)
        for _ in range(1000):
            frame = newest.read(30)
            check("read", frame.data, frame.flex)
            frame = next(frames)
            check("frames", frame.data, frame.flex)
            try:
                with newest.latest(30) as seen:
                    copied = seen.copy()
                check("latest", copied, seen.flex)
            except Overrun:
                pass
    (tmp_path / "stop").touch()
    child.end()
    assert n_seen["read"] == n_seen["frames"] == 1000


def test_whoever_does_not_check_sees_torn_frames(start: Start, tmp_path: Any) -> None:
    """The negative control of the test above: the same frames, without the check."""
    child = start(STRESS, 1, 50_000, tmp_path / "stop")
    child.expect("ready")
    with DataBlockConsumer.attach("stress") as view:
        view.read(30)
        with view.latest(30) as seen:
            while is_whole(np.array(seen.data)):
                pass
            assert not seen.is_valid()
    (tmp_path / "stop").touch()
    child.end()


# Where it lies


def test_the_latest_frame_is_seen_where_it_lies(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    cam.put(image(7), {"value": 7}, frame_id=70, timestamp_ns=1_000_000_007)
    with view.latest(0) as seen, view.latest(0) as again:
        assert (seen.data == 7).all()
        assert np.shares_memory(seen.data, again.data)
        assert (seen.flex, seen.frame_id, seen.version) == ({"value": 7}, 70, 1)
        assert seen.timestamp_ns == 1_000_000_007
        assert seen.timestamp == pytest.approx(1.000000007)
        assert seen.is_valid()
        assert not seen.data.flags.writeable
        assert not seen.data.flags.owndata


def test_what_lies_in_shared_memory_cannot_be_made_writable(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 1)
    with view.latest(0) as seen:
        with pytest.raises(ValueError):
            seen.data[0] = 1
        with pytest.raises(ValueError):
            seen.data.flags.writeable = True


def test_the_latest_frame_may_be_looked_at_again_and_does_not_count_as_read(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 1, 2)
    for _ in range(3):
        assert view.latest(0).flex == {"value": 2}
    assert view.read(0).flex == {"value": 2}


def test_a_view_turns_invalid_when_its_slot_is_written_again(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 0)
    with view.latest(0) as seen:
        for value in range(1, cam.n_slots):
            publish(cam, value)
            assert seen.is_valid()
            assert (seen.copy() == 0).all()
        cam.begin_publish()
        assert seen.is_valid()
        cam.get_structured_data_buffer()
        assert not seen.is_valid()
        with pytest.raises(Overrun, match="frame 0 of channel 'cam' was overwritten"):
            seen.copy()
        cam.abort_publish()
        assert not seen.is_valid()
        assert seen.flex == {"value": 0}


def test_new_parameters_do_not_make_a_view_invalid(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 1)
    with view.latest(0) as seen:
        cam.put(flex={"value": "new"})
        assert seen.is_valid()
        assert seen.flex == {"value": 1}
    assert view.latest(0).flex == {"value": "new"}


def test_the_latest_of_a_channel_of_parameters_has_no_data(view: DataBlockConsumer) -> None:
    with (
        DataBlockProducer.create("state", flexible_zone_size=64) as motor,
        DataBlockConsumer.attach("state") as state,
    ):
        motor.put(flex={"position": 1})
        with state.latest(0) as seen:
            assert (seen.data.size, seen.flex) == (0, {"position": 1})


def test_the_latest_of_nothing_is_a_timeout(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    with pytest.raises(WaitTimeout, match="nothing new"):
        view.latest(0)


# The zones, without waiting


def test_the_zones_can_be_looked_at_any_time(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """Seed 22. Const and non-blocking, before the first frame, while one is written, after."""
    assert view.get_structured_data() is None
    assert view.get_flexible_zone_data() is None
    assert view.header().commit == 0
    publish(cam, 1)
    cam.begin_publish()
    cam.get_structured_data_buffer()[...] = 2
    assert view.get_flexible_zone_data() == {"value": 1}
    assert (view.header().structured_buffer_version, view.header().is_writing) == (1, True)
    data = view.get_structured_data()
    if cam.n_slots == 1:
        assert data is None  # the only frame is being overwritten
    else:
        assert data is not None
        assert (data == 1).all()
    cam.end_publish(ZoneUpdateInfo(structured_buffer=True))
    data = view.get_structured_data()
    assert data is not None
    assert (data == 2).all()


def test_what_the_zones_give_is_read_only(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    """Seed 22. The frame is the shared memory itself; the parameters are a copy."""
    publish(cam, 1)
    data = view.get_structured_data()
    assert data is not None
    assert not data.flags.writeable
    with pytest.raises(ValueError):
        data[0] = 1
    parameters = view.get_flexible_zone_data()
    assert parameters is not None
    parameters["value"] = "mine"
    assert view.get_flexible_zone_data() == {"value": 1}


def test_a_consumer_maps_the_segment_read_only(view: DataBlockConsumer) -> None:
    """Decision 6. The kernel keeps readers from writing, not good manners."""
    with open("/proc/self/maps") as maps:
        modes = [line.split()[1] for line in maps if line.rstrip().endswith(".cam")]
    assert modes == ["r--s"]  # the producer's own is one of a file without a name
    assert not view.is_closed


def test_looking_does_not_count_as_reading(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    publish(cam, 1)
    view.get_structured_data()
    view.get_flexible_zone_data()
    view.header()
    assert (view.n_read, view.lag_frames) == (0, 1)
    assert view.read(0).n_lost == 0


def test_a_reader_sees_frames_while_a_publication_is_open(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """Seed 22. Readers take no lock."""
    publish(cam, 1)
    cam.begin_publish()
    assert view.read(0).flex == {"value": 1}
    cam.abort_publish()


# A flex zone that holds something else


def put_raw(cam: DataBlockProducer, raw: bytes, encoding: Encoding = Encoding.MSGPACK) -> None:
    """Publish arbitrary bytes as parameters, as a program in C can."""
    cam.begin_publish()
    cam.get_structured_data_buffer()[...] = 5
    cam.get_flexible_zone_buffer()[: len(raw)] = raw
    cam.end_publish(
        ZoneUpdateInfo(
            flex_zone=True, structured_buffer=True, flex_zone_size=len(raw), encoding=encoding
        )
    )


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        (b"", Encoding.MSGPACK),
        (b"\xc1", Encoding.MSGPACK),
        (b"\x93\x01\x02\x03", Encoding.MSGPACK),
        (b"\xdf\xff\xff\xff\xff", Encoding.MSGPACK),
        (b"\x81\xa1a\x01\x00", Encoding.MSGPACK),
        (b"\x81\xa1a\x01", Encoding.JSON),
        (b"{", Encoding.JSON),
        (b"[1]", Encoding.JSON),
    ],
    ids=str,
)
def test_a_bad_flex_zone_does_not_cost_the_frame(
    cam: DataBlockProducer, view: DataBlockConsumer, raw: bytes, encoding: Encoding
) -> None:
    put_raw(cam, raw, encoding)
    frame = view.read(0)
    assert (frame.data == 5).all()
    with pytest.raises(CodecError):
        _ = frame.flex
    with pytest.raises(CodecError):
        view.get_flexible_zone_data()
    with view.latest(0) as seen, pytest.raises(CodecError):
        _ = seen.flex
    publish(cam, 6)
    assert view.read(0).flex == {"value": 6}


def test_an_unknown_encoding_is_named(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    put_raw(cam, b"\x80", 9)  # type: ignore[arg-type]  # as a newer program may
    with pytest.raises(CodecError, match="encoding 9"):
        _ = view.read(0).flex


# Closed


def test_a_closed_consumer_says_so(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    publish(cam, 1)
    view.close()
    view.close()
    assert view.is_closed
    for call in (
        view.read,
        view.latest,
        view.header,
        view.get_structured_data,
        view.get_flexible_zone_data,
        lambda: view.lag_frames,
    ):
        with pytest.raises(ChannelClosed, match="this consumer of channel 'cam' was closed"):
            call()
    assert list(view) == []


def test_a_consumer_that_never_attached_says_so() -> None:
    with pytest.raises(PyhubError, match="not attached"):
        DataBlockConsumer("cam").read(0)


def test_a_handle_is_made_by_attaching_only() -> None:
    from pyhub._core import Segment
    from pyhub._datablock import DataBlock

    for kind in (DataBlock, Segment):
        with pytest.raises(TypeError):
            kind()
