"""What threads of one program hand to each other: bells, wake-ups, a lock, items."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections import deque
from collections.abc import Callable

import pytest

from pyhub._handover import Bell, Lock, Wake, keep_newest, take
from pyhub.errors import ForkedHandle
from tests.conftest import eventually, exit_status, fork
from tests.threads.conftest import SHORT_S, WATCHDOG_S, held_elsewhere, interrupt_soon, is_readable


def signal_who_waits(bell: Bell) -> None:
    """Signal the main thread once it waits for the bell."""
    assert eventually(lambda: bell.n_waiting == 1, WATCHDOG_S)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


# --- Bell ---


def test_a_bell_wakes_who_has_not_heard_it(run: Callable[..., threading.Thread]) -> None:
    bell = Bell()
    assert not bell.wait(bell.n_strokes, SHORT_S)
    seen = bell.n_strokes
    bell.ring()
    assert bell.wait(seen, 0)
    assert not bell.wait(bell.n_strokes, 0)
    for _ in range(3):
        run(bell.wait, bell.n_strokes, math.inf)
    assert eventually(lambda: bell.n_waiting == 3, WATCHDOG_S)
    bell.ring()
    assert eventually(lambda: bell.n_waiting == 0, WATCHDOG_S)


def test_no_stroke_is_missed(run: Callable[..., threading.Thread]) -> None:
    there, back = Bell(), Bell()
    n_turns = 20_000

    def answer() -> None:
        for number in range(n_turns):
            there.wait(number, math.inf)
            back.ring()

    thread = run(answer)
    for number in range(n_turns):
        there.ring()
        back.wait(number, math.inf)
    thread.join(WATCHDOG_S)
    assert (there.n_strokes, back.n_strokes) == (n_turns, n_turns)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 1e-9])
def test_who_has_no_time_does_not_wait(timeout_s: float) -> None:
    assert not Bell().wait(0, timeout_s)


def test_for_ever_is_a_time(run: Callable[..., threading.Thread]) -> None:
    bell = Bell()
    run(lambda: (eventually(lambda: bell.n_waiting == 1), bell.ring()))
    assert bell.wait(0, math.inf)


def test_a_handler_runs_while_one_waits(run: Callable[..., threading.Thread]) -> None:
    bell = Bell()
    former = signal.signal(signal.SIGUSR1, lambda *_: bell.ring())
    try:
        run(signal_who_waits, bell)
        assert bell.wait(0, math.inf)
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_a_handler_that_raises_ends_the_wait(run: Callable[..., threading.Thread]) -> None:
    def refuse(*_: object) -> None:
        raise KeyboardInterrupt

    bell, former = Bell(), signal.signal(signal.SIGUSR1, refuse)
    try:
        run(signal_who_waits, bell)
        with pytest.raises(KeyboardInterrupt):
            bell.wait(0, math.inf)
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert bell.n_waiting == 0


# --- Wake ---


def test_a_wake_is_readable_until_it_is_quiet() -> None:
    wake = Wake()
    assert not is_readable(wake.fd)
    wake.wake()
    wake.wake()
    assert is_readable(wake.fd)
    wake.quiet()
    assert not is_readable(wake.fd)
    wake.quiet()  # never waits


def test_a_closed_wake_touches_no_other_file() -> None:
    wake = Wake()
    number = wake.fd
    wake.close()
    wake.close()
    assert wake.fd == -1
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        assert number in (reader, writer), "the number is another file's now"
        wake.wake()
        wake.quiet()
        assert not is_readable(reader)
    finally:
        os.close(reader)
        os.close(writer)


# --- Lock ---


def test_a_lock_is_one_threads(run: Callable[..., threading.Thread]) -> None:
    lock, n_turns, count = Lock(), 2000, [0]

    def work() -> None:
        for _ in range(n_turns):
            with lock:
                before = count[0]
                os.sched_yield()
                count[0] = before + 1

    threads = [run(work) for _ in range(4)]
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert count == [4 * n_turns]
    assert not lock.is_mine


def test_its_holder_may_take_it_again_but_not_by_an_attempt() -> None:
    lock = Lock()
    with lock:
        with lock:
            assert lock.is_mine
        assert lock.is_mine
        with lock.attempt() as is_taken:
            assert not is_taken
        assert lock.is_mine
    assert not lock.is_mine
    with lock.attempt() as is_taken:
        assert is_taken
        assert lock.is_mine
    assert not lock.is_mine


def test_an_attempt_does_not_wait() -> None:
    lock = Lock()
    with held_elsewhere(lock):
        with lock.attempt() as is_taken:
            assert not is_taken
        assert not lock.is_mine
    with lock:
        assert lock.is_mine


def test_what_raises_gives_the_lock_back() -> None:
    lock = Lock()
    with pytest.raises(ValueError), lock:
        raise ValueError
    with pytest.raises(ValueError), lock.attempt():
        raise ValueError
    assert not lock.is_mine


def test_a_lock_that_another_thread_has_is_not_waited_for_in_a_forks_child() -> None:
    """That thread is not there; it may be the child of a handler's fork, amid the wait."""
    lock, children = Lock(), list[int]()
    former = signal.signal(signal.SIGUSR1, lambda *_: children.append(fork()))
    try:
        with held_elsewhere(lock) as release:
            child = fork()
            if child == 0:
                with contextlib.suppress(ForkedHandle), lock:
                    os._exit(1)
                os._exit(0)
            assert exit_status(child) == 0
            interrupt_soon(release)
            with lock:
                pass
    except ForkedHandle:
        if children == [0]:
            os._exit(0)
        raise
    finally:
        if children == [0]:
            os._exit(1)
        signal.signal(signal.SIGUSR1, former)
    assert exit_status(children[0]) == 0


# --- Deques ---


class Item:
    def __init__(self, key: str, value: int) -> None:
        self.key, self.value = key, value


def test_items_are_taken_in_their_order() -> None:
    items = deque(range(5))
    assert take(items, 2) == [0, 1]
    assert take(items, 0) == []
    assert take(items, 9) == [2, 3, 4]
    assert take(items, 1) == []


def test_of_each_key_the_newest_is_kept_where_it_stood() -> None:
    items = deque(Item(key, n) for n, key in enumerate("abacab"))
    assert keep_newest(items) == 3
    assert [(each.key, each.value) for each in items] == [("c", 3), ("a", 4), ("b", 5)]
    assert keep_newest(items) == 0
    assert keep_newest(deque()) == 0
