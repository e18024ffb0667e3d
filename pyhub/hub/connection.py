"""A program's line to its broker: requests, replies, and a heartbeat."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import zmq

from pyhub._core import process_lease
from pyhub.errors import BrokerRefused, BrokerUnreachable, ChannelClosed, ForkedHandle
from pyhub.hub import protocol
from pyhub.hub.keys import load_or_create_keys
from pyhub.hub.protocol import ReplyBody, RequestBody
from pyhub.hub.runtime import BrokerConfig, RuntimeDirectory
from pyhub.names import lease_path

__all__ = ["Connection"]

_log = logging.getLogger("pyhub.hub")

R = TypeVar("R")

# One request waits this long for its reply before it is sent once more, to the
# broker that is there then.
_PATIENCE_S = 1.0


class Connection:
    """Asks the broker, from any thread; finds the next one when it dies.

    Parameters
    ----------
    config
        How to find the broker.
    on_new_broker
        Called, in whatever thread noticed, when another broker has taken over:
        it knows nothing of this program yet.

    Raises
    ------
    BrokerUnreachable
        No broker answers and none could be started.
    """

    def __init__(self, config: BrokerConfig, on_new_broker: Callable[[], object]) -> None:
        self._config = config
        self._runtime = RuntimeDirectory(config.runtime_dir)
        self._on_new_broker = on_new_broker
        self._pid = os.getpid()
        # Kept over reconnections: to the broker it is the same program.
        self._identity = secrets.token_bytes(8)
        self._epoch = ""
        self._next_id = 0
        self._lock = threading.RLock()  # one request at a time
        self._is_closed = threading.Event()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        try:
            welcome = self._greet()
        except BaseException:
            self._disconnect()
            self.context.term()
            raise
        self._heart = threading.Thread(
            target=self._beat, args=(welcome.heartbeat_s,), name="pyhub-heartbeat", daemon=True
        )
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
        self._check()
        with self._lock:
            reply = self._exchange(body)
            if isinstance(reply, protocol.Refused) and reply.code == "no_hello":
                self._greet()  # a new broker: introduce us, then ask again
                reply = self._exchange(body)
        return _expected(reply, expect)

    def close(self) -> None:
        """Say goodbye. In a fork's child: only forget, the line is the parent's."""
        if self._is_closed.is_set() or self._pid != os.getpid():
            return
        self._is_closed.set()
        if self._heart is not threading.current_thread():
            self._heart.join()
        with self._lock:
            try:
                self._send(protocol.Goodbye())
            except (BrokerUnreachable, zmq.ZMQError) as error:
                _log.debug("no broker to say goodbye to: %s", error)
            self._disconnect(linger_ms=200)
        self.context.term()

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise ForkedHandle(
                "this hub was made before a fork, and is used in the child.\n"
                "  Make a MessageHub of its own in the child, or start processes with the spawn "
                "method."
            )
        if self._is_closed.is_set():
            raise ChannelClosed("this hub was shut down.\n  Make a new MessageHub.")

    # --- Finding the broker ---

    def _greet(self) -> protocol.Welcome:
        """Find the broker, connect, and say who we are."""
        deadline = time.monotonic() + self._config.timeout_s
        leases = lease_path()
        hello = protocol.Hello(
            protocol.PROTOCOL, socket.gethostname(), os.getpid(), process_lease(leases), str(leases)
        )
        with self._lock:
            while True:
                self._connect()
                try:
                    request_id = self._send(hello)
                    welcome = _expected(self._receive(request_id, _PATIENCE_S), protocol.Welcome)
                    break
                except BrokerUnreachable:
                    if time.monotonic() >= deadline:
                        raise
        is_new = self._epoch not in ("", welcome.epoch)
        self._epoch = welcome.epoch
        if is_new:
            _log.info("met a new broker (%s)", welcome.epoch)
            self._on_new_broker()
        return welcome

    def _connect(self) -> None:
        broker = self._runtime.find_broker(self._config)
        keys = load_or_create_keys(self._runtime.key_path("client"))
        self._disconnect()
        line: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        line.linger = 0
        line.identity = self._identity
        line.curve_serverkey = broker.public_key.encode()
        line.curve_publickey = keys.public.encode()
        line.curve_secretkey = keys.secret.encode()
        line.maxmsgsize = protocol.MAX_MESSAGE_BYTES * 16
        line.connect(broker.endpoint)
        self._socket = line

    def _disconnect(self, linger_ms: int = 0) -> None:
        if self._socket is not None:
            self._socket.close(linger_ms)
            self._socket = None

    # --- Asking ---

    def _exchange(self, body: RequestBody) -> ReplyBody:
        """Send and receive; meet the next broker once if this one is gone."""
        try:
            return self._receive(self._send(body), _PATIENCE_S)
        except BrokerUnreachable:
            self._greet()
            return self._receive(self._send(body), self._config.timeout_s)

    def _send(self, body: RequestBody) -> int:
        self._next_id += 1
        if self._socket is None:
            raise self._unreachable(0.0)
        self._socket.send(protocol.encode(protocol.Request(self._next_id, body)))
        return self._next_id

    def _receive(self, request_id: int, timeout_s: float) -> ReplyBody:
        deadline = time.monotonic() + timeout_s
        while self._socket is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._socket.poll(int(left_s * 1000) + 1):
                break
            reply = protocol.decode_reply(self._socket.recv())
            if reply.id == request_id:  # others are answers that came too late
                return reply.body
        raise self._unreachable(timeout_s)

    def _unreachable(self, timeout_s: float) -> BrokerUnreachable:
        return BrokerUnreachable(
            f"the broker in {self._runtime.path} did not answer within {timeout_s:g} s.\n"
            f"  See {self._runtime.log_path}; if it is stuck, end it: the next program starts "
            "another one.\n  Frames in shared memory flow on without it."
        )

    # --- Heartbeat ---

    def _beat(self, heartbeat_s: float) -> None:
        while not self._is_closed.wait(heartbeat_s):
            try:
                with self._lock:
                    welcome = _expected(self._exchange(protocol.Ping()), protocol.Welcome)
                    if welcome.epoch != self._epoch:
                        self._greet()
            except (BrokerUnreachable, BrokerRefused) as error:
                _log.warning("%s", error)


def _expected(reply: ReplyBody, expect: type[R]) -> R:
    if isinstance(reply, protocol.Refused):
        raise BrokerRefused(f"the broker refused ({reply.code}): {reply.reason}")
    if not isinstance(reply, expect):
        raise BrokerRefused(
            f"the broker answered {type(reply).__name__}, not {expect.__name__}.\n"
            "  It runs another version of pyhub: restart it."
        )
    return reply
