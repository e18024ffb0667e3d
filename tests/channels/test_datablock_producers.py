"""Several producers share one channel: one lock, and what happens when its holder is gone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pyhub import (
    ChannelClosed,
    DataBlockConsumer,
    DataBlockProducer,
    LayoutError,
    ProducerDied,
    PublishError,
    SegmentNotFound,
    WaitTimeout,
    WriterStalled,
    ZoneUpdateInfo,
)
from pyhub._core import remove_dead
from pyhub.names import lease_path, segment_names, segment_path

Start = Callable[..., Any]


@pytest.fixture(params=[1, 3], ids=lambda n: f"{n}slots")
def cam(request: pytest.FixtureRequest) -> Iterator[DataBlockProducer]:
    """The owner of the channel, with one frame published."""
    with DataBlockProducer.create("cam", dtype="u1", shape=4, slots=request.param) as producer:
        publish(producer, 1)
        yield producer


@pytest.fixture
def view(cam: DataBlockProducer) -> Iterator[DataBlockConsumer]:
    with DataBlockConsumer.attach("cam") as consumer:
        yield consumer


def publish(cam: DataBlockProducer, value: int, timeout_s: float = 10) -> None:
    cam.put(np.full(4, value, "u1"), {"value": value}, timeout_s=timeout_s)


# A child that attaches and begins; then does what it is told, until it is killed or goes on.
HOLDER = """
cam = DataBlockProducer.attach("cam")
cam.begin_publish()
{act}
say("holding")
wait_for_go()
cam.get_structured_data_buffer()[...] = 50
cam.end_publish(ZoneUpdateInfo(structured_buffer=True))
say("published")
wait_for_go()
"""

# How far a publication may have come when its producer dies.
STEPS = {
    "nothing": "",
    "frame": "cam.get_structured_data_buffer()[:2] = 99",
    "parameters": "cam.get_flexible_zone_buffer()[:8] = b'\\xff' * 8",
    "both": "cam.get_structured_data_buffer()[...] = 99; "
    "cam.get_flexible_zone_buffer()[:8] = b'\\xff' * 8",
}

OWNER = """
cam = DataBlockProducer.create("cam", dtype="u1", shape=4, slots=2)
cam.put(np.full(4, 1, "u1"), {{"value": 1}})
{act}
say("up")
wait_for_go()
"""


# Taking turns


def test_an_attached_producer_publishes_like_the_owner(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    with DataBlockProducer.attach("cam") as other:
        assert (other.dtype, other.shape, other.n_slots) == (cam.dtype, cam.shape, cam.n_slots)
        for value in range(2, 8):
            publish(cam if value % 2 else other, value)
            frame = view.read(0)
            assert (frame.flex, frame.data[0]) == ({"value": value}, value)
        assert view.header().structured_buffer_version == 7


def test_a_producer_cannot_attach_to_nothing() -> None:
    with pytest.raises(SegmentNotFound, match="no channel 'nobody'"):
        DataBlockProducer.attach("nobody")


def test_frames_of_an_attached_producer_must_fit_the_channel(cam: DataBlockProducer) -> None:
    with DataBlockProducer.attach("cam") as other, pytest.raises(LayoutError):
        other.put(np.zeros(5, "f4"))


CONTENDER = """
cam = DataBlockProducer.attach("cam")
say("ready")
wait_for_go()
for number in range(1000):
    with cam.publish(timeout_s=60) as slot:
        slot.data[...] = np.frombuffer(np.uint32(os.getpid()), "u1")
        slot.flex = {"pid": os.getpid(), "number": number}
say("done")
"""


def test_no_frame_is_lost_between_producers_that_publish_at_once(start: Start) -> None:
    """Seed 3. Each publish counts once, and its frame and parameters are one producer's."""
    with (
        DataBlockProducer.create("cam", dtype="u1", shape=4, slots=64) as cam,
        DataBlockConsumer.attach("cam") as view,
    ):
        children = [start(CONTENDER) for _ in range(4)]
        for child in children:
            child.expect("ready")
        for child in children:
            child.go()
        frames, n_seen = view.frames(timeout_s=60), 0
        last: dict[int, int] = {}
        while n_seen < 4000:
            frame = next(frames)
            n_seen += 1 + frame.n_lost
            pid, number = frame.flex["pid"], frame.flex["number"]
            assert frame.data.tobytes() == np.uint32(pid).tobytes()
            assert number > last.get(pid, -1)
            last[pid] = number
        for child in children:
            child.expect("done")
            child.end()
        header = cam.header()
        assert (header.structured_buffer_version, header.flex_zone_version) == (4000, 4000)
        assert (header.commit, header.n_recovered, header.n_aborted) == (4000, 0, 0)
        assert set(last) <= {child.pid for child in children}


