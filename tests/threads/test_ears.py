"""Who listens for all threads of a program, and how they have their answers."""

from __future__ import annotations

import contextlib
import errno
import gc
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pyhub._ears import Answer, Ears
from pyhub._handover import Lock, Wake
from tests.conftest import eventually, exit_status, fork
from tests.threads.conftest import SHORT_S, WATCHDOG_S, held_elsewhere, interrupt_soon, is_readable

# --- Answer ---


def test_the_first_that_is_given_counts() -> None:
    answer: Answer[int] = Answer()
    assert not answer.is_done
    assert not answer.wait(0)
    assert answer.set(1)
    assert not answer.set(2)
    assert not answer.fail(ValueError("late"))
    assert answer.wait(0)
    assert (answer.is_done, answer.result(), answer.error) == (True, 1, None)


def test_an_error_is_raised_to_who_asks() -> None:
    answer: Answer[int] = Answer()
    error = ValueError("no")
    assert answer.fail(error)
    assert answer.error is error
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            answer.result()


def test_all_who_wait_have_it(run: Callable[..., threading.Thread]) -> None:
    answer: Answer[int] = Answer()
    got: list[bool] = []
    for _ in range(4):
        run(lambda: got.append(answer.wait(WATCHDOG_S)))
    time.sleep(SHORT_S)
    answer.set(5)
    assert eventually(lambda: got == [True] * 4)


def test_of_many_who_give_one_is_told_that_it_was_the_first(
    run: Callable[..., threading.Thread],
) -> None:
    for _ in range(50):
        answer: Answer[int] = Answer()
        first: list[bool] = []
        together = threading.Barrier(4)

        def give(number: int, answer: Answer[int] = answer, first: list[bool] = first) -> None:
            together.wait()  # noqa: B023  # joined below
            first.append(answer.set(number))

        threads = [run(give, number) for number in range(4)]
        for thread in threads:
            thread.join(WATCHDOG_S)
        assert sorted(first) == [False, False, False, True]


def test_who_cannot_wait_is_called() -> None:
    answer: Answer[int] = Answer()
    called: list[str] = []
    answer.on_done(lambda: called.append("before"))
    assert called == []
    answer.set(1)
    answer.on_done(lambda: called.append("after"))
    assert called == ["before", "after"]


def test_it_is_said_whether_somebody_is_to_be_called() -> None:
    answer: Answer[int] = Answer()
    assert not answer.is_called_for
    answer.on_done(lambda: None)
    assert answer.is_called_for
    answer.set(1)
    assert not answer.is_called_for


# --- Ears ---


@pytest.fixture
def ears() -> Iterator[Ears]:
    ears = Ears()
    yield ears
    ears.close()


class Owner:
    """A thread that rests, and counts how often it was woken."""

    def __init__(self, ears: Ears, wake: Wake) -> None:
        self.ears, self.wake = ears, wake
        self.n_woken = 0
        self.is_ended = False

    def run(self) -> None:
        while not self.is_ended:
            self.ears.rest(WATCHDOG_S)
            self.n_woken += 1
            self.wake.quiet()

    def end(self) -> None:
        self.is_ended = True
        self.ears.call()


@pytest.fixture
def owner(ears: Ears, run: Callable[..., threading.Thread]) -> Iterator[Owner]:
    wake = Wake()
    ears.open(wake.fd)
    owner = Owner(ears, wake)
    run(owner.run)
    yield owner
    owner.end()
    wake.close()


def test_its_owner_hears_while_nobody_stands_in(ears: Ears, owner: Owner) -> None:
    owner.wake.wake()
    assert eventually(lambda: owner.n_woken == 1)
    ears.call()
    assert eventually(lambda: owner.n_woken == 2)


def listen(
    ears: Ears,
    is_needed: Callable[[], bool],
    receive: Callable[[], object] = lambda: None,
    timeout_s: float = WATCHDOG_S,
) -> bool:
    return ears.listen_while(is_needed, receive, Lock(), time.monotonic() + timeout_s)


def test_who_stands_in_hears_instead_of_the_owner(ears: Ears, owner: Owner) -> None:
    heard: list[int] = []

    def is_needed() -> bool:
        if not heard:
            owner.wake.wake()  # now that its owner does not
        return not heard

    def receive() -> None:
        assert is_readable(owner.wake.fd)
        time.sleep(SHORT_S)  # for its owner to hear it, if it could
        heard.append(owner.n_woken)

    assert listen(ears, is_needed, receive)
    assert heard == [0]
    # What it left, the owner hears.
    assert eventually(lambda: owner.n_woken == 1)
    assert not is_readable(owner.wake.fd)


