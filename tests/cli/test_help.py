"""Every command explains itself, and says by its exit code how it ended."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import click
import pytest

import pyhub
from pyhub.cli import main

COMMANDS = sorted(main.commands)
ISSUED = {
    "demo", "sim", "replay", "record", "ls", "info", "tap", "broker", "clean", "doctor",
    "call", "state", "events",
}  # fmt: skip


def test_every_command_that_users_were_promised_is_there() -> None:
    assert set(COMMANDS) >= ISSUED


@pytest.fixture(scope="module")
def helps(called_once: Any) -> dict[str, Any]:
    """Every command, asked for help."""
    programs = called_once.side_by_side(*([name, "--help"] for name in COMMANDS))
    return dict(zip(COMMANDS, programs, strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_that_the_command_would_take(
    helps: dict[str, Any], name: str
) -> None:
    shown = helps[name]
    assert shown.code == 0
    assert main.commands[name].get_short_help_str(200).endswith(".")
    lines = re.findall(r"^ +pyhub (.+)$", shown.out.partition("Example:")[2], re.MULTILINE)
    assert any(line.split()[0] == name for line in lines)
    for line in lines:
        first, *rest = re.sub(r" (&|\|.*)$", "", line).split()
        main.commands[first].make_context(first, rest)  # raises for a wrong option


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    for option in main.commands[name].params:
        if isinstance(option, click.Option) and option.name != "compression":
            assert option.help, option.name


def test_the_command_line_can_be_asked_for_help_and_version(cli: Any) -> None:
    shown, version = cli("--help"), cli("--version")
    assert (shown.code, version.code) == (0, 0)
    assert all(name in shown.out for name in COMMANDS)
    assert pyhub.__version__ in version.out
    for code in range(7):
        assert re.search(rf"\b{code}  \w", shown.out), "the table of exit codes"


def test_0_is_the_end_of_what_is_done(cli: Any) -> None:
    assert cli("sim", "--shape", "16x16", "--frames", "1").code == 0


def test_0_is_the_end_of_what_was_stopped_by_its_user(cli: Any) -> None:
    sim = cli.start("sim", "--shape", "16x16")
    sim.says("publishing")
    assert sim.end(signal.SIGINT) == 0
    assert "Traceback" not in sim.err


def test_1_is_a_failure(cli: Any) -> None:
    failed = cli("sim", "--name", "a b")
    assert failed.code == 1
    assert failed.err.startswith("InvalidName: 'a b' cannot be the name of a channel.\n  Use 1 to")


WRONG = [
    "sim --shape 0x5",
    "sim --shape 5",
    "sim --dtype object",
    "sim --rate 0",
    "sim --rate nan",
    "sim --seconds nan",
    "tap",
    "tap cam1 --timeout -1",
    "record cam1 x.h5 --compression zip",
    "no-such-command",
    "ls --no-such-option",
    "ls --watch --services",
    "call cam1 set_exposure 0.1",
    "call cam1 set_exposure --timeout nan",
    "state cam1/x --if-version 1",
    "events --keep",
]


@pytest.fixture(scope="module")
def misused(called_once: Any) -> dict[str, Any]:
    """Every command line that is wrong, called."""
    programs = called_once.side_by_side(*(line.split() for line in WRONG))
    return dict(zip(WRONG, programs, strict=True))


@pytest.mark.parametrize("line", WRONG)
def test_2_is_wrong_usage(misused: dict[str, Any], line: str) -> None:
    wrong = misused[line]
    assert wrong.code == 2
    assert wrong.err.startswith("Usage:")
    assert "Traceback" not in wrong.err


def test_3_is_a_channel_or_file_that_is_not_there(cli: Any, tmp_path: Path) -> None:
    waiting = cli.side_by_side(
        ["tap", "nobody", "--timeout", 0.1],
        ["record", "nobody", tmp_path / "x.h5", "--timeout", 0.1],
        ["follow", "nobody", "--timeout", 0.1],
        ["azimuthal", "nobody", "--timeout", 0.1],
        ["info", "nobody"],
    )
    for missing in waiting:
        assert missing.code == 3
        assert "SegmentNotFound: there is no channel 'nobody'" in missing.err
        assert "pyhub ls" in missing.err
    assert not list(tmp_path.iterdir())
    forced, replay = cli.side_by_side(["clean", "--force", "nobody"], ["replay", "/no/file.h5"])
    assert (forced.code, replay.code) == (3, 3)
    assert "/no/file.h5" in replay.err


def test_3_is_a_service_or_key_that_is_not_there(cli: Any, hub: Any) -> None:
    call, state = cli.side_by_side(["call", "nobody", "nothing"], ["state", "no/key"])
    assert (call.code, state.code) == (3, 3)
    assert "ServiceNotFound" in call.err
    assert "no/key" in state.err


def test_4_is_a_frame_that_did_not_come_in_time(cli: Any) -> None:
    with pyhub.DataBlockProducer.create("idle", dtype="u1", shape=(4, 4)):
        waited = cli("tap", "idle", "--timeout", "0.2")
    assert waited.code == 4
    assert "nothing new in 0.2 s; its producer lives" in waited.err


def test_5_is_a_file_that_is_marked_partial(cli: Any, hub: Any, tmp_path: Path) -> None:
    with hub.create_datablock_producer("cam1", dtype="u1", shape=(4, 4)):
        recorder = cli.start("record", "cam1", tmp_path / "x.h5", "--frames", 2)
        assert hub.wait_for_readers("cam1", 1, 40)
    assert recorder.end() == 5
    assert "marked partial" in recorder.err


# 6, a broker that does not answer, is shown in test_broker.py.
