"""call has a command done in another program, and tells what came of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import pyhub
from pyhub import Job
from pyhub.cli.values import as_lines, typed
from pyhub.hub.client.session import Ask
from pyhub.hub.protocol import Progress


@pytest.fixture(scope="module")
def service() -> Iterator[list[bool]]:
    """A camera in this process that does, fails, returns; of exposures, whether one was cancelled."""
    exposures: list[bool] = []
    with pyhub.MessageHub() as hub:
        cam1 = hub.service("cam1", threads=8)

        @cam1
        def set_exposure(exposure_s: float, gain: int = 1) -> dict[str, Any]:
            """Set the exposure.

            What else there is to say.
            """
            return {"exposure_s": exposure_s, "gain": gain}

        @cam1
        def echo(value: Any) -> Any:
            return value

        @cam1
        def image() -> Any:
            return np.array([[1.5, np.nan], [2.0, 3.0]])

        @cam1
        def nothing() -> None:
            """Do nothing."""

        @cam1
        def fail(text: str) -> None:
            raise ValueError(text)

        @cam1
        def scan(job: Job, n_points: int) -> int:
            for point in range(n_points):
                job.report({"point": point})
            return n_points

        @cam1
        def mumble(job: Job) -> str:
            # As a worker in another language may.
            job._connection.put(Ask(Progress(job._call, b"\xc1"), is_one_way=True))
            job.report("clearly")
            return "done"

        @cam1
        def expose(job: Job) -> None:
            job.report("exposing")
            exposures.append(job.wait(60))

        yield exposures
        cam1.close()


def test_a_command_is_done_with_its_arguments_and_its_result_printed(
    cli: Any, service: list[bool]
) -> None:
    called, as_json = cli.side_by_side(
        ["call", "cam1", "set_exposure", "exposure_s=0.1", "gain=3"],
        ["call", "cam1", "set_exposure", "exposure_s=0.1", "--json"],
    )
    assert (called.code, as_json.code) == (0, 0), called
    assert called.out == "exposure_s: 0.1\ngain: 3\n"
    assert json.loads(as_json.out) == {"exposure_s": 0.1, "gain": 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("true", True),
        ("null", None),
        ('{"a": [1, "b"]}', {"a": [1, "b"]}),
        ("open", "open"),
        ('"0.1"', "0.1"),
        ("[1,", "[1,"),
        ("", ""),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_value_is_json_and_else_a_text(text: str, value: Any) -> None:
    assert typed(text) == value
    assert type(typed(text)) is type(value)


def test_an_array_is_printed_with_its_shape_and_is_lists_in_json(
    cli: Any, service: list[bool]
) -> None:
    called, as_json = cli.side_by_side(
        ["call", "cam1", "image"], ["call", "cam1", "image", "--json"]
    )
    assert called.out == "array of shape 2x2, float64\n[[1.5 nan]\n [2.  3. ]]\n"
    assert json.loads(as_json.out, parse_constant=pytest.fail) == [[1.5, None], [2.0, 3.0]]


@pytest.mark.parametrize("value", ["a\x1b[2Jb", {"k\x1b[2J": "\x9b2J"}, np.array(["\x1b[2J"])])
def test_what_others_wrote_does_not_command_the_terminal(value: Any) -> None:
    assert all(letter.isprintable() for line in as_lines(value).split("\n") for letter in line)


def test_no_result_is_nothing_on_stdout(cli: Any, service: list[bool]) -> None:
    called, as_json = cli.side_by_side(
        ["call", "cam1", "nothing"], ["call", "cam1", "nothing", "--json"]
    )
    assert (called.code, called.out, called.err) == (0, "", "cam1.nothing is done\n")
    assert as_json.out == "null\n"


def test_progress_goes_to_stderr(cli: Any, service: list[bool]) -> None:
    called = cli("call", "cam1", "scan", "n_points=3")
    assert (called.code, called.out) == (0, "3\n")
    assert called.err == '{"point": 0}\n{"point": 1}\n{"point": 2}\n'


def test_ctrl_c_cancels_the_call_and_says_so(cli: Any, service: list[bool], awaiting: Any) -> None:
    service.clear()
    called = cli.start("call", "cam1", "expose", "--timeout", 60)
    called.says("exposing")
    assert called.end(signal.SIGINT) == 1
    assert "CallCancelled: cam1.expose was cancelled" in called.err
    assert "Traceback" not in called.err
    awaiting(lambda: service, "the end of the command")
    assert service == [True]


def test_an_error_there_is_told_with_its_traceback_on_request(
    cli: Any, service: list[bool]
) -> None:
    failed, verbose, misfit = cli.side_by_side(
        ["call", "cam1", "fail", "text=no light\x1b[2J"],
        ["call", "cam1", "fail", "text=no light", "--verbose"],
        ["call", "cam1", "set_exposure", "exposure_s=long"],
    )
    assert (failed.code, verbose.code, misfit.code) == (1, 1, 1)
    assert failed.err.startswith("CommandFailed: cam1.fail failed: ValueError: no light [2J\n")
    assert "--verbose" in failed.err
    assert "raise ValueError(text)" not in failed.err
    assert "raise ValueError(text)" in verbose.err
    assert verbose.err.endswith("CommandFailed: cam1.fail failed: ValueError: no light\n")
    assert "Expected `float`, got `str`" in misfit.err


def test_what_is_not_offered_is_not_found_and_what_there_is_is_named(
    cli: Any, service: list[bool]
) -> None:
    called, listed, lacking = cli.side_by_side(
        ["call", "nobody", "nothing"], ["call", "nobody"], ["call", "cam1", "no_such"]
    )
    for missing in (called, listed, lacking):
        assert missing.code == 3, missing
        assert missing.err.startswith("ServiceNotFound: ")
    assert "'nobody'" in called.err
    assert "There are: cam1." in listed.err
    assert "set_exposure" in lacking.err


def test_a_result_that_does_not_come_in_time_is_4(cli: Any, service: list[bool]) -> None:
    late = cli("call", "cam1", "expose", "--timeout", 0.3)
    assert late.code == 4
    assert "WaitTimeout: cam1.expose was not done within 0.3 s" in late.err


def test_services_and_commands_are_listed(cli: Any, service: list[bool]) -> None:
    services, as_json, commands, commands_json = cli.side_by_side(
        ["call"], ["call", "--json"], ["call", "cam1"], ["call", "cam1", "--json"]
    )
    (row,) = (line for line in services.out.splitlines() if line.startswith(" cam1"))
    assert row.split()[-3:] == ["0", "0", "8"]
    (found,) = json.loads(as_json.out)
    assert (found["name"], found["capacity"], len(found["workers"])) == ("cam1", 8, 1)
    lines = commands.out.splitlines()
    at = lines.index("set_exposure(exposure_s: float, gain: int = 1) -> dict[str, Any]")
    assert lines[at + 1] == "    Set the exposure."
    assert "scan(n_points: int) -> int" in lines
    (command,) = (c for c in json.loads(commands_json.out) if c["name"] == "set_exposure")
    assert command["parameters"][1] == {"name": "gain", "type": "int", "default": "1"}
    assert "What else there is to say." in command["doc"]


def test_arguments_that_cannot_be_meant_are_wrong_usage(cli: Any, service: list[bool]) -> None:
    for wrong in cli.side_by_side(
        ["call", "cam1", "echo", "value"],
        ["call", "cam1", "echo", "=1"],
        ["call", "cam1", "echo", "value=1", "value=2"],
        ["call", "cam1", "echo", "timeout_s=1"],
    ):
        assert wrong.code == 2, wrong
        assert wrong.err.startswith("Usage:")


def test_it_starts_no_broker(apart: Any, runtime: Any) -> None:
    for alone in apart.side_by_side(["call"], ["call", "cam1"], ["call", "cam1", "echo"]):
        assert alone.code == 6
        assert f"no broker runs in {runtime}" in alone.err
        assert "pyhub broker" in alone.err
    assert not (runtime / "broker.json").exists()


def test_progress_that_cannot_be_read_hides_no_result(cli: Any, service: list[bool]) -> None:
    called = cli("call", "cam1", "mumble")
    assert (called.code, called.out) == (0, "done\n"), called
    assert called.err == "<unreadable>\nclearly\n"
