"""The C producer and the C++ consumer work with each other and with Python."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import numpy as np
import numpy.typing as npt
import pytest

from pyhub.datablock import DataBlockConsumer, DataBlockProducer
from pyhub.errors import ProducerDied

SOURCES = Path(__file__).parents[2] / "examples/c"
SHAPE = (64, 128)
N_SLOTS = 8  # of the C producer's ring: so many frames cannot be lost
WATCHDOG_S = 60

# Exit statuses of consumer.cpp.
COMPLETE, USAGE, FAILED, FRAMES_LOST, CLOSED, DIED = range(6)

needs_cxx = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler"
)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile what this machine has a compiler for, as the Makefile says."""
    directory = tmp_path_factory.mktemp("examples")
    targets = ["producer"]
    if shutil.which(os.environ.get("CXX", "g++")):
        targets.append("consumer")
    subprocess.run(
        ["make", "-s", "-C", SOURCES, f"BUILD={directory}", *(f"{directory}/{t}" for t in targets)],
        check=True,
    )
    return directory


@pytest.fixture(scope="module")
def shm() -> Iterator[Path]:
    directory = tempfile.mkdtemp(prefix="pyhub-test-", dir="/dev/shm")
    yield Path(directory)
    shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def own_directory(monkeypatch: pytest.MonkeyPatch, shm: Path) -> None:
    monkeypatch.setenv("PYHUB_SHM_DIR", str(shm))


