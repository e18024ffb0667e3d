"""MessageHub: where a program creates its channels and finds those of others."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pyhub import (
    BrokerConfig,
    BrokerUnreachable,
    ChannelClosed,
    DataBlockProducer,
    Encoding,
    InvalidName,
    MessageHub,
    PyhubError,
    SegmentExists,
    SegmentNotFound,
    WaitTimeout,
    ZoneUpdateInfo,
)
from pyhub.names import segment_names
from tests.conftest import descriptors, eventually
from tests.hub.conftest import Spawn, line, wait_until_gone

WATCHDOG_S = 30


def names(hub: MessageHub) -> list[str]:
    return [channel.name for channel in hub.channels()]


def sockets(config: BrokerConfig) -> set[str]:
    """Name the sockets in the runtime directory, but for the broker's."""
    assert config.runtime_dir is not None
    return {path.name for path in Path(config.runtime_dir).glob("*.sock")} - {"broker.sock"}


# --- Channels ---


def test_a_channel_is_found_by_its_name_with_what_it_is(hub: MessageHub, name: str) -> None:
    """Seed 17 and 20: created here, discovered there."""
    producer = hub.create_datablock_producer(name, dtype="float32", shape=(3, 4), slots=2)
    (channel,) = hub.channels()
    assert (channel.name, channel.kind, channel.dtype) == (name, "datablock", "<f4")
    assert (channel.shape, channel.n_slots, channel.n_readers) == ((3, 4), 2, 0)
    assert (channel.pid, channel.segment_id) == (os.getpid(), producer.header().segment_id)
    consumer = hub.find_datablock_consumer(name)
    assert (consumer.dtype, consumer.shape) == (np.dtype("f4"), (3, 4))
    producer.put(np.ones((3, 4), "f4"), {"gain": 2})
    frame = consumer.read(timeout_s=WATCHDOG_S)
    assert (frame.data == 1).all()
    assert frame.flex == {"gain": 2}


@pytest.mark.parametrize("encoding", list(Encoding))
def test_parameters_are_messagepack_or_json_on_request(
    hub: MessageHub, name: str, encoding: Encoding
) -> None:
    """Seed 12: MessagePack primary, JSON supported."""
    producer = hub.create_datablock_producer(name, 0, 64)
    consumer = hub.find_datablock_consumer(name)
    producer.put(flex={"gain": 2}, encoding=encoding)
    assert consumer.read(timeout_s=WATCHDOG_S).flex == {"gain": 2}
    with producer.publish() as slot:
        slot.encoding = encoding
        slot.flex = {"gain": 3}
    assert consumer.read(timeout_s=WATCHDOG_S).flex == {"gain": 3}


def test_the_seeds_signature_makes_a_single_buffer_of_bytes(hub: MessageHub, name: str) -> None:
    """Seed 20: create_datablock_producer(name, structured_buffer_size, flexible_zone_size)."""
    producer = hub.create_datablock_producer(name, 1024, 512)
    header = producer.header()
    assert (header.structured_buffer_capacity, header.flex_zone_capacity) == (1024, 512)
    assert (header.n_slots, header.dtype, header.shape) == (1, np.dtype("u1"), (1024,))
    by_keyword = hub.create_datablock_producer(
        name=f"{name}k", structured_buffer_size=1024, flexible_zone_size=512
    )
    assert by_keyword.header().structured_buffer_capacity == 1024


def test_what_a_producer_closes_is_no_longer_listed(hub: MessageHub, name: str) -> None:
    producers = [hub.create_datablock_producer(f"{name}{n}", 4, 4) for n in range(3)]
    assert names(hub) == [producer.name for producer in producers]
    producers[1].close()
    assert names(hub) == [f"{name}0", f"{name}2"]
    producers[1].close()  # twice does no harm


def test_a_name_may_be_used_again(hub: MessageHub, shared: BrokerConfig, name: str) -> None:
    for number in range(5):
        with hub.create_datablock_producer(name, dtype="u1", shape=number + 1) as producer:
            (channel,) = hub.channels()
            assert channel.shape == (number + 1,)
            assert channel.segment_id == producer.header().segment_id
            assert len(sockets(shared)) == 1
    assert sockets(shared) == set()


