"""A lease lives exactly as long as its process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

DEEDS = ("quiet", "closing", "forking", "forking_again", "executing")
RIGHT = {"own": 1} | dict.fromkeys(DEEDS, 1) | {f"{deed}_killed": 0 for deed in DEEDS}


def test_a_lease_outlives_what_its_process_does_and_ends_with_it(
    build: Any, run: Any, shm: Path
) -> None:
    assert run(build("lease.c"), shm) == RIGHT


@pytest.mark.parametrize(
    ("line", "broken", "wrong"),
    [
        pytest.param(
            "return fcntl(file->fd, F_OFD_SETLK, &lock);",
            "lock.l_type = type; return fcntl(file->fd, F_SETLK, &lock);",
            "closing",
            id="a-lock-of-the-process",
        ),
        pytest.param(
            "is_told = pthread_atfork(phb_lease_hold_still, phb_lease_exit, phb_lease_forget) == 0;",
            "is_told = 1;",
            "forking_killed",
            id="children-keep-it",
        ),
    ],
)
def test_each_of_the_means_is_needed(
    build: Any, break_header: Any, run: Any, shm: Path, line: str, broken: str, wrong: str
) -> None:
    found = run(build("lease.c", "-Wno-unused", include=break_header(line, broken)), shm)
    assert found[wrong] != RIGHT[wrong]
