"""Frames and parameters are read whole or not at all, and the test can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

N_READERS = 2
N_READS = 60_000
MAX_FRAMES = 10_000_000
LARGE_FRAME = (65536, 256)
LARGE_FLEX = (256, 65536)


@pytest.mark.parametrize("n_slots", [1, 2, 3])
def test_reader_never_sees_half_a_frame(build: Any, run: Any, shm: Path, n_slots: int) -> None:
    seen = run(build("torn.c"), shm, n_slots, *LARGE_FRAME, N_READERS, N_READS, MAX_FRAMES)
    assert (seen["torn"], seen["torn_flex"]) == (0, 0)
    assert seen["reads"] == N_READERS * N_READS


def test_reader_never_sees_half_a_flex_object(build: Any, run: Any, shm: Path) -> None:
    seen = run(build("torn.c"), shm, 1, *LARGE_FLEX, N_READERS, N_READS, MAX_FRAMES)
    assert (seen["torn"], seen["torn_flex"]) == (0, 0)
    assert seen["reads"] == N_READERS * N_READS


# The negative controls run until a torn frame shows: after some hundred frames
# on an idle machine, and of millions that they may write on a busy one.


@pytest.mark.parametrize("n_slots", [1, 2, 3])
def test_without_the_sequence_check_torn_frames_show(
    build: Any, run: Any, shm: Path, n_slots: int
) -> None:
    program = build("torn.c", "-DPHB_SABOTAGE_SEQUENCE")
    seen = run(program, shm, n_slots, *LARGE_FRAME, N_READERS, MAX_FRAMES, MAX_FRAMES)
    assert seen["torn"] > 0


def test_without_the_sequence_check_torn_flex_objects_show(build: Any, run: Any, shm: Path) -> None:
    program = build("torn.c", "-DPHB_SABOTAGE_SEQUENCE")
    seen = run(program, shm, 1, *LARGE_FLEX, N_READERS, MAX_FRAMES, MAX_FRAMES)
    assert seen["torn_flex"] > 0
