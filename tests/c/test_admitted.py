"""Admitted readers and producers die, stop and meet at any moment, and nothing is lost by it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

# Kills per operation; 100000 means every instruction of it.
MAX_KILLS = 40
MOMENTS = ["unaware", "claimed", "uncommitted", "first_kept", "stopped", "skipped"]
# Where counters begin: each moment comes 8 frames later, some before they wrap.
STARTS = [0, 2**64 - 8, 2**64 - 10, 2**63 - 10]
OPERATIONS = [
    "publish", "publish_wait", "publish_reap", "publish_repair", "abort", "drop", "recover",
    "read", "admit", "admit_repair", "pin", "unpin", "pass", "leave",
]  # fmt: skip


def check_kills(met: dict[str, int], operations: list[str], max_kills: int) -> None:
    for operation in operations:
        n_steps = met[f"{operation}_steps"]
        assert n_steps > 50
        assert met[f"{operation}_kills"] >= min(n_steps, max_kills) // 2
    # Where a victim waits, it depends on the clock how many instructions that takes.
    assert met["missed"] <= met["kills"] // 10
    assert 0 < met["recovered"] < met["kills"]


@pytest.mark.parametrize("n_slots", [1, 3])
def test_death_at_any_instruction_takes_no_slot_no_place_and_no_count(
    build: Any, run: Any, shm: Path, n_slots: int
) -> None:
    met = run(build("kill_admitted.c"), shm, n_slots, MAX_KILLS)
    check_kills(met, OPERATIONS + ["publish_skip"] * (n_slots > 1), MAX_KILLS)
    assert [name for name in os.listdir(shm) if not name.endswith("..leases")] == []


@pytest.mark.verify
@pytest.mark.timeout(900)
@pytest.mark.parametrize("n_slots", [1, 3])
def test_death_at_every_instruction_takes_no_slot_no_place_and_no_count(
    build: Any, run: Any, shm: Path, n_slots: int
) -> None:
    met = run(build("kill_admitted.c"), shm, n_slots, 100_000, watchdog_s=800)
    check_kills(met, OPERATIONS + ["publish_skip"] * (n_slots > 1), 100_000)
    assert met["max_wait_us"] < 1_000_000  # what docs promise, on any machine


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_at_one_exact_moment_nothing_goes_wrong(
    build: Any, run: Any, shm: Path, moment: str, start: int
) -> None:
    assert run(build("moments.c"), shm, moment, start) == {"played": 1}


def check_storm(met: dict[str, int], n_kills: int) -> None:
    assert met["kills"] == n_kills
    assert met["recovered"] > n_kills // 50
    assert met["admitted"] > n_kills // 10
    assert min(met["read"], met["lost"], met["frames"], met["dropped"]) > n_kills
    assert met["pinned"] > n_kills // 10


@pytest.mark.parametrize(("n_slots", "start"), [(1, 0), (4, 2**64 - 5000)])
def test_kill_storm_tears_no_frame_and_loses_no_slot(
    build: Any, run: Any, shm: Path, n_slots: int, start: int
) -> None:
    met = run(build("storm.c"), shm, n_slots, n_slots, 150, start)
    check_storm(met, 150)
    assert [name for name in os.listdir(shm) if not name.endswith("..leases")] == []


@pytest.mark.verify
@pytest.mark.timeout(900)
@pytest.mark.parametrize("n_slots", [2, 4])
def test_kill_storm_keeps_nobody_waiting(build: Any, run: Any, shm: Path, n_slots: int) -> None:
    met = run(build("storm.c"), shm, n_slots, n_slots, 10_000, 0, watchdog_s=800)
    check_storm(met, 10_000)
    # What docs promise, on any machine.
    assert max(met["max_gap_ms"], met["max_admission_ms"]) < 1000


FENCE = "return syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0) == 0;"


def test_admission_is_safe_where_the_kernel_refuses_a_fence_for_all(
    build: Any, run: Any, break_header: Any, shm: Path
) -> None:
    refused = break_header(FENCE, "return 0;")
    assert run(build("moments.c", include=refused), shm, "unaware", 0) == {"played": 1}
    check_storm(run(build("storm.c", include=refused), shm, 4, 5, 150, 0), 150)


# Negative controls: with one line of a header broken a program notices.
CLAIMING = "            phb_store32_release(&control->claiming, slot + 1);\n"
LOOK_AT_CLAIM = "if (phb_load32_acquire(&reader->table->control->claiming) != slot + 1 &&\n"
STRONGER = "        if (objection > strongest) {\n"
ASK = STRONGER + "            if (phb_lease_is_alive(table->leases, lease)) {\n"
BURY = "if (lease && !phb_lease_is_alive(table->leases, lease)) {"
UNSAFE = "    return !reader->is_unsafe || slot != reader->unsafe_slot;\n"
ROLL_BACK = "            phb_store64(&db->slots[i].seq, seq - 1);\n"
PATIENCE = "    c->patience_ns = patience_ns;\n"
FIRST = "        phb_store64(&place->given_up_at, cursor); /* any but cursor + 1 */\n"
FIRST_BROKEN = "        phb_store64(&place->given_up_at, 0);\n"
KEPT = """        phb_store64(&place->kept_ns, now);
        phb_store64(&place->kept_at, cursor + 1);
"""
KEPT_BROKEN = """        phb_store64(&place->kept_at, cursor + 1);
        phb_store64(&place->kept_ns, now);
"""
HAS_LOST = "(int64_t)(version - cursor->version) > 1;"
IS_WAITING = (
    "    phb_store32(&db->readers.control->is_waiting, 0);\n    phb_store32(&db->control->is_w"
)
STEP = ("kill_admitted.c", "3", "40")


@pytest.mark.parametrize(
    ("program", "line", "broken"),
    [
        pytest.param(("moments.c", "claimed"), CLAIMING, "", id="nothing-claimed"),
        pytest.param(("moments.c", "claimed"), LOOK_AT_CLAIM, "if (\n", id="claim-not-looked-at"),
        pytest.param(STEP, ASK, STRONGER + "            if (1) {\n", id="dead-stay-in-the-way"),
        pytest.param(STEP, BURY, "if (0) {", id="dead-not-buried"),
        pytest.param(STEP, IS_WAITING, IS_WAITING.partition("\n")[2], id="still-waiting"),
        pytest.param(("moments.c", "unaware"), UNSAFE, "    return 1;\n", id="unsafe-ignored"),
        pytest.param(("moments.c", "uncommitted"), ROLL_BACK, "", id="not-rolled-back"),
        pytest.param(("moments.c", "first_kept"), KEPT, KEPT_BROKEN, id="time-of-long-ago"),
        pytest.param(("moments.c", "stopped"), FIRST, FIRST_BROKEN, id="given-up-at-the-wrap"),
        pytest.param(("moments.c", "skipped"), HAS_LOST, "1;", id="oldest-passed-over"),
        pytest.param(
            ("moments.c", "stopped"),
            PATIENCE,
            "    c->patience_ns = patience_ns ? INT64_MAX : 0;\n",
            id="never-given-up",
        ),
    ],
)
def test_a_broken_line_is_noticed(
    build: Any, break_header: Any, shm: Path, program: tuple[str, ...], line: str, broken: str
) -> None:
    source, *arguments = program
    path = build(source, "-Wno-unused", include=break_header(line, broken))
    at = [str(STARTS[1])] * (source == "moments.c")
    done = subprocess.run([path, shm, *arguments, *at], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert "not true" in done.stderr
