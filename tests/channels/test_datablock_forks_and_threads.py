"""A fork leaves the parent's channels alone; threads use their own consumers at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyhub import DataBlockConsumer, DataBlockProducer
from pyhub.names import segment_names

Start = Callable[..., Any]

# A parent with a producer, a consumer, a view; the child does {child} and ends by {end}.
FORK = """
cam = DataBlockProducer.create("cam", dtype="u1", shape=4, slots=4)
cam.put(np.full(4, 1, "u1"), {{"value": 1}})
view = DataBlockConsumer.attach("cam")
seen = view.latest(0)
{parent}

def refused(call):
    try:
        call()
    except pyhub.ForkedHandle as error:
        assert "opened before a fork" in str(error) and "spawn" in str(error)
        return
    raise AssertionError("not refused")

pid = os.fork()
if pid == 0:
    {child}
    {end}
_, status = os.waitpid(pid, 0)
say("child", status)
{after}
cam.put(np.full(4, 2, "u1"), {{"value": 2}}, timeout_s=0)
frame = view.latest(0)
say("still", frame.flex["value"], cam.header().is_closed, cam.header().n_recovered)
wait_for_go()
"""

ENDS = {
    "exit": "sys.exit(0)",
    "at once": "os._exit(0)",
    "closing": "cam.close(); view.close(); sys.exit(0)",
    "forgetting": "del cam, view, seen; import gc; gc.collect(); sys.exit(0)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
}


def run(
    start: Start, child: str = "pass", end: str = "sys.exit(0)", parent: str = "", after: str = ""
) -> tuple[Any, str]:
    process = start(FORK.format(child=child, end=end, parent=parent, after=after))
    return process, process.expect("child")


def finish(process: Any) -> None:
    assert process.expect("still") == "2 False 0"
    assert segment_names() == ["cam"]
    process.go()
    process.end()
    assert segment_names() == []


@pytest.mark.parametrize("end", ENDS)
def test_a_channel_survives_the_end_of_a_forked_child(start: Start, end: str) -> None:
    """The segment, its name, the lease and the lock are the parent's."""
    process, status = run(start, end=ENDS[end])
    assert status == ("9" if end == "killed" else "0")
    with DataBlockConsumer.attach("cam") as view:
        assert view.read(10).flex["value"] in (1, 2)
    finish(process)


@pytest.mark.parametrize(
    "call",
    [
        "cam.put(np.zeros(4, 'u1'))",
        "cam.begin_publish()",
        "view.read(0)",
        "next(view.frames(0))",
        "view.latest(0)",
        "view.get_flexible_zone_data()",
        "view.get_structured_data()",
    ],
)
def test_a_handle_from_before_a_fork_is_refused_in_the_child(start: Start, call: str) -> None:
    process, status = run(start, child=f"refused(lambda: {call})")
    assert status == "0"
    finish(process)


def test_an_open_publication_stays_the_parents(start: Start) -> None:
    process, status = run(
        start,
        parent="cam.begin_publish(); cam.get_structured_data_buffer()[...] = 5",
        child="""
    for call in (
        cam.get_structured_data_buffer,
        cam.get_flexible_zone_buffer,
        lambda: cam.end_publish(ZoneUpdateInfo(structured_buffer=True)),
    ):
        refused(call)
    cam.abort_publish()
""",
        after="cam.end_publish(ZoneUpdateInfo(structured_buffer=True))",
    )
    assert status == "0"
    finish(process)


def test_views_from_before_a_fork_can_be_looked_at_in_the_child(start: Start) -> None:
    process, status = run(start, child="assert (seen.data == 1).all() and seen.is_valid()")
    assert status == "0"
    finish(process)


def test_a_forked_child_may_open_channels_of_its_own(start: Start) -> None:
    process, status = run(
        start,
        child="""
    with DataBlockConsumer.attach("cam") as mine, DataBlockProducer.attach("cam") as other:
        assert mine.read(0).flex == {"value": 1}
        other.put(np.full(4, 9, "u1"))
        assert (mine.read(0).data == 9).all()
    with DataBlockProducer.create("child", 4) as own, DataBlockConsumer.attach("child") as mine:
        own.put(np.full(4, 3, "u1"))
        assert (mine.read(0).data == 3).all()
""",
    )
    assert status == "0"
    finish(process)


def test_what_a_forked_child_owns_dies_with_it_and_not_with_the_parent(start: Start) -> None:
    """Each has a lease of its own, although they share the descriptor."""
    process = start("""
first = DataBlockProducer.create("parent", 4)
ready, go = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    own = DataBlockProducer.create("child", 4)
    os.write(ready[1], b".")
    signal.pause()
os.read(ready[0], 1)
say("up", pid)
wait_for_go()
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
say("killed")
wait_for_go()
""")
    process.expect("up")
    from pyhub._core import remove_dead
    from pyhub.names import lease_path, segment_path

    child, parent = segment_path("child"), segment_path("parent")
    assert not remove_dead(child, lease_path())
    process.go()
    process.expect("killed")
    assert not remove_dead(parent, lease_path())
    assert remove_dead(child, lease_path())
    process.go()
    process.end()


