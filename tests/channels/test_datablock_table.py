"""Places for admitted readers: names, refusals, the dead, restarts, comings and goings."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import sys
import threading
import time
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
    InvalidName,
    SegmentNotFound,
    WaitTimeout,
)
from pyhub._core import companion
from pyhub._readers import ReaderTable
from pyhub.datablock import reader as reader_module
from pyhub.datablock.reader import ReaderState, admitted_readers
from pyhub.names import lease_path, reader_tables, segment_path

Start = Callable[..., Any]
LONG_S = 600.0


def publish(cam: DataBlockProducer, number: int) -> bool:
    return cam.put(np.full(cam.shape, number % 256, "u1"), {"n": number}, timeout_s=60)


def states(cam: DataBlockProducer) -> list[ReaderState]:
    return admitted_readers(cam._block, str(lease_path()))


def names(cam: DataBlockProducer) -> list[str]:
    return [reader.name for reader in states(cam)]


def ring(readers: int = 64, slots: int = 4, **options: Any) -> DataBlockProducer:
    return DataBlockProducer.create(
        "cam", dtype="u1", shape=4, slots=slots, readers=readers, **options
    )


def attach(reader: str | None = "r", policy: str | None = "every") -> DataBlockConsumer:
    return DataBlockConsumer.attach("cam", policy=policy, reader=reader)


@pytest.fixture
def cam() -> Iterator[DataBlockProducer]:
    with ring() as producer:
        yield producer


# Names


@pytest.mark.parametrize("name", ["r", "a b/c", "Zähler-文", "x" * 63, "文" * 21], ids=ascii)
def test_a_reader_may_be_called_so(cam: DataBlockProducer, name: str) -> None:
    with attach(name) as view:
        assert view.reader == name
        assert names(cam) == [name]
        with pytest.raises(AdmissionRefused):
            attach(name)
    assert names(cam) == []


@pytest.mark.parametrize("name", ["", "x" * 64, "文" * 22, "a\0b", "n\t", "\udc80"], ids=ascii)
def test_a_reader_cannot_be_called_so(cam: DataBlockProducer, name: str) -> None:
    with pytest.raises(InvalidName, match=r"cannot be the name of a reader.*\n.*1 to 63 bytes"):
        attach(name)
    assert states(cam) == []


@pytest.mark.parametrize("program", ["文" * 50, "x" * 300, "b\udc80d", "", "-c"], ids=ascii)
def test_a_reader_without_a_name_gets_one_that_fits(
    cam: DataBlockProducer, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/home/me/{program}"])
    with attach(None, "block") as view, attach(None, "drop_oldest") as other:
        assert view.reader is not None
        assert names(cam) == [view.reader, other.reader]
        assert view.reader != other.reader


def test_a_program_without_arguments_gets_a_name_too(
    cam: DataBlockProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [])  # as embedded interpreters have it
    with attach(None, "block") as view:
        assert names(cam) == [view.reader]


def test_names_are_a_channels_own(cam: DataBlockProducer) -> None:
    with (
        DataBlockProducer.create("other", 4) as other,
        attach("r"),
        DataBlockConsumer.attach("other", reader="r"),
    ):
        assert names(cam) == names(other) == ["r"]


HOLDER = """
view = DataBlockConsumer.attach("cam", policy="every", reader=sys.argv[1])
say("ready")
wait_for_go()
"""


def test_a_name_that_is_taken_is_refused_with_its_holders_pid(
    start: Start, cam: DataBlockProducer
) -> None:
    child = start(HOLDER, "r")
    child.expect("ready")
    with pytest.raises(
        AdmissionRefused, match=rf"'cam' has a reader 'r' already \(pid {child.pid}\)"
    ):
        attach("r")
    assert [(r.name, r.pid, r.is_alive) for r in states(cam)] == [("r", child.pid, True)]
    child.kill()
    assert [(r.name, r.is_alive) for r in states(cam)] == [("r", False)]
    with attach("r") as view:
        publish(cam, 1)
        assert view.read(0).frame_id == 0
        assert [r.is_alive for r in states(cam)] == [True]


# Places


def test_when_all_places_are_taken_the_next_one_is_refused(start: Start) -> None:
    with ring(readers=3) as cam:
        child = start(HOLDER, "c")
        child.expect("ready")
        with attach("a") as a, attach("b"):
            for policy in ("latest", "every", "block", "drop_newest", "drop_oldest"):
                with pytest.raises(
                    AdmissionRefused,
                    match=r"no place for reader 'd': all 3 .*pyhub info cam.*\n.*readers=",
                ):
                    attach("d", policy)
            with attach(None) as unnamed:  # who needs no place is not refused
                publish(cam, 1)
                assert unnamed.read(0).frame_id == 0
            a.close()
            with attach("d"):
                assert sorted(names(cam)) == ["b", "c", "d"]
                child.kill()
                with attach("e"):  # the dead one's place
                    assert sorted(names(cam)) == ["b", "d", "e"]
        assert states(cam) == []


@pytest.mark.parametrize("n", [1, 65, 130])
def test_as_many_readers_are_admitted_as_there_are_places(n: int) -> None:
    with ring(readers=n, slots=8, patience_s=LONG_S) as cam:
        views = [attach(f"r{k}", ("every", "latest", "block")[k % 3]) for k in range(n)]
        assert names(cam) == [f"r{k}" for k in range(n)]
        with pytest.raises(AdmissionRefused):
            attach("more")
        for number in range(8):
            assert publish(cam, number)
        with views[-1].pin(0) as pinned:  # by the last place as well as by the first
            for view in views:
                while view.lag_frames:
                    view.read(0)
            assert publish(cam, 8)
            assert (pinned.data == pinned.flex["n"]).all()
        order = random.Random(n)
        order.shuffle(views)
        for k, view in enumerate(views):
            view.close()
            assert len(states(cam)) == n - 1 - k
        with attach("again"):
            assert names(cam) == ["again"]


@pytest.mark.parametrize("n", [0, -1, 4097])
def test_a_channel_cannot_have_so_many_places(n: int) -> None:
    with pytest.raises(CapacityError, match=r"readers=.*1 to 4096"):
        ring(readers=n)
    with ring(readers=4096), attach("r") as view:
        assert view.reader == "r"


# Patience


@pytest.mark.parametrize("policy", ["block", "drop_newest"])
def test_a_channel_without_patience_admits_nobody_that_asks_for_it(policy: str) -> None:
    with ring(patience_s=0) as cam:
        with pytest.raises(
            AdmissionRefused,
            match=rf"waits for no reader.*patience_s=0.*'{policy}'.*\n.*drop_oldest",
        ):
            attach("r", policy)
        assert states(cam) == []
        for other in ("latest", "every", "drop_oldest"):
            with attach("r", other) as view:
                assert all(publish(cam, n) for n in range(9))
                assert view.read(0).n_lost > 0
        assert cam.header().n_dropped == 0


@pytest.mark.parametrize("patience_s", [-1.0, math.nan, math.inf, 1e9])
def test_patience_must_be_a_time(patience_s: float) -> None:
    with pytest.raises(CapacityError, match="patience_s="):
        ring(patience_s=patience_s)


# Restarts


@pytest.mark.parametrize("policy", ["latest", "every", "block", "drop_newest", "drop_oldest"])
def test_a_reader_is_admitted_again_by_the_next_producer(policy: str) -> None:
    with ring() as cam, attach("r", policy) as view:
        for n in range(3):
            publish(cam, n)
        while view.lag_frames:
            view.read(0)
        cam.close()
        for restart in range(1, 4):
            with ring(patience_s=LONG_S) as cam:
                publish(cam, 100)
                publish(cam, 101)
                frame = view.read(10)
                assert (frame.is_restart, view.n_restarts) == (True, restart)
                assert (frame.frame_id, frame.n_lost) == ((1, 1) if policy == "latest" else (0, 0))
                assert [(r.name, r.policy, r.n_lost) for r in states(cam)] == [
                    ("r", policy, view.n_lost)
                ]
                if policy != "latest":
                    assert view.read(0).flex == {"n": 101}
                assert view.n_read + view.n_lost == 3 + 2 * restart


EAGER = """
say("ready")
wait_for_go()
cam = DataBlockProducer.create("cam", dtype="u1", shape=4, slots=4, patience_s=600)
for n in range(500):
    cam.put(np.full(4, n % 256, "u1"), {"n": n})
