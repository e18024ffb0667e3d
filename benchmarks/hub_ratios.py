"""What does a command cost beside the bare sockets that it needs at least? And state, events?

The round trip of a command that does nothing, by way of the broker, beside
bare sockets with as many processes, and with one less; and of a request that
the broker answers itself, beside the latter. They take turns, call by call; a
row is the median of the repetitions' ratios, with the least and the largest.
What has no reference of the same kind is recorded: how soon the last of 50
watchers has a change of the state, events a second, registrations.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import itertools
import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from hub_partners import partner, payloads, way_to_ask
from rich.console import Console
from rich.table import Table
from surroundings import own_directories

import pyhub
from pyhub.hub import protocol
from pyhub.hub.client.events import publication

_HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(_HERE / "peers"))

import machine  # noqa: E402

__all__ = ["TARGETS", "events", "fan_out", "registrations", "round_trips"]

# What goes through the hub beside bare sockets: at most so many times what these take.
# Only those that are compared take turns: more of them keep the broker awake for the next.
TARGETS: dict[str, dict[str, float | None]] = {
    "command": {"forwarded": 1.5, "direct": None},
    "request": {"direct": 1.5},
}
# With processors as they are, and kept awake: what rousing them takes is most of the rest.
_STATES = ("", ", processors awake")
_RESULTS = _HERE / "results"
_N_PROCESSES = 5  # that watch, with 10 hubs each
_N_EVENTS = 5_000  # a feed holds 10,000


def round_trips(kinds: Sequence[str], n_calls: int) -> dict[str, list[float]]:
    """Return what each call took, µs, of each way; they take turns."""
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        ways = {kind: stack.enter_context(way_to_ask(kind)) for kind in kinds}
        for payload in itertools.islice(itertools.cycle(payloads()), n_calls):
            for kind, ask in ways.items():
                began = time.perf_counter()
                answer = ask(payload)
                times[kind].append(1e6 * (time.perf_counter() - began))
                assert answer == payload, f"{kind}: another answer came back"
    return times


def fan_out(n_sets: int) -> list[float]:
    """Return how long after `set` began the last of 50 hubs had each value, ms."""
    times = []
    with ExitStack() as stack:
        hub = stack.enter_context(pyhub.MessageHub())
        hub.state.delete("bench/value")  # of the repetition before
        watchers = [
            stack.enter_context(partner("watchers", "bench/value")) for _ in range(_N_PROCESSES)
        ]
        for value in range(n_sets):
            began = time.monotonic_ns()
            hub.state["bench/value"] = value
            # They check that none of them missed a value.
            last = max(int(child.stdout.readline()) for child in watchers if child.stdout)
            times.append(1e-6 * (last - began))
    return times


def events(is_waiting: bool) -> tuple[float, int]:
    """Return events a second from one program to another, and how many were lost.

    `is_waiting`: each is published when the broker has the one before, as
    `MessageHub.publish` does; else as a log's handler does it.
    """
    with pyhub.MessageHub() as hub:
        connection = hub._connection
        with partner("listener", "bench/*", _N_EVENTS) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("go\n")
            child.stdin.flush()
            began = time.monotonic_ns()
            for number in range(_N_EVENTS):
                if is_waiting:
                    hub.publish("bench/event", number)
                else:
                    body = publication("bench/event", number, "info", keep=False)
                    connection.tell(body, is_news=False)
            ended, n_lost = map(int, child.stdout.readline().split())
    return _N_EVENTS / (1e-9 * (ended - began)), n_lost


def registrations(n_channels: int = 10_000) -> float:
    """Return how long it takes to tell the broker of so many channels, s.

    By three programs, as one may have 4,096. Of the channels nothing is made
    but the message: shared memory is not what is asked for here.
    """
    with ExitStack() as stack:
        hubs = [stack.enter_context(pyhub.MessageHub()) for _ in range(3)]
        channels = [_channel(number) for number in range(n_channels)]
        began = time.perf_counter()
        waiting = [
            hubs[number % len(hubs)]._connection.begin(protocol.Register(channel))
            for number, channel in enumerate(channels)
        ]
        assert all(answer.wait(60) for answer in waiting)
        replies = [answer.result() for answer in waiting]
        took_s = time.perf_counter() - began
        assert all(isinstance(reply, protocol.Registered) for reply in replies)
        assert len(hubs[0].channels()) == n_channels
    return took_s


def _channel(number: int) -> protocol.ChannelInfo:
    return protocol.ChannelInfo(
        f"channel{number:05}", "datablock", "<u2", (512, 1028), 8, f"{number:016x}", "here", 1
    )


def main() -> int:
    """Measure, print, store; with --check fail if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1000, help="of each way in a repetition")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120, markup=False)
    trips: dict[tuple[str, str, str], list[float]] = {}  # what, beside it, in which state
    figures: dict[str, list[float]] = {
        "set until the last of 50 watchers has it, ms": [],
        "events/s, each waited for": [],
        "events/s, not waited for": [],
        "events lost": [],
        "10,000 registrations, s": [],
    }
    with own_directories():
        for number in range(options.repeats):
            console.print(f"repetition {number + 1} of {options.repeats}", style="dim")
            for state in _STATES:
                with pyhub.cpus_awake() if state else contextlib.nullcontext(True) as is_so:
                    for kind, others in TARGETS.items() if is_so else ():
                        times = round_trips([kind, *others], options.calls)
                        for each, taken in times.items():
                            trips.setdefault((kind, each, state), []).append(
                                statistics.median(taken)
                            )
            spread = fan_out(max(options.calls // 5, 10))
            waited, not_waited = events(True), events(False)
            found = [statistics.median(spread), waited[0], not_waited[0],
                     waited[1] + not_waited[1], registrations()]  # fmt: skip
            for values, value in zip(figures.values(), found, strict=True):
                values.append(value)

    rows = [
        row
        for state in _STATES
        for kind, others in TARGETS.items()
        if (kind, kind, state) in trips
        for row in _rows(kind, others, state, trips)
    ]
    rows += [_row(what, "", values) for what, values in figures.items()]
    table = Table("what", "beside", "target", "median", "least to largest", "")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("what", "beside", "target", "median")),
                      f"{row['least']} to {row['largest']}", str(row["verdict"]))  # fmt: skip
    console.print(table)
    date = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    console.print(f"{machine.line()}, {date}, commit {machine.commit()}")
    _RESULTS.mkdir(exist_ok=True)
    command = shlex.join(["python", "benchmarks/hub_ratios.py", *sys.argv[1:]])
    stored = {"date": date, "command": command, "machine": machine.describe(),
              "commit": machine.commit(), "rows": rows}  # fmt: skip
    (_RESULTS / "hub.json").write_text(json.dumps(stored, indent=1) + "\n")
    is_missed = any(row["verdict"] == "MISSED" for row in rows)
    return 1 if options.check and is_missed else 0


def _rows(
    kind: str,
    others: dict[str, float | None],
    state: str,
    trips: dict[tuple[str, str, str], list[float]],
) -> Iterator[dict[str, object]]:
    for each in (kind, *others):
        yield _row(f"{each}, round trip{state}, µs", "", trips[kind, each, state])
    for other, limit in others.items():
        pairs = zip(trips[kind, kind, state], trips[kind, other, state], strict=True)
        yield _row(f"{kind}{state}", other, [mine / its for mine, its in pairs], limit)


def _row(
    what: str, beside: str, values: list[float], limit: float | None = None
) -> dict[str, object]:
    median = statistics.median(values)
    verdict = "" if limit is None else "met" if median <= limit else "MISSED"
    return {
        "what": what,
        "beside": beside,
        "target": "" if limit is None else f"≤ {limit:g}",
        "median": _figure(median),
        "least": _figure(min(values)),
        "largest": _figure(max(values)),
        "verdict": verdict,
    }


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
