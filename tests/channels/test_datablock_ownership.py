"""Who holds a segment and its lock, and what is left when holders go in odd orders."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest

from pyhub import DataBlockConsumer, DataBlockProducer
from pyhub._core import lease_is_alive, process_lease, remove_leases
from pyhub.datablock.attachment import Attachment
from pyhub.errors import ChannelClosed, ProducerDied, SegmentExists, WaitTimeout
from pyhub.monitor.cleaning import force


def test_a_producer_forgotten_while_a_thread_publishes_does_not_unmap_its_lock() -> None:
    other = DataBlockProducer.create("other", dtype="u1", shape=10)
    has_begun, is_forgotten = threading.Event(), threading.Event()
    holder = [DataBlockProducer.create("forgotten", dtype="u1", shape=10)]

    def begin_and_publish_elsewhere() -> None:
        holder[0].begin_publish()
        has_begun.set()
        is_forgotten.wait()
        other.put(np.ones(10, "u1"))  # walks this thread's list of robust locks

    thread = threading.Thread(target=begin_and_publish_elsewhere)
    thread.start()
    has_begun.wait()
    holder[0].close()
    holder.clear()
    gc.collect()
    is_forgotten.set()
    thread.join()
    assert other.header().structured_buffer_version == 1
    other.close()


def test_a_close_between_two_looks_is_told_as_a_close(monkeypatch: pytest.MonkeyPatch) -> None:
    producer = DataBlockProducer.create("cam", dtype="u1", shape=4)
    consumer = DataBlockConsumer.attach("cam")

    def look(*_: object) -> bool:  # it closes and exits just before this look
        producer.close()
        return True

    monkeypatch.setattr(Attachment, "_was_left", look)
    with pytest.raises(ChannelClosed) as caught:
        consumer.read(timeout_s=0)
    assert not isinstance(caught.value, ProducerDied)
    consumer.close()


def test_looking_at_many_lock_files_in_turn_opens_each_once(tmp_path: Path) -> None:
    files = [tmp_path / "a..leases", tmp_path / "b..leases"]
    for file in files:
        file.touch(0o600)
        lease_is_alive(file, 1)
    n_before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        for file in files:
            assert not lease_is_alive(file, 1)
    assert len(os.listdir("/proc/self/fd")) == n_before


def _hold_lease(path: Path, taken: Any, done: Any) -> None:
    taken.put(process_lease(path))
    done.wait()


def test_a_lock_file_is_removed_only_when_nobody_holds_a_lease(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path, taken, done = tmp_path / "x..leases", context.Queue(), context.Event()
    child = context.Process(target=_hold_lease, args=(path, taken, done))
    child.start()
    lease = taken.get()
    assert lease_is_alive(path, lease)
    assert not remove_leases(path)
    done.set()
    child.join()
    taken.close()
    taken.join_thread()
    assert not lease_is_alive(path, lease)
    assert remove_leases(path)
    assert not path.exists()


def test_no_lock_file_means_nobody_lives(tmp_path: Path) -> None:
    assert not lease_is_alive(tmp_path / "none..leases", 17)


GUEST_OWNER = """
import sys, pyhub
producer = pyhub.DataBlockProducer.create("shared", dtype="u1", shape=4)
print("up", flush=True)
sys.stdin.read()
"""


def _owner() -> subprocess.Popen[str]:
    owner = subprocess.Popen(
        [sys.executable, "-c", GUEST_OWNER], stdin=PIPE, stdout=PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    return owner


def test_a_guest_takes_the_channel_over_when_its_owner_dies() -> None:
    with _owner() as owner, DataBlockConsumer.attach("shared") as view:
        guest = DataBlockProducer.attach("shared")
        owner.kill()
        owner.wait()
        guest.put(np.ones(4, "u1"))
        assert view.read().data.tolist() == [1] * 4
        with pytest.raises(WaitTimeout):  # not ProducerDied: the guest lives
            view.read(0)
        guest.close()
        with pytest.raises(ChannelClosed):
            view.read(0)


def test_a_guest_does_not_publish_into_a_segment_that_lost_its_name() -> None:
    with _owner() as owner:
        guest = DataBlockProducer.attach("shared")
        owner.kill()
        owner.wait()
        with pytest.raises(SegmentExists):  # the guest keeps it
            DataBlockProducer.create("shared", dtype="u1", shape=4)
        force("shared")
        with DataBlockProducer.create("shared", dtype="u1", shape=4):
            with pytest.raises(ChannelClosed, match="gone to another segment"):
                guest.put(np.ones(4, "u1"))
            guest.close()