@pytest.mark.parametrize("where", ["here", "in another program"])
def test_the_name_of_a_living_producer_is_taken(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn, where: str
) -> None:
    producer = hub.create_datablock_producer(name, 4, 4)
    if where == "here":
        with (
            MessageHub(shared) as other,
            pytest.raises(SegmentExists, match=f"{name!r} belongs to a living producer") as error,
        ):
            other.create_datablock_producer(name, 4, 4)
        assert f"pid {os.getpid()}" in str(error.value)
    else:
        child = spawn(
            """
            import sys
            from pyhub import BrokerConfig, MessageHub, SegmentExists
            with MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False)) as hub:
                try:
                    hub.create_datablock_producer(sys.argv[2], 4, 4)
                except SegmentExists:
                    print("taken", flush=True)
            """,
            shared.runtime_dir,
            name,
        )
        assert line(child) == "taken"
    # Whose it is goes on as if nothing had been tried.
    consumer = hub.find_datablock_consumer(name)
    producer.put(np.zeros(4, "u1"))
    assert consumer.read(timeout_s=WATCHDOG_S).frame_id == 0
    assert names(hub) == [name]


@pytest.mark.parametrize("bad", ["", "../x", ".x", "a b", "n" * 201])
def test_an_illegal_name_is_refused_before_anything_is_made(hub: MessageHub, bad: str) -> None:
    with pytest.raises(InvalidName):
        hub.create_datablock_producer(bad, 4, 4)
    with pytest.raises(InvalidName):
        hub.find_datablock_consumer(bad)
    with pytest.raises(InvalidName):
        hub.n_readers(bad)
    assert names(hub) == []


def test_an_unknown_channel_is_not_found_and_the_known_ones_are_named(
    hub: MessageHub, name: str
) -> None:
    with pytest.raises(SegmentNotFound, match="The broker knows: none"):
        hub.find_datablock_consumer("nothing", timeout_s=0)
    known = [hub.create_datablock_producer(f"{name}{n}", 4, 4) for n in range(2)]
    with pytest.raises(SegmentNotFound) as error:
        hub.find_datablock_consumer("nothing", timeout_s=0.02)
    text = str(error.value)
    assert "there is no channel 'nothing' (waited 0.02 s)" in text
    assert f"The broker knows: {known[0].name}, {known[1].name}." in text
    assert "pyhub ls" in text
    assert hub.n_readers("nothing") == 0


def test_a_consumer_that_comes_first_waits_for_its_producer(hub: MessageHub, name: str) -> None:
    made: list[DataBlockProducer] = []

    def produce() -> None:
        producer = hub.create_datablock_producer(name, dtype="u1", shape=4)
        producer.put(np.zeros(4, "u1"))
        producer.put(np.ones(4, "u1"))
        made.append(producer)

    timer = threading.Timer(0.05, produce)
    timer.start()
    consumer = hub.find_datablock_consumer(name, timeout_s=WATCHDOG_S)
    frames = consumer.frames()
    assert [next(frames).frame_id for _ in range(2)] == [0, 1]  # from the first one on
    timer.join()


def test_a_channel_of_a_producer_without_a_hub_is_found_though_not_listed(
    hub: MessageHub, name: str
) -> None:
    with DataBlockProducer.create(name, dtype="u1", shape=4) as producer:
        consumer = hub.find_datablock_consumer(name)
        producer.put(np.zeros(4, "u1"))
        assert consumer.read(timeout_s=WATCHDOG_S).frame_id == 0
        assert names(hub) == []


def test_two_hundred_channels_are_listed_by_name(hub: MessageHub, name: str) -> None:
    # A reply of more than one request may take.
    dtype = [(f"field_with_a_long_name_{number}", "<f8") for number in range(12)]
    producers = [
        hub.create_datablock_producer(f"{name}.{n:03}", dtype=dtype, shape=1, slots=1)
        for n in range(200)
    ]
    assert names(hub) == [producer.name for producer in producers]
    hub.close()
    assert all(producer.is_closed for producer in producers)


# --- Readers ---


