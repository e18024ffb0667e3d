"""The seed document's checklist, line by line: each is named by the tests that show it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import pyhub
from pyhub.sinks.recorder import record
from pyhub.sources.hdf5 import FrameFile

TESTS = Path(__file__).parent

CHECKLIST = {
    1: "one segment, three contiguous regions in order",
    2: "both zone capacities fixed at creation",
    3: "a process-shared mutex over both zones",
    4: "atomic flags, readable without the lock",
    5: "capacities, sizes and versions in 64 bits, a double time stamp",
    6: "a zone's version rises on its update and only then",
    7: "time stamp of the last update",
    8: "the flex zone is one MessagePack or JSON object",
    9: "the structured buffer is contiguous and numpy-compatible",
    10: "no signalling primitive in shared memory",
    11: "a lifecycle-managed static module on ZeroMQ, with a broker",
    12: "MessagePack first, JSON supported",
    13: "one PUB/SUB topic per DataBlock",
    14: "lock, write, header, unlock, publish; the message names the zones",
    15: "one end_publish, one notification",
    16: "subscribe, poll, read the named zones",
    17: "the broker registers and finds every channel",
    18: "all broker traffic is CurveZMQ",
    19: "initialize(config) -> bool, shutdown()",
    20: "create_datablock_producer, find_datablock_consumer",
    21: "begin_publish, the two buffers, end_publish",
    22: "the two zones and the header without blocking; the socket",
    23: "two modules",
    24: "a camera and a GUI",
    25: "decoupled tools, full logging of parameters and states",
}


def lines_shown() -> dict[int, list[str]]:
    """Map each line of the checklist to the tests whose docstrings name it."""
    shown: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for named in re.findall(
                    r"Seed (\d+(?:(?:, | and )\d+)*)", ast.get_docstring(node) or ""
                ):
                    for number in re.findall(r"\d+", named):
                        shown.setdefault(int(number), []).append(node.name)
    return shown


@pytest.mark.parametrize("line", CHECKLIST)
def test_each_line_of_the_seed_is_named_by_a_test(line: int) -> None:
    assert lines_shown().get(line), f"no test names seed line {line}: {CHECKLIST[line]}"


def test_datablocks_work_without_a_hub() -> None:
    """Seed 23. The DataBlock Hub is a module of its own; the Message Hub is another."""
    with (
        pyhub.DataBlockProducer.create("alone", dtype="u2", shape=3) as producer,
        pyhub.DataBlockConsumer.attach("alone") as consumer,
    ):
        producer.put(np.arange(3, dtype="u2"), flex={"gain": 2})
        frame = consumer.read()
    assert frame.data.tolist() == [0, 1, 2]
    assert frame.flex == {"gain": 2}


def test_data_and_parameters_are_logged_in_full(tmp_path: Path) -> None:
    """Seed 25. What a producer published can be read from a recording, all of it."""
    path = str(tmp_path / "log.h5")
    frames = np.random.default_rng(1).integers(0, 99, (20, 4, 5), dtype="u2")
    with (
        pyhub.DataBlockProducer.create("cam", dtype="u2", shape=(4, 5), slots=32) as producer,
        pyhub.DataBlockConsumer.attach("cam") as consumer,
    ):
        for number, image in enumerate(frames):
            producer.put(image, flex={"exposure_s": number / 8, "units": {"exposure_s": "s"}})
        # Attached before the first frame: nothing is history to this reader.
        recording = record(consumer, path, n_frames=20)
    assert (recording.n_frames, recording.n_missing, recording.is_complete) == (20, 0, True)
    with FrameFile(path) as file:
        for number, image in enumerate(frames):
            assert (file.read(number) == image).all()
            assert file.parameters(number)["exposure_s"] == number / 8
        assert file.units["exposure_s"] == "s"
