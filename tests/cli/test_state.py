"""state shows what all programs share, sets it, and tells of its changes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pyhub.hub.protocol import SetState, Stated


@pytest.fixture
def state(hub: Any) -> Iterator[Any]:
    """The session's state, empty; what a test set in it is deleted again."""
    hub.state.clear()
    yield hub.state
    hub.state.clear()


def rows_of(listed: Any) -> dict[str, list[str]]:
    lines = [line.split() for line in listed.out.splitlines() if line.startswith(" ")]
    return {line[0]: line for line in lines if len(line) > 1}


def test_keys_are_listed_with_value_version_age_and_source(cli: Any, state: Any) -> None:
    version = state.set("cam1/exposure_s", 0.1).version
    state["cam1/note"] = "[red]a\nb\x1b[2J" + "z" * 90
    state["door"] = "open"
    every, some, as_json = cli.side_by_side(
        ["state"], ["state", "cam1/*"], ["state", "cam1/*", "--json"]
    )
    assert rows_of(every).keys() == {"key", "cam1/exposure_s", "cam1/note", "door"}
    row = rows_of(some)["cam1/exposure_s"]
    assert (row[1], row[-2]) == ("0.1", str(version))
    assert row[-1].startswith("0:")
    assert f"{os.getpid()}@{os.uname().nodename})" in row[-3], "its source"
    assert rows_of(some)["cam1/note"][1:3] == ["[red]a", "b"]
    assert "\x1b" not in some.out
    assert "door" not in some.out
    entry, note = json.loads(as_json.out)
    assert (entry["key"], entry["value"], entry["version"]) == ("cam1/exposure_s", 0.1, version)
    assert note["value"] == state["cam1/note"]
    assert abs(entry["time_ns"] / 1e9 - time.time()) < 3600


def test_a_key_is_printed_as_its_bare_value(cli: Any, state: Any) -> None:
    state["number"], state["text"], state["flag"] = 0.1 + 0.2, "two words", True
    state["map"], state["array"] = {"a": [1, None]}, np.arange(3)
    printed = cli.side_by_side(
        *(["state", key] for key in ("number", "text", "flag", "map", "array")),
        ["state", "array", "--json"],
    )
    assert [program.out for program in printed[:5]] == [
        "0.30000000000000004\n",
        "two words\n",
        "true\n",
        "a: [1, null]\n",
        "array of shape 3, int64\n[0 1 2]\n",
    ]
    assert json.loads(printed[5].out)["value"] == [0, 1, 2]


def test_a_value_that_cannot_be_read_is_told_as_such_among_the_others(
    cli: Any, hub: Any, state: Any
) -> None:
    state["cam1/a"] = 1
    # As a program in another language may set it.
    hub._connection.ask(SetState(os.urandom(12), "cam1/b", b"\xc1"), Stated)
    state["cam1/c"] = 3
    watch = cli.start("state", "--watch", "cam1/*")
    listed, as_json, bare, one = cli.side_by_side(
        ["state"], ["state", "--json"], ["state", "cam1/b"], ["state", "cam1/b", "--json"]
    )
    watch.says("cam1/c = 3")
    assert (watch.end(signal.SIGINT), listed.code, as_json.code, one.code) == (0, 0, 0, 0)
    assert "cam1/b = <unreadable: 1 bytes>  (" in watch.out
    assert rows_of(listed)["cam1/b"][1:4] == ["<unreadable:", "1", "bytes>"]
    assert rows_of(listed)["cam1/c"][1] == "3"
    entries = json.loads(as_json.out)
    assert [entry["value"] for entry in entries] == [1, None, 3]
    assert ["problem" in entry for entry in entries] == [False, True, False]
    assert json.loads(one.out)["problem"].startswith("unreadable: 1 bytes")
    # A script that asks for one value is not to take this for it.
    assert (bare.code, bare.out) == (1, "")
    assert bare.err.startswith("CodecError: the value of 'cam1/b', set by ")
    assert cli("state", "--delete", "cam1/b").code == 0
    assert "cam1/b" not in state


def test_a_key_is_set_and_deleted(cli: Any, state: Any) -> None:
    for text, value in (("0.1", 0.1), ("open", "open"), ('"0.1"', "0.1"), ("a=b", "a=b")):
        assert cli("state", f"cam1/x={text}").code == 0
        assert state["cam1/x"] == value
    as_json = cli("state", "cam1/x=[1]", "--json")
    assert json.loads(as_json.out)["version"] == state.entry("cam1/x").version
    assert state.entry("cam1/x").source.startswith("pyhub state (")
    assert cli("state", "--delete", "cam1/x").code == 0
    assert "cam1/x" not in state


def test_a_key_that_was_changed_meanwhile_is_not_set(cli: Any, state: Any) -> None:
    version = state.set("cam1/x", 1).version
    state["cam1/x"] = 2
    stale, there = cli.side_by_side(
        ["state", "cam1/x=3", "--if-version", version], ["state", "cam1/x=3", "--if-version", 0]
    )
    for refused in (stale, there):
        assert refused.code == 1
        assert "VersionConflict" in refused.err
    assert state["cam1/x"] == 2
    version = state.entry("cam1/x").version
    assert cli("state", "cam1/x=3", "--if-version", version).code == 0
    assert state["cam1/x"] == 3


def test_a_key_that_is_not_there_is_3(cli: Any, state: Any) -> None:
    read, deleted, none = cli.side_by_side(
        ["state", "cam1/x"], ["state", "--delete", "cam1/x"], ["state", "cam1/*"]
    )
    for missing in (read, deleted):
        assert missing.code == 3
        assert "there is no key 'cam1/x'" in missing.err
    assert (none.code, none.out) == (0, "")
    assert "no key matches 'cam1/*'" in none.err


def test_watching_begins_with_what_is_there_and_goes_on_with_changes(cli: Any, state: Any) -> None:
    state["cam1/x"] = 1
    watch = cli.start("state", "--watch", "cam1/*")
    watch.says(r"cam1/x = 1 ")
    as_json = cli.start("state", "--watch", "cam1/*", "--json")
    as_json.says(r'"value": 1,')
    state["door"] = "open"
    state["cam1/x"] = "two\x1b[2J"
    state.delete("cam1/x")
    watch.says("cam1/x deleted")
    as_json.says(r'"is_deleted": true')
    assert (watch.end(signal.SIGINT), as_json.end(signal.SIGINT)) == (0, 0)
    first, second, third = watch.out.splitlines()
    assert " cam1/x = two [2J  (" in second
    assert all(line.startswith("20") for line in (first, second, third))
    values = [json.loads(line)["value"] for line in as_json.out.splitlines()]
    assert values == [1, "two\x1b[2J", None]


@pytest.mark.parametrize(
    "line", ["--watch a=1", "--watch --delete a", "a --if-version 1", "--delete a*"]
)
def test_what_does_not_go_together_is_wrong_usage(cli: Any, line: str) -> None:
    assert cli("state", *line.split()).code == 2


def test_only_who_sets_or_watches_starts_a_broker(apart: Any, runtime: Any) -> None:
    for alone in apart.side_by_side(["state"], ["state", "cam1/x"], ["state", "--json"]):
        assert alone.code == 6
        assert f"no broker runs in {runtime}" in alone.err
    assert not (runtime / "broker.json").exists()
    assert apart("state", "cam1/x=1").code == 0
    assert apart("state", "cam1/x").out == "1\n"
    assert apart("broker", "--stop").code == 0
    assert apart("state", "cam1/x").out == "1\n", "what was written down is there to be read"