def test_readers_are_counted_as_they_come_and_go(
    hub: MessageHub, shared: BrokerConfig, name: str
) -> None:
    producer = hub.create_datablock_producer(name, 4, 4)
    with MessageHub(shared) as other:
        assert hub.n_readers(name) == 0
        here = hub.find_datablock_consumer(name)
        there = [other.find_datablock_consumer(name) for _ in range(2)]
        assert hub.wait_for_readers(name, 3, timeout_s=WATCHDOG_S)
        there[0].close()
        assert eventually(lambda: hub.n_readers(name) == 2)
    assert eventually(lambda: hub.n_readers(name) == 1)
    here.close()
    assert hub.n_readers(name) == 0
    producer.close()
    assert hub.n_readers(name) == 0


def test_a_consumer_that_was_dropped_without_closing_is_counted_no_longer(
    hub: MessageHub, name: str
) -> None:
    producer = hub.create_datablock_producer(name, 4, 4)
    consumer = hub.find_datablock_consumer(name)
    assert hub.n_readers(name) == 1
    del consumer
    gc.collect()
    assert hub.n_readers(name) == 0
    producer.close()


def test_a_producer_that_was_dropped_without_closing_is_listed_no_longer(
    hub: MessageHub, shared: BrokerConfig, name: str
) -> None:
    producer = hub.create_datablock_producer(name, 4, 4)
    assert names(hub) == [name]
    assert len(sockets(shared)) == 1
    del producer
    gc.collect()
    assert names(hub) == []
    assert sockets(shared) == set()
    assert name not in segment_names()


def test_waiting_for_readers_ends_when_they_are_there_or_at_the_deadline(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn
) -> None:
    producer = hub.create_datablock_producer(name, 4, 4)
    assert hub.wait_for_readers(name, 0, timeout_s=0)
    assert not hub.wait_for_readers(name, 1, timeout_s=0.05)
    child = spawn(READER, shared.runtime_dir, name)
    assert hub.wait_for_readers(name, 1)
    assert not hub.wait_for_readers(name, 2, timeout_s=0)
    assert line(child) == "reads"
    producer.close()


READER = """
    import sys
    from pyhub import BrokerConfig, MessageHub
    hub = MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False))
    view = hub.find_datablock_consumer(sys.argv[2], timeout_s=30)
    print("reads", flush=True)
    for frame in view.frames(follow=True):
        print(frame.frame_id, frame.data.tolist(), frame.is_restart, flush=True)
"""


def test_readers_are_counted_again_when_one_is_killed_and_restarted(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn
) -> None:
    producer = hub.create_datablock_producer(name, 4, 4)
    for _ in range(2):
        child = spawn(READER, shared.runtime_dir, name)
        assert hub.wait_for_readers(name, 1, timeout_s=WATCHDOG_S)
        child.kill()
        assert eventually(lambda: hub.n_readers(name) == 0, WATCHDOG_S)
    producer.close()


PRODUCER = """
    import sys
    import numpy as np
    from pyhub import BrokerConfig, MessageHub
    runtime, name, dtype, rows = sys.argv[1:]
    hub = MessageHub(BrokerConfig(runtime_dir=runtime, autostart=False))
    producer = hub.create_datablock_producer(name, dtype=dtype, shape=int(rows))
    assert hub.wait_for_readers(name, 1, timeout_s=30)
    print("has readers", flush=True)
    for number in map(int, sys.stdin):
        producer.put(np.full(int(rows), number, dtype))
        print(number, flush=True)
"""


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_a_producer_that_restarts_with_another_shape_has_its_reader_again(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn, how: str
) -> None:
    """The consumer goes on, is counted on the new segment, and hears the new producer."""
    first = spawn(PRODUCER, shared.runtime_dir, name, "u2", 3)
    consumer = hub.find_datablock_consumer(name, timeout_s=WATCHDOG_S)
    assert line(first) == "has readers"
    assert first.stdin is not None
    say(first, 1)
    frame = consumer.read(timeout_s=WATCHDOG_S)
    assert (frame.data.tolist(), frame.is_restart) == ([1, 1, 1], False)
    if how == "killed":
        first.kill()
    else:
        first.stdin.close()
        first.stdin = None
    assert first.wait(WATCHDOG_S) == (-signal.SIGKILL if how == "killed" else 0)

    second = spawn(PRODUCER, shared.runtime_dir, name, "f8", 5)
    frames = consumer.frames(timeout_s=WATCHDOG_S, follow=True)
    found: list[object] = []

    def read_one() -> None:
        frame = next(frames)
        found.extend([frame.data.tolist(), frame.is_restart, frame.n_lost])

    reading = threading.Thread(target=read_one)
    reading.start()
    assert line(second) == "has readers"
    say(second, 2)
    reading.join()
    assert found == [[2.0] * 5, True, 0]
    assert (consumer.dtype, consumer.shape) == (np.dtype("f8"), (5,))
    # It is the new producer's process that is heard now; what is told of its first
    # frame may come late.
    sub = consumer.notification_socket

    def hears(frame_id: int) -> bool:
        while sub.poll(20):
            if sub.receive().frame_id == frame_id:
                return True
        return False

    for number in range(3, 1000):
        say(second, number)
        if hears(number - 2):
            break
    else:
        pytest.fail("deaf")
    assert names(hub) == [name]


