"""How does the cost of a hand-over grow: with frames, readers, channels, slots?

    python benchmarks/growth.py                # some 3 minutes; pictures in results/growth
    python benchmarks/growth.py --quick        # some 5 s: fewer points
    python benchmarks/growth.py --docs         # to docs/benchmarks as well

Each question is a file of its own, `growth_*.py`, which says what is measured
and checks that it was done.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import json
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from growth_channels import measure_channels
from growth_readers import measure_readers
from growth_size import measure_sizes
from growth_slots import measure_slots
from growth_timing import Answer, Effort
from rich.console import Console
from surroundings import own_directories

import pyhub

# What the machine is, and how a table looks.
sys.path.append(str(Path(__file__).parent / "peers"))

import machine
from tables import Grid, rich_table

_BENCHMARKS = Path(__file__).parent
_OUTPUT = _BENCHMARKS / "results" / "growth"
_DOCS = _BENCHMARKS.parent / "docs" / "benchmarks"
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

_FULL = Effort(
    seconds=1.0,
    n_passes=7,
    sizes=[64, 4 * _KIB, 64 * _KIB, _MIB, 9 * 10**6, 64 * _MIB, 256 * _MIB, _GIB],
    readers=[0, 1, 2, 4, 8, 16, 32, 64],
    channels=[1, 10, 100, 1000],
    slots=[1, 4, 16, 64, 256, 1024, 4096],
)
_QUICK = Effort(
    seconds=0.1,
    n_passes=2,
    sizes=[64, 64 * _KIB, 9 * 10**6],
    readers=[0, 1, 4],
    channels=[1, 10, 100],
    slots=[1, 16, 256],
)
_QUESTIONS: list[Callable[[Effort], Answer]] = [
    measure_sizes,
    measure_readers,
    measure_channels,
    measure_slots,
]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="How does the cost of a hand-over grow?")
    parser.add_argument("--quick", action="store_true", help="fewer points, and shorter")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="a directory")
    parser.add_argument("--docs", action="store_true", help="write to docs/benchmarks as well")
    options = parser.parse_args()
    # As with Ctrl-C, what was made is removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 150, markup=False)
    start = time.monotonic()
    commit, build = machine.commit(), _build_ns()
    answers = []
    with own_directories():
        gc.disable()
        for measure in _QUESTIONS:
            answer = measure(_QUICK if options.quick else _FULL)
            answers.append(answer)
            gc.collect()
            console.print(rich_table(_grid(answer)), *answer.left_out, "", sep="\n")
    facts: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/growth.py", *sys.argv[1:]]),
        "duration_s": round(time.monotonic() - start, 1),
        "machine": machine.describe(),
        "commit": commit,
        "was_rebuilt": _build_ns() != build,
        "python": sys.version.split()[0],
        "versions": {name: metadata.version(name) for name in ("pyhub", "numpy", "matplotlib")},
    }
    footer = f"{machine.line()}, {facts['date']}, commit {commit or 'unknown'}"
    if facts["was_rebuilt"]:
        footer += "; pyhub was changed while this was measured: do it again"
    console.print(f"{footer}, {facts['duration_s']} s")
    is_documented = options.docs and not facts["was_rebuilt"]
    for directory in dict.fromkeys([options.output, *([_DOCS] if is_documented else [])]):
        _write(directory, facts, footer, answers)
        console.print(f"written to {directory}")
    return 1 if facts["was_rebuilt"] else 0


def _build_ns() -> int:
    """Return when pyhub last changed: readers import it later than this process."""
    package = Path(pyhub.__file__).parent
    files = [*package.rglob("*.so"), *package.rglob("*.py")]
    return max(path.stat().st_mtime_ns for path in files)


def _grid(answer: Answer) -> Grid:
    """Lay an answer out as a table."""
    rows = [
        [row.label, *(_text(row.values.get(measure)) for measure in answer.measures)]
        for row in answer.rows
    ]
    return Grid(answer.title, answer.caption, [answer.grows, *answer.measures.values()], rows)


def _text(value: float | None) -> str:
    """Return the value with three digits, or as many as it has before the point."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:#.3g}"


def _write(directory: Path, facts: dict[str, Any], footer: str, answers: list[Answer]) -> None:
    """Write the pictures and the tables; and the JSON file, if it is not for the documentation."""
    from growth_plots import draw

    directory.mkdir(parents=True, exist_ok=True)
    if directory != _DOCS:
        stamp = re.sub(r"[-:]", "", facts["date"])[:15]
        result = facts | {"answers": [asdict(answer) for answer in answers]}
        (directory / f"{stamp}Z.json").write_text(json.dumps(result, indent=1) + "\n")
    pictures = {path.stem.removeprefix("growth-"): path for path in draw(answers, directory)}
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    text = "# How the cost of a hand-over grows\n\n"
    text += f"{footer}.\n\nPython {facts['python']}, {versions}. `{facts['command']}`\n"
    for answer in answers:
        left_out = "".join(f"\nNot measured: {line}\n" for line in answer.left_out)
        picture = pictures[answer.name]
        text += f"\n{_grid(answer).markdown()}{left_out}\n![{answer.title}]({picture.name})\n"
    (directory / "growth.md").write_text(text)


if __name__ == "__main__":
    sys.exit(main())
