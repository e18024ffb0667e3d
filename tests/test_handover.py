"""What threads of one program hand to each other: bells, answers, turns, ears."""

from __future__ import annotations

import contextlib
import errno
import gc
import math
import os
import resource
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from pyhub._handover import Answer, Bell, Ears, Lock, Wake, keep_newest, take
from pyhub.errors import ForkedHandle
from tests.conftest import eventually, exit_status, fork

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


def signal_who_waits(bell: Bell) -> None:
    """Signal the main thread once it waits for the bell."""
    assert eventually(lambda: bell.n_waiting == 1, WATCHDOG_S)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


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


# --- Lock ---


def test_a_turn_is_one_threads(run: Callable[..., threading.Thread]) -> None:
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


def test_an_attempt_does_not_wait() -> None:
    lock = Lock()
    with held_elsewhere(lock):
        with lock.attempt() as is_taken:
            assert not is_taken
        assert not lock.is_mine
    with lock:
        assert lock.is_mine


def test_what_raises_gives_its_turn_back() -> None:
    lock = Lock()
    with pytest.raises(ValueError), lock:
        raise ValueError
    with pytest.raises(ValueError), lock.attempt():
        raise ValueError
    assert not lock.is_mine


def test_a_turn_that_another_thread_has_is_not_waited_for_in_a_forks_child() -> None:
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
