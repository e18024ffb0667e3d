"""Threads that wait, hold and interrupt."""

from __future__ import annotations

import contextlib
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pyhub._handover import Lock

WATCHDOG_S = 20.0
SHORT_S = 0.02


@pytest.fixture
def run() -> Iterator[Callable[..., threading.Thread]]:
    """Run something in a thread that is joined at the end."""
    threads: list[threading.Thread] = []

    def run_one(target: Callable[..., object], *arguments: object) -> threading.Thread:
        threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        threads[-1].start()
        return threads[-1]

    yield run_one
    for thread in threads:
        thread.join(WATCHDOG_S)
        assert not thread.is_alive()


def interrupt_soon(then: Callable[[], object] = lambda: None) -> None:
    """Signal the main thread when it waits, most likely; then do something."""
    me = threading.main_thread().ident or 0

    def interrupt() -> None:
        time.sleep(SHORT_S)
        signal.pthread_kill(me, signal.SIGUSR1)
        time.sleep(SHORT_S)
        then()

    threading.Thread(target=interrupt).start()


def is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


@contextlib.contextmanager
def held_elsewhere(lock: Lock) -> Iterator[Callable[[], None]]:
    """Have another thread hold `lock`, until that is called or this ends."""
    release, has_it = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            has_it.set()
            release.wait(WATCHDOG_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has_it.wait(WATCHDOG_S)
    try:
        yield release.set
    finally:
        release.set()
        thread.join()
