"""However a recording ends, its file says so; none that is half written has the final name."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

SHAPE = (24, 32)
# Runs a command under a limit of file sizes; root too has to keep it.
LIMITED = (
    "import os, resource, sys\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'pyhub', *sys.argv[2:]])"
)


def image(k: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(k).integers(0, 1 << 16, SHAPE, np.uint16)


class Recording:
    """A recorder at work on a channel of this process."""

    def __init__(self, cli: Any, hub: Any, path: Path, *options: object, slots: int = 64) -> None:
        self.hub, self.path = hub, path
        self.n_frames = 0
        self.producer = self.create(slots=slots)
        self.program = cli.start("record", "cam1", path, *options)
        assert hub.wait_for_readers("cam1", 1, 40)

    def create(self, shape: tuple[int, ...] = SHAPE, dtype: str = "uint16", slots: int = 64) -> Any:
        return self.hub.create_datablock_producer("cam1", dtype=dtype, shape=shape, slots=slots)

    def put(self, n: int) -> None:
        for _ in range(n):
            self.producer.put(image(self.n_frames), flex={"k": self.n_frames})
            self.n_frames += 1

    def await_frames(self, awaiting: Any, n: int) -> None:
        """Wait until `n` frames are in the file: for that it is flushed once a second."""
        awaiting(lambda: self._n_written() >= n, f"{n} frames in the file")

    def _n_written(self) -> int:
        try:
            with h5py.File(f"{self.path}.partial", "r", locking=False) as file:
                return int(file["entry/data/data"].attrs["n_frames"])
        except (OSError, KeyError):
            return 0


@pytest.fixture
def recording(cli: Any, hub: Any, tmp_path: Path) -> Iterator[Callable[..., Recording]]:
    """`recording(*options)`: a recorder of "cam1" into out.h5."""
    with contextlib.ExitStack() as stack:

        def start(*options: object, slots: int = 64) -> Recording:
            made = Recording(cli, hub, tmp_path / "out.h5", *options, slots=slots)
            stack.callback(lambda: made.producer.close())
            return made

        yield start


def contents(path: Path) -> dict[str, Any]:
    with h5py.File(path, "r") as file:
        data = file["entry/data"]
        return {
            "complete": bool(file["entry"].attrs["pyhub_complete"]),
            "reason": file["entry"].attrs["reason"],
            "frames": data["data"][()],
            "ids": data["frame_id"][()],
            "valid": data["frame_valid"][()],
            "n_frames": int(data["data"].attrs["n_frames"]),
            "n_missing": int(data["data"].attrs["n_missing"]),
            "k": file["entry/parameters/k"][()] if "k" in file["entry/parameters"] else None,
        }


def check_frames(found: dict[str, Any], n: int) -> None:
    assert found["ids"].tolist() == list(range(n))
    assert found["k"].tolist() == list(range(n))
    assert found["frames"].tobytes() == b"".join(image(k).tobytes() for k in range(n))
    assert (found["n_frames"], found["n_missing"]) == (n, 0)
    assert found["valid"].all()


# --- Ends that users choose ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_stopped_recording_is_complete_if_no_number_was_asked_for(
    recording: Any, tmp_path: Path, awaiting: Any, number: int
) -> None:
    at_work = recording()
    at_work.put(5)
    at_work.await_frames(awaiting, 5)
    assert at_work.program.end(number) == 0
    found = contents(tmp_path / "out.h5")
    check_frames(found, 5)
    assert found["complete"]
    assert found["reason"] == "stopped by the user"
    assert f"wrote 5 frames to {tmp_path / 'out.h5'}, 0 missing" in at_work.program.err
    assert "Traceback" not in at_work.program.err
    assert os.listdir(tmp_path) == ["out.h5"]


def test_ctrl_c_again_and_again_does_no_harm(recording: Any, tmp_path: Path, awaiting: Any) -> None:
    at_work = recording()
    at_work.put(5)
    at_work.await_frames(awaiting, 5)
    while at_work.program.code is None:
        at_work.program.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            at_work.program.process.wait(0.005)
    assert at_work.program.code == 0
    assert "Traceback" not in at_work.program.err
    check_frames(contents(tmp_path / "out.h5"), 5)


def test_a_stopped_recording_is_partial_if_more_frames_were_asked_for(
    recording: Any, tmp_path: Path, awaiting: Any
) -> None:
    at_work = recording("--frames", 100)
    at_work.put(5)
    at_work.await_frames(awaiting, 5)
    assert at_work.program.end(signal.SIGINT) == 5
    found = contents(tmp_path / "out.h5")
    check_frames(found, 5)
    assert not found["complete"]
    assert found["reason"] == "stopped by the user after 5 of 100 frames"
    assert "marked partial: stopped by the user after 5 of 100 frames" in at_work.program.err


def test_a_recording_ends_with_the_frames_it_was_asked_for(recording: Any, tmp_path: Path) -> None:
    at_work = recording("--frames", 4)
    at_work.put(9)
    assert at_work.program.end() == 0
    check_frames(contents(tmp_path / "out.h5"), 4)


def test_the_end_of_the_channel_completes_the_recording(recording: Any, tmp_path: Path) -> None:
    at_work = recording()
    at_work.put(4)
    at_work.producer.close()
    assert at_work.program.end() == 0
    found = contents(tmp_path / "out.h5")
    check_frames(found, 4)
    assert found["complete"]


def test_a_recorder_that_still_waits_for_its_channel_may_be_stopped(
    cli: Any, awaiting: Any, hub: Any, tmp_path: Path
) -> None:
    recorder = cli.start("record", "cam1", tmp_path / "out.h5")
    recorder.says(r"waiting for channel 'cam1'")
    assert recorder.end(signal.SIGINT) == 5
    assert "nothing recorded: 'cam1' did not appear; no file was made" in recorder.err
    assert "Traceback" not in recorder.err
    assert not os.listdir(tmp_path)


# --- Producers that die, and that come back ---


def test_the_death_of_the_producer_marks_the_file(
    cli: Any, hub: Any, tmp_path: Path, awaiting: Any
) -> None:
    sim = cli.start("sim", "--shape", "24x32", "--rate", 100)
    recorder = cli.start("record", "cam1", tmp_path / "out.h5")
    awaiting(lambda: hub.n_readers("cam1") == 1, "the recorder")
    partial = tmp_path / "out.h5.partial"
    awaiting(lambda: partial.exists() and partial.stat().st_size > 40_000, "frames")
    sim.end(signal.SIGKILL)
    assert recorder.end() == 5
    found = contents(tmp_path / "out.h5")
    assert not found["complete"]
    assert f"the producer of channel 'cam1' (pid {sim.pid}) died" in found["reason"]
    assert found["n_frames"] == found["valid"].sum() > 0
    assert f"marked partial: {found['reason']}" in recorder.err
    assert "cam1" in cli("clean").out


def test_a_producer_that_comes_back_with_another_shape_ends_the_recording(
    recording: Any, tmp_path: Path
) -> None:
    at_work = recording()
    at_work.put(3)
    at_work.program.suspend()
    at_work.producer.close()
    at_work.producer = at_work.create(shape=(8, 9), dtype="float32")
    at_work.producer.put(np.ones((8, 9), "f4"))
    at_work.program.resume()
    assert at_work.program.end() == 5
    found = contents(tmp_path / "out.h5")
    check_frames(found, 3)
    assert not found["complete"]
    assert found["reason"].startswith("the producer came back with float32 (8, 9); record that as")
    assert "marked partial: the producer came back" in at_work.program.err


def test_a_producer_that_comes_back_with_the_same_shape_goes_on_in_the_same_file(
    recording: Any, tmp_path: Path, awaiting: Any
) -> None:
    at_work = recording()
    at_work.put(3)
    at_work.program.suspend()
    at_work.producer.close()
    at_work.producer = at_work.create()
    at_work.program.resume()
    at_work.put(2)
    at_work.await_frames(awaiting, 4)
    at_work.producer.close()
    assert at_work.program.end() == 0
    assert "its producer came back" in at_work.program.err
    found = contents(tmp_path / "out.h5")
    assert found["ids"].tolist() == [0, 1, 2, 0, 1], "the producer's own numbers"
    assert found["k"].tolist() == [0, 1, 2, 3, 4]
    assert found["frames"].tobytes() == b"".join(image(k).tobytes() for k in range(5))
    assert found["n_missing"] == 0


# --- Frames that are missing ---


def test_missing_frames_are_marked_exactly_where_they_are(
    recording: Any, tmp_path: Path, awaiting: Any
) -> None:
    at_work = recording(slots=2)
    at_work.put(1)
    at_work.await_frames(awaiting, 1)
    for burst in (50, 31):
        at_work.program.suspend()
        at_work.put(burst)
        at_work.program.resume()
        # Read from the ring when the next one can be put without harm.
        last = at_work.n_frames
        awaiting(lambda: _has_read(at_work, last), "the rest of the burst")  # noqa: B023
    at_work.producer.close()
    assert at_work.program.end() == 0
    found = contents(tmp_path / "out.h5")
    assert found["ids"].tolist() == list(range(82)), "each frame has its row, lost or not"
    valid = found["valid"]
    assert found["n_missing"] == 82 - valid.sum() >= 77
    assert found["n_frames"] == valid.sum()
    assert valid[0]
    assert valid[-1]
    for row, is_valid in enumerate(valid):
        expected = image(row) if is_valid else np.zeros(SHAPE, np.uint16)
        assert np.array_equal(found["frames"][row], expected)
    assert found["k"][valid].tolist() == np.flatnonzero(valid).tolist()
    assert f"wrote {valid.sum()} frames" in at_work.program.err
    assert f"{found['n_missing']} missing" in at_work.program.err


def _has_read(at_work: Recording, n: int) -> bool:
    """Whether the newest of `n` frames is in the file."""
    try:
        with h5py.File(f"{at_work.path}.partial", "r", locking=False) as file:
            return len(file["entry/data/frame_id"]) >= n
    except (OSError, KeyError):
        return False


# --- What is in the way ---


def test_an_existing_file_is_not_touched_without_being_told_to(
    cli: Any, recording: Any, tmp_path: Path
) -> None:
    path = tmp_path / "out.h5"
    path.write_bytes(b"precious")
    refused = cli("record", "cam1", path)  # at once: nobody wants to wait for that
    assert refused.code == 1
    assert f"{str(path)!r} exists" in refused.err
    assert "--overwrite" in refused.err
    assert path.read_bytes() == b"precious"

    at_work = recording("--overwrite", "--frames", 2)
    at_work.put(1)
    assert path.read_bytes() == b"precious", "it is there until the new one is whole"
    at_work.put(1)
    assert at_work.program.end() == 0
    check_frames(contents(path), 2)


def test_a_file_that_cannot_be_written_is_refused_before_the_channel_comes(
    cli: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    cases: list[tuple[str, list[str], int, str]] = [
        ("nowhere/out.h5", [], 3, "nowhere"),
        ("file/out.h5", [], 3, "file"),
        ("directory", [], 2, "directory"),
        ("out.h5", ["--compression", "bitshuffle-lz4"], 1, "pip install hdf5plugin"),
    ]
    refused = cli.side_by_side(
        *(["record", "cam1", tmp_path / target, *options] for target, options, _, _ in cases)
    )
    for program, (_, _, code, words) in zip(refused, cases, strict=True):
        assert program.code == code, program
        assert words in program.err
        assert "Traceback" not in program.err
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]


def test_two_recorders_do_not_write_into_one_file(
    cli: Any, recording: Any, tmp_path: Path, awaiting: Any
) -> None:
    first = recording("--frames", 6)
    first.put(3)
    first.await_frames(awaiting, 1)
    for options in ([], ["--overwrite"]):
        second = cli("record", "cam1", tmp_path / "out.h5", *options)
        assert second.code == 1
        assert "out.h5.partial' exists" in second.err
    first.put(3)
    assert first.program.end() == 0
    check_frames(contents(tmp_path / "out.h5"), 6)


def test_of_recorders_that_come_at_once_one_writes_the_file(
    cli: Any, hub: Any, tmp_path: Path, awaiting: Any
) -> None:
    with hub.create_datablock_producer("cam1", dtype="u2", shape=SHAPE, slots=8) as producer:
        programs = [
            cli.start("record", "cam1", tmp_path / "out.h5", "--frames", 2) for _ in range(3)
        ]
        awaiting(lambda: sum(program.code is None for program in programs) <= 1, "two that gave up")
        assert hub.wait_for_readers("cam1", 1, 40)
        for k in range(2):
            producer.put(image(k), flex={"k": k})
        assert sorted(program.end() for program in programs) == [0, 1, 1]
    check_frames(contents(tmp_path / "out.h5"), 2)


def test_a_channel_without_frames_cannot_be_recorded(cli: Any, hub: Any, tmp_path: Path) -> None:
    with hub.create_datablock_producer("status") as producer:
        producer.put(flex={"a": 1})
        refused = cli("record", "status", tmp_path / "out.h5")
    assert refused.code == 1
    assert "LayoutError" in refused.err
    assert not os.listdir(tmp_path)


def test_a_file_that_appears_meanwhile_is_not_replaced(
    recording: Any, tmp_path: Path, awaiting: Any
) -> None:
    at_work = recording("--frames", 2)
    at_work.put(1)
    at_work.await_frames(awaiting, 1)
    (tmp_path / "out.h5").write_bytes(b"precious")
    at_work.put(1)
    assert at_work.program.end() == 1
    assert "was made by another program" in at_work.program.err
    assert (tmp_path / "out.h5").read_bytes() == b"precious"
    check_frames(contents(tmp_path / "out.h5.partial"), 2)


# --- Ends that nobody chose ---


def test_a_killed_recorder_leaves_a_readable_file_under_another_name(
    cli: Any, recording: Any, tmp_path: Path, awaiting: Any
) -> None:
    at_work = recording()
    at_work.put(3)
    at_work.await_frames(awaiting, 1)
    at_work.program.end(signal.SIGKILL)
    assert os.listdir(tmp_path) == ["out.h5.partial"]
    found = contents(tmp_path / "out.h5.partial")
    assert not found["complete"]
    assert found["n_frames"] >= 1
    assert np.array_equal(found["frames"][0], image(0))
    again = cli("record", "cam1", tmp_path / "out.h5")
    assert again.code == 1
    assert "rename it to keep it, or delete it" in again.err.replace("\n  ", " ")


@pytest.mark.parametrize("limit", [300_000, 9_000])
def test_a_full_disk_is_told_and_leaves_no_file_of_the_final_name(
    cli: Any, hub: Any, tmp_path: Path, limit: int
) -> None:
    path = tmp_path / "out.h5"
    with hub.create_datablock_producer("cam1", dtype="u2", shape=(100, 500), slots=64) as producer:
        recorder = cli.start_python("-c", LIMITED, str(limit), "record", "cam1", str(path))
        if limit > 10_000:
            assert hub.wait_for_readers("cam1", 1, 40)
        noise = np.random.default_rng(1).integers(0, 1 << 16, (100, 500), np.uint16)
        n = 0
        while recorder.code is None:
            producer.put(noise, frame_id=n)
            n += 1
            with contextlib.suppress(Exception):
                recorder.process.wait(0.01)
    assert recorder.code == 1
    assert os.strerror(errno.EFBIG) in recorder.err
    assert "ulimit -f" in recorder.err
    assert "Traceback" not in recorder.err
    assert not path.exists()
    if "are safe in it" in recorder.err:
        found = contents(tmp_path / "out.h5.partial")
        assert found["n_frames"] > 0
        assert np.array_equal(found["frames"][0], noise)
    else:
        assert not os.listdir(tmp_path)


def test_the_limit_of_that_test_is_what_stops_the_recorder(
    cli: Any, example_file: Path, tmp_path: Path
) -> None:
    recorder = cli.start_python(
        "-c", LIMITED, str(resource.RLIM_INFINITY), "record", "cam1", str(tmp_path / "out.h5")
    )
    replay = cli("replay", example_file, "--name", "cam1", "--wait-for-readers", 1)
    assert (replay.code, recorder.end()) == (0, 0)


# --- A recorder that is too slow ---

NOISE = np.random.default_rng(1).integers(0, 1 << 16, (1024, 1024), np.uint16)
# On one processor zlib packs some 40 of those frames a second.
ON_ONE_CPU = (
    "import os, sys\n"
    "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'pyhub', *sys.argv[1:]])"
)


@contextlib.contextmanager
def fast(hub: Any, slots: int = 8) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A channel, and a function that publishes at most 400 frames a second into it."""
    with hub.create_datablock_producer(
        "cam1", dtype="u2", shape=NOISE.shape, slots=slots, patience_s=60
    ) as producer:

        def publish() -> None:
            producer.put(NOISE)
            time.sleep(0.0025)  # leaves the recorder some of the machine

        yield producer, publish


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
def test_a_recording_that_cannot_keep_up_is_refused_with_the_figures(
    cli: Any, hub: Any, tmp_path: Path, policy: str
) -> None:
    path = tmp_path / "out.h5"
    path.write_bytes(b"precious")
    with fast(hub) as (_, publish):
        recorder = cli.start_python(
            *("-c", ON_ONE_CPU, "record", "cam1", str(path)),
            *("--policy", policy, "--overwrite"),
        )
        while recorder.code is None:
            publish()
    assert recorder.code == 1
    assert recorder.err.startswith("RecorderTooSlow: channel 'cam1' is faster than its recording")
    assert "with compression 'gzip'" in recorder.err
    figures = re.search(
        r"  ([\d.]+) frames/s come \(([\d.]+) MB/s\), ([\d.]+) frames/s can be written \(([\d.]+) ",
        recorder.err,
    )
    assert figures is not None
    came_hz, came_mb, written_hz, written_mb = map(float, figures.groups())
    assert 0 < written_hz < came_hz < 450
    assert came_mb == pytest.approx(came_hz * NOISE.nbytes / 1e6, rel=0.1)
    assert written_mb == pytest.approx(written_hz * NOISE.nbytes / 1e6, rel=0.1)
    assert "--compression none, or --policy block (the producer waits then)" in recorder.err
    assert "Traceback" not in recorder.err
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["out.h5"], "nothing is left of it"


