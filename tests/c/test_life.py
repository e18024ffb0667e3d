"""Segments come and go, whoever dies in it, and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

OPERATIONS = ["create", "close", "attach", "join_guest", "leave", "join_owner", "remove"]


def check(met: dict[str, int], shm: Path, max_kills: int) -> None:
    for operation in OPERATIONS:
        assert met[f"{operation}_kills"] >= min(met[f"{operation}_steps"], max_kills) // 2 > 20
    assert met["missed"] == 0
    # Some died between the segment and its table, and both were found.
    assert 0 < met["orphans"] < met["removed"]
    assert [name for name in os.listdir(shm) if not name.endswith("..leases")] == []


def test_death_at_any_instruction_leaves_what_can_be_joined_or_cleaned(
    build: Any, run: Any, shm: Path
) -> None:
    check(run(build("kill_segment.c"), shm, 100), shm, 100)


@pytest.mark.verify
@pytest.mark.timeout(900)
def test_death_at_every_instruction_leaves_what_can_be_joined_or_cleaned(
    build: Any, run: Any, shm: Path
) -> None:
    check(run(build("kill_segment.c"), shm, 100_000, watchdog_s=800), shm, 100_000)
