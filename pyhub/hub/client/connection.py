"""A program's line to its broker: requests, replies, and a heartbeat."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import zmq

from pyhub._core import process_lease
from pyhub.errors import BrokerRefused, BrokerUnreachable, ChannelClosed, ForkedHandle
from pyhub.hub import protocol
from pyhub.hub.keys import load_or_create_keys
from pyhub.hub.protocol import ReplyBody, RequestBody
from pyhub.hub.runtime import BrokerConfig, BrokerFile, RuntimeDirectory
from pyhub.names import lease_path

__all__ = ["Connection"]

_log = logging.getLogger("pyhub.hub")

R = TypeVar("R")

# One request waits this long for its reply before it is sent once more, to the
# broker that is there then.
_PATIENCE_S = 1.0
# A request that waits looks this often whether the broker died, or the connection
# was closed.
_SLICE_S = 0.1


class Connection:
    """Asks the broker, from any thread; finds the next one when it dies.

    A request may reach a broker twice, or two brokers: each of them has to be
    one that does no harm when it is repeated.

    Parameters
    ----------
    config
        How to find the broker.
    introduction
        Returns what a broker that knows nothing of this program has to be
        told. Called, in whatever thread, each time one is met.

    Raises
    ------
    BrokerUnreachable
        No broker answers and none could be started.
    """

    def __init__(self, config: BrokerConfig, introduction: Callable[[], list[RequestBody]]) -> None:
        self._config = config
        self._runtime = RuntimeDirectory(config.runtime_dir)
        self._introduction = introduction
        self._pid = os.getpid()
        # Kept over reconnections: to the broker it is the same program.
        self._identity = os.urandom(8)
        self._epoch = ""
        self._heartbeat_s = 1.0
        self._next_id = 0
        self._lock = threading.Lock()  # one request at a time
        self._asking = 0  # the thread that has the lock
        self._is_known = False  # whether the broker at the other end met us
        self._is_closed = False
        self._news: deque[RequestBody] = deque()
        # Of all ways to wake a thread, the one that a finalizer may use too.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._broker: BrokerFile | None = None  # at the other end of it
        try:
            self.ask(protocol.Ping(), protocol.Welcome)
        except BaseException:
            self._disconnect()
            self.context.term()
            raise
        self._heart = threading.Thread(target=self._beat, name="pyhub-heartbeat", daemon=True)
        self._heart.start()

    def ask(self, body: RequestBody, expect: type[R]) -> R:
        """Send a request and return its reply, which must be an `expect`.

        Raises
        ------
        BrokerUnreachable
            No broker answered within the configured time.
        BrokerRefused
            The broker said no; the message says why.
        """
        self.check()
        deadline = time.monotonic() + self._config.timeout_s
        with self._turn(deadline):
            return _expected(self._exchange(body, deadline), expect)

    def tell(self, body: RequestBody) -> None:
        """Say something soon, before the next request; never waits, never raises.

        So that frames flow on whatever the broker does, and that finalizers
        may call it.
        """
        self._news.append(body)
        self._wake.put(None)

    def check(self) -> None:
        """Raise if no request can be made any more: after `close`, or a fork."""
        if self._pid != os.getpid():
            raise ForkedHandle(
                "this hub was made before a fork, and is used in the child.\n"
                "  Make a MessageHub of its own in the child, or start processes with the spawn "
                "method."
            )
        if self._is_closed:
            raise ChannelClosed("this hub was shut down.\n  Make a new MessageHub.")

    def close(self, wait: bool = True) -> None:
        """Say goodbye. In a fork's child: only forget, the line is the parent's.

        The end of it waits until all sockets of `context` are closed; with
        `wait`, the caller does so too.
        """
        if self._pid != os.getpid():
            return
        self._is_closed = True
        self._wake.put(None)
        # Not to be waited for by itself, nor by a signal handler that
        # interrupted a request: that one has to end first.
        if wait and threading.get_ident() not in (self._heart.ident, self._asking):
            self._heart.join(self._config.timeout_s)

    # --- Asking ---

    @contextlib.contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        """Have the line for oneself."""
        patience_s = min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=patience_s):
            raise self._unreachable()
        self._asking = threading.get_ident()
        try:
            yield
        finally:
            self._asking = 0
            self._lock.release()

    def _exchange(self, body: RequestBody, deadline: float) -> ReplyBody:
        """Ask until there is an answer; meet the next broker if this one is gone."""
        while True:
            self.check()
            if (self._is_known or self._meet(deadline)) and self._say_news(deadline):
                reply = self._request(body, deadline)
                if reply is not None and not _is_unknown(reply):
                    return reply
            self._is_known = False
            if time.monotonic() >= deadline:
                raise self._unreachable()

    def _say_news(self, deadline: float) -> bool:
        while self._news:
            reply = self._request(self._news[0], deadline)
            if reply is None or _is_unknown(reply):
                return False  # the introduction will say it
            if isinstance(reply, protocol.Refused):
                _log.warning("the broker refused (%s): %s", reply.code, reply.reason)
            self._news.popleft()
        return True

    def _request(self, body: RequestBody, deadline: float) -> ReplyBody | None:
        """Send once; None if nobody answers for as long as one try may take."""
        line, broker = self._socket, self._broker
        if line is None or broker is None:
            return None
        self._next_id += 1
        until = min(deadline, time.monotonic() + _PATIENCE_S)
        try:
            line.send(protocol.encode(protocol.Request(self._next_id, body)), zmq.NOBLOCK)
        except zmq.Again:
            return None
        while not self._is_closed and (left_s := until - time.monotonic()) > 0:
            if not line.poll(int(min(left_s, _SLICE_S) * 1000) + 1):
                if not broker.is_alive():
                    return None
                continue
            try:
                reply = protocol.decode_reply(line.recv())
            except ValueError as error:
                raise BrokerRefused(
                    f"the broker's answer cannot be read: {error}.\n"
                    "  It may run another version of pyhub: restart it."
                ) from error
            if reply.id == self._next_id:  # others are answers that came too late
                return reply.body
        return None

    # --- Finding the broker ---

    def _meet(self, deadline: float) -> bool:
        """Find the broker, say who we are and what we have; whether it listened."""
        self._connect(deadline)
        leases = lease_path()
        hello = protocol.Hello(
            protocol.PROTOCOL, os.uname().nodename, os.getpid(), process_lease(leases), str(leases)
        )
        reply = self._request(hello, deadline)
        if reply is None:
            # It may read this hello when nobody remembers it: take it back.
            self._disconnect()
            return False
        welcome = _expected(reply, protocol.Welcome)
        if self._epoch not in ("", welcome.epoch):
            _log.info("met a new broker (%s)", welcome.epoch)
        self._epoch = welcome.epoch
        self._heartbeat_s = welcome.heartbeat_s
        self._news.clear()  # all of it, and more, is in the introduction
        for body in self._introduction():
            reply = self._request(body, deadline)
            if reply is None:
                return False
            if isinstance(reply, protocol.Refused):
                _log.warning("the broker refused (%s): %s", reply.code, reply.reason)
        self._is_known = True
        return True

    def _connect(self, deadline: float) -> None:
        broker = self._runtime.find_broker(self._config, deadline)
        keys = load_or_create_keys(self._runtime.key_path("client"))
        self._disconnect()
        line = self._socket = self.context.socket(zmq.DEALER)
        line.linger = 0
        line.identity = self._identity
        line.curve_serverkey = broker.public_key.encode()
        line.curve_publickey = keys.public.encode()
        line.curve_secretkey = keys.secret.encode()
        line.maxmsgsize = protocol.MAX_REPLY_BYTES
        line.connect(broker.endpoint)
        self._broker = broker

    def _disconnect(self, linger_ms: int = 0) -> None:
        if self._socket is not None:
            self._socket.close(linger_ms)
            self._socket = None

    def _unreachable(self) -> BrokerUnreachable:
        broker = self._runtime.read_broker()
        return BrokerUnreachable(
            f"the broker in {self._runtime.path} did not answer within "
            f"{self._config.timeout_s:g} s.\n"
            f"  See {self._runtime.log_path}; if it is stuck, end it"
            + (f" (kill -9 {broker.pid})" if broker is not None else "")
            + ": the next program starts another one.\n"
            "  Frames in shared memory flow on without it."
        )

    # --- Heartbeat ---

    def _beat(self) -> None:
        was_heard = True
        while not self._is_closed:
            self._rest()
            deadline = time.monotonic() + self._config.timeout_s
            try:
                with self._turn(deadline):
                    self._exchange(protocol.Ping(), deadline)
            except ChannelClosed:
                break
            # Whatever it was: a program whose heart stops is forgotten for good.
            except Exception as error:
                if was_heard:
                    _log.warning("%s", error)
                was_heard = False
            else:
                was_heard = True
        self._say_goodbye()

    def _rest(self) -> None:
        """Sleep until there is news, or for one heartbeat."""
        with contextlib.suppress(queue.Empty):
            self._wake.get(timeout=self._heartbeat_s)
            while True:
                self._wake.get_nowait()

    def _say_goodbye(self) -> None:
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(zmq.Again):
                    goodbye = protocol.Request(self._next_id + 1, protocol.Goodbye())
                    self._socket.send(protocol.encode(goodbye), zmq.NOBLOCK)
            self._disconnect(linger_ms=200)
        self.context.term()


def _is_unknown(reply: ReplyBody) -> bool:
    """Whether the broker said that it does not know us."""
    return isinstance(reply, protocol.Refused) and reply.code == "no_hello"


def _expected(reply: ReplyBody, expect: type[R]) -> R:
    if isinstance(reply, protocol.Refused):
        raise BrokerRefused(f"the broker refused ({reply.code}): {reply.reason}")
    if not isinstance(reply, expect):
        raise BrokerRefused(
            f"the broker answered {type(reply).__name__}, not {expect.__name__}.\n"
            "  It runs another version of pyhub: restart it."
        )
    return reply
