"""Every wait ends: with what it waited for, at its deadline, by a close, or by Ctrl-C."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhub import (
    ChannelClosed,
    DataBlockConsumer,
    DataBlockProducer,
    Frame,
    Overrun,
    PyhubError,
    SegmentNotFound,
    WaitTimeout,
    WriterStalled,
)
from pyhub.names import segment_path

Start = Callable[..., Any]
Eventually = Callable[[Callable[[], object]], None]


@pytest.fixture
def cam() -> Iterator[DataBlockProducer]:
    with DataBlockProducer.create("cam", 4, 64, slots=4) as producer:
        yield producer


@pytest.fixture
def view(cam: DataBlockProducer) -> Iterator[DataBlockConsumer]:
    with DataBlockConsumer.attach("cam") as consumer:
        yield consumer


def publish(cam: DataBlockProducer, value: int) -> None:
    cam.put(np.full(4, value, "u1"), {"value": value})


class InThread:
    """Calls in another thread; what it returned or raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_running = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.is_running.wait()

    def _run(self) -> None:
        self.is_running.set()
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def join(self) -> Any:
        self.thread.join()
        if self.error is not None:
            raise self.error
        return self.result


# Deadlines


@pytest.mark.parametrize("timeout_s", [0, 0.03, 0.12])
def test_a_read_waits_until_its_deadline(view: DataBlockConsumer, timeout_s: float) -> None:
    start = time.monotonic()
    with pytest.raises(WaitTimeout) as caught:
        view.read(timeout_s)
    assert time.monotonic() - start >= timeout_s
    assert f"nothing new in {timeout_s} s; its producer lives (pid " in str(caught.value)
    assert "pyhub info cam" in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda view: next(view.frames(timeout_s=0.05)),
        lambda view: view.latest(0.05),
        lambda view: asyncio.run(view.aread(0.05)),
    ],
    ids=["frames", "latest", "aread"],
)
def test_every_way_of_reading_waits_until_its_deadline(
    view: DataBlockConsumer, call: Callable[[DataBlockConsumer], Any]
) -> None:
    start = time.monotonic()
    with pytest.raises(WaitTimeout):
        call(view)
    assert time.monotonic() - start >= 0.05


