"""A program's line to its broker: a thread that owns a socket, around a session."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, TypeVar

import zmq

from pyhub._core import process_lease
from pyhub.errors import (
    AccessDenied,
    BrokerRefused,
    BrokerUnreachable,
    ChannelClosed,
    ForkedHandle,
    PyhubError,
    ServiceNotFound,
)
from pyhub.hub import protocol
from pyhub.hub.client.session import Ask, OnReply, Session, Unreadable
from pyhub.hub.protocol import PushBody, Refused, ReplyBody, RequestBody
from pyhub.hub.runtime import BrokerConfig, BrokerFile, RuntimeDirectory
from pyhub.names import lease_path

__all__ = ["Connection", "expected", "refusal"]

_log = logging.getLogger("pyhub.hub")

R = TypeVar("R")

# So often the thread looks whether the broker's process lives.
_LOOK_S = 0.25
# What a goodbye is given to leave.
_LINGER_MS = 200
# So long a broker is looked for, or waited for while it starts, at a time.
_SEARCH_S = 3.0
# A new line has so long to bring its first answer, and twice as long each time that
# it did not: the handshake takes three round trips, and a slow network's are long.
_FIRST_ANSWER_S = 1.0
_LONGEST_FIRST_ANSWER_S = 8.0
# More than that waits to be sent only if the broker does not read.
_CROWD = 500
# Each channel has one, and each reader that waits for notifications; libzmq's own
# limit is 1023.
_MAX_SOCKETS = 10_000
_MAIN = threading.main_thread().ident


class Connection:
    """Asks the broker, for any thread; finds the next one when it dies.

    A request may reach a broker twice, or two brokers: each of them has to be
    one that does no harm when it is repeated.

    Parameters
    ----------
    config
        How to find the broker.
    introduction
        Returns what a broker that knows nothing of this program has to be
        told. Called in the connection's thread each time one is met.
    on_push, on_gap
        Told, in that thread, of what the broker pushes, and of how many pushes
        were lost.
    on_beat
        Asked, in that thread, once a heartbeat for what there is to report.
    on_end
        Told, in that thread, why there is nothing to come any more: this
        program's right was taken away, or the line is out of order.

    Raises
    ------
    BrokerUnreachable
        No broker answers and none could be started.
    """

    def __init__(
        self,
        config: BrokerConfig,
        introduction: Callable[[], Iterable[Ask]],
        on_push: Callable[[PushBody], None],
        on_gap: Callable[[int], None],
        on_beat: Callable[[], Iterable[Ask]],
        on_end: Callable[[PyhubError], None],
    ) -> None:
        self._config = config
        self._runtime = RuntimeDirectory(config.runtime_dir)
        self._leases = str(lease_path())
        self._lease = process_lease(self._leases)  # by which its host sees this program die
        self._on_beat = on_beat
        self._on_end = on_end
        self._error: PyhubError | None = None  # why the line is out of order
        self._pid = os.getpid()
        # Kept over reconnections: to the broker it is the same program.
        self._identity = os.urandom(8)
        self._session = Session(self._hello, introduction, on_push, on_gap, self._turned_away)
        self._is_closed = False
        # Who has the line sends and receives for all: mostly the thread, but also
        # a thread of a service, which spares a change of threads. Not the main
        # one: a signal's handler may raise there at any point, with the line taken.
        self._line = threading.Lock()
        # Appending, and writing to the descriptor: of all ways to wake a thread,
        # one that a finalizer and a signal handler may use too.
        self._inbox: deque[Ask] = deque()
        self._unsent: deque[bytes] = deque()  # for which the socket had no room
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_lock = threading.RLock()  # its number may be another file's once it is closed
        self._waiting: dict[int, Future[Any]] = {}  # askers, to be told of failures
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.max_sockets = _MAX_SOCKETS
        self._socket: zmq.Socket[bytes] | None = None
        self._descriptor = -1  # its own, which libzmq wakes us by
        self._poller = select.poll()
        self._poller.register(self._wake, select.POLLIN)
        self._broker: BrokerFile | None = None  # at the other end of it
        self._first_answer_s = _FIRST_ANSWER_S
        self._answer_by = 0.0  # until then, it is not given up
        self._is_mute = False  # whether it has brought nothing yet
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pyhub-hub", daemon=True)
        self._thread.start()
        try:
            self.ask(protocol.Ping(), protocol.Welcome)
        except BaseException:
            self.close()
            raise

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or is out of order."""
        return self._is_closed

    def wait_for_end(self, timeout_s: float) -> None:
        """Wait until its thread ends, at most so long."""
        self._ended.wait(timeout_s)

    @property
    def runtime(self) -> RuntimeDirectory:
        """This program's runtime directory."""
        return self._runtime

    @property
    def is_remote(self) -> bool:
        """Whether the broker may be on another host."""
        return self._config.resolved_endpoint is not None

    @property
    def timeout_s(self) -> float:
        """How long a request may take."""
        return self._config.timeout_s

    @property
    def epoch(self) -> str:
        """Which broker this program met last; empty before the first one."""
        return self._session.epoch

    @property
    def is_known(self) -> bool:
        """Whether a broker is there that knows this program."""
        return self._session.is_known

    @property
    def spoken(self) -> int:
        """Which protocol this program and its broker speak; 0 before they met."""
        return self._session.protocol

    def ask(self, body: RequestBody, expect: type[R]) -> R:
        """Send a request and return its reply, which must be an `expect`.

        Raises
        ------
        BrokerUnreachable
            No broker answered within the configured time.
        BrokerRefused, AccessDenied
            The broker said no; the message says why.
        """
        return expected(self.wait(self.begin(body)), expect)

    async def aask(self, body: RequestBody, expect: type[R]) -> R:
        """Do what `ask` does without holding up the event loop."""
        import asyncio  # whoever calls this has it already

        future = asyncio.wrap_future(self.begin(body))
        try:
            return expected(await asyncio.wait_for(future, self._config.timeout_s), expect)
        except TimeoutError:
            raise self.unreachable() from None

    def wait(self, future: Future[ReplyBody]) -> ReplyBody:
        """Return the reply to what was begun; errors as for `ask`."""
        try:
            return future.result(self._config.timeout_s)
        except FutureTimeout:
            raise self.unreachable() from None
        finally:
            future.cancel()

    def begin(self, body: RequestBody, on_reply: OnReply | None = None) -> Future[ReplyBody]:
        """Send a request; the future has its reply, a refusal too.

        `on_reply` is told of it in the connection's thread, before anything
        that the broker sent later is taken.
        """
        self.check()
        future: Future[ReplyBody] = Future()

        def take(reply: ReplyBody) -> None:
            if on_reply is not None:
                on_reply(reply)
            self._waiting.pop(id(future), None)
            with contextlib.suppress(InvalidStateError):  # nobody waits any more
                future.set_result(reply)

        self._waiting[id(future)] = future
        future.add_done_callback(lambda done: self._waiting.pop(id(done), None))
        self._put(Ask(body, take, is_wanted=lambda: not future.done()), is_urgent=True)
        if self._is_closed:  # meanwhile: the thread may not see it any more
            self._fail(_closed())
        return future

    def tell(self, body: RequestBody, is_news: bool = True) -> None:
        """Say something soon; never waits, never raises.

        So that frames flow on whatever the broker does, and that finalizers
        may call it. `is_news`: an introduction says the same.
        """
        if self._pid == os.getpid() and not self._is_closed:
            self._put(Ask(body, None, is_news))

    @property
    def is_crowded(self) -> bool:
        """Whether much waits to be sent: what can be left out, should be."""
        return len(self._inbox) + len(self._unsent) > _CROWD

    def put_later(self, ask: Ask, delay_s: float) -> None:
        """Have something asked after a while; in the connection's thread only."""
        self._session.ask_later(ask, time.monotonic() + delay_s)

    def put(self, ask: Ask) -> None:
        """Have something asked, at once if the line is free; not for finalizers."""
        if self._pid == os.getpid() and not self._is_closed:
            self._put(ask, is_urgent=True)

    def check(self) -> None:
        """Raise if no request can be made any more: after `close`, or a fork."""
        self.check_fork()
        if self._error is not None:
            raise self._error
        if self._is_closed:
            raise _closed()

    def check_fork(self) -> None:
        """Raise in a fork's child: the line is its parent's."""
        if self._pid != os.getpid():
            raise ForkedHandle(
                "this hub was made before a fork, and is used in the child.\n"
                "  Make a MessageHub of its own in the child, or start processes with the spawn "
                "method."
            )

    def close(self, wait: bool = True) -> None:
        """Say goodbye. In a fork's child: only forget, the line is the parent's.

        The end of it waits until all sockets of `context` are closed; with
        `wait`, the caller does so too.
        """
        if self._pid != os.getpid() or self._is_closed:
            return
        self._is_closed = True
        self._wake_up()
        # Not to be waited for by itself: a push's receiver may close the hub.
        if wait and threading.get_ident() != self._thread.ident:
            self._thread.join(self._config.timeout_s)

    def unreachable(self) -> BrokerUnreachable:
        """Return the error that says that no broker answered."""
        endpoint = self._config.resolved_endpoint
        if endpoint is not None:
            return self._runtime.not_answered(endpoint, self._config)
        broker = self._runtime.read_broker()
        if broker is None:
            return self._runtime.not_started(self._config.timeout_s)
        return BrokerUnreachable(
            f"the broker in {self._runtime.path} did not answer within "
            f"{self._config.timeout_s:g} s.\n"
            f"  See {self._runtime.log_path}; if it is stuck, end it"
            + f" (kill -9 {broker.pid}): the next program starts another one.\n"
            "  Frames in shared memory flow on without it."
        )

    def _put(self, ask: Ask, is_urgent: bool = False) -> None:
        self._inbox.append(ask)
        # Not if this very thread has the line, in a push's receiver or a
        # finalizer within: then it is sent by the thread, soon.
        is_urgent = is_urgent and threading.get_ident() != _MAIN
        if is_urgent and self._line.acquire(blocking=False):
            try:
                self._exchange()
            finally:
                self._line.release()
        else:
            self._wake_up()

    def _wake_up(self) -> None:
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # --- The thread ---

    def _run(self) -> None:
        next_beat = next_look = 0.0
        try:
            while not self._is_closed:
                with self._line:
                    now = time.monotonic()
                    if self._session.is_overdue(now) and now >= self._answer_by:
                        self._disconnect()
                    if self._broker is not None and now >= next_look:
                        next_look = now + _LOOK_S
                        if not self._broker.is_alive():
                            self._disconnect()
                if self._socket is None:
                    self._connect()
                with self._line:
                    if now >= next_beat:
                        next_beat = now + self._session.heartbeat_s
                        for ask in self._on_beat():
                            self._session.ask(ask)
                    self._exchange()
                    wait_s = self._rest_s()
                self._rest(wait_s)
            with self._line:
                self._say_goodbye()
        except BaseException as error:
            _log.exception("the line to the broker is out of order")
            self._error = BrokerUnreachable(
                f"the line to the broker is out of order: {error!r}.\n"
                "  This is a fault of pyhub's; the log has more. Make a new MessageHub."
            )
            self._is_closed = True
            self._fail(self._error)
            self._on_end(self._error)
            self._disconnect()
        finally:
            self._fail(_closed())
            self._ended.set()
            with self._wake_lock:
                os.close(self._wake)
                self._wake = -1
            self.context.term()

    def _rest_s(self) -> float:
        if self._socket is None:
            return _LOOK_S
        due = max(self._session.due(), self._answer_by)
        return min(max(due - time.monotonic(), 0.0), _LOOK_S)

    def _rest(self, wait_s: float) -> None:
        """Sleep until there is something to do; without the line, which others may use."""
        for descriptor, _ in self._poller.poll(int(wait_s * 1000) + 1):
            if descriptor == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)

    def _exchange(self) -> None:
        """Send what is to be sent, and take what has come, until there is neither."""
        while True:
            while self._inbox:
                self._session.ask(self._inbox.popleft())
            if self._socket is None:
                return
            self._send(self._socket)
            # Asking for the events, unlike a recv that fails, makes the
            # descriptor quiet, so that it tells of the next message.
            if not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
            self._take(self._socket.recv(zmq.NOBLOCK))

    def _send(self, line: zmq.Socket[bytes]) -> None:
        if not self._unsent:
            self._unsent.extend(self._session.outgoing(time.monotonic()))
        while self._unsent:
            try:
                line.send(self._unsent[0], zmq.NOBLOCK)
            except zmq.Again:  # it does not read: later, if it does again
                return
            self._unsent.popleft()

    def _take(self, frame: bytes) -> None:
        self._is_mute, self._answer_by, self._first_answer_s = False, 0.0, _FIRST_ANSWER_S
        try:
            self._session.receive(frame, time.monotonic())
        except Unreadable as error:
            self._fail(
                BrokerRefused(
                    f"the broker's answer cannot be read: {error}.\n"
                    "  It may run another version of pyhub: restart it."
                )
            )

    def _connect(self) -> None:
        try:
            broker = self._runtime.find_broker(self._config, time.monotonic() + _SEARCH_S)
            keys = self._runtime.client_keys(self._config)
        except PyhubError as error:
            # One that is just being started may need longer; what else it is,
            # waiting does not mend.
            if not isinstance(error, BrokerUnreachable) or not self._config.autostart:
                self._fail(error)
            return
        except OSError as error:
            self._fail(error)
            return
        line = self.context.socket(zmq.DEALER)
        try:
            line.linger = 0
            line.identity = self._identity
            line.curve_serverkey = broker.public_key.encode()
            line.curve_publickey = keys.public.encode()
            line.curve_secretkey = keys.secret.encode()
            line.maxmsgsize = protocol.MAX_REPLY_BYTES
            line.rcvhwm = 10_000
            line.heartbeat_ivl = 1000
            line.heartbeat_timeout = 3000
            line.reconnect_ivl = 100
            line.reconnect_ivl_max = 1000
            line.connect(broker.endpoint)
        except zmq.ZMQError as error:  # another one may be written down in a moment
            line.close()
            self._fail(
                BrokerUnreachable(
                    f"no line can be made to {broker.endpoint!r}: {error}.\n"
                    "  Write a broker's address as tcp://HOST:PORT."
                )
            )
            return
        with self._line:
            self._socket, self._broker = line, broker
            self._descriptor = line.fileno()
            self._poller.register(self._descriptor, select.POLLIN)
            self._is_mute = True
            self._answer_by = time.monotonic() + self._first_answer_s
            self._session.begin_line(time.monotonic())

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._poller.unregister(self._descriptor)
            self._socket.close(0)
            self._socket = self._broker = None
            self._unsent.clear()
            if self._is_mute:
                self._first_answer_s = min(2 * self._first_answer_s, _LONGEST_FIRST_ANSWER_S)
            self._session.lost_line()

    def _say_goodbye(self) -> None:
        self._fail(_closed())
        if self._socket is None:
            return
        if self._session.is_known:
            while self._inbox:
                self._session.ask(self._inbox.popleft())
            self._session.ask(Ask(protocol.Goodbye()))
            self._exchange()
        self._socket.close(_LINGER_MS)
        self._socket = None

    def _hello(self, version: int) -> protocol.Hello:
        return protocol.Hello(
            version,
            os.uname().nodename,
            os.getpid(),
            self._lease,
            self._leases,
            self._config.name or _own_name(),
        )

    def _turned_away(self, refused: Refused) -> None:
        error = refusal(refused)
        _log.warning("the broker turned this program away (%s): %s", refused.code, refused.reason)
        self._fail(error)
        if isinstance(error, AccessDenied):
            self._on_end(error)

    def _fail(self, error: BaseException) -> None:
        """Tell all who wait that they wait in vain."""
        for future in list(self._waiting.values()):
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)


