"""The broker's loop: sockets around a registry."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

import zmq

from pyhub._core import lease_is_alive, process_lease
from pyhub.hub import protocol, zap
from pyhub.hub.keys import load_or_create_keys
from pyhub.hub.registry import Registry
from pyhub.hub.runtime import BrokerFile, RuntimeDirectory
from pyhub.names import lease_path

__all__ = ["Broker"]

_log = logging.getLogger("pyhub.hub")

_TICK_S = 0.25
# A program that pings every second is silent when three are missing and more.
_SILENCE_S = 5.0


class Broker:
    """Answers programs until it is stopped, or has been alone for `linger_s`.

    Parameters
    ----------
    runtime
        Where it tells programs how to find it.
    linger_s
        How long to stay without programs; None: for ever.
    """

    def __init__(self, runtime: RuntimeDirectory, linger_s: float | None = None) -> None:
        self._runtime = runtime
        self._linger_s = linger_s
        self._host = os.uname().nodename
        self._registry = Registry(os.urandom(8).hex(), runtime.endpoint_of)
        self._lease_file = str(lease_path())
        self._now = 0.0  # s that this process ran: see `_go_on`
        self._looked_at = time.monotonic()
        self._alone_since = 0.0
        self._is_stopped = False

    @property
    def registry(self) -> Registry:
        """What it knows."""
        return self._registry

    def stop(self) -> None:
        """End `run` within a tick; may be called from a signal handler."""
        self._is_stopped = True

    def run(self, patience_s: float = 0.0) -> bool:
        """Serve; returns False if another broker serves this directory.

        It is given `patience_s` to end: one that is just leaving tells
        nobody where it is any more, but has the directory for a moment yet.
        """
        with self._runtime.lock("broker.lock", patience_s) as is_only_one:
            if not is_only_one:
                return False
            with zmq.Context() as context:
                self._serve(context)
            Path(self._runtime.broker_endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
            return True

    def _serve(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        keys = load_or_create_keys(self._runtime.key_path("broker"))
        allowed = {load_or_create_keys(self._runtime.key_path("client")).public.encode()}
        with context.socket(zmq.REP) as doorman, context.socket(zmq.ROUTER) as router:
            doorman.linger = 0
            doorman.bind(zap.ZAP_ENDPOINT)
            secure(router, keys.secret)
            router.bind(self._runtime.broker_endpoint)
            self._announce(keys.public)
            try:
                self._loop(doorman, router, allowed)
            finally:
                self._runtime.remove_broker(self._registry.epoch)

    def _announce(self, public_key: str) -> None:
        broker = BrokerFile(
            endpoint=self._runtime.broker_endpoint,
            public_key=public_key,
            epoch=self._registry.epoch,
            pid=os.getpid(),
            lease=process_lease(self._lease_file),
            lease_file=self._lease_file,
        )
        self._runtime.write_broker(broker)
        _log.info("broker %s listens on %s", broker.epoch, broker.endpoint)

    def _loop(
        self, doorman: zmq.Socket[bytes], router: zmq.Socket[bytes], allowed: set[bytes]
    ) -> None:
        poller = zmq.Poller()
        poller.register(doorman, zmq.POLLIN)
        poller.register(router, zmq.POLLIN)
        next_tick = _TICK_S
        while not self._is_stopped and not self._was_left_alone():
            wait_s = max(next_tick - self._now, 0.0)
            ready = dict(poller.poll(int(wait_s * 1000) + 1))
            self._go_on()
            if doorman in ready:
                doorman.send_multipart(zap.decide(doorman.recv_multipart(), allowed))
            if router in ready:
                self._answer(router)
            if self._now >= next_tick:
                next_tick = self._now + _TICK_S
                self._forget_sockets(self._registry.expire(self._now, _SILENCE_S, self._is_alive))

    def _go_on(self) -> None:
        """Let time pass, but not more than a wait may take.

        What passes beyond, while this process was stopped or starved, is not
        the silence of programs: they spoke, and were not heard.
        """
        looked_at, self._looked_at = self._looked_at, time.monotonic()
        self._now += min(self._looked_at - looked_at, 2 * _TICK_S)

    def _answer(self, router: zmq.Socket[bytes]) -> None:
        peer, *frames = router.recv_multipart()
        request_id = 0
        body: protocol.ReplyBody
        try:
            (frame,) = frames
            request = protocol.decode_request(frame)
            request_id = request.id
            body = self._registry.answer(peer, request.body, self._now)
        except ValueError as error:
            reason = str(error)[:200]
            _log.warning("refused a message of program %s: %s", peer.hex(), reason)
            body = protocol.Refused("bad_message", reason)
        reply = protocol.encode(protocol.Reply(request_id, body))
        if len(reply) > protocol.MAX_REPLY_BYTES:
            too_long = protocol.Refused("too_many", f"the answer takes {len(reply)} bytes")
            reply = protocol.encode(protocol.Reply(request_id, too_long))
        with contextlib.suppress(zmq.Again):  # it does not read; it will ask again
            router.send_multipart([peer, reply], zmq.NOBLOCK)

    def _was_left_alone(self) -> bool:
        if self._registry.programs:
            self._alone_since = self._now
        return self._linger_s is not None and self._now - self._alone_since >= self._linger_s

    def _is_alive(self, hello: protocol.Hello) -> bool:
        # Another host's lock file, or another directory's, is not ours to ask;
        # of such programs only their pings tell.
        if hello.host != self._host or hello.lease_file != self._lease_file:
            return True
        return lease_is_alive(hello.lease_file, hello.lease)

    def _forget_sockets(self, names: list[str]) -> None:
        for name in names:
            _log.info("channel %r: its producer's program is gone", name)
            Path(self._runtime.endpoint_of(name).removeprefix("ipc://")).unlink(missing_ok=True)


def secure(router: zmq.Socket[bytes], secret_key: str) -> None:
    """Set `router` up for programs whose key the ZAP handler allows, and nobody else."""
    router.linger = 0
    router.curve_server = True
    router.curve_secretkey = secret_key.encode()
    router.zap_domain = zap.ZAP_DOMAIN
    # Without this, an unknown key is let in whenever nobody answers.
    router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    router.maxmsgsize = protocol.MAX_MESSAGE_BYTES
    router.handshake_ivl = 5000
    router.router_handover = True  # a program that reconnects is the same one