def test_a_recording_that_keeps_up_is_not_refused(cli: Any, hub: Any, tmp_path: Path) -> None:
    """The same frames, with and without compression, at a rate that both can write."""
    paths = [tmp_path / f"{compression}.h5" for compression in ("gzip", "none")]
    with fast(hub, slots=64) as (producer, _):
        recorders = [
            cli.start_python(
                "-c", ON_ONE_CPU, "record", "cam1", str(path), "--compression", path.stem
            )
            for path in paths
        ]
        assert hub.wait_for_readers("cam1", 2, 40)
        for _ in range(30):  # longer than a refusal takes
            producer.put(NOISE)
            time.sleep(0.1)
    for recorder, path in zip(recorders, paths, strict=True):
        assert recorder.end() == 0, recorder
        assert f"wrote 30 frames to {path}, 0 missing" in recorder.err


def test_with_policy_block_the_producer_is_slowed_and_told_of_once(
    cli: Any, hub: Any, tmp_path: Path
) -> None:
    with fast(hub) as (_, publish):
        recorder = cli.start_python(
            *("-c", ON_ONE_CPU, "record", "cam1", str(tmp_path / "out.h5"), "--policy", "block")
        )
        assert hub.wait_for_readers("cam1", 1, 40)
        end = time.monotonic() + 3  # longer than a refusal takes
        n = 0
        while time.monotonic() < end:
            publish()
            n += 1
    assert recorder.end() == 0, recorder
    assert recorder.err.count("channel 'cam1': its producer waits for this recording") == 1
    assert f"wrote {n} frames to {tmp_path / 'out.h5'}, 0 missing" in recorder.err
    assert re.search(r"the producer waited [\d.]+ s for it", recorder.err)