say("put", cam.header().n_dropped)
wait_for_go()
"""


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_who_waits_for_a_producer_counts_what_came_before_its_admission(
    start: Start, policy: str
) -> None:
    """The producer publishes at full speed from its first moment on."""
    child = start(EAGER)
    child.expect("ready")
    with DataBlockConsumer("cam", policy=policy, reader="r") as view:
        thread = threading.Thread(target=view.wait_for_producer, args=(60,))
        thread.start()
        child.go()
        thread.join()
        first = view.read(60)
        assert first.frame_id == first.n_lost  # none of it is forgotten
        while view.n_read + view.n_lost < 500:
            frame = view.read(60)
            assert frame.flex["n"] == frame.frame_id == view.n_read + view.n_lost - 1
            assert policy != "block" or frame.n_lost == 0
        assert child.expect("put") == "0"
        child.go()
        child.end()


def test_a_place_refused_after_a_restart_is_asked_for_again() -> None:
    """Until then, nothing that the reader says of itself changes."""
    with ring(readers=1) as cam, attach("r") as view:
        publish(cam, 1)
        assert view.read(0).frame_id == 0
        cam.close()
        with DataBlockProducer.create("cam", dtype="f8", shape=(7, 3), readers=1) as cam:
            cam.put(np.ones((7, 3)))
            with DataBlockConsumer.attach("cam", reader="first"):
                for _ in range(3):
                    with pytest.raises(AdmissionRefused, match="no place for reader 'r'"):
                        view.read(0.2)
                assert (view.n_restarts, view.shape, str(view.dtype)) == (0, (4,), "uint8")
                assert (view.n_read, view.n_lost) == (1, 0)
            cam.put(np.full((7, 3), 2.0))
            frame = view.read(0.2)
            assert (frame.frame_id, frame.is_restart, frame.n_lost) == (0, True, 0)
            assert (view.n_restarts, view.shape, str(view.dtype)) == (1, (7, 3), "float64")
            assert view.read(0).data[0, 0] == 2.0


def test_a_restart_without_patience_is_told_to_who_blocks() -> None:
    with ring() as cam, attach("r", "block") as view:
        publish(cam, 1)
        view.read(0)
        cam.close()
        with ring(patience_s=0) as cam, pytest.raises(AdmissionRefused, match="patience_s=0"):
            view.read(0.2)
        with ring(patience_s=1) as cam:
            publish(cam, 2)
            assert view.read(10).flex == {"n": 2}


def test_a_channel_that_closes_during_the_admission_is_waited_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between finding the segment and its table; the next producer is as good."""
    attach_table = ReaderTable.attach
    cams = [ring()]

    class Closing:
        @staticmethod
        def attach(*arguments: Any) -> ReaderTable:
            if len(cams) == 1:
                cams[0].close()
                cams.append(ring())
            return attach_table(*arguments)

    monkeypatch.setattr(reader_module, "ReaderTable", Closing)
    with DataBlockConsumer.attach("cam", reader="r", timeout_s=10) as view:
        assert names(cams[1]) == ["r"]
        publish(cams[1], 1)
        assert view.read(0).frame_id == 0
        assert view.n_restarts == 0
    cams[1].close()


