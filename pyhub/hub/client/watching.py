"""What a program watches of the state and of the events."""

from __future__ import annotations

import abc
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pyhub._handover import keep_newest
from pyhub.codec import encode_value
from pyhub.hub import protocol
from pyhub.hub.client import entries
from pyhub.hub.client.connection import Connection
from pyhub.hub.client.feed import MAX_ITEMS, Feed
from pyhub.hub.client.refusals import expected, refusal
from pyhub.hub.client.session import Ask
from pyhub.hub.protocol import Event, ReplyBody, StateEntry
from pyhub.names import check_pattern, pattern

__all__ = ["EventFeed", "StateFeed", "Watching"]

W = TypeVar("W", StateEntry, Event)
F = TypeVar("F", "StateFeed", "EventFeed")

_MAX_TOPICS = 10_000  # as many as a broker keeps events of
_NIL = encode_value(None)  # kept under a topic, it ends what was kept there
_ALARMS = "alarm/"  # topics of which every event is kept, by custom


class _Watch(Feed[Any], abc.ABC, Generic[W]):
    """A feed of what a broker pushes for one pattern."""

    subject = ""

    def __init__(
        self,
        text: str,
        on_close: Callable[[], None],
        convert: Callable[[W], Any],
        check_turn: Callable[[], None] | None,
    ) -> None:
        super().__init__(f"watching {self.subject} {text!r}", on_close, convert, check_turn)
        self.pattern = check_pattern(text)
        self._matches = pattern(text).match
        self._first: list[W] = []
        self._is_settled = False  # whether all that was there has come
        self.n_breaks = 0

    @property
    def is_settled(self) -> bool:
        """Whether all that was there when one began to watch has come."""
        return self._is_settled

    def take_first(self, item: W) -> None:
        """Take what was there when one began to watch; `settle` ends it."""
        self._first.append(item)

    def settle(self, version: int) -> None:
        """Hear that all of it has come."""
        items, self._first = self._first, []
        self._is_settled = True
        self._begin(items, version)

    def begin_again(self) -> None:
        """Hear that everything will come again: of another broker, or as pushes were lost."""
        self._is_settled = False
        self._first.clear()

    def take(self, item: W, name: str) -> None:
        """Take a change, if it is one of ours."""
        if self._is_settled and self._matches(name):
            self._change(item)

    @abc.abstractmethod
    def _begin(self, items: list[W], version: int) -> None:
        """Give what was there as of `version`, but for what was given before."""

    @abc.abstractmethod
    def _change(self, item: W) -> None:
        """Give a change."""


