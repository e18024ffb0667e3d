"""What dead processes left can be removed, all of it; what the living use stays."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

# Creates channels in children that are killed, each at another moment.
CYCLES = """
import os, random, select, signal, sys
import pyhub

n_cycles, n_created = int(sys.argv[1]), 0
chance = random.Random(int(sys.argv[2]))
for cycle in range(n_cycles):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        name = f"cam{cycle}" if cycle % 4 else "cam0"  # some take over from the dead
        with pyhub.DataBlockProducer.create(name, dtype="u2", shape=(64, 64)) as producer:
            os.write(write, b"c")
            while True:
                producer.put(pyhub.layout.np.zeros((64, 64), "u2"), flex={"a": 1})
    if cycle % 2:  # half of them when the channel is there, half when it comes
        n_created += len(os.read(read, 1))
    else:
        n_created += bool(select.select([read], [], [], chance.random() * 0.002)[0])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read), os.close(write)
print(n_created)
"""


def shm_of(line: Any) -> Path:
    return Path(line.environment["PYHUB_SHM_DIR"])


def runtime_of(line: Any) -> Path:
    return Path(line.environment["PYHUB_RUNTIME_DIR"])


def segments_of(line: Any) -> set[str]:
    prefix = f"pyhub.{os.geteuid()}."
    names = {path.name.removeprefix(prefix) for path in shm_of(line).iterdir()}
    return {name for name in names if not name.startswith(".")}  # leases, tables of readers


def test_a_hundred_killed_producers_leave_nothing(apart: Any) -> None:
    cycles = apart.start_python("-c", CYCLES, "100", "1")
    assert cycles.end() == 0, cycles
    assert int(cycles.out) >= 50
    left = segments_of(apart)
    assert len(left) >= 30, "without that, the test shows nothing"
    cleaned = apart("clean")
    assert cleaned.code == 0
    for name in left:
        assert f"removed segment {name} (" in cleaned.out
    assert list(shm_of(apart).iterdir()) == [], "really nothing"
    assert apart("clean").out == "nothing to clean\n"
    assert list(shm_of(apart).iterdir()) == []


def test_a_killed_sim_with_its_broker_leaves_nothing(apart: Any, kill_broker: Any) -> None:
    sim = apart.start("sim", "--shape", "16x16")
    sim.says("publishing")
    kill_broker(runtime_of(apart), signal.SIGKILL)
    sim.end(signal.SIGKILL)
    assert {path.suffix for path in runtime_of(apart).iterdir()} >= {".sock", ".json"}
    cleaned = apart("clean")
    assert cleaned.code == 0
    assert "removed segment cam1 (" in cleaned.out
    assert f"removed {runtime_of(apart) / 'broker.json'}: its broker is gone" in cleaned.out
    assert list(shm_of(apart).iterdir()) == []
    left = {path.name for path in runtime_of(apart).iterdir()}
    # Keys, locks and logs; and the state, which is the next broker's.
    assert left == {
        "audit.log", "broker.key", "broker.lock", "broker.log", "client.key", "start.lock",
        "state.db", "state.db-wal",
    }  # fmt: skip
    assert apart("clean").out == "nothing to clean\n"


def test_what_the_living_use_is_kept_and_still_works(apart: Any, kill_broker: Any) -> None:
    dead = apart.start("sim", "--name", "dead", "--shape", "16x16")
    live = apart.start("sim", "--name", "live", "--shape", "16x16")
    assert apart("tap", "dead", "--frames", 1).code == 0
    assert apart("tap", "live", "--frames", 1).code == 0
    dead.end(signal.SIGKILL)
    kill_broker(runtime_of(apart), signal.SIGKILL)
    sockets = set(runtime_of(apart).glob("*.sock"))
    cleaned = apart("clean")
    assert cleaned.code == 0
    assert "removed segment dead (" in cleaned.out
    assert "live" not in cleaned.out
    assert segments_of(apart) == {"live"}
    assert (shm_of(apart) / f"pyhub.{os.geteuid()}..leases").exists()
    # The living one may have started another broker by now.
    (kept,) = set(runtime_of(apart).glob("*.sock")) - {runtime_of(apart) / "broker.sock"}
    assert kept in sockets
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(kept))  # somebody listens there
    assert apart("tap", "live", "--frames", 3).code == 0
    assert live.end(signal.SIGINT) == 0


def test_with_a_living_broker_dead_sockets_go_and_living_ones_stay(apart: Any) -> None:
    broker = apart.start("broker")
    broker.says("listens on")
    sim = apart.start("sim", "--shape", "16x16")
    assert apart("tap", "cam1", "--frames", 1).code == 0
    before = set(runtime_of(apart).glob("*.sock"))
    stale = runtime_of(apart) / "0123456789abcdef.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(stale))
    cleaned = apart("clean")
    assert cleaned.out == f"removed {stale}: nobody listens there any more\n"
    assert set(runtime_of(apart).glob("*.sock")) == before
    assert apart("tap", "cam1", "--frames", 1).code == 0
    assert (sim.end(signal.SIGINT), broker.end(signal.SIGINT)) == (0, 0)


def test_what_cannot_be_judged_is_kept_until_it_is_named(apart: Any) -> None:
    kinds = {"damaged": b"\xff" * 5000, "empty": b"", "foreign": _foreign_segment(apart)}
    for name, content in kinds.items():
        (shm_of(apart) / f"pyhub.{os.geteuid()}.{name}").write_bytes(content)
    cleaned = apart("clean")
    assert cleaned.code == 0
    for name in kinds:
        path = shm_of(apart) / f"pyhub.{os.geteuid()}.{name}"
        (line,) = (line for line in cleaned.out.splitlines() if str(path) in line)
        assert line.startswith("kept ")
        assert line.endswith(f"Remove it: pyhub clean --force {name}")
    assert segments_of(apart) == set(kinds)
    for name in kinds:
        forced = apart("clean", "--force", name)
        assert forced.code == 0
        assert forced.out.startswith("removed ")
    assert segments_of(apart) == set()


def _foreign_segment(apart: Any) -> bytes:
    """Return a segment that another layout's pyhub might have written."""
    sim = apart.start("sim", "--shape", "16x16")
    sim.says("publishing")
    (path,) = (path for path in shm_of(apart).iterdir() if path.name.endswith("cam1"))
    content = path.read_bytes()
    assert sim.end(signal.SIGINT) == 0
    return content[:8] + b"\x4d\0\0\0" + content[12:]


