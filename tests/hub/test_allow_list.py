"""The rules in force: they follow their file, and stay as they were when it cannot be used."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import zmq

from pyhub.errors import AccessDenied, ConfigError
from pyhub.hub.broker.allow_list import AllowList
from pyhub.hub.broker.rights import Client

GUI, DISPLAY, OWN = (zmq.curve_keypair()[0].decode() for _ in range(3))
EVERYBODY = {"gui": GUI, "display": DISPLAY}


def text(*names: str, role: str = "viewer", more: str = "") -> str:
    lines = [f'- {{name: {name}, key: "{EVERYBODY[name]}", role: {role}}}' for name in names]
    return "\n".join([more, "clients:", *lines])


def replace(path: Path, content: str) -> None:
    """Write as editors do: a new file in the place of the old one."""
    part = path.with_name("part")
    part.write_text(content)
    part.chmod(0o644)
    part.replace(path)


def let_in(allowed: AllowList) -> set[str]:
    found = (allowed.client_of(key.encode()) for key in (*EVERYBODY.values(), OWN))
    return {client.name for client in found if client}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "broker.yaml"
    replace(path, text("gui"))
    return path


@pytest.fixture
def allowed(path: Path) -> AllowList:
    return AllowList(OWN, path)


def test_without_a_file_only_the_brokers_own_user_may_connect() -> None:
    allowed = AllowList(OWN, None)
    assert OWN.encode() in allowed
    assert GUI.encode() not in allowed
    assert allowed.client_of(OWN.encode()) == Client("local", "admin", {}, OWN)
    assert allowed.client_of(GUI.encode()) is None
    assert not allowed.refresh()


def test_a_file_lets_its_clients_in_and_nobody_else(allowed: AllowList) -> None:
    assert let_in(allowed) == {"local", "gui"}
    assert GUI.encode() in allowed
    assert DISPLAY.encode() not in allowed
    for other in (GUI, b"", GUI.encode()[:39], None, 0):
        assert other not in allowed, "keys are bytes, and whole"


def test_a_file_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path, path: Path) -> None:
    replace(path, "clients: 3")
    with pytest.raises(ConfigError):
        AllowList(OWN, path)
    with pytest.raises(FileNotFoundError):
        AllowList(OWN, tmp_path / "none.yaml")


def test_the_own_user_is_an_admin_whatever_the_file_says_and_it_is_told(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replace(path, text("gui"))
    assert AllowList(GUI, path).client_of(GUI.encode()) == Client("local", "admin", {}, GUI)
    assert "'gui' is the broker's own user" in caplog.text


# --- A file that changes ---


def test_a_change_is_in_force_with_the_next_look(path: Path, allowed: AllowList) -> None:
    replace(path, text("gui", "display"))
    assert let_in(allowed) == {"local", "gui"}, "not before one looks"
    assert allowed.refresh()
    assert let_in(allowed) == {"local", "gui", "display"}
    replace(path, text("display", role="producer"))
    assert allowed.refresh()
    assert let_in(allowed) == {"local", "display"}
    assert allowed.client_of(DISPLAY.encode()) == Client("display", "producer", {}, DISPLAY)
    assert not allowed.refresh()


def test_an_unchanged_file_is_read_no_more(
    path: Path, allowed: AllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    really_open = os.open

    def note(path: Path, *how: int) -> int:
        opened.append(path)
        return really_open(path, *how)

    monkeypatch.setattr(os, "open", note)
    assert not any(allowed.refresh() for _ in range(5))
    assert opened == [path], "once more after the start"
    replace(path, text("gui", "display"))
    assert [allowed.refresh() for _ in range(5)] == [True, False, False, False, False]
    assert opened.count(path) == 3, "once more after the change"


def test_two_changes_within_one_tick_of_the_file_systems_clock_are_both_seen(
    path: Path, allowed: AllowList
) -> None:
    # In place, of one size, and so fast that most kernels write the same time.
    first, second = (text("gui", role=role) for role in ("operator", "producer"))
    assert len(first) == len(second)
    for _ in range(20):
        path.write_text(first)
        allowed.refresh()
        path.write_text(second)
        allowed.refresh()
        allowed.refresh()
        assert allowed.client_of(GUI.encode()) == Client("gui", "producer", {}, GUI)


def test_a_file_without_clients_locks_all_out_but_the_own_user(
    path: Path, allowed: AllowList
) -> None:
    replace(path, text())
    assert allowed.refresh()
    assert let_in(allowed) == {"local"}


@pytest.mark.parametrize("broken", ["clients: 3", "clients: [", "", "clients: [{name: gui}]"])
def test_a_broken_file_leaves_the_former_rules_in_force(
    path: Path, allowed: AllowList, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    replace(path, broken)
    for _ in range(5):
        assert not allowed.refresh()
    assert let_in(allowed) == {"local", "gui"}
    assert str(path) in allowed.problem
    assert allowed.n_problems == 1
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "the former rules stay in force" in record.getMessage()
    replace(path, broken + " ")
    assert not allowed.refresh()
    assert allowed.n_problems == 2, "each change is told of"
    replace(path, text("display"))
    assert allowed.refresh()
    assert allowed.problem == ""
    assert let_in(allowed) == {"local", "display"}


def test_a_file_that_goes_away_leaves_the_former_rules_in_force(
    path: Path, allowed: AllowList, caplog: pytest.LogCaptureFixture
) -> None:
    path.unlink()
    for _ in range(5):
        assert not allowed.refresh()
    assert let_in(allowed) == {"local", "gui"}
    assert "No such file" in allowed.problem
    assert len(caplog.records) == allowed.n_problems == 1
    replace(path, text("gui"))
    assert not allowed.refresh(), "the rules are what they were"
    assert allowed.problem == ""


def test_a_file_that_others_may_write_is_not_taken(path: Path, allowed: AllowList) -> None:
    allowed.refresh()
    path.chmod(0o666)
    assert not allowed.refresh()
    assert "mode 0666" in allowed.problem
    replace(path, text("display"))
    path.chmod(0o666)
    assert not allowed.refresh()
    assert let_in(allowed) == {"local", "gui"}
    with pytest.raises(AccessDenied):
        AllowList(OWN, path)


def test_what_takes_a_restart_is_told_once_a_change(
    path: Path, allowed: AllowList, caplog: pytest.LogCaptureFixture
) -> None:
    replace(path, text("gui", "display", more='listen: ["tcp://*:5570"]'))
    assert allowed.refresh()
    assert let_in(allowed) == {"local", "gui", "display"}, "clients are taken all the same"
    allowed.refresh()
    assert caplog.text.count("takes a restart") == 1
    replace(path, text("gui", more="key_file: /etc/pyhub/broker.key"))
    allowed.refresh()
    assert caplog.text.count("takes a restart") == 2
    replace(path, text("gui"))
    allowed.refresh()
    assert caplog.text.count("takes a restart") == 2, "it is what the broker runs with"
