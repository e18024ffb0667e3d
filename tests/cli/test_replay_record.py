"""A file replayed into a channel and recorded from it is the same file, bit for bit."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pyhub.names import segment_names
from pyhub.sinks.nexus import NexusFile
from pyhub.sources.hdf5 import FrameFile

SHIPPED = Path(__file__).parents[2].parent / "shared" / "data" / "nexus-example.hdf5"
FRAMES = "/entry/data/frames"

# The two lines, as a user's shell runs them.
TWO_LINES = """
pyhub() { "$PYTHON" -m pyhub "$@"; }
pyhub record cam1 out.h5 --frames 10 &
pyhub replay "$FILE" --dataset /entry/data/frames --name cam1 --wait-for-readers 1
echo "replay ended with $?"
wait $!
echo "record ended with $?"
"""


def copied(cli: Any, source: Path, dataset: str, target: Path, *options: object) -> Any:
    """Replay `source` into a recorder and return the open recording's frames."""
    recorder = cli.start("record", "cam1", target, "--quiet")
    replay = cli(
        "replay", source, "--dataset", dataset, "--name", "cam1", "--wait-for-readers", 1, *options
    )
    assert replay.code == 0, replay
    assert recorder.end() == 0, recorder
    with h5py.File(target, "r") as file:
        assert file["entry"].attrs["pyhub_complete"]
        return file["entry/data/data"][()]


@pytest.mark.parametrize("kind", ["generated", *(["shipped"] if SHIPPED.exists() else [])])
def test_the_two_lines_copy_frames_and_parameters(
    cli: Any, kind: str, example_file: Path, tmp_path: Path
) -> None:
    source = SHIPPED if kind == "shipped" else example_file
    shell = cli.start_shell(
        TWO_LINES, cwd=tmp_path, env={"FILE": str(source), "PYTHON": sys.executable}
    )
    shell.end()
    assert "replay ended with 0" in shell.out, shell
    assert "record ended with 0" in shell.out, shell

    with h5py.File(source, "r") as given, h5py.File(tmp_path / "out.h5", "r") as out:
        frames = given[FRAMES]
        data = out["entry/data/data"]
        assert (data.dtype, data.shape) == (frames.dtype, frames.shape)
        assert data[()].tobytes() == frames[()].tobytes()
        assert data.chunks == (1, *frames.shape[1:])
        assert data.compression == "gzip"
        assert (data.attrs["n_frames"], data.attrs["n_missing"]) == (10, 0)
        assert out["entry/data/frame_id"][:].tolist() == list(range(10))
        stamps = out["entry/data/timestamp"][:]
        assert np.all(np.diff(stamps) >= 0)
        assert np.all(stamps > 1.6e9)
        assert out["entry/data/frame_valid"][:].all()
        assert out["entry"].attrs["NX_class"] == "NXentry"
        assert out["entry/data"].attrs["signal"] == "data"
        assert out["entry/instrument/detector"].attrs["NX_class"] == "NXdetector"
        assert out["entry/instrument/detector/data"] == data

        recorded = out["entry/parameters"]
        for name in ("instrument/monochromator/energy", "instrument/detector/distance"):
            value = given["entry"][name]
            assert recorded[name][:].tolist() == [value[()].item()] * 10
            assert recorded[name].attrs["units"] == value.attrs["units"]
        for name in ("instrument/control/integral", "instrument/sample/image_times"):
            values = given["entry"][name]
            assert recorded[name][:].tolist() == values[:].tolist()
            assert recorded[name].attrs["units"] == values.attrs["units"]
        text = given["entry/instrument/sample/name"][()].item()
        assert recorded["instrument/sample/name"][:].tolist() == [text] * 10


