"""Brokers that are killed under load: frames flow on, and everybody meets the next one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhub import BrokerConfig, BrokerUnreachable, MessageHub
from pyhub.hub.runtime import BrokerFile, RuntimeDirectory
from tests.conftest import eventually
from tests.verify.brokers import WATCHDOG_S, Program, line_of, program, tell

N_KILLS = 3
N_KILLS_VERIFY = 100
N_CROWD = 45
REGISTERED_S = 5.0
# Of the promise of 5 s: how much longer a machine that does other things too may
# take until it is called broken.
FACTOR = 6

HUB = """
    import sys, threading, time
    import numpy as np
    import pyhub
    from pyhub import BrokerConfig, MessageHub

    def new_hub(name):
        return MessageHub(BrokerConfig(runtime_dir=sys.argv[1], name=name, linger_s=30))

    is_over = threading.Event()
    def until_told():
        threading.Thread(target=lambda: (sys.stdin.readline(), is_over.set()), daemon=True).start()
        print("up", flush=True)
"""

# Cheap ones: each watches a key and has a service.
CROWD = (
    HUB
    + """
    hubs = [new_hub(f"crowd{n}") for n in range(int(sys.argv[2]))]
    feeds = [hub.state.watch("load/n") for hub in hubs]
    for n, hub in enumerate(hubs):
        hub.service(f"crowd{n}").command(lambda: None, name="nothing")
    until_told()
    is_over.wait()
    seen = [[entry.value for entry in feed.taken()] for feed in feeds]
    assert all(values == sorted(values) for values in seen)
    print(min(values[-1] for values in seen), flush=True)
    for hub in hubs:
        hub.close()
"""
)

# Appends what it is called with; a call that was done twice stands there twice.
WORKER = (
    HUB
    + """
    hub = new_hub("worker")

    @hub.service("file", threads=2)
    def append(n: int) -> int:
        time.sleep(0.01)
        with open(sys.argv[2], "a") as file:
            file.write(f"{n}\\n")
        return n

    until_told()
    is_over.wait()
    hub.close()
    print("over", flush=True)
"""
)

# Calls under way all the time: how each ended.
CALLER = (
    HUB
    + """
    hub = new_hub("caller")
    hub.wait_for_service("file", 60)
    ended, lock, numbers = [], threading.Lock(), iter(range(10**9))

    def call():
        while not is_over.is_set():
            with lock:
                n = next(numbers)
            try:
                assert hub.call("file", "append", n=n, timeout_s=20.0) == n
                how = "done"
            except pyhub.PyhubError as error:
                how = type(error).__name__
            with lock:
                ended.append(f"{n}:{how}")

    threads = [threading.Thread(target=call) for _ in range(4)]
    until_told()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hub.close()
    print(*ended, flush=True)
"""
)

# Sets and publishes all the time; the last value that was acknowledged.
SETTER = (
    HUB
    + """
    hub = new_hub("setter")
    acknowledged = 0
    until_told()
    while not is_over.is_set():
        try:
            hub.state["load/n"] = acknowledged + 1
        except pyhub.BrokerUnreachable:
            continue
        acknowledged += 1
        hub.publish("load/happened", acknowledged)
    hub.close()
    print(acknowledged, flush=True)
"""
)

PRODUCER = (
    HUB
    + """
    hub = new_hub("producer")
    producer = hub.create_datablock_producer("frames", dtype="u4", shape=256, slots=8)
    assert hub.wait_for_readers("frames", 1, 60)
    until_told()
    n = 0
    while not is_over.wait(0.002):
        producer.put(np.full(256, n, "u4"), {"n": n}, timeout_s=60)
        n += 1
    print(n, flush=True)
    sys.stdin.readline()
    hub.close()
"""
)

READER = (
    HUB
    + """
    hub = new_hub("reader")
    consumer = hub.find_datablock_consumer("frames", policy="block", reader="keeper", timeout_s=60)
    until_told()
    n_read = n_wrong = 0
    try:
        while True:
            try:
                frame = consumer.read(2)
            except pyhub.WaitTimeout:
                continue
            n_wrong += frame.frame_id != n_read or frame.flex["n"] != n_read
            n_wrong += bool((frame.data != n_read).any())
            n_read += 1
    except pyhub.ChannelClosed:
        pass
    hub.close()
    print(n_read, n_wrong, consumer.n_lost, flush=True)
"""
)


@pytest.fixture
def directory() -> Iterator[RuntimeDirectory]:
    path = Path(tempfile.mkdtemp(prefix="phb-"))
    runtime = RuntimeDirectory(path)
    yield runtime
    if broker := runtime.read_broker():
        os.kill(broker.pid, signal.SIGKILL)
    with runtime.lock("broker.lock", WATCHDOG_S) as is_free:
        assert is_free
    shutil.rmtree(path)


def n_brokers(runtime: RuntimeDirectory) -> int:
    """Count the processes that are a broker of that directory, or about to become one."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = path.read_bytes().split(b"\0")
            found += any(b"broker.daemon" in each for each in arguments) and (
                os.fsencode(runtime.path) in arguments
            )
    return found


