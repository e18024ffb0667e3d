"""Calls: done once, by one of those who offer the command; their end is told, whatever it is."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhub import (
    BrokerConfig,
    BrokerUnreachable,
    ChannelClosed,
    Job,
    MessageHub,
    WaitTimeout,
)
from pyhub._handover import left_until
from pyhub.errors import (
    BrokerRefused,
    CallCancelled,
    CapacityError,
    CodecError,
    CommandFailed,
    ForkedHandle,
    ServiceDied,
    ServiceNotFound,
)
from pyhub.hub import protocol
from pyhub.hub.client.failures import raised
from pyhub.hub.client.session import Ask
from pyhub.hub.client.values import MAX_VALUE_BYTES, pack
from pyhub.hub.runtime import RuntimeDirectory
from tests.conftest import eventually, turns
from tests.hub.conftest import Spawn, line, stopped

WATCHDOG_S = 30

# Offers commands until it is told to end; notes in a file what it does.
WORKER = """
    import os, sys, time
    from pathlib import Path
    from pyhub import BrokerConfig, MessageHub
    from pyhub import Job

    runtime, name, directory, threads = sys.argv[1:]
    directory = Path(directory)
    with MessageHub(BrokerConfig(runtime_dir=runtime, autostart=False)) as hub:
        service = hub.service(name, threads=int(threads))

        def note(text: str) -> None:
            with open(directory / "done", "a") as file:
                print(text, file=file, flush=True)

        @service.command
        def work(x: int = 0) -> list[int]:
            note(f"work {x}")
            return [x, os.getpid()]

        @service.command
        def wait(x: int = 0) -> list[int]:
            note(f"begun {x}")
            while not (directory / f"go {x}").exists():
                time.sleep(0.005)
            note(f"ended {x}")
            return [x, os.getpid()]

        @service.command
        def count(job: Job, n: int) -> int:
            for number in range(n):
                job.report({"number": number})
            return n

        @service.command
        def until_cancelled(job: Job) -> None:
            note("begun until_cancelled")
            while not job.wait(10.0):
                pass
            note("cancelled")
            job.check()

        print("here", flush=True)
        input()
