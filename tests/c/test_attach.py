"""A damaged segment is refused, or read without leaving it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# The program takes any number; this many say at once whether a check is gone.
N_MUTATIONS = 20_000
N_EACH_KIND = N_MUTATIONS // 6


@pytest.fixture
def fuzzed(build: Any, run: Any, shm: Path) -> dict[str, int]:
    seen: dict[str, int] = run(build("fuzz_attach.c", *SANITIZE), shm, 1, N_MUTATIONS)
    return seen


def test_no_mutated_header_crashes_a_reader(fuzzed: dict[str, int]) -> None:
    # That it ran to its end is the claim; these say that it got past the door.
    assert fuzzed["crc_wrong"] == fuzzed["file_size"] == 0
    assert N_EACH_KIND // 4 < fuzzed["field"] < N_EACH_KIND
    assert N_EACH_KIND // 8 < fuzzed["remeasured"] < N_EACH_KIND
    assert fuzzed["live_words"] == N_EACH_KIND
    assert fuzzed["read"] > N_MUTATIONS


def check_words(seen: dict[str, int], n_mutations: int) -> None:
    # As above: these say that it did not only run, but came far.
    assert min(seen["block"], seen["table"]) > n_mutations // 100
    assert min(seen["published"], seen["read"], seen["pinned"]) > n_mutations // 50
    assert min(seen["full"], seen["admitted"], seen["refused"]) > n_mutations // 500
    assert seen["interrupted"] >= n_mutations // 10_000_000


def test_no_mutated_word_leads_a_producer_or_a_reader_astray(
    build: Any, run: Any, shm: Path
) -> None:
    seen = run(build("fuzz_readers.c", *SANITIZE), shm, 1, 10 * N_MUTATIONS)
    check_words(seen, 10 * N_MUTATIONS)


@pytest.mark.verify
@pytest.mark.timeout(1800)
def test_none_of_many_mutated_words_leads_astray(build: Any, run: Any, shm: Path) -> None:
    n_mutations = 100_000_000
    program = build("fuzz_readers.c", *SANITIZE)
    check_words(run(program, shm, 2, n_mutations, watchdog_s=1700), n_mutations)


NUMBERS = "memcmp(&computed, c, sizeof computed) == 0 &&\n           phb_datablock_frame"
SIZE = "return out->size <= db->constants.structured_buffer_capacity ? PHB_OK : PHB_DAMAGED;"
INDEX = "if (flex_index > db->constants.n_slots) {"


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        pytest.param(NUMBERS, "phb_datablock_frame", id="numbers-not-compared"),
        pytest.param(SIZE, "return PHB_OK;", id="size-not-checked"),
        pytest.param(INDEX, "if (0) {", id="flex-index-not-checked"),
    ],
)
def test_without_a_check_a_mutated_header_crashes_a_reader(
    build: Any, break_header: Any, shm: Path, line: str, broken: str
) -> None:
    path = build("fuzz_attach.c", include=break_header(line, broken))
    done = subprocess.run([path, shm, "1", str(N_MUTATIONS)], capture_output=True, text=True)
    assert done.returncode != 0


N_USED = "return n < table->constants.n_places ? n : table->constants.n_places;"
ENTRY = "if (!phb_datablock_is_mine(db) || db->entry > db->constants.n_slots) {"


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        pytest.param(N_USED, "return n;", id="gate-not-bounded"),
        pytest.param(ENTRY, "if (!phb_datablock_is_mine(db)) {", id="free-entry-not-checked"),
        pytest.param(INDEX, "if (0) {", id="flex-index-not-checked"),
    ],
)
def test_without_a_check_a_mutated_word_leads_astray(
    build: Any, break_header: Any, shm: Path, line: str, broken: str
) -> None:
    path = build("fuzz_readers.c", include=break_header(line, broken))
    done = subprocess.run([path, shm, "1", str(10 * N_MUTATIONS)], capture_output=True, text=True)
    assert done.returncode != 0


def test_every_refusal_says_what_is_wrong(build: Any, run: Any, shm: Path) -> None:
    seen = run(build("refuse.c"), shm)
    assert seen["cases"] > 60
    assert seen["not_permitted"] <= 3  # another owner twice, another pid namespace
