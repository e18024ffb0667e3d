"""Cleaning takes the dead away and leaves the living alone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

import pyhub
from pyhub.hub.runtime import RuntimeDirectory
from pyhub.monitor.cleaning import clean, force, recover
from pyhub.monitor.survey import survey
from pyhub.names import lease_path, reader_tables, segment_names, segment_path

PUBLIC = zmq.curve_keypair()[0].decode()
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
        "endpoint": directory.broker_endpoint, "public_key": PUBLIC, "epoch": "1", "pid": 1,
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
        "endpoint": directory.broker_endpoint, "public_key": PUBLIC, "epoch": "1", "pid": os.getpid(),
        "lease": process_lease(lease_path()), "lease_file": str(lease_path()),
    }  # fmt: skip
    (runtime / "broker.json").write_text(json.dumps(told))
    assert not [line for line in clean(directory) if str(runtime) in line]
    assert (runtime / "broker.json").exists()


# --- Tables of readers ---

# Runs until its standard input ends, or until it is killed.
WAITS = "import os, sys, numpy as np, pyhub\n{}\nprint('ready', flush=True)\nsys.stdin.read()"


@contextlib.contextmanager
def child(script: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `script` in a process of its own, and let it end at last, unless it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITS.format(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.communicate()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


CREATES = "producer = pyhub.DataBlockProducer.create('cam1', dtype='u1', shape=(4,))"


def test_a_table_whose_channel_is_gone_goes_when_its_maker_is_dead() -> None:
    with child(CREATES) as owner:
        segment_path("cam1").unlink()
        (table,) = reader_tables()
        assert list(clean(None)) == [], "its maker lives: the channel may be on its way"
        kill(owner)
        lines = list(clean(None))
    assert lines[0] == f"removed {table}: the readers of a channel that is gone"
    assert reader_tables() == []


def test_the_table_of_a_channel_that_outlives_its_owner_stays() -> None:
    with child(CREATES) as owner:
        guest = pyhub.DataBlockProducer.attach("cam1")
        kill(owner)
        assert [line for line in clean(None) if "leases" not in line] == []
        assert len(reader_tables()) == 1
        with pyhub.DataBlockConsumer.attach("cam1", policy="block") as consumer:
            guest.put(np.arange(4, dtype="u1"))
            assert consumer.read().data.tolist() == [0, 1, 2, 3]
        guest.close()
    list(clean(None))
    assert segment_names() == []
    assert reader_tables() == []


def test_a_table_that_cannot_be_judged_is_kept() -> None:
    with pyhub.DataBlockProducer.create("cam1"):
        (real,) = reader_tables()
        content = real.read_bytes()
    wrong = {"odd": b"?" * 9000, "empty": b"", "newer": content[:8] + b"\x63" + content[9:]}
    for name, bytes_ in wrong.items():
        path = real.with_name(real.name[:-16] + name)
        path.write_bytes(bytes_)
        lines = [line for line in clean(None) if str(path) in line]
        assert len(lines) == 1
        assert lines[0].startswith(f"kept {path}: ")
        path.unlink()


def test_a_pipe_of_a_channels_name_is_not_waited_for() -> None:
    os.mkfifo(segment_path("pipe"), 0o600)
    with child(CREATES) as owner:
        kill(owner)
        segment_path("cam1").unlink()
        lines = list(clean(None))
    assert any(line.startswith(f"kept {segment_path('pipe')}") for line in lines)
    assert reader_tables() == []
    assert force("pipe").startswith("removed ")


# --- Repairing what lives on ---

# A further producer, in the midst of a publication.
PUBLISHES = (
    "producer = pyhub.DataBlockProducer.attach('cam1')\n"
    "producer.begin_publish()\n"
    "producer.get_structured_data_buffer()[:] = 99"
)
# A reader that holds the newest frame, and is waited for.
READS = (
    "reader = pyhub.DataBlockConsumer.attach('cam1', policy='block', reader='dead')\n"
    "frame = reader.pin()"
)


@pytest.fixture
def live() -> Iterator[pyhub.DataBlockProducer]:
    """A channel of this process, with two frames."""
    with pyhub.DataBlockProducer.create(
        "cam1", dtype="u1", shape=(4,), slots=4, patience_s=60
    ) as producer:
        producer.put(np.full(4, 1, "u1"))
        producer.put(np.full(4, 2, "u1"))
        yield producer


def test_what_a_killed_producer_had_not_published_is_rolled_back(
    live: pyhub.DataBlockProducer,
) -> None:
    with child(PUBLISHES) as dead:
        kill(dead)
        assert live.header().is_writing
        assert list(recover("cam1")) == [
            "rolled back what a dead producer of cam1 had not published"
        ]
    assert list(recover("cam1")) == []
    header = live.header()
    assert (header.is_writing, header.n_recovered, header.structured_buffer_version) == (
        False, 1, 2,
    )  # fmt: skip
    with pyhub.DataBlockConsumer.attach("cam1") as consumer:
        assert consumer.read().data.tolist() == [2] * 4
        live.put(np.full(4, 3, "u1"))
        assert consumer.read().data.tolist() == [3] * 4


def test_a_living_producer_in_a_publication_is_left_alone(live: pyhub.DataBlockProducer) -> None:
    ends = "import pyhub as p; producer.end_publish(p.ZoneUpdateInfo(structured_buffer=True))"
    with child(PUBLISHES) as alive:
        assert list(recover("cam1")) == [
            f"kept the lock of cam1: a living producer (pid {alive.pid}) is publishing"
        ]
        assert live.header().is_writing
    with child(f"{PUBLISHES}\n{ends}"):  # one that goes on to the end
        pass
    with pyhub.DataBlockConsumer.attach("cam1") as consumer:
        assert consumer.read().data.tolist() == [99] * 4


def test_the_place_of_a_killed_reader_is_emptied_with_its_pins(
    live: pyhub.DataBlockProducer,
) -> None:
    with (
        pyhub.DataBlockConsumer.attach("cam1", reader="living") as living,
        living.pin() as mine,
        child(READS) as dead,
    ):
        live.put(np.full(4, 3, "u1"))
        before = {reader.name: reader for reader in survey(sample_s=0.0)[0].admitted}
        assert before["dead"].n_pinned == before["living"].n_pinned == 1
        assert list(recover("cam1")) == [], "both live"
        kill(dead)
        told = {reader.name: reader.is_alive for reader in survey(sample_s=0.0)[0].admitted}
        assert told == {"living": True, "dead": False}
        assert list(recover("cam1")) == ["emptied the place of dead readers of cam1"]
        assert list(recover("cam1")) == []
        (left,) = survey(sample_s=0.0)[0].admitted
        assert left == before["living"]
        for k in range(4, 40):  # nobody is waited for, and one slot is passed over
            live.put(np.full(4, k, "u1"))
        assert mine.data.tolist() == [2] * 4
        with pyhub.DataBlockConsumer.attach("cam1", reader="dead"):
            pass  # the name is free again


def test_what_is_no_channel_cannot_be_repaired() -> None:
    with pytest.raises(pyhub.SegmentNotFound):
        list(recover("nobody"))
    segment_path("odd").write_bytes(b"?" * 100)
    with pytest.raises(pyhub.SegmentDamaged):
        list(recover("odd"))
    force("odd")
