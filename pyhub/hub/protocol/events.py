"""Events: what happened, by topic; the last one of a topic may be kept for who comes later."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from pyhub.hub.protocol.fields import Count, Id, Message, Source, Topic, Value

__all__ = ["Event", "EventHappened", "Publish", "Severity"]

# As Python's logging has them.
Severity: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]


class Event(msgspec.Struct, frozen=True):
    """Something that happened.

    Attributes
    ----------
    number
        The broker's count of events; gaps are other topics', or losses that
        are counted where they happened.
    time_ns
        When, by the wall clock of its source.
    is_kept
        Whether this is the topic's last one, kept, from before one listened.
    """

    topic: Topic
    value: Value
    severity: Severity
    source: Source
    time_ns: int
    number: Count = 0
    is_kept: bool = False


class Publish(Message, frozen=True):
    """Tell who listens; with `keep`, also who will. `event` makes a repetition harmless."""

    event: Id
    topic: Topic
    value: Value
    severity: Severity
    time_ns: int
    keep: bool = False


class EventHappened(Message, frozen=True):
    """Pushed: an event, or kept ones."""

    watch: int  # whose first ones these are; 0: for whoever they match
    events: list[Event]
