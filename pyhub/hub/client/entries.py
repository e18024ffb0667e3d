"""What users get of state and events: the messages' entries, with their values decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyhub.errors import CodecError
from pyhub.hub import protocol
from pyhub.hub.client.values import unpack

__all__ = ["Event", "StateEntry"]


@dataclass(frozen=True)
class StateEntry:
    """A key of the state as of a version.

    Attributes
    ----------
    value
        As it was set; None if it was deleted, or cannot be read.
    version
        Larger than that of any change of any key before; for `if_version`.
    time_ns
        When it was set, by the broker's wall clock.
    source
        Which program set it.
    is_deleted
        Whether there is no such key any more.
    problem
        Why the value cannot be read; empty if it can.
    """

    key: str
    value: Any
    version: int
    time_ns: int
    source: str
    is_deleted: bool = False
    problem: str = ""

    @classmethod
    def of(cls, entry: protocol.StateEntry) -> StateEntry:
        """Return the entry that a message carried."""
        is_deleted = entry.value is None
        value, problem = (None, "") if entry.value is None else _read(entry.value)
        return cls(
            entry.key, value, entry.version, entry.time_ns, entry.source, is_deleted, problem
        )


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes
    ----------
    value
        As it was told; None if it cannot be read.
    severity
        "debug", "info", "warning", "error" or "critical".
    source
        Which program told of it.
    time_ns
        When, by that program's wall clock; 0 if nobody knows.
    number
        The broker's count of events.
    is_kept
        Whether it is the topic's last one, kept from before one listened.
    problem
        Why the value cannot be read; empty if it can.
    """

    topic: str
    value: Any
    severity: str
    source: str
    time_ns: int
    number: int
    is_kept: bool = False
    problem: str = ""

    @classmethod
    def of(cls, event: protocol.Event) -> Event:
        """Return the event that a message carried."""
        value, problem = _read(event.value)
        return cls(
            event.topic,
            value,
            event.severity,
            event.source,
            event.time_ns,
            event.number,
            event.is_kept,
            problem,
        )


def _read(packed: bytes) -> tuple[Any, str]:
    """Return the value and no problem, or None and what is wrong: in short, then why.

    No error: one value that a program in another language got wrong, say, is
    not to hide all the others.
    """
    try:
        return unpack(packed), ""
    except CodecError as error:
        why = str(error).partition("\n")[0]
        return None, f"unreadable: {len(packed)} bytes\n  {why}"