"""


class Workers:
    """Programs that offer the same service, and what they noted."""

    def __init__(self, spawn: Spawn, config: BrokerConfig, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self._spawn, self._config = spawn, config

    def start(self, n_workers: int = 1, threads: int = 1) -> list[subprocess.Popen[str]]:
        children = [
            self._spawn(WORKER, self._config.runtime_dir, self.name, self.path, threads)
            for _ in range(n_workers)
        ]
        assert [line(child) for child in children] == ["here"] * n_workers
        return children

    def noted(self) -> list[str]:
        file = self.path / "done"
        return file.read_text().splitlines() if file.exists() else []

    def has_noted(self, text: str, n: int = 1) -> bool:
        return eventually(lambda: self.noted().count(text) >= n, WATCHDOG_S)

    def go(self, x: int = 0) -> None:
        (self.path / f"go {x}").touch()


@pytest.fixture
def workers(spawn: Spawn, shared: BrokerConfig, name: str, tmp_path: Path) -> Workers:
    return Workers(spawn, shared, name, tmp_path)


@pytest.fixture
def here(shared: BrokerConfig) -> Iterator[MessageHub]:
    """A second hub of this process, that offers commands to the first one."""
    with MessageHub(shared) as here:
        yield here


# --- Results ---


def test_a_call_is_done_by_another_program(hub: MessageHub, workers: Workers) -> None:
    (child,) = workers.start()
    assert hub.call(workers.name, "work", x=7) == [7, child.pid]
    assert workers.noted() == ["work 7"]


def test_a_result_may_be_asked_for_again(hub: MessageHub, workers: Workers) -> None:
    workers.start()
    call = hub.start_call(workers.name, "work", x=7)
    first = call.result()
    assert call.is_done
    assert call.result() == first
    assert asyncio.run(_awaited(call)) == first
    assert "done" in repr(call)
    call.cancel()
    assert call.result() == first, "it is too late to cancel"


async def _awaited(call: Any) -> Any:
    return await call


def test_what_nobody_offers_is_told_with_what_there_is(hub: MessageHub, workers: Workers) -> None:
    workers.start()
    with pytest.raises(ServiceNotFound, match=r"no service 'nobody'; there are: .*"):
        hub.call("nobody", "work")
    with pytest.raises(ServiceNotFound, match="it has: count, until_cancelled, wait, work"):
        hub.call(workers.name, "nothing")


def test_arguments_that_cannot_be_sent_are_refused_here(hub: MessageHub, name: str) -> None:
    with pytest.raises(CodecError, match="cannot hold"):
        hub.call(name, "work", x={1})
    with pytest.raises(CapacityError, match=rf"the arguments of {name}\.work take"):
        hub.call(name, "work", x=bytes(49 * 1024))


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e12])
def test_a_call_may_be_waited_for_as_long_as_one_likes(
    hub: MessageHub, workers: Workers, timeout_s: float
) -> None:
    workers.start()
    assert hub.call(workers.name, "work", x=7, timeout_s=timeout_s)[0] == 7
    assert asyncio.run(hub.acall(workers.name, "work", x=8, timeout_s=timeout_s))[0] == 8


# --- Many ---


def test_two_programs_of_two_threads_each_share_the_load(hub: MessageHub, workers: Workers) -> None:
    children = workers.start(2, threads=2)
    calls = [hub.start_call(workers.name, "wait", x=x, timeout_s=WATCHDOG_S) for x in range(6)]
    assert eventually(lambda: len(workers.noted()) == 4, WATCHDOG_S)
    (service,) = [each for each in hub.services() if each.name == workers.name]
    assert (service.capacity, service.n_running, service.n_waiting) == (4, 4, 2)
    assert sorted(workers.noted()) == [f"begun {x}" for x in range(4)], "first come, first served"
    for x in range(6):
        workers.go(x)
    results = [call.result() for call in calls]
    assert [x for x, _ in results] == list(range(6))
    assert Counter(pid for _, pid in results[:4]) == {child.pid: 2 for child in children}


def test_one_worker_does_calls_in_their_order(hub: MessageHub, workers: Workers) -> None:
    workers.start()
    calls = [hub.start_call(workers.name, "work", x=x) for x in range(200)]
    assert [call.result()[0] for call in calls] == list(range(200))
    assert workers.noted() == [f"work {x}" for x in range(200)]


def test_calls_of_many_threads_get_their_own_results(hub: MessageHub, workers: Workers) -> None:
    workers.start(2, threads=2)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda x: hub.call(workers.name, "work", x=x)[0], range(400)))
    assert found == list(range(400))
    assert Counter(workers.noted()) == {f"work {x}": 1 for x in range(400)}


def test_many_calls_are_awaited_together(hub: MessageHub, workers: Workers) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(
            *(hub.acall(workers.name, "work", x=x, timeout_s=WATCHDOG_S) for x in range(50))
        )

    workers.start()
    assert [x for x, _ in asyncio.run(ask())] == list(range(50))


def test_a_command_may_call_others_and_its_own_service(hub: MessageHub, here: MessageHub) -> None:
    service, other = here.service("outer", threads=2), here.service("inner")

    @service.command
    def outer(n: int) -> int:
        return 1 + int(here.call("inner", "double", x=n)) + int(here.call("outer", "inner", x=n))

    @service.command
    def inner(x: int) -> int:
        return x

    @other.command
    def double(x: int) -> int:
        return 2 * x

    assert hub.call("outer", "outer", n=5) == 16
    service.close()
    other.close()


# --- Progress ---


def test_progress_comes_in_order_and_ends_with_the_call(hub: MessageHub, workers: Workers) -> None:
    workers.start()
    call = hub.start_call(workers.name, "count", n=300)
    assert list(call.progress) == [{"number": number} for number in range(300)]
    assert call.result() == 300
    with pytest.raises(ChannelClosed, match="is done"):
        call.progress.get(0)


def test_progress_is_awaited(hub: MessageHub, workers: Workers) -> None:
    async def follow() -> tuple[list[Any], Any]:
        call = hub.start_call(workers.name, "count", n=20)
        return [each async for each in call.progress], await call

    workers.start()
    assert asyncio.run(follow()) == ([{"number": number} for number in range(20)], 20)


def test_progress_that_cannot_be_read_does_no_harm_to_the_call(
    hub: MessageHub, here: MessageHub, name: str
) -> None:
    @here.service(name).command
    def report(job: Job) -> str:
        job._connection.tell(protocol.Progress(job._call, b"\xc1"), is_news=False)
        return "done"

    call = hub.start_call(name, "report", timeout_s=WATCHDOG_S)
    assert call.result() == "done"
    with pytest.raises(CodecError):
        call.progress.get(0)


# --- Giving up ---


def test_a_call_that_is_cancelled_before_it_began_never_begins(
    hub: MessageHub, workers: Workers
) -> None:
    workers.start()
    first = hub.start_call(workers.name, "wait", timeout_s=WATCHDOG_S)
    second = hub.start_call(workers.name, "work", x=2, timeout_s=WATCHDOG_S)
    assert workers.has_noted("begun 0")
    second.cancel()
    with pytest.raises(CallCancelled, match=rf"{workers.name}\.work was cancelled"):
        second.result()
    workers.go()
    first.result()
    assert hub.call(workers.name, "work", x=3)[0] == 3
    assert workers.noted() == ["begun 0", "ended 0", "work 3"]


def test_a_command_may_ask_whether_it_is_cancelled(hub: MessageHub, workers: Workers) -> None:
    workers.start()
    call = hub.start_call(workers.name, "until_cancelled", timeout_s=WATCHDOG_S)
    assert workers.has_noted("begun until_cancelled")
    assert "cancelled" not in workers.noted()
    call.cancel()
    with pytest.raises(CallCancelled, match="was cancelled: nobody waits"):
        call.result()
    assert workers.has_noted("cancelled"), "result() waits until it has really ended"
    assert hub.call(workers.name, "work", x=3)[0] == 3, "and its worker is free"


def test_whose_time_is_over_is_told_and_the_command_is_cancelled(
    hub: MessageHub, workers: Workers
) -> None:
    workers.start()
    call = hub.start_call(workers.name, "until_cancelled", timeout_s=0.3)
    with pytest.raises(
        WaitTimeout, match=r"was not done within 0.3 s[:;] it(s worker \w+ has it| was told)"
    ):
        call.result()
    assert workers.has_noted("cancelled")
    with pytest.raises(WaitTimeout):
        call.result()


def test_a_call_that_nobody_began_in_time_never_begins(hub: MessageHub, workers: Workers) -> None:
    workers.start()
    first = hub.start_call(workers.name, "wait", timeout_s=WATCHDOG_S)
    assert workers.has_noted("begun 0")
    with pytest.raises(WaitTimeout, match="no worker"):
        hub.call(workers.name, "work", x=2, timeout_s=0.1)
    workers.go()
    first.result()
    assert hub.call(workers.name, "work", x=3)[0] == 3
    assert "work 2" not in workers.noted()


def test_who_looks_late_is_told_why_as_the_broker_has_it(hub: MessageHub, workers: Workers) -> None:
    workers.start()
    first = hub.start_call(workers.name, "wait", timeout_s=WATCHDOG_S)
    assert workers.has_noted("begun 0")
    calls = [hub.start_call(workers.name, "work", timeout_s=0.1) for _ in range(2)]
    assert eventually(lambda: all(call.is_done for call in calls), WATCHDOG_S)
    why = r"no worker was free to begin .*\.work in time"
    with pytest.raises(WaitTimeout, match=why):
        calls[0].result()
    with pytest.raises(WaitTimeout, match=why):
        asyncio.run(_awaited(calls[1]))
    workers.go()
    first.result()


@pytest.mark.parametrize("is_awaited", [True, False])
def test_who_looks_late_has_the_result(hub: MessageHub, workers: Workers, is_awaited: bool) -> None:
    workers.start()
    call = hub.start_call(workers.name, "work", x=3, timeout_s=1.0)
    assert eventually(lambda: call.is_done, WATCHDOG_S)
    assert eventually(lambda: not left_until(call._deadline), WATCHDOG_S)
    assert (asyncio.run(_awaited(call)) if is_awaited else call.result())[0] == 3


def test_a_key_interrupt_cancels_the_call(hub: MessageHub, workers: Workers) -> None:
    def interrupt() -> None:
        assert workers.has_noted("begun until_cancelled")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    workers.start()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        hub.call(workers.name, "until_cancelled", timeout_s=WATCHDOG_S)
    thread.join()
    assert workers.has_noted("cancelled")


def test_a_task_that_is_cancelled_cancels_its_call(hub: MessageHub, workers: Workers) -> None:
    async def give_up() -> None:
        call = hub.start_call(workers.name, "until_cancelled", timeout_s=WATCHDOG_S)
        task = asyncio.create_task(_awaited(call))
        await asyncio.to_thread(workers.has_noted, "begun until_cancelled")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(CallCancelled):
            call.result()

    workers.start()
    asyncio.run(give_up())
    assert workers.has_noted("cancelled")


@pytest.mark.parametrize("n_turns", range(8))
def test_a_task_is_cancelled_also_while_its_result_comes(
    hub: MessageHub, workers: Workers, n_turns: int
) -> None:
    async def main() -> None:
        call = hub.start_call(workers.name, "work", x=1, timeout_s=WATCHDOG_S)
        task = asyncio.create_task(_awaited(call))
        await turns(3)  # until it waits
        assert eventually(lambda: call.is_done, WATCHDOG_S)
        await turns(n_turns)
        was_done = task.done()
        task.cancel()
        await turns(10)
        assert task.cancelled() != was_done

    workers.start()
    asyncio.run(main())


def test_one_task_that_is_cancelled_leaves_the_outcome_to_the_others(
    hub: MessageHub, workers: Workers
) -> None:
    async def give_up() -> None:
        call = hub.start_call(workers.name, "until_cancelled", timeout_s=WATCHDOG_S)
        tasks = [asyncio.create_task(_awaited(call)) for _ in range(2)]
        await asyncio.sleep(0)  # until both wait
        tasks[0].cancel()
        with pytest.raises(CallCancelled):
            await tasks[1]
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]

    workers.start()
    asyncio.run(give_up())


def test_a_time_that_is_over_while_one_awaits_is_told(hub: MessageHub, workers: Workers) -> None:
    async def wait() -> None:
        with pytest.raises(WaitTimeout, match="was not done within 0.3 s"):
            await hub.acall(workers.name, "until_cancelled", timeout_s=0.3)

    workers.start()
    asyncio.run(wait())
    assert workers.has_noted("cancelled")


# --- Death ---


def test_a_workers_death_fails_its_calls_at_once_and_no_other_ones(
    hub: MessageHub, workers: Workers
) -> None:
    children = {child.pid: child for child in workers.start(2)}
    calls = [hub.start_call(workers.name, "wait", x=x, timeout_s=600.0) for x in range(2)]
    assert workers.has_noted("begun 0")
    assert workers.has_noted("begun 1")
    victim = next(iter(children.values()))
    victim.kill()
    assert eventually(lambda: any(call.is_done for call in calls), WATCHDOG_S)
    for x in range(2):
        workers.go(x)
    results = []
    for call in calls:
        try:
            results.append(call.result())
        except ServiceDied as error:
            assert "is gone; whether it was done cannot be told" in str(error)  # noqa: PT017
    ((_, pid),) = results
    assert pid != victim.pid
    assert hub.call(workers.name, "work", x=3) == [3, pid], "and the other one goes on"


def test_the_death_of_the_last_worker_fails_what_waits_too(
    hub: MessageHub, workers: Workers
) -> None:
    (child,) = workers.start()
    calls = [hub.start_call(workers.name, "wait", x=x, timeout_s=600.0) for x in range(3)]
    assert workers.has_noted("begun 0")
    child.kill()
    with pytest.raises(ServiceDied, match="cannot be told"):
        calls[0].result()
    for call in calls[1:]:
        with pytest.raises(ServiceDied, match="had not begun"):
            call.result()
    assert workers.noted() == ["begun 0"]


def test_closing_the_hub_fails_calls_under_way(shared: BrokerConfig, workers: Workers) -> None:
    workers.start()
    with MessageHub(shared) as caller:
        call = caller.start_call(workers.name, "wait", timeout_s=600.0)
        assert workers.has_noted("begun 0")
    with pytest.raises(ChannelClosed, match="shut down"):
        call.result()
    assert list(call.progress) == []
    with pytest.raises(ChannelClosed, match="shut down"):
        caller.call(workers.name, "work")
    workers.go()


def test_a_call_that_begins_while_the_hub_closes_does_not_wait_for_its_time(
    shared: BrokerConfig, workers: Workers
) -> None:
    workers.start()
    with MessageHub(shared) as caller:
        # The hub's end is in two steps: here, another thread is between them.
        caller._holdings.calls.close(ChannelClosed("this hub was shut down."))
        call = caller.start_call(workers.name, "wait", timeout_s=600.0)
        with pytest.raises(ChannelClosed, match="shut down"):
            call.result()


def test_a_forks_child_is_told_to_make_a_hub_of_its_own(hub: MessageHub, name: str) -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            hub.call(name, "work", timeout_s=1.0)
        except ForkedHandle as error:
            os.write(write_end, str(error).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end) as told:
        assert "Make a MessageHub of its own in the child" in told.read()
    os.waitpid(child, 0)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_call_outlives_the_broker_and_is_done_once(
    config: BrokerConfig, spawn: Spawn, name: str, tmp_path: Path, end: signal.Signals
) -> None:
    with MessageHub(config) as hub:
        workers = Workers(spawn, config, name, tmp_path)
        workers.start()
        running = hub.start_call(name, "wait", timeout_s=WATCHDOG_S)
        waiting = [hub.start_call(name, "work", x=x, timeout_s=WATCHDOG_S) for x in range(5)]
        assert workers.has_noted("begun 0")
        broker = RuntimeDirectory(config.runtime_dir).read_broker()
        assert broker is not None
        os.kill(broker.pid, end)
        workers.go()
        assert running.result()[0] == 0
        assert [call.result()[0] for call in waiting] == list(range(5))
        # Time for a repetition, had there been one.
        assert hub.call(name, "work", x=9, timeout_s=WATCHDOG_S)[0] == 9
        once = ["begun 0", "ended 0", *(f"work {x}" for x in (*range(5), 9))]
        assert Counter(workers.noted()) == Counter(once)


def test_calls_that_begin_while_brokers_end_are_done_once(
    config: BrokerConfig, spawn: Spawn, name: str, tmp_path: Path
) -> None:
    with MessageHub(config) as hub:
        workers = Workers(spawn, config, name, tmp_path)
        workers.start()
        n_calls, is_over = 0, threading.Event()

        def kill() -> None:
            for _ in range(3):
                broker = RuntimeDirectory(config.runtime_dir).read_broker()
                if broker is not None:
                    os.kill(broker.pid, signal.SIGKILL)
                time.sleep(0.7)  # as brokers end at any time
            is_over.set()

        killing = threading.Thread(target=kill)
        killing.start()
        while not is_over.is_set():
            assert hub.call(name, "work", x=n_calls, timeout_s=WATCHDOG_S)[0] == n_calls
            n_calls += 1
        killing.join()
        assert Counter(workers.noted()) == {f"work {x}": 1 for x in range(n_calls)}


def test_a_service_that_went_while_its_result_was_due_is_told(
    hub: MessageHub, here: MessageHub, name: str
) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    @here.service(name).command
    def wait() -> None:
        has_begun.set()
        may_end.wait(WATCHDOG_S)

    call = hub.start_call(name, "wait", timeout_s=600.0)
    assert has_begun.wait(WATCHDOG_S)
    here.close()
    with pytest.raises((ServiceDied, CommandFailed)):
        call.result()
    may_end.set()


# --- Found by review ---


def test_a_cancelled_command_that_gives_a_result_all_the_same_has_one(
    hub: MessageHub, here: MessageHub, name: str
) -> None:
    begun = threading.Event()

    @here.service(name)
    def expose(job: Job) -> str:
        begun.set()
        return "stopped early" if job.wait(None) else "done"

    call = hub.start_call(name, "expose", timeout_s=WATCHDOG_S)
    assert begun.wait(WATCHDOG_S)
    call.cancel()
    assert call.result() == "stopped early"


def test_an_outcome_that_no_task_is_there_to_see_is_no_complaint(
    hub: MessageHub, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    workers.start()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                hub.acall(workers.name, "until_cancelled", timeout_s=WATCHDOG_S), 0.2
            )
        await asyncio.to_thread(workers.has_noted, "cancelled")
        gc.collect()

    asyncio.run(main())
    gc.collect()
    assert caplog.records == []


def test_arguments_without_a_name_are_refused_with_where_to_look(hub: MessageHub) -> None:
    with pytest.raises(TypeError, match=r"arguments of s\.c go by name.*\n.*pyhub call s"):
        hub.call("s", "c", 0.1)


def test_a_call_that_was_given_up_before_there_was_a_broker_never_begins(
    config: BrokerConfig, runtime: Path
) -> None:
    patient = BrokerConfig(runtime_dir=runtime, linger_s=config.linger_s)
    with MessageHub(patient) as hub, MessageHub(patient) as here:
        stage = here.service("stage")
        moved: list[int] = []

        @stage
        def move(x: int) -> None:
            moved.append(x)

        broker = RuntimeDirectory(runtime).read_broker()
        assert broker is not None
        with stopped(broker.pid):
            with pytest.raises(WaitTimeout):
                hub.call("stage", "move", x=1, timeout_s=0.2)
            os.kill(broker.pid, signal.SIGKILL)
        hub.call("stage", "move", x=2)
        assert moved == [2]


def test_a_flood_of_reports_does_not_swallow_the_result(hub: MessageHub, here: MessageHub) -> None:
    service = here.service("flood")
    left_out: list[int] = []

    @service
    def flood(job: Job, n: int) -> int:
        for number in range(n):
            job.report(number)
        left_out.append(job.n_unreported)
        return n

    call = hub.start_call("flood", "flood", n=20_000, timeout_s=60)
    assert call.result() == 20_000
    told = list(call.progress)
    assert told == sorted(set(told))
    # Each one came, was left out there, or found no room on the way, counted by the broker.
    programs, _ = hub.programs()
    n_dropped = sum(program.n_dropped for program in programs)
    assert len(told) + left_out[0] + call.progress.n_lost + n_dropped >= 20_000
    assert hub.call("flood", "flood", n=1) == 1, "the service goes on"
    service.close()


def test_a_call_ends_at_its_time_also_if_nobody_waits_for_its_result(
    hub: MessageHub, workers: Workers
) -> None:
    workers.start()
    call = hub.start_call(workers.name, "until_cancelled", timeout_s=0.3)
    assert list(call.progress) == []
    assert call.is_done
    with pytest.raises(WaitTimeout, match="was not done within 0.3 s"):
        call.result()
    assert workers.has_noted("cancelled")


def test_a_call_under_way_when_the_broker_ends_does_not_make_its_program_connect_anew(
    config: BrokerConfig, runtime: Path
) -> None:
    with MessageHub(config) as hub, MessageHub(config) as here:
        release = threading.Event()

        @here.service("slow")
        def wait() -> str:
            release.wait(WATCHDOG_S)
            return "done"

        calls = [hub.start_call("slow", "wait", timeout_s=WATCHDOG_S) for _ in range(3)]
        with hub.events("nothing") as feed:
            broker = RuntimeDirectory(runtime).read_broker()
            assert broker is not None
            os.kill(broker.pid, signal.SIGKILL)
            assert eventually(lambda: feed.n_breaks == 1, WATCHDOG_S)
            assert not eventually(lambda: feed.n_breaks > 1, 4.0), "its line was made anew"
            release.set()
            assert [call.result() for call in calls] == ["done"] * 3


def test_what_is_given_to_a_service_that_closes_is_done_or_told(
    hub: MessageHub, here: MessageHub, name: str
) -> None:
    for number in range(20):
        service = here.service(f"{name}{number}")

        @service
        def quick() -> str:
            return "done"

        calls = [hub.start_call(service.name, "quick", timeout_s=WATCHDOG_S) for _ in range(20)]
        service.close()
        for call in calls:
            with contextlib.suppress(ServiceDied, ServiceNotFound):
                assert call.result() == "done"


def test_when_the_hubs_own_thread_dies_all_who_wait_are_told_why(shared: BrokerConfig) -> None:
    hub = MessageHub(shared)
    feed = hub.events("*")

    def out_of_order(now: float) -> list[bytes]:
        raise RuntimeError("on purpose")

    hub._connection._session.outgoing = out_of_order  # type: ignore[method-assign]
    with pytest.raises(BrokerUnreachable, match="out of order: RuntimeError"):
        for _ in range(1000):
            feed.get(WATCHDOG_S)
    with pytest.raises(BrokerUnreachable, match="out of order: RuntimeError"):
        hub.channels()
    hub.close()


@pytest.mark.parametrize("is_limit", [False, True])
def test_a_failure_in_a_services_thread_ends_the_line_unless_it_is_that_threads_own(
    hub: MessageHub, shared: BrokerConfig, name: str, is_limit: bool
) -> None:
    failures: list[Exception] = [
        MemoryError("on purpose") if is_limit else ValueError("on purpose")
    ]
    with MessageHub(shared) as there:

        @there.service(name)  # whose thread has the line now, as nobody else waits
        def answer() -> int:
            return 42

        take = there._holdings._takers[protocol.Execute]

        def fail_once(body: protocol.Execute) -> None:
            if failures:
                assert threading.current_thread().name == f"pyhub-{name}"
                raise failures.pop()
            take(body)

        there._holdings._takers[protocol.Execute] = fail_once
        if is_limit:
            assert hub.call(name, "answer", timeout_s=WATCHDOG_S) == 42
            assert there.channels() == []
        else:
            with pytest.raises(ServiceDied):
                hub.call(name, "answer", timeout_s=WATCHDOG_S)
            with pytest.raises(BrokerUnreachable, match="out of order: ValueError"):
                there.channels()


def test_an_answer_that_came_while_this_program_was_held_up_is_no_reason_for_a_new_line(
    hub: MessageHub,
) -> None:
    interval = sys.getswitchinterval()
    with hub.events("nothing") as feed:
        sys.setswitchinterval(10)  # no other thread comes in between
        try:
            hub._connection.put(Ask(protocol.Ping(), lambda reply: None))
            held_up_until = time.monotonic() + 1.3  # longer than answers are waited for
            while time.monotonic() < held_up_until:
                pass
        finally:
            sys.setswitchinterval(interval)
        time.sleep(0.05)  # the hub's thread looks first
        hub.channels()
        assert feed.n_breaks == 0


def test_what_cannot_be_sent_is_its_senders_error_and_the_hub_goes_on(hub: MessageHub) -> None:
    wrong: list[Callable[[], object]] = [
        lambda: hub.publish("a", 1, keep=np.bool_(True)),  # type: ignore[arg-type]
        lambda: hub.state.set("a", 1, if_version=np.int64(5)),
        lambda: hub.state.set("a", 1, if_version=2**64),
        lambda: hub.state.set(np.str_("k"), 1),
        lambda: hub.publish(np.str_("k"), 1),
        lambda: hub.publish("k", 1, severity=np.str_("info")),  # type: ignore[arg-type]
        lambda: hub.service("threads", threads=2.5),  # type: ignore[arg-type]
    ]
    for each in wrong:
        with contextlib.suppress(BrokerRefused, TypeError, ValueError):
            each()
    for timeout_s in (np.float64(5), np.int64(5), np.float32(5), np.longdouble(5)):
        with pytest.raises(ServiceNotFound):
            hub.call("nobody", "echo", timeout_s=timeout_s)
    hub.state["a"] = 1
    assert hub.state.pop("a") == 1


def test_a_call_and_what_comes_of_it_are_messages_however_long_what_they_say(
    hub: MessageHub,
) -> None:
    """They are not looked at once more before they are sent."""
    call = hub.start_call("s" * 200, "c" * 200, timeout_s=math.inf, data=bytes(MAX_VALUE_BYTES - 9))
    error = type("E\u20ac" * 300, (Exception,), {})("\u20ac\ud800" * 9000)
    for number in range(40):
        try:
            raise error
        except Exception as deeper:
            error = deeper
            error.add_note(f"{number}: " + "\U0001f52c" * 500)
    outcomes = [
        protocol.Outcome(call._id, None, raised(error)),
        protocol.Outcome(call._id, pack("", bytes(MAX_VALUE_BYTES - 3))),
    ]
    for body in (call.body("e" * 255), *outcomes):
        frame = protocol.encode(protocol.Request(2**63 - 1, body))
        assert protocol.decode_request(frame).body == body
    call.cancel()


def test_a_command_that_cannot_even_say_what_went_wrong_does_not_end_its_service(
    hub: MessageHub, here: MessageHub, name: str
) -> None:
    class Bad(Exception):
        def __str__(self) -> str:
            raise SystemExit

    @here.service(name)
    def bad() -> None:
        raise Bad

    for _ in range(2):
        with pytest.raises(CommandFailed, match="Bad: <its text cannot be had: SystemExit>"):
            hub.call(name, "bad")


@pytest.mark.parametrize("listens", [True, False])
def test_a_handlers_fork_amid_a_call_is_told_at_once_in_the_child(
    hub: MessageHub, workers: Workers, listens: bool
) -> None:
    """Also where another thread listens for both."""
    workers.start()
    others: list[threading.Thread] = []
    if not listens:
        other = hub.start_call(workers.name, "wait", x=2, timeout_s=WATCHDOG_S)
        others.append(threading.Thread(target=other.result))
        others[0].start()
    call = hub.start_call(workers.name, "wait", x=1, timeout_s=WATCHDOG_S)
    children: list[int] = []

    def fork(*_: object) -> None:
        if len(children) < 10:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there are threads is the point
                child = os.fork()
            children.append(child)
            if child == 0:
                signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)
            workers.go(2)
            workers.go(1)

    former = signal.signal(signal.SIGALRM, fork)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.02)
        began = time.monotonic()
        assert call.result()[0] == 1
    except ForkedHandle:
        os._exit(0 if time.monotonic() - began < WATCHDOG_S / 2 else 1)
    finally:
        if children and children[-1] == 0:
            os._exit(2)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 10
    for each in others:
        each.join(WATCHDOG_S)


def test_a_commands_fork_that_goes_on_like_its_parent_ends(hub: MessageHub, name: str) -> None:
    """Its child has only that thread, which has nobody to work for."""

    @hub.service(name)
    def fork() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are threads is the point
            return os.fork()

    child = hub.call(name, "fork", timeout_s=WATCHDOG_S)
    ended: list[int] = []
    try:
        assert eventually(lambda: ended.append(os.waitpid(child, os.WNOHANG)[0]) or ended[-1])
    finally:
        if not ended or not ended[-1]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_call_is_not_waited_for_in_a_forks_child(hub: MessageHub, workers: Workers) -> None:
    workers.start()
    call = hub.start_call(workers.name, "wait", x=1, timeout_s=WATCHDOG_S)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are threads is the point
        child = os.fork()
    if child == 0:
        try:
            call.result()
        except ForkedHandle:
            os.write(write, b"told")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 4) == b"told"
    os.close(read)
    os.close(write)
    workers.go(1)
    assert call.result()[0] == 1