def test_processes_started_by_fork_from_a_parent_with_channels_work(start: Start) -> None:
    """As multiprocessing does it by default before Python 3.14."""
    process = start("""
import multiprocessing
cam = DataBlockProducer.create("cam", dtype="u1", shape=4)
cam.put(np.full(4, 1, "u1"))

def work(results):
    with DataBlockConsumer.attach("cam") as view:
        results.put(int(view.read(10).data[0]))

context = multiprocessing.get_context("fork")
results = context.SimpleQueue()
workers = [context.Process(target=work, args=(results,)) for _ in range(3)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
say("got", [results.get() for _ in workers], [worker.exitcode for worker in workers])
cam.put(np.full(4, 2, "u1"))
""")
    assert process.expect("got") == "[1, 1, 1] [0, 0, 0]"
    process.end()


def test_a_channel_survives_an_exec(start: Start) -> None:
    """Descriptors are closed on exec; the lease stays where it is."""
    process = start("""
import subprocess
cam = DataBlockProducer.create("cam", dtype="u1", shape=4)
subprocess.run(["true"], check=True)
held = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True).stdout
say("inherited", "leases" in held or "pyhub." in held)
wait_for_go()
""")
    assert process.expect("inherited") == "False"
    with DataBlockConsumer.attach("cam"):
        pass
    process.go()
    process.end()


# Threads


def test_each_thread_reads_with_a_consumer_of_its_own() -> None:
    n_frames, n_threads = 2000, 2
    results: list[tuple[int, int]] = []
    ready = threading.Barrier(n_threads + 1)

    def read() -> None:
        with DataBlockConsumer.attach("cam") as view:
            ready.wait()
            for frame in view:
                assert (frame.data == frame.frame_id % 256).all()
                assert frame.flex == {"n": frame.frame_id}
            results.append((view.n_read, view.n_lost))

    threads = [threading.Thread(target=read) for _ in range(n_threads)]
    with DataBlockProducer.create("cam", dtype="u1", shape=100_000, slots=4) as cam:
        for thread in threads:
            thread.start()
        ready.wait()
        for number in range(n_frames):
            cam.put(np.full(100_000, number % 256, "u1"), {"n": number})
    for thread in threads:
        thread.join()
    assert [n_read + n_lost for n_read, n_lost in results] == [n_frames] * n_threads


def test_a_consumer_may_be_handed_to_another_thread() -> None:
    with (
        DataBlockProducer.create("cam", 4) as cam,
        DataBlockConsumer.attach("cam") as view,
    ):
        got: list[int] = []
        for value in range(3):
            cam.put(np.full(4, value, "u1"))
            thread = threading.Thread(target=lambda: got.append(int(view.read(1).data[0])))
            thread.start()
            thread.join()
        assert got == [0, 1, 2]


def test_a_producer_may_be_handed_to_another_thread() -> None:
    with (
        DataBlockProducer.create("cam", 4) as cam,
        DataBlockConsumer.attach("cam") as view,
    ):
        for value in range(3):
            thread = threading.Thread(target=cam.put, args=(np.full(4, value, "u1"),))
            thread.start()
            thread.join()
            assert (view.read(0).data == value).all()


def test_other_threads_run_while_one_waits_for_a_frame() -> None:
    """The GIL is released: the very thread that will publish goes on."""
    with (
        DataBlockProducer.create("cam", 4) as cam,
        DataBlockConsumer.attach("cam") as view,
    ):
        got: list[int] = []
        thread = threading.Thread(target=lambda: got.append(int(view.read(None).data[0])))
        thread.start()
        assert sum(range(100_000)) == 4999950000
        cam.put(np.full(4, 7, "u1"))
        thread.join()
        assert got == [7]


def test_many_channels_of_one_process_share_one_lease() -> None:
    n_before = len(os.listdir("/proc/self/fd"))
    cams = [DataBlockProducer.create(f"cam{n}", 4) for n in range(50)]
    assert len(os.listdir("/proc/self/fd")) <= n_before + 1
    views = [DataBlockConsumer.attach(f"cam{n}") for n in range(50)]
    for cam, view in zip(cams, views, strict=True):
        cam.put(np.zeros(4, "u1"))
        view.read(0)
        view.close()
        cam.close()
    assert len(os.listdir("/proc/self/fd")) <= n_before + 1
