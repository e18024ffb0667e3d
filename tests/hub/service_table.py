"""A broker's services without sockets, for their tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyhub.hub import protocol
from pyhub.hub.broker.comebacks import FormerWorker
from pyhub.hub.broker.services import Services
from pyhub.hub.protocol import (
    Accepted,
    Call,
    CommandInfo,
    Done,
    Execute,
    Finished,
    Offer,
    Outcome,
    PushBody,
    Refused,
)

A, B, C = b"caller A", b"caller B", b"caller C"
V, W, X = b"worker V", b"worker W", b"worker X"


def hello(peer: bytes) -> protocol.Hello:
    return protocol.Hello(protocol.PROTOCOL, "here", 42, 1, "/dev/shm/leases", peer.decode())


def alive(_: protocol.Hello) -> bool:
    return True


class Rows:
    """Who works for what, as the broker's file has it."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bytes], protocol.Hello] = {}
        self.is_full = False

    def keep_worker(self, service: str, peer: bytes, hello: protocol.Hello) -> None:
        if self.is_full:
            raise OSError("no room")
        self.rows[service, peer] = hello

    def drop_worker(self, service: str, peer: bytes) -> None:
        self.rows.pop((service, peer), None)


class Table:
    """A broker's services; what it pushes is a list."""

    def __init__(self, rows: Rows | None = None, epoch: str = "e1", now: float = 0.0) -> None:
        self.rows = rows or Rows()
        self.here = {A, B, C, V, W, X}
        self.pushed: list[tuple[bytes, PushBody]] = []
        former = [FormerWorker(p, name, h) for (name, p), h in sorted(self.rows.rows.items())]
        self.no_workers: set[tuple[bytes, str]] = set()  # who may not offer what
        self.services = Services(
            epoch, self.tell, self.here.__contains__, self.may_offer, self.rows, former, now
        )

    def may_offer(self, peer: bytes, service: str) -> bool:
        return (peer, service) not in self.no_workers

    def tell(
        self, peers: Sequence[bytes], body: PushBody | Accepted, request_id: int = 0, /
    ) -> None:
        assert not isinstance(body, Accepted), "nothing here is an answer to a request"
        assert not request_id
        self.pushed += [(peer, body) for peer in peers]

    def taken(self) -> list[tuple[bytes, PushBody]]:
        """Return what was pushed since the last look."""
        pushed, self.pushed = self.pushed, []
        return pushed

    def executed(self) -> list[tuple[bytes, bytes]]:
        """Return who was given which call since the last look, whatever else was pushed."""
        return [(peer, body.call) for peer, body in self.taken() if isinstance(body, Execute)]

    def given(self) -> list[tuple[bytes, bytes]]:
        """Return who was given which call since the last look; nothing else was pushed."""
        given = []
        for peer, body in self.taken():
            assert isinstance(body, Execute)
            given.append((peer, body.call))
        return given

    def offer(self, peer: bytes, *commands: str, service: str = "s", **fields: Any) -> None:
        infos = [CommandInfo(name) for name in commands or ("do",)]
        offer = Offer(service, infos, **fields)
        assert self.services.offer(peer, offer, hello(peer)) == Done()

    def call(
        self, peer: bytes, call_id: bytes, now: float = 0.0, timeout_s: float = 10.0, **fields: str
    ) -> Accepted | Refused:
        service, command = fields.pop("service", "s"), fields.pop("command", "do")
        body = Call(call_id, service, command, b"\x80", timeout_s, **fields)
        reply = self.services.call(peer, f"source of {peer!r}", body, now)
        assert reply is not None
        return reply

    def done(self, peer: bytes, call_id: bytes, value: bytes = b"\x01") -> None:
        self.services.outcome(peer, Outcome(call_id, value))

    def hold(self, peer: bytes, *calls: bytes) -> None:
        self.services.hold(peer, calls)

    def leave(self, peer: bytes, may_come_back: bool = False) -> None:
        """As the switchboard has it: who is told of a death is here, the dead is not."""
        self.here.discard(peer)
        self.services.forget(peer, may_come_back)

    def is_empty(self) -> bool:
        table = self.services
        return not table.is_busy and not table._n_calls and not table.workers_at_work()

    def numbers(self, service: str = "s") -> tuple[int, int]:
        """Return how many calls of the service run, and how many wait."""
        (info,) = [info for info in self.services.list() if info.name == service]
        return info.n_running, info.n_waiting


def after(table: Table, now: float = 100.0) -> Table:
    """Return the table of the broker that comes after that one's."""
    return Table(table.rows, "e2", now)


def failure_of(body: PushBody) -> str:
    assert isinstance(body, Finished)
    assert body.failure is not None
    assert body.value is None
    return body.failure.code
