"""pyhub config: an example that passes its own check, and files that do not."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyhub.cli import main
from pyhub.hub.keys import create_key_files

UNIT = Path(__file__).parents[2] / "examples/site/pyhub-broker.service"


@pytest.fixture
def config(cli: Any, tmp_path: Path) -> Path:
    """The example, in a file."""
    path = tmp_path / "broker.yaml"
    path.write_text(cli("config", "example").out)
    path.chmod(0o644)
    return path


def test_the_example_passes_the_check(cli: Any, config: Path) -> None:
    checked = cli("config", "check", config)
    assert checked.code == 0
    assert "runtime directory: /run/pyhub" in checked.out
    assert "listens on: tcp://*:5570" in checked.out
    assert "key pair: /etc/pyhub/broker.key" in checked.out
    rows = [re.split(r" {2,}", line.strip()) for line in checked.out.splitlines()]
    assert ["hall-display", "viewer", "as its role", "Yne@$w-v..."] in rows
    assert ["alignment-gui", "operator", "call: cam1.*; set: cam1/*", "rq:rM>}U..."] in rows


def test_what_is_left_out_is_told_as_it_will_be(cli: Any, config: Path) -> None:
    config.write_text("clients: []")
    checked = cli("config", "check", config)
    assert "listens on: its socket in that directory only" in checked.out
    assert "key pair: broker.key in that directory" in checked.out


def test_a_mistake_is_told_with_its_place(cli: Any, config: Path) -> None:
    config.write_text(config.read_text().replace("role: operator", "role: operatr"))
    checked = cli("config", "check", config)
    assert checked.code == 1
    assert checked.err.startswith(f"ConfigError: {config}: clients[1].role: ")
    assert "'operatr'" in checked.err
    assert "one of viewer, operator, producer, admin" in checked.err
    assert checked.out == ""


def test_a_file_that_others_may_write_fails(cli: Any, config: Path) -> None:
    config.chmod(0o666)
    checked = cli("config", "check", config)
    assert checked.code == 1
    assert checked.err.startswith(f"AccessDenied: the configuration {config} has mode 0666")


def test_a_file_that_is_not_there_is_not_found(cli: Any, tmp_path: Path) -> None:
    checked = cli("config", "check", tmp_path / "none.yaml")
    assert checked.code == 3
    assert f"{tmp_path}/none.yaml" in checked.err


def test_what_the_file_says_is_shown_as_text(cli: Any, config: Path) -> None:
    config.write_text(config.read_text().replace("cam1.*", "[red]cam1[/red]"))
    assert "call: [red]cam1[/red];" in cli("config", "check", config).out


# --- A broker with a configuration ---


def configure(config: Path, runtime: Path) -> None:
    """Let the example speak of places that a test may use."""
    create_key_files(config.with_name("broker"))
    text = config.read_text().replace("/etc/pyhub", str(config.parent))
    text = text.replace("/run/pyhub", str(runtime))
    config.write_text(text.replace("tcp://*:5570", "tcp://127.0.0.1:*"))


def test_a_broker_takes_its_directory_from_its_configuration(
    apart: Any, config: Path, runtime: Path
) -> None:
    elsewhere = runtime / "site"
    configure(config, elsewhere)
    broker = apart.start("broker", "--config", config)
    broker.says(f"listens on ipc://{elsewhere}/broker.sock")
    assert broker.end(signal.SIGTERM) == 0


def test_the_option_wins_over_the_configuration(apart: Any, config: Path, runtime: Path) -> None:
    configure(config, runtime / "site")
    chosen = runtime / "chosen"
    broker = apart.start("broker", "--config", config, "--runtime-dir", chosen)
    broker.says(f"listens on ipc://{chosen}/broker.sock")
    assert broker.end(signal.SIGTERM) == 0
    assert not (runtime / "site").exists()


def test_a_broker_does_not_start_with_a_configuration_that_it_cannot_use(
    apart: Any, config: Path, tmp_path: Path
) -> None:
    config.write_text("clients: 3")
    refused = apart("broker", "--config", config)
    assert refused.code == 1
    assert "ConfigError" in refused.err
    assert apart("broker", "--config", tmp_path / "none.yaml").code == 3


def test_the_unit_starts_a_broker_with_its_configuration() -> None:
    (started,) = re.findall(r"^ExecStart=\S+/pyhub (\w+) (.+)$", UNIT.read_text(), re.MULTILINE)
    context = main.commands[started[0]].make_context(started[0], started[1].split())
    assert context.params["config"] == Path("/etc/pyhub/broker.yaml")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_has_nothing_against_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/pyhub/bin/pyhub", sys.executable))
    verify = ["systemd-analyze", "verify", str(unit)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    # Would it say so if something were wrong?
    unit.write_text(unit.read_text().replace("LimitNOFILE=65536", "LimitNOFILES=many"))
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert "LimitNOFILES" in done.stderr
