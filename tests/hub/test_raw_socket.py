"""Messages of a ZeroMQ socket, each in one step: what pyzmq's calls do, without signals."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator

import pytest
import zmq

from pyhub.errors import ForkedHandle
from pyhub.hub._raw_socket import RawSocket
from tests.conftest import eventually

Pair = tuple[zmq.Socket[bytes], zmq.Socket[bytes]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A ROUTER, and a DEALER that is connected to it as "me"."""
    with (
        zmq.Context[zmq.Socket[bytes]]() as context,
        context.socket(zmq.ROUTER) as router,
        context.socket(zmq.DEALER) as dealer,
    ):
        router.linger = dealer.linger = 0
        router.router_mandatory = True
        dealer.identity = b"me"
        router.bind("inproc://raw")
        dealer.connect("inproc://raw")
        yield router, dealer


def test_messages_go_both_ways(pair: Pair) -> None:
    router, dealer = map(RawSocket, pair)
    assert router.receive_from() is None
    assert dealer.send(b"hello")
    assert router.receive_from() == (b"me", b"", b"hello", 0)
    assert router.send_to(b"me", bytes(1000))
    received: deque[bytes] = deque([b"before"])
    dealer.gather(received)
    assert list(received) == [b"before", bytes(1000)]
    dealer.gather(received)
    assert len(received) == 2


def test_frames_too_many_are_taken_and_counted(pair: Pair) -> None:
    router, dealer = RawSocket(pair[0]), pair[1]
    dealer.send_multipart([b"first", b"second", b"third"])
    dealer.send(b"next")
    assert router.receive_from() == (b"me", b"", b"first", 2)
    assert router.receive_from() == (b"me", b"", b"next", 0)


def test_all_is_gathered_and_the_descriptor_is_quiet(pair: Pair) -> None:
    router, dealer = pair
    raw, received = RawSocket(dealer), deque[bytes]()
    RawSocket(dealer).send(b"here I am")
    router.recv_multipart()
    for number in range(500):
        router.send_multipart([b"me", b"%d" % number])
    assert eventually(lambda: dealer.poll(0))
    raw.gather(received)
    assert list(received) == [b"%d" % number for number in range(500)]
    assert not select.select([dealer.fileno()], [], [], 0)[0]
    router.send_multipart([b"me", b"one more"])
    assert select.select([dealer.fileno()], [], [], 10)[0], "of the next one, it tells"


def test_whom_nobody_knows_gets_nothing(pair: Pair) -> None:
    router = RawSocket(pair[0])
    assert not router.send_to(b"a stranger", b"hello")
    assert not router.send_to(b"another one", b"hello"), "nothing of it is left in the socket"


def test_a_full_line_takes_no_more() -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        assert not RawSocket(dealer).send(b"nobody is connected")


def test_what_is_no_frame_is_refused(pair: Pair) -> None:
    with pytest.raises(TypeError):
        RawSocket(pair[1]).send(None)  # type: ignore[arg-type]
    for parts in ((None, b""), (b"me", None)):
        with pytest.raises(TypeError):
            RawSocket(pair[0]).send_to(*parts)  # type: ignore[arg-type]


def test_a_closed_socket_is_an_error_and_no_crash(pair: Pair) -> None:
    raw = RawSocket(pair[1])
    assert not raw.is_closed
    raw.close(0)
    raw.close(0)
    assert raw.is_closed
    assert pair[1].closed
    for use in (
        raw.receive_from,
        lambda: raw.send(b""),
        lambda: raw.send_to(b"", b""),
        lambda: raw.gather(deque()),
    ):
        with pytest.raises(zmq.ZMQError, match="non-socket"):
            use()


def test_signals_that_are_handled_are_no_errors(pair: Pair) -> None:
    n_handled = 0

    def note(*_: object) -> None:
        nonlocal n_handled
        n_handled += 1

    router, dealer = map(RawSocket, pair)
    n_messages, received = 0, deque[bytes]()
    former = signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    try:
        while n_handled < 3000:
            assert dealer.send(b"there")
            while (message := router.receive_from()) is None:
                pass
            assert message == (b"me", b"", b"there", 0)
            assert router.send_to(b"me", b"back")
            n_messages += 1
            while len(received) < n_messages:
                dealer.gather(received)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert set(received) == {b"back"}


def test_in_a_forks_child_it_is_an_error_and_no_endless_loop(pair: Pair) -> None:
    raw = RawSocket(pair[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 3.12: this process has threads
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            for _ in range(2):
                raw.gather(deque())
        except ForkedHandle:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def by_pyzmq(socket: zmq.Socket[bytes], received: deque[bytes]) -> None:
    """Do what `gather` does by pyzmq's calls, and nothing else in between."""
    while int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
        received.append(socket.recv(zmq.NOBLOCK))


def interrupted(pair: Pair, way: Callable[[deque[bytes]], None], n_messages: int) -> list[int]:
    """Receive numbers while a handler raises again and again; those that came.

    Another thread wants the GIL, so that a signal finds the socket's calls at work.
    After the last number there are ends, until one of them has come.
    """
    router, received = pair[0], deque[bytes]()
    is_over, may_raise, n_raised = threading.Event(), False, 0

    def interrupt(*_: object) -> None:
        nonlocal may_raise, n_raised
        if may_raise:
            may_raise = False
            n_raised += 1
            raise KeyboardInterrupt

    def send() -> None:
        for number in range(n_messages):
            router.send_multipart([b"me", b"%d" % number])
            sum(range(2000))
        while not is_over.is_set():
            with contextlib.suppress(zmq.Again):  # it is full of them
                router.send_multipart([b"me", b"end"], zmq.NOBLOCK)
            sum(range(2000))

    def trouble() -> None:
        while not is_over.wait(0.0007):
            signal.pthread_kill(main, signal.SIGUSR1)

    RawSocket(pair[1]).send(b"here I am")
    router.recv_multipart()
    main = threading.get_ident()
    former = signal.signal(signal.SIGUSR1, interrupt)
    threads = [threading.Thread(target=each) for each in (send, trouble)]
    for thread in threads:
        thread.start()
    try:
        while n_raised < 20 or not received or received[-1] != b"end":
            with contextlib.suppress(KeyboardInterrupt):
                may_raise = True
                way(received)
                may_raise = False
    finally:
        may_raise = False
        is_over.set()
        for thread in threads:
            thread.join()
        signal.signal(signal.SIGUSR1, former)
    RawSocket(pair[1]).gather(deque())  # the ends that are left
    return [int(each) for each in received if each != b"end"]


def test_a_handler_that_raises_loses_no_message(pair: Pair) -> None:
    assert interrupted(pair, RawSocket(pair[1]).gather, 4000) == list(range(4000))


def test_by_pyzmq_it_would(pair: Pair) -> None:
    """The control of the test above."""
    while len(interrupted(pair, lambda received: by_pyzmq(pair[1], received), 4000)) == 4000:
        pass  # none yet