class StateFeed(_Watch[StateEntry]):
    """What matching keys have, then every change of them, in order.

    No gap lies between. After a broker's end, or where changes were lost on
    the way, each key's newest value comes, once. Items are `StateEntry`; of a
    deleted key `value` is None and `is_deleted` true; of a value that cannot
    be read, `problem` says why.

    Attributes
    ----------
    n_lost
        Pushes to this program that were lost on the way, of which some may
        have been other keys'; and entries dropped here, as nobody took them.
    n_breaks
        How often it was without a broker, or one forgot it: values that a key
        had meanwhile, but for its last one, nobody counted.
    """

    subject = "state"

    def __init__(
        self,
        text: str,
        on_close: Callable[[], None],
        check_turn: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(text, on_close, entries.StateEntry.of, check_turn)
        self._versions: dict[str, int] = {}  # of what was given, and is not deleted

    def _begin(self, items: list[StateEntry], version: int) -> None:
        if version < max(self._versions.values(), default=0):
            # Of a state that began anew, as its file was lost: all of it is newer.
            self._versions = dict.fromkeys(self._versions, 0)
        for key in sorted(self._versions.keys() - {entry.key for entry in items}):
            self._change(StateEntry(key, None, version, 0, "broker"))
        for entry in sorted(items, key=lambda entry: entry.version):
            self._change(entry)

    def _change(self, item: StateEntry) -> None:
        if item.version <= self._versions.get(item.key, 0) and item.value is not None:
            return  # it was given before
        if item.value is None:
            self._versions.pop(item.key, None)
        else:
            self._versions[item.key] = item.version
        self.put(item)

    def _make_room(self) -> None:
        # Whoever comes late gets each key's newest value: others give way to it.
        self.n_lost += keep_newest(self._items)
        if len(self._items) >= MAX_ITEMS:
            super()._make_room()


class EventFeed(_Watch[Event]):
    """What happens by matching topics; first, what is kept of them.

    Items are `Event`; of a value that cannot be read, `problem` says why.
    Delivery is at most once. But that an alarm ended while this program could
    not hear it, an event of the broker's tells (`value` None, `time_ns` 0); so
    it does for other topics of which it told that something was kept.

    Attributes
    ----------
    n_lost
        Pushes to this program that were lost on the way, of which some may
        have been other topics'; and events dropped here, as nobody took them.
    n_breaks
        How often it was without a broker, or one forgot it: what happened
        then, nobody counted.
    """

    subject = "events"

    def __init__(
        self,
        text: str,
        on_close: Callable[[], None],
        check_turn: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(text, on_close, entries.Event.of, check_turn)
        # Of each topic the last event that was given: of those, which are kept
        # cannot be told, and another broker may have them again.
        self._given: OrderedDict[str, tuple[int, int]] = OrderedDict()
        # Topics of which something was kept when last told: if it is not there
        # any more when all that is kept comes again, it ended unheard.
        self._kept: set[str] = set()

    def begin_again(self) -> None:
        """Hear that kept ones will come again; what happens meanwhile is taken none the less."""
        self._first.clear()

    def _begin(self, items: list[Event], version: int) -> None:
        for topic in sorted(self._kept - {event.topic for event in items}):
            self._change(Event(topic, _NIL, "info", "broker", 0))
        for event in sorted(items, key=lambda event: event.number):
            if self._given.get(event.topic) != _identity(event):
                self._change(event)
        self._kept = {event.topic for event in items}

    def _change(self, item: Event) -> None:
        if item.value == _NIL:
            self._kept.discard(item.topic)
        elif item.topic.startswith(_ALARMS) and len(self._kept) < _MAX_TOPICS:
            self._kept.add(item.topic)  # what is told now does not say whether it is kept
        self._given[item.topic] = _identity(item)
        self._given.move_to_end(item.topic)
        if len(self._given) > _MAX_TOPICS:
            self._given.popitem(last=False)
        self.put(item)


class Watching:
    """The feeds of one hub."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._feeds: dict[int, StateFeed | EventFeed] = {}
        self.connection: Connection | None = None

    def state(self, text: str) -> StateFeed:
        """Begin to watch keys of the state."""
        number = next(self._numbers)
        return self._open(number, StateFeed(text, lambda: self._close(number), self._check_turn))

    def events(self, text: str) -> EventFeed:
        """Begin to listen to topics of events."""
        number = next(self._numbers)
        return self._open(number, EventFeed(text, lambda: self._close(number), self._check_turn))

    def introduction(self) -> list[Ask]:
        """Return what a broker has to be told of them."""
        for feed in list(self._feeds.values()):
            feed.n_breaks += feed.is_settled
        return self._begin_again()

    def _begin_again(self) -> list[Ask]:
        asks = []
        for number, feed in list(self._feeds.items()):
            feed.begin_again()
            watch = protocol.Watch(number, feed.subject, feed.pattern)
            asks.append(Ask(watch, lambda reply, feed=feed: _settle(feed, reply)))  # type: ignore[misc]
        return asks

    def take(self, body: protocol.StateChanged | protocol.EventHappened) -> None:
        """Take what the broker pushed."""
        subject, items = (
            ("state", [(entry.key, entry) for entry in body.entries])
            if isinstance(body, protocol.StateChanged)
            else ("events", [(event.topic, event) for event in body.events])
        )
        feeds: list[Any] = (
            [self._feeds.get(body.watch)] if body.watch else list(self._feeds.values())
        )
        for feed in feeds:
            if feed is not None and feed.subject == subject:
                for name, item in items:
                    if body.watch:
                        feed.take_first(item)
                    else:
                        feed.take(item, name)

    def note_gap(self, n_lost: int) -> list[Ask]:
        """Hear that pushes were lost; what is to be asked again."""
        for feed in list(self._feeds.values()):  # others open and close theirs meanwhile
            feed.n_lost += n_lost
        return self._begin_again()

    def close(self, error: BaseException) -> None:
        """End all feeds."""
        for feed in list(self._feeds.values()):
            feed.end(error)
        self._feeds.clear()

    def _open(self, number: int, feed: F) -> F:
        assert self.connection is not None
        try:  # a Ctrl-C may come at any point, and nobody else has the feed yet
            self._feeds[number] = feed
            watch = protocol.Watch(number, feed.subject, feed.pattern)
            begun = self.connection.begin(watch, lambda reply: _settle(feed, reply))
            expected(self.connection.wait(begun), protocol.Watching)
        except BaseException:
            feed.close()
            raise
        return feed

    def _check_turn(self) -> None:
        if self.connection is not None:
            self.connection.check_turn()

    def _close(self, number: int) -> None:
        if self._feeds.pop(number, None) is not None and self.connection is not None:
            self.connection.tell(protocol.Unwatch(number))


def _identity(event: Event) -> tuple[int, int]:
    return event.time_ns, hash(event.value)


def _settle(feed: StateFeed | EventFeed, reply: ReplyBody) -> None:
    if isinstance(reply, protocol.Watching):
        feed.settle(reply.version)
    elif isinstance(reply, protocol.Refused):
        feed.end(refusal(reply))