RNG = np.random.default_rng(2)
POINT = np.dtype([("x", "<f4"), ("hits", "<u2", (3,)), ("flag", "u1")])
KINDS = {
    "float32 with NaN": RNG.integers(0, 1 << 32, (6, 17, 23), np.uint32).view(np.float32),
    "uint8 in colour": RNG.integers(0, 256, (5, 13, 19, 3), np.uint8),
    "one single frame": RNG.integers(0, 1 << 16, (31, 37), np.uint16),
    "compound": np.frombuffer(RNG.bytes(3 * 8 * 9 * POINT.itemsize), POINT).reshape(3, 8, 9),
    "big-endian": RNG.integers(-(1 << 40), 1 << 40, (4, 7, 5)).astype(">i8"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_every_kind_are_recorded_bit_for_bit(cli: Any, tmp_path: Path, kind: str) -> None:
    frames = KINDS[kind]
    with h5py.File(tmp_path / "given.h5", "w") as file:
        file["entry/frames"] = frames
    found = copied(cli, tmp_path / "given.h5", "/entry/frames", tmp_path / "out.h5")
    expected = frames if frames.ndim > 2 else frames[np.newaxis]
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def test_a_recording_can_be_replayed_and_gives_the_same_parameters_again(
    cli: Any, example_file: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.h5", tmp_path / "second.h5"
    copied(cli, example_file, FRAMES, first)
    copied(cli, first, "/entry/data/data", second)
    with FrameFile(example_file, FRAMES) as given, FrameFile(second) as found:
        assert found.dtype == given.dtype
        for i in range(given.n_frames):
            assert found.read(i).tobytes() == given.read(i).tobytes()
            assert found.parameters(i) == given.parameters(i)
        assert found.units == given.units


def test_another_compression_keeps_the_frames(cli: Any, example_file: Path, tmp_path: Path) -> None:
    recorder = cli.start("record", "cam1", tmp_path / "x.h5", "--compression", "lzf")
    replay = cli("replay", example_file, "--name", "cam1", "--wait-for-readers", 1)
    assert (replay.code, recorder.end()) == (0, 0)
    with h5py.File(example_file) as given, h5py.File(tmp_path / "x.h5") as out:
        assert out["entry/data/data"][()].tobytes() == given[FRAMES][()].tobytes()
        assert out["entry/data/data"].compression == "lzf"


def test_a_replay_may_take_a_part_of_the_file(cli: Any, example_file: Path, tmp_path: Path) -> None:
    found = copied(
        cli, example_file, FRAMES, tmp_path / "out.h5", "--start", 3, "--stop", 7, "--slots", 9
    )
    with h5py.File(example_file) as given, h5py.File(tmp_path / "out.h5") as out:
        assert found.tobytes() == given[FRAMES][3:7].tobytes()
        assert out["entry/data/frame_id"][:].tolist() == [0, 1, 2, 3]
        times = out["entry/parameters/instrument/sample/image_times"]
        assert times[:].tolist() == [9, 12, 15, 18]


def test_a_replay_that_loops_goes_on_counting_until_it_is_stopped(
    cli: Any, example_file: Path, tmp_path: Path
) -> None:
    recorder = cli.start("record", "cam1", tmp_path / "out.h5", "--frames", 7)
    replay = cli.start(
        *("replay", example_file, "--name", "cam1", "--stop", 3, "--loop", "--rate", 200),
        *("--wait-for-readers", 1, "--slots", 200),
    )
    assert recorder.end() == 0, recorder
    assert replay.code is None
    assert replay.end(signal.SIGINT) == 0, replay
    assert "Traceback" not in replay.err
    with h5py.File(example_file) as given, h5py.File(tmp_path / "out.h5") as out:
        order = [0, 1, 2, 0, 1, 2, 0]
        assert out["entry/data/data"][()].tobytes() == given[FRAMES][()][order].tobytes()
        assert out["entry/data/frame_id"][:].tolist() == list(range(7))


def test_a_rate_spreads_the_frames_over_time(cli: Any, example_file: Path, tmp_path: Path) -> None:
    copied(cli, example_file, FRAMES, tmp_path / "x.h5", "--rate", 10, "--stop", 8)
    with h5py.File(tmp_path / "x.h5") as file:
        span_s = np.ptp(file["entry/data/timestamp"][:])
    # 0.7 s, if the first frame was in time; the rest is for a machine that was not.
    assert span_s > 0.35


def test_a_replay_waits_for_all_the_readers_it_was_asked_for(
    cli: Any, hub: Any, awaiting: Any, example_file: Path
) -> None:
    replay = cli.start("replay", example_file, "--name", "cam1", "--wait-for-readers", 2)
    first = cli.start("tap", "cam1", "--json")
    awaiting(lambda: hub.n_readers("cam1") == 1, "the first reader")
    with hub.find_datablock_consumer("cam1", timeout_s=5) as second:
        frames = [frame.frame_id for frame in second]
    assert replay.end() == 0, replay
    assert first.end() == 0, first
    assert frames == list(range(10))
    assert len(first.out.splitlines()) == 10


def test_a_replay_that_nobody_read_says_so(cli: Any, hub: Any, example_file: Path) -> None:
    alone = cli("replay", example_file, "--name", "cam1")
    assert alone.code == 0
    assert "nobody read them, as far as the broker knows" in alone.err
    assert "--wait-for-readers 1" in alone.err
    tap = cli.start("tap", "cam1")
    read = cli("replay", example_file, "--name", "cam1", "--wait-for-readers", 1)
    assert (tap.end(), read.code) == (0, 0)
    assert "nobody" not in read.err


def test_a_replay_that_waits_in_vain_publishes_nothing(cli: Any, example_file: Path) -> None:
    replay = cli(
        "replay", example_file, "--name", "cam1", "--wait-for-readers", 1, "--timeout", 0.2
    )
    assert replay.code == 4
    assert "0 of 1 readers of 'cam1' came in 0.2 s; nothing was published" in replay.err
    assert "Start them first, or wait longer" in replay.err


def test_what_cannot_be_replayed_is_refused_with_what_there_is(
    cli: Any, example_file: Path
) -> None:
    cases: list[tuple[list[str], int, list[str]]] = [
        (["--dataset", "/entry/data/nothing"], 1, ["/entry/data/nothing", FRAMES, "(10, 39, 61)"]),
        (["--dataset", "/entry/data"], 1, ["no data set", FRAMES]),
        (["--start", "10"], 2, ["no frames from 10 to 10", "has 10"]),
        (["--start", "99"], 2, ["no frames from 99 to 10"]),
        (["--start", "5", "--stop", "5"], 2, ["no frames from 5 to 5"]),
        (["--name", "a/b"], 1, ["'a/b' cannot be the name"]),
        (["--slots", "70000"], 1, ["slots=70000", "65536"]),
    ]
    refused = cli.side_by_side(*(["replay", example_file, *options] for options, _, _ in cases))
    for program, (_, code, words) in zip(refused, cases, strict=True):
        assert program.code == code, program
        assert all(word in program.err for word in words), program
        assert "Traceback" not in program.err


def test_a_file_that_is_no_hdf5_is_refused(cli: Any, example_file: Path, tmp_path: Path) -> None:
    whole = example_file.read_bytes()
    contents = {"empty": b"", "text": b"no HDF5 at all\n" * 100, "cut": whole[:3000]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    names = [*contents, "folder"]
    refused = cli.side_by_side(*(["replay", tmp_path / name] for name in names))
    for program, name in zip(refused, names, strict=True):
        assert program.code == 1, program
        assert str(tmp_path / name) in program.err
        assert "Traceback" not in program.err


def test_a_reader_is_told_the_units_of_parameters(cli: Any, example_file: Path) -> None:
    tap = cli.start("tap", "cam1", "--frames", 1)
    replay = cli("replay", example_file, "--name", "cam1", "--wait-for-readers", 1)
    assert (tap.end(), replay.code) == (0, 0)
    assert "instrument/detector/distance=5.25 mm  " in tap.out
    assert "sample/image_times=0 minutes" in tap.out


def test_parameters_that_grow_within_the_file_still_fit(cli: Any, tmp_path: Path) -> None:
    texts = ["x", "x" * 900] * 3 + ["x"]
    with h5py.File(tmp_path / "given.h5", "w") as file:
        file["entry/frames"] = np.zeros((7, 4, 4), "u1")
        for k in range(9):
            file[f"entry/note{k}"] = np.array(texts, "S900")
    copied(cli, tmp_path / "given.h5", "/entry/frames", tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as out:
        assert out["entry/parameters/note8"][:].astype(str).tolist() == texts


def test_frames_that_were_lost_in_a_recording_are_not_replayed_as_zeros(
    cli: Any, tmp_path: Path
) -> None:
    with NexusFile(tmp_path / "given.h5", dtype="u1", frame_shape=(4, 3)) as file:
        for k, n_lost in ((3, 0), (6, 2), (7, 0)):
            n_rows = 2 if k == 7 else 4
            frame = np.full((n_rows, 3), k, "u1")
            file.append(frame, frame_id=k, timestamp_ns=k, flex={"k": k}, n_lost=n_lost)
    tap = cli.start("tap", "cam1", "--json")
    replay = cli("replay", tmp_path / "given.h5", "--name", "cam1", "--wait-for-readers", 1)
    assert (tap.end(), replay.code) == (0, 0), replay
    frames = [json.loads(line) for line in tap.out.splitlines()]
    assert [frame["max"] for frame in frames] == [3, 6, 7]
    assert [frame["shape"] for frame in frames] == [[4, 3], [4, 3], [2, 3]]
    assert [frame["flex"]["k"] for frame in frames] == [3, 6, 7]


def test_two_replays_of_one_name_do_not_mix(
    cli: Any, awaiting: Any, example_file: Path, tmp_path: Path
) -> None:
    first = cli.start("replay", example_file, "--name", "cam1", "--wait-for-readers", 1)
    awaiting(lambda: "cam1" in segment_names(), "the first one's channel")
    second = cli("replay", example_file, "--name", "cam1")
    assert second.code == 1
    assert f"belongs to a living producer (pid {first.pid})" in second.err
    recorder = cli.start("record", "cam1", tmp_path / "out.h5")
    assert (first.end(), recorder.end()) == (0, 0)
    with h5py.File(tmp_path / "out.h5") as out:
        assert out["entry/data/data"].attrs["n_frames"] == 10