def test_a_channel_that_closes_during_the_admission_and_stays_away_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attach_table = ReaderTable.attach
    cam = ring()

    class Closing:
        @staticmethod
        def attach(*arguments: Any) -> ReaderTable:
            cam.close()
            return attach_table(*arguments)

    monkeypatch.setattr(reader_module, "ReaderTable", Closing)
    with pytest.raises(SegmentNotFound, match="there is no channel 'cam'"):
        attach("r")


def test_a_table_that_was_deleted_is_named(cam: DataBlockProducer) -> None:
    [table] = reader_tables()
    table.unlink()
    with pytest.raises(SegmentNotFound, match=r"readers|cam"):
        attach("r")


# Comings and goings under full speed

STREAM = """
import select
cam = DataBlockProducer.create("cam", dtype="u1", shape=64, slots=8, readers=4, patience_s=600)
say("up")
n = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(10):
        n += cam.put(np.full(64, n % 256, "u1"), {"n": n})
header = cam.header()
say("put", n, header.structured_buffer_version, header.n_dropped)
wait_for_go()
say("alone", all(cam.put(np.zeros(64, "u1")) for _ in range(100)), cam.header().n_dropped)
wait_for_go()
"""


@pytest.mark.parametrize("n_times", [150, pytest.param(2000, marks=pytest.mark.verify)])
def test_readers_may_come_and_go_at_full_speed(start: Start, n_times: int) -> None:
    """Seed 1: exact counts for each, and no place is left taken."""
    order = random.Random(1)
    child = start(STREAM)
    child.expect("up")
    with DataBlockConsumer.attach("cam") as outsider:
        outsider.read(10)
        for number in range(n_times):
            policy = order.choice(["latest", "every", "block", "drop_oldest"])
            with attach(f"r{number % 7}", policy) as view:
                first: Frame | None = None
                last: Frame | None = None
                for _ in range(order.randrange(6)):
                    if order.random() < 0.3:
                        with view.pin(60) as pinned:
                            assert (pinned.data == pinned.flex["n"] % 256).all()
                            last = pinned
                    else:
                        last = view.read(60)
                        assert (last.data == last.flex["n"] % 256).all()
                    first = first or last
                    assert last.flex["n"] == last.version - 1
                    if policy == "block":
                        assert last.n_lost == 0
                if first is not None and last is not None:
                    since = last.version - first.version + 1
                    assert view.n_read + view.n_lost == since + first.n_lost
        child.go()
        n, version, n_dropped = map(int, child.expect("put").split())
        assert (n, n_dropped) == (version, 0)
        block = outsider._attachment.block
        assert block is not None
        assert admitted_readers(block, str(lease_path())) == []
    child.go()
    assert child.expect("alone") == "True 0"
    child.go()
    child.end()


