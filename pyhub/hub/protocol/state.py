"""State: values by key, each with a version; and watching keys and topics."""

from __future__ import annotations

from typing import Annotated

import msgspec

from pyhub.hub.protocol.fields import Count, Id, Message, Source, Topic, Value

__all__ = [
    "Conflict", "GetState", "SetState", "Stated", "StateChanged", "StateEntry", "Unwatch", "Watch",
    "Watching",
]  # fmt: skip


class StateEntry(msgspec.Struct, frozen=True):
    """A key's value as of a version.

    Attributes
    ----------
    value
        None: the key was deleted.
    version
        Larger than that of any change of any key before.
    time_ns
        When it was set, by the broker's wall clock.
    """

    key: Topic
    value: Value | None
    version: Count
    time_ns: int
    source: Source


class GetState(Message, frozen=True):
    """What has that key?"""

    key: Topic


class SetState(Message, frozen=True):
    """Set a key, or delete it (`value` None); `change` makes a repetition harmless.

    With `if_version` only if that is the key's version; 0: only if there is
    no such key.
    """

    change: Id
    key: Topic
    value: Value | None
    if_version: Count | None = None


class Stated(Message, frozen=True):
    """To `GetState` and `SetState`: the entry; None: there is none."""

    entry: StateEntry | None


class Conflict(Message, frozen=True):
    """To `SetState` with another `if_version`: what is there instead."""

    entry: StateEntry | None


class Watch(Message, frozen=True):
    """Push what is there of `subject` by that pattern, then every change.

    What is there comes with the watch's number, before `Watching`; changes
    come with number 0, once for all watches of a program.
    """

    watch: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    subject: Topic  # "state" or "events"
    pattern: Topic


class Unwatch(Message, frozen=True):
    """Push nothing for that watch any more."""

    watch: int


class Watching(Message, frozen=True):
    """To `Watch`: everything is there as of `version`."""

    version: Count


class StateChanged(Message, frozen=True):
    """Pushed: entries, in the order of their versions."""

    watch: int  # whose first ones these are; 0: changes, for whoever they match
    entries: list[StateEntry]
