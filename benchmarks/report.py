"""All benchmarks in one table, and in one file in benchmarks/results: `make bench`.

Wall times are for people: they belong to this machine at this moment. Ratios
and instructions are what is gated; here they are shown, and fail nothing
unless --check is given.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import instructions
import ratios
import syscalls
import zmq
from budget import Verdict, add_require_exact, key, stored, versions
from instructions import NotMeasured
from rich.console import Console
from rich.table import Table

import pyhub

_HERE = Path(__file__).parent
_RESULTS = _HERE / "results"


def main() -> int:
    """Run everything that was not left out, print one table, write one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a gate is not met")
    add_require_exact(parser, "valgrind, strace or a budget for this Python")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    start = time.monotonic()
    _RESULTS.mkdir(exist_ok=True)
    now = dt.datetime.now(dt.UTC)
    target = _RESULTS / f"{now:%Y%m%dT%H%M%SZ}.json"

    console.print("wall times (pytest-benchmark) ...", style="dim")
    walls = _wall_times(_RESULTS / f"{target.stem}-pytest-benchmark.json")
    console.print("ratios ...", style="dim")
    loose = ratios.judge_all(ratios.measure_all())
    console.print("instructions (callgrind) and system calls (strace) ...", style="dim")
    missing = []
    exact: list[Verdict] = []
    counts: dict[str, instructions.Count] = {}
    calls: dict[str, tuple[syscalls.Calls, syscalls.Calls]] = {}
    try:
        counts = instructions.count_all()
        exact = instructions.judge_all(counts)
    except NotMeasured as error:
        missing.append(f"instructions: {error}")
    try:
        calls = syscalls.count_all()
    except NotMeasured as error:
        missing.append(f"system calls: {error}")

    for gauge in (ratios.GAUGE, instructions.GAUGE):
        if not stored(gauge)[0]:
            missing.append(f"{gauge}: not gated: there is no budget for {key()}")

    console.print(_table(walls, loose, exact, counts, calls))
    for line in missing:
        console.print(line, style="bold yellow")
    result = {
        "date": now.isoformat(timespec="seconds"),
        "command": ["python", *sys.orig_argv[1:]],
        "duration_s": round(time.monotonic() - start, 1),
        "machine": _machine(),
        "versions": {"pyhub": pyhub.__version__, **versions(), "libzmq": zmq.zmq_version()},
        "commit": _commit(),
        "wall_times_s": walls,
        "ratios": [asdict(verdict) for verdict in loose],
        "instructions": [asdict(verdict) for verdict in exact],
        "allocations": {name: count._asdict() for name, count in counts.items()},
        "system_calls": calls,
        "not_measured": missing,
    }
    target.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"{_machine_line()}, {key()}, {result['duration_s']} s")
    console.print(f"written to {target.relative_to(_HERE.parent)}")
    wrong = [verdict.name for verdict in (*loose, *exact) if verdict.is_over]
    if wrong:
        console.print(f"not within the budget: {', '.join(wrong)}", style="bold red")
    talkative = syscalls.talkative(calls)
    if talkative:
        console.print(f"should make no system call: {', '.join(talkative)}", style="bold red")
    if missing and options.require_exact:
        return 1
    return 1 if (wrong or talkative) and options.check else 0


def _wall_times(target: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Run pytest-benchmark; {group: {side: {median, ...}}} in seconds."""
    command = [
        sys.executable, "-m", "pytest", "-q", str(_HERE), f"--benchmark-json={target}"
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"a benchmark failed:\n{done.stdout}\n{done.stderr}")
    groups: dict[str, dict[str, dict[str, float]]] = {}
    report = json.loads(target.read_text())
    for benchmark in report["benchmarks"]:
        del benchmark["stats"]["data"]  # every single round: 80 MB of them
    target.write_text(json.dumps(report, indent=1))
    for benchmark in report["benchmarks"]:
        parameters = benchmark["params"]
        side = str(parameters.get("side") or parameters["link"])
        stats = {name: benchmark["stats"][name] for name in ("min", "median", "iqr", "rounds")}
        groups.setdefault(benchmark["group"], {})[side] = stats
    return groups


def _table(
    walls: dict[str, dict[str, dict[str, float]]],
    loose: list[Verdict],
    exact: list[Verdict],
    counts: dict[str, instructions.Count],
    calls: dict[str, tuple[syscalls.Calls, syscalls.Calls]],
) -> Table:
    table = Table()
    table.add_column("what", overflow="fold")
    for heading in ("measured", "beside it", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict, remarks")

    _heading(table, "wall time, median", "reference", "ratio")
    for group, sides in walls.items():
        # The reference comes last; a group may hold more than one way of pyhub's.
        *ours, reference = _reference_last(sides)
        base = sides[reference]["median"]
        for side in ours:
            median = sides[side]["median"]
            label = group if len(ours) == 1 else f"{group}: {side}"
            table.add_row(
                label, _time(median), f"{_time(base)} {reference}", f"{median / base:.2f}x"
            )
    _heading(table, "ratio to the reference, in turns", "budget", "")
    for verdict in loose:
        _verdict_row(table, verdict, "")
    if exact:
        _heading(table, "instructions per operation", "budget", "")
    for verdict in exact:
        count = counts[verdict.name]
        _verdict_row(table, verdict, str(count))
    if calls:
        _heading(table, "system calls per operation", "", "")
    silent = [name for name, (own, _) in calls.items() if not own]
    if silent:
        table.add_row(f"{len(silent)} of {len(calls)} operations", "none", "", "", "")
    for name, (own, others) in calls.items():
        if own:
            table.add_row(name, f"{sum(own.values()):.2f}", "", "", syscalls.describe(own))
        if others:
            total = f"{sum(others.values()):.2f}"
            table.add_row("  in other threads", total, "", "", syscalls.describe(others))
    return table


def _heading(table: Table, text: str, beside: str, change: str) -> None:
    table.add_section()
    table.add_row(text, "", beside, change, "", style="bold")


def _verdict_row(table: Table, verdict: Verdict, remarks: str) -> None:
    budget = "" if verdict.budget is None else f"{verdict.budget:,}"
    table.add_row(
        verdict.name,
        verdict.number,
        budget,
        verdict.percent,
        "; ".join(filter(None, (verdict.word, remarks))),
        style="red" if verdict.is_over else None,
    )


_REFERENCES = ("numpy", "msgpack", "pyzmq", "pipe")


def _reference_last(sides: dict[str, dict[str, float]]) -> list[str]:
    return sorted(sides, key=lambda side: side in _REFERENCES)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:,.2f} µs"


def _machine() -> dict[str, str | int]:
    """Say what kind of machine this is, without its name."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "architecture": platform.machine(),
        "kernel": platform.release().partition("-")[0],
        "libc": "-".join(platform.libc_ver()),
    }


def _machine_line() -> str:
    machine = _machine()
    return f"{machine['cores']} cores {machine['cpu']}, Linux {machine['kernel']}"


def _commit() -> str:
    """Return what was measured: the commit, and whether files differ from it."""
    command: list[Any] = ["git", "-C", _HERE, "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
