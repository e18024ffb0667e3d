"""What ends under a call: a worker, a service, a hub, its thread, a broker."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from pyhub import (
    BrokerConfig,
    BrokerUnreachable,
    ChannelClosed,
    MessageHub,
)
from pyhub.errors import (
    CommandFailed,
    ServiceDied,
    ServiceNotFound,
)
from pyhub.hub import protocol
from pyhub.hub.client.session import Ask
from pyhub.hub.runtime import RuntimeDirectory
from tests.conftest import eventually
from tests.hub.conftest import WATCHDOG_S, Spawn, Workers


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