def test_frames_that_the_ring_holds_are_recorded_however_fast_they_come(
    cli: Any, hub: Any, tmp_path: Path
) -> None:
    with fast(hub, slots=90) as (producer, _):
        recorder = cli.start_python("-c", ON_ONE_CPU, "record", "cam1", str(tmp_path / "out.h5"))
        assert hub.wait_for_readers("cam1", 1, 40)
        for _ in range(80):  # two seconds' work
            producer.put(NOISE)
    assert recorder.end() == 0, recorder
    assert "wrote 80 frames" in recorder.err
    assert ", 0 missing" in recorder.err


# --- The reader that records ---


def test_a_recorder_is_a_reader_that_the_channel_knows(
    cli: Any, hub: Any, tmp_path: Path, awaiting: Any
) -> None:
    with hub.create_datablock_producer("cam1", dtype="u2", shape=SHAPE) as producer:
        recorders = [
            cli.start("record", "cam1", tmp_path / "a.h5"),
            cli.start("record", "cam1", tmp_path / "b.h5", "--reader", "archive"),
        ]
        assert hub.wait_for_readers("cam1", 2, 40)
        producer.put(image(0))
        facts = json.loads(cli("info", "cam1", "--json").out)["admitted"]
        taken = cli("record", "cam1", tmp_path / "c.h5", "--reader", "archive")
    found = {reader["name"]: (reader["pid"], reader["policy"]) for reader in facts}
    assert found == {
        f"record-{recorders[0].pid}": (recorders[0].pid, "drop_oldest"),
        "archive": (recorders[1].pid, "drop_oldest"),
    }
    assert [recorder.end() for recorder in recorders] == [0, 0]
    assert taken.code == 1
    assert "has a reader 'archive' already" in taken.err
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5"]


