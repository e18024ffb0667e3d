"""The state: values by key, who set them, and which changes were made already. Does no I/O."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pyhub.errors import InvalidName
from pyhub.hub.broker.watches import Push, Watches, in_parts, matching
from pyhub.hub.protocol import Conflict, Refused, SetState, StateChanged, Stated, StateEntry
from pyhub.names import check_topic

__all__ = ["StateTable"]


class StateTable:
    """Values by key; each change has the next version, is kept, then pushed.

    Parameters
    ----------
    push
        How a change reaches programs.
    watches
        Which programs those are.
    keep
        Called with each new entry and the id of its change, before anybody
        can see it. An `OSError` from it refuses the change.
    entries, version
        What a former broker kept: its changes with their ids, the oldest
        first, and the last version it gave. What was set, then set again or
        deleted, may have lost its value.
    clock_ns
        The wall clock.

    Attributes
    ----------
    version
        Of the last change of any key.

    Notes
    -----
    A change that is repeated, as its program heard no answer, is done once:
    the outcome of the last `MAX_REMEMBERED` is known, conflicts included.
    Without that, a repetition that was long under way would undo what others
    did since. So the ids must be random: two changes with one id are one.
    """

    MAX_KEYS = 10_000
    MAX_BYTES = 16 * 2**20  # of all keys and values
    MAX_REMEMBERED = 10_000

    def __init__(
        self,
        push: Push,
        watches: Watches,
        keep: Callable[[StateEntry, bytes], None],
        entries: Iterable[tuple[StateEntry, bytes]] = (),
        version: int = 0,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._push = push
        self._watches = watches
        self._keep = keep
        self._clock_ns = clock_ns
        self.version = version
        self._entries: dict[str, StateEntry] = {}  # by version, as they are pushed
        self._n_bytes = 0
        self._outcomes: OrderedDict[bytes, _Outcome] = OrderedDict()
        for entry, change in entries:
            self._take(entry)
            self._remember(change, _made(entry))

    def get(self, key: str) -> StateEntry | None:
        """Return what has that key; None: nothing."""
        return self._entries.get(key)

    def set(self, body: SetState, source: str) -> Stated | Conflict | Refused:
        """Do what `source` asks for, or say why not.

        Returns
        -------
        Stated
            The entry that this change made, also to a repetition; None if a
            key was to be deleted that is not there.
        Conflict
            `if_version` is not that of the key; what is there now.
        Refused
            Nothing changed.
        """
        try:
            check_topic(body.key)
        except InvalidName as error:
            return Refused("bad_message", str(error))
        outcome = self._outcomes.get(body.change)
        if outcome is not None:
            return self._repeat(body, outcome)
        old = self._entries.get(body.key)
        if body.if_version is not None and body.if_version != (old.version if old else 0):
            self._remember(body.change, _Outcome(body.key, is_conflict=True))
            return Conflict(old)
        if body.value is None and old is None:
            self._remember(body.change, _Outcome(body.key))
            return Stated(None)
        new = StateEntry(body.key, body.value, self.version + 1, self._clock_ns(), source)
        if refusal := self._lacks_room(old, new):
            return refusal
        try:
            self._keep(new, body.change)
        except OSError as error:
            return Refused("no_room", str(error))
        self._take(new)
        self._remember(body.change, _made(new))
        if peers := self._watches.matching("state", new.key):
            self._push(peers, StateChanged(0, [new]))
        return Stated(new)

    def first(self, peer: bytes, watch: int, pattern: str, may_read: Callable[[str], bool]) -> None:
        """Push to `peer` what there is by that pattern and it may read, by version."""
        found = (entry for entry in matching(self._entries, pattern) if may_read(entry.key))
        for entries in in_parts(found):
            self._push([peer], StateChanged(watch, entries))

    def _take(self, entry: StateEntry) -> None:
        self.version = max(self.version, entry.version)
        old = self._entries.pop(entry.key, None)
        self._n_bytes += _size(entry) - _size(old)
        if entry.value is not None:
            self._entries[entry.key] = entry  # behind all others

    def _remember(self, change: bytes, outcome: _Outcome) -> None:
        self._outcomes[change] = outcome
        if len(self._outcomes) > self.MAX_REMEMBERED:
            self._outcomes.popitem(last=False)

    def _repeat(self, body: SetState, outcome: _Outcome) -> Stated | Conflict | Refused:
        if body.key != outcome.key:
            return Refused(
                "bad_message",
                f"the change of {body.key!r} has the id of one of {outcome.key!r}: each change "
                "needs an id of its own",
            )
        if outcome.is_conflict:
            return Conflict(self._entries.get(body.key))
        if not outcome.version:
            return Stated(None)
        return Stated(
            StateEntry(body.key, body.value, outcome.version, outcome.time_ns, outcome.source)
        )

    def _lacks_room(self, old: StateEntry | None, new: StateEntry) -> Refused | None:
        if new.value is None:
            return None
        if old is None and len(self._entries) >= self.MAX_KEYS:
            return Refused(
                "too_many",
                f"no room for {new.key!r}: there are {len(self._entries)} keys, and "
                f"{self.MAX_KEYS} is the most; delete those that nobody needs",
            )
        n_more = _size(new) - _size(old)
        if n_more > 0 and self._n_bytes + n_more > self.MAX_BYTES:
            return Refused(
                "too_many",
                f"no room for the {len(new.value)} bytes of {new.key!r}: the state has "
                f"{self._n_bytes} bytes, and {self.MAX_BYTES} is the most; delete what nobody "
                "needs, or put large values into a channel's flex zone",
            )
        return None


class _Outcome(NamedTuple):
    """What came of a change; without the value, which a repetition brings itself."""

    key: str
    version: int = 0  # 0: it made no entry
    time_ns: int = 0
    source: str = ""
    is_conflict: bool = False


def _made(entry: StateEntry) -> _Outcome:
    return _Outcome(entry.key, entry.version, entry.time_ns, entry.source)


def _size(entry: StateEntry | None) -> int:
    """Return what an entry takes of `MAX_BYTES`; nothing if it is none, or a deletion."""
    if entry is None or entry.value is None:
        return 0
    return len(entry.key.encode()) + len(entry.value)
