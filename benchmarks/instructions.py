"""How many instructions does each operation take? The exact gate.

Counted by valgrind's callgrind, so the same on a busy machine as on an idle
one. With the same run come the calls of `malloc` and of Python's allocator.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from budget import Verdict, add_require_exact, judge, report_and_exit_code, update
from operations import OPERATIONS, PARTS, per_operation

__all__ = ["GAUGE", "Count", "NotMeasured", "count_all", "judge_all"]

GAUGE = "instructions"
TOLERANCE = 0.03
_PROGRAM = Path(__file__).with_name("operations.py")
_MALLOCS = {"malloc", "calloc", "realloc", "memalign", "posix_memalign", "aligned_alloc"}
_OBJECTS = {"_PyObject_Malloc", "_PyObject_Calloc", "_PyObject_Realloc"}


class Count(NamedTuple):
    """What one operation takes."""

    instructions: float
    mallocs: float  # blocks from the C library
    # Blocks from Python's allocator; its free lists come on top. None: not known,
    # as this Python was stripped of its symbols.
    objects: float | None

    def __str__(self) -> str:
        objects = "" if self.objects is None else f", {self.objects:.0f} objects"
        return f"{self.mallocs:.0f} malloc{objects}"


class NotMeasured(Exception):
    """The counting tool is not there."""


def count_all(names: Collection[str] = tuple(OPERATIONS), shift: int = 0) -> dict[str, Count]:
    """Run the operations under callgrind.

    Parameters
    ----------
    names
        Of the operations.
    shift
        Moves the program's addresses a little, if not 0.

    Raises
    ------
    NotMeasured
        valgrind is not installed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise NotMeasured("not measured: install valgrind (Debian: apt install valgrind)")
    with tempfile.TemporaryDirectory() as directory:
        dump = Path(directory, "dump")
        command = [
            valgrind,
            "--tool=callgrind",
            "--dump-before=getppid",
            "--compress-strings=no",
            f"--callgrind-out-file={dump}",
            sys.executable,
            str(_PROGRAM),
            *names,
        ]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYHUB_BENCH_SHIFT": "." * shift}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the operations failed under callgrind:\n{done.stderr}")
        # The last dump, at the end of the program, has no number.
        n_dumps = len(list(Path(directory).glob("dump.*")))
        if n_dumps != PARTS * len(names):
            raise RuntimeError(f"{n_dumps} dumps for {len(names)} operations")
        parts = [_read(Path(f"{dump}.{number}")) for number in range(1, n_dumps + 1)]
    counts = {}
    for number, name in enumerate(names):
        _, few, many = parts[PARTS * number : PARTS * (number + 1)]
        one = [per_operation(a, b) for a, b in zip(few, many, strict=True)]
        # No operation does without objects.
        counts[name] = Count(one[0], one[1], one[2] or None)
    return counts


def judge_all(counts: dict[str, Count]) -> list[Verdict]:
    """Set counts beside their budgets; those that are over it are counted once more.

    The interpreter's method cache goes by addresses: once in a while an
    unlucky pair of names costs a look-up in each call, up to 2 %, which is
    gone when addresses differ.
    """
    measured = {name: round(count.instructions) for name, count in counts.items()}
    verdicts = judge(GAUGE, measured, TOLERANCE)
    over = [verdict.name for verdict in verdicts if verdict.is_over and verdict.budget]
    if over:
        for name, count in count_all(over, shift=1234).items():
            measured[name] = min(measured[name], round(count.instructions))
    return judge(GAUGE, measured, TOLERANCE)


def _read(dump: Path) -> tuple[int, int, int]:
    """Return instructions, mallocs and objects of one part."""
    text = dump.read_text()
    totals = re.search(r"^totals: (\d+)", text, re.MULTILINE)
    assert totals is not None, f"{dump} has no totals"
    calls: Counter[str] = Counter()
    for function, n in re.findall(r"^cfn=(\w+)[^\n]*\ncalls=(\d+)", text, re.MULTILINE):
        calls[function] += int(n)
    mallocs, objects = (sum(calls[name] for name in names) for names in (_MALLOCS, _OBJECTS))
    return int(totals[1]), mallocs, objects


def main() -> int:
    """Count, and print, store or judge the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="store the counts in budget.toml")
    parser.add_argument("--check", action="store_true", help="fail if a count is over budget")
    add_require_exact(parser, "valgrind or a budget for this Python")
    options = parser.parse_args()
    try:
        counts = count_all()
    except NotMeasured as error:
        print(error, file=sys.stderr)
        return 1 if options.require_exact or options.update else 0
    if options.update:
        update(GAUGE, {name: round(count.instructions) for name, count in counts.items()})
    code = report_and_exit_code(GAUGE, judge_all(counts), options.require_exact)
    print("\nper operation: calls of malloc, blocks from Python's allocator")
    for name, count in counts.items():
        print(f"{name:<40} {count}")
    return code if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