def test_threads_of_one_producer_take_turns(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    def work() -> None:
        for _ in range(300):
            with cam.publish(timeout_s=60) as slot:
                me = threading.get_ident() % 251
                slot.data[...] = me
                slot.flex = {"value": me}

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        try:
            frame = view.read(0.1)
        except WaitTimeout:
            continue
        assert (frame.data == frame.flex["value"]).all()
    for thread in threads:
        thread.join()
    assert cam.header().commit == 1201


def test_a_publication_belongs_to_the_thread_that_began_it(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    refused: list[str] = []

    def meddle() -> None:
        for call in (
            cam.get_structured_data_buffer,
            cam.get_flexible_zone_buffer,
            lambda: cam.end_publish(ZoneUpdateInfo(structured_buffer=True)),
        ):
            try:
                call()
            except PublishError as error:
                refused.append(str(error))
        cam.abort_publish()  # does nothing: it is not this thread's

    cam.begin_publish()
    cam.get_structured_data_buffer()[...] = 7
    thread = threading.Thread(target=meddle)
    thread.start()
    thread.join()
    assert len(refused) == 3
    assert all("by the same thread" in message for message in refused)
    cam.end_publish(ZoneUpdateInfo(structured_buffer=True))
    assert (view.read(0).data == 7).all()


def test_two_producers_in_one_thread_do_not_wait_for_each_other(cam: DataBlockProducer) -> None:
    with DataBlockProducer.attach("cam") as other:
        cam.begin_publish()
        with pytest.raises(PublishError):
            other.begin_publish(timeout_s=60)
        cam.abort_publish()
        other.begin_publish(timeout_s=0)
        other.abort_publish()


# A holder that does not go on


def test_a_stopped_producer_is_named_with_its_state(
    start: Start, cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """P5. The lock is not broken: it goes on when it is let go on."""
    child = start(HOLDER.format(act=""))
    child.expect("holding")
    child.stop()
    with pytest.raises(WriterStalled) as caught:
        publish(cam, 2, timeout_s=0.1)
    message = str(caught.value)
    assert f"another producer (pid {child.pid}, stopped (T)) holds the lock" in message
    assert f"kill -CONT {child.pid}" in message
    assert isinstance(caught.value, TimeoutError)
    assert view.read(0).flex == {"value": 1}  # readers are not held up
    child.resume()
    child.go()
    child.expect("published")
    assert (view.read(10).data == 50).all()
    publish(cam, 3)
    assert view.read(0).flex == {"value": 3}
    assert cam.header().n_recovered == 0
    child.go()
    child.end()


def test_a_sleeping_producer_is_named_with_its_state(start: Start, cam: DataBlockProducer) -> None:
    child = start(HOLDER.format(act=""))
    child.expect("holding")
    with pytest.raises(WriterStalled, match=rf"\(pid {child.pid}, (sleeping|running)"):
        publish(cam, 2, timeout_s=0)


def test_a_stopped_producer_that_is_killed_frees_the_lock(
    start: Start, cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    child = start(HOLDER.format(act=STEPS["both"]))
    child.expect("holding")
    child.stop()
    with pytest.raises(WriterStalled):
        publish(cam, 2, timeout_s=0.05)
    child.kill()
    publish(cam, 3)
    assert view.read(0).flex == {"value": 3}
    assert cam.header().n_recovered == 1


# A holder that died


@pytest.mark.parametrize("step", STEPS)
def test_what_a_killed_producer_had_not_published_is_rolled_back(
    start: Start,
    cam: DataBlockProducer,
    view: DataBlockConsumer,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    """Decision 5. The next producer repairs and counts; half a frame is never delivered."""
    assert view.read(0).flex == {"value": 1}
    child = start(HOLDER.format(act=STEPS[step]))
    child.expect("holding")
    child.kill()
    with pytest.raises(WaitTimeout):
        view.read(0)
    with caplog.at_level(logging.WARNING, "pyhub.datablock"):
        publish(cam, 2)
    assert "a producer died while publishing" in caplog.text
    header = cam.header()
    assert (header.n_recovered, header.is_writing, header.structured_buffer_version) == (
        1,
        False,
        2,
    )
    for value in range(2, 12):
        frame = view.read(0)
        assert (frame.data == value).all()
        assert (frame.flex, frame.n_lost, frame.frame_id) == ({"value": value}, 0, value - 1)
        publish(cam, value + 1)
    assert cam.header().n_recovered == 1


def test_whoever_publishes_regularly_is_not_counted_as_recovered(
    start: Start, cam: DataBlockProducer
) -> None:
    """The negative control: the same child, which goes on instead of being killed."""
    child = start(HOLDER.format(act=STEPS["both"]))
    child.expect("holding")
    child.go()
    child.expect("published")
    publish(cam, 2)
    assert cam.header().n_recovered == 0
    child.go()
    child.end()


def test_a_producer_that_waits_gets_the_lock_of_one_that_dies(
    start: Start, cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    child = start(HOLDER.format(act=STEPS["frame"]))
    child.expect("holding")
    waiting = threading.Thread(target=publish, args=(cam, 2, 60))
    waiting.start()
    child.kill()
    waiting.join()
    assert view.read(0).flex == {"value": 2}


def test_parameters_survive_many_deaths(
    start: Start, cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    """No flex entry is lost: more deaths than there are entries."""
    n_deaths = cam.n_slots + 2
    for value in range(2, 2 + n_deaths):
        child = start(HOLDER.format(act=STEPS["both"]))
        child.expect("holding")
        child.kill()
        publish(cam, value)
        cam.put(flex={"value": -value})
        assert view.read(0).flex == {"value": -value}
    assert cam.header().n_recovered == n_deaths


STORM = """
cam = DataBlockProducer.attach("cam")
say("ready")
number = 0
while True:
    with cam.publish(timeout_s=60) as slot:
        slot.data[...] = number
        slot.flex = {"number": number % 2**30}
    number = (number + 1) % 2**31
"""


def test_a_storm_of_kills_neither_hangs_nor_tears(start: Start) -> None:
    """P1. Killed at random, again and again, while others publish and read."""
    with (
        DataBlockProducer.create("cam", dtype="<u4", shape=3000, slots=3) as cam,
        DataBlockConsumer.attach("cam") as view,
    ):
        children = [start(STORM) for _ in range(2)]
        for child in children:
            child.expect("ready")
        for round_ in range(8):
            for _ in range(20):
                frame = view.read(60)
                assert (frame.data == frame.data[0]).all()
                assert frame.flex["number"] == frame.data[0]
            children[round_ % 2].kill()
            cam.put(np.full(3000, 7, "<u4"), {"number": 7}, timeout_s=60)
            children[round_ % 2] = start(STORM)
            children[round_ % 2].expect("ready")
        for child in children:
            child.kill()
        cam.put(np.full(3000, 5, "<u4"), {"number": 5}, timeout_s=60)
        assert (view.read(0).data == 5).all()


def test_a_thread_that_ends_in_its_publication_frees_the_lock(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    def begin() -> None:
        cam.begin_publish()
        cam.get_structured_data_buffer()[...] = 99

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    with DataBlockProducer.attach("cam") as other:
        publish(other, 2)
    assert view.read(0).flex == {"value": 2}
    assert cam.header().n_recovered == 1


# The owner


def test_whoever_attaches_after_the_owners_death_becomes_the_owner(start: Start) -> None:
    child = start(OWNER.format(act=""))
    child.expect("up")
    with DataBlockConsumer.attach("cam") as view:
        view.read(0)
        child.kill()
        with DataBlockProducer.attach("cam") as heir:
            with pytest.raises(WaitTimeout, match="its producer lives"):
                view.read(0)
            publish(heir, 2)
            frame = view.read(0)
            assert (frame.flex, frame.is_restart, frame.n_lost) == ({"value": 2}, False, 0)
            assert view.header().owner_pid != child.pid
        with pytest.raises(ChannelClosed) as caught:
            view.read(0)
        assert not isinstance(caught.value, ProducerDied)
    assert segment_names() == []


def test_whoever_recovers_the_lock_of_a_dead_owner_becomes_the_owner(start: Start) -> None:
    child = start(OWNER.format(act="wait_for_go(); cam.begin_publish()"))
    with DataBlockConsumer.attach("cam", timeout_s=60) as view:
        heir = DataBlockProducer.attach("cam")
        assert view.header().owner_pid == child.pid
        child.go()
        child.expect("up")
        child.kill()
        publish(heir, 2)
        assert view.header().owner_pid != child.pid
        assert view.read(0).flex == {"value": 2}
        with pytest.raises(WaitTimeout, match="its producer lives"):
            view.read(0)
        heir.close()
        with pytest.raises(ChannelClosed, match="closed by its producer"):
            view.read(0)
    assert segment_names() == []


def test_an_attached_producer_does_not_take_the_segment_from_a_living_owner(
    start: Start,
) -> None:
    child = start(OWNER.format(act=""))
    child.expect("up")
    with DataBlockProducer.attach("cam") as guest:
        publish(guest, 2)
        assert guest.header().owner_pid == child.pid
    assert segment_names() == ["cam"]
    child.go()
    child.end()
    assert segment_names() == []


def test_an_attached_producer_is_told_when_the_owner_closes(start: Start) -> None:
    child = start(OWNER.format(act=""))
    child.expect("up")
    with DataBlockProducer.attach("cam") as guest:
        child.go()
        child.end()
        with pytest.raises(ChannelClosed, match="closed by its owner"):
            publish(guest, 2)


def test_a_dead_attached_producer_leaves_the_channel_to_its_owner(
    start: Start, cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    view.read(0)
    child = start(HOLDER.format(act=""))
    child.expect("holding")
    child.go()
    child.expect("published")
    child.kill()
    view.read(0)
    with pytest.raises(WaitTimeout, match="its producer lives"):
        view.read(0)
    assert not remove_dead(segment_path("cam"), lease_path())
