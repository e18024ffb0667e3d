"""Forks amid calls: the child is told at once, and takes nothing from its parent."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from pyhub import MessageHub
from pyhub.errors import ForkedHandle
from tests.conftest import exit_status, fork
from tests.hub.conftest import WATCHDOG_S, Workers

LONG_S = 3.0 * WATCHDOG_S  # a child that is told only then is ended before


def test_a_forks_child_is_told_to_make_a_hub_of_its_own(hub: MessageHub, name: str) -> None:
    read_end, write_end = os.pipe()
    child = fork()
    if child == 0:
        try:
            hub.call(name, "work", timeout_s=LONG_S)
        except ForkedHandle as error:
            os.write(write_end, str(error).encode())
        finally:
            os._exit(0)
    assert exit_status(child) == 0
    os.close(write_end)
    with open(read_end) as told:
        assert "Make a MessageHub of its own in the child" in told.read()


def status_of_a_child(ask: Callable[[], object]) -> int:
    """Fork, and have the child ask for something: 0 if it is told of the fork."""
    child = fork()
    if child == 0:
        try:
            ask()
        except ForkedHandle:
            os._exit(0)
        finally:
            os._exit(1)
    return exit_status(child)


def test_a_call_is_not_waited_for_in_a_forks_child(hub: MessageHub, workers: Workers) -> None:
    workers.start()
    call = hub.start_call(workers.name, "wait", x=1, timeout_s=LONG_S)
    assert status_of_a_child(call.result) == 0
    workers.go(1)
    assert call.result()[0] == 1


@pytest.mark.parametrize("listens", [True, False])
def test_a_handlers_fork_amid_a_call_is_told_at_once_in_the_child(
    hub: MessageHub, workers: Workers, listens: bool
) -> None:
    """Also where another thread listens for both."""
    workers.start()
    others: list[threading.Thread] = []
    if not listens:
        other = hub.start_call(workers.name, "wait", x=2, timeout_s=LONG_S)
        others.append(threading.Thread(target=other.result))
        others[0].start()
    call = hub.start_call(workers.name, "wait", x=1, timeout_s=LONG_S)
    children: list[int] = []
    parent = os.getpid()

    def fork_or_go_on(*_: object) -> None:
        if len(children) < 10:
            children.append(fork())
            if os.getpid() == parent:  # only now: a fork may take long, and is not to be nested
                signal.setitimer(signal.ITIMER_REAL, 0.02)
        else:
            workers.go(2)
            workers.go(1)

    former = signal.signal(signal.SIGALRM, fork_or_go_on)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert call.result()[0] == 1
    except ForkedHandle:
        if os.getpid() == parent:
            raise
        os._exit(0)
    finally:
        if os.getpid() != parent:
            os._exit(1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert [exit_status(child) for child in children] == [0] * 10
    for each in others:
        each.join(WATCHDOG_S)
        assert not each.is_alive()


def test_a_child_of_a_fork_amid_the_hubs_own_work_is_told_of_the_fork(
    hub: MessageHub, workers: Workers
) -> None:
    """Not to wait until that work is done, which is its parent's."""
    workers.start()
    call = hub.start_call(workers.name, "work", timeout_s=LONG_S)
    with hub._connection._line.lock:
        assert status_of_a_child(call.result) == 0
    call.result()


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_commands_fork_that_goes_on_like_its_parent_ends(
    hub: MessageHub, name: str, is_alone: bool
) -> None:
    """Its child has only that thread, which has nobody to work for; unless it started others."""
    import h5py  # noqa: F401  Python is needed when libhdf5 ends, and its last thread is gone

    @hub.service(name)
    def divide() -> int:
        child = fork()
        if child == 0 and not is_alone:
            timer = threading.Timer(0.1, os._exit, (7,))
            timer.daemon = False
            timer.start()
        return child

    child = hub.call(name, "divide", timeout_s=WATCHDOG_S)
    assert exit_status(child) == (1 if is_alone else 7)
