"""Whatever a consumer waits by, it is given the same, and each wait ends as it should."""

# ruff: noqa: F811 - the hub's fixtures are used here too

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhub import (
    BrokerConfig,
    ChannelClosed,
    DataBlockConsumer,
    DataBlockProducer,
    Frame,
    LiveView,
    MessageHub,
    Overrun,
    PinnedFrame,
    ProducerDied,
    PyhubError,
    Wait,
    WaitTimeout,
    WriterStalled,
)
from pyhub._core import remove_dead
from pyhub.names import lease_path, reader_tables, segment_path
from tests.hub.conftest import hub, shared  # noqa: F401

Start = Callable[..., Any]
Attach = Callable[..., DataBlockConsumer]
Way = Callable[[DataBlockConsumer, float | None], Frame]

PATIENCE_S = 60.0  # nobody is expected to need it

# The broker runs before a test begins: it is none of what that test opens.
pytestmark = pytest.mark.usefixtures("shared")


# --- Strategies, and ways of reading ---

NATIVE = [
    pytest.param("futex", id="futex-name"),
    pytest.param(Wait.futex(), id="futex"),
    pytest.param("spin", id="spin-name"),
    pytest.param(Wait.spin(), id="spin"),
    pytest.param("adaptive", id="adaptive-name"),
    pytest.param(Wait.adaptive(0), id="adaptive-0"),
    pytest.param(Wait.adaptive(0.001), id="adaptive"),
]
BY_HUB = [
    pytest.param("notification", id="notification-name"),
    pytest.param(Wait.notification(), id="notification"),
]
ONE_EACH = ["futex", "spin", "adaptive", "notification"]

every_strategy = pytest.mark.parametrize("wait", NATIVE + BY_HUB)
each_strategy = pytest.mark.parametrize("wait", ONE_EACH)

WAYS: dict[str, Way] = {
    "read": lambda view, timeout_s: view.read(timeout_s),
    "look": lambda view, timeout_s: view.look(timeout_s),
    "pin": lambda view, timeout_s: view.pin(timeout_s),
    "frames": lambda view, timeout_s: next(view.frames(timeout_s)),
    "aread": lambda view, timeout_s: asyncio.run(view.aread(timeout_s)),
}
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def cam() -> Iterator[DataBlockProducer]:
    with DataBlockProducer.create("cam", 4, 64, slots=4) as producer:
        yield producer


@pytest.fixture
def attach(request: pytest.FixtureRequest) -> Iterator[Attach]:
    """Attach to "cam" with a strategy; through a hub if it needs one."""
    views: list[DataBlockConsumer] = []

    def attach_(wait: Wait | str, **options: Any) -> DataBlockConsumer:
        view: DataBlockConsumer
        if Wait.of(wait).is_native:
            view = DataBlockConsumer.attach("cam", wait=wait, **options)
        else:
            hub: MessageHub = request.getfixturevalue("hub")
            view = hub.find_datablock_consumer("cam", wait=wait, **options)
        views.append(view)
        return view

    yield attach_
    for view in views:
        view.close()


@pytest.fixture
def meanwhile() -> Iterator[Callable[[Callable[[], Any]], Future[Any]]]:
    """Call something in another thread, which has begun when this returns."""
    with ThreadPoolExecutor() as pool:

        def start_(call: Callable[[], Any]) -> Future[Any]:
            future = pool.submit(call)
            while not (future.running() or future.done()):
                time.sleep(0.001)
            return future

        yield start_


def publish(cam: DataBlockProducer, value: int) -> None:
    assert cam.put(np.full(4, value, "u1"), {"value": value})


def value_of(frame: Frame) -> tuple[int, int]:
    """Return what `publish` gave it, of both zones; a pinned one is let go."""
    value = int(frame.data[0]), frame.flex["value"]
    if isinstance(frame, PinnedFrame):
        frame.release()
    return value


# --- What it is given ---


@every_way
@every_strategy
def test_frames_that_are_there_are_given_at_once(
    cam: DataBlockProducer, attach: Attach, wait: Wait | str, way: str
) -> None:
    view = attach(wait, reader="reader")
    for value in (1, 2, 3):
        publish(cam, value)
        assert value_of(WAYS[way](view, 0)) == (value, value)


