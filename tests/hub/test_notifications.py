"""Notifications: one a publish, hints only, and straight from process to process."""

from __future__ import annotations

import asyncio
import contextlib
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from pyhub import (
    BrokerConfig,
    ChannelClosed,
    DataBlockConsumer,
    DataBlockProducer,
    Frame,
    MessageHub,
    Notification,
    PyhubError,
    WaitTimeout,
    ZoneUpdateInfo,
)
from pyhub.hub.client.notifications import NotificationListener, NotificationSocket
from pyhub.hub.runtime import RuntimeDirectory
from tests.conftest import eventually, turns
from tests.hub.conftest import Spawn, go_on, line

WATCHDOG_S = 30
QUIET_MS = 100  # long enough for a message that must not be there

Pair = tuple[DataBlockProducer, DataBlockConsumer]


def image(number: int = 0) -> np.ndarray[Any, Any]:
    return np.full((4, 4), number, "u2")


def hear(consumer: DataBlockConsumer) -> Notification:
    """Wait for the next notification."""
    sub: NotificationSocket = consumer.notification_socket
    assert sub.poll(WATCHDOG_S * 1000), "no notification"
    return sub.receive(zmq.NOBLOCK)


def is_quiet(consumer: DataBlockConsumer) -> bool:
    return not consumer.notification_socket.poll(QUIET_MS)


def subscribe(producer: DataBlockProducer, consumer: DataBlockConsumer) -> None:
    """Publish until the consumer hears it, and waits for its notifications; then forget that."""
    sub = consumer.notification_socket

    def is_heard() -> bool:
        producer.put(flex={"subscribed": False})
        return bool(sub.poll(20))

    assert eventually(is_heard, WATCHDOG_S)
    commit = producer.header().commit
    while hear(consumer).commit != commit:
        pass
    producer.put(flex={"subscribed": True})
    assert sub.poll(WATCHDOG_S * 1000)
    with contextlib.suppress(WaitTimeout):
        while True:
            consumer.read(timeout_s=0.001)
    assert not sub.poll(0), "it waited for something else"


@pytest.fixture
def pair(hub: MessageHub, name: str) -> Pair:
    """A producer, and a consumer that hears it."""
    producer = hub.create_datablock_producer(name, dtype="u2", shape=(4, 4), slots=4)
    consumer = hub.find_datablock_consumer(name)
    subscribe(producer, consumer)
    return producer, consumer


# --- What is said ---


def test_one_publish_of_both_zones_is_one_notification_that_names_them(pair: Pair) -> None:
    """Seed 14 and 15."""
    producer, consumer = pair
    producer.put(image(1), {"exposure_s": 0.1})
    header = producer.header()
    heard = hear(consumer)
    assert heard == Notification(
        commit=header.commit,
        flex_zone_version=header.flex_zone_version,
        structured_buffer_version=header.structured_buffer_version,
        zones=3,
        frame_id=0,
    )
    assert heard.flex_zone
    assert heard.structured_buffer
    assert is_quiet(consumer)


@pytest.mark.parametrize(
    ("data", "flex", "zones", "frame_id"),
    [(None, {"gain": 2}, 1, -1), (image(), None, 2, 0), (image(), {"gain": 2}, 3, 0)],
    ids=["flex", "structured", "both"],
)
def test_a_notification_names_the_zones_that_changed_and_no_others(
    pair: Pair, data: Any, flex: dict[str, Any] | None, zones: int, frame_id: int
) -> None:
    """Seed 14: the message names the zones changed."""
    producer, consumer = pair
    before = producer.header()
    producer.put(data, flex)
    heard = hear(consumer)
    assert (heard.zones, heard.frame_id) == (zones, frame_id)
    assert heard.commit == before.commit + 1
    assert heard.flex_zone_version == before.flex_zone_version + (zones & 1)
    assert heard.structured_buffer_version == before.structured_buffer_version + (zones >> 1)
    assert is_quiet(consumer)


def test_frame_ids_of_the_producers_own_are_told(pair: Pair) -> None:
    producer, consumer = pair
    for frame_id in (7, 1000, 2**40):
        producer.put(image(), frame_id=frame_id)
        assert hear(consumer).frame_id == frame_id


def test_the_topic_is_the_channels_name(pair: Pair) -> None:
    """Seed 13: one PUB/SUB topic a DataBlock."""
    producer, consumer = pair
    producer.put(image())
    sub = consumer.notification_socket
    assert sub.poll(WATCHDOG_S * 1000)
    topic, _ = sub.recv_multipart()
    assert topic == producer.name.encode()