def test_force_removes_the_name_of_a_living_channel_and_harms_nobody(apart: Any) -> None:
    sim = apart.start("sim", "--shape", "16x16")
    tap = apart.start("tap", "cam1", "--json")
    tap.says(r"\n")
    forced = apart("clean", "--force", "cam1")
    assert forced.code == 0
    assert "whatever it was; who has it mapped keeps it" in forced.out
    assert segments_of(apart) == set()
    assert sim.end(signal.SIGINT) == 0
    assert tap.end() in (0, 1)
    assert "Traceback" not in sim.err + tap.err


@pytest.mark.parametrize("name", ["../etc", "a/b", ".leases"])
def test_force_takes_names_of_channels_only(apart: Any, name: str) -> None:
    forced = apart("clean", "--force", name)
    assert forced.code == 1
    assert "InvalidName" in forced.err


def test_a_clean_machine_has_nothing_to_clean(apart: Any) -> None:
    cleaned = apart("clean")
    assert cleaned.code == 0
    assert cleaned.out == "nothing to clean\n"


def test_segments_of_another_boot_are_removed(apart: Any) -> None:
    sim = apart.start("sim", "--shape", "16x16")
    sim.says("publishing")
    (path,) = (path for path in shm_of(apart).iterdir() if path.name.endswith("cam1"))
    content = bytearray(path.read_bytes())
    assert sim.end(signal.SIGINT) == 0
    size = int.from_bytes(content[20:24], "little")  # of the constants
    content[24:28], content[72:88] = bytes(4), bytes(16)
    content[24:28] = zlib.crc32(content[:size]).to_bytes(4, "little")
    path.write_bytes(content)
    path.chmod(0o600)
    assert "removed segment cam1" in apart("clean").out
    assert segments_of(apart) == set()


