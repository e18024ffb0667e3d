"""A program's line to its broker: a socket, what is to go and what came, and whose turn it is.

Whoever has `lock` sends and receives for all: the connection's thread, or one that has
something to send, or waits for something, and spares so a change of threads.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import zmq

from pyhub._ears import Ears
from pyhub._handover import Lock
from pyhub.hub import protocol
from pyhub.hub._raw_socket import RawSocket
from pyhub.hub.client.session import Ask, Question, Session, Unreadable

__all__ = ["Line"]

_log = logging.getLogger("pyhub.hub")

# What a goodbye is given to leave.
_LINGER_MS = 200
# A new line has so long to bring its first answer, and twice as long each time that
# it did not: the handshake takes three round trips, and a slow network's are long.
_FIRST_ANSWER_S = 1.0
_LONGEST_FIRST_ANSWER_S = 8.0
# More than that waits to be sent only if the broker does not read.
_CROWD = 500
# Answers that were given to who waits, before the thread is to take them, too.
_MAX_SEEN = 32


class Line:
    """Sends what a session composes, and has it take what comes.

    All but `put`, `is_open` and `is_crowded` is for who has the lock.

    Parameters
    ----------
    session
        What is said.
    ears
        Who listens.
    on_unreadable
        Told of what came and cannot be read.
    """

    def __init__(
        self, session: Session, ears: Ears, on_unreadable: Callable[[Unreadable], None]
    ) -> None:
        self.lock = Lock()
        self._session = session
        self._ears = ears
        self._on_unreadable = on_unreadable
        # The thread in which signals' handlers run, and may raise.
        self._interruptible = threading.main_thread().ident
        # Appending is something that a finalizer and a signal handler may do too.
        self._inbox: deque[Question] = deque()
        self._unsent: deque[bytes] = deque()  # for which the socket had no room
        self._received: deque[bytes] = deque()  # and not taken yet
        self._n_seen = 0  # how many of these are with those who wait for them already
        self._socket: RawSocket | None = None
        self._first_answer_s = _FIRST_ANSWER_S
        self._answer_by = 0.0  # until then, it is not given up
        self._is_mute = False  # whether it has brought nothing yet
        # Whether another thread left it in who knows what state; or why for good.
        self._is_torn = False
        self._fault: Exception | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a socket."""
        return self._socket is not None

    @property
    def is_crowded(self) -> bool:
        """Whether much waits to be sent: what can be left out, should be."""
        return len(self._inbox) + len(self._unsent) > _CROWD

    def put(self, ask: Question, is_urgent: bool = False) -> None:
        """Have something asked: soon; or at once, if the lock is free."""
        if is_urgent:
            with self.lock.attempt() as is_free:
                if is_free and self._post(ask):
                    return
        self._inbox.append(ask)
        self._ears.call()

    def open(self, socket: zmq.Socket[bytes]) -> None:
        """Begin anew, by a socket that this closes."""
        now = time.monotonic()
        self._socket = RawSocket(socket)
        self._ears.open(socket.fileno())
        self._is_mute = True
        self._answer_by = now + self._first_answer_s
        self._session.begin_line(now)

    def close(self) -> None:
        """Let the socket go, with what was not sent and not taken. May be called twice."""
        if self._socket is not None:
            self._ears.shut()
            self._socket.close(0)
            self._socket = None
            self._unsent.clear()
            self._received.clear()
            self._n_seen = 0
            if self._is_mute:
                self._first_answer_s = min(2 * self._first_answer_s, _LONGEST_FIRST_ANSWER_S)
            self._session.lost_line()

    def say_goodbye(self) -> None:
        """Close it when all that waits was sent, and a goodbye."""
        if self._socket is None:
            return
        if self._session.is_known:
            self._inbox.append(Ask(protocol.Goodbye()))
            self.exchange()
        self._ears.shut()
        self._socket.close(_LINGER_MS)
        self._socket = None

    def take_over(self) -> None:
        """Take what has come, first: an answer may have while its thread had to wait."""
        if self._fault is not None:
            raise self._fault
        if self._is_torn:
            self._is_torn = False
            self.close()
        if self._socket is not None:
            self._socket.gather(self._received)
        self._take_received()

    def is_overdue(self, now: float) -> bool:
        """Whether answers have been missing for too long."""
        return self._session.is_overdue(now) and now >= self._answer_by

    def rest_s(self, longest_s: float) -> float:
        """Return how long nothing is to be done by itself, at most `longest_s`."""
        if self._socket is None or self._unsent:  # of room, the descriptor tells
            return longest_s
        due = max(self._session.due(), self._answer_by)
        return min(max(due - time.monotonic(), 0.0), longest_s)

    def exchange(self) -> None:
        """Take what has come, and send what is to be sent, until there is neither."""
        is_full = False
        while True:
            if self._socket is not None:
                self._socket.gather(self._received)
            self._take_received()
            while self._inbox:
                self._session.ask(self._inbox.popleft())
            if self._socket is not None and not self._unsent:
                self._unsent.extend(self._session.outgoing(time.monotonic()))
            if self._socket is None or is_full or not self._unsent:
                break
            # To send may make the descriptor quiet, though something has come.
            self._flush(self._socket)
            is_full = bool(self._unsent)

    def receive(self) -> None:
        """Take what has come, as far as this thread may, which has the lock."""
        if threading.get_ident() == self._interruptible:
            self._look()
            return
        try:
            self.exchange()
        except (RecursionError, MemoryError):
            # This thread's limits, and no fault of the line's: the next one begins with
            # everything that matters.
            self._is_torn = True
            self._ears.call()
            _log.exception("a thread failed amid the line to the broker; it is made anew")
        except Exception as error:  # ends it, in whichever thread it came up
            self._fault = error
            self._ears.call()

    def _post(self, ask: Question) -> bool:
        """Send at once what is asked, in any thread that has the lock; whether that can be.

        A handler may raise at any point: each thing is done after what makes up for
        it, should it be the last.
        """
        if self._socket is None or self._inbox or self._unsent:
            return False
        frame = self._session.compose(ask, time.monotonic())
        if frame is None:
            return False
        self._unsent.append(frame)
        self._flush(self._socket)
        # To send may make the descriptor quiet, though something has come.
        self._socket.gather(self._received)
        if self._n_seen < len(self._received) or self._unsent:
            self.receive()
        return True

    def _look(self) -> None:
        """Receive, in the main thread: only look for what is waited for, and leave the rest.

        A handler may raise at any point, and what was received must be taken once.
        """
        if self._socket is None:
            return
        self._socket.gather(self._received)
        # In their order: what waits behind something that has to be taken, waits as well.
        received = self._received
        if all(map(self._session.glance, itertools.islice(received, self._n_seen, None))):
            self._n_seen = len(received)
        if self._n_seen < len(received) or len(received) > _MAX_SEEN or self._unsent:
            self._ears.call()

    def _take_received(self) -> None:
        self._n_seen = 0
        while self._received:
            self._take(self._received.popleft())

    def _flush(self, socket: RawSocket) -> None:
        while self._unsent and socket.send(self._unsent[0]):  # else it does not read: later
            self._unsent.popleft()

    def _take(self, frame: bytes) -> None:
        if self._is_mute:
            self._is_mute, self._answer_by, self._first_answer_s = False, 0.0, _FIRST_ANSWER_S
        try:
            self._session.receive(frame, time.monotonic())
        except Unreadable as error:
            self._on_unreadable(error)