def test_a_channel_hears_nothing_of_another(hub: MessageHub, pair: Pair) -> None:
    """Seed 13: ... of its own. The other's name begins with this one's."""
    producer, consumer = pair
    with hub.create_datablock_producer(f"{producer.name}0", dtype="u2", shape=(4, 4)) as other:
        for number in range(10):
            other.put(image(number))
        assert is_quiet(consumer)


def test_a_publish_that_is_given_up_is_not_told(pair: Pair) -> None:
    producer, consumer = pair
    with pytest.raises(RuntimeError, match="changed my mind"), producer.publish() as slot:
        slot.data[...] = 1
        slot.flex = {"gain": 1}
        raise RuntimeError("changed my mind")
    producer.begin_publish()
    producer.get_structured_data_buffer()
    producer.abort_publish()
    with producer.publish():
        pass  # nothing was filled in
    assert is_quiet(consumer)
    producer.put(image())
    assert hear(consumer).commit == producer.header().commit


def test_when_the_notification_comes_the_frame_is_there(pair: Pair) -> None:
    """Seed 14: unlock first, then publish."""
    producer, consumer = pair
    for number in range(200):
        producer.put(image(number), {"number": number})
        heard = hear(consumer)
        header = consumer.header()
        assert header.commit >= heard.commit
        assert not header.is_writing
        frame = consumer.read(timeout_s=0)
        assert (frame.frame_id, frame.data[0, 0], frame.flex["number"]) == (number,) * 3


# --- The seed's own form ---


def test_a_camera_and_its_display(
    shared: BrokerConfig, hub: MessageHub, name: str, spawn: Spawn
) -> None:
    """Seed 16, 21, 22 and 24: the acceptance scenario, each in a process of its own.

    The camera writes frame and parameters, one end_publish; the display gets
    one event, and reads both.
    """
    camera = spawn(
        """
        import sys
        import msgpack
        import numpy as np
        from pyhub import BrokerConfig, MessageHub, ZoneUpdateInfo

        runtime, name = sys.argv[1:]
        frame_bytes = 512 * 512 * 2
        assert MessageHub.initialize(BrokerConfig(runtime_dir=runtime))
        producer = MessageHub.create_datablock_producer(name, frame_bytes, 1024)
        print("created", flush=True)
        for number in map(int, sys.stdin):
            parameters = msgpack.packb({"exposure_s": 0.01 * number, "gain": number})
            producer.begin_publish()
            producer.get_structured_data_buffer().view("u2")[:] = number
            producer.get_flexible_zone_buffer()[: len(parameters)] = parameters
            producer.end_publish(
                ZoneUpdateInfo(
                    flex_zone=True, structured_buffer=True, flex_zone_size=len(parameters)
                )
            )
        MessageHub.shutdown()
        """,
        shared.runtime_dir,
        name,
    )
    assert line(camera) == "created"
    orders = camera.stdin
    assert orders is not None

    def publish(number: int) -> None:
        orders.write(f"{number}\n")
        orders.flush()

    display = hub.find_datablock_consumer(name)
    poller = zmq.Poller()
    poller.register(display.notification_socket(), zmq.POLLIN)
    # The first may come before the subscription has arrived.
    heard = None
    for number in range(1, 1000):
        publish(number)
        if poller.poll(50):
            heard = display.notification_socket().receive()
            break
    assert heard is not None
    number = heard.frame_id + 2
    publish(number)
    while True:
        assert poller.poll(WATCHDOG_S * 1000)
        heard = display.notification_socket().receive()
        if heard.frame_id == number - 1:
            break
    assert heard.flex_zone
    assert heard.structured_buffer
    data, parameters = display.get_structured_data(), display.get_flexible_zone_data()
    assert data is not None
    assert parameters == {"exposure_s": 0.01 * number, "gain": number}
    assert (data.view("u2") == number).all()
    assert display.header().structured_buffer_version == heard.structured_buffer_version
    assert not poller.poll(QUIET_MS)
    orders.close()
    camera.stdin = None
    assert camera.wait(WATCHDOG_S) == 0


def test_the_notification_socket_is_an_attribute_and_a_call(pair: Pair) -> None:
    """Seed 22: notification_socket() returns the SUB socket for a poll loop."""
    _, consumer = pair
    sub = consumer.notification_socket
    assert consumer.notification_socket() is sub
    assert sub.type == zmq.SUB
    assert isinstance(sub, zmq.Socket)


