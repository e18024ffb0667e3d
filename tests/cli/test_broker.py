"""A broker in the foreground: one a runtime directory, used by all, ended cleanly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def start_broker(apart: Any, *options: object) -> Any:
    broker = apart.start("broker", *options)
    broker.says("listens on ipc://")
    return broker


def runtime_of(line: Any) -> Path:
    return Path(line.environment["PYHUB_RUNTIME_DIR"])


@pytest.fixture(scope="module", autouse=True)
def unanswered(called_once: Any) -> Iterator[Any]:
    """Programs whose broker does not answer; the other tests run while they wait for it."""
    runtime = Path(tempfile.mkdtemp(prefix="phb-"))
    called_once.environment["PYHUB_RUNTIME_DIR"] = str(runtime)
    broker = start_broker(called_once)
    broker.suspend()
    stuck = [called_once.start("sim", "--frames", 1), called_once.start("tap", "cam1")]
    # And one that cannot start a broker: its socket's name is taken.
    elsewhere = runtime / "b"
    (elsewhere / "broker.sock" / "x").mkdir(parents=True)
    elsewhere.chmod(0o700)
    alone = called_once.start("sim", "--frames", 1, env={"PYHUB_RUNTIME_DIR": str(elsewhere)})
    yield called_once, stuck, alone, elsewhere
    broker.resume()
    assert broker.end(signal.SIGINT) == 0
    shutil.rmtree(runtime)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_nothing_of_it_is_left(apart: Any, number: int) -> None:
    broker = start_broker(apart)
    told = json.loads((runtime_of(apart) / "broker.json").read_bytes())
    assert told["pid"] == broker.pid
    assert broker.end(number) == 0
    assert "Traceback" not in broker.err
    left = {path.name for path in runtime_of(apart).iterdir()}
    assert not left & {"broker.json", "broker.sock"}


def test_other_commands_use_it(apart: Any) -> None:
    broker = start_broker(apart)
    sim = apart.start("sim", "--shape", "16x16")
    assert apart("tap", "cam1", "--frames", 1).code == 0
    tap = apart.start("tap", "cam1")
    tap.says(r"\n")
    (channel,) = json.loads(apart("ls", "--json").out)
    assert channel["n_readers"] == 1
    told = json.loads((runtime_of(apart) / "broker.json").read_bytes())
    assert told["pid"] == broker.pid
    assert not (runtime_of(apart) / "broker.log").exists(), "no other one was started"
    assert (sim.end(signal.SIGINT), tap.end()) == (0, 0)
    assert broker.end(signal.SIGTERM) == 0


def test_a_second_one_is_refused(apart: Any) -> None:
    broker = start_broker(apart)
    second = apart("broker")
    assert second.code == 1
    assert f"another broker (pid {broker.pid}) serves {runtime_of(apart)}" in second.err
    assert apart("sim", "--shape", "16x16", "--frames", 1).code == 0
    assert broker.end(signal.SIGINT) == 0


def test_it_serves_the_directory_that_it_was_told(apart: Any, tmp_path_factory: Any) -> None:
    elsewhere = runtime_of(apart) / "b"
    broker = start_broker(apart, "--runtime-dir", elsewhere)
    assert f"ipc://{elsewhere}/broker.sock" in broker.err
    assert elsewhere.stat().st_mode & 0o777 == 0o700
    assert os.listdir(runtime_of(apart)) == ["b"]
    assert broker.end(signal.SIGINT) == 0


def test_it_ends_when_it_is_alone_for_long_enough(apart: Any) -> None:
    assert apart("broker", "--linger", 0.2).code == 0


def test_programs_start_the_next_broker_when_theirs_is_killed(apart: Any, awaiting: Any) -> None:
    first = start_broker(apart)
    sim = apart.start("sim", "--shape", "16x16")
    tap = apart.start("tap", "cam1", "--json")
    tap.says(r"\n")
    first.end(signal.SIGKILL)

    def is_known_again() -> bool:
        (channel,) = json.loads(apart("ls", "--json").out)
        return bool(channel["n_readers"] == 1)

    awaiting(is_known_again, "the producer and the reader at the next broker")
    told = json.loads((runtime_of(apart) / "broker.json").read_bytes())
    assert told["pid"] != first.pid
    assert (sim.end(signal.SIGINT), tap.end()) == (0, 0)
    ids = [json.loads(line)["frame_id"] for line in tap.out.splitlines()]
    assert ids == list(range(ids[0], ids[-1] + 1)), "no frame was lost by it"


def test_a_key_file_that_others_may_read_is_refused_by_broker_and_programs(apart: Any) -> None:
    assert start_broker(apart).end(signal.SIGINT) == 0
    keys = sorted(runtime_of(apart).glob("*.key"))
    assert len(keys) == 2
    for key in keys:
        key.chmod(0o640)
        refused = apart("broker")
        assert refused.code == 1
        assert f"AccessDenied: the key file {key} has mode 0640" in refused.err
        assert f"chmod 600 {key}" in refused.err
        assert "Traceback" not in refused.err
        key.chmod(0o600)
    broker = start_broker(apart)
    (runtime_of(apart) / "client.key").chmod(0o604)
    commands = (["sim"], ["tap", "cam1"], ["record", "cam1", "x.h5"], ["demo"])
    for refused in apart.side_by_side(*commands, cwd=runtime_of(apart)):
        assert refused.code == 1
        assert "client.key has mode 0604" in refused.err
        assert "Traceback" not in refused.err
    (runtime_of(apart) / "client.key").chmod(0o600)
    assert apart("sim", "--shape", "16x16", "--frames", 1).code == 0
    assert broker.end(signal.SIGINT) == 0


def test_a_key_file_of_other_content_is_refused(apart: Any) -> None:
    assert start_broker(apart).end(signal.SIGINT) == 0
    for content in (b"", b"{}", b'{"public": "a", "secret": "b"}', os.urandom(200)):
        (runtime_of(apart) / "broker.key").write_bytes(content)
        refused = apart("broker")
        assert refused.code == 1
        assert "holds no CurveZMQ key pair" in refused.err
        assert "Traceback" not in refused.err


def test_it_can_be_told_to_end(apart: Any) -> None:
    broker = start_broker(apart)
    stopped = apart("broker", "--stop")
    assert stopped.code == 0, stopped
    assert f"the broker (pid {broker.pid}) of {runtime_of(apart)} has ended" in stopped.out
    assert broker.end() == 0
    again = apart("broker", "--stop")
    assert again.code == 6
    assert f"no broker runs in {runtime_of(apart)}: there is none to end" in again.err


def test_the_one_of_another_directory_can_be_told_to_end(apart: Any) -> None:
    elsewhere = runtime_of(apart) / "b"
    here, there = start_broker(apart), start_broker(apart, "--runtime-dir", elsewhere)
    assert apart("broker", "--stop", "--runtime-dir", elsewhere).code == 0
    assert there.end() == 0
    assert here.code is None
    assert here.end(signal.SIGINT) == 0


def test_6_is_a_broker_that_does_not_answer(unanswered: Any) -> None:
    line, stuck, alone, elsewhere = unanswered
    listed = line("ls")
    assert listed.code == 0, "the list is read from shared memory"
    for program in stuck:
        assert program.end() == 6
        assert "BrokerUnreachable: the broker in" in program.err
        assert "did not answer" in program.err
        assert "Traceback" not in program.err
    assert alone.end() == 6
    assert "BrokerUnreachable: the broker did not start" in alone.err
    assert f"See why in {elsewhere / 'broker.log'}" in alone.err
    assert (elsewhere / "broker.log").read_text()
