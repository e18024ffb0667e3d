"""Runs one way with one size of frame and one number of receivers; gives a Result."""

from __future__ import annotations

import contextlib
import multiprocessing
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from signal import Signals
from typing import Any

import numpy as np
import process
from leftovers import Leftovers
from link import Place, Way, depth
from process import Flood, Paced, Received, Sent

__all__ = ["Course", "Measures", "run"]

_WARM_UP = 100
_START_S = 30.0
_PATIENCE_S = 30.0
_SLOWEST_BYTES_PER_S = 50e6

Measures = dict[str, float]


@dataclass(frozen=True)
class Course:
    """What is measured: one size of frame, one number of receivers."""

    n_words: int
    n_receivers: int
    paced: Paced
    flood: Flood
    n_round_trips: int = 0

    @property
    def n_bytes(self) -> int:
        """The size of a frame."""
        return 8 * self.n_words


@dataclass
class _Children:
    """The processes of a course; each has a pipe to here."""

    # Started anew rather than forked: no child inherits another's threads,
    # sockets or memory, just as with programs that are started by hand.
    context: Any = field(default_factory=lambda: multiprocessing.get_context("spawn"))
    leftovers: Leftovers = field(default_factory=Leftovers)
    processes: list[Any] = field(default_factory=list)
    pipes: list[Connection] = field(default_factory=list)

    def start(self, target: Callable[..., None], *arguments: Any) -> Connection:
        """Start a process; it gets the other end of the pipe first."""
        here, there = self.context.Pipe()
        child = self.context.Process(target=target, args=(there, *arguments), daemon=True)
        child.start()
        there.close()
        self.processes.append(child)
        self.pipes.append(here)
        return here

    def hear(self, pipes: list[Connection], timeout_s: float, what: str) -> list[Any]:
        """Return what each of `pipes` says; raise what any process reports instead."""
        said: dict[Connection, Any] = {}
        deadline = time.monotonic() + timeout_s
        while len(said) < len(pipes):
            left_s = deadline - time.monotonic()
            silent = [pipe for pipe in self.pipes if pipe not in said]
            ready = wait(silent, left_s) if left_s > 0 else []
            if not ready:
                raise TimeoutError(f"{what}: no answer within {timeout_s:.0f} s")
            for pipe in ready:
                try:
                    message = pipe.recv()
                except EOFError:
                    raise RuntimeError(f"{what}: a process ended: {self._ends()}") from None
                if isinstance(message, Exception):
                    raise message
                said[pipe] = message
        return [said[pipe] for pipe in pipes]

    def quit(self, pipes: list[Connection]) -> None:
        """Ask the processes behind `pipes` to close their ends, and wait for it."""
        self._note()
        for pipe in pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for pipe in pipes:
            self.processes[self.pipes.index(pipe)].join(5.0)

    def kill(self) -> None:
        """End what still runs."""
        self._note()
        for child in self.processes:
            if child.is_alive():
                child.kill()
            child.join(5.0)
        for pipe in self.pipes:
            pipe.close()

    def _note(self) -> None:
        for child in self.processes:
            if child.is_alive():
                self.leftovers.note(child.pid)

    def _ends(self) -> str:
        ends = []
        for child in self.processes:
            child.join(0.5)
            if child.exitcode is not None:
                is_signal = child.exitcode < 0
                ends.append(Signals(-child.exitcode).name if is_signal else str(child.exitcode))
        return ", ".join(ends)


def run(module: str, way: Way, course: Course) -> tuple[Measures, str]:
    """Measure all that the course asks for; the error, if any, ends it early.

    Returns
    -------
    tuple
        What was measured until then, by name, and "" or what went wrong.
    """
    measures: Measures = {}
    try:
        _check_memory(course)
        with _surroundings(way, course, 1) as (children, places):
            measures |= _one_way(children, module, way, course, places[0])
        if course.n_round_trips:
            with _surroundings(way, course, 2) as (children, places):
                measures |= _round_trips(children, module, way, course, places)
    except Exception as error:  # whatever it is that a peer raises, the others go on
        text = str(error) if type(error) is RuntimeError else f"{type(error).__name__}: {error}"
        return measures, " ".join(text.split())[:300]
    return measures, ""


def _check_memory(course: Course) -> None:
    """Refuse what might not fit: a queue at the sender, one at each receiver, some frames."""
    needed = course.n_bytes * (depth(course.n_words) + 3) * (course.n_receivers + 1)
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            if needed > free:
                text = f"may need {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"
                raise RuntimeError(text)


@contextlib.contextmanager
def _surroundings(
    way: Way, course: Course, n_places: int
) -> Iterator[tuple[_Children, tuple[Place, ...]]]:
    """Make places to meet; at the end, whatever happened, nothing of them is left."""
    children = _Children()
    names = [f"phbpeer{secrets.token_hex(5)}" for _ in range(n_places)]
    # Each step is taken even if a signal ends the one before. Last things first.
    with contextlib.ExitStack() as ends:
        directory = tempfile.mkdtemp(prefix="phb-peer-")
        ends.callback(shutil.rmtree, directory, ignore_errors=True)
        ends.callback(children.leftovers.remove, names)
        ends.callback(children.kill)
        places = []
        for name in names:
            shared = None
            if way.share is not None:
                shared = way.share(children.context, course.n_words, course.n_receivers)
            places.append(Place(directory, name, shared))
        yield children, tuple(places)