def say(child: subprocess.Popen[str], number: int) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{number}\n")
    child.stdin.flush()
    assert line(child) == str(number)


# --- Threads, hubs ---


def test_threads_of_one_program_share_a_hub_and_a_producer(hub: MessageHub, name: str) -> None:
    n_threads, n_each = 4, 50
    producer = hub.create_datablock_producer(name, dtype="u4", shape=2, slots=256)
    consumer = hub.find_datablock_consumer(name)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with hub.create_datablock_producer(f"{name}.{number}", dtype="u1", shape=1) as own:
                view = hub.find_datablock_consumer(own.name)
                for n in range(n_each):
                    producer.put(np.array([number, n], "u4"))
                    own.put(np.zeros(1, "u1"))
                    assert view.read(timeout_s=WATCHDOG_S).frame_id == n
                    assert own.name in names(hub)
                view.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(n_threads)]
    for thread in threads:
        thread.start()
    frames = consumer.frames(timeout_s=WATCHDOG_S)
    found = [next(frames) for _ in range(n_threads * n_each)]
    for thread in threads:
        thread.join()
    assert errors == []
    assert [frame.frame_id for frame in found] == list(range(n_threads * n_each))
    for number in range(n_threads):
        assert [f.data[1] for f in found if f.data[0] == number] == list(range(n_each))


def test_two_hubs_in_one_program_are_two(hub: MessageHub, shared: BrokerConfig, name: str) -> None:
    with MessageHub(shared) as other:
        producer = other.create_datablock_producer(name, dtype="u1", shape=4)
        consumer = hub.find_datablock_consumer(name)
        producer.put(np.zeros(4, "u1"))
        assert consumer.read(timeout_s=WATCHDOG_S).frame_id == 0
    assert producer.is_closed
    assert not consumer.is_closed
    with pytest.raises(ChannelClosed, match="closed by its producer"):
        consumer.read(timeout_s=None)
    assert names(hub) == []


# --- The static form ---


@pytest.fixture
def no_default() -> Iterator[None]:
    yield
    assert MessageHub._default is None


@pytest.mark.usefixtures("no_default")
def test_the_static_hub_lives_from_initialize_to_shutdown(shared: BrokerConfig, name: str) -> None:
    """Seed 11, 19, 20, 21, 22: the seed's names, as it spells them."""
    assert MessageHub.initialize(shared) is True
    assert MessageHub.initialize(shared) is False
    producer = MessageHub.create_datablock_producer(name, 16, 64)
    consumer = MessageHub.find_datablock_consumer(name)
    assert [channel.name for channel in MessageHub.channels()] == [name]
    assert MessageHub.n_readers(name) == 1
    assert MessageHub.wait_for_readers(name, 1, timeout_s=WATCHDOG_S)
    producer.begin_publish()
    producer.get_structured_data_buffer()[:] = 7
    producer.get_flexible_zone_buffer()[:2] = b"{}"
    producer.end_publish(ZoneUpdateInfo(structured_buffer=True))
    assert consumer.header().structured_buffer_version == 1
    data = consumer.get_structured_data()
    assert data is not None
    assert (data == 7).all()
    MessageHub.shutdown()
    assert producer.is_closed
    assert consumer.is_closed
    with pytest.raises(PyhubError, match=r"Call MessageHub\.initialize"):
        MessageHub.channels()
    # ... and again.
    assert MessageHub.initialize(shared) is True
    MessageHub.instance().close()
    assert MessageHub._default is None