def test_only_one_stands_in(ears: Ears, owner: Owner, run: Callable[..., threading.Thread]) -> None:
    answers: list[bool] = []

    def try_it() -> None:
        answers.append(listen(ears, lambda: False))

    def let_others_try() -> bool:
        run(try_it).join(WATCHDOG_S)
        assert listen(ears, lambda: False)  # in a handler that interrupted it, say
        run(try_it).join(WATCHDOG_S)
        return False

    assert listen(ears, let_others_try)
    run(try_it).join(WATCHDOG_S)
    assert answers == [False, False, True]


def test_nobody_stands_in_where_there_is_nothing_to_hear(ears: Ears) -> None:
    assert not listen(ears, lambda: True)


def test_what_comes_while_another_thread_has_the_line_is_left_to_that_one(
    ears: Ears, owner: Owner, run: Callable[..., threading.Thread]
) -> None:
    line, given_back, had = Lock(), list[bool](), list[bool]()
    with held_elsewhere(line) as release:

        def give_back() -> None:
            time.sleep(SHORT_S)
            given_back.append(True)
            release()

        def is_needed() -> bool:
            owner.wake.wake()  # now that nobody else hears it
            return not had

        run(give_back)
        assert ears.listen_while(is_needed, lambda: had.append(bool(given_back)), line, math.inf)
    assert had == [True]
    assert not line.is_mine


def test_an_error_ends_it_and_gives_all_back(ears: Ears, owner: Owner) -> None:
    line = Lock()

    def fail() -> bool:
        raise ZeroDivisionError

    def come() -> bool:
        owner.wake.wake()  # now that nobody else hears it
        return True

    for is_needed, receive in ((fail, int), (come, fail)):
        with pytest.raises(ZeroDivisionError):
            ears.listen_while(is_needed, receive, line, math.inf)
        assert not line.is_mine
        n_woken = owner.n_woken
        owner.wake.wake()
        assert eventually(lambda n_before=n_woken: owner.n_woken > n_before)  # type: ignore[misc]


def test_a_signal_is_handled_though_the_line_is_held_elsewhere(ears: Ears, owner: Owner) -> None:
    """It may come while this thread is awake already, and waits for the GIL: no call fails by it."""
    line = Lock()
    answer: Answer[int] = Answer(ears)
    rescue = threading.Timer(WATCHDOG_S / 2, answer.set, (1,))

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    def hold() -> None:
        assert eventually(lambda: not ears.listen_while(lambda: False, int, Lock(), 0), WATCHDOG_S)
        with line:
            time.sleep(SHORT_S)  # who listens sleeps, most likely
            ears.nudge()
            spin(SHORT_S)  # it is awake, and waits
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            spin(SHORT_S)
            time.sleep(SHORT_S)  # gives the GIL away, not the line

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100 * SHORT_S)
    former = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=hold)
    try:
        rescue.start()
        thread.start()
        with pytest.raises(Interrupted):
            ears.listen_while(answer.is_awaited, int, line, math.inf)
        assert answer.is_awaited(), "it slept until something came"
    finally:
        sys.setswitchinterval(interval)
        rescue.cancel()
        rescue.join()
        thread.join()
        signal.signal(signal.SIGUSR1, former)


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_nobody_listens_in_a_forks_child(ears: Ears) -> None:
    """It shares the descriptors with its parent, which would hear nothing any more."""
    wake = Wake()
    ears.open(wake.fd)
    child = fork()
    if child == 0:
        os._exit(int(ears.listen_while(lambda: True, int, Lock(), math.inf)))
    assert exit_status(child) == 0
    ears.shut()
    wake.close()


@pytest.mark.parametrize("where", ["waiting", "is_needed", "receive", "held elsewhere"])
def test_a_fork_amid_listening_ends_it_in_the_child(ears: Ears, owner: Owner, where: str) -> None:
    """And takes nothing from the parent."""
    children, line = list[int](), Lock()

    def fork_once(*_: object) -> None:
        if not children:
            children.append(fork())

    def is_needed() -> bool:
        if where in ("receive", "held elsewhere") and not children:
            owner.wake.wake()
        if where == "is_needed":
            fork_once()
        return not any(children)

    def receive() -> None:
        if where == "receive":
            fork_once()
        owner.wake.quiet()

    with contextlib.ExitStack() as stack:
        release = stack.enter_context(held_elsewhere(line)) if where == "held elsewhere" else int
        former = signal.signal(signal.SIGUSR1, fork_once)
        try:
            if where in ("waiting", "held elsewhere"):
                interrupt_soon(release)
            is_mine = ears.listen_while(is_needed, receive, line, math.inf)
        finally:
            if children == [0]:
                os._exit(0 if not line.is_mine else 1)
            signal.signal(signal.SIGUSR1, former)
    assert is_mine
    assert exit_status(children[0]) == 0
    owner.wake.quiet()
    n_woken = owner.n_woken
    owner.wake.wake()
    assert eventually(lambda: owner.n_woken > n_woken)


