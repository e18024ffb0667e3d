"""What users get of state and events: the messages' entries, with their values decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyhub.hub import protocol
from pyhub.hub.client.values import unpack

__all__ = ["Event", "StateEntry"]


@dataclass(frozen=True)
class StateEntry:
    """A key of the state as of a version.

    Attributes
    ----------
    value
        As it was set; None if it was deleted.
    version
        Larger than that of any change of any key before; for `if_version`.
    time_ns
        When it was set, by the broker's wall clock.
    source
        Which program set it.
    is_deleted
        Whether there is no such key any more.
    """

    key: str
    value: Any
    version: int
    time_ns: int
    source: str
    is_deleted: bool = False

    @classmethod
    def of(cls, entry: protocol.StateEntry) -> StateEntry:
        """Return the entry that a message carried."""
        is_deleted = entry.value is None
        value = None if entry.value is None else unpack(entry.value)
        return cls(entry.key, value, entry.version, entry.time_ns, entry.source, is_deleted)


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes
    ----------
    severity
        "debug", "info", "warning", "error" or "critical".
    source
        Which program told of it.
    time_ns
        When, by that program's wall clock.
    number
        The broker's count of events.
    is_kept
        Whether it is the topic's last one, kept from before one listened.
    """

    topic: str
    value: Any
    severity: str
    source: str
    time_ns: int
    number: int
    is_kept: bool = False

    @classmethod
    def of(cls, event: protocol.Event) -> Event:
        """Return the event that a message carried."""
        return cls(
            event.topic,
            unpack(event.value),
            event.severity,
            event.source,
            event.time_ns,
            event.number,
            event.is_kept,
        )