def test_before_initialize_one_is_told_to(name: str) -> None:
    for use in (
        MessageHub.shutdown,
        MessageHub.instance,
        MessageHub.channels,
        lambda: MessageHub.create_datablock_producer(name, 4, 4),
        lambda: MessageHub.find_datablock_consumer(name),
    ):
        with pytest.raises(PyhubError, match=r"MessageHub\.initialize"):
            use()


@pytest.mark.usefixtures("no_default")
def test_an_initialize_that_failed_may_be_tried_again(shared: BrokerConfig, runtime: Path) -> None:
    with pytest.raises(BrokerUnreachable):
        MessageHub.initialize(BrokerConfig(runtime_dir=runtime, autostart=False))
    assert MessageHub.initialize(shared) is True
    MessageHub.shutdown()


@pytest.mark.usefixtures("no_default")
def test_threads_that_initialize_at_once_make_one_hub(shared: BrokerConfig) -> None:
    n_threads = 4
    together = threading.Barrier(n_threads)
    results: list[bool] = []

    def initialize() -> None:
        together.wait()
        results.append(MessageHub.initialize(shared))

    threads = [threading.Thread(target=initialize) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    MessageHub.shutdown()
    assert sorted(results) == [False] * (n_threads - 1) + [True]


def test_the_static_methods_can_be_looked_at_without_a_hub() -> None:
    assert "Create the channel" in (MessageHub.create_datablock_producer.__doc__ or "")
    assert callable(MessageHub.shutdown)


# --- The end ---


def test_closing_a_hub_closes_its_channels_and_nobody_elses(
    shared: BrokerConfig, hub: MessageHub, name: str
) -> None:
    other = MessageHub(shared)
    producer = other.create_datablock_producer(name, 4, 4)
    mine = hub.create_datablock_producer(f"{name}m", 4, 4)
    consumers = [other.find_datablock_consumer(channel) for channel in (name, f"{name}m")]
    other.close()
    other.close()  # twice does no harm
    assert other.is_closed
    assert producer.is_closed
    assert all(consumer.is_closed for consumer in consumers)
    assert not mine.is_closed
    assert eventually(lambda: names(hub) == [mine.name])
    assert hub.n_readers(mine.name) == 0


def test_a_closed_hub_and_its_channels_say_so(shared: BrokerConfig, name: str) -> None:
    with MessageHub(shared) as hub:
        producer = hub.create_datablock_producer(name, dtype="u1", shape=4)
        consumer = hub.find_datablock_consumer(name)
    for use in (
        lambda: hub.create_datablock_producer("other", 4, 4),
        lambda: hub.find_datablock_consumer(name),
        hub.channels,
        lambda: hub.n_readers(name),
        lambda: hub.wait_for_readers(name, 1),
    ):
        with pytest.raises(ChannelClosed, match=r"hub was shut down.*\n.*new MessageHub"):
            use()
    with pytest.raises(ChannelClosed):
        producer.put(np.zeros(4, "u1"))
    with pytest.raises(ChannelClosed):
        consumer.read(timeout_s=0)
    assert "other" not in segment_names()


def test_a_closed_hub_leaves_no_thread_no_descriptor_and_no_socket(
    shared: BrokerConfig, name: str
) -> None:
    MessageHub(shared).close()  # what is opened once and for all is opened now
    threads, before = set(threading.enumerate()), descriptors()
    tasks = set(os.listdir("/proc/self/task"))
    for _ in range(5):
        with MessageHub(shared) as hub:
            producer = hub.create_datablock_producer(name, dtype="u1", shape=4)
            consumer = hub.find_datablock_consumer(name)
            producer.put(np.zeros(4, "u1"))
            assert consumer.read(timeout_s=WATCHDOG_S).frame_id == 0
    assert set(threading.enumerate()) == threads
    # The kernel takes a moment to clear away ZeroMQ's threads.
    assert eventually(lambda: set(os.listdir("/proc/self/task")) <= tasks)
    assert descriptors() == before
    assert sockets(shared) == set()


def test_a_hub_that_could_not_be_made_leaves_nothing(shared: BrokerConfig, runtime: Path) -> None:
    before, n_threads = descriptors(), threading.active_count()
    for _ in range(3):
        with pytest.raises(BrokerUnreachable):
            MessageHub(BrokerConfig(runtime_dir=runtime, autostart=False))
    assert descriptors() == before
    assert threading.active_count() == n_threads


def test_a_hub_that_nobody_holds_leaves_the_broker(
    shared: BrokerConfig, hub: MessageHub, name: str
) -> None:
    n_threads = threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pyzmq's of sockets that were left open
        other = MessageHub(shared)
        producer = other.create_datablock_producer(name, 4, 4)
        assert names(hub) == [name]
        del other
        gc.collect()
        assert names(hub) == [name]  # its channel holds it
        del producer
        gc.collect()
    assert eventually(lambda: names(hub) == [])
    assert eventually(lambda: threading.active_count() == n_threads)
    assert sockets(shared) == set()


def test_a_hub_in_a_circle_of_objects_can_be_collected(
    shared: BrokerConfig, hub: MessageHub, name: str
) -> None:
    class Instrument:
        def __init__(self) -> None:
            # So patient that a wait for what the circle holds would show.
            self.hub = MessageHub(dataclasses.replace(shared, timeout_s=3600.0))
            self.camera = self.hub.create_datablock_producer(name, 4, 4)
            self.view = self.hub.find_datablock_consumer(name)
            self.itself = self

    n_threads = threading.active_count()
    Instrument()
    assert gc.collect() > 0
    assert eventually(lambda: names(hub) == [])
    assert eventually(lambda: threading.active_count() == n_threads)
    assert sockets(shared) == set()


LEAVES = """
    import contextlib, sys, threading
    import numpy as np
    from pyhub import BrokerConfig, ChannelClosed, MessageHub

    config = BrokerConfig(runtime_dir=sys.argv[1], linger_s=0.1)
    hub = MessageHub(config)
    camera = hub.create_datablock_producer("camera", dtype="u1", shape=4)
    view = hub.find_datablock_consumer("camera")
    camera.put(np.zeros(4, "u1"))
    assert view.read(timeout_s=30).frame_id == 0

    def read():
        with contextlib.suppress(ChannelClosed):
            view.read(timeout_s=None)

    if sys.argv[2] == "a thread that reads":
        threading.Thread(target=read, daemon=True).start()
    elif sys.argv[2] == "a circle":
        hub.itself = hub
    elif sys.argv[2] == "a static hub":
        MessageHub.initialize(config)
        other = MessageHub.create_datablock_producer("other", 4, 4)
    elif sys.argv[2] == "an open publication":
        camera.begin_publish()
    elif sys.argv[2] == "an error":
        raise SystemExit(3)
"""


def leave(runtime: object, having: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(LEAVES), str(runtime), having],
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )


