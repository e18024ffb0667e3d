"""ls and info tell of every channel, whatever its state, and disturb nobody."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyhub
from pyhub.monitor.cleaning import force
from pyhub.names import segment_path


@pytest.fixture
def channels(cli: Any, hub: Any) -> Any:
    """One channel of each state; the names say which."""
    sim = cli.start("sim", "--name", "dead", "--shape", "16x16")
    sim.says("publishing")
    sim.end(signal.SIGKILL)
    live = hub.create_datablock_producer("live", dtype="float32", shape=(5, 7), slots=3)
    live.put(np.ones((5, 7), "f4"), flex={"energy": 12.5, "units": {"energy": "keV"}})
    records = [("x", "<f4"), ("n", "<i2")]
    other = hub.create_datablock_producer("records", dtype=records, shape=(4,))
    # Closed, but its name was not removed: as it is for a moment at every end.
    closing = pyhub.DataBlockProducer.create("closing", dtype="u1", shape=(2, 2))
    os.rename(segment_path("closing"), segment_path("closed"))
    closing.close()
    content = segment_path("live").read_bytes()
    _write("foreign", content[:8] + struct.pack("<I", 77) + content[12:])
    _write("damaged", content[:100] + b"\xff" + content[101:])
    _write("truncated", content[:-4096])
    _write("empty", b"")
    segment_path("open").touch(mode=0o622)
    segment_path("open").chmod(0o622)
    yield live
    other.close()
    live.close()
    for name in ("dead", "closed", "foreign", "damaged", "truncated", "empty", "open"):
        force(name)


def _write(name: str, content: bytes) -> None:
    path = segment_path(name)
    path.touch(mode=0o600)
    path.write_bytes(content)


UNREADABLE = {
    "foreign": "layout 77",
    "damaged": "is damaged",
    "truncated": "is truncated",
    "empty": "is not a pyhub segment",
    "open": "may be written by others",
}


@pytest.mark.usefixtures("channels")
def test_every_channel_is_told_whatever_its_state(cli: Any, hub: Any) -> None:
    with (
        hub.find_datablock_consumer("live"),
        hub.find_datablock_consumer("live"),
        cli.in_terminal("ls", size=(40, 100)) as narrow,
    ):
        as_json, table, *infos = cli.side_by_side(
            ["ls", "--json"], ["ls"], *(["info", name] for name in UNREADABLE)
        )
        assert narrow.end() == 0
    check_json(as_json)
    check_table(table)
    (line,) = (line for line in narrow.out.splitlines() if line.split()[:1] == ["live"])
    assert line.split()[1:5] == ["live", "float32", "5x7", "3"]
    assert line.split()[-1] == str(os.getpid())
    for info, problem in zip(infos, UNREADABLE.values(), strict=True):
        assert info.code == 1
        assert problem in info.out
        assert "Traceback" not in info.err


def check_json(listed: Any) -> None:
    assert listed.code == 0
    assert not listed.err
    found = {channel["name"]: channel for channel in json.loads(listed.out)}
    assert set(found) == {"live", "records", "closed", "dead", *UNREADABLE}
    assert found["live"]["state"] == "live"
    assert found["live"]["dtype"] == "float32"
    assert found["live"]["shape"] == [5, 7]
    assert found["live"]["n_slots"] == 3
    assert found["live"]["owner_pid"] == os.getpid()
    assert found["live"]["n_readers"] == 2
    assert found["live"]["age_s"] >= 0
    assert found["records"]["age_s"] is None
    assert found["records"]["n_readers"] == 0
    assert found["closed"]["state"] == "closed"
    assert found["dead"]["state"] == "dead"
    for name, problem in UNREADABLE.items():
        assert found[name]["state"] == "unreadable"
        assert problem in found[name]["problem"]


def check_table(listed: Any) -> None:
    assert listed.code == 0
    lines = [line.split() for line in listed.out.splitlines() if line[:1] == " " and line.strip()]
    rows = {line[0]: line for line in lines}
    assert rows["live"][1:5] == ["live", "float32", "5x7", "3"]
    assert rows["live"][-1] == str(os.getpid())
    assert rows["dead"][1] == "dead"
    assert rows["closed"][1] == "closed"
    for name, problem in UNREADABLE.items():
        assert rows[name] == [name, "unreadable"]
        assert re.search(rf"^{name}: .*{problem}", listed.out, re.MULTILINE)


def test_without_a_broker_readers_are_unknown_and_none_is_started(apart: Any) -> None:
    shm, runtime = (apart.environment[name] for name in ("PYHUB_SHM_DIR", "PYHUB_RUNTIME_DIR"))
    script = (
        "import pyhub, sys\n"
        "with pyhub.DataBlockProducer.create('alone', dtype='u1', shape=(2, 2)) as producer:\n"
        "    print('created', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    read, write = os.pipe()
    producer = apart.start_python("-c", script, stdin=read)
    os.close(read)
    producer.says("created")
    table, listed, info = apart("ls"), apart("ls", "--json"), apart("info", "alone", "--json")
    os.close(write)
    assert producer.end() == 0
    assert (table.code, listed.code, info.code) == (0, 0, 0)
    (row,) = (line.split() for line in table.out.splitlines() if "alone" in line)
    assert row[-3] == "-"
    assert json.loads(listed.out)[0]["n_readers"] is None
    assert json.loads(info.out)["n_readers"] is None
    assert os.listdir(runtime) == []
    assert [name for name in os.listdir(shm) if not name.endswith("..leases")] == []


def test_no_channels_are_no_error(apart: Any) -> None:
    listed, as_json = apart("ls"), apart("ls", "--json")
    assert (listed.code, as_json.code) == (0, 0)
    assert "start one with: pyhub sim" in listed.err
    assert json.loads(as_json.out) == []


def test_ls_measures_the_rate(cli: Any) -> None:
    sim = cli.start("sim", "--shape", "16x16", "--rate", 200)
    cli("tap", "cam1", "--frames", 20)
    (channel,) = json.loads(cli("ls", "--json").out)
    assert sim.end(signal.SIGINT) == 0
    assert 0 < channel["rate_hz"] < 2000


def test_info_shows_header_and_parameters_and_takes_no_markup_for_its_own(
    cli: Any, hub: Any
) -> None:
    flex = {"energy": 12.5, "note": "[/bold] [red]x[/] :smile:", "units": {"energy": "keV"}}
    with hub.create_datablock_producer("cam1", dtype="u2", shape=(3, 4), slots=2) as producer:
        producer.put(np.zeros((3, 4), "u2"), flex=flex)
        info, as_json = cli("info", "cam1"), cli("info", "cam1", "--json")
    assert (info.code, as_json.code) == (0, 0), info
    rows = dict(line.split(maxsplit=1) for line in info.out.splitlines())
    assert rows["state"].strip() == "live"
    assert rows["dtype"].strip() == "uint16"
    assert rows["flex.energy"].strip() == "12.5 keV"
    assert rows["flex.note"].strip() == flex["note"]
    assert rows["timestamp"].startswith("20")
    facts = json.loads(as_json.out)
    assert facts["flex"] == flex
    assert facts["structured_buffer_size"] == 24
    assert facts["structured_buffer_version"] == 1


def test_info_on_parameters_that_cannot_be_decoded_says_so(cli: Any, hub: Any) -> None:
    with hub.create_datablock_producer("cam1") as producer:
        producer.begin_publish()
        producer.get_flexible_zone_buffer()[:3] = b"\xc1\xc1\xc1"
        producer.end_publish(pyhub.ZoneUpdateInfo(flex_zone=True, flex_zone_size=3))
        info, tap = cli("info", "cam1"), cli("tap", "cam1", "--frames", 1)
    assert info.code == 0
    assert "problem" in info.out
    assert tap.code == 1
    assert tap.err.startswith("CodecError")
    assert "Traceback" not in tap.err


def test_segments_of_others_are_not_listed(cli: Any, shm: Path) -> None:
    (shm / f"pyhub.{os.geteuid() + 1}.theirs").touch()
    (shm / "unrelated").touch()
    try:
        assert json.loads(cli("ls", "--json").out) == []
    finally:
        (shm / f"pyhub.{os.geteuid() + 1}.theirs").unlink()
        (shm / "unrelated").unlink()


@pytest.fixture
def stalled(hub: Any) -> Iterator[Any]:
    """A channel whose producer waits for a reader, and has dropped frames for another."""
    with (
        hub.create_datablock_producer(
            "cam1", dtype="u1", shape=(512, 1028), slots=4, patience_s=60
        ) as producer,
        pyhub.DataBlockConsumer.attach("cam1", policy="drop_newest", reader="choosy") as choosy,
    ):
        for _ in range(7):
            producer.put(np.zeros((512, 1028), "u1"))
        choosy.close()
        with pyhub.DataBlockConsumer.attach("cam1", policy="block", reader="slow") as slow:

            def publish() -> None:
                for _ in range(8):
                    producer.put(np.zeros((512, 1028), "u1"))

            thread = threading.Thread(target=publish)
            thread.start()
            yield slow
        thread.join()


@pytest.mark.usefixtures("stalled")
def test_a_reader_that_holds_the_producer_up_and_frames_dropped_are_told(cli: Any) -> None:
    with (
        cli.in_terminal("ls", size=(40, 80)) as listed,
        cli.in_terminal("info", "cam1", size=(40, 80)) as info,
    ):
        assert (listed.end(), info.end()) == (0, 0)
    json_ls, json_info = cli.side_by_side(["ls", "--json"], ["info", "cam1", "--json"])
    waits = rf"cam1: the producer waits for reader 'slow' \(pid {os.getpid()}\), \d+% of the time"
    (row,) = (line.split() for line in listed.out.splitlines() if line.startswith(" cam1"))
    assert row[1:5] == ["live", "uint8", "512x1028", "4"]
    assert row[-3] == "0!"
    for program in (listed, info):
        assert re.search(waits, program.out), program
        assert "cam1: 3 frames dropped so far" in program.out
        assert all(len(line) <= 80 for line in program.out.splitlines() if line[:1] == " ")
    (row,) = (line.split() for line in info.out.splitlines() if line.startswith(" slow"))
    assert row[:5] == ["slow", "block", "0", "0", "0"]
    assert float(row[6]) > 0
    assert row[7:] == ["0", str(os.getpid()), "alive"]
    (of_ls,), of_info = json.loads(json_ls.out), json.loads(json_info.out)
    for facts in (of_ls, of_info):
        (reader,) = facts["admitted"]
        assert reader.pop("stalled_s") > 0
        assert reader == {
            "name": "slow", "pid": os.getpid(), "policy": "block", "n_read": 0, "n_lost": 0,
            "max_lag": 0, "n_pinned": 0, "n_dropped": 0, "is_alive": True, "is_stalling": True,
        }  # fmt: skip
        assert facts["n_dropped"] == 3
        assert abs(facts["timestamp_ns"] - facts["timestamp"] * 1e9) < 1e3


def test_of_readers_that_cost_nothing_ls_says_nothing(cli: Any, hub: Any) -> None:
    with (
        hub.create_datablock_producer("cam1", dtype="u1", shape=(2, 2)) as producer,
        pyhub.DataBlockConsumer.attach("cam1", policy="block", reader="[red]prompt") as reader,
    ):
        producer.put(np.zeros((2, 2), "u1"))
        reader.read()
        listed, info = cli.side_by_side(["ls"], ["info", "cam1"])
    assert len(listed.out.split("\n cam1", 1)[1].strip().splitlines()) == 1
    assert "!" not in listed.out
    assert re.search(r"^ \[red\]prompt +block ", info.out, re.MULTILINE)
    assert info.out.rstrip().endswith("alive")


def test_dead_readers_are_told_as_dead(cli: Any, hub: Any) -> None:
    with hub.create_datablock_producer("cam1", dtype="u1", shape=(2, 2)):
        tap = cli.start("tap", "cam1", "--policy", "drop_oldest")
        assert hub.wait_for_readers("cam1", 1, 40)
        tap.end(signal.SIGKILL)
        info, as_json = cli.side_by_side(["info", "cam1"], ["info", "cam1", "--json"])
    (reader,) = json.loads(as_json.out)["admitted"]
    assert (reader["pid"], reader["is_alive"]) == (tap.pid, False)
    assert f"{tap.pid}  dead" in info.out


@pytest.fixture
def elsewhere(apart: Any) -> Iterator[Any]:
    """A broker, and a channel that it alone knows: its segment lies where nobody else looks."""
    segments = Path(apart.environment["PYHUB_SHM_DIR"], "elsewhere")
    segments.mkdir()
    far = apart.start("sim", "--name", "far", "--shape", "16x16",
                      env={"PYHUB_SHM_DIR": str(segments)})  # fmt: skip
    far.says("publishing")
    yield far
    if far.code is None:
        assert far.end(signal.SIGINT) == 0


def test_channels_that_only_the_broker_knows_are_listed_too(apart: Any, elsewhere: Any) -> None:
    near = apart.start("sim", "--name", "near", "--shape", "16x16")
    near.says("publishing")
    table, as_json = apart.side_by_side(["ls"], ["ls", "--json"])
    host = os.uname().nodename
    rows = {line.split()[0]: line.split() for line in table.out.splitlines() if line.split()}
    assert rows["channel"][-1] == "host"
    for name, producer in (("near", near), ("far", elsewhere)):
        assert rows[name][1:5] == ["live", "uint16", "16x16", "16"]
        assert rows[name][-2:] == [str(producer.pid), host]
    of_near, of_far = json.loads(as_json.out)
    assert (of_near["name"], of_far["name"]) == ("near", "far")
    same = ("state", "dtype", "shape", "n_slots", "n_readers", "admitted", "host", "segment_id")
    for name in (*same, "owner_pid", "rate_hz", "age_s", "timestamp_ns", "n_dropped"):
        assert name in of_near
        assert name in of_far
    for name in ("state", "dtype", "shape", "n_slots", "n_readers", "admitted", "host"):
        assert of_near[name] == of_far[name]
    assert near.end(signal.SIGINT) == 0


def test_watching_tells_a_line_a_change(apart: Any, elsewhere: Any) -> None:
    watch = apart.start("ls", "--watch")
    as_json = apart.start("ls", "--watch", "--json")
    host = os.uname().nodename
    for program in (watch, as_json):
        program.says(r"\bfar\b")
    near = apart.start("sim", "--name", "near", "--shape", "16x16")
    for program in (watch, as_json):
        program.says(r"\bnear\b")
    assert (near.end(signal.SIGINT), elsewhere.end(signal.SIGINT)) == (0, 0)
    watch.says("near  gone")
    watch.says("far  gone")
    as_json.says('"far", "state": "gone"')
    as_json.says('"near", "state": "gone"')
    assert (watch.end(signal.SIGINT), as_json.end(signal.SIGINT)) == (0, 0)
    lines = [line.split("  ", 1) for line in watch.out.splitlines()]
    assert all(re.match(r"\d{4}-\d\d-\d\dT", when) for when, _ in lines)
    told = [what for _, what in lines]
    assert f"far  datablock  live  uint16  16x16  {host}  " in told[0]
    assert len(told) == len(set(told)), "a rate that varies is no change"
    facts = [json.loads(line) for line in as_json.out.splitlines()]
    assert (facts[0]["name"], facts[0]["shape"], facts[0]["host"]) == ("far", [16, 16], host)


def test_watching_on_a_terminal_is_a_table(cli: Any, hub: Any) -> None:
    with cli.in_terminal("ls", "--watch") as watch:
        watch.says("no channels; start one with: pyhub sim")
        with hub.create_datablock_producer("cam1", dtype="u2", shape=(3, 4)):
            watch.says(r"cam1 +datablock +live +uint16 +3x4 ")
        watch.type(b"\x03")
        assert watch.end() == 0


def test_a_watch_goes_on_without_its_broker(apart: Any, kill_broker: Any, runtime: Path) -> None:
    watch = apart.start("ls", "--watch")
    sim = apart.start("sim", "--name", "before", "--shape", "16x16")
    watch.says("before")
    kill_broker(runtime, signal.SIGKILL)
    after = apart.start("sim", "--name", "after", "--shape", "16x16")
    watch.says("after")
    assert (sim.end(signal.SIGINT), after.end(signal.SIGINT)) == (0, 0)
    watch.says("after  gone")
    assert watch.end(signal.SIGINT) == 0
    assert "Traceback" not in watch.err


def test_services_and_programs_are_listed(cli: Any, hub: Any) -> None:
    with hub.service("cam1") as cam1:
        cam1.command(lambda: None, name="expose")
        services, services_json, programs, programs_json = cli.side_by_side(
            ["ls", "--services"],
            ["ls", "--services", "--json"],
            ["ls", "--programs"],
            ["ls", "--programs", "--json"],
        )
    assert re.search(r"^ cam1 +expose .* 0 +0 +1\s*$", services.out, re.MULTILINE)
    (found,) = json.loads(services_json.out)
    assert [command["name"] for command in found["commands"]] == ["expose"]
    (row,) = (line.split() for line in programs.out.splitlines() if f" {os.getpid()} " in line)
    assert row[-4:] == ["0", "1", "0", "0"]
    listed = json.loads(programs_json.out)
    (own,) = (program for program in listed["programs"] if program["pid"] == os.getpid())
    assert (own["role"], own["n_services"]) == ("admin", 1)
    assert isinstance(listed["counters"], dict)


def test_services_and_programs_are_the_brokers_and_none_is_started(
    apart: Any, runtime: Path
) -> None:
    for alone in apart.side_by_side(["ls", "--services"], ["ls", "--programs", "--json"]):
        assert alone.code == 6
        assert f"no broker runs in {runtime}" in alone.err
    assert not (runtime / "broker.json").exists()
