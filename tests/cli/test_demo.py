"""The demo shows frames flowing, and when it ends, however it ends, nothing is left of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pyhub.names import segment_names

SMALL = ("--shape", "64x128", "--rate", 50)
ROW = r"frames/s \d+\.\d  GB/s \d\.\d+  p50 ms {0}  p99 ms {0}  lag {1}  lost {1}"


def children(pid: int) -> dict[str, int]:
    """Return the processes below `pid` by their command."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        found[words[words.index("pyhub") + 1]] = int(child)
    return found


def test_it_ends_by_itself_and_leaves_nothing(cli: Any) -> None:
    with cli.in_terminal("demo", "--seconds", 3, "--name", "a", *SMALL, size=(8, 30)) as small:
        demo = cli("demo", "--seconds", 3, "--name", "b", *SMALL)
        assert small.end() == 0, small
        assert "frames flowed" in small.out.replace("\n", ""), "it fits into a small terminal"
    assert demo.code == 0, demo
    assert re.search(r"^\d+ frames flowed; all processes have ended$", demo.out, re.MULTILINE)
    _, sim, tap, own = demo.out.splitlines()[-4:]
    (script,) = re.findall(r"\S+\.py", own)
    assert (Path(__file__).parents[2] / script).exists()
    for line in (sim, tap):  # what to do next can be done
        assert "Usage: " in subprocess.check_output(["sh", "-c", f"{line} --help"], text=True)
    assert cli.running() == []
    assert segment_names() == []
    assert "Traceback" not in demo.err


def test_without_a_terminal_it_prints_lines_of_every_channel(cli: Any) -> None:
    demo = cli.start("demo", "--name", "det", *SMALL)
    demo.says("(?m)^det +" + ROW.format("-", "-"))
    for reader in ("azimuthal", "follow"):
        demo.says(rf"(?m)^det.{reader} +" + ROW.format(r"\d+\.\d\d", r"\d+"))
    demo.says(r"frame \d+  frame_number=\d+  exposure_s=0\.02  energy_keV=\S+  angle_deg=\S+")
    assert set(children(demo.pid)) == {"sim", "azimuthal", "follow"}
    assert set(segment_names()) == {"det", "det.azimuthal", "det.follow"}
    assert demo.end(signal.SIGTERM) == 0
    assert re.search(r"[1-9]\d* frames flowed; all processes have ended$", demo.out, re.MULTILINE)
    assert "\x1b" not in demo.out
    assert "Traceback" not in demo.err
    assert cli.running() == []
    assert segment_names() == []


def test_in_a_terminal_it_draws_a_table_and_a_picture_until_ctrl_c(cli: Any) -> None:
    with cli.in_terminal("demo", *SMALL, size=(40, 120)) as demo:
        demo.says(r"channel +frames/s +GB/s +p50/ms +p99/ms +lag +lost")
        demo.says(r"cam1 +\d+\.\d +\d\.\d{3} +- ")
        demo.says(r"cam1\.azimuthal +\d+\.\d +\d\.\d{3} +\d+\.\d\d +\d+\.\d\d +\d+ +\d+")
        demo.says(r"cam1\.follow +\d+\.\d")
        demo.says(r"energy_keV=1\d")
        demo.says(r"cam1, frame [1-9]\d*")
        assert re.search("\x1b\\[[0-9;]*48;2;|[▀▄█]{8}", demo.raw), "a picture"
        demo.type(b"\x03")
        assert demo.end() == 0, demo
        assert re.search(r"\d+ frames flowed; all processes have ended$", demo.out, re.MULTILINE)
        assert demo.raw.rindex("\x1b[?1049l") > demo.raw.rindex("\x1b[?1049h"), "the screen is back"
        assert demo.raw.rindex("\x1b[?25h") > demo.raw.rindex("\x1b[?25l"), "the cursor is back"
        assert "Traceback" not in demo.out
    assert cli.running() == []
    assert segment_names() == []


@pytest.mark.parametrize("n_parts", [1, 3])
def test_ctrl_c_at_once_ends_it_quietly(cli: Any, n_parts: int) -> None:
    with cli.in_terminal("demo", *SMALL) as demo:
        parts = Path(f"/proc/{demo.pid}/task/{demo.pid}/children")
        while len(parts.read_text().split()) < n_parts:  # which are still being loaded
            assert demo.code is None
        demo.type(b"\x03")
        assert demo.end() == 0, demo
        assert "Traceback" not in demo.out
    assert cli.running() == []
    assert segment_names() == []


def test_closing_its_window_ends_all_of_it(cli: Any) -> None:
    with cli.in_terminal("demo", *SMALL) as demo:
        demo.says("frames/s")
        demo.says(r"cam1\.follow +\d")
        demo.close()
        demo.process.wait(20)
    cli.await_nobody()
    assert segment_names() == []


def test_the_death_of_a_part_is_told_and_ends_the_others(cli: Any) -> None:
    victim = "sim"
    demo = cli.start("demo", *SMALL)
    demo.says(r"cam1\.follow +frames/s \d")
    pid = children(demo.pid)[victim]
    os.kill(pid, signal.SIGKILL)
    assert demo.end() == 1
    assert f"a part of the demo ended with -9 (pid {pid})" in demo.err
    assert victim in demo.err
    assert "pyhub doctor" in demo.err
    assert "Traceback" not in demo.err
    assert cli.running() == []
    assert len(segment_names()) == 1, "the victim could not"
    assert cli("clean").code == 0
    assert segment_names() == []


@pytest.mark.parametrize("has_terminal", [True, False])
def test_a_part_that_fails_says_why(cli: Any, hub: Any, has_terminal: bool) -> None:
    with hub.create_datablock_producer("cam1"):
        if has_terminal:
            with cli.in_terminal("demo", *SMALL) as demo:
                assert demo.end() == 1
                said = demo.raw.rpartition("\x1b[?1049l")[2]
        else:
            demo = cli("demo", *SMALL)
            assert demo.code == 1
            said = demo.err
    said = re.sub(r"\s+", " ", said)
    assert "SegmentExists: channel 'cam1' belongs to a living producer" in said
    assert f"(pid {os.getpid()})" in said
    assert "a part of the demo ended with 1" in said
    assert segment_names() == []


def test_the_demo_survives_the_death_of_the_broker(apart: Any, kill_broker: Any) -> None:
    demo = apart.start("demo", *SMALL)
    demo.says(r"cam1\.follow +frames/s \d")
    kill_broker(Path(apart.environment["PYHUB_RUNTIME_DIR"]), signal.SIGKILL)
    n_before = len(re.findall("frame_number=", demo.out))
    demo.says("(?s)" + "frame_number=.*?" * (n_before + 1))
    assert demo.end(signal.SIGINT) == 0
    assert "Traceback" not in demo.err
