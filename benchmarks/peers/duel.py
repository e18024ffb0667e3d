"""Two ways in one pair of processes, frame by frame in turns.

What the machine does meanwhile meets both alike, so that their ratio means
something where neither number does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import shutil
import tempfile
import time
from array import array
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import adapters
import numpy as np
from leftovers import Leftovers
from link import Place, Receiver, Sender, Way

__all__ = ["latencies_us"]

_WARM_UP = 100
_ANSWER_S = 60.0
_FIRST = 1 << 32  # of the frames that count

# Module and name of a way.
Named = tuple[str, str]


def latencies_us(
    ways: list[Named], n_words: int, n_frames: int, rate_hz: float, *, pinned: bool = True
) -> list[Any]:
    """Return for each way the one-way latencies of `n_frames`, in us.

    Parameters
    ----------
    ways
        Each with its adapter's module and its name.
    rate_hz
        Of each way; between two frames of one comes one of each other. Less where the
        receiver is behind: each frame is sent when the one before has been taken.
    pinned
        Whether each process keeps to a core of its own. Otherwise the kernel now
        and then wakes a sleeper on the sender's core, one of the ways more often
        than the other, and neither is the faster for it. Not for ways that have
        threads of their own.
    """
    cores: list[int | None] = [None, None]
    if pinned and len(os.sched_getaffinity(0)) > 1:
        cores = sorted(os.sched_getaffinity(0))[:2]
    with _places(ways, n_words) as (context, leftovers, places):
        pipes, children = [], []
        n_taken = context.Value("q", _FIRST, lock=False)
        for target, core in zip((_send, _receive), cores, strict=True):
            here, there = context.Pipe()
            child = context.Process(
                target=target,
                args=(there, core, ways, places, n_words, n_frames, rate_hz, n_taken),
                daemon=True,
            )
            child.start()
            there.close()
            pipes.append(here)
            children.append(child)
        try:
            sender, receiver = pipes
            _hear(receiver, "the receivers met no sender")
            sender.send("go")
            raw = _hear(receiver, "the frames did not come", 60 + 3 * n_frames / rate_hz)
            for child in children:
                leftovers.note(child.pid)
            sender.send("end")
            receiver.send("end")
            for child in children:
                child.join(10)
        finally:
            for child in children:
                child.kill()
                child.join(5)
    return [np.frombuffer(each, np.int64)[_WARM_UP:] / 1000 for each in raw]


@contextlib.contextmanager
def _places(ways: list[Named], n_words: int) -> Iterator[tuple[Any, Leftovers, list[Place]]]:
    context = multiprocessing.get_context("spawn")
    leftovers = Leftovers()
    names = [f"phbduel{secrets.token_hex(5)}" for _ in ways]
    with contextlib.ExitStack() as ends:
        places = []
        for name, (module, way_name) in zip(names, ways, strict=True):
            directory = tempfile.mkdtemp(prefix="phb-duel-")
            ends.callback(shutil.rmtree, directory, ignore_errors=True)
            share = _way(module, way_name).share
            shared = None if share is None else share(context, n_words, 1)
            places.append(Place(directory, name, shared))
        ends.callback(leftovers.remove, names)
        yield context, leftovers, places


def _hear(pipe: Connection, what: str, timeout_s: float = _ANSWER_S) -> Any:
    if not pipe.poll(timeout_s):
        raise TimeoutError(f"{what} within {timeout_s:.0f} s")
    said = pipe.recv()
    if isinstance(said, Exception):
        raise said
    return said


def _keep_to(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


def _way(module: str, name: str) -> Way:
    return adapters.load(module)[name]


def _send(
    pipe: Connection,
    core: int | None,
    ways: list[Named],
    places: list[Place],
    n_words: int,
    n_frames: int,
    rate_hz: float,
    n_taken: Any,
) -> None:
    _keep_to(core)
    with contextlib.ExitStack() as stack:
        senders: list[Sender] = [
            stack.enter_context(contextlib.closing(_way(*way).sender(place, n_words, 1)))
            for way, place in zip(ways, places, strict=True)
        ]
        period_s = 1 / (rate_hz * len(ways))
        number = 1
        while not pipe.poll():  # what is sent before a receiver is there may be lost
            for sender in senders:
                time.sleep(0.002)
                sender.send(number)
            number += 1
        due = time.perf_counter()
        n_sent = _FIRST
        for number in range(_FIRST, _FIRST + _WARM_UP + n_frames):
            for sender in senders:
                due += period_s
                time.sleep(max(due - time.perf_counter(), 0))
                while n_taken.value < n_sent and not pipe.poll():  # it is behind: no queue
                    time.sleep(period_s / 10)
                    due = time.perf_counter()
                sender.send(number)
                n_sent += 1
        pipe.recv()
        _hear(pipe, "nobody ends this")


def _receive(
    pipe: Connection,
    core: int | None,
    ways: list[Named],
    places: list[Place],
    n_words: int,
    n_frames: int,
    rate_hz: float,
    n_taken: Any,
) -> None:
    _keep_to(core)
    try:
        with contextlib.ExitStack() as stack:
            receivers: list[Receiver] = [
                stack.enter_context(contextlib.closing(_way(*way).receiver(place, n_words, 0)))
                for way, place in zip(ways, places, strict=True)
            ]
            for receiver in receivers:
                _take(receiver, 1)
            pipe.send("here")
            taken = [array("q") for _ in ways]
            for number in range(_FIRST, _FIRST + _WARM_UP + n_frames):
                for receiver, mine in zip(receivers, taken, strict=True):
                    mine.append(_take(receiver, number))
                    n_taken.value += 1
            pipe.send([mine.tobytes() for mine in taken])
            _hear(pipe, "nobody ends this")
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _take(receiver: Receiver, least: int) -> int:
    """Wait for the first frame that has the number `least` or more; how long it took, ns."""
    clock = time.perf_counter_ns
    deadline = time.monotonic() + _ANSWER_S
    while time.monotonic() < deadline:
        frame = receiver.receive(2.0)
        if frame is None:
            continue
        stamped_ns = int(frame[0])
        now_ns = clock()
        number, last = int(frame[1]), int(frame[-1])
        del frame  # its memory may be given back only when nobody refers to it
        if number >= least:
            if number != last or (least >= _FIRST and number != least):
                raise ValueError(f"frame {number:#x} to {last:#x} came instead of {least:#x}")
            return now_ns - stamped_ns
    raise TimeoutError(f"frame {least:#x} did not come")
