"""How a program asks its broker, from any thread; and the thread that finds the next one."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import zmq

from pyhub._core import process_lease
from pyhub._deadlines import deadline_after, left_until
from pyhub._ears import Answer, Ears
from pyhub.errors import (
    AccessDenied,
    BrokerRefused,
    BrokerUnreachable,
    ForkedHandle,
    PyhubError,
)
from pyhub.hub import protocol
from pyhub.hub.client.line import Line
from pyhub.hub.client.refusals import closed, expected, refusal
from pyhub.hub.client.session import Ask, OnReply, Program, Question, Session, Unreadable
from pyhub.hub.protocol import Refused, ReplyBody, RequestBody
from pyhub.hub.runtime import BrokerConfig, BrokerFile, RuntimeDirectory
from pyhub.names import lease_path

__all__ = ["Connection", "done_in_loop"]

_log = logging.getLogger("pyhub.hub")

R = TypeVar("R")

# So often the thread looks whether the broker's process lives.
_LOOK_S = 0.25
# So long a broker is looked for, or waited for while it starts, at a time.
_SEARCH_S = 3.0
# Each channel has one, and each reader that waits for notifications; libzmq's own
# limit is 1023.
_MAX_SOCKETS = 10_000


class Connection:
    """Asks the broker, for any thread; finds the next one when it dies.

    A request may reach a broker twice, or two brokers: each of them has to be
    one that does no harm when it is repeated.

    Parameters
    ----------
    config
        How to find the broker.
    program
        For whom this is: told by whoever has the line. There is nothing to come any
        more when its right was taken away, or the line is out of order.

    Raises
    ------
    BrokerUnreachable
        No broker answers and none could be started.
    """

    def __init__(self, config: BrokerConfig, program: Program) -> None:
        self._config = config
        self._runtime = RuntimeDirectory(config.runtime_dir)
        self._leases = str(lease_path())
        self._lease = process_lease(self._leases)  # by which its host sees this program die
        self._program = program
        self._error: PyhubError | None = None  # why the line is out of order
        self._pid = os.getpid()
        # Kept over reconnections: to the broker it is the same program.
        self._identity = os.urandom(8)
        self._session = Session(self._hello, program, self._turned_away)
        self._is_closed = False
        self._ears = Ears()
        self._line = Line(self._session, self._ears, self._unreadable)
        # Those that are waited for, to be told of failures: as long as they are, however
        # that ends.
        self._waiting: weakref.WeakValueDictionary[int, Answer[Any]] = weakref.WeakValueDictionary()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.max_sockets = _MAX_SOCKETS
        self._broker: BrokerFile | None = None  # at the other end of the line
        self._ended: Answer[None] = Answer()
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
        answer = self.begin(body)
        try:
            if not await done_in_loop(answer, self._config.timeout_s):
                raise self.unreachable()
            return expected(answer.result(), expect)
        finally:
            self._give_up(answer)

    def wait(self, answer: Answer[ReplyBody]) -> ReplyBody:
        """Return the reply to what was begun; errors as for `ask`."""
        try:
            if not self.listen(answer, deadline_after(self._config.timeout_s)):
                raise self.unreachable()
            return answer.result()
        finally:
            self._give_up(answer)

    def begin(self, body: RequestBody, on_reply: OnReply | None = None) -> Answer[ReplyBody]:
        """Send a request; the answer is its reply, a refusal too.

        `on_reply` is told of it by whoever takes it, before anything that the
        broker sent later is taken.
        """
        self.check()
        answer: Answer[ReplyBody] = self.answer()

        def take(reply: ReplyBody) -> None:
            if on_reply is not None:
                on_reply(reply)
            answer.set(reply)

        def glance(reply: ReplyBody) -> bool:
            is_plain = on_reply is None and not isinstance(reply, Refused)
            if is_plain and not answer.is_called_for:
                answer.set(reply)
            return answer.is_done

        self._waiting[id(answer)] = answer
        ask = Ask(body, take, is_wanted=lambda: not answer.is_done, on_glance=glance)
        self._line.put(ask, is_urgent=True)
        if self._is_closed:  # meanwhile: the thread may not see it any more
            self._fail(closed())
        return answer

    def answer(self) -> Answer[Any]:
        """Return something to wait for with `listen`."""
        return Answer(self._ears)

    def listen(self, answer: Answer[Any], deadline: float) -> bool:
        """Wait for an answer, and take meanwhile what comes, unless another thread does.

        Returns
        -------
        bool
            Whether it came before the deadline.
        """
        self.check_fork()
        self.check_turn()
        while not answer.is_done and (left_s := left_until(deadline)):
            if not self.listen_while(answer.is_awaited, deadline):
                answer.wait(left_s)
        return answer.is_done

    def listen_while(self, is_needed: Callable[[], bool], deadline: float) -> bool:
        """Take what comes as long as it is needed; whether this thread could."""
        self.check_fork()
        return self._ears.listen_while(is_needed, self._line.receive, self._line.lock, deadline)

    def nudge(self) -> None:
        """Have whoever listens look whether that is still needed."""
        self._ears.nudge()

    def tell(self, body: RequestBody, is_news: bool = True) -> None:
        """Say something soon; never waits, never raises.

        So that frames flow on whatever the broker does, and that finalizers
        may call it. `is_news`: an introduction says the same.
        """
        if self._pid == os.getpid() and not self._is_closed:
            self._line.put(Ask(body, None, is_news))

    @property
    def is_crowded(self) -> bool:
        """Whether much waits to be sent: what can be left out, should be."""
        return self._line.is_crowded

    def put_later(self, ask: Question, delay_s: float) -> None:
        """Have something asked after a while; for who has the line."""
        self._session.ask_later(ask, time.monotonic() + delay_s)
        self._ears.call()

    def put(self, ask: Question) -> None:
        """Have something asked, at once if the line is free; not for finalizers."""
        if self._pid == os.getpid() and not self._is_closed:
            self._line.put(ask, is_urgent=True)

    def check(self) -> None:
        """Raise if no request can be made: after `close`, a fork, or amid another one."""
        self.check_fork()
        if self._error is not None:
            raise self._error
        if self._is_closed:
            raise closed()
        self.check_turn()

    @property
    def is_amid(self) -> bool:
        """Whether this very thread holds up, below, what it would wait for."""
        return self._line.lock.is_mine or self._program.is_held

    def check_turn(self) -> None:
        """Raise where nothing can be waited for, as `is_amid` says."""
        if self.is_amid:
            raise PyhubError(
                "the hub was asked for something in the middle of its own work: by a signal "
                "handler that interrupted it, or a logging handler.\n"
                "  Do it when that has returned: set a flag there. To close the hub is possible."
            )

    def check_fork(self) -> None:
        """Raise in a fork's child: the line is its parent's."""
        if self._pid != os.getpid():
            raise ForkedHandle.of("this hub")

    def close(self, wait: bool = True) -> None:
        """Say goodbye. In a fork's child: only forget, the line is the parent's.

        The end of it waits until all sockets of `context` are closed; with
        `wait`, the caller does so too.
        """
        if self._pid != os.getpid() or self._is_closed:
            return
        self._is_closed = True
        self._ears.call()
        # Not to be waited for by itself, or with what it needs: a push's receiver may
        # close the hub, and a signal's handler.
        if wait and threading.get_ident() != self._thread.ident and not self.is_amid:
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

    def _give_up(self, answer: Answer[Any]) -> None:
        if not answer.is_done:
            answer.fail(closed())  # nobody waits for it any more

    # --- The thread ---

    def _run(self) -> None:
        next_beat = next_look = 0.0
        try:
            while not self._is_closed:
                with self._line.lock:
                    self._line.take_over()
                    now = time.monotonic()
                    if self._line.is_overdue(now):
                        self._line.close()
                    if self._broker is not None and now >= next_look:
                        next_look = now + _LOOK_S
                        if not self._broker.is_alive():
                            self._line.close()
                if not self._line.is_open:
                    self._connect()
                with self._line.lock:
                    if now >= next_beat:
                        next_beat = now + self._session.heartbeat_s
                        for ask in self._program.report():
                            self._session.ask(ask)
                    self._line.exchange()
                    wait_s = self._line.rest_s(_LOOK_S)
                self._ears.rest(wait_s)
            with self._line.lock:
                self._fail(closed())
                self._line.say_goodbye()
        except BaseException as error:
            _log.exception("the line to the broker is out of order")
            self._error = BrokerUnreachable(
                f"the line to the broker is out of order: {error!r}.\n"
                "  This is a fault of pyhub's; the log has more. Make a new MessageHub."
            )
            self._is_closed = True
            self._fail(self._error)
            self._program.end(self._error)
            with self._line.lock:
                self._line.close()
        finally:
            self._fail(closed())
            self._ended.set(None)
            self._ears.close()
            self.context.term()

    def _connect(self) -> None:
        self._broker = None
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
        socket = self.context.socket(zmq.DEALER)
        try:
            socket.linger = 0
            socket.identity = self._identity
            socket.curve_serverkey = broker.public_key.encode()
            socket.curve_publickey = keys.public.encode()
            socket.curve_secretkey = keys.secret.encode()
            socket.maxmsgsize = protocol.MAX_REPLY_BYTES
            socket.rcvhwm = 10_000
            socket.heartbeat_ivl = 1000
            socket.heartbeat_timeout = 3000
            socket.reconnect_ivl = 100
            socket.reconnect_ivl_max = 1000
            socket.connect(broker.endpoint)
        except zmq.ZMQError as error:  # another one may be written down in a moment
            socket.close()
            self._fail(
                BrokerUnreachable(
                    f"no line can be made to {broker.endpoint!r}: {error}.\n"
                    "  Write a broker's address as tcp://HOST:PORT."
                )
            )
            return
        with self._line.lock:
            self._broker = broker
            self._line.open(socket)

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
            self._program.end(error)

    def _unreadable(self, error: Unreadable) -> None:
        self._fail(
            BrokerRefused(
                f"the broker's answer cannot be read: {error}.\n"
                "  It may run another version of pyhub: restart it."
            )
        )

    def _fail(self, error: BaseException) -> None:
        """Tell all who wait that they wait in vain."""
        for waiting in self._waiting.valuerefs():  # a copy: others begin to wait
            if (answer := waiting()) is not None:
                answer.fail(error)


async def done_in_loop(answer: Answer[Any], timeout_s: float) -> bool:
    """Wait for an answer without holding up the event loop; whether it came in time."""
    import asyncio  # whoever calls this has it already

    loop = asyncio.get_running_loop()
    is_done = asyncio.Event()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            loop.call_soon_threadsafe(is_done.set)

    answer.on_done(tell)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):  # wait_for may lose a cancellation
                await is_done.wait()
    finally:
        answer.off_done(tell)
    return answer.is_done


def _own_name() -> str:
    path = Path(sys.argv[0] if sys.argv and sys.argv[0] else "python")
    # A package that was run by python -m is known by its directory.
    name = path.parent.name if path.name == "__main__.py" else path.name
    return os.fsencode(name).decode(errors="replace")[:120]