def test_one_loop_polls_several_channels(hub: MessageHub, pair: Pair, name: str) -> None:
    """Seed 16: the consumer waits with zmq_poll, then reads the named zones."""
    first, first_view = pair
    second = hub.create_datablock_producer(f"{name}b", dtype="u2", shape=(4, 4))
    second_view = hub.find_datablock_consumer(f"{name}b")
    subscribe(second, second_view)
    views = {view.notification_socket: view for view in (first_view, second_view)}
    poller = zmq.Poller()
    for sub in views:
        poller.register(sub, zmq.POLLIN)
    for producer, view in ((second, second_view), (first, first_view)):
        producer.put(image(), {"from": producer.name})
        (sub, _), *others = poller.poll(WATCHDOG_S * 1000)
        assert not others
        assert views[sub] is view
        assert sub.receive().zones == 3
        assert view.read(timeout_s=0).flex == {"from": view.name}


def wait_with_select(descriptor: int, timeout_s: float) -> bool:
    return bool(select.select([descriptor], [], [], timeout_s)[0])


def wait_with_poll(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


Wait = Callable[[int, float], bool]


@pytest.mark.parametrize("wait", [wait_with_select, wait_with_poll], ids=["select", "poll"])
def test_a_foreign_event_loop_is_woken_and_reads_every_frame(pair: Pair, wait: Wait) -> None:
    producer, consumer = pair
    n_frames = 50
    numbers: list[int] = []

    def publish() -> None:
        for number in range(n_frames):
            producer.put(image(number))

    publishing = threading.Thread(target=publish)
    publishing.start()
    n_lost = consumer.n_lost
    while n_frames - 1 not in numbers:
        assert wait(consumer.fileno(), 5)
        with contextlib.suppress(WaitTimeout):
            while True:
                numbers.append(consumer.read(timeout_s=0).frame_id)
    publishing.join()
    assert numbers == sorted(numbers)
    assert len(numbers) + consumer.n_lost - n_lost == n_frames


@pytest.mark.parametrize("wait", [wait_with_select, wait_with_poll], ids=["select", "poll"])
def test_the_descriptor_is_quiet_once_all_was_read(pair: Pair, wait: Wait) -> None:
    producer, consumer = pair
    for number in range(5):
        producer.put(image(number))
        assert wait(consumer.fileno(), 5)
        # A wake without news may follow, but not one after the other.
        for _ in range(20):
            with contextlib.suppress(WaitTimeout):
                while True:
                    consumer.read(timeout_s=0)
            if not wait(consumer.fileno(), QUIET_MS / 1000):
                break
        else:
            pytest.fail("the descriptor stays readable with nothing to read")


def test_a_consumer_without_a_hub_has_no_descriptor(name: str) -> None:
    with (
        DataBlockProducer.create(name, dtype="u2", shape=(4, 4)),
        DataBlockConsumer.attach(name) as consumer,
    ):
        for ask in (consumer.fileno, lambda: consumer.notification_socket):
            with pytest.raises(PyhubError, match="no notification channel"):
                ask()


# --- Hints only ---


def test_who_missed_notifications_counts_every_frame_from_the_header(pair: Pair) -> None:
    producer, consumer = pair
    sub = consumer.notification_socket
    n_frames = 5000  # more than the queues of both sides hold
    for number in range(n_frames):
        producer.put(image(number % 1000))
    n_heard = 0
    while sub.poll(QUIET_MS):
        sub.receive()
        n_heard += 1
    assert 0 < n_heard < n_frames, "nothing was missed: the test shows nothing"
    n_lost, n_read = consumer.n_lost, consumer.n_read
    frame = consumer.read(timeout_s=0)
    assert frame.frame_id == n_frames - 1
    assert frame.n_lost == consumer.n_lost - n_lost == n_frames - 1
    assert consumer.n_read == n_read + 1
    # ... and it is woken again.
    producer.put(image())
    assert consumer.read(timeout_s=WATCHDOG_S).n_lost == 0


def test_every_frame_is_read_or_counted_though_notifications_are_missed(pair: Pair) -> None:
    producer, consumer = pair
    n_frames = 3000
    start = producer.header().structured_buffer_version

    def publish() -> None:
        for number in range(n_frames):
            producer.put(image(number % 1000))
        producer.close()

    publishing = threading.Thread(target=publish)
    publishing.start()
    n_lost = consumer.n_lost
    versions = [frame.version for frame in consumer.frames()]
    publishing.join()
    assert versions == sorted(set(versions))
    assert versions[-1] == start + n_frames
    assert len(versions) + consumer.n_lost - n_lost == n_frames


def test_who_attaches_late_begins_with_the_newest_frame_and_counts_from_there(
    hub: MessageHub, name: str
) -> None:
    producer = hub.create_datablock_producer(name, dtype="u2", shape=(4, 4))
    for number in range(10):
        producer.put(image(number))
    consumer = hub.find_datablock_consumer(name)
    assert is_quiet(consumer)
    frame = consumer.read(timeout_s=0)
    assert (frame.frame_id, frame.n_lost) == (9, 0)
    for number in range(10, 13):
        producer.put(image(number))
    frame = consumer.read(timeout_s=WATCHDOG_S)
    assert (frame.frame_id, frame.n_lost) == (12, 2)


def test_a_producer_without_a_hub_wakes_the_consumer_of_a_hub(hub: MessageHub, name: str) -> None:
    with DataBlockProducer.create(name, dtype="u2", shape=(4, 4)) as producer:
        consumer = hub.find_datablock_consumer(name)
        assert hub.channels() == []
        for number in range(3):
            timer = threading.Timer(0.02, producer.put, [image(number)])
            timer.start()
            assert consumer.read(timeout_s=WATCHDOG_S).frame_id == number
            timer.join()
        assert is_quiet(consumer)


def test_aread_is_woken_by_a_producer_without_a_hub(hub: MessageHub, name: str) -> None:
    with DataBlockProducer.create(name, dtype="u2", shape=(4, 4)) as producer:
        consumer = hub.find_datablock_consumer(name)

        async def main() -> Frame:
            asyncio.get_running_loop().call_later(0.02, producer.put, image(7))
            return await consumer.aread(WATCHDOG_S)

        assert asyncio.run(main()).data[0, 0] == 7


def test_a_producer_without_a_hub_may_follow_one_with_a_hub(hub: MessageHub, pair: Pair) -> None:
    producer, consumer = pair
    producer.close()
    with DataBlockProducer.create(producer.name, dtype="u2", shape=(4, 4)) as successor:
        for number in range(3):
            timer = threading.Timer(0.02, successor.put, [image(number)])
            timer.start()
            frame = consumer.read(timeout_s=WATCHDOG_S)
            assert (frame.frame_id, frame.is_restart) == (number, number == 0)
            timer.join()


def test_one_late_hint_does_not_pass_for_silence(pair: Pair) -> None:
    producer, consumer = pair
    listener, tell = consumer._listener, producer._notify
    assert isinstance(listener, NotificationListener)

    def read_untold() -> bool:
        timer = threading.Timer(0.02, producer.put, [image()])
        timer.start()
        consumer.read(timeout_s=WATCHDOG_S)
        timer.join()
        return listener._silent is not None

    producer._notify = None
    assert not read_untold()
    producer._notify = tell
    producer.put(image())
    assert consumer.notification_socket.poll(WATCHDOG_S * 1000)
    consumer.read(timeout_s=WATCHDOG_S)
    producer._notify = None
    assert eventually(read_untold, WATCHDOG_S)  # the negative control: again and again


def test_a_slow_subscriber_never_keeps_the_producer(
    shared: BrokerConfig, pair: Pair, spawn: Spawn
) -> None:
    producer, consumer = pair
    sleeper = spawn(
        """
        import sys
        from pyhub import BrokerConfig, MessageHub

        hub = MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False))
        view = hub.find_datablock_consumer(sys.argv[2])
        view.notification_socket.poll()
        print("hears", flush=True)
        input()
        frame = view.read()
        print(frame.frame_id, flush=True)
        """,
        shared.runtime_dir,
        producer.name,
    )
    assert sleeper.stdout is not None
    while not select.select([sleeper.stdout], [], [], 0)[0]:
        producer.put(image())
        consumer.read(timeout_s=WATCHDOG_S)
    assert line(sleeper) == "hears"
    sleeper.send_signal(signal.SIGSTOP)
    for _ in range(5000):
        producer.put(image())
    newest = producer.header().structured_buffer_version - 1
    assert consumer.read(timeout_s=WATCHDOG_S).frame_id == newest
    sleeper.send_signal(signal.SIGCONT)
    go_on(sleeper)
    assert line(sleeper) == str(newest)  # it never had more to catch up with


def test_any_subscription_and_sudden_death_leave_the_producer_alive(
    shared: BrokerConfig, spawn: Spawn, name: str
) -> None:
    # libzmq 4.3.5 overflows its stack when the subscriber of one topic of
    # 128 KiB goes, so this producer may be lost.
    child = spawn(
        """
        import sys
        import numpy as np
        from pyhub import BrokerConfig, MessageHub
        hub = MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False))
        producer = hub.create_datablock_producer(sys.argv[2], dtype="u1", shape=4)
        print("ready", flush=True)
        while input() != "end":
            producer.put(np.zeros(4, "u1"))
            print("put", flush=True)
        hub.close()
        """,
        shared.runtime_dir,
        name,
    )
    assert line(child) == "ready"
    endpoint = RuntimeDirectory(shared.runtime_dir).endpoint_of(name)
    for size in (1, 255, 1025, 1 << 17, 1 << 20):
        subscriber = spawn(
            """
            import sys, zmq
            from zmq.utils.monitor import recv_monitor_message
            # XSUB: it is not this process that shall overflow.
            sub = zmq.Context().socket(zmq.XSUB)
            monitor = sub.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED)
            sub.connect(sys.argv[1])
            assert recv_monitor_message(monitor)["event"] == zmq.Event.HANDSHAKE_SUCCEEDED
            sub.send(b"\\1" + b"t" * int(sys.argv[2]))
            if int(sys.argv[2]) > 1024:  # it is cut off, and connects again
                assert recv_monitor_message(monitor)["event"] == zmq.Event.DISCONNECTED
            print("subscribed", flush=True)
            input()
            """,
            endpoint,
            size,
        )
        assert line(subscriber) == "subscribed"
        subscriber.kill()
        subscriber.wait()
        go_on(child)
        assert line(child) == "put"
    assert child.stdin is not None
    child.stdin.write("end\n")
    child.stdin.flush()
    assert child.wait(WATCHDOG_S) == 0


# --- asyncio ---


def test_an_event_loop_goes_on_while_a_frame_is_awaited(pair: Pair) -> None:
    producer, consumer = pair

    async def main() -> tuple[Frame, int]:
        n_turns = 0

        async def turn() -> None:
            nonlocal n_turns
            while True:
                await asyncio.sleep(0.001)
                n_turns += 1
                if n_turns == 20:
                    producer.put(image(5), {"turns": 20})

        turning = asyncio.create_task(turn())
        frame = await consumer.aread(timeout_s=WATCHDOG_S)
        turning.cancel()
        return frame, n_turns

    frame, n_turns = asyncio.run(main())
    assert frame.flex == {"turns": 20}
    assert n_turns >= 20


def test_aread_reads_every_frame_of_a_producer_that_waits_for_it(pair: Pair) -> None:
    producer, consumer = pair

    async def main() -> list[int]:
        found = []
        for number in range(100):
            asyncio.get_running_loop().call_soon(producer.put, image(number))
            frame = await consumer.aread(timeout_s=WATCHDOG_S)
            assert frame.n_lost == 0
            found.append(frame.frame_id)
        return found

    assert asyncio.run(main()) == list(range(100))


@pytest.mark.parametrize("timeout_s", [0, 0.05])
def test_aread_ends_at_its_deadline(pair: Pair, timeout_s: float) -> None:
    _, consumer = pair
    with pytest.raises(WaitTimeout, match="its producer lives"):
        asyncio.run(consumer.aread(timeout_s=timeout_s))


def test_an_aread_that_was_cancelled_leaves_the_next_one_everything(pair: Pair) -> None:
    producer, consumer = pair

    async def main() -> Frame:
        for _ in range(3):
            reading = asyncio.create_task(consumer.aread(timeout_s=None))
            await asyncio.sleep(0.01)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(consumer.aread(timeout_s=None), 0.01)
        producer.put(image(1))
        return await consumer.aread(timeout_s=WATCHDOG_S)

    frame = asyncio.run(main())
    assert (frame.frame_id, frame.n_lost) == (0, 0)


@pytest.mark.parametrize("n_turns", range(8))
def test_a_task_is_cancelled_also_while_a_frame_comes(pair: Pair, n_turns: int) -> None:
    producer, consumer = pair

    async def follow() -> None:
        while True:
            await consumer.aread(timeout_s=None)

    async def main() -> None:
        task = asyncio.create_task(follow())
        await turns(3)  # until it waits
        producer.put(image(1))
        assert select.select([consumer.fileno()], [], [], WATCHDOG_S)[0]
        await turns(n_turns)
        task.cancel()
        await turns(10)
        assert task.cancelled()

    asyncio.run(main())


def test_several_consumers_are_awaited_in_one_loop(hub: MessageHub, pair: Pair) -> None:
    producer, first = pair
    second = hub.find_datablock_consumer(producer.name)
    subscribe(producer, second)
    with contextlib.suppress(WaitTimeout):
        while True:
            first.read(timeout_s=0)

    async def main() -> tuple[Frame, Frame]:
        asyncio.get_running_loop().call_later(0.02, producer.put, image(7))
        return await asyncio.gather(first.aread(WATCHDOG_S), second.aread(WATCHDOG_S))

    assert [frame.data[0, 0] for frame in asyncio.run(main())] == [7, 7]


def test_a_consumer_that_is_closed_while_it_is_awaited_says_so(pair: Pair) -> None:
    _, consumer = pair

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.02, consumer.close)
        await consumer.aread(timeout_s=WATCHDOG_S)

    with pytest.raises(ChannelClosed, match="consumer of channel"):
        asyncio.run(main())


