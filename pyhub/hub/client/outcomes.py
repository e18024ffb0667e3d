"""What came of calls that this program did, for who asks again: none is done twice."""

from __future__ import annotations

from collections import OrderedDict

from pyhub.hub.protocol import Failure, Outcome

__all__ = ["Outcomes"]

_MAX_KEPT = 1000
_MAX_KEPT_BYTES = 4 * 2**20
_MAX_KNOWN = 100_000


class Outcomes:
    """The last outcomes, bounded in number and size; of more calls, that they were done."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Outcome] = OrderedDict()
        self._n_bytes = 0
        self._known: OrderedDict[bytes, None] = OrderedDict()  # done, and not kept any more

    def keep(self, outcome: Outcome) -> None:
        """Remember what came of a call."""
        self._kept[outcome.call] = outcome
        self._n_bytes += _size(outcome)
        while len(self._kept) > _MAX_KEPT or (self._n_bytes > _MAX_KEPT_BYTES):
            call, former = self._kept.popitem(last=False)
            self._n_bytes -= _size(former)
            self._known[call] = None
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)

    def get(self, call: bytes) -> Outcome | None:
        """Return what came of that call; None: it was not done here."""
        if call in self._known:
            why = "it was done, and so long ago that what came of it is not kept any more"
            return Outcome(call, None, Failure("interrupted", why))
        return self._kept.get(call)

    def calls(self) -> list[bytes]:
        """Return the calls whose outcomes are kept, the oldest first."""
        return list(self._kept)


def _size(outcome: Outcome) -> int:
    failure = outcome.failure
    n_text = 0 if failure is None else len(failure.message) + len(failure.traceback)
    return 200 + len(outcome.value or b"") + n_text