# Forks readers on demand, which come and go until they are killed.
NURSERY = """
import random
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    pid = os.fork()
    if pid:
        say("up", pid)
        continue
    order = random.Random(line)
    while True:
        policy = order.choice(["block", "every"])
        view = DataBlockConsumer.attach("cam", policy=policy, reader=line.strip())
        held = [view.pin(60) for _ in range(order.randrange(3))]
        view.read(60)
        view.close()
"""


@pytest.mark.parametrize("n_kills", [30, pytest.param(1000, marks=pytest.mark.verify)])
def test_readers_killed_while_they_come_and_go_leave_nothing(start: Start, n_kills: int) -> None:
    """Seed 2. Wherever they are: in the admission, with pins, on their way out."""
    child, nursery = start(STREAM), start(NURSERY)
    child.expect("up")
    order = random.Random(2)
    for number in range(n_kills):
        nursery.process.stdin.write(f"r{number % 5}\n")
        nursery.process.stdin.flush()
        pid = int(nursery.expect("up"))
        time.sleep(order.random() * 0.06)
        os.kill(pid, signal.SIGKILL)
        while os.path.exists(f"/proc/{pid}"):  # it takes a moment to die
            time.sleep(0.001)
    nursery.kill()
    with DataBlockConsumer.attach("cam", policy="block", reader="last") as view:
        for _ in range(200):
            assert view.read(60).n_lost == 0
        block = view._attachment.block
        assert block is not None
        assert [r.name for r in admitted_readers(block, str(lease_path()))] == ["last"]
    child.go()
    n, version, n_dropped = map(int, child.expect("put").split())
    assert (n, n_dropped) == (version, 0)
    child.go()
    assert child.expect("alone") == "True 0"
    child.go()
    child.end()


def test_threads_may_come_and_go_at_once(cam: DataBlockProducer) -> None:
    failures: list[BaseException] = []

    def work(which: int) -> None:
        try:
            for n in range(30):
                with attach(f"t{which}-{n % 2}") as view:
                    assert view.reader == f"t{which}-{n % 2}"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        publish(cam, 1)
    for thread in threads:
        thread.join()
    assert failures == []
    assert states(cam) == []
    assert cam.header().n_dropped == 0


