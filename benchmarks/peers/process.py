"""What a child process does: it holds one end of a link, or two, and reports.

Frames are numbered `stage << 32 | i`. In stage 0 they are sent until every
receiver has seen one; those of a later stage are measured, each against the
number that should come. A stage ends with frames numbered `END`, repeated
until the parent, told by all receivers, goes on: a peer may lose the first.
"""

from __future__ import annotations

import contextlib
import resource
import time
import traceback
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import adapters
from link import Place, Receiver, Sender

__all__ = ["END", "Flood", "Paced", "Received", "Sent", "answer", "ask", "receive", "send"]

END = (1 << 32) - 1
_IDLE_S = 0.2
_ANSWER_S = 20.0


@dataclass(frozen=True)
class Paced:
    """A stage of `n_frames`, each due at its time."""

    n_frames: int
    rate_hz: float


@dataclass(frozen=True)
class Flood:
    """A stage of as many frames as go into `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Sent:
    """What the sender says after a stage."""

    n_frames: int
    start_ns: int
    end_ns: int
    cpu_s: float
    pss_bytes: int


@dataclass(frozen=True)
class Received:
    """What a receiver says after a stage; latencies in ns, in order of arrival."""

    latencies: bytes
    n_repeated: int
    end_ns: int
    cpu_s: float
    pss_bytes: int


def send(pipe: Connection, module: str, name: str, place: Place, *counts: int) -> None:
    """Run the sending end until told to quit."""
    with _reporting(pipe):
        way = adapters.load(module)[name]
        n_words, n_receivers = counts
        with contextlib.closing(way.sender(place, n_words, n_receivers)) as sender:
            _send(pipe, sender)


def receive(pipe: Connection, module: str, name: str, place: Place, *counts: int) -> None:
    """Run a receiving end until told to quit."""
    with _reporting(pipe):
        way = adapters.load(module)[name]
        with contextlib.closing(way.receiver(place, *counts)) as receiver:
            _receive(pipe, receiver, way.may_repeat)


def ask(
    pipe: Connection, module: str, name: str, places: tuple[Place, Place], *counts: int
) -> None:
    """Send frames and wait for each to come back; report the round trips in ns."""
    with _reporting(pipe):
        n_words, n_frames, n_warm_up = counts
        way = adapters.load(module)[name]
        with (
            contextlib.closing(way.sender(places[0], n_words, 1)) as sender,
            contextlib.closing(way.receiver(places[1], n_words, 0)) as receiver,
        ):
            first = _settle(sender, receiver) + 1
            trips = array("q")
            for number in range(first, first + n_warm_up + n_frames):
                start = time.perf_counter_ns()
                sender.send(number)
                _await(receiver, number)
                trips.append(time.perf_counter_ns() - start)
            pipe.send(trips[n_warm_up:].tobytes())
            pipe.recv()


def answer(
    pipe: Connection, module: str, name: str, places: tuple[Place, Place], n_words: int
) -> None:
    """Send back the number of each frame that comes, until told to quit."""
    with _reporting(pipe):
        way = adapters.load(module)[name]
        with (
            contextlib.closing(way.receiver(places[0], n_words, 0)) as receiver,
            contextlib.closing(way.sender(places[1], n_words, 1)) as sender,
        ):
            while True:
                frame = receiver.receive(_IDLE_S)
                if frame is not None:
                    number = int(frame[-1])
                    del frame
                    sender.send(number)
                elif pipe.poll():
                    return


@contextlib.contextmanager
def _reporting(pipe: Connection) -> Any:
    """Hand an error to the parent instead of printing it."""
    try:
        yield
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        with contextlib.suppress(OSError):
            pipe.send(RuntimeError(f"{type(error).__name__}: {error} ({where})"))


def _send(pipe: Connection, sender: Sender) -> None:
    stage = 0
    number = 0
    while True:
        # Between stages, and until the receivers are there: repeat.
        while not pipe.poll():
            number += 1
            sender.send(number if stage == 0 else stage << 32 | END)
            time.sleep(0.01)
        order = pipe.recv()
        if order is None:
            return
        stage += 1
        cpu_s = _cpu_s()
        start_ns = time.perf_counter_ns()
        run = _paced if isinstance(order, Paced) else _flood
        n_frames = run(sender.send, stage << 32, order)
        end_ns = time.perf_counter_ns()
        cpu_s = _cpu_s() - cpu_s
        pipe.send(Sent(n_frames, start_ns, end_ns, cpu_s, _pss_bytes()))


def _paced(send: Callable[[int], None], first: int, order: Paced) -> int:
    start_ns = time.perf_counter_ns()
    period_ns = 1e9 / order.rate_hz
    for index in range(order.n_frames):
        ahead_ns = start_ns + index * period_ns - time.perf_counter_ns()
        if ahead_ns > 0:
            time.sleep(ahead_ns * 1e-9)
        send(first + index)
    return order.n_frames


def _flood(send: Callable[[int], None], first: int, order: Flood) -> int:
    clock = time.perf_counter_ns
    end_ns = clock() + int(order.seconds * 1e9)
    number = first
    while clock() < end_ns:
        send(number)
        number += 1
    return number - first


def _receive(pipe: Connection, receiver: Receiver, may_repeat: bool) -> None:
    clock = time.perf_counter_ns
    stage = 0
    expected = -1
    n_repeated = 0
    has_joined = False
    is_reported = True
    latencies = array("q")
    arrived_ns = 0
    cpu_s = 0.0
    while True:
        frame = receiver.receive(_IDLE_S)
        if frame is None:
            if pipe.poll():
                return
            continue
        stamped_ns = int(frame[0])
        now_ns = clock()
        number = int(frame[1])
        last = int(frame[-1])
        # Its memory may be given back only when nobody refers to it.
        del frame
        is_whole = getattr(receiver, "is_whole", None)
        if is_whole is not None and not is_whole():
            continue
        if number != last:
            raise ValueError(f"a torn frame: it begins with number {number}, ends with {last}")
        if number == expected:
            expected += 1
            latencies.append(now_ns - stamped_ns)
            arrived_ns = now_ns
            continue

        came_stage, index = number >> 32, number & END
        if came_stage < stage:
            raise ValueError(f"frame {number:#x} came in stage {stage}")
        if came_stage == 0:
            if not has_joined:
                has_joined = True
                pipe.send("joined")
            continue
        if came_stage > stage:
            stage, expected, n_repeated = came_stage, came_stage << 32, 0
            is_reported = False
            latencies = array("q")
            cpu_s = _cpu_s()
            arrived_ns = now_ns
        if index == END:
            if not is_reported:
                is_reported = True
                used_s = _cpu_s() - cpu_s
                raw = latencies.tobytes()
                pipe.send(Received(raw, n_repeated, arrived_ns, used_s, _pss_bytes()))
            elif pipe.poll():
                return
            continue
        if may_repeat and number == expected - 1:
            n_repeated += 1
            continue
        if number < expected:
            raise ValueError(f"frame {index} came again after frame {expected - 1 & END}")
        # Frames between were lost: the parent knows how many were sent.
        expected = number + 1
        latencies.append(now_ns - stamped_ns)
        arrived_ns = now_ns


def _settle(sender: Sender, receiver: Receiver) -> int:
    """Send until the first answer; return the number of the last that was sent."""
    for number in range(1, 100):
        sender.send(number)
        if receiver.receive(0.15) is not None:
            return number
    raise TimeoutError("the other process does not answer")


def _await(receiver: Receiver, number: int) -> None:
    deadline = time.monotonic() + _ANSWER_S
    while time.monotonic() < deadline:
        frame = receiver.receive(_IDLE_S)
        if frame is None:
            continue
        came = int(frame[1])
        last = int(frame[-1])
        del frame
        if came != last or came > number:
            raise ValueError(f"sent {number}, got {came} to {last}")
        if came == number:
            return
        # Otherwise a late answer from settling.
    raise TimeoutError(f"frame {number} did not come back within {_ANSWER_S:.0f} s")


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _pss_bytes() -> int:
    """Return this process's memory, with shared pages divided by who shares them."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