def test_it_lasts_no_longer_because_the_line_is_held_elsewhere(ears: Ears, owner: Owner) -> None:
    """Not for as long once more, either."""

    def lasted_s(line: Lock) -> float:
        nudge = threading.Timer(9 * SHORT_S, ears.nudge)
        nudge.start()
        began = time.monotonic()
        assert ears.listen_while(lambda: True, int, line, began + 10 * SHORT_S)
        ended = time.monotonic()
        nudge.join()
        return ended - began

    line = Lock()
    free_s = max(lasted_s(line) for _ in range(3))
    with held_elsewhere(line):
        assert min(lasted_s(line) for _ in range(3)) < 1.5 * free_s


def test_it_lasts_until_its_deadline(ears: Ears, owner: Owner) -> None:
    began = time.monotonic()
    assert listen(ears, lambda: True, timeout_s=SHORT_S)
    assert time.monotonic() - began >= SHORT_S


def test_an_answer_of_another_thread_wakes_who_stands_in(
    ears: Ears, owner: Owner, run: Callable[..., threading.Thread]
) -> None:
    for _ in range(200):
        answer: Answer[int] = Answer(ears)
        run(answer.set, 1)
        assert ears.listen_while(lambda a=answer: not a.is_done, int, Lock(), math.inf)  # type: ignore[misc]


def test_an_answer_of_ones_own_is_no_reason_to_wait(ears: Ears, owner: Owner) -> None:
    answer: Answer[int] = Answer(ears)

    def look() -> bool:
        was_done = answer.is_done
        answer.set(1)  # in a handler, say, between the look and the wait
        return not was_done

    assert ears.listen_while(look, int, Lock(), math.inf)


def test_who_stands_in_hears_of_another_descriptor(ears: Ears, owner: Owner) -> None:
    other, heard = Wake(), list[int]()

    def replace() -> None:
        ears.shut()
        ears.open(other.fd)
        other.wake()

    def receive() -> None:
        if is_readable(other.fd):
            time.sleep(SHORT_S)
            other.quiet()
            heard.append(owner.n_woken)

    timer = threading.Timer(SHORT_S, replace)
    timer.start()
    while not heard:
        listen(ears, lambda: not heard, receive)
    timer.join()
    assert heard == [0]
    ears.shut()
    other.close()


def run_standing_in(run: Callable[..., threading.Thread], ears: Ears) -> threading.Thread:
    """Have a thread stand in; returned when it does, and is about to sleep."""
    is_standing = threading.Event()

    def is_needed() -> bool:
        is_standing.set()
        return True

    thread = run(ears.listen_while, is_needed, int, Lock(), math.inf)
    assert is_standing.wait(WATCHDOG_S)
    return thread


def test_ears_are_closed_while_somebody_stands_in(
    run: Callable[..., threading.Thread],
) -> None:
    ears, wake = Ears(), Wake()
    ears.open(wake.fd)
    thread = run_standing_in(run, ears)
    ears.close()
    ears.close()
    wake.close()
    thread.join(WATCHDOG_S)
    assert not thread.is_alive()
    ears.call()
    ears.nudge()
    ears.rest(0)


def test_what_is_forgotten_lets_its_descriptors_go() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        Ears(), Wake()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_descriptors_that_cannot_be_had_are_an_error() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
    try:
        with pytest.raises(OSError, match=r"eventfd|epoll") as raised:
            [Ears() for _ in range(100)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE


def test_what_is_closed_while_somebody_stands_in_is_no_other_file_to_it(
    run: Callable[..., threading.Thread],
) -> None:
    for _ in range(25):
        ears, wake = Ears(), Wake()
        ears.open(wake.fd)
        thread = run_standing_in(run, ears)
        ears.close()
        pipes = [os.pipe() for _ in range(8)]  # with numbers that were free just now
        thread.join(WATCHDOG_S)
        assert not thread.is_alive()
        wake.close()
        for descriptor in (each for pipe in pipes for each in pipe):
            os.close(descriptor)