def test_frames_that_were_dropped_for_a_recorder_are_marked_as_missing(
    cli: Any, hub: Any, tmp_path: Path, awaiting: Any
) -> None:
    with hub.create_datablock_producer(
        "cam1", dtype="u2", shape=SHAPE, slots=4, patience_s=60
    ) as producer:
        recorder = cli.start("record", "cam1", tmp_path / "out.h5", "--policy", "drop_newest")
        assert hub.wait_for_readers("cam1", 1, 40)
        producer.put(image(0), flex={"k": 0})
        awaiting(lambda: (tmp_path / "out.h5.partial").exists(), "the file")
        recorder.suspend()
        was_published = [producer.put(image(k), flex={"k": k}) for k in range(1, 20)]
        recorder.resume()
        k = 20
        while not producer.put(image(k), flex={"k": k}):
            was_published.append(False)
            k += 1
        n_dropped = producer.header().n_dropped
    assert recorder.end() == 0, recorder
    valid = [True, *was_published, True]
    found = contents(tmp_path / "out.h5")
    assert found["n_missing"] == n_dropped == valid.count(False) > 0
    assert found["valid"].tolist() == valid
    assert found["ids"].tolist() == list(range(len(valid)))
    assert found["k"][found["valid"]].tolist() == np.flatnonzero(valid).tolist()
    assert "missing frames were dropped before they could be written" in recorder.err