def _own_name() -> str:
    path = Path(sys.argv[0] if sys.argv and sys.argv[0] else "python")
    # A package that was run by python -m is known by its directory.
    name = path.parent.name if path.name == "__main__.py" else path.name
    return os.fsencode(name).decode(errors="replace")[:120]


def expected(reply: ReplyBody, expect: type[R]) -> R:
    """Return `reply` if it is an `expect`; a refusal is raised."""
    if isinstance(reply, Refused):
        raise refusal(reply)
    if not isinstance(reply, expect):
        raise BrokerRefused(
            f"the broker answered {type(reply).__name__}, not {expect.__name__}.\n"
            "  It runs another version of pyhub: restart it."
        )
    return reply


def refusal(refused: Refused) -> PyhubError:
    """Return the error that a refusal is to a caller."""
    if refused.code == "not_allowed":
        return AccessDenied(
            f"the broker refused: {refused.reason}.\n"
            "  Its list of clients says who may do what: ask whoever keeps it."
        )
    if refused.code in ("no_service", "no_command"):
        return ServiceNotFound(refused.reason)
    if refused.code == "taken":
        return BrokerRefused(f"{refused.reason}.\n  End that program, or use what it offers.")
    return BrokerRefused(f"the broker refused ({refused.code}): {refused.reason}")


def _closed() -> ChannelClosed:
    return ChannelClosed("this hub was shut down.\n  Make a new MessageHub.")