def test_links_directories_and_pipes_of_a_channels_name_are_kept(
    apart: Any, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    prefix = f"pyhub.{os.geteuid()}."
    (shm_of(apart) / f"{prefix}link").symlink_to(tmp_path / "precious")
    (shm_of(apart) / f"{prefix}directory").mkdir()
    os.mkfifo(shm_of(apart) / f"{prefix}pipe", 0o600)
    cleaned = apart("clean")
    assert cleaned.code == 0, cleaned
    assert "Traceback" not in cleaned.err
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert segments_of(apart) == {"link", "directory", "pipe"}
    listed = json.loads(apart("ls", "--json").out)
    assert [channel["state"] for channel in listed] == ["unreadable"] * 3


@pytest.mark.parametrize("seed", [7])
def test_after_kills_of_everything_at_random_nothing_is_left(
    apart: Any, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    out = tmp_path / "out.h5"
    commands = [
        ["sim", "--shape", "16x16"],
        ["sim", "--shape", "16x16", "--name", "cam2"],
        ["azimuthal", "cam1"],
        ["follow", "cam2"],
        ["tap", "cam1"],
        ["record", "cam2", out],
        ["demo", "--name", "cam3", "--shape", "16x16"],
    ]
    chance.shuffle(commands)
    programs = [apart.start(*command) for command in commands]
    time.sleep(chance.random() * 1.5)  # no event: at any moment
    while victims := apart.running(with_brokers=True):
        chance.shuffle(victims)
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for program in programs:
        program.end()
    cleaned = apart("clean")
    assert cleaned.code == 0, cleaned
    assert list(shm_of(apart).iterdir()) == [], cleaned
    assert not list(runtime_of(apart).glob("*.sock"))
    assert not (runtime_of(apart) / "broker.json").exists()
    assert not out.exists()
    again = apart("sim", "--shape", "16x16", "--frames", 2)
    assert again.code == 0, again


def test_things_in_the_wrong_order_come_right(apart: Any, tmp_path: Path) -> None:
    # Readers before the channel, the channel before the broker's death, and so on.
    recorder = apart.start("record", "cam1", tmp_path / "out.h5", "--frames", 3)
    stage = apart.start("follow", "cam1")
    late = apart.start("tap", "cam1.follow", "--frames", 1)
    assert "nothing to clean" in apart("clean").out
    sim = apart.start("sim", "--shape", "16x16", "--rate", 50)
    assert recorder.end() == 0, recorder
    assert late.end() == 0, late
    assert sim.end(signal.SIGINT) == 0
    again = apart.start("sim", "--shape", "16x20")
    assert apart("tap", "cam1.follow", "--frames", 1).code == 0
    assert stage.end(signal.SIGINT) == 0, stage
    assert again.end(signal.SIGINT) == 0
    assert segments_of(apart) == set()


# --- recover: what the dead left in channels that live on ---

# A channel with a guest that dies in a publication, and readers that die with a pin.
LIVES_ON = """
import os, signal, sys
import numpy as np
import pyhub

producer = pyhub.DataBlockProducer.create(sys.argv[1], dtype="u1", shape=(4,), slots=4)
producer.put(np.zeros(4, "u1"))

def die(act):
    read, write = os.pipe()
    if not os.fork():
        kept = act()
        os.write(write, b"d")
        signal.pause()
    os.read(read, 1)
    return read

def publish():
    guest = pyhub.DataBlockProducer.attach(sys.argv[1])
    guest.begin_publish()
    guest.get_structured_data_buffer()[:] = 9
    return guest

def read():
    reader = pyhub.DataBlockConsumer.attach(sys.argv[1], policy="block")
    return reader, reader.pin()

for act in (read, read, publish):
    die(act)
print("victims", flush=True)
sys.stdin.readline()
for k in range(20):
    producer.put(np.zeros(4, "u1"))
print("published", producer.header().n_recovered, flush=True)
sys.stdin.readline()
"""


def test_recover_repairs_a_living_channel_and_only_once(apart: Any) -> None:
    read, write = os.pipe()
    owner = apart.start_python("-c", LIVES_ON, "cam1", stdin=read)
    os.close(read)
    owner.says("victims")
    victims = [pid for pid in apart.running() if pid != owner.pid]
    assert len(victims) == 3
    kept = apart("recover", "cam1")
    assert kept.code == 0
    assert re.fullmatch(
        r"kept the lock of cam1: a living producer \(pid (\d+)\) is publishing\n", kept.out
    )
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    told = json.loads(apart("info", "cam1", "--json").out)["admitted"]
    assert [(reader["n_pinned"], reader["is_alive"]) for reader in told] == [(1, False)] * 2
    first, second = apart.side_by_side(["recover"], ["recover", "cam1"])
    assert (first.code, second.code) == (0, 0)
    said = sorted((first.out + second.out).replace("nothing to repair\n", "").splitlines())
    assert said == [
        "emptied 2 places of dead readers of cam1",
        "rolled back what a dead producer of cam1 had not published",
    ]
    assert apart("recover").out == "nothing to repair\n"
    assert json.loads(apart("info", "cam1", "--json").out)["admitted"] == []
    os.write(write, b"\n")
    owner.says("published 1")
    os.close(write)
    assert owner.end() == 0


def test_recover_says_what_it_cannot_repair(apart: Any) -> None:
    (shm_of(apart) / f"pyhub.{os.geteuid()}.odd").write_bytes(b"?" * 99)
    everything, odd, nobody = apart.side_by_side(
        ["recover"], ["recover", "odd"], ["recover", "nobody"]
    )
    assert (everything.code, odd.code, nobody.code) == (0, 1, 3)
    assert everything.out.startswith("kept odd: ")
    assert "SegmentDamaged: " in odd.err
    assert "there is no channel 'nobody'" in nobody.err
    assert apart("clean", "--force", "odd").code == 0


def test_two_cleans_at_once_remove_everything_once(apart: Any) -> None:
    script = (
        "import os, pyhub\n"
        "made = [pyhub.DataBlockProducer.create(f'cam{k}') for k in range(60)]\n"
        "os.kill(os.getpid(), 9)"
    )
    apart.start_python("-c", script).end()
    for k in range(0, 60, 2):  # tables whose channel is gone
        (shm_of(apart) / f"pyhub.{os.geteuid()}.cam{k}").unlink()
    cleans = apart.side_by_side(["clean"], ["clean"])
    assert [program.code for program in cleans] == [0, 0]
    assert not any(program.err for program in cleans), cleans
    said = "".join(program.out for program in cleans)
    for k in range(1, 60, 2):
        assert said.count(f"removed segment cam{k} (") == 1
    assert said.count(": the readers of a channel that is gone") >= 30
    assert apart("clean").code == 0
    assert list(shm_of(apart).iterdir()) == []
