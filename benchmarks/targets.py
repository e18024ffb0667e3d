"""Are the targets met? pyhub beside the floor and its peers, in ratios of one run.

Latencies are the medians of one pair of processes in which a frame of either
way comes in turn (peers/duel.py); rates are of runs of each way in turn. A row
is the median of the repetitions' ratios, with the least and the largest.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import datetime as dt
import functools
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

_HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(_HERE), str(_HERE / "peers")]

import adapters  # noqa: E402
import machine  # noqa: E402
import ratios  # noqa: E402
from course import Course, run  # noqa: E402
from duel import Named, latencies_us  # noqa: E402
from process import Flood, Paced  # noqa: E402
from surroundings import own_directories  # noqa: E402

import pyhub  # noqa: E402

__all__ = ["TARGETS", "Repetition", "Target"]

_RESULTS = _HERE / "results"
_WORDS = {"64 B": 8, "9 MB": 1_125_000}
# Frames of each way, and how many a second: what the slower one keeps up with.
_PACE = {"64 B": (1000, 1000.0), "9 MB": (300, 60.0)}
_N_IMPORTS = 9


class Repetition:
    """One repetition: each pair is measured when it is first asked for."""

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._say = say
        self._rates: dict[str, float] = {}

    def slower(self, ours: str, theirs: str, size: str, awake: bool = False) -> float:
        """Return how many times as long a frame takes from its time stamp to the reader."""
        return 1 / self.faster(ours, theirs, size, awake)

    @functools.cache  # noqa: B019  the repetition does not outlive its run
    def faster(self, ours: str, theirs: str, size: str, awake: bool = False) -> float:
        """Return how many times as long it takes the other way; for both, processors `awake`."""
        self._say(f"{ours} beside {theirs}, {size}{_AWAKE if awake else ''}")
        pinned = _PYZMQ not in (ours, theirs)  # ZeroMQ has threads of its own
        ways = [_named(ours), _named(theirs)]
        with pyhub.cpus_awake() if awake else contextlib.nullcontext():
            both = latencies_us(ways, _WORDS[size], *_PACE[size], pinned=pinned)
        mine, other = (float(np.median(us)) for us in both)
        self._say(f"    {mine:.2f} us, {other:.2f} us")
        return other / mine

    def more(self, ours: str, theirs: str) -> float:
        """Return how many times as many messages of 64 B a second arrive."""
        return self._rate_hz(ours) / self._rate_hz(theirs)

    def _rate_hz(self, name: str) -> float:
        if name not in self._rates:
            module, _ = _named(name)
            course = Course(8, 1, Paced(100, 1000.0), Flood(self._seconds))
            measures, error = run(module, adapters.load(module)[name], course)
            if error:
                raise RuntimeError(f"{name}: {error}")
            self._rates[name] = measures["flood_received_hz"]
            self._say(f"{name}: {self._rates[name]:,.0f} messages/s")
        return self._rates[name]

    def pair(self, name: str) -> float:
        """Return a ratio of ratios.py, in this process."""
        self._say(name)
        with own_directories(), ratios.PAIRS[name]() as pair:
            return ratios.measure_once(pair)

    @functools.cache  # noqa: B019
    def large(self, what: str) -> float:
        """Return a figure of a channel of 1 GiB: attaching, ms; or its first lap."""
        self._say("a channel of 1 GiB")
        figures = {}
        for prefault in (False, True):
            with own_directories():
                figures |= _gib(prefault)
        figures["first lap"] = figures["lap True"] / figures["lap False"]
        return figures[what]

    def importing(self, what: str) -> float:
        """Return how many times as long as numpy's and zmq's the import of `what` takes."""
        self._say("import")
        compileall.compile_dir(Path(pyhub.__file__).parent, quiet=2)  # as an installation does
        codes = (f"import {what}", "import numpy, zmq")
        turns = [[_start_s(code) for code in codes] for _ in range(_N_IMPORTS)]
        return statistics.median(ours / theirs for ours, theirs in turns)


@dataclass(frozen=True)
class Target:
    """One row: what is to be at most, or at least, so much; None: shown, and no target."""

    what: str
    beside: str
    limit: float | None
    is_most: bool
    measure: Callable[[Repetition], float]

    @property
    def text(self) -> str:
        """The limit in words."""
        return "" if self.limit is None else f"{'≤' if self.is_most else '≥'} {self.limit:g}"

    def verdict(self, value: float) -> str:
        """Say whether `value` keeps the limit."""
        if self.limit is None:
            return ""
        is_met = value <= self.limit if self.is_most else value >= self.limit
        return "met" if is_met else "MISSED"


_SPIN, _FUTEX, _MESSAGE = "pyhub, spin", "pyhub, futex", "pyhub, notification"
_FLOORS = {_SPIN: "floor, spinning", _FUTEX: "floor, futex"}
_BARE = {_SPIN: "floor, spinning, keeps arrays", _FUTEX: "floor, futex, keeps arrays"}
_ICEORYX2 = {_SPIN: "iceoryx2, polling", _FUTEX: "iceoryx2, event"}
_PYZMQ = "pyzmq ipc, copy"
_AWAKE = ", processors awake"


def _latency(way: str, other: str, size: str, limit: float | None, awake: bool = False) -> Target:
    what = f"{size}: {way}{_AWAKE if awake else ''}"
    return Target(what, other, limit, True, lambda r: r.slower(way, other, size, awake))


def _speed(way: str, other: str, size: str, limit: float | None, awake: bool = False) -> Target:
    what = f"{size}: {way}{_AWAKE if awake else ''}, times faster"
    return Target(what, other, limit, False, lambda r: r.faster(way, other, size, awake))


def _rate(way: str, other: str, limit: float | None) -> Target:
    return Target(f"messages/s: {way}", other, limit, False, lambda r: r.more(way, other))


TARGETS = [
    _latency(_SPIN, _FLOORS[_SPIN], "64 B", 1.3),
    _latency(_SPIN, _BARE[_SPIN], "64 B", None),
    _speed(_SPIN, _ICEORYX2[_SPIN], "64 B", 2.5),
    _speed(_BARE[_SPIN], _ICEORYX2[_SPIN], "64 B", None),  # what nothing safe can do
    _latency(_FUTEX, _FLOORS[_FUTEX], "64 B", 1.15),
    _latency(_FUTEX, _BARE[_FUTEX], "64 B", None),
    _speed(_FUTEX, _ICEORYX2[_FUTEX], "64 B", 1.7),
    _speed(_BARE[_FUTEX], _ICEORYX2[_FUTEX], "64 B", None),
    _latency(_MESSAGE, _PYZMQ, "64 B", 1.2),
    # What the kernel takes to rouse a processor hides the ways themselves.
    _latency(_FUTEX, _FLOORS[_FUTEX], "64 B", 1.15, awake=True),
    _speed(_FUTEX, _ICEORYX2[_FUTEX], "64 B", 1.7, awake=True),
    _latency(_MESSAGE, _PYZMQ, "64 B", 1.2, awake=True),
    _latency(_SPIN, _FLOORS[_SPIN], "9 MB", 1.2),
    _latency(_FUTEX, _FLOORS[_FUTEX], "9 MB", 1.2),
    _speed(_SPIN, _PYZMQ, "9 MB", 45),
    _speed(_FUTEX, _PYZMQ, "9 MB", 45),
    Target("9 MB: read(out=)", "numpy.copyto", 1.15, True, lambda r: r.pair("read_9MB_by_numpy")),
    *(
        target
        for way in (_SPIN, _FUTEX)
        for target in (
            _rate(way, _FLOORS[way], 0.85),
            _rate(way, _BARE[way], None),
            _rate(way, _ICEORYX2[way], 1.7),
        )
    ),
    _rate("pyhub, spin, block", _FLOORS[_SPIN], None),
    _rate("pyhub, spin, block", _ICEORYX2[_SPIN], None),
    Target("attach to 1 GiB, ms", "", 1.0, True, lambda r: r.large("attach")),
    Target("first lap of 1 GiB, prefaulted", "not prefaulted", None, True,
           lambda r: r.large("first lap")),
    Target("import pyhub", "import numpy, zmq", 1.3, True, lambda r: r.importing("pyhub")),
    Target(
        "... and its MessageHub", "import numpy, zmq", None, True,
        lambda r: r.importing("pyhub; pyhub.MessageHub"),
    ),
]  # fmt: skip


def _named(name: str) -> Named:
    module = {"pyhub": "hub", "pyzmq ipc": "pyzmq"}.get(name.partition(",")[0])
    return module or name.partition(",")[0], name


def _gib(prefault: bool) -> dict[str, float]:
    """Return what a channel of 1 GiB takes: to attach to, ms, and to write over once, s."""
    with pyhub.DataBlockProducer.create(
        "gib", dtype="u1", shape=(1 << 30,), slots=1, prefault=prefault
    ) as producer:
        began = time.perf_counter()
        pyhub.DataBlockConsumer.attach("gib", wait="spin").close()
        attached = time.perf_counter()
        with producer.publish() as slot:
            slot.data[::4096] = 1
        done = time.perf_counter()
    return {"attach": 1e3 * (attached - began), f"lap {prefault}": done - attached}


def _start_s(code: str) -> float:
    began = time.perf_counter()
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"{code} failed"
    return time.perf_counter() - began


def main() -> int:
    """Measure, print, store; with --check fail if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run at full speed")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows that have this in them")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120, markup=False)
    chosen = [t for t in TARGETS if options.only in f"{t.what} {t.beside}"]
    with pyhub.cpus_awake() as is_possible:
        if not is_possible:
            console.print("no row with processors awake: that takes /dev/cpu_dma_latency")
            chosen = [t for t in chosen if _AWAKE not in t.what]
    values: dict[Target, list[float]] = {target: [] for target in chosen}
    for number in range(options.repeats):
        console.print(f"repetition {number + 1} of {options.repeats}", style="bold")
        repetition = Repetition(options.seconds, lambda line: console.print(line, style="dim"))
        for target in chosen:
            values[target].append(target.measure(repetition))

    table = Table("what", "beside", "target", "median", "least to largest", "")
    rows = []
    for target, found in values.items():
        median = statistics.median(found)
        row = (target.what, target.beside, target.text, f"{median:.2f}",
               f"{min(found):.2f} to {max(found):.2f}", target.verdict(median))  # fmt: skip
        table.add_row(*row, style="red" if row[-1] == "MISSED" else None)
        rows.append({"what": target.what, "beside": target.beside, "target": target.text,
                     "ratios": found, "verdict": row[-1]})  # fmt: skip
    console.print(table)
    date = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    console.print(f"{machine.line()}, {date}, commit {machine.commit()}")
    _RESULTS.mkdir(exist_ok=True)
    command = shlex.join(["python", "benchmarks/targets.py", *sys.argv[1:]])
    stored = {"date": date, "command": command, "machine": machine.describe(),
              "commit": machine.commit(), "versions": adapters.distributions(),
              "rows": rows}  # fmt: skip
    (_RESULTS / "targets.json").write_text(json.dumps(stored, indent=1) + "\n")
    is_missed = any(row["verdict"] == "MISSED" for row in rows)
    return 1 if options.check and is_missed else 0


if __name__ == "__main__":
    sys.exit(main())
