"""Nobody who sleeps on the commit word is left asleep, and nobody else costs a system call."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = "sleepers.c"
N_ROUNDS = 1_000
KILL_EVERY = 20  # rounds
N_FRAMES = 200
WATCHDOG_S = 100


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("spin_ns", [0, 20_000])
def test_no_sleeper_misses_a_publish(
    build: Any, run: Any, shm: Path, seed: int, spin_ns: int
) -> None:
    met = run(build(PROGRAM), shm, "rounds", seed, N_ROUNDS, spin_ns, KILL_EVERY)
    print(met)
    assert met["missed"] == 0
    assert met["killed"] > 0
    assert min(met["published"], met["woken"]) > N_ROUNDS  # or it shows nothing
    assert met["wakes"] <= met["published"]


@pytest.mark.verify
@pytest.mark.timeout(600)
@pytest.mark.parametrize("spin_ns", [0, 20_000])
def test_no_sleeper_misses_one_of_many_publishes(
    build: Any, run: Any, shm: Path, spin_ns: int
) -> None:
    program = build(PROGRAM)
    met = run(program, shm, "rounds", 3, 100_000, spin_ns, KILL_EVERY, watchdog_s=580)
    print(met)
    assert met["missed"] == 0


def test_who_has_seen_a_publish_does_not_hide_who_has_not(build: Any, run: Any, shm: Path) -> None:
    """A second reader sleeps on the new commit before its producer looks who sleeps."""
    assert run(build(PROGRAM), shm, "hidden")["missed"] == 0


# Negative controls: with one line of a header broken, some are missed.
AWAIT = "    while ((int64_t)(seen - said) > 0 && !phb_swap64(awaited, &said, seen)) {"
IS_AWAITED = "    return (int64_t)(phb_load64(&db->readers.control->awaited) - seen) >= 0;"
WAKE = "        phb_futex_wake(phb_low_half(&db->control->commit));\n"


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        pytest.param(WAKE, "", id="no-wake"),
        pytest.param(AWAIT, "    phb_store64(awaited, seen);\n    while (0) {", id="plain-store"),
        pytest.param(IS_AWAITED, IS_AWAITED.replace(">= 0", "== 0"), id="equal-only"),
        pytest.param(IS_AWAITED, IS_AWAITED.replace(">= 0", "> 0"), id="new-commit"),
    ],
)
def test_it_shows_who_was_missed(
    build: Any, run: Any, break_header: Any, shm: Path, line: str, broken: str
) -> None:
    program = build(PROGRAM, "-Wno-unused", include=break_header(line, broken))
    met = run(program, shm, "rounds", 1, N_ROUNDS, 0, KILL_EVERY)
    print(met)
    assert met["missed"] > 0


def test_the_reader_that_is_hidden_shows(
    build: Any, run: Any, break_header: Any, shm: Path
) -> None:
    equal = break_header(IS_AWAITED, IS_AWAITED.replace(">= 0", "== 0"))
    assert run(build(PROGRAM, include=equal), shm, "hidden")["missed"] == 1


# --- What it costs a producer --------------------------------------------

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed: apt install strace"
)
Readers = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def readers(build: Any, shm: Path) -> Iterator[Readers]:
    """Start a channel with two readers that spin (-1) or sleep; some die in their sleep."""
    started: list[subprocess.Popen[str]] = []

    def start(spin_ns: int, n_killed: int = 0) -> subprocess.Popen[str]:
        command = [build(PROGRAM), shm, "readers", spin_ns, n_killed]
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready 1\n"
        return child

    yield start
    for child in started:
        child.communicate(timeout=WATCHDOG_S)
        assert child.returncode == 0


def traced_futexes(program: Path, shm: Path) -> int:
    """Publish in a process that is traced; the futex calls of N_FRAMES publishes."""
    trace = shm / "trace"
    command = ["strace", "-qq", "-e", "trace=futex,getppid", "-o", trace]
    subprocess.run(
        [*command, program, shm, "produce", str(N_FRAMES)], check=True, timeout=WATCHDOG_S
    )
    calls = [line.partition("(")[0] for line in trace.read_text().splitlines()]
    first, second = (i for i, call in enumerate(calls) if call == "getppid")
    return second - first - 1


@needs_strace
def test_sleepers_cost_system_calls(build: Any, readers: Readers, shm: Path) -> None:
    readers(spin_ns=0)
    assert traced_futexes(build(PROGRAM), shm) > 0


@needs_strace
def test_readers_that_spin_cost_no_system_call(build: Any, readers: Readers, shm: Path) -> None:
    readers(spin_ns=-1)
    assert traced_futexes(build(PROGRAM), shm) == 0


@needs_strace
def test_sleepers_that_were_killed_cost_one_system_call_at_most(
    build: Any, readers: Readers, shm: Path
) -> None:
    readers(spin_ns=0, n_killed=2)
    assert traced_futexes(build(PROGRAM), shm) <= 1
    assert traced_futexes(build(PROGRAM), shm) == 0