@pytest.mark.parametrize(
    "having",
    ["a hub", "a thread that reads", "a circle", "a static hub", "an open publication", "an error"],
)
def test_a_program_that_exits_without_closing_leaves_no_traceback_and_no_files(
    shared: BrokerConfig, hub: MessageHub, having: str
) -> None:
    before = set(segment_names())
    done = leave(shared.runtime_dir, having)
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode == (3 if having == "an error" else 0)
    assert sockets(shared) == set()
    assert set(segment_names()) == before
    assert eventually(lambda: names(hub) == [])


def test_nor_does_the_broker_that_such_a_program_started(runtime: Path) -> None:
    done = leave(runtime, "a hub")
    assert (done.returncode, done.stderr) == (0, "")
    wait_until_gone(runtime)
    assert {path.suffix for path in runtime.iterdir()} == {".db", ".key", ".lock", ".log"}


# --- Forks ---

FORKS = """
    import os, sys
    import numpy as np
    from pyhub import BrokerConfig, ForkedHandle, MessageHub

    config = BrokerConfig(runtime_dir=sys.argv[1], autostart=False)
    MessageHub.initialize(config)
    hub = MessageHub.instance()
    camera = hub.create_datablock_producer(sys.argv[2], dtype="u1", shape=4)
    view = hub.find_datablock_consumer(sys.argv[2])
    camera.put(np.zeros(4, "u1"))
    view.read(timeout_s=30)

    def child():
        for name, use in {
            "channels": hub.channels,
            "create": lambda: hub.create_datablock_producer("other", 4, 4),
            "find": lambda: hub.find_datablock_consumer(sys.argv[2]),
            "put": lambda: camera.put(np.zeros(4, "u1")),
            "read": lambda: view.read(timeout_s=1),
            "socket": lambda: view.notification_socket,
            "fileno": view.fileno,
            "static": MessageHub.channels,
        }.items():
            try:
                use()
                print(name, "worked in the child")
            except ForkedHandle as error:
                assert "child" in str(error), error
        # Leaving by the parent's with-blocks closes what is the parent's.
        view.close()
        camera.close()
        hub.close()
        # A hub of its own works.
        assert MessageHub.initialize(config)
        own = MessageHub.find_datablock_consumer(sys.argv[2])
        assert own.read(timeout_s=30).frame_id == 0
        MessageHub.shutdown()

    pid = os.fork()
    if pid == 0:
        try:
            child()
            print("child ends", flush=True)
        except BaseException as error:
            print(repr(error), flush=True)
        if sys.argv[3] == "_exit":
            os._exit(0)
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    for number in range(1, 4):
        camera.put(np.zeros(4, "u1"))
        assert view.notification_socket.poll(30_000)
        assert view.read(timeout_s=30).frame_id == number
    assert [channel.name for channel in hub.channels()] == [sys.argv[2]]
    assert hub.n_readers(sys.argv[2]) == 1
    hub.close()
    print("parent ends", flush=True)
"""


