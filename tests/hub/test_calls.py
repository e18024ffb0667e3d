"""Calls: done once, by one of those who offer the command; what comes of them is told."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pyhub import (
    ChannelClosed,
    Job,
    MessageHub,
)
from pyhub.errors import (
    BrokerRefused,
    CapacityError,
    CodecError,
    CommandFailed,
    ServiceNotFound,
)
from pyhub.hub import protocol
from pyhub.hub.client.failures import raised
from pyhub.hub.client.values import MAX_VALUE_BYTES, pack
from tests.conftest import eventually
from tests.hub.conftest import WATCHDOG_S, Workers, awaited

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
    assert asyncio.run(awaited(call)) == first
    assert "done" in repr(call)
    call.cancel()
    assert call.result() == first, "it is too late to cancel"


def test_what_nobody_offers_is_told_with_what_there_is(hub: MessageHub, workers: Workers) -> None:
    workers.start()
    with pytest.raises(ServiceNotFound, match=r"no service 'nobody'; there are: .*"):
        hub.call("nobody", "work")
    with pytest.raises(ServiceNotFound, match="it has: count, until_cancelled, wait, work"):
        hub.call(workers.name, "nothing")


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e12])
def test_a_call_may_be_waited_for_as_long_as_one_likes(
    hub: MessageHub, workers: Workers, timeout_s: float
) -> None:
    workers.start()
    assert hub.call(workers.name, "work", x=7, timeout_s=timeout_s)[0] == 7
    assert asyncio.run(hub.acall(workers.name, "work", x=8, timeout_s=timeout_s))[0] == 8


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


# --- What cannot be sent ---


def test_arguments_that_cannot_be_sent_are_refused_here(hub: MessageHub, name: str) -> None:
    with pytest.raises(CodecError, match="cannot hold"):
        hub.call(name, "work", x={1})
    with pytest.raises(CapacityError, match=rf"the arguments of {name}\.work take"):
        hub.call(name, "work", x=bytes(49 * 1024))


def test_arguments_without_a_name_are_refused_with_where_to_look(hub: MessageHub) -> None:
    with pytest.raises(TypeError, match=r"arguments of s\.c go by name.*\n.*pyhub call s"):
        hub.call("s", "c", 0.1)


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