def _one_way(children: _Children, module: str, way: Way, course: Course, place: Place) -> Measures:
    arguments = (module, way.name, place, course.n_words)
    sender = children.start(process.send, *arguments, course.n_receivers)
    receivers = [
        children.start(process.receive, *arguments, index) for index in range(course.n_receivers)
    ]
    children.hear(receivers, _START_S, "start")
    measures: Measures = {}
    for name, stage, duration_s in (
        ("paced", course.paced, course.paced.n_frames / course.paced.rate_hz),
        ("flood", course.flood, course.flood.seconds),
    ):
        sender.send(stage)
        patience_s = duration_s + _patience_s(course, 2 * depth(course.n_words))
        sent, *received = children.hear([sender, *receivers], patience_s, name)
        summary = _paced if name == "paced" else _flood
        summed = summary(course, sent, received)
        measures |= {f"{name}_{key}": value for key, value in summed.items()}
    # The sender first: it would wait for receivers that have gone.
    children.quit([sender])
    children.quit(receivers)
    return measures


def _paced(course: Course, sent: Sent, received: list[Received]) -> Measures:
    """Latency of all receivers together, CPU time per GB sent, memory."""
    latencies = [np.frombuffer(each.latencies, np.int64)[_warm_up(course) :] for each in received]
    together = np.concatenate(latencies) / 1000
    if not len(together):
        raise ValueError("no frame arrived at the given pace")
    p50, p99 = np.percentile(together, (50, 99))
    cpu_s = sent.cpu_s + sum(each.cpu_s for each in received)
    pss_bytes = sent.pss_bytes + sum(each.pss_bytes for each in received)
    return {
        "p50_us": float(p50),
        "p99_us": float(p99),
        "max_us": float(together.max()),
        "n_frames": float(len(together)),
        "lost_percent": _lost_percent(sent, received),
        "n_repeated": _n_repeated(received),
        "cpu_s_per_gb": cpu_s / (sent.n_frames * course.n_bytes) * 1e9,
        "cpu_us_per_frame": cpu_s / sent.n_frames * 1e6,
        "pss_mib": pss_bytes / 2**20,
    }


def _flood(course: Course, sent: Sent, received: list[Received]) -> Measures:
    """Frames per second, sent and received by each (the mean), CPU time per GB sent."""
    rates = [
        _n_frames(each) / max(each.end_ns - sent.start_ns, 1) * 1e9 if _n_frames(each) else 0.0
        for each in received
    ]
    cpu_s = sent.cpu_s + sum(each.cpu_s for each in received)
    received_hz = float(np.mean(rates))
    return {
        "sent_hz": sent.n_frames / (sent.end_ns - sent.start_ns) * 1e9,
        "received_hz": received_hz,
        "slowest_hz": min(rates),
        "gb_per_s": received_hz * course.n_bytes / 1e9,
        "lost_percent": _lost_percent(sent, received),
        "n_repeated": _n_repeated(received),
        "cpu_s_per_gb": cpu_s / (sent.n_frames * course.n_bytes) * 1e9,
    }


def _lost_percent(sent: Sent, received: list[Received]) -> float:
    n_due = sent.n_frames * len(received)
    n_came = sum(_n_frames(each) for each in received)
    return 100 * (n_due - n_came) / n_due


def _n_repeated(received: list[Received]) -> float:
    return float(sum(each.n_repeated for each in received))


def _n_frames(received: Received) -> int:
    return len(received.latencies) // 8


def _warm_up(course: Course) -> int:
    return min(_WARM_UP, course.paced.n_frames // 5)


def _patience_s(course: Course, n_frames: int) -> float:
    """Return how long to wait for a report while this many frames are still on their way."""
    return _PATIENCE_S + n_frames * course.n_bytes * course.n_receivers / _SLOWEST_BYTES_PER_S


def _round_trips(
    children: _Children, module: str, way: Way, course: Course, places: tuple[Place, ...]
) -> Measures:
    n_frames = course.n_round_trips
    arguments = (module, way.name, places, course.n_words)
    asker = children.start(process.ask, *arguments, n_frames, n_frames // 5)
    echo = children.start(process.answer, *arguments)
    patience_s = _START_S + _patience_s(course, n_frames)
    (raw,) = children.hear([asker], patience_s, "round trips")
    trips = np.frombuffer(raw, np.int64) / 1000
    children.quit([asker, echo])
    p50, p99 = np.percentile(trips, (50, 99))
    return {"round_trip_p50_us": float(p50), "round_trip_p99_us": float(p99)}