@pytest.mark.parametrize("timeout_s", [PATIENCE_S, None])
@every_way
@each_strategy
def test_a_publish_ends_every_wait(
    cam: DataBlockProducer,
    attach: Attach,
    meanwhile: Any,
    wait: str,
    way: str,
    timeout_s: float | None,
) -> None:
    view = attach(wait, reader="reader")
    for value in (1, 2):
        waiting = meanwhile(lambda: value_of(WAYS[way](view, timeout_s)))
        time.sleep(0.005)  # so that most of them wait by then; it ends in either case
        publish(cam, value)
        assert waiting.result() == (value, value)


@each_strategy
def test_new_parameters_end_a_read_and_a_look(
    cam: DataBlockProducer, attach: Attach, meanwhile: Any, wait: str
) -> None:
    view = attach(wait)
    publish(cam, 1)
    view.read(0)
    for value, call in ((2, view.read), (3, view.look)):
        waiting = meanwhile(lambda call=call: call(PATIENCE_S))
        cam.put(flex={"value": value})
        frame = waiting.result()
        assert (frame.flex, frame.has_new_data) == ({"value": value}, False)


@each_strategy
def test_a_reader_that_keeps_up_is_given_every_frame(
    cam: DataBlockProducer, attach: Attach, meanwhile: Any, wait: str
) -> None:
    view = attach(wait, policy="block")
    n_frames = 300

    def produce() -> None:
        for value in range(n_frames):
            publish(cam, value % 100)

    producing = meanwhile(produce)
    ids = [view.read(PATIENCE_S).frame_id for _ in range(n_frames)]
    producing.result()
    assert ids == list(range(n_frames))
    assert view.n_lost == 0


# --- Deadlines ---


@pytest.mark.parametrize("timeout_s", [0, 0.05])
@every_way
@each_strategy
def test_a_wait_lasts_until_its_deadline(
    cam: DataBlockProducer, attach: Attach, wait: str, way: str, timeout_s: float
) -> None:
    view = attach(wait, reader="reader")
    publish(cam, 1)
    value_of(WAYS[way](view, 0))
    start = time.monotonic()
    with pytest.raises(WaitTimeout, match="nothing new in"):
        WAYS[way](view, timeout_s)
    assert time.monotonic() - start >= timeout_s


@pytest.mark.timeout(20)
@pytest.mark.parametrize("call", ["read", "look", "pin"])
@pytest.mark.parametrize("wait", ["futex", "spin"])
def test_a_wait_in_order_ends_while_the_newest_frame_is_being_overwritten(
    attach: Attach, wait: str, call: str
) -> None:
    """The other slot is pinned, so the producer writes over the frame that comes next."""
    with DataBlockProducer.create("cam", 4, 64, slots=2) as cam:
        view = attach(wait, policy="every", reader="in-order")
        holder = attach("futex", reader="holder")
        publish(cam, 1)
        with holder.pin(0):
            publish(cam, 2)
            assert value_of(WAYS[call](view, 0)) == (1, 1)
            cam.put(flex={"value": 3})
            cam.begin_publish()
            assert cam.get_structured_data_buffer() is not None
            with pytest.raises(WaitTimeout):
                WAYS[call](view, 0.05)
            cam.abort_publish()


INTERRUPTED = """
import asyncio
from pyhub import BrokerConfig, MessageHub

signal.signal(signal.SIGINT, signal.default_int_handler)
wait, way, runtime = sys.argv[1:]
if wait == "notification":
    hub = MessageHub(BrokerConfig(runtime_dir=runtime, autostart=False))
    view = hub.find_datablock_consumer("cam", reader="reader")
else:
    view = DataBlockConsumer.attach("cam", wait=wait, reader="reader")
ways = dict(
    read=lambda: view.read(None),
    look=lambda: view.look(1e6),
    pin=lambda: view.pin(None),
    frames=lambda: list(view),
    aread=lambda: asyncio.run(view.aread(None)),
)
try:
    say("waiting")
    ways[way]()
except KeyboardInterrupt:
    say("interrupted")
if wait == "notification":
    hub.close()
"""


