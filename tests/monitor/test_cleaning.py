"""Cleaning takes the dead away and leaves the living alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import pyhub
from pyhub.hub.runtime import RuntimeDirectory
from pyhub.monitor.cleaning import clean, force
from pyhub.names import lease_path, segment_names, segment_path

DIES = (
    "import os, sys, pyhub\n"
    "producers = [pyhub.DataBlockProducer.create(name) for name in sys.argv[1:]]\n"
    "os.kill(os.getpid(), 9)"
)


def test_the_dead_go_and_the_living_stay() -> None:
    subprocess.run([sys.executable, "-c", DIES, "dead1", "dead2"], check=False)
    with pyhub.DataBlockProducer.create("live") as live:
        lines = list(clean(None))
        assert segment_names() == ["live"]
        live.put(flex={"a": 1})
    assert lines == [
        f"removed segment {name} ({segment_path(name)}): its producer died"
        for name in ("dead1", "dead2")
    ]


def test_lines_come_as_it_goes() -> None:
    subprocess.run([sys.executable, "-c", DIES, "dead1", "dead2"], check=False)
    lines = clean(None)
    assert "dead1" in next(lines)
    assert segment_names() == ["dead2"]
    assert "dead2" in next(lines)
    assert segment_names() == []


def test_the_lock_file_stays_while_another_process_holds_a_lease() -> None:
    script = (
        "import sys, pyhub\n"
        "with pyhub.DataBlockProducer.create('other'):\n"
        "    print(flush=True)\n"
        "    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        assert list(clean(None)) == []
        assert lease_path().exists()
        other.communicate()


def test_what_cannot_be_judged_is_kept_with_advice() -> None:
    path = segment_path("odd")
    path.write_bytes(b"?" * 100)
    (line,) = (line for line in clean(None) if "odd" in line)
    assert line.startswith(f"kept {path}: {path} is not a pyhub segment.")
    assert line.endswith("Remove it: pyhub clean --force odd")
    assert force("odd").startswith(f"removed {path}")
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        force("odd")


def test_what_a_dead_broker_left_is_removed_but_not_keys_nor_sockets_in_use(
    runtime: Path,
) -> None:
    directory = RuntimeDirectory(runtime)
    script = "from pyhub._core import process_lease; import sys; print(process_lease(sys.argv[1]))"
    lease = subprocess.check_output([sys.executable, "-c", script, str(lease_path())], text=True)
    told = {
        "endpoint": directory.broker_endpoint, "public_key": "", "epoch": "1", "pid": 1,
        "lease": int(lease), "lease_file": str(lease_path()),
    }  # fmt: skip
    (runtime / "broker.json").write_text(json.dumps(told))
    (runtime / "client.key").touch()
    (runtime / "notes.sock").touch()  # no socket, whatever its name says
    with socket.socket(socket.AF_UNIX) as used, socket.socket(socket.AF_UNIX) as left:
        used.bind(str(runtime / "used.sock"))
        used.listen()
        left.bind(str(runtime / "left.sock"))
        left.close()
        assert directory.read_broker() is None
        lines = [line for line in clean(directory) if str(runtime) in line]
    assert lines == [
        f"removed {runtime / 'left.sock'}: nobody listens there any more",
        f"removed {runtime / 'broker.json'}: its broker is gone",
    ]
    assert {path.name for path in runtime.iterdir()} == {
        "broker.lock", "client.key", "notes.sock", "used.sock",
    }  # fmt: skip


def test_the_file_of_a_living_broker_stays(runtime: Path) -> None:
    from pyhub._core import process_lease

    directory = RuntimeDirectory(runtime)
    told = {
        "endpoint": directory.broker_endpoint, "public_key": "", "epoch": "1", "pid": os.getpid(),
        "lease": process_lease(lease_path()), "lease_file": str(lease_path()),
    }  # fmt: skip
    (runtime / "broker.json").write_text(json.dumps(told))
    assert not [line for line in clean(directory) if str(runtime) in line]
    assert (runtime / "broker.json").exists()