# The lock of the table, held by another process

LOCKER = """
import ctypes, mmap, struct
from pyhub.names import reader_tables
[path] = reader_tables()
with open(path, "r+b") as file:
    table = mmap.mmap(file.fileno(), 0)
control = struct.unpack_from("<Q", table, 280)[0] - 384  # before the places: readers.h
lock = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(table, control)))
libc = ctypes.CDLL(None)
assert libc.pthread_mutex_lock(lock) == 0
say("locked")
wait_for_go()
assert libc.pthread_mutex_unlock(lock) == 0
say("unlocked")
wait_for_go()
os._exit(0)
"""


def test_an_admission_that_has_to_wait_says_for_what(
    start: Start, cam: DataBlockProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_ADMISSION_S", 0.05)
    with attach("early") as early:
        locker = start(LOCKER)
        locker.expect("locked")
        begun = time.monotonic()
        with pytest.raises(WaitTimeout, match=r"another reader comes or goes.*\n.*pyhub info cam"):
            attach("r")
        assert time.monotonic() - begun >= 0.05
        # Who is there already reads, pins and leaves; the producer goes on.
        for n in range(10):
            assert publish(cam, n)
            with early.pin(0) as frame:
                assert frame.frame_id == n
    assert states(cam) == []
    locker.go()
    locker.expect("unlocked")
    with attach("r"):
        assert names(cam) == ["r"]
    locker.go()
    locker.end()


def test_an_admission_goes_on_when_the_one_before_it_dies(
    start: Start, cam: DataBlockProducer
) -> None:
    locker = start(LOCKER)
    locker.expect("locked")
    views: list[DataBlockConsumer] = []
    thread = threading.Thread(target=lambda: views.append(attach("r")))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    locker.kill()
    thread.join()
    assert names(cam) == ["r"]
    views[0].close()


INTERRUPTED = """
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    say("waiting")
    {wait}
except KeyboardInterrupt:
    say("interrupted")
wait_for_go()
with DataBlockConsumer.attach("cam", policy="block", reader="r") as view:
    say("then", view.read(10).flex["n"])
"""

WAITS = {
    "admission": "DataBlockConsumer.attach('cam', policy='block', reader='r')",
    "producer": "DataBlockConsumer.attach('none', policy='block', reader='r', timeout_s=None)",
    "again": "view = DataBlockConsumer('none', policy='block'); view.wait_for_producer(1e6)",
}


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_an_admission(start: Start, cam: DataBlockProducer, wait: str) -> None:
    locker = start(LOCKER)
    locker.expect("locked")
    child = start(INTERRUPTED.format(wait=WAITS[wait]))
    child.expect("waiting")
    child.interrupt()
    child.expect("interrupted")
    assert states(cam) == []
    locker.go()
    locker.expect("unlocked")
    publish(cam, 1)
    child.go()
    assert child.expect("then") == "1"
    child.end()
    locker.go()
    locker.end()
    assert states(cam) == []


def test_a_reader_that_is_closed_while_it_is_admitted_keeps_no_place(
    cam: DataBlockProducer,
) -> None:
    for n in range(30):
        view = DataBlockConsumer("cam", policy="block", reader=f"r{n}")
        waiting = threading.Thread(target=_wait_for_producer, args=(view,))
        waiting.start()
        time.sleep(0.0002 * n)  # into the admission, sooner or later
        view.close()
        waiting.join()
        assert names(cam) == []


def _wait_for_producer(view: DataBlockConsumer) -> None:
    with contextlib.suppress(ChannelClosed, SegmentNotFound):
        view.wait_for_producer(1.0)


def test_a_table_that_is_gone_is_not_told_as_a_missing_channel(cam: DataBlockProducer) -> None:
    Path(companion(segment_path("cam"))).unlink()
    with pytest.raises(SegmentNotFound, match="no table of readers any more"):
        ReaderTable.attach(cam._block, lease_path())