@every_way
@each_strategy
def test_ctrl_c_ends_every_wait(
    start: Start, shared: BrokerConfig, cam: DataBlockProducer, wait: str, way: str
) -> None:
    child = start(INTERRUPTED, wait, way, shared.runtime_dir)
    child.expect("waiting")
    time.sleep(0.05)  # one that spins never sleeps: nothing else tells that it waits
    child.process.send_signal(signal.SIGINT)
    child.expect("interrupted")
    child.end()


@pytest.mark.parametrize("call", ["read", "look", "frames", "aread"])
@each_strategy
def test_a_close_in_another_thread_ends_the_wait(
    cam: DataBlockProducer, attach: Attach, meanwhile: Any, wait: str, call: str
) -> None:
    view = attach(wait)

    def read() -> list[Frame]:
        return list(view) if call == "frames" else [WAYS[call](view, None)]

    waiting = meanwhile(read)
    time.sleep(0.005)
    view.close()
    if call == "frames":
        assert waiting.result() == []
    else:
        with pytest.raises(ChannelClosed, match="this consumer of channel 'cam' was closed"):
            waiting.result()


# --- Producers that go ---

PRODUCER = """
cam = DataBlockProducer.create("cam", 4, 64, slots=4)
cam.put(np.full(4, 1, "u1"), {"value": 1})
say("up")
wait_for_go()
cam.close()
"""


@pytest.fixture
def other(start: Start) -> Iterator[Any]:
    """A producer of "cam" in a process of its own; what it leaves is removed."""
    child = start(PRODUCER)
    child.expect("up")
    yield child
    child.kill()
    if segment_path("cam").exists():
        remove_dead(segment_path("cam"), lease_path())


@pytest.mark.parametrize("timeout_s", [None, 0.2])
@pytest.mark.parametrize("call", ["read", "look", "aread"])
@each_strategy
def test_a_producer_that_dies_is_noticed(
    other: Any, attach: Attach, meanwhile: Any, wait: str, call: str, timeout_s: float | None
) -> None:
    view = attach(wait)
    assert value_of(view.read(0)) == (1, 1)
    waiting = meanwhile(lambda: WAYS[call](view, timeout_s))
    other.kill()
    with pytest.raises((ProducerDied, WaitTimeout)) as caught:
        waiting.result()
    # The deadline may have come before the death.
    assert timeout_s is not None or caught.type is ProducerDied
    with pytest.raises(ProducerDied):
        WAYS[call](view, None)


@pytest.mark.parametrize("call", ["read", "look", "aread"])
@each_strategy
def test_a_producer_that_closes_is_noticed(
    other: Any, attach: Attach, meanwhile: Any, wait: str, call: str
) -> None:
    view = attach(wait)
    assert value_of(view.read(0)) == (1, 1)
    waiting = meanwhile(lambda: WAYS[call](view, None))
    other.go()
    other.end()
    with pytest.raises(ChannelClosed):
        waiting.result()


@pytest.mark.parametrize("call", ["read", "look", "pin", "aread"])
@pytest.mark.parametrize("dies", [True, False], ids=["died", "closed"])
@each_strategy
def test_the_next_producers_frames_are_given(
    other: Any, attach: Attach, meanwhile: Any, wait: str, call: str, dies: bool
) -> None:
    view = attach(wait, reader="reader")
    value_of(WAYS[call](view, 0))
    waiting = meanwhile(lambda: WAYS[call](view, PATIENCE_S))
    if dies:
        other.kill()
    else:
        other.go()
        other.end()
    with DataBlockProducer.create("cam", 4, 64, slots=4) as cam:
        publish(cam, 9)
        frame = waiting.result()
        assert frame.is_restart
        assert value_of(frame) == (9, 9)
        again = meanwhile(lambda: value_of(WAYS[call](view, PATIENCE_S)))
        publish(cam, 10)
        assert again.result() == (10, 10)


@pytest.mark.parametrize("call", ["read", "look", "aread"])
@each_strategy
def test_a_producer_that_is_stopped_is_told(
    other: Any, attach: Attach, wait: str, call: str
) -> None:
    view = attach(wait)
    value_of(view.read(0))
    other.stop()
    with pytest.raises(WriterStalled, match=f"pid {other.pid}"):
        WAYS[call](view, 0.05)
    other.resume()


