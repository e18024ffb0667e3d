"""A replay publishes the file's frames as they are, each with its parameters and units."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import pyhub
from pyhub.sinks.nexus import NexusFile
from pyhub.sources.hdf5 import FrameFile
from pyhub.sources.replay import parameters_of, replay

FRAMES = np.arange(5 * 3 * 4, dtype=">i2").reshape(5, 3, 4)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[FrameFile]:
    with h5py.File(tmp_path / "given.h5", "w") as file:
        file["entry/data/frames"] = FRAMES
        file["entry/energy"] = 12.5
        file["entry/energy"].attrs["units"] = "keV"
        file["entry/angle"] = np.arange(5) / 2
        file["entry/angle"].attrs["units"] = "deg"
        file["entry/title"] = "a title"
    with FrameFile(tmp_path / "given.h5") as opened:
        yield opened


def published(source: FrameFile, indices: Any, **options: Any) -> tuple[int, list[pyhub.Frame]]:
    with (
        pyhub.DataBlockProducer.create(
            "cam1", dtype=source.dtype, shape=source.frame_shape, slots=16
        ) as producer,
        pyhub.DataBlockConsumer.attach("cam1") as consumer,
    ):
        n = replay(source, producer, indices, **options)
        producer.close()
        return n, list(consumer)


def test_frames_come_with_their_parameters_and_units(source: FrameFile) -> None:
    n, frames = published(source, range(5))
    assert n == 5
    for k, frame in enumerate(frames):
        assert frame.frame_id == k
        assert frame.data.dtype == FRAMES.dtype
        assert frame.data.tobytes() == FRAMES[k].tobytes()
        assert frame.flex == {
            "energy": 12.5, "angle": k / 2, "title": "a title",
            "units": {"energy": "keV", "angle": "deg"},
        }  # fmt: skip


def test_numbers_go_on_over_the_ends_of_the_file(source: FrameFile) -> None:
    seen: list[int] = []
    order = itertools.islice(itertools.cycle(range(2, 5)), 7)
    n, frames = published(source, order, on_frame=seen.append)
    assert n == 7
    assert seen == [2, 3, 4, 2, 3, 4, 2]
    assert [frame.frame_id for frame in frames] == list(range(7))
    assert [frame.flex["angle"] * 2 for frame in frames] == seen


def test_a_parameter_called_units_is_not_overwritten(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["entry/frames"] = FRAMES
        file["entry/units"] = "mm"
        file["entry/z"] = 1.0
        file["entry/z"].attrs["units"] = "km"
    with FrameFile(tmp_path / "x.h5", "/entry/frames") as source:
        assert parameters_of(source, 0) == {"units": "mm", "z": 1.0}


def test_without_units_there_is_no_word_of_them(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["entry/frames"] = FRAMES
    with FrameFile(tmp_path / "x.h5") as source:
        assert parameters_of(source, 0) == {}


def test_holes_and_short_frames_of_a_recording_stay_what_they_were(tmp_path: Path) -> None:
    with NexusFile(tmp_path / "x.h5", dtype="u1", frame_shape=(4, 2)) as file:
        for k, n_lost, n_rows in ((0, 0, 4), (3, 2, 1), (4, 0, 4)):
            file.append(
                np.full((n_rows, 2), k, "u1"), frame_id=k, timestamp_ns=k, n_lost=n_lost
            )  # fmt: skip
    with FrameFile(tmp_path / "x.h5") as source:
        n, frames = published(source, range(source.n_frames))
    assert n == 3
    assert [frame.frame_id for frame in frames] == [0, 3, 4]
    assert [frame.data.shape for frame in frames] == [(4, 2), (1, 2), (4, 2)]
    assert [frame.data[0, 0] for frame in frames] == [0, 3, 4]


def test_a_file_that_is_damaged_ends_it_and_publishes_no_half_frame(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("entry/frames", data=FRAMES, chunks=(1, 3, 4), fletcher32=True)
        place = data.id.get_chunk_info(2).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with FrameFile(path) as source:
        with pytest.raises(pyhub.CodecError, match=r"frame 2 of .* cannot be read"):
            published(source, range(5))
        with pyhub.DataBlockProducer.create("cam1", dtype=">i2", shape=(3, 4)) as producer:
            with pytest.raises(pyhub.CodecError):
                replay(source, producer, range(5))
            assert producer.header().structured_buffer_version == 2
