"""Runs every way in turns, then writes the tables, a JSON file and pictures."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapters
import machine
from course import Course, run
from link import Way
from process import Flood, Paced
from rich.console import Console
from tables import grids, rich_table
from tally import Case, Record, Tally

__all__ = ["main"]

_BENCHMARKS = Path(__file__).parents[1]
_OUTPUT = _BENCHMARKS / "results" / "peers"
_DOCS = _BENCHMARKS.parent / "docs" / "benchmarks"

_SIZES = ["64B", "1MiB", "9MB"]
_UNITS = {"B": 1, "kB": 1000, "KiB": 1 << 10, "MB": 10**6, "MiB": 1 << 20, "GiB": 1 << 30}
_N_ROUND_TRIPS = 1000
_ROUND_TRIP_BYTES = 1 << 30
# A pace that the slowest peer keeps up with: 1 kHz, or 200 Hz for 1 MiB.
_PACE_HZ = 1000
_PACE_BYTES_PER_S = 200 << 20


def main() -> int:
    """Run, print, write."""
    options = _options()
    # As with Ctrl-C, what was made is removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 150, markup=False)
    start = time.monotonic()
    ways, missing = _ways()
    chosen = _choose(ways, options.ways)
    cases = [Case(size, count) for count in options.receivers for size in options.sizes]
    tally = Tally(options.reference or _reference(list(chosen)))
    _measure(tally, chosen, cases, options, lambda line: console.print(line, style="dim"))

    shown = {name: way for name, (_, way) in chosen.items()}
    result = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/peers/compare.py", *sys.argv[1:]]),
        "duration_s": round(time.monotonic() - start, 1),
        "machine": machine.describe(),
        "commit": machine.commit(),
        "python": sys.version.split()[0],
        "versions": adapters.distributions(),
        "missing": missing,
        **tally.as_json(),
    }
    tables = grids(tally, shown, cases, missing)
    for table in tables:
        console.print(rich_table(table), "")
    footer = (
        f"{machine.line()}, {result['date']}, commit {result['commit'] or 'unknown'}, "
        f"{options.repeats} repetitions"
    )
    console.print(footer)
    _write(options.output, result)
    text = f"# pyhub and its peers\n\n{footer}.\n\n{_versions(result)}\n\n"
    text += "\n".join(table.markdown() for table in tables)
    for directory in dict.fromkeys([options.output, *([_DOCS] if options.docs else [])]):
        directory.mkdir(parents=True, exist_ok=True)
        pictures = _draw(tally, shown, cases, directory, console)
        images = "".join(f"\n![{path.stem}]({path.name})\n" for path in pictures)
        (directory / "peers.md").write_text(text + images)
        console.print(f"written to {directory}")
    return 0 if any(record.measures for record in tally.records) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="pyhub beside its peers, in turns.")
    parser.add_argument("--ways", nargs="+", default=[], help="names of ways or of peers")
    parser.add_argument("--sizes", nargs="+", type=_size, help="of a frame, say 64B 1MiB 9MB")
    parser.add_argument("--receivers", nargs="+", type=int, help="numbers of them: 1 4")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="one short repetition")
    parser.add_argument("--reference", help="the way that ratios refer to")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="a directory")
    parser.add_argument("--docs", action="store_true", help="write to docs/benchmarks as well")
    options = parser.parse_args()
    quick = options.quick
    options.sizes = options.sizes or [_size(each) for each in (_SIZES[:2] if quick else _SIZES)]
    options.receivers = options.receivers or ([1] if quick else [1, 4])
    options.repeats = options.repeats or (1 if quick else 3)
    options.seconds = options.seconds or (0.2 if quick else 1.0)
    return options


def _size(text: str) -> int:
    """Return bytes, a multiple of 8."""
    found = re.fullmatch(r"(\d+)\s*(\w*)", text)
    if not found or (found[2] or "B") not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; say 64B, 1MiB or 9MB")
    return max(24, -(-int(found[1]) * _UNITS[found[2] or "B"] // 8) * 8)


def _ways() -> tuple[dict[str, tuple[str, Way]], list[str]]:
    """Return {name of a way: (adapter, way)}, and a line for each peer that is missing."""
    ways: dict[str, tuple[str, Way]] = {}
    missing = []
    for module in filter(adapters.is_here, adapters.PEERS):
        try:
            ways |= {name: (module, way) for name, way in adapters.load(module).items()}
        except (ImportError, OSError) as error:
            missing.append(f"{module}: not installed: {error}")
    return ways, missing


def _choose(ways: dict[str, tuple[str, Way]], names: list[str]) -> dict[str, tuple[str, Way]]:
    unknown = set(names) - set(ways) - {module for module, _ in ways.values()}
    if unknown:
        raise SystemExit(f"no way is called {', '.join(sorted(unknown))}; there are {list(ways)}")
    return {
        name: (module, way)
        for name, (module, way) in ways.items()
        if not names or name in names or module in names
    }


def _reference(names: list[str]) -> str:
    """Choose what the others are compared with: the floor, else plain pyzmq, else any."""
    floors = [name for name in names if name.startswith("floor")]
    spinning = [name for name in floors if "spin" in name]
    plain = [name for name in names if name == "pyzmq ipc, copy"]
    return (spinning or floors or plain or names)[0]


def _measure(
    tally: Tally,
    ways: dict[str, tuple[str, Way]],
    cases: list[Case],
    options: argparse.Namespace,
    tell: Callable[[str], None],
) -> None:
    """Every repetition takes every way once at each case, beginning with another."""
    order = list(ways)
    for repeat in range(options.repeats):
        for case in cases:
            course = _course(case, options.seconds, case == cases[0])
            for name in order:
                module, way = ways[name]
                if way.max_receivers is not None and case.n_receivers > way.max_receivers:
                    continue
                if tally.is_hopeless(name, case):
                    continue
                measures, error = run(module, way, course)
                tally.add(Record(repeat, name, case, measures, error))
                mark = f"failed: {error}" if error else ""
                where = f"{repeat + 1}/{options.repeats} {case.size} to {case.n_receivers}"
                tell(f"{where}, {name} {mark}")
            order = [*order[1:], *order[:1]]


def _course(case: Case, seconds: float, has_round_trips: bool) -> Course:
    rate_hz = min(_PACE_HZ, _PACE_BYTES_PER_S / case.n_bytes)
    # With the first 100 left out (or a fifth), but no fewer than fit into 2 s.
    n_frames = max(4, round(rate_hz * seconds * 1.1), min(50, round(2 * rate_hz)))
    n_round_trips = 0
    if has_round_trips:
        most = min(_N_ROUND_TRIPS, _ROUND_TRIP_BYTES // case.n_bytes)
        n_round_trips = max(5, round(most * min(1.0, seconds)))
    return Course(
        case.n_bytes // 8, case.n_receivers, Paced(n_frames, rate_hz), Flood(seconds), n_round_trips
    )


def _draw(
    tally: Tally, ways: dict[str, Way], cases: list[Case], directory: Path, console: Console
) -> list[Path]:
    try:
        from plots import draw
    except ImportError as error:
        console.print(f"no pictures: {error}. pip install 'pyhub[peers]'", style="bold yellow")
        return []
    return draw(tally, ways, cases, directory)


def _write(directory: Path, result: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    stamp = re.sub(r"[-:]", "", result["date"])[:15]
    (directory / f"{stamp}Z.json").write_text(json.dumps(result, indent=1) + "\n")


def _versions(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"Python {result['python']}, {versions}. `{result['command']}`"


if __name__ == "__main__":
    sys.exit(main())