# --- What may be asked for ---


@pytest.mark.parametrize("wait", ["poll", "", "Futex", 3])
def test_a_strategy_that_is_none_is_refused(cam: DataBlockProducer, wait: Any) -> None:
    with pytest.raises(
        ValueError, match=r"wait=.* is none of 'notification', 'futex', 'spin', 'adaptive'\."
    ):
        DataBlockConsumer.attach("cam", wait=wait)


@pytest.mark.parametrize("spin_s", [-1e-9, 1.001, float("nan"), float("inf")])
def test_a_time_that_nobody_spins_is_refused(spin_s: float) -> None:
    with pytest.raises(ValueError, match=r"spin_s=.*: give 0 to 1 s; .* Wait\.spin\(\)"):
        Wait.adaptive(spin_s)


@pytest.mark.parametrize("wait", BY_HUB)
def test_without_a_hub_there_are_no_notifications(cam: DataBlockProducer, wait: Wait | str) -> None:
    with pytest.raises(PyhubError, match=r"wait='notification' needs a hub.*\n.*MessageHub\(\)"):
        DataBlockConsumer.attach("cam", wait=wait)


@every_strategy
def test_a_consumer_says_how_it_waits(
    cam: DataBlockProducer, attach: Attach, wait: Wait | str
) -> None:
    assert attach(wait).wait == Wait.of(wait)


def test_by_default_a_consumer_sleeps(cam: DataBlockProducer, hub: MessageHub) -> None:
    with DataBlockConsumer.attach("cam") as view:
        assert view.wait == Wait.futex()
    with hub.find_datablock_consumer("cam") as view:
        assert view.wait == Wait.notification()


def test_strategies_are_values() -> None:
    assert Wait.of("adaptive") == Wait.adaptive() != Wait.adaptive(0)
    assert Wait.adaptive(1).spin_s == 1.0
    assert [Wait.of(name).name for name in ONE_EACH] == ONE_EACH
    assert [Wait.of(name).is_native for name in ONE_EACH] == [True, True, True, False]
    assert [Wait.of(name).sleeps for name in ONE_EACH] == [True, False, True, True]
    assert len({Wait.spin(), Wait.of("spin")}) == 1


@pytest.mark.parametrize("wait", ["futex", "spin", "adaptive"])
def test_a_hubs_consumer_that_looks_by_itself_has_no_socket_and_is_counted(
    hub: MessageHub, wait: str
) -> None:
    with (
        hub.create_datablock_producer("cam", 4, 64) as cam,
        hub.find_datablock_consumer("cam", wait=wait) as view,
    ):
        for ask in (view.fileno, lambda: view.notification_socket):
            with pytest.raises(
                PyhubError, match=f"waits by '{wait}', so it has no notification channel"
            ):
                ask()
        (channel,) = hub.channels()
        assert (channel.name, channel.n_readers) == ("cam", 1)
        publish(cam, 5)
        assert value_of(view.read(PATIENCE_S)) == (5, 5)


# --- What it costs ---


def cpu_s_of_a_wait(view: DataBlockConsumer, wall_s: float) -> float:
    """Return the processor's time that a wait in vain takes of its thread."""
    start = time.thread_time()
    with pytest.raises(WaitTimeout):
        view.read(wall_s)
    return time.thread_time() - start


def test_only_who_spins_takes_the_processor(cam: DataBlockProducer, attach: Attach) -> None:
    wall_s = 0.4
    spent = {wait: cpu_s_of_a_wait(attach(wait), wall_s) for wait in ONE_EACH}
    spin_s = spent.pop("spin")
    assert max(spent.values()) < wall_s / 4, spent
    assert spin_s > 3 * max(spent.values()), (spin_s, spent)


NAPS = """
with DataBlockConsumer.attach("cam", wait=sys.argv[1]) as view:
    for _ in range(3):
        say("waiting")
        with view.look(60) as frame:
            say("got", frame.flex["value"])
"""