def test_the_timeout_says_if_a_publication_is_open(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    cam.begin_publish()
    with pytest.raises(WaitTimeout, match="publishing right now"):
        view.read(0)
    cam.abort_publish()


def test_an_attach_waits_until_its_deadline() -> None:
    start = time.monotonic()
    with pytest.raises(SegmentNotFound, match=r"no channel 'nobody' \(waited 0.05 s\)"):
        DataBlockConsumer.attach("nobody", timeout_s=0.05)
    assert time.monotonic() - start >= 0.05


def test_a_begin_waits_until_its_deadline(cam: DataBlockProducer) -> None:
    with DataBlockProducer.attach("cam") as other:
        cam.begin_publish()
        start = time.monotonic()
        waiting = InThread(lambda: other.begin_publish(timeout_s=0.12))
        with pytest.raises(WriterStalled):
            waiting.join()
        assert time.monotonic() - start >= 0.12
        cam.abort_publish()


@pytest.mark.parametrize("timeout_s", [-1, float("nan")])
def test_a_timeout_that_is_none_is_refused(cam: DataBlockProducer, timeout_s: float) -> None:
    with DataBlockProducer.attach("cam") as other:
        cam.begin_publish()
        with pytest.raises(ValueError, match="must be None, 0 or positive"):
            InThread(lambda: other.begin_publish(timeout_s=timeout_s)).join()
        cam.abort_publish()


def test_with_timeout_0_what_is_there_is_given_at_once(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 1)
    assert view.read(0).flex == {"value": 1}
    publish(cam, 2)
    assert asyncio.run(view.aread(0)).flex == {"value": 2}
    publish(cam, 3)
    assert view.latest(0).flex == {"value": 3}
    assert next(view.frames(0)).flex == {"value": 3}


# What is waited for


@pytest.mark.parametrize("timeout_s", [None, 60, 1e12])
@pytest.mark.parametrize(
    "call",
    [
        lambda view, timeout_s: view.read(timeout_s),
        lambda view, timeout_s: next(view.frames(timeout_s)),
        lambda view, timeout_s: view.latest(timeout_s),
        lambda view, timeout_s: asyncio.run(view.aread(timeout_s)),
    ],
    ids=["read", "frames", "latest", "aread"],
)
def test_a_publish_ends_the_wait(
    cam: DataBlockProducer,
    view: DataBlockConsumer,
    call: Callable[[DataBlockConsumer, float | None], Any],
    timeout_s: float | None,
) -> None:
    waiting = InThread(lambda: call(view, timeout_s))
    publish(cam, 7)
    assert waiting.join().flex == {"value": 7}


def test_new_parameters_end_the_wait(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    publish(cam, 1)
    view.read(0)
    waiting = InThread(lambda: view.read(60))
    cam.put(flex={"value": 2})
    frame = waiting.join()
    assert (frame.flex, frame.has_new_data) == ({"value": 2}, False)


WAITER = """
with DataBlockConsumer.attach("cam") as view:
    say("waiting")
    say("got", view.read(None).flex["value"])
"""


def test_a_waiting_reader_leaves_no_mark_in_the_segment(
    start: Start, cam: DataBlockProducer
) -> None:
    """Seed 10. Nobody registers and nothing is signalled: all its bytes stay as they were."""
    before = segment_path("cam").read_bytes()
    child = start(WAITER)
    child.expect("waiting")
    while child.state() != "S":
        time.sleep(0.001)
    assert segment_path("cam").read_bytes() == before
    publish(cam, 7)
    assert child.expect("got") == "7"
    child.end()


def test_many_waiting_readers_are_all_woken_by_one_publish(
    start: Start, cam: DataBlockProducer
) -> None:
    children = [start(WAITER) for _ in range(3)]
    for child in children:
        child.expect("waiting")
    publish(cam, 7)
    assert [child.expect("got") for child in children] == ["7"] * 3
    for child in children:
        child.end()


def test_a_single_slot_is_waited_for_while_it_is_written(eventually: Eventually) -> None:
    with (
        DataBlockProducer.create("one", 4, 64) as cam,
        DataBlockConsumer.attach("one") as view,
    ):
        publish(cam, 1)
        cam.begin_publish()
        cam.get_structured_data_buffer()[...] = 2
        with pytest.raises(WaitTimeout):
            view.read(0.01)
        with pytest.raises(Overrun, match="more slots"):
            view.latest(0.01)
        reading = InThread(lambda: view.read(60))
        cam.abort_publish()
        publish(cam, 3)
        assert reading.join().flex == {"value": 3}


# A consumer that comes first

LATER = """
wait_for_go()
with DataBlockProducer.create("later", 4, 64, slots=8) as cam:
    for value in range(5):
        cam.put(np.full(4, value, "u1"), {"value": value})
    say("published")
    wait_for_go()
"""


def test_a_consumer_that_comes_first_gets_the_producers_frames_from_the_first_on(
    start: Start, eventually: Eventually
) -> None:
    child = start(LATER)
    attaching = InThread(lambda: DataBlockConsumer.attach("later", timeout_s=60))
    eventually(attaching.thread.is_alive)
    child.go()
    child.expect("published")
    with attaching.join() as view:
        frames = view.frames(timeout_s=10)
        assert [next(frames).flex["value"] for _ in range(5)] == list(range(5))
        assert view.n_lost == 0
        child.go()
        assert list(frames) == []
    child.end()


def test_a_consumer_that_comes_first_is_told_what_it_missed_nevertheless() -> None:
    attaching = InThread(lambda: DataBlockConsumer.attach("later", timeout_s=60))
    with DataBlockProducer.create("later", 4, 64, slots=2) as cam, attaching.join() as view:
        for value in range(10):
            publish(cam, value)
        frame = view.read(0)
        assert frame.frame_id == 9
        assert frame.n_lost == 9


def test_a_segment_of_a_dead_producer_is_not_what_a_first_consumer_waits_for(
    start: Start,
) -> None:
    child = start(
        "cam = DataBlockProducer.create('later', 4)\ncam.put(np.zeros(4, 'u1'))\nsay('up')\n"
        "wait_for_go()"
    )
    child.expect("up")
    child.kill()
    with pytest.raises(SegmentNotFound):
        DataBlockConsumer.attach("later", timeout_s=0.03)
    attaching = InThread(lambda: DataBlockConsumer.attach("later", timeout_s=60))
    with DataBlockProducer.create("later", 4, 64) as cam, attaching.join() as view:
        publish(cam, 1)
        assert view.read(10).flex == {"value": 1}


def test_a_consumer_that_waits_for_its_producer_can_be_closed() -> None:
    view = DataBlockConsumer("nobody")
    waiting = InThread(lambda: view.wait_for_producer(60))
    view.close()
    with pytest.raises(ChannelClosed):
        waiting.join()


# Closed meanwhile


@pytest.mark.parametrize(
    "call",
    [
        lambda view: view.read(60),
        lambda view: view.read(None),
        lambda view: view.latest(60),
        lambda view: asyncio.run(view.aread(60)),
    ],
    ids=["read", "read for ever", "latest", "aread"],
)
def test_a_close_ends_a_wait_in_another_thread(
    view: DataBlockConsumer, call: Callable[[DataBlockConsumer], Any]
) -> None:
    waiting = InThread(lambda: call(view))
    view.close()
    with pytest.raises(ChannelClosed, match="this consumer of channel 'cam' was closed"):
        waiting.join()


def test_a_close_ends_a_loop_in_another_thread(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 1)
    got: list[Frame] = []
    has_one = threading.Event()

    def loop() -> None:
        for frame in view:
            got.append(frame)
            has_one.set()

    looping = InThread(loop)
    has_one.wait()
    view.close()
    looping.join()
    assert len(got) == 1


# Ctrl-C

INTERRUPTED = """
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    {setup}
    say("waiting")
    {wait}
except KeyboardInterrupt:
    say("interrupted")
"""

VIEW = "view = DataBlockConsumer.attach('cam')"


@pytest.mark.parametrize(
    ("setup", "wait"),
    [
        (VIEW, "view.read(None)"),
        (VIEW, "view.read(1e6)"),
        (VIEW, "view.latest(None)"),
        (VIEW, "list(view)"),
        (VIEW, "import asyncio; asyncio.run(view.aread(None))"),
        ("pass", "DataBlockConsumer.attach('nobody', timeout_s=None)"),
        ("cam = DataBlockProducer.attach('cam')", "cam.begin_publish(timeout_s=None)"),
        ("cam = DataBlockProducer.attach('cam')", "cam.put(np.zeros(4, 'u1'), timeout_s=1e6)"),
    ],
    ids=["read", "read long", "latest", "frames", "aread", "attach", "begin", "put"],
)
def test_ctrl_c_ends_every_wait(
    start: Start, cam: DataBlockProducer, setup: str, wait: str
) -> None:
    cam.begin_publish()  # whoever wants the lock has to wait
    child = start(INTERRUPTED.format(setup=setup, wait=wait))
    child.expect("waiting")
    child.interrupt()
    child.expect("interrupted")
    child.end()
    cam.abort_publish()
    publish(cam, 1)


def test_ctrl_c_in_the_block_publishes_nothing_and_frees_the_lock(
    start: Start, cam: DataBlockProducer
) -> None:
    child = start(
        INTERRUPTED.format(
            setup="cam = DataBlockProducer.attach('cam')",
            wait="with cam.publish() as slot: slot.data[...] = 1; time.sleep(1e6)",
        )
    )
    child.expect("waiting")
    child.interrupt()
    child.expect("interrupted")
    child.end()
    assert cam.header().commit == 0
    cam.put(np.zeros(4, "u1"), timeout_s=0)


# asyncio


def run(*jobs: Coroutine[Any, Any, Any]) -> list[Any]:
    async def together() -> list[Any]:
        return await asyncio.gather(*jobs)

    return asyncio.run(together())


def test_a_coroutine_waits_without_holding_up_others(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    seen: list[int] = []

    async def read() -> None:
        for _ in range(3):
            seen.append((await view.aread(60)).flex["value"])

    async def write() -> None:
        for value in range(3):
            while len(seen) < value:
                await asyncio.sleep(0)
            publish(cam, value)

    run(read(), write())
    assert seen == [0, 1, 2]


def test_many_coroutines_wait_at_once(cam: DataBlockProducer) -> None:
    views = [DataBlockConsumer.attach("cam") for _ in range(5)]

    async def write() -> None:
        publish(cam, 9)

    *frames, _ = run(*(view.aread(60) for view in views), write())
    assert [frame.flex["value"] for frame in frames] == [9] * 5
    for view in views:
        view.close()


def test_a_coroutine_may_read_into_an_array(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 5)
    out = np.empty(4, "u1")
    frame = asyncio.run(view.aread(1, out=out))
    assert frame.data is out
    assert (out == 5).all()


def test_a_coroutine_that_waits_can_be_cancelled(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    async def cancel() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(view.aread(None), 0.02)

    asyncio.run(cancel())
    publish(cam, 1)
    assert view.read(0).flex == {"value": 1}


# Without a hub


def test_without_a_hub_there_is_nothing_to_poll(view: DataBlockConsumer) -> None:
    with pytest.raises(PyhubError, match=r"waits by 'futex'.*no notif.*\n.*MessageHub\(\)"):
        _ = view.notification_socket
    with pytest.raises(PyhubError, match="no notification channel"):
        view.fileno()


def test_without_a_hub_nothing_is_opened_but_the_segment(cam: DataBlockProducer) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with DataBlockConsumer.attach("cam") as view:
        publish(cam, 1)
        view.read(0)
        assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 1  # the listing's own
