"""Producers close, die and come back; readers are told, and go on."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhub import (
    ChannelClosed,
    DataBlockConsumer,
    DataBlockProducer,
    Overrun,
    ProducerDied,
    SegmentExists,
    SegmentNotFound,
    WaitTimeout,
    WriterStalled,
)
from pyhub._core import remove_dead
from pyhub.monitor.cleaning import clean
from pyhub.names import lease_path, reader_tables, segment_names, segment_path

Start = Callable[..., Any]


def create(shape: int = 4, value: int | None = None, slots: int = 4) -> DataBlockProducer:
    """Create the channel "cam", with one frame if there is a value."""
    cam = DataBlockProducer.create("cam", dtype="u1", shape=shape, slots=slots)
    if value is not None:
        publish(cam, value)
    return cam


def publish(cam: DataBlockProducer, value: int) -> None:
    cam.put(np.full(cam.shape, value, cam.dtype), {"value": value})


PRODUCER = """
cam = DataBlockProducer.create("cam", dtype="u1", shape=4, slots=4)
for value in range(int(sys.argv[1])):
    cam.put(np.full(4, value, "u1"), {"value": value})
say("up")
wait_for_go()
"""


@pytest.fixture
def dead(start: Start) -> Iterator[DataBlockConsumer]:
    """A reader whose producer, "cam", published one frame and was killed."""
    child = start(PRODUCER, 1)
    child.expect("up")
    with DataBlockConsumer.attach("cam") as view:
        child.kill()
        yield view
    if segment_path("cam").exists():
        remove_dead(segment_path("cam"), lease_path())


def wait_forever_for(view: DataBlockConsumer, way: str) -> Any:
    """Read without a deadline."""
    ways: dict[str, Callable[[], Any]] = {
        "read": lambda: view.read(None),
        "frames": lambda: next(view.frames()),
        "aread": lambda: asyncio.run(view.aread(None)),
        "latest": lambda: view.latest(None),
    }
    return ways[way]()


every_way = pytest.mark.parametrize("way", ["read", "aread", "frames"])


# Closing


def test_a_channel_goes_when_its_producer_closes() -> None:
    cam = create(value=1)
    assert segment_names() == ["cam"]
    cam.close()
    cam.close()
    assert cam.is_closed
    assert segment_names() == []
    with pytest.raises(SegmentNotFound):
        DataBlockConsumer.attach("cam")


def test_a_reader_gets_what_was_published_before_the_close_and_is_told_then() -> None:
    cam = create(value=0)
    with DataBlockConsumer.attach("cam") as view:
        publish(cam, 1)
        cam.close()
        assert view.read(None).flex == {"value": 1}
        with pytest.raises(ChannelClosed, match=r"was closed by its producer \(pid") as caught:
            view.read(None)
        assert not isinstance(caught.value, ProducerDied)
        assert "Read again to wait for the next one" in str(caught.value)
        assert view.header().is_closed


def test_a_close_is_told_at_the_deadline_of_a_wait_that_has_one() -> None:
    cam = create(value=0)
    with DataBlockConsumer.attach("cam") as view:
        view.read(0)
        cam.close()
        with pytest.raises(ChannelClosed):
            view.read(0)
        with pytest.raises(ChannelClosed):
            view.read(0.05)
        with pytest.raises(ChannelClosed):
            asyncio.run(view.aread(0.05))


@pytest.mark.parametrize("timeout_s", [None, 1e6])
def test_a_loop_over_frames_ends_with_the_channel(timeout_s: float | None) -> None:
    """At once, whatever its deadline for a frame: it does not follow."""
    cam = create(value=0)
    with DataBlockConsumer.attach("cam") as view:
        frames = view.frames(timeout_s)
        publish(cam, 1)
        cam.close()
        assert [frame.flex["value"] for frame in frames] == [0, 1]


def test_the_latest_frame_can_be_seen_after_the_close() -> None:
    cam = create(value=1)
    with DataBlockConsumer.attach("cam") as view:
        cam.close()
        with view.latest(0) as seen:
            assert (seen.data == 1).all()
            assert seen.is_valid()


@pytest.mark.parametrize("timeout_s", [None, 0.05])
def test_who_waits_for_a_first_frame_is_told_of_the_close(timeout_s: float | None) -> None:
    cam = create()
    with DataBlockConsumer.attach("cam") as view:
        cam.close()
        for call in (view.read, view.latest):
            with pytest.raises(ChannelClosed, match="closed by its producer"):
                call(timeout_s)


# Dying


@every_way
def test_the_death_of_a_producer_is_told(dead: DataBlockConsumer, way: str) -> None:
    assert wait_forever_for(dead, way).flex == {"value": 0}  # what it had published comes first
    with pytest.raises(ProducerDied, match=r"\(pid \d+\) died without closing") as caught:
        wait_forever_for(dead, way)
    assert "readers go on by themselves" in str(caught.value)


def test_a_death_is_told_at_the_deadline_of_a_wait_that_has_one(dead: DataBlockConsumer) -> None:
    dead.read(0)
    with pytest.raises(ProducerDied):
        dead.read(0)
    with pytest.raises(ProducerDied):
        dead.read(0.05)
    with pytest.raises(ProducerDied):
        next(dead.frames(timeout_s=0.05))


def test_a_death_ends_a_wait_that_has_begun(start: Start) -> None:
    child = start(PRODUCER, 1)
    child.expect("up")
    with DataBlockConsumer.attach("cam") as view:
        view.read(0)
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                view.read(None)
            except ProducerDied as error:
                raised.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        child.kill()
        thread.join()
        assert len(raised) == 1
    assert remove_dead(segment_path("cam"), lease_path())


def test_who_waits_for_a_first_frame_is_told_of_the_death(start: Start) -> None:
    child = start(PRODUCER, 0)
    child.expect("up")
    with DataBlockConsumer.attach("cam") as view:
        child.kill()
        for timeout_s in (None, 0.05):
            for call in (view.read, view.latest):
                with pytest.raises(ProducerDied):
                    call(timeout_s)
    assert remove_dead(segment_path("cam"), lease_path())


def test_a_living_producer_is_not_taken_for_dead(start: Start) -> None:
    """The negative control: the same, without the kill; and with a stop, which is no death."""
    child = start(PRODUCER, 1)
    child.expect("up")
    with DataBlockConsumer.attach("cam") as view:
        view.read(0)
        with pytest.raises(WaitTimeout, match="its producer lives"):
            view.read(0.2)
        child.stop()
        with pytest.raises(WriterStalled, match=r"is stopped \(T\)"):
            view.read(0.2)
        assert not remove_dead(segment_path("cam"), lease_path())
        with pytest.raises(SegmentExists):
            create()
        child.resume()
    child.go()
    child.end()


def test_the_dead_leave_nothing_after_removal(dead: DataBlockConsumer, shm: Path) -> None:
    assert remove_dead(segment_path("cam"), lease_path())
    assert segment_names() == []
    assert not list(shm.glob("*.cam"))
    assert (dead.read(0).data == 0).all()  # who has it mapped keeps it


KILLS = """
import gc
for number in range(100):
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        cam = DataBlockProducer.create(f"cycle{number}", dtype="u1", shape=1000, slots=2)
        kind = number % 4
        if kind > 0:
            cam.put(np.zeros(1000, "u1"), {"number": number})
        if kind > 1:
            cam.begin_publish()
        if kind > 2:
            cam.get_structured_data_buffer()[...] = 1
            cam.get_flexible_zone_buffer()
        os.write(ready[1], b".")
        signal.pause()
    os.read(ready[0], 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for end in (*ready, *go):
        os.close(end)
say("killed")
"""


def test_a_hundred_killed_producers_leave_nothing_after_removal(start: Start, shm: Path) -> None:
    """P3. Killed idle, publishing, and in the middle of a frame."""
    child = start(KILLS)
    child.expect("killed")
    child.end()
    left = segment_names()
    assert len(left) == 100, "nothing was left: this proves nothing"
    assert all(remove_dead(segment_path(name), lease_path()) for name in left)
    assert segment_names() == []
    assert not list(shm.glob("*cycle*"))


KILLED_WHILE_CREATING = """
say("up")
while True:
    DataBlockProducer.create("cam", dtype="u1", shape=100000).close()
"""


def test_a_producer_killed_while_it_creates_leaves_a_whole_segment_or_none(
    start: Start, shm: Path
) -> None:
    """Decision 2. Nobody can see half a header."""
    children = [start(KILLED_WHILE_CREATING.replace("cam", f"cam{n}")) for n in range(4)]
    for child in children:
        child.expect("up")
    for n, child in enumerate(children):
        for _ in range(50):
            try:
                DataBlockConsumer.attach(f"cam{n}").close()
            except SegmentNotFound:
                continue
        child.kill()
    for name in segment_names():
        assert remove_dead(segment_path(name), lease_path())
    assert not list(shm.glob("*.cam*"))
    list(clean(None))  # a table of readers, named before its channel
    assert not reader_tables()


# Coming back


def test_the_name_of_a_dead_producer_can_be_taken_over(
    dead: DataBlockConsumer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pyhub.datablock"), create(value=8) as cam:
        assert "removed the segment of a producer that died" in caplog.text
        assert cam.header().structured_buffer_version == 1
        with DataBlockConsumer.attach("cam") as other:
            assert other.read(0).flex == {"value": 8}


def test_readers_go_on_with_the_producer_that_takes_over(dead: DataBlockConsumer) -> None:
    dead.read(0)
    with pytest.raises(ProducerDied):
        dead.read(0)
    with create(value=8):
        frame = dead.read(10)
        assert (frame.flex, frame.is_restart) == ({"value": 8}, True)
        assert dead.n_restarts == 1


@every_way
@pytest.mark.parametrize("shape", [4, 9], ids=["same shape", "other shape"])
def test_a_reader_goes_on_when_its_producer_comes_back(way: str, shape: int) -> None:
    cam = create(value=1)
    with DataBlockConsumer.attach("cam") as view:
        first = wait_forever_for(view, way)
        segment = view.header().segment_id
        cam.close()
        cam = create(shape, value=2)
        second = wait_forever_for(view, way)
        publish(cam, 3)
        third = wait_forever_for(view, way)
        assert [frame.flex["value"] for frame in (first, second, third)] == [1, 2, 3]
        assert [frame.is_restart for frame in (first, second, third)] == [False, True, False]
        assert [frame.data.shape for frame in (first, second, third)] == [(4,), (shape,), (shape,)]
        assert (view.shape, view.n_restarts, view.n_lost) == ((shape,), 1, 0)
        assert view.header().segment_id != segment
        cam.close()


def test_a_reader_goes_on_with_another_dtype() -> None:
    cam = create(value=1)
    with DataBlockConsumer.attach("cam") as view:
        cam.close()
        with DataBlockProducer.create("cam", dtype="<f8", shape=(2, 2)) as cam:
            cam.put(np.full((2, 2), 0.5))
            view.read(0)  # the frame of the first one
            frame = view.read(0)
            assert (frame.data == 0.5).all()
            assert (view.dtype, view.shape) == (np.dtype("<f8"), (2, 2))


def test_frames_of_the_new_producer_that_a_reader_missed_are_counted() -> None:
    cam = create(value=1)
    with DataBlockConsumer.attach("cam") as view:
        view.read(0)
        cam.close()
        with create() as cam:
            for value in range(10):
                publish(cam, value)
            frame = view.read(0)
            assert (frame.flex, frame.n_lost, frame.is_restart) == ({"value": 9}, 9, True)


def test_a_loop_that_follows_goes_on_over_closes_and_deaths(start: Start) -> None:
    child = start(PRODUCER, 1)
    child.expect("up")
    with DataBlockConsumer.attach("cam") as view:
        frames = view.frames(timeout_s=60, follow=True)
        got = [next(frames)]
        child.kill()
        child = start(PRODUCER, 2)
        got += [next(frames), next(frames)]
        child.expect("up")
        child.go()
        child.end()  # closes the channel
        with create(value=7):
            got.append(next(frames))
    assert [frame.flex["value"] for frame in got] == [0, 0, 1, 7]
    assert [frame.is_restart for frame in got] == [False, True, False, True]


def test_a_loop_that_follows_is_told_why_nothing_came(dead: DataBlockConsumer) -> None:
    frames = dead.frames(timeout_s=0.03, follow=True)
    next(frames)
    with pytest.raises(ProducerDied, match="died without closing"):
        next(frames)


def test_a_loop_that_follows_can_be_closed(dead: DataBlockConsumer) -> None:
    frames = dead.frames(follow=True)
    next(frames)
    threading.Timer(0.02, dead.close).start()
    assert list(frames) == []


@pytest.mark.parametrize("died", [False, True], ids=["closed", "died"])
def test_who_only_looks_sees_the_next_producer_too(start: Start, died: bool) -> None:
    """A display that never calls read: latest, the zones, the header."""
    child = start(PRODUCER, 2)
    child.expect("up")
    with DataBlockConsumer.attach("cam") as view:
        assert view.latest(0).flex == {"value": 1}
        assert view.get_flexible_zone_data() == {"value": 1}
        child.kill() if died else child.process.communicate()
        with create(shape=6, value=8):
            for _ in range(2):
                with view.latest(1) as seen:
                    assert seen.flex == {"value": 8}
                    assert seen.data.tolist() == [8] * 6
                assert view.get_flexible_zone_data() == {"value": 8}
                data = view.get_structured_data()
                assert data is not None
                assert data.tolist() == [8] * 6
                assert view.header().shape == (6,)
            assert view.read(0).is_restart


@pytest.mark.parametrize("look", ["latest", "get_flexible_zone_data", "header"])
def test_each_way_of_looking_finds_the_next_producer_by_itself(look: str) -> None:
    cam = create(value=1)
    with DataBlockConsumer.attach("cam") as view:
        getattr(view, look)()
        cam.close()
        with create(shape=6, value=8):
            getattr(view, look)()
            assert view.shape == (6,)


def test_a_living_producers_name_is_refused_with_its_pid(start: Start) -> None:
    child = start(PRODUCER, 1)
    child.expect("up")
    with pytest.raises(SegmentExists, match=rf"living producer \(pid {child.pid}\)") as caught:
        create()
    assert "DataBlockProducer.attach" in str(caught.value)
    with DataBlockConsumer.attach("cam") as view:
        assert view.read(0).flex == {"value": 0}  # and it is unharmed
    child.go()
    child.end()


def test_of_many_that_create_at_once_one_wins(start: Start) -> None:
    """And the winner's segment is the one that stays, also over a dead one's remains."""
    child = start(PRODUCER, 1)
    child.expect("up")
    child.kill()
    script = """
say("ready")
wait_for_go()
try:
    cam = DataBlockProducer.create("cam", dtype="u1", shape=4)
    cam.put(np.full(4, 9, "u1"), {"pid": os.getpid()})
    say("won")
    wait_for_go()
except pyhub.SegmentExists:
    say("lost")
"""
    children = [start(script) for _ in range(5)]
    for child in children:
        child.expect("ready")
    for child in children:
        child.go()
    outcomes = {child.pid: child.expect("") for child in children}
    (winner,) = [child for child in children if outcomes[child.pid] == "won"]
    assert sorted(outcomes.values()) == ["lost"] * 4 + ["won"]
    with DataBlockConsumer.attach("cam") as view:
        assert view.read(0).flex == {"pid": winner.pid}
    winner.go()
    for child in children:
        child.end()


# What stays valid


def test_arrays_outlive_their_channel() -> None:
    """Decision: the mapping goes with the last view of it."""
    cam = create(value=5)
    view = DataBlockConsumer.attach("cam")
    data = view.get_structured_data()
    seen = view.latest(0)
    frame = view.read(0)
    view.close()
    cam.close()
    del view, cam
    gc.collect()
    assert data is not None
    assert (data == 5).all()
    assert (seen.data == 5).all()
    assert (seen.copy() == 5).all()
    assert (frame.data == 5).all()
    assert (seen.flex, frame.flex) == ({"value": 5}, {"value": 5})


def test_a_producers_array_outlives_its_channel() -> None:
    cam = create(slots=1)
    cam.begin_publish()
    data, flex = cam.get_structured_data_buffer(), cam.get_flexible_zone_buffer()
    cam.close()
    del cam
    gc.collect()
    data[...] = 1  # nobody sees it, and nothing breaks
    flex[0] = 1
    assert (data == 1).all()


def test_a_view_of_the_old_producers_frame_stays_valid_after_a_restart() -> None:
    cam = create(value=1)
    with DataBlockConsumer.attach("cam") as view, view.latest(0) as seen:
        cam.close()
        with create(shape=9, value=2):
            view.read(0)
            view.read(0)
            assert seen.is_valid()
            assert (seen.copy() == 1).all()


def test_a_close_in_the_block_publishes_nothing() -> None:
    cam = create(value=1)
    with DataBlockConsumer.attach("cam") as view:
        with pytest.raises(Exception, match="begun and ended once"), cam.publish() as slot:
            slot.data[...] = 2
            cam.close()
        assert view.header().commit == 1


def test_a_forgotten_producer_closes_its_channel() -> None:
    cam = create(value=1)
    with DataBlockConsumer.attach("cam") as view:
        view.read(0)
        del cam
        gc.collect()
        with pytest.raises(ChannelClosed) as caught:
            view.read(0)
        assert not isinstance(caught.value, ProducerDied)
    assert segment_names() == []


def test_a_producer_attached_to_a_channel_leaves_it_as_it_is() -> None:
    with create(value=1) as cam:
        DataBlockProducer.attach("cam").close()
        assert not cam.header().is_closed
        publish(cam, 2)
        assert segment_names() == ["cam"]


def test_a_closed_owner_leaves_a_successors_segment_alone() -> None:
    """The name is removed only if it still leads to one's own segment."""
    cam = create(value=1)
    segment_path("cam").unlink()  # somebody cleaned up too eagerly
    with create(value=2):
        cam.close()
        with DataBlockConsumer.attach("cam") as view:
            assert view.read(0).flex == {"value": 2}


# The interpreter's end

ENDINGS = {
    "nothing closed": "",
    "an exception": "raise SystemExit(0)",
    "a publication open": "cam.begin_publish(); cam.get_structured_data_buffer()[...] = 1",
    "in the block": "slot = cam.publish().__enter__(); slot.flex = {'a': 1}",
    "in a thread": (
        "t = threading.Thread(target=lambda: (cam.begin_publish(), time.sleep(1e6)), daemon=True)"
        "; t.start()\nwhile not cam.header().is_writing: time.sleep(0.001)"
    ),
    "a reader in a thread": (
        "t = threading.Thread(target=view.read, args=(None,), daemon=True); t.start()"
    ),
    "a loop suspended": "frames = iter(view); next(frames, None)",
    "in a cycle": "ring = [cam, view, seen]; ring.append(ring); del cam, view, seen, data",
    "kept by a module": "pyhub.kept = (cam, view, seen, data)",
    "terminated": "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
    "os.kill(os.getpid(), signal.SIGTERM)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_may_end_any_time_and_leaves_nothing(start: Start, ending: str) -> None:
    """P15. No complaint, no segment, no crash; readers are told that it was closed."""
    child = start(
        """
cam = DataBlockProducer.create("cam", dtype="u1", shape=4, slots=2)
cam.put(np.full(4, 1, "u1"), {"value": 1})
view = DataBlockConsumer.attach("cam")
seen, data = view.latest(0), view.get_structured_data()
view.read(0)
cam.put(np.full(4, 2, "u1"))
say("up")
wait_for_go()
"""
        + ENDINGS[ending]
    )
    child.expect("up")
    with DataBlockConsumer.attach("cam") as view:
        assert (view.read(0).data == 2).all()
        child.go()
        child.end()
        assert segment_names() == []
        with pytest.raises(ChannelClosed) as caught:
            view.read(None)
        assert not isinstance(caught.value, ProducerDied)


def test_frames_of_the_dead_that_are_still_there_can_be_read(start: Start) -> None:
    """Killed in the middle of a frame: the whole ones are given, the half one never."""
    child = start(
        """
cam = DataBlockProducer.create("cam", dtype="u1", shape=4, slots=4)
for value in range(3):
    cam.put(np.full(4, value, "u1"), {"value": value})
cam.begin_publish()
cam.get_structured_data_buffer()[...] = 99
cam.get_flexible_zone_buffer()[:4] = b"\\xff" * 4
say("up")
wait_for_go()
"""
    )
    child.expect("up")
    with DataBlockConsumer.attach("cam") as view:
        child.kill()
        assert view.read(0).flex == {"value": 2}
        with pytest.raises(ProducerDied):
            view.read(0)
        try:
            assert view.latest(0).flex == {"value": 2}
        except Overrun:
            pytest.fail("the newest whole frame is there")
    assert remove_dead(segment_path("cam"), lease_path())
