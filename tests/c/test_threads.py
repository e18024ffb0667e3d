"""ThreadSanitizer sees no race between producers, readers that copy, and readers that pin."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

# gcc says that its sanitizer knows no fences: see the head of threads.c.
SANITIZE = ("-fsanitize=thread", "-Wno-tsan")
N_FRAMES = 4_000


@pytest.mark.parametrize("n_slots", [1, 4])
def test_no_two_threads_race(build: Any, run: Any, shm: Path, n_slots: int) -> None:
    seen = run(build("threads.c", *SANITIZE), shm, n_slots, N_FRAMES)
    assert seen["frames"] >= N_FRAMES
    assert min(seen["read"], seen["read_admitted"], seen["read_pinned"]) > 0


UNPIN = "    phb_store32_release(&reader->table->places[reader->at].pin[pin], 0);"
UNORDERED = "    phb_store32(&reader->table->places[reader->at].pin[pin], 0);"


def test_a_copy_that_is_not_atomic_is_reported(build: Any, shm: Path) -> None:
    assert reports(build("threads.c", *SANITIZE, "-DPLAIN_COPY"), shm)


def test_letting_go_without_release_is_reported(build: Any, break_header: Any, shm: Path) -> None:
    path = build("threads.c", *SANITIZE, include=break_header(UNPIN, UNORDERED))
    assert reports(path, shm)


def reports(path: Path, shm: Path) -> bool:
    arguments = [str(path), str(shm), "4", str(N_FRAMES)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    return "data race" in done.stderr and done.returncode != 0
