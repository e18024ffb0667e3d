"""Events: each is pushed to who listens, and the last one of a topic may be kept. Does no I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import msgspec

from pyhub.errors import InvalidName
from pyhub.hub.broker.watches import Push, Watches, in_parts, matching
from pyhub.hub.protocol import Done, Event, EventHappened, Publish, Refused
from pyhub.names import check_topic

__all__ = ["NIL", "Topics"]

NIL = b"\xc0"  # MessagePack's: kept under a topic, it ends what was kept there


class Topics:
    """Counts events, pushes them, and keeps those that are for later, too.

    Parameters
    ----------
    push
        How an event reaches programs.
    watches
        Which programs those are.
    keep
        Called with each event that is to be kept, and with one of `NIL` where
        none is any more, before it is pushed. An `OSError` from it refuses
        the event.
    kept
        What a former broker kept.

    Notes
    -----
    An event that is repeated, as its program heard no answer, is pushed once:
    the ids of the last `MAX_REMEMBERED` are known. They must be random.
    """

    MAX_KEPT = 10_000
    MAX_BYTES = 16 * 2**20  # of all topics and values that are kept
    MAX_REMEMBERED = 10_000

    def __init__(
        self,
        push: Push,
        watches: Watches,
        keep: Callable[[Event], None],
        kept: Iterable[Event] = (),
    ) -> None:
        self._push = push
        self._watches = watches
        self._keep = keep
        self._kept: dict[str, Event] = {}  # by number, as they are pushed
        self._n_bytes = 0
        self._number = 0  # of the last event
        self._ids: OrderedDict[bytes, None] = OrderedDict()
        for event in sorted(kept, key=lambda event: event.number):
            self._take(event)
            # Who saw these does not see their numbers again.
            self._number = event.number

    def publish(self, body: Publish, source: str) -> Done | Refused:
        """Push what happened to `source`, or say why not.

        Returns
        -------
        Done
            It is pushed, and kept if it was to be; or it was before.
        Refused
            It is neither pushed nor kept.
        """
        try:
            check_topic(body.topic)
        except InvalidName as error:
            return Refused("bad_message", str(error))
        if body.event in self._ids:
            return Done()
        event = Event(body.topic, body.value, body.severity, source, body.time_ns, self._number + 1)
        if body.keep and (refusal := self._keep_it(msgspec.structs.replace(event, is_kept=True))):
            return refusal
        self._number = event.number
        self._remember(body.event)
        if peers := self._watches.matching("events", event.topic):
            self._push(peers, EventHappened(0, [event]))
        return Done()

    def first(self, peer: bytes, watch: int, pattern: str, may_read: Callable[[str], bool]) -> None:
        """Push to `peer` what is kept by that pattern and it may read, by number."""
        found = (event for event in matching(self._kept, pattern) if may_read(event.topic))
        for events in in_parts(found):
            self._push([peer], EventHappened(watch, events))

    def _keep_it(self, event: Event) -> Refused | None:
        old = self._kept.get(event.topic)
        if event.value == NIL and old is None:
            return None
        if refusal := self._lacks_room(old, event):
            return refusal
        try:
            self._keep(event)
        except OSError as error:
            return Refused("no_room", str(error))
        self._take(event)
        return None

    def _lacks_room(self, old: Event | None, new: Event) -> Refused | None:
        if old is None and len(self._kept) >= self.MAX_KEPT:
            return Refused(
                "too_many",
                f"no room to keep {new.topic!r}: {len(self._kept)} topics have a kept event, and "
                f"{self.MAX_KEPT} is the most; end those that nobody needs: publish None, kept",
            )
        n_more = _size(new) - _size(old)
        if n_more > 0 and self._n_bytes + n_more > self.MAX_BYTES:
            return Refused(
                "too_many",
                f"no room to keep the {len(new.value)} bytes of {new.topic!r}: kept events have "
                f"{self._n_bytes} bytes, and {self.MAX_BYTES} is the most; publish it without "
                "keeping it, or end those that nobody needs: publish None, kept",
            )
        return None

    def _take(self, event: Event) -> None:
        old = self._kept.pop(event.topic, None)
        self._n_bytes += _size(event) - _size(old)
        if event.value != NIL:
            self._kept[event.topic] = event  # behind all others

    def _remember(self, event: bytes) -> None:
        self._ids[event] = None
        if len(self._ids) > self.MAX_REMEMBERED:
            self._ids.popitem(last=False)


def _size(event: Event | None) -> int:
    """Return what an event takes of `MAX_BYTES`; nothing if it is none, or ends one."""
    if event is None or event.value == NIL:
        return 0
    return len(event.topic.encode()) + len(event.value)