@pytest.mark.parametrize("may_write", [False, True], ids=["naps", "sleeps"])
@pytest.mark.parametrize("wait", ["futex", "adaptive"])
def test_who_may_not_write_to_the_table_of_readers_is_given_frames_nevertheless(
    start: Start, cam: DataBlockProducer, wait: str, may_write: bool
) -> None:
    """Root too is kept out, once it gives up the right to pass over permissions."""
    prefix: tuple[str, ...] = ()
    (table,) = reader_tables()
    if not may_write:
        table.chmod(0o400)
        if os.geteuid() == 0:
            assert shutil.which("setpriv"), "part of util-linux"
            prefix = ("setpriv", "--bounding-set=-dac_override")
    before = table.read_bytes()
    child = start(NAPS, wait, prefix=prefix)
    for value in (1, 2, 3):
        child.expect("waiting")
        while child.state() != "S":
            time.sleep(0.001)
        # Who sleeps says so there: the words are not all as they were.
        if may_write:
            while table.read_bytes() == before:
                time.sleep(0.001)
        else:
            time.sleep(0.02)
            assert table.read_bytes() == before
        publish(cam, value)
        assert child.expect("got") == str(value)
    child.end()


UNSHARED = ("unshare", "--mount", "--map-root-user")
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


@pytest.mark.parametrize("wait", ["futex", "spin", "adaptive"])
def test_who_sees_shared_memory_read_only_is_given_frames_nevertheless(
    start: Start, cam: DataBlockProducer, shm: Path, wait: str
) -> None:
    """As in a container that was given the directory so."""
    prefix = (*UNSHARED, "sh", "-c", READ_ONLY, "sh", str(shm))
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"]).returncode:
        pytest.skip("this user may not mount a file system of its own")
    child = start(NAPS, wait, prefix=prefix)
    for value in (1, 2, 3):
        child.expect("waiting")
        publish(cam, value)
        assert child.expect("got") == str(value)
    child.end()


@pytest.mark.parametrize("wait", ["futex", "spin", "adaptive"])
def test_who_finds_no_table_of_readers_is_given_frames_nevertheless(
    cam: DataBlockProducer, attach: Attach, meanwhile: Any, wait: str
) -> None:
    """Its producer closes just now, or somebody removed the file."""
    (table,) = reader_tables()
    table.unlink()
    view = attach(wait)
    waiting = meanwhile(lambda: value_of(view.read(PATIENCE_S)))
    publish(cam, 1)
    assert waiting.result() == (1, 1)


# --- Where frames lie ---


def test_a_look_gives_the_frame_where_it_lies(cam: DataBlockProducer, attach: Attach) -> None:
    view = attach("futex")
    publish(cam, 1)
    with view.look(0) as frame:
        assert isinstance(frame, LiveView)
        assert not frame.data.flags.writeable
        assert not frame.data.flags.owndata
        assert value_of(frame) == (1, 1)
        assert frame.is_valid()
        assert (frame.copy() == 1).all()
    assert view.n_read == 1
    with pytest.raises(WaitTimeout):
        view.look(0)


def test_a_frame_that_was_looked_at_turns_invalid_when_its_slot_is_written(
    cam: DataBlockProducer, attach: Attach
) -> None:
    view = attach("futex")
    publish(cam, 1)
    frame = view.look(0)
    for value in (2, 3, 4):
        publish(cam, value)
        assert frame.is_valid()
    cam.begin_publish()
    assert frame.is_valid()
    cam.get_structured_data_buffer()
    assert not frame.is_valid()
    with pytest.raises(Overrun, match="frame 0 of channel 'cam' was overwritten"):
        frame.copy()
    cam.abort_publish()
    assert not frame.is_valid()
    assert frame.flex == {"value": 1}


def test_an_array_is_the_callers_own_on_the_slots_memory(
    cam: DataBlockProducer, attach: Attach
) -> None:
    """What somebody does to its shape is seen by nobody else."""
    view = attach("futex", policy="every")
    publish(cam, 0)
    first = view.look(0).data
    for value in range(1, 5):
        publish(cam, value)
        last = view.look(0).data
    assert np.shares_memory(first, last)
    whole = last.shape
    last.shape = (1, -1)
    for value in range(5, 9):
        with cam.publish() as slot:
            slot.data.shape = (-1, 1)
            slot.data[...] = value
        frame = view.look(0)
        assert frame.data.shape == whole
        assert (frame.data == value).all()


