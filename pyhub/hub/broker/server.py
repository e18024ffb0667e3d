"""The broker's loop: sockets around a switchboard."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from pyhub._core import lease_is_alive, process_lease
from pyhub.errors import PyhubError
from pyhub.hub import protocol
from pyhub.hub._raw_socket import RawSocket
from pyhub.hub.broker import zap
from pyhub.hub.broker.allow_list import AllowList
from pyhub.hub.broker.audit import Audit
from pyhub.hub.broker.linger import Linger
from pyhub.hub.broker.registry import Program, Registry
from pyhub.hub.broker.rights import Client
from pyhub.hub.broker.store import Store
from pyhub.hub.broker.switchboard import Gone, Switchboard
from pyhub.hub.keys import KeyPair, load_or_create_keys, read_keys
from pyhub.hub.runtime import BrokerFile, RuntimeDirectory
from pyhub.names import lease_path

if TYPE_CHECKING:
    from pyhub.hub.broker.site import Site

__all__ = ["Broker"]

_log = logging.getLogger("pyhub.hub")

Router = zmq.Socket[bytes]

_TICK_S = 0.25
# While somebody waits for a worker, its death is to be seen at once.
_SHORT_TICK_S = 0.025
_MAX_PASSED_S = 2 * _TICK_S  # that passes in one turn
# Messages that are answered before the door and the clock are looked at again.
_MAX_TURN = 100
_FILE_S = 2.0  # broker.json is looked after this often
# A ROUTER has no limit of its own for connections: beyond this part of the
# descriptors that the process may have, somebody should be told.
_CROWDED = 0.8


class Broker:
    """Answers programs until it is stopped, or has been alone for `linger_s`.

    Parameters
    ----------
    runtime
        Where it tells programs how to find it.
    linger_s
        How long to stay without programs; None: for ever.
    site
        Whom to let in, and where to listen, beside this user's own programs.
    """

    def __init__(
        self,
        runtime: RuntimeDirectory,
        linger_s: float | None = None,
        site: Site | None = None,
    ) -> None:
        self._runtime = runtime
        self._site = site
        self._host = os.uname().nodename
        self._registry = Registry(os.urandom(8).hex(), runtime.endpoint_of)
        self._lease_file = str(lease_path())
        self._now = 0.0  # s that this process ran: see `_go_on`
        self._looked_at = time.monotonic()
        self._linger = Linger(linger_s)
        self._is_stopped = False
        self._is_crowded = False
        self._next_look_after = _FILE_S

    @property
    def registry(self) -> Registry:
        """Which programs and channels it knows."""
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
            with (
                contextlib.closing(Store(self._runtime.path / "state.db")) as store,
                contextlib.closing(Audit(self._runtime.path / "audit.log")) as audit,
                zmq.Context() as context,
            ):
                self._serve(context, store, audit)
            Path(self._runtime.broker_endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
            return True

    def _serve(self, context: zmq.Context[Router], store: Store, audit: Audit) -> None:
        keys = self._keys()
        own = load_or_create_keys(self._runtime.key_path("client")).public
        self._allowed = AllowList(own, None if self._site is None else self._site.path)
        self._audit = audit
        _allow_many_descriptors()
        with context.socket(zmq.REP) as doorman, context.socket(zmq.ROUTER) as router:
            doorman.linger = 0
            doorman.bind(zap.ZAP_ENDPOINT)
            secure(router, keys.secret)
            self._router = RawSocket(router)
            self._board = Switchboard(
                self._registry, store, self._router.send_to, self._note_refusal
            )
            router.bind(self._runtime.broker_endpoint)
            for endpoint in () if self._site is None else self._site.listen:
                router.ipv6 = "[" in endpoint
                _bind(router, endpoint)
                bound = str(
                    router.getsockopt_string(zmq.LAST_ENDPOINT)
                )  # its port, where any would do
                _log.info("broker listens on %s, public key %s", bound, keys.public)
            self._announce(keys.public)
            try:
                self._loop(doorman, int(router.fileno()))
            finally:
                try:
                    self._take_leave()
                finally:
                    # ms: who told it to end is to hear that it does
                    self._router.close(200 if self._board.is_ended else 0)

    def _keys(self) -> KeyPair:
        if self._site is None or self._site.key_file is None:
            return load_or_create_keys(self._runtime.key_path("broker"))
        # A new one in its place would be a stranger to every client.
        return read_keys(Path(self._site.key_file))

    def _announce(self, public_key: str) -> None:
        broker = BrokerFile(
            endpoint=self._runtime.broker_endpoint,
            public_key=public_key,
            epoch=self._registry.epoch,
            pid=os.getpid(),
            lease=process_lease(self._lease_file),
            lease_file=self._lease_file,
        )
        self._file = broker
        self._runtime.write_broker(broker)
        _log.info("broker %s listens on %s", broker.epoch, broker.endpoint)

    def _take_leave(self) -> None:
        try:
            self._runtime.remove_broker(self._registry.epoch)
        except OSError as error:  # there may be no descriptor left to look with
            # Programs see by its lease that the broker which it tells of is gone.
            _log.warning("broker.json is left behind: %s", error)

    def _loop(self, doorman: Router, line: int) -> None:
        # Their descriptors tell of changes only: who was woken asks until there is no more.
        changes, door = select.poll(), int(doorman.fileno())
        changes.register(door, select.POLLIN)
        changes.register(line, select.POLLIN)
        # To send may make one quiet, too, though something has come.
        next_tick, next_look, must_look, is_knocking = _TICK_S, 0.0, True, False
        self._looked_at = time.monotonic()  # to wait for its turn was no time of its own
        while not (self._is_stopped or self._board.is_ended):
            is_busy = self._board.services.is_busy
            wait_s = _SHORT_TICK_S if is_busy else max(next_tick - self._now, 0.0)
            woken = changes.poll(0 if must_look else int(wait_s * 1000) + 1)
            self._go_on()
            # One stranger a turn: a crowd of them keeps nobody else from being answered.
            is_knocking = is_knocking or (door, select.POLLIN) in woken
            is_knocking = is_knocking and bool(doorman.poll(0))
            if is_knocking:
                request = doorman.recv_multipart()
                doorman.send_multipart(zap.decide(request, self._allowed, self._note_stranger))
            must_look = self._take_turn() or is_knocking
            if is_busy and self._now >= next_look:
                next_look, must_look = self._now + _SHORT_TICK_S, True
                self._board.services.acknowledge(self._now)
                at_work = self._board.services.workers_at_work()
                self._forget_sockets(self._board.bury(self._is_alive, at_work))
            if self._now >= next_tick:
                next_tick, must_look = self._now + _TICK_S, True
                self._tick()

    def _go_on(self) -> None:
        """Let time pass, but not more than a wait may take.

        What passes beyond, while this process was stopped or starved, is not
        the silence of programs: they spoke, and were not heard.
        """
        looked_at, self._looked_at = self._looked_at, time.monotonic()
        passed_s = self._looked_at - looked_at
        self._now += passed_s if passed_s < _MAX_PASSED_S else _MAX_PASSED_S

    def _tick(self) -> None:
        if self._allowed.refresh():
            self._board.let_in(self._allowed.client_of)
        self._forget_sockets(self._board.tick(self._now, self._is_alive))
        self._look_for_a_crowd()
        self._look_after_file()
        if self._linger.is_over(self._now, len(self._registry.programs), self._registry.n_met):
            self.stop()

    # --- Messages ---

    def _take_turn(self) -> bool:
        """Answer what has come; whether there may be more."""
        for _ in range(_MAX_TURN):
            message = self._router.receive_from()
            if message is None:
                return False
            self._answer(*message)
        return True

    def _answer(self, peer: bytes, key: bytes, frame: bytes, n_more: int) -> None:
        request_id: int | None = None
        body: protocol.ReplyBody | None
        # The doorman said whose key it is; libzmq writes it on each message.
        client = self._allowed.client_of(key)
        try:
            if n_more:
                raise ValueError(f"{n_more} frames too many")
            request = protocol.decode_request(frame)
            request_id = request.id
            if client is None:
                # Its right was taken away after it had come in; who asked, is told.
                why = "its key is allowed no more"
                body = self._board.refuse("not_allowed", _who(key, client), why)
            else:
                body = self._board.answer(peer, client, request.body, self._now, request_id)
        except ValueError as error:
            request_id = protocol.id_of(frame)
            body = self._board.refuse("bad_message", _who(key, client), str(error)[:200])
        if body is not None and request_id != 0:  # one without any id is answered too
            # Who does not read, or has just gone, loses it: it asks again.
            self._router.send_to(peer, _bounded(protocol.Reply(request_id or 0, body)))

    # --- Who is there ---

    def _is_alive(self, hello: protocol.Hello) -> bool:
        # Another host's lock file, or another directory's, is not ours to ask;
        # of such programs only their pings tell.
        return not self._is_local(hello) or lease_is_alive(hello.lease_file, hello.lease)

    def _is_local(self, hello: protocol.Hello) -> bool:
        return hello.host == self._host and hello.lease_file == self._lease_file

    def _forget_sockets(self, gone: Gone) -> None:
        for name, program in gone:
            _log.info("channel %r: its producer's program is gone", name)
            if not self._has_socket_here(program):
                continue
            Path(self._runtime.endpoint_of(name).removeprefix("ipc://")).unlink(missing_ok=True)

    def _has_socket_here(self, program: Program) -> bool:
        # Another host's, or user's, is elsewhere: here, that name may be of a
        # program that lives, and has not registered yet.
        return program.client.is_own and self._is_local(program.hello)

    def _note_refusal(self, code: str, who: str, why: str) -> None:
        self._audit.refused(code, who, "a message", why)

    def _note_stranger(self, who: str, address: str, why: str) -> None:
        self._board.counters["refused: connections"] += 1
        self._audit.refused("connection", who, address, why)

    def _look_after_file(self) -> None:
        """Write down again where this broker is, should that be damaged or gone."""
        if self._now < self._next_look_after:
            return
        self._next_look_after = self._now + _FILE_S
        with contextlib.suppress(OSError):  # no descriptors, no room: later
            if self._runtime.read_broker() != self._file:
                _log.warning("broker.json did not say where this broker is; it is written again")
                self._runtime.write_broker(self._file)

    def _look_for_a_crowd(self) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            n_open = len(os.listdir("/proc/self/fd"))
        except OSError:  # not even one is left to look with
            n_open = limit
        was_crowded, self._is_crowded = self._is_crowded, n_open > _CROWDED * limit
        if self._is_crowded and not was_crowded:
            self._board.counters["crowds"] += 1
            _log.error(
                "%d of %d descriptors are in use: whoever connects and says nothing uses one. "
                "Raise the limit (ulimit -n, LimitNOFILE), or let fewer in by a firewall",
                n_open,
                limit,
            )


def secure(router: zmq.Socket[bytes], secret_key: str) -> None:
    """Set `router` up for programs whose key the ZAP handler allows, and nobody else."""
    router.linger = 0
    router.curve_server = True
    router.curve_secretkey = secret_key.encode()
    router.zap_domain = zap.ZAP_DOMAIN
    # Without this, an unknown key is let in whenever nobody answers.
    router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    # What is not sent is to be counted, not lost in silence.
    router.router_mandatory = True
    router.maxmsgsize = protocol.MAX_MESSAGE_BYTES
    router.handshake_ivl = 5000
    # Of a host that went away without a word, TCP says nothing for hours.
    router.heartbeat_ivl = 1000
    router.heartbeat_timeout = 3000
    router.router_handover = True  # a program that reconnects is the same one


def _bind(router: Router, endpoint: str) -> None:
    try:
        router.bind(endpoint)
    except zmq.ZMQError as error:
        raise PyhubError(
            f"the broker cannot listen on {endpoint}: {zmq.strerror(error.errno or 0)}.\n"
            "  Another program may have that port, or this host no such address: see `ss -ltnp`. "
            "Choose another one under `listen` in the site's file."
        ) from error


def _who(key: bytes, client: Client | None) -> str:
    return key.decode()[:8] if client is None else client.name


def _bounded(reply: protocol.Reply) -> bytes:
    frame = protocol.encode(reply)
    if len(frame) <= protocol.MAX_REPLY_BYTES:
        return frame
    too_long = protocol.Refused("too_many", f"the answer takes {len(frame)} bytes")
    return protocol.encode(protocol.Reply(reply.id, too_long))


def _allow_many_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
