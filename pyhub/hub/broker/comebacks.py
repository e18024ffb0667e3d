"""Workers that are written down: at work, expected back, or gone. Does no I/O.

A worker of a service is one of these:

at work
    It offers the service. It is written down, for the next broker.
expected back
    It offered it under the broker before, or until its line broke. It is still
    written down; who calls the service is asked to be patient, for `FORMER_S`.
gone
    It left, died, or was expected in vain. If it ever had a call, it stays
    written down for `_REMEMBERED_S`: this broker does not wait for it, but the
    next one is to, which cannot know what it did.
forgotten
    All others.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from pyhub.hub import protocol

__all__ = ["FORMER_S", "Comebacks", "FormerWorker", "Roster", "worker_id"]

# A new broker waits so long for the workers of the one before it.
FORMER_S = 5.0
# Of a worker that is gone, the next broker is to know for so long: by then, its
# callers have heard what came of their calls, or are gone themselves.
_REMEMBERED_S = 60.0
_MAX_LOST = 10_000


def worker_id(peer: bytes) -> str:
    """Return how a worker is called before others: its address is its own secret."""
    return hashlib.blake2b(peer, digest_size=6, person=b"pyhub-worker").hexdigest()


@dataclass(frozen=True)
class FormerWorker:
    """A program that worked for a service under the broker before."""

    peer: bytes
    service: str
    hello: protocol.Hello


class Roster(Protocol):
    """Where it is written down who works for what, for the next broker."""

    def keep_worker(self, service: str, peer: bytes, hello: protocol.Hello) -> None:
        """Remember that `peer` works for `service`."""

    def drop_worker(self, service: str, peer: bytes) -> None:
        """Forget it. Never raises: the next broker then waits for it, and not for long."""


@dataclass
class _Expected:
    hello: protocol.Hello
    services: set[str]
    until: float


class Comebacks:
    """Knows which workers may come back, and lets the next broker know.

    Parameters
    ----------
    roster
        Where workers are written down.
    is_here
        Whether a program is connected.
    former
        Those that the broker before this one had: they are expected.
    now
        When this broker began, s.
    """

    def __init__(
        self,
        roster: Roster,
        is_here: Callable[[bytes], bool],
        former: Iterable[FormerWorker],
        now: float,
    ) -> None:
        self._roster = roster
        self._is_here = is_here
        self._expected: dict[bytes, _Expected] = {}
        self._worked: set[bytes] = set()  # who was given a call, or said that he holds one
        self._gone: dict[tuple[str, bytes], float] = {}  # and until when that is remembered
        # Services of which an expected worker did not come back.
        self._lost: OrderedDict[str, None] = OrderedDict()
        for each in former:
            self.expect(each.peer, each.service, each.hello, now)

    def begins(self, peer: bytes, name: str, hello: protocol.Hello) -> None:
        """Write down that `peer` works for a service; an `OSError`: that cannot be."""
        self._roster.keep_worker(name, peer, hello)
        self._gone.pop((name, peer), None)

    def works(self, peer: bytes) -> None:
        """Note that `peer` has, or had, a call."""
        self._worked.add(peer)

    def leaves(self, peer: bytes, name: str, now: float) -> None:
        """Hear that `peer` does not work for a service any more."""
        # A call that this one has, or had, must not be begun by another one
        # because a new broker has never heard of it.
        if peer in self._worked:
            self._gone[name, peer] = now + _REMEMBERED_S
        else:
            self._drop(peer, name)

    def forget(self, peer: bytes) -> None:
        """Hear that a program is gone, after it left its services."""
        if not any(gone == peer for _, gone in self._gone):
            self._worked.discard(peer)

    def expect(self, peer: bytes, name: str, hello: protocol.Hello, now: float) -> None:
        """Expect that `peer` will offer a service again."""
        expected = self._expected.setdefault(peer, _Expected(hello, set(), now + FORMER_S))
        expected.services.add(name)

    def is_expected(self, name: str, worker: str = "") -> bool:
        """Whether any worker of a service is expected; or the one with that `worker_id`."""
        return any(
            name in expected.services and worker in ("", worker_id(peer))
            for peer, expected in self._expected.items()
        )

    def returns(self, peer: bytes, name: str) -> bool:
        """Expect `peer` no more for that service; whether it was."""
        expected = self._expected.get(peer)
        if expected is None or name not in expected.services:
            return False
        expected.services.remove(name)
        if not expected.services:
            del self._expected[peer]
        return True

    def overdue(self, now: float, is_alive: Callable[[protocol.Hello], bool]) -> list[bytes]:
        """Return those that died, or were expected for too long."""
        return [
            peer
            for peer, expected in self._expected.items()
            if now >= expected.until or not is_alive(expected.hello)
        ]

    def give_up(self, peer: bytes, now: float) -> list[str]:
        """Hear that `peer` does not come back; for which services it was expected."""
        expected = self._expected.get(peer)
        names = sorted(expected.services) if expected is not None else []
        for name in names:
            self._gone[name, peer] = now + _REMEMBERED_S
            self._lost[name] = None
            if len(self._lost) > _MAX_LOST:
                self._lost.popitem(last=False)
        return names

    def has_lost(self, name: str) -> bool:
        """Whether some worker of a service was given up."""
        return name in self._lost

    def expire(self, now: float, has_calls: Callable[[bytes], bool]) -> None:
        """Forget who has been gone for long, and has no call."""
        for (name, peer), until in list(self._gone.items()):
            if now >= until and not has_calls(peer):
                self._drop(peer, name)

    def _drop(self, peer: bytes, name: str) -> None:
        self._gone.pop((name, peer), None)
        if not self._is_here(peer):
            self._worked.discard(peer)
        self._roster.drop_worker(name, peer)
