"""Calls that are given up: cancelled, interrupted, or not done in time."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from pathlib import Path

import pytest

from pyhub import (
    BrokerConfig,
    Job,
    MessageHub,
    WaitTimeout,
)
from pyhub._deadlines import left_until
from pyhub.errors import (
    CallCancelled,
)
from pyhub.hub.runtime import RuntimeDirectory
from tests.conftest import eventually, turns
from tests.hub.conftest import WATCHDOG_S, Workers, awaited, stopped


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
        asyncio.run(awaited(calls[1]))
    workers.go()
    first.result()


@pytest.mark.parametrize("is_awaited", [True, False])
def test_who_looks_late_has_the_result(hub: MessageHub, workers: Workers, is_awaited: bool) -> None:
    workers.start()
    call = hub.start_call(workers.name, "work", x=3, timeout_s=1.0)
    assert eventually(lambda: call.is_done, WATCHDOG_S)
    assert eventually(lambda: not left_until(call._deadline), WATCHDOG_S)
    assert (asyncio.run(awaited(call)) if is_awaited else call.result())[0] == 3


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
        task = asyncio.create_task(awaited(call))
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
        task = asyncio.create_task(awaited(call))
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
        tasks = [asyncio.create_task(awaited(call)) for _ in range(2)]
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