def all_there(hub: MessageHub, expected: Counter[str]) -> bool:
    """Whether the broker knows everybody, with all that they have."""
    try:
        programs = Counter(each.name for each in hub.programs()[0])
        channels = {channel.name: channel for channel in hub.channels()}
        services = {service.name: service for service in hub.services()}
    except BrokerUnreachable:
        return False
    return (
        expected <= programs
        and "frames" in channels
        and channels["frames"].n_readers == 1
        and len(services) == N_CROWD + 1
        and len(services["file"].workers) == 2
    )


def kill(
    hub: MessageHub, runtime: RuntimeDirectory, former: BrokerFile, expected: Counter[str]
) -> tuple[BrokerFile, float]:
    """Kill the broker; the next one, and how long it took until it knew everybody."""
    begun = time.monotonic()
    os.kill(former.pid, signal.SIGKILL)
    assert eventually(
        lambda: runtime.read_broker() is not None and all_there(hub, expected),
        REGISTERED_S * FACTOR,
    ), hub.programs()
    took_s = time.monotonic() - begun
    broker = runtime.read_broker()
    assert broker is not None
    assert broker.epoch != former.epoch
    assert eventually(lambda: n_brokers(runtime) == 1, WATCHDOG_S)
    assert runtime.read_broker() == broker
    return broker, took_s


def work_goes_on(hub: MessageHub, done: Path) -> None:
    """Wait until something more was set, and done."""
    n_set, n_done = hub.state["load/n"], len(done.read_text().split())
    assert eventually(lambda: hub.state["load/n"] > n_set + 5, WATCHDOG_S)
    assert eventually(lambda: len(done.read_text().split()) > n_done + 5, WATCHDOG_S)


def check(runtime: RuntimeDirectory, n_kills: int) -> None:
    done = runtime.path / "done"
    config = BrokerConfig(runtime_dir=runtime.path, name="judge", linger_s=30)
    with contextlib.ExitStack() as programs, MessageHub(config) as hub:
        hub.state["load/n"] = 0

        def run(code: str, *arguments: object) -> Program:
            return programs.enter_context(program(code, runtime.path, *arguments))

        crowd = run(CROWD, N_CROWD)
        workers = [run(WORKER, done) for _ in range(2)]
        producer, reader = run(PRODUCER), run(READER)
        caller, setter = run(CALLER), run(SETTER)
        everybody = [crowd, *workers, producer, reader, caller, setter]
        for each in everybody:
            assert line_of(each) == "up"
        expected = Counter([f"crowd{n}" for n in range(N_CROWD)])
        expected.update(["worker", "worker", "producer", "reader", "caller", "setter", "judge"])
        assert eventually(lambda: all_there(hub, expected), WATCHDOG_S)

        broker = runtime.read_broker()
        assert broker is not None
        times = []
        for _ in range(n_kills):
            work_goes_on(hub, done)  # it is killed in the middle of work, not of silence
            n_set = hub.state["load/n"]
            broker, took_s = kill(hub, runtime, broker, expected)
            assert hub.state["load/n"] >= n_set
            times.append(took_s)
        times.sort()
        print(
            f"{n_kills} kills: {sum(expected.values())} programs were registered again after "
            f"{times[len(times) // 2]:.2f} s (median), {times[-1]:.2f} s (longest)"
        )

        tell(setter)
        acknowledged = int(line_of(setter))
        assert hub.state["load/n"] == acknowledged
        tell(caller)
        ends = [end.split(":") for end in line_of(caller).split()]
        for each in workers:
            tell(each)
            assert line_of(each) == "over"
        tell(crowd)
        assert int(line_of(crowd)) == acknowledged
        tell(producer)
        n_frames = int(line_of(producer))
        tell(producer)
        n_read, n_wrong, n_lost = map(int, line_of(reader).split())

    how_often = Counter(done.read_text().split())
    print(f"{len(ends)} calls: {Counter(how for _, how in ends)}; {n_frames} frames")
    assert (n_read, n_wrong, n_lost) == (n_frames, 0, 0)
    assert [n for n, times in how_often.items() if times > 1] == []
    assert sorted(int(n) for n, _ in ends) == list(range(len(ends)))  # every call ended
    assert [n for n, how in ends if how == "done" and not how_often[n]] == []
    assert {how for _, how in ends} <= {"done", "ServiceDied", "WaitTimeout", "BrokerUnreachable"}
    assert sum(how == "done" for _, how in ends) > n_kills


def test_a_killed_broker_costs_no_frame_no_state_and_does_no_command_twice(
    directory: RuntimeDirectory,
) -> None:
    """Promise P12, in short."""
    check(directory, N_KILLS)


@pytest.mark.verify
@pytest.mark.timeout(3600)
def test_a_hundred_killed_brokers_cost_no_frame_no_state_and_do_no_command_twice(
    directory: RuntimeDirectory,
) -> None:
    """Promise P12: some 5 minutes."""
    check(directory, N_KILLS_VERIFY)