@pytest.mark.parametrize("leaving", ["_exit", "exit"])
def test_a_forks_child_is_told_and_the_parent_goes_on(
    shared: BrokerConfig, hub: MessageHub, name: str, spawn: Spawn, leaving: str
) -> None:
    parent = spawn(FORKS, shared.runtime_dir, name, leaving)
    assert [line(parent), line(parent)] == ["child ends", "parent ends"]
    assert parent.wait(WATCHDOG_S) == 0
    assert eventually(lambda: names(hub) == [])
    assert sockets(shared) == set()


# --- Deadlines ---


def test_timeouts_end_waits_that_nobody_ends(hub: MessageHub, name: str) -> None:
    producer = hub.create_datablock_producer(name, dtype="u1", shape=4)
    consumer = hub.find_datablock_consumer(name, timeout_s=0)
    for timeout_s in (0, 0.01, 0.1):
        with pytest.raises(WaitTimeout):
            consumer.read(timeout_s=timeout_s)
        with pytest.raises(WaitTimeout):
            consumer.latest(timeout_s=timeout_s)
        with pytest.raises(SegmentNotFound):
            hub.find_datablock_consumer("nothing", timeout_s=timeout_s)
    producer.close()


def test_ctrl_c_ends_a_wait(shared: BrokerConfig, name: str, spawn: Spawn) -> None:
    child = spawn(
        """
        import os, signal, sys, threading
        from pyhub import BrokerConfig, MessageHub
        hub = MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False))
        camera = hub.create_datablock_producer(sys.argv[2], 4, 4)
        view = hub.find_datablock_consumer(sys.argv[2])
        for wait in (
            lambda: view.read(timeout_s=None),
            lambda: hub.find_datablock_consumer("nothing", timeout_s=None),
            lambda: hub.wait_for_readers("nothing", 1),
        ):
            timer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT])
            try:
                timer.start()
                wait()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            timer.join()
        hub.close()
        """,
        shared.runtime_dir,
        name,
    )
    assert [line(child) for _ in range(3)] == ["interrupted"] * 3
    assert child.wait(WATCHDOG_S) == 0
