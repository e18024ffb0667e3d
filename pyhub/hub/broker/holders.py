"""Who said that it holds which calls. Does no I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

__all__ = ["Holders"]


class Holders:
    """The programs that said that they run, or ran, calls; of each one, the last of those.

    Nobody pushes out what others hold; only those that are gone share one limit.
    """

    MAX_PER_PROGRAM = 1000
    MAX_OF_GONE = 10_000

    def __init__(self) -> None:
        self._programs: dict[bytes, bytes] = {}  # by call
        self._calls: dict[bytes, OrderedDict[bytes, None]] = {}  # the other way round
        self._gone: OrderedDict[bytes, bytes] = OrderedDict()  # by call, of programs that left

    def add(self, peer: bytes, calls: Iterable[bytes]) -> None:
        """Note that `peer` holds these calls."""
        for call in calls:
            self.drop(call)
            self._programs[call] = peer
            own = self._calls.setdefault(peer, OrderedDict())
            own[call] = None
            if len(own) > self.MAX_PER_PROGRAM:
                self.drop(next(iter(own)))

    def get(self, call: bytes) -> bytes | None:
        """Return who holds that call, here or gone; None: nobody."""
        return self._programs.get(call) or self._gone.get(call)

    def drop(self, call: bytes) -> None:
        """Forget who holds that call."""
        self._gone.pop(call, None)
        peer = self._programs.pop(call, None)
        if peer is not None:
            del self._calls[peer][call]
            if not self._calls[peer]:
                del self._calls[peer]

    def forget(self, peer: bytes) -> None:
        """Hear that a program is gone, and what it held with it."""
        for call in self._calls.pop(peer, ()):
            del self._programs[call]
            self._gone[call] = peer
            if len(self._gone) > self.MAX_OF_GONE:
                self._gone.popitem(last=False)