@pytest.mark.parametrize("policy", [None, "latest"])
def test_a_look_counts_the_frames_that_it_passes_over(
    cam: DataBlockProducer, attach: Attach, policy: str | None
) -> None:
    view = attach("futex", policy=policy)
    publish(cam, 0)
    assert view.look(0).n_lost == 0
    for value in range(1, 8):
        publish(cam, value)
    frame = view.look(0)
    assert (frame.frame_id, frame.n_lost, view.n_lost, view.n_read) == (7, 6, 6, 2)


def test_looks_in_order_give_every_frame_in_its_turn(
    cam: DataBlockProducer, attach: Attach
) -> None:
    view = attach("futex", policy="every")
    for value in range(4):
        publish(cam, value)
    cam.put(flex={"value": 30})
    frames = [view.look(0) for _ in range(4)]
    assert [int(frame.data[0]) for frame in frames] == [0, 1, 2, 3]
    assert [frame.flex["value"] for frame in frames] == [0, 1, 2, 30]
    assert all(frame.is_valid() for frame in frames)
    with pytest.raises(WaitTimeout):
        view.look(0)
    for value in range(4, 14):
        publish(cam, value)
    frame = view.look(0)
    assert frame.n_lost == frame.frame_id - 4 > 0
    rest = [view.look(0).frame_id for _ in range(13 - frame.frame_id)]
    assert rest == list(range(frame.frame_id + 1, 14))
    assert view.n_read + view.n_lost == 14


def test_a_look_tells_new_parameters_of_an_old_frame(
    cam: DataBlockProducer, attach: Attach
) -> None:
    view = attach("futex")
    publish(cam, 1)
    first = view.look(0)
    assert (first.has_new_data, first.has_new_flex) == (True, True)
    cam.put(flex={"value": 2})
    frame = view.look(0)
    assert (frame.has_new_data, frame.has_new_flex, frame.n_lost) == (False, True, 0)
    assert value_of(frame) == (1, 2)
    assert np.shares_memory(frame.data, first.data)
    assert first.flex == {"value": 1}
    assert first.is_valid()
    cam.put(np.full(4, 3, "u1"))
    frame = view.look(0)
    assert (frame.has_new_data, frame.has_new_flex) == (True, False)
    assert value_of(frame) == (3, 2)
    assert view.n_read == 2


@pytest.mark.parametrize("policy", [None, "every"])
def test_a_look_at_a_channel_of_parameters_gives_each_newest_object(
    attach: Attach, policy: str | None
) -> None:
    with DataBlockProducer.create("cam", 0, 64) as cam:
        view = attach("futex", policy=policy)
        for value in (1, 2):
            cam.put(flex={"value": value})
            frame = view.look(0)
            assert frame.flex == {"value": value}
            assert frame.data.size == 0
            assert not frame.is_valid()
        cam.put(flex={"value": 3})
        cam.put(flex={"value": 4})
        assert view.look(0).flex == {"value": 4}
        with pytest.raises(WaitTimeout):
            view.look(0)


@pytest.mark.parametrize("policy", [None, "every"])
def test_a_single_slot_is_not_looked_at_while_it_is_written(
    attach: Attach, meanwhile: Any, policy: str | None
) -> None:
    with DataBlockProducer.create("cam", 4, 64) as cam:
        view = attach("futex", policy=policy)
        publish(cam, 1)
        cam.begin_publish()
        cam.get_structured_data_buffer()[...] = 2
        with pytest.raises(WaitTimeout):
            view.look(0.03)
        cam.abort_publish()
        with pytest.raises(WaitTimeout):
            view.look(0)
        looking = meanwhile(lambda: view.look(PATIENCE_S))
        publish(cam, 3)
        frame = looking.result()
        assert (value_of(frame), frame.n_lost) == ((3, 3), 1)
        publish(cam, 4)
        assert not frame.is_valid()
        assert np.shares_memory(view.look(0).data, frame.data)
