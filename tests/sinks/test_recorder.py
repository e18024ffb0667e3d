"""A recording has every frame of its channel, and its end is told as it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import pyhub
from pyhub.sinks.recorder import Recording, check_target, record

SHAPE = (6, 7)


@contextlib.contextmanager
def channel(slots: int = 64) -> Iterator[tuple[Any, Any]]:
    """A producer, and a consumer that was there before its first frame."""
    with (
        pyhub.DataBlockProducer.create("cam1", dtype="i4", shape=SHAPE, slots=slots) as producer,
        pyhub.DataBlockConsumer.attach("cam1") as consumer,
    ):
        yield producer, consumer


def put(producer: Any, *numbers: int) -> None:
    for k in numbers:
        producer.put(np.full(SHAPE, k, "i4"), flex={"k": k}, frame_id=k)


def facts(path: Path) -> tuple[bool, str, list[int], list[bool]]:
    with h5py.File(path) as file:
        entry = file["entry"]
        return (
            bool(entry.attrs["pyhub_complete"]),
            entry.attrs["reason"],
            entry["data/frame_id"][:].tolist(),
            entry["data/frame_valid"][:].tolist(),
        )


def test_it_ends_with_the_channel(tmp_path: Path) -> None:
    seen = []
    with channel() as (producer, consumer):
        put(producer, 0, 1, 2)
        producer.close()
        recording = record(
            consumer, str(tmp_path / "x.h5"), on_frame=lambda *counts: seen.append(counts)
        )
    assert recording == Recording(3, 0, True, "the channel was closed")
    assert seen == [(1, 0), (2, 0), (3, 0)]
    assert facts(tmp_path / "x.h5") == (True, "the channel was closed", [0, 1, 2], [True] * 3)


def test_it_ends_with_enough_frames_and_leaves_the_rest(tmp_path: Path) -> None:
    with channel() as (producer, consumer):
        put(producer, 0, 1, 2, 3)
        recording = record(consumer, str(tmp_path / "x.h5"), n_frames=2)
        assert recording == Recording(2, 0, True, "")
        assert consumer.lag_frames == 2


def test_too_few_frames_make_it_partial(tmp_path: Path) -> None:
    with channel() as (producer, consumer):
        put(producer, 0, 1)
        producer.close()
        recording = record(consumer, str(tmp_path / "x.h5"), n_frames=5)
    reason = "the channel was closed after 2 of 5 frames"
    assert recording == Recording(2, 0, False, reason)
    assert facts(tmp_path / "x.h5")[:2] == (False, reason)


def test_ctrl_c_finishes_the_file(tmp_path: Path) -> None:
    def interrupt(n_frames: int, _: int) -> None:
        if n_frames == 2:
            raise KeyboardInterrupt

    with channel() as (producer, consumer):
        put(producer, 0, 1, 2)
        recording = record(consumer, str(tmp_path / "x.h5"), on_frame=interrupt)
    assert recording == Recording(2, 0, True, "stopped by the user")
    assert facts(tmp_path / "x.h5") == (True, "stopped by the user", [0, 1], [True, True])


def test_another_error_leaves_a_file_that_is_marked_with_it(tmp_path: Path) -> None:
    def fail(*_: int) -> None:
        raise RuntimeError("no more")

    with channel() as (producer, consumer):
        put(producer, 0)
        with pytest.raises(RuntimeError):
            record(consumer, str(tmp_path / "x.h5"), on_frame=fail)
    assert facts(tmp_path / "x.h5")[:2] == (False, "RuntimeError: no more")


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_lost_frames_are_holes_of_the_right_size(tmp_path: Path, slots: int) -> None:
    with channel(slots) as (producer, consumer):
        put(producer, *range(20))
        producer.close()
        recording = record(consumer, str(tmp_path / "x.h5"))
    complete, _, ids, valid = facts(tmp_path / "x.h5")
    assert complete
    first = valid.index(True)
    assert ids[first:] == list(range(first, 20))
    assert all(valid[first:])
    assert len(valid) == 20
    assert recording.n_missing == 20 - recording.n_frames == first
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["entry/data/data"][:, 0, 0].tolist() == [0] * first + list(range(first, 20))


def test_a_restart_is_told_in_the_file(tmp_path: Path) -> None:
    with channel() as (producer, consumer):
        put(producer, 0, 1)
        producer.close()
        with pyhub.DataBlockProducer.create("cam1", dtype="i4", shape=SHAPE) as again:
            put(again, 0, 1, 2)
            recording = record(consumer, str(tmp_path / "x.h5"), n_frames=5)
    reason = "the producer was restarted after 2 frames"
    assert recording == Recording(5, 0, True, reason)
    assert facts(tmp_path / "x.h5") == (True, reason, [0, 1, 0, 1, 2], [True] * 5)


@pytest.mark.parametrize(("dtype", "shape"), [("i4", (6, 8)), ("u4", SHAPE), ("i4", (42,))])
def test_a_restart_as_something_else_ends_it(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    with channel() as (producer, consumer):
        put(producer, 0, 1)
        producer.close()
        with pyhub.DataBlockProducer.create("cam1", dtype=dtype, shape=shape) as again:
            again.put(np.ones(shape, dtype))
            recording = record(consumer, str(tmp_path / "x.h5"))
    assert (recording.n_frames, recording.is_complete) == (2, False)
    assert recording.reason.startswith(f"the producer came back with {np.dtype(dtype)} {shape}")


def test_frames_of_fewer_rows_keep_their_number_of_rows(tmp_path: Path) -> None:
    with channel() as (producer, consumer):
        producer.put(np.ones(SHAPE, "i4"))
        producer.put(np.ones((2, 7), "i4"))
        producer.close()
        record(consumer, str(tmp_path / "x.h5"))
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["entry/data/frame_rows"][:].tolist() == [6, 2]
        assert file["entry/data/data"][:].sum(axis=(1, 2)).tolist() == [42, 14]


def test_parameters_alone_make_no_frame(tmp_path: Path) -> None:
    with channel() as (producer, consumer):
        put(producer, 0)
        producer.put(flex={"k": 99})
        put(producer, 1)
        producer.close()
        record(consumer, str(tmp_path / "x.h5"))
    assert facts(tmp_path / "x.h5")[2] == [0, 1]


def test_when_no_more_frames_come_a_kill_cannot_take_those_that_came(tmp_path: Path) -> None:
    def n_safe() -> int:
        try:  # as the system has it now, and as a kill would leave it
            copy = shutil.copy(tmp_path / "x.h5.partial", tmp_path / "copy.h5")
            with h5py.File(copy) as file:
                return int(file["entry/data/data"].attrs["n_frames"])
        except (OSError, KeyError):
            return 0

    with channel() as (producer, consumer):
        thread = threading.Thread(target=record, args=(consumer, str(tmp_path / "x.h5")))
        thread.start()
        put(producer, 0, 1, 2)
        deadline = time.monotonic() + 20
        while n_safe() < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        producer.close()
        thread.join()


def test_the_wrong_frames_are_refused_before_a_file_is_made(tmp_path: Path) -> None:
    with (
        pyhub.DataBlockProducer.create("cam1"),
        pyhub.DataBlockConsumer.attach("cam1") as consumer,
        pytest.raises(pyhub.LayoutError),
    ):
        record(consumer, str(tmp_path / "x.h5"))
    assert os.listdir(tmp_path) == []


def test_a_good_target_is_checked_without_a_trace(tmp_path: Path) -> None:
    check_target(str(tmp_path / "x.h5"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("prepare", "target", "error", "words"),
    [
        (lambda path: (path / "x.h5").touch(), "x.h5", FileExistsError, "--overwrite"),
        (lambda path: (path / "x.h5.partial").touch(), "x.h5", FileExistsError, "rename it"),
        (lambda path: None, "no/x.h5", FileNotFoundError, "there is no directory"),
    ],
)
def test_a_target_that_cannot_be_is_refused(
    tmp_path: Path,
    prepare: Callable[[Path], None],
    target: str,
    error: type[Exception],
    words: str,
) -> None:
    prepare(tmp_path)
    with pytest.raises(error, match=words):
        check_target(str(tmp_path / target))


def test_overwriting_is_for_the_final_name_only(tmp_path: Path) -> None:
    (tmp_path / "x.h5").touch()
    check_target(str(tmp_path / "x.h5"), overwrite=True)
    (tmp_path / "x.h5.partial").touch()
    with pytest.raises(FileExistsError):
        check_target(str(tmp_path / "x.h5"), overwrite=True)
