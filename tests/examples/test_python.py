"""The Python examples work together as their texts say, and end cleanly."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

import pyhub
from tests.cli.conftest import CommandLine, Program, await_that, command_line_apart

EXAMPLES = Path(__file__).parents[2] / "examples/python"

ENDS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture
def lab(
    tmp_path_factory: pytest.TempPathFactory,
    runtime: Path,
    shm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[CommandLine]:
    """Where the programs run: a broker, and a shared memory, that nobody else uses."""
    monkeypatch.setenv("PYHUB_RUNTIME_DIR", str(runtime))
    folder = tmp_path_factory.mktemp("lab")
    with command_line_apart(folder, runtime, shm, PYTHONUNBUFFERED="1") as line:
        yield line
        for pid in line.running():
            os.kill(pid, signal.SIGTERM)


@pytest.fixture
def hub(lab: CommandLine) -> Iterator[pyhub.MessageHub]:
    with pyhub.MessageHub() as connected:
        yield connected


@pytest.fixture
def camera(lab: CommandLine) -> Program:
    program = start(lab, "camera.py")
    program.says("cam1 is ready")
    return program


@pytest.fixture
def motor(lab: CommandLine) -> Program:
    program = start(lab, "motor.py")
    program.says("stage1 is ready")
    return program


def start(lab: CommandLine, name: str, *arguments: object) -> Program:
    return lab.start_python("-W", "error", str(EXAMPLES / name), *map(str, arguments))


# --- The camera ---


def test_camera_exposes_so_many_frames_with_their_parameters(
    lab: CommandLine, camera: Program
) -> None:
    assert lab("call", "cam1", "set_exposure", "exposure_s=0.01").code == 0
    recorder = lab.start("record", "cam1", lab.folder / "x.h5", "--frames", 3)
    call = lab("call", "cam1", "expose", "n_frames=3", 'parameters={"x_mm": 1.5}')
    while recorder.code is None:  # it may have begun to read after the first frames
        call = lab("call", "cam1", "expose", "n_frames=3", 'parameters={"x_mm": 1.5}')
    assert (call.code, call.out.strip(), recorder.code) == (0, "3", 0)
    with h5py.File(lab.folder / "x.h5") as file:
        assert np.any(file["entry/data/data"])
        assert values(file, "x_mm") == [1.5] * 3


def test_camera_keeps_its_exposure_over_a_restart(
    lab: CommandLine, hub: pyhub.MessageHub, camera: Program
) -> None:
    hub.call("cam1", "set_exposure", exposure_s=0.25)
    camera.end(signal.SIGTERM)
    start(lab, "camera.py").says("cam1 is ready")
    assert hub.state["cam1/exposure_s"] == 0.25


def test_camera_stops_exposing_when_the_call_is_cancelled(
    hub: pyhub.MessageHub, camera: Program
) -> None:
    call = hub.start_call("cam1", "expose", n_frames=10**6, timeout_s=60)
    assert call.progress.get(20) == 1
    call.cancel()
    with pytest.raises(pyhub.CallCancelled):
        call.result()


# --- The motor ---


def test_motor_tells_its_way_and_where_it_stands(hub: pyhub.MessageHub, motor: Program) -> None:
    call = hub.start_call("stage1", "move", position_mm=1.25)
    assert list(call.progress) == [0.5, 1.0, 1.25]
    assert call.result() == hub.state["stage1/position_mm"] == 1.25


def test_motor_stops_while_it_moves(hub: pyhub.MessageHub, motor: Program) -> None:
    move = hub.start_call("stage1", "move", position_mm=90, timeout_s=60)
    move.progress.get(20)
    hub.call("stage1", "stop")
    assert 0 < move.result() == hub.state["stage1/position_mm"] < 90


def test_motor_stops_when_the_call_is_cancelled(hub: pyhub.MessageHub, motor: Program) -> None:
    move = hub.start_call("stage1", "move", position_mm=90, timeout_s=60)
    move.progress.get(20)
    move.cancel()
    with pytest.raises(pyhub.CallCancelled):
        move.result()
    assert hub.call("stage1", "move", position_mm=0) == 0  # it is free again


def test_motor_refuses_a_second_move_while_it_moves(hub: pyhub.MessageHub, motor: Program) -> None:
    move = hub.start_call("stage1", "move", position_mm=90, timeout_s=60)
    move.progress.get(20)
    with pytest.raises(pyhub.CommandFailed, match="stage1 is moving"):
        hub.call("stage1", "move", position_mm=1)
    hub.call("stage1", "stop")
    move.result()


def test_a_second_program_for_one_motor_does_not_begin(
    lab: CommandLine, hub: pyhub.MessageHub, motor: Program
) -> None:
    second = start(lab, "motor.py")
    assert second.end() == 1
    assert "BrokerRefused" in second.err
    assert "stage1 is ready" not in second.out
    assert hub.call("stage1", "move", position_mm=0.5) == 0.5  # by the first


def test_motor_knows_where_it_stood_when_it_starts_again(
    lab: CommandLine, hub: pyhub.MessageHub, motor: Program
) -> None:
    hub.call("stage1", "move", position_mm=1)
    motor.end(signal.SIGTERM)
    start(lab, "motor.py").says("stage1 is ready")
    move = hub.start_call("stage1", "move", position_mm=2)
    assert list(move.progress) == [1.5, 2.0]


def test_motor_raises_an_alarm_at_its_limit_and_clears_it_on_its_way_back(
    lab: CommandLine, hub: pyhub.MessageHub
) -> None:
    hub.state["stage1/position_mm"] = 99.8
    start(lab, "motor.py").says("stage1 is ready")
    with hub.events("alarm/stage1/*") as alarms:
        with pytest.raises(pyhub.CommandFailed, match=r"its limit at 100 mm, on its way to 120"):
            hub.call("stage1", "move", position_mm=120)
        assert alarms.get(20).value["text"] == "stage1 ran into its limit at 100 mm"
        hub.call("stage1", "move", position_mm=99)
        assert alarms.get(20).value is None


# --- The scan ---


def test_scan_records_every_frame_with_the_motors_position(
    lab: CommandLine, hub: pyhub.MessageHub, camera: Program, motor: Program
) -> None:
    hub.call("cam1", "set_exposure", exposure_s=0.01)
    scan = start(lab, "scan.py", lab.folder / "scan.h5")
    assert scan.end() == 0, scan
    assert "wrote 10 frames" in scan.err
    with h5py.File(lab.folder / "scan.h5") as file:
        assert len(file["entry/data/data"]) == 10
        assert values(file, "position_mm") == [0, 0, 0.5, 0.5, 1, 1, 1.5, 1.5, 2, 2]
    assert hub.state["scan/status"] == "idle"


@ENDS
def test_a_scan_that_is_stopped_stops_the_motor_and_keeps_its_frames(
    lab: CommandLine,
    hub: pyhub.MessageHub,
    camera: Program,
    motor: Program,
    number: signal.Signals,
) -> None:
    hub.state["stage1/position_mm"] = -1.0
    hub.call("cam1", "set_exposure", exposure_s=0.01)
    with hub.state.watch("scan/status") as status:
        scan = start(lab, "scan.py", lab.folder / "scan.h5")
        while status.get(20).value != "point 3 of 5":
            pass
    assert scan.end(number) == 1
    assert scan.err.endswith("the scan was stopped\n"), scan
    assert "Traceback" not in scan.err, scan
    with h5py.File(lab.folder / "scan.h5") as file:
        assert len(file["entry/data/data"]) >= 4
    assert hub.state["scan/status"] == "idle"
    assert hub.call("stage1", "move", position_mm=0) == 0  # nobody moves it any more


def test_scan_says_why_it_does_not_begin(
    lab: CommandLine, hub: pyhub.MessageHub, camera: Program, motor: Program
) -> None:
    (lab.folder / "scan.h5").touch()
    scan = start(lab, "scan.py", lab.folder / "scan.h5")
    assert scan.end() == 1
    assert "exists; it was not touched" in scan.err
    assert "the recorder did not start" in scan.err
    assert "Traceback" not in scan.err
    assert hub.state["scan/status"] == "idle"
    await_that(lambda: set(lab.running()) == {camera.pid, motor.pid}, "the recorder's end")


def test_a_scan_that_is_stopped_before_it_begins_leaves_no_recorder(
    lab: CommandLine, camera: Program, motor: Program
) -> None:
    scan = start(lab, "scan.py", lab.folder / "scan.h5")
    await_that(lambda: any(map(is_recorder, lab.running())), "a recorder")
    assert scan.end(signal.SIGINT) == 1
    assert "Traceback" not in scan.err, scan
    await_that(lambda: set(lab.running()) == {camera.pid, motor.pid}, "the recorder's end")


# --- The monitor ---


def test_monitor_prints_state_and_events(lab: CommandLine, hub: pyhub.MessageHub) -> None:
    hub.state["cam1/exposure_s"] = 0.1
    hub.alarm("door", "open")
    monitor = start(lab, "monitor.py")
    monitor.says(r"cam1/exposure_s = 0\.1")  # what was there before it came
    monitor.says(r"error: alarm/door \{'text': 'open'\}")
    hub.state["cam1/exposure_s"] = 0.2
    hub.alarm("door", None)
    monitor.says(r"cam1/exposure_s = 0\.2")
    monitor.says(r"info: alarm/door None")
    del hub.state["cam1/exposure_s"]
    monitor.says(r"cam1/exposure_s = deleted")


# --- How they end ---


def test_the_readme_names_every_program() -> None:
    text = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f"[{path.name}]({path.name})" in text
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (EXAMPLES / target).exists()


@ENDS
@pytest.mark.parametrize("name", ["camera.py", "motor.py", "monitor.py"])
def test_a_program_that_is_stopped_ends_without_a_traceback(
    lab: CommandLine, hub: pyhub.MessageHub, name: str, number: signal.Signals
) -> None:
    hub.state["greeting"] = "hello"
    program = start(lab, name)
    program.says("ready|greeting")
    await_that(lambda: heeds_sigterm(program.pid), f"a program that serves: {program!r}")
    assert program.end(number) == 0, program
    assert program.err == ""


@ENDS
def test_a_motor_that_is_stopped_while_it_moves_ends_all_the_same(
    hub: pyhub.MessageHub, motor: Program, number: signal.Signals
) -> None:
    move = hub.start_call("stage1", "move", position_mm=90, timeout_s=60)
    move.progress.get(20)
    await_that(lambda: heeds_sigterm(motor.pid), f"a program that serves: {motor!r}")
    assert motor.end(number) == 0
    assert motor.err == ""
    await_that(lambda: not hub.services(), "a hub without its motor")


def is_recorder(pid: int) -> bool:
    """Whether it is one that began its work: then the scan knows of it, too."""
    # In this order: what has no words of its own yet has its parent's handlers.
    return b"record" in Path(f"/proc/{pid}/cmdline").read_bytes() and heeds_sigterm(pid)


def heeds_sigterm(pid: int) -> bool:
    """Whether it has a handler: "ready" is said a moment before."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def values(file: h5py.File, name: str) -> list[float]:
    """Return a parameter of all frames, wherever the recorder put it."""
    found: list[float] = []

    def look(path: str, item: object) -> None:
        if path.endswith(name) and isinstance(item, h5py.Dataset):
            found[:] = np.asarray(item).tolist()

    file.visititems(look)
    return found