# --- Ends ---


def test_a_consumer_that_is_closed_by_another_thread_while_it_waits_says_so(pair: Pair) -> None:
    _, consumer = pair
    timer = threading.Timer(0.05, consumer.close)
    timer.start()
    with pytest.raises(ChannelClosed, match="consumer of channel"):
        consumer.read(timeout_s=WATCHDOG_S)
    timer.join()


@pytest.mark.parametrize("doing", ["waiting", "asking", "publishing"])
def test_a_signal_handler_may_close_what_its_thread_is_using(
    shared: BrokerConfig, name: str, spawn: Spawn, doing: str
) -> None:
    child = spawn(
        """
        import signal, sys
        import numpy as np
        from pyhub import BrokerConfig, MessageHub, PyhubError

        # So patient that a wait for what the handler interrupted would show.
        config = BrokerConfig(runtime_dir=sys.argv[1], autostart=False, timeout_s=3600)
        hub = MessageHub(config)
        producer = hub.create_datablock_producer(sys.argv[2], dtype="u1", shape=4)
        consumer = hub.find_datablock_consumer(sys.argv[2])
        while not consumer.notification_socket.poll(20):  # it is the socket that is waited on
            producer.put(np.zeros(4, "u1"))
        consumer.read()
        signal.signal(signal.SIGTERM, lambda *_: hub.close())
        print("ready", flush=True)
        try:
            while sys.argv[3] == "publishing":
                producer.put(np.zeros(4, "u1"))
            while sys.argv[3] == "asking":
                hub.channels()
            consumer.read(timeout_s=None)
        except PyhubError as error:
            print(type(error).__name__, flush=True)
        """,
        shared.runtime_dir,
        name,
        doing,
    )
    assert line(child) == "ready"
    child.terminate()
    # In the middle of a publication, it is that which has come to nothing.
    assert line(child) in ("ChannelClosed", "PublishError")
    assert child.wait(WATCHDOG_S) == 0


def test_the_socket_file_goes_with_its_channel(shared: BrokerConfig, pair: Pair) -> None:
    producer, _ = pair
    endpoint = RuntimeDirectory(shared.runtime_dir).endpoint_of(producer.name)
    file = Path(endpoint.removeprefix("ipc://"))
    assert file.is_socket()
    producer.close()
    assert not file.exists()


def test_events_of_the_next_producer_are_heard(pair: Pair, hub: MessageHub) -> None:
    producer, consumer = pair
    with consumer.notification_socket.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED) as monitor:
        producer.close()
        with hub.create_datablock_producer(producer.name, 64, 64) as successor:
            assert monitor.poll(WATCHDOG_S * 1000)
            recv_monitor_message(monitor)
            subscribe(successor, consumer)
            assert consumer.shape == (64,)
            successor.begin_publish()
            successor.get_structured_data_buffer()[:] = 3
            successor.end_publish(ZoneUpdateInfo(structured_buffer=True))
            assert hear(consumer).zones == 2
            assert (consumer.read(timeout_s=0).data == 3).all()
        consumer.notification_socket.disable_monitor()
