"""Who watches what of the state and of the events. Does no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

from pyhub.errors import InvalidName
from pyhub.hub import protocol
from pyhub.hub.protocol import Event, Refused, StateEntry
from pyhub.names import check_pattern, has_wildcards
from pyhub.names import pattern as compiled

__all__ = ["Push", "Watches", "in_parts", "matching"]

Push: TypeAlias = Callable[[Sequence[bytes], protocol.PushBody], None]  # to whom, what

Item = TypeVar("Item", StateEntry, Event)

SUBJECTS = ("state", "events")
# Far below what a reply may have, so that what lies around the values never matters.
PART_BYTES = protocol.MAX_REPLY_BYTES // 4


class Watches:
    """Finds those who watch a name; each program numbers its own watches.

    Parameters
    ----------
    may_read
        Whether a program may read a name of that subject; asked where its
        pattern matches. The answer is remembered: see `clear_cache`.
    """

    MAX_WATCHES = 256  # of a program
    MAX_CACHED = 2**16  # names, and programs that were found for them

    def __init__(self, may_read: Callable[[bytes, str, str], bool]) -> None:
        self._may_read = may_read
        self._watches: dict[bytes, dict[int, tuple[str, str]]] = {}  # subject and pattern
        # The other way round: by subject and pattern the programs, and how
        # many of their watches are the same.
        self._watchers: dict[tuple[str, str], dict[bytes, int]] = {}
        # Only patterns with wildcards have to be tried; the others are looked up.
        self._wild: dict[str, dict[str, re.Pattern[str]]] = {subject: {} for subject in SUBJECTS}
        self._found: dict[tuple[str, str], tuple[bytes, ...]] = {}
        self._n_cached = 0

    def add(self, peer: bytes, watch: int, subject: str, pattern: str) -> Refused | None:
        """Let `peer` watch; its former watch of that number ends.

        Returns
        -------
        Refused or None
            Why not, and then nothing changed; None if it watches.
        """
        if subject not in SUBJECTS:
            return Refused(
                "bad_message", f"{subject[:50]!r} cannot be watched, only 'state' and 'events'"
            )
        try:
            check_pattern(pattern)
        except InvalidName as error:
            return Refused("bad_message", str(error))
        numbers = self._watches.get(peer, {})
        if watch not in numbers and len(numbers) >= self.MAX_WATCHES:
            return Refused(
                "too_many",
                f"this program has {len(numbers)} watches, and that is the most: use patterns "
                "that match more, or end some",
            )
        self.remove(peer, watch)
        self._watches.setdefault(peer, {})[watch] = (subject, pattern)
        watchers = self._watchers.setdefault((subject, pattern), {})
        watchers[peer] = watchers.get(peer, 0) + 1
        if has_wildcards(pattern):
            self._wild[subject][pattern] = compiled(pattern)
        self.clear_cache()
        return None

    def remove(self, peer: bytes, watch: int) -> None:
        """End that watch, if there is one."""
        numbers = self._watches.get(peer, {})
        if watch not in numbers:
            return
        subject, pattern = numbers.pop(watch)
        if not numbers:
            del self._watches[peer]
        watchers = self._watchers[subject, pattern]
        watchers[peer] -= 1
        if not watchers[peer]:
            del watchers[peer]
        if not watchers:
            del self._watchers[subject, pattern]
            self._wild[subject].pop(pattern, None)
        self.clear_cache()

    def forget(self, peer: bytes) -> None:
        """End all watches of `peer`."""
        for watch in list(self._watches.get(peer, ())):
            self.remove(peer, watch)

    def count(self, peer: bytes) -> int:
        """Return how many watches `peer` has."""
        return len(self._watches.get(peer, ()))

    def matching(self, subject: str, name: str) -> list[bytes]:
        """Return the programs that watch `name` and may read it, each once.

        A name that is set again and again is looked up: nothing is matched
        until somebody's watches change.
        """
        peers = self._found.get((subject, name))
        if peers is None:
            peers = tuple(self._find(subject, name))
            if self._n_cached > self.MAX_CACHED:
                self.clear_cache()
            self._found[subject, name] = peers
            self._n_cached += 1 + len(peers)
        return list(peers)

    def clear_cache(self) -> None:
        """Ask `may_read` again from here on: somebody's rights changed."""
        self._found.clear()
        self._n_cached = 0

    def _find(self, subject: str, name: str) -> Iterator[bytes]:
        # A name has no wildcards (`check_topic`): this finds no pattern that has.
        peers = dict.fromkeys(self._watchers.get((subject, name), ()))
        for text, wild in self._wild[subject].items():
            if wild.match(name):
                peers.update(dict.fromkeys(self._watchers[subject, text]))
        return (peer for peer in peers if self._may_read(peer, subject, name))


def matching(items: Mapping[str, Item], text: str) -> Iterator[Item]:
    """Return what stands under the names that a pattern matches."""
    if not has_wildcards(text):
        item = items.get(text)
        return iter([item] if item else [])
    wild = compiled(text)
    return (item for name, item in items.items() if wild.match(name))


def in_parts(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Return `items` in lists that each fit into one message; none for no items."""
    part: list[Item] = []
    n_bytes = 0
    for item in items:
        size = _bound_of(item)
        if part and n_bytes + size > PART_BYTES:
            yield part
            part, n_bytes = [], 0
        part.append(item)
        n_bytes += size
    if part:
        yield part


def _bound_of(item: StateEntry | Event) -> int:
    """Return at least as many bytes as `item` takes in a message."""
    name = item.key if isinstance(item, StateEntry) else item.topic
    # A character has at most 4 bytes; numbers, and the names of fields, 128.
    return len(item.value or b"") + 4 * (len(name) + len(item.source)) + 128
