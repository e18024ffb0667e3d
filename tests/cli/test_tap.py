"""Tap prints what comes: lines for people, JSON for programs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from pyhub.cli.tap import line_of, summary
from pyhub.codec import encode
from pyhub.datablock import Frame
from pyhub.monitor.wording import to_json

FRAMES = [
    np.arange(6, dtype=np.uint16).reshape(2, 3),
    np.array([[np.nan, 1.0], [2.0, np.inf]], np.float32),
    np.array([[True, False]]),
    np.array([[1 + 2j]], np.complex64),
    np.array([[1.5, 2.5]], np.longdouble),
    np.array([[np.uint64(2**64 - 1)]]),
    np.zeros((2,), [("x", "<f4"), ("n", "<i2")]),
    np.array(7, np.int32),
]


def test_a_line_has_the_numbers_and_parameters_of_its_frame(cli: Any, hub: Any) -> None:
    with hub.create_datablock_producer("cam1", dtype="uint16", shape=(2, 3)) as producer:
        tap = cli.start("tap", "cam1")
        assert hub.wait_for_readers("cam1", 1, 40)
        flex = {"energy": 12.125, "note": "a\nb\x1b[2J" + "z" * 90, "units": {"energy": "keV"}}
        producer.put(FRAMES[0], flex=flex, frame_id=41, timestamp_ns=1_700_000_000_123_456_789)
        tap.says(r"\n")
    assert tap.end() == 0, "the end of the channel is the end of the tap"
    (line,) = tap.out.splitlines()
    assert line.startswith("22:13:20.123       41  uint16 2x3  min 0 mean 2.5 max 5  ")
    assert "  energy=12.125 keV  " in line
    assert "note=a b [2Jzzz" in line
    assert "..." in line
    assert "\x1b" not in line


def test_lost_frames_are_counted_where_they_are_missing(cli: Any, hub: Any) -> None:
    with hub.create_datablock_producer("cam1", dtype="u1", shape=(2, 2), slots=4) as producer:
        tap = cli.start("tap", "cam1")
        assert hub.wait_for_readers("cam1", 1, 40)
        producer.put(np.zeros((2, 2), "u1"))
        tap.says(r"\n")
        tap.suspend()
        for _ in range(50):
            producer.put(np.zeros((2, 2), "u1"))
        tap.resume()
        tap.says(r" 50  ")
    assert tap.end() == 0
    numbers = [line.split()[1] for line in tap.out.splitlines()]
    lost = [
        int(line.split("LOST ")[1].split()[0]) for line in tap.out.splitlines() if "LOST" in line
    ]
    assert len(numbers) + sum(lost) == 51
    assert sum(lost) > 40


@pytest.mark.parametrize("array", FRAMES, ids=lambda array: f"{array.dtype.name}")
def test_frames_of_every_type_can_be_printed(array: np.ndarray[Any, Any]) -> None:
    frame = Frame(array, 5, 10**18, 6, 6, 1, encode({"x": np.longdouble(1.5)}))
    facts = json.loads(json.dumps(to_json(summary(frame))), parse_constant=pytest.fail)
    assert facts["shape"] == list(array.shape)
    assert facts["dtype"] == str(array.dtype)
    assert facts["flex"] == {"x": 1.5}
    if array.dtype.kind in "bui":
        assert (facts["min"], facts["max"]) == (array.min().item(), array.max().item())
    assert line_of(frame).split()[1] == "5"


def test_json_has_null_for_what_json_cannot_say(cli: Any, hub: Any) -> None:
    flex = {
        "nan": float("nan"),
        "inf": np.float32("-inf"),
        "array": np.array([1.0, np.nan]),
        "bytes": b"\x00\xff",
        "deep": {"list": [1, "two", None, True]},
        "when": np.datetime64("2026-01-02"),
    }
    with hub.create_datablock_producer("cam1", dtype="f4", shape=(2, 2)) as producer:
        producer.put(FRAMES[1], flex=flex)
        tap = cli("tap", "cam1", "--json", "--frames", 1)
    facts = json.loads(tap.out, parse_constant=pytest.fail)
    assert facts["mean"] is None
    assert facts["flex"] == {
        "nan": None,
        "inf": None,
        "array": [1.0, None],
        "bytes": "AP8=",
        "deep": {"list": [1, "two", None, True]},
        "when": "2026-01-02",
    }
    assert facts["frame_id"] == 0
    assert facts["n_lost"] == 0
    assert facts["timestamp"] > 1.6e9
    assert abs(facts["timestamp_ns"] - facts["timestamp"] * 1e9) < 1e3


def test_every_line_of_a_running_channel_is_json_and_in_order(cli: Any) -> None:
    sim = cli.start("sim", "--shape", "16x16", "--rate", 200)
    tap = cli("tap", "cam1", "--json", "--frames", 20)
    assert sim.end(signal.SIGINT) == 0
    facts = [json.loads(line, parse_constant=pytest.fail) for line in tap.out.splitlines()]
    ids = [fact["frame_id"] for fact in facts]
    assert len(ids) == 20
    assert all(
        after == before + 1 + fact["n_lost"]
        for before, after, fact in zip(ids, ids[1:], facts[1:], strict=False)
    )
    assert all(fact["flex"]["frame_number"] == fact["frame_id"] for fact in facts)


def test_a_tap_that_waited_gets_the_first_frame(cli: Any, hub: Any, example_file: Any) -> None:
    tap = cli.start("tap", "cam1", "--json", "--frames", 2)
    replay = cli("replay", example_file, "--name", "cam1", "--wait-for-readers", 1)
    assert (tap.end(), replay.code) == (0, 0)
    assert [json.loads(line)["frame_id"] for line in tap.out.splitlines()] == [0, 1]


def test_the_death_of_the_producer_is_told(cli: Any) -> None:
    sim = cli.start("sim", "--shape", "16x16")
    tap = cli.start("tap", "cam1")
    tap.says(r"\n")
    sim.end(signal.SIGKILL)
    assert tap.end() == 1
    assert f"ProducerDied: the producer of channel 'cam1' (pid {sim.pid}) died" in tap.err
    assert cli("clean").code == 0


def test_a_reader_of_the_output_may_leave(cli: Any) -> None:
    sim = cli.start("sim", "--shape", "16x16", "--rate", 300)
    tap = cli.start("tap", "cam1", stdout=subprocess.PIPE)
    assert tap.process.stdout is not None
    assert tap.process.stdout.readline()
    tap.process.stdout.close()
    assert tap.end() == 1
    assert tap.err == ""
    assert sim.end(signal.SIGINT) == 0


@pytest.mark.parametrize("command", ["ls", "info cam1", "doctor", "--help"])
def test_output_into_head_makes_no_traceback(cli: Any, hub: Any, command: str) -> None:
    with hub.create_datablock_producer("cam1", dtype="u1", shape=(2, 2)):
        shell = cli.start_shell(f'"{sys.executable}" -m pyhub {command} | head -n 1')
        assert shell.end() == 0
    assert shell.out
    assert shell.err == ""


def test_a_tap_may_have_the_producer_wait_for_it(cli: Any, hub: Any) -> None:
    with hub.create_datablock_producer(
        "cam1", dtype="u1", shape=(2, 2), slots=2, patience_s=60
    ) as producer:
        tap = cli.start("tap", "cam1", "--json", "--policy", "block")
        assert hub.wait_for_readers("cam1", 1, 40)
        for _ in range(100):
            producer.put(np.zeros((2, 2), "u1"))
        (row,) = json.loads(cli("info", "cam1", "--json").out)["admitted"]
        tap.says(r'"frame_id": 99,')
    assert tap.end() == 0
    assert (row["pid"], row["policy"]) == (tap.pid, "block")
    facts = [json.loads(line) for line in tap.out.splitlines()]
    assert [fact["frame_id"] for fact in facts] == list(range(100))


def test_a_tap_may_ask_for_the_newest_only(cli: Any, hub: Any) -> None:
    with hub.create_datablock_producer("cam1", dtype="u1", shape=(2, 2), slots=64) as producer:
        tap = cli.start("tap", "cam1", "--json", "--policy", "latest")
        assert hub.wait_for_readers("cam1", 1, 40)
        producer.put(np.zeros((2, 2), "u1"))
        tap.says(r"\n")
        tap.suspend()
        for _ in range(9):
            producer.put(np.zeros((2, 2), "u1"))
        tap.resume()
        tap.says(r'"frame_id": 9,')
    assert tap.end() == 0
    last = json.loads(tap.out.splitlines()[-1])
    assert len(tap.out.splitlines()) <= 3, "one may have been taken before it stood"
    assert last["n_lost"] >= 7
