"""A survey says of every channel what its header says, and of what has none, why."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import pyhub
from pyhub.monitor.cleaning import force
from pyhub.monitor.survey import survey
from pyhub.names import segment_path

DIES = (
    "import os, sys, pyhub\n"
    "producer = pyhub.DataBlockProducer.create(sys.argv[1], dtype='i8', shape=(4,))\n"
    "producer.put([1, 2, 3, 4], flex={'a': 1})\n"
    "os.kill(os.getpid(), 9)"
)


def test_no_channels_give_nothing() -> None:
    assert survey() == []


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(pyhub.SegmentNotFound, match="no channel 'nobody'"):
        survey(["nobody"])


def test_a_channel_is_told_with_its_newest_parameters() -> None:
    with pyhub.DataBlockProducer.create("cam1", dtype="u2", shape=(3, 4), slots=2) as producer:
        (state,) = survey(sample_s=0.0)
        assert (state.name, state.state, state.flex, state.age_s) == ("cam1", "live", None, None)
        producer.put(np.zeros((3, 4), "u2"), flex={"a": 1})
        (state,) = survey(sample_s=0.0)
    assert state.header is not None
    assert (state.header.shape, state.header.n_slots) == ((3, 4), 2)
    assert state.header.owner_pid == os.getpid()
    assert state.flex == {"a": 1}
    assert state.age_s is not None
    assert state.age_s >= 0
    assert state.rate_hz == 0.0


def test_the_death_of_a_producer_is_seen() -> None:
    died = subprocess.run([sys.executable, "-c", DIES, "cam1"], check=False)
    assert died.returncode == -9
    (state,) = survey(sample_s=0.0)
    assert (state.state, state.flex) == ("dead", {"a": 1}), "what it left can be read"
    force("cam1")


def test_closed_channels_are_told_apart() -> None:
    producer = pyhub.DataBlockProducer.create("cam1", dtype="u1", shape=(4,))
    os.rename(segment_path("cam1"), segment_path("cam2"))
    producer.close()
    (state,) = survey(sample_s=0.0)
    assert (state.name, state.state) == ("cam2", "closed")
    segment_path("cam2").unlink()


def test_what_is_no_whole_segment_of_this_layout_is_unreadable() -> None:
    with pyhub.DataBlockProducer.create("cam1", dtype="u1", shape=(4,)):
        content = segment_path("cam1").read_bytes()
    contents = {
        "cut": (content[:-1], "truncated"),
        "empty": (b"", "is not a pyhub segment"),
        "foreign": (content[:8] + struct.pack("<I", 99) + content[12:], "layout 99"),
        "garbage": (b"x" * 1000, "is not a pyhub segment"),
    }
    for name, (bytes_, _) in contents.items():
        segment_path(name).touch(mode=0o600)
        segment_path(name).write_bytes(bytes_)
    found = {state.name: state for state in survey()}
    for name in contents:
        force(name)
    assert set(found) == set(contents)
    for name, (_, problem) in contents.items():
        assert found[name].state == "unreadable"
        assert found[name].header is None
        assert problem in found[name].problem


def test_parameters_that_cannot_be_decoded_are_a_problem_of_their_channel_alone() -> None:
    with (
        pyhub.DataBlockProducer.create("bad") as bad,
        pyhub.DataBlockProducer.create("good") as good,
    ):
        good.put(flex={"a": 1})
        bad.begin_publish()
        bad.get_flexible_zone_buffer()[:1] = b"\xc1"
        bad.end_publish(pyhub.ZoneUpdateInfo(flex_zone=True, flex_zone_size=1))
        states = {state.name: state for state in survey(sample_s=0.0)}
    assert states["good"].flex == {"a": 1}
    assert states["bad"].state == "live"
    assert states["bad"].flex is None
    assert states["bad"].problem


def test_admitted_readers_are_told_with_their_figures() -> None:
    with (
        pyhub.DataBlockProducer.create("cam1", dtype="u1", shape=(4,), slots=4) as producer,
        pyhub.DataBlockConsumer.attach("cam1", policy="drop_oldest", reader="slow") as slow,
        pyhub.DataBlockConsumer.attach("cam1", reader="viewer") as viewer,
    ):
        for k in range(10):
            producer.put(np.full(4, k, "u1"))
        slow.read()
        with viewer.pin() as frame:
            (state,) = survey(sample_s=0.0)
            assert frame.data.tolist() == [9] * 4
    first, second = state.admitted
    assert (first.name, first.pid, first.policy) == ("slow", os.getpid(), "drop_oldest")
    assert (first.n_read, first.n_pinned) == (1, 0)
    assert first.n_lost >= 6
    assert first.max_lag == 9
    assert (second.name, second.policy, second.n_pinned) == ("viewer", "latest", 1)
    assert first.is_alive
    assert not state.stalling


def test_a_reader_that_holds_the_producer_up_is_named() -> None:
    with (
        pyhub.DataBlockProducer.create(
            "cam1", dtype="u1", shape=(4,), slots=2, patience_s=60
        ) as producer,
        pyhub.DataBlockConsumer.attach("cam1", policy="block", reader="slow") as slow,
        pyhub.DataBlockConsumer.attach("cam1", reader="viewer"),
    ):

        def publish() -> None:
            for _ in range(3):  # one more than there are slots
                producer.put(np.zeros(4, "u1"))

        thread = threading.Thread(target=publish)
        thread.start()
        while not (state := survey(sample_s=0.05)[0]).stalling:
            assert thread.is_alive()
        slow.read()
        thread.join()
        after = survey(sample_s=0.05)[0]
    assert list(state.stalling) == ["slow"]
    assert 0 < state.stalling["slow"] <= 1
    assert not after.stalling
    assert after.admitted[0].stalled_s > 0


def test_a_table_that_has_gone_is_no_error(shm: Path) -> None:
    with pyhub.DataBlockProducer.create("cam1", dtype="u1", shape=(4,)) as producer:
        producer.put(np.zeros(4, "u1"))
        (table,) = shm.glob("*..readers.*")
        table.unlink()
        (state,) = survey(sample_s=0.0)
    assert (state.state, state.admitted, state.problem) == ("live", [], "")


def test_a_table_that_cannot_be_read_is_a_problem_of_its_own(shm: Path) -> None:
    with pyhub.DataBlockProducer.create("cam1", dtype="u1", shape=(4,)) as producer:
        producer.put(np.zeros(4, "u1"), flex={"a": 1})
        (table,) = shm.glob("*..readers.*")
        content = table.read_bytes()
        for wrong in (b"", content[:-1], content[:8] + struct.pack("<I", 99) + content[12:]):
            table.unlink()
            table.touch(mode=0o600)
            table.write_bytes(wrong)
            (state,) = survey(sample_s=0.0)
            assert (state.state, state.flex, state.admitted) == ("live", {"a": 1}, [])
            assert state.problem.startswith("its readers cannot be told: ")


def test_channels_that_go_during_the_survey_are_told_as_they_were() -> None:
    producer = pyhub.DataBlockProducer.create("cam1", dtype="u1", shape=(4,))
    thread = threading.Timer(0.1, producer.close)
    thread.start()
    (state,) = survey(sample_s=0.5)
    thread.join()
    assert state.state == "closed"