@pytest.fixture
def start(programs: Path) -> Iterator[Start]:
    """Start one of the programs; whatever is still running at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def start_(*arguments: object) -> subprocess.Popen[str]:
        program, *rest = map(str, arguments)
        process = subprocess.Popen(
            [programs / program, *rest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start_
    for process in running:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=WATCHDOG_S)
    return process.returncode, out, err


def wait_for_line(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise AssertionError(f"{process.args!r} ended without a line {start!r}")


def let_go(producer: subprocess.Popen[str]) -> None:
    """Give a producer started with -w the line that it waits for."""
    assert producer.stdin is not None
    producer.stdin.write("\n")
    producer.stdin.flush()


def pattern(frame: int) -> npt.NDArray[np.uint16]:
    pixels = (31 * frame + np.arange(SHAPE[0] * SHAPE[1])) % 65536
    return pixels.astype("<u2").reshape(SHAPE)


def parse(line: str) -> dict[str, str]:
    words = line.split()
    return dict(zip(words[::2], words[1::2], strict=True))


# --- C to C++ ---


@needs_cxx
def test_every_c_frame_reaches_the_cxx_consumer_bit_for_bit(start: Start, tmp_path: Path) -> None:
    producer = start("producer", "-w", "cam", N_SLOTS)
    wait_for_line(producer, "created cam")
    consumer = start("consumer", "cam", N_SLOTS, tmp_path / "frames.raw")
    assert wait_for_line(consumer, "attached") == "attached cam <u2 64x128 slots 8\n"
    let_go(producer)

    status, out, err = finish(consumer)
    assert (status, err) == (COMPLETE, "")
    assert finish(producer)[:2] == (0, f"published {N_SLOTS} frames\n")
    *lines, total = out.splitlines()
    assert total == f"read {N_SLOTS} lost 0"
    for n, line in enumerate(lines):
        said = parse(line)
        assert (said["frame"], said["lost"]) == (str(n), "0")
        assert int(said["sum"]) == pattern(n).sum(dtype=np.uint64)
        assert msgpack.unpackb(bytes.fromhex(said["flex"])) == {"frame": n, "exposure_s": 0.01}
    raw = np.fromfile(tmp_path / "frames.raw", "<u2").reshape(-1, *SHAPE)
    np.testing.assert_array_equal(raw, [pattern(n) for n in range(N_SLOTS)])


@needs_cxx
def test_frames_read_and_frames_lost_add_up(start: Start, tmp_path: Path) -> None:
    n_frames = 3_000
    producer = start("producer", "-w", "cam", n_frames, 1e9)
    wait_for_line(producer, "created")
    consumer = start("consumer", "cam", n_frames, tmp_path / "frames.raw")
    wait_for_line(consumer, "attached")
    let_go(producer)

    status, out, err = finish(consumer)
    assert err == ""
    *lines, total = map(parse, out.splitlines())
    assert status == (FRAMES_LOST if int(total["lost"]) else COMPLETE)
    assert int(total["read"]) + int(total["lost"]) == n_frames
    assert len(lines) == int(total["read"])
    ids = np.array([int(line["frame"]) for line in lines])
    losts = np.array([int(line["lost"]) for line in lines])
    np.testing.assert_array_equal(np.diff(ids, prepend=-1) - 1, losts)
    raw = np.fromfile(tmp_path / "frames.raw", "<u2").reshape(len(ids), -1)
    assert np.array_equal(raw, (31 * ids[:, None] + np.arange(raw.shape[1])).astype("<u2"))


@needs_cxx
def test_a_gap_is_counted_exactly(start: Start) -> None:
    n_frames = 100
    producer = start("producer", "-w", "cam", n_frames, 1e9)
    wait_for_line(producer, "created")
    consumer = start("consumer", "cam", n_frames)
    wait_for_line(consumer, "attached")
    consumer.send_signal(signal.SIGSTOP)
    os.waitpid(consumer.pid, os.WUNTRACED)
    let_go(producer)
    assert finish(producer)[0] == 0
    consumer.send_signal(signal.SIGCONT)

    status, out, _ = finish(consumer)
    # Who lost some leaves out the oldest: its slot is the next to be overwritten.
    n_read = N_SLOTS - 1
    n_lost = n_frames - n_read
    lines = [parse(line) for line in out.splitlines()]
    assert status == FRAMES_LOST
    assert lines.pop() == {"read": str(n_read), "lost": str(n_lost)}
    assert [int(line["frame"]) for line in lines] == list(range(n_lost, n_frames))
    assert [int(line["lost"]) for line in lines] == [n_lost] + [0] * (n_read - 1)


@needs_cxx
def test_consumer_that_comes_first_waits_for_its_producer(start: Start) -> None:
    consumer = start("consumer", "cam", 1)
    producer = start("producer", "-w", "cam", 1)
    wait_for_line(consumer, "attached cam")
    let_go(producer)
    assert finish(consumer)[0] == COMPLETE


# --- C to Python, and back ---


def test_every_c_frame_reaches_python_bit_for_bit(start: Start) -> None:
    producer = start("producer", "-w", "cam", N_SLOTS)
    wait_for_line(producer, "created")
    with DataBlockConsumer.attach("cam") as consumer:
        assert (consumer.dtype, consumer.shape) == (np.dtype("<u2"), SHAPE)
        let_go(producer)
        frames = list(consumer)  # ends with the channel
    assert [frame.frame_id for frame in frames] == list(range(N_SLOTS))
    for n, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.data, pattern(n))
        assert frame.flex == {"frame": n, "exposure_s": 0.01}
        assert frame.n_lost == 0


@needs_cxx
def test_every_python_frame_reaches_the_cxx_consumer_bit_for_bit(
    start: Start, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    # The last one has fewer rows.
    sent = [rng.integers(0, 65536, (n_rows, 7), np.uint16) for n_rows in (5, 5, 5, 3)]
    flex = [{"frame": n, "angle_deg": 0.5 * n} for n in range(len(sent))]
    with DataBlockProducer.create(
        "cam", dtype="<u2", shape=(5, 7), flexible_zone_size=100, slots=len(sent)
    ) as producer:
        consumer = start("consumer", "cam", len(sent), tmp_path / "frames.raw")
        assert wait_for_line(consumer, "attached") == "attached cam <u2 5x7 slots 4\n"
        for array, parameters in zip(sent, flex, strict=True):
            producer.put(array, flex=parameters)
        status, out, err = finish(consumer)
    assert (status, err) == (COMPLETE, "")
    said = [parse(line) for line in out.splitlines()[:-1]]
    assert [int(line["sum"]) for line in said] == [array.sum(dtype=int) for array in sent]
    assert [msgpack.unpackb(bytes.fromhex(line["flex"])) for line in said] == flex
    raw = (tmp_path / "frames.raw").read_bytes()
    assert raw == b"".join(array.tobytes() for array in sent)


# --- How it ends ---


@needs_cxx
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_producer_that_is_stopped_tells_its_readers(
    start: Start, shm: Path, number: signal.Signals
) -> None:
    producer = start("producer", "cam", 0)
    wait_for_line(producer, "created")
    consumer = start("consumer", "cam", 10**9)
    wait_for_line(consumer, "frame")
    producer.send_signal(number)
    status, out, _ = finish(producer)
    assert (status, out.startswith("published")) == (0, True)
    status, _, err = finish(consumer)
    assert status == CLOSED
    assert "the producer of 'cam' closed it" in err
    assert not list(shm.glob("*.cam"))


@needs_cxx
def test_readers_learn_that_a_producer_was_killed(start: Start) -> None:
    producer = start("producer", "cam", 0)
    wait_for_line(producer, "created")
    consumer = start("consumer", "cam", 10**9)
    wait_for_line(consumer, "frame")
    with DataBlockConsumer.attach("cam") as view:
        producer.kill()
        producer.wait(WATCHDOG_S)
        status, _, err = finish(consumer)
        assert status == DIED
        assert "the producer of 'cam' died" in err
        with pytest.raises(ProducerDied):
            for _ in view.frames():
                pass


def test_a_producer_takes_the_name_of_a_dead_one_only(start: Start) -> None:
    first = start("producer", "cam", 0)
    wait_for_line(first, "created")
    second = start("producer", "cam", 1)
    status, _, err = finish(second)
    assert (status, "the name is taken by a producer that lives" in err) == (FAILED, True)
    first.kill()
    first.wait(WATCHDOG_S)
    assert finish(start("producer", "cam", 1))[0] == 0


@needs_cxx
def test_the_cxx_consumer_says_what_it_cannot_read(start: Start) -> None:
    with DataBlockProducer.create("cam", dtype="float32", shape=(2, 2)):
        status, _, err = finish(start("consumer", "cam", 1))
    assert (status, "dtype <f4, this example reads <u2" in err) == (FAILED, True)


@needs_cxx
def test_the_cxx_consumer_explains_a_file_that_is_no_segment(start: Start, shm: Path) -> None:
    path = shm / f"pyhub.{os.geteuid()}.cam"
    path.write_bytes(bytes(4096))
    path.chmod(0o600)
    status, _, err = finish(start("consumer", "cam", 1))
    path.unlink()
    assert (status, "is no pyhub segment" in err) == (FAILED, True)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("producer", "cam"), id="producer-without-count"),
        pytest.param(("producer", "no/name", 1), id="producer-name"),
        pytest.param(("producer", "cam", 1, 0), id="producer-rate"),
        pytest.param(("consumer", "cam"), id="consumer-without-count", marks=needs_cxx),
        pytest.param(("consumer", ".name", 1), id="consumer-name", marks=needs_cxx),
    ],
)
def test_wrong_arguments_are_refused_with_their_own_status(
    start: Start, arguments: tuple[object, ...]
) -> None:
    status, out, err = finish(start(*arguments))
    assert (status, out) == (USAGE, "")
    assert err
