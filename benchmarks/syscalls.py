"""Which system calls does each operation make? Counted by strace.

Nothing on the path of a frame may call the kernel when nobody has to be woken
up: that is checked. What waking up costs, and looking when nothing is new, is
shown.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from budget import add_require_exact
from instructions import NotMeasured
from operations import OPERATIONS, PARTS, WITH_OTHERS, per_operation

__all__ = ["count_all", "describe", "talkative"]

_PROGRAM = Path(__file__).with_name("operations.py")
# "12345 write(1, ..."; the second half of a call that another thread's line
# came in between is "12345 <... futex resumed>", and is not counted again.
_LINE = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)( resumed>)?")
_NEW_THREAD = re.compile(r"= (\d+)$")
# How operations with a reader let it fall asleep.
_PAUSE = "clock_nanosleep"
# Not on the path of a frame: with nothing new, a reader looks whether its
# producer is still there.
_MAY_CALL = {"look_again", "read_in_vain", "read_header"}
# Less than one in a hundred operations: an allocator or a clock now and then.
_RARE = 0.01
# libzmq looks for subscriptions once a millisecond, by the clock: the slower the machine,
# the fewer operations lie in between.
_RARE_OF = {"put_with_hub": 0.1}

Calls = dict[str, float]  # system call: how many an operation makes


def count_all() -> dict[str, tuple[Calls, Calls]]:
    """Trace every operation; for each, calls of its own thread and of all others.

    Raises
    ------
    NotMeasured
        strace is not installed.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise NotMeasured("not measured: install strace (Debian: apt install strace)")
    names = [*OPERATIONS, *WITH_OTHERS]
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory, "trace")
        command = [strace, "-f", "-qq", "-o", str(trace), sys.executable, str(_PROGRAM), *names]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the operations failed under strace:\n{done.stderr}")
        own, others = _split(trace.read_text().splitlines())
    if len(own) != PARTS * len(names) + 1:
        raise RuntimeError(f"{len(own) - 1} marks for {len(names)} operations")
    return {
        name: (_one(name, own, PARTS * number), _one(name, others, PARTS * number))
        for number, name in enumerate(names)
    }


def _split(lines: list[str]) -> tuple[list[Counter[str]], list[Counter[str]]]:
    """Count the calls between the marks: of the first process, of its other threads.

    Other processes (the broker, a reader) are left out: their calls are not
    the producer's.
    """
    main = lines[0].split()[0]
    threads = {main}
    starting: set[str] = set()  # threads that are in the middle of starting another
    own, others = [Counter[str]()], [Counter[str]()]
    for line in lines:
        match = _LINE.match(line)
        if match is None or match[1] not in threads:
            continue
        thread, call, resumed = match.groups()
        if "CLONE_THREAD" in line:
            starting.add(thread)
        if thread in starting and call.startswith("clone") and (new := _NEW_THREAD.search(line)):
            threads.add(new[1])
            starting.remove(thread)
        if resumed:
            continue
        if thread == main and call == "getppid":
            own.append(Counter())
            others.append(Counter())
        else:
            (own if thread == main else others)[-1][call] += 1
    return own, others


def _one(name: str, parts: list[Counter[str]], start: int) -> Calls:
    few, many = parts[start + 1], parts[start + 2]
    calls = {call: per_operation(few[call], many[call]) for call in few | many if call != _PAUSE}
    rare = _RARE_OF.get(name, _RARE)
    return {call: n for call, n in sorted(calls.items()) if n >= rare}


def describe(calls: Calls) -> str:
    """Return the calls as a line to print."""
    return ", ".join(f"{n:.2f} {call}" for call, n in calls.items()) or "none"


def talkative(counts: dict[str, tuple[Calls, Calls]]) -> list[str]:
    """Name the operations that may make no system call and do."""
    return [name for name in OPERATIONS if name in counts.keys() - _MAY_CALL and counts[name][0]]


def main() -> int:
    """Print the calls of each operation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="fail if an operation makes one that may make none"
    )
    add_require_exact(parser, "strace")
    options = parser.parse_args()
    try:
        counts = count_all()
    except NotMeasured as error:
        print(error, file=sys.stderr)
        return 1 if options.require_exact else 0
    for name, (own, others) in counts.items():
        print(f"{name:<40} {describe(own)}")
        if others:
            print(f"{'  other threads':<40} {describe(others)}")
    wrong = talkative(counts)
    if wrong:
        print(f"\nshould make no system call: {', '.join(wrong)}")
    return 1 if wrong and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
