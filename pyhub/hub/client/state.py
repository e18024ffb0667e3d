"""The hub's state: values by key that every program sees, and that outlive their setter."""

from __future__ import annotations

import os
from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from typing import Any

from pyhub.errors import CodecError, VersionConflict
from pyhub.hub import protocol
from pyhub.hub.client.connection import Connection
from pyhub.hub.client.entries import StateEntry
from pyhub.hub.client.refusals import expected
from pyhub.hub.client.values import pack
from pyhub.hub.client.watching import StateFeed, Watching
from pyhub.names import check_topic

__all__ = ["State"]


class State(MutableMapping[str, Any]):
    """The state of a hub, as a dictionary from keys to values.

    ``hub.state["cam1/exposure_s"] = 0.1``: set for all programs, with a new
    version. Values are what a flex zone may hold, of up to 48 KiB. Each access
    asks the broker; to follow changes, `watch`. Values stay when their setter
    ends, and when the broker is killed; not when the host loses power.

    What another program set may not be readable, if it is none of pyhub's, or
    of a newer one: ``hub.state[key]`` then raises `CodecError`; where several
    keys are told, its value is None, and its entry has a `problem`.
    """

    def __init__(self, connection: Connection, watching: Watching) -> None:
        self._connection = connection
        self._watching = watching

    def __getitem__(self, key: str) -> Any:
        entry = self.entry(key)
        if entry is None:
            raise KeyError(key)
        if entry.problem:
            raise CodecError(
                f"the value of {key!r}, set by {entry.source}, is {entry.problem}\n"
                "  Set it again, or delete it. If that program's pyhub is newer: conda update pyhub"
            )
        return entry.value

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter([entry.key for entry in self._listed("*")])

    def __len__(self) -> int:
        return len(self._listed("*"))

    def items(self) -> ItemsView[str, Any]:
        """Return all keys with their values, as of one version."""
        return {entry.key: entry.value for entry in self.entries()}.items()

    def values(self) -> ValuesView[Any]:
        """Return all values, as of one version."""
        return {entry.key: entry.value for entry in self.entries()}.values()

    def clear(self) -> None:
        """Delete all keys."""
        for key in self:
            self.delete(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.entry(key) is not None

    def __repr__(self) -> str:
        return "<State of the hub: iterate over it, or print(dict(hub.state.items()))>"

    def entry(self, key: str) -> StateEntry | None:
        """Return a key's value with its version, time and source; None: there is none."""
        reply = self._connection.ask(protocol.GetState(check_topic(key)), protocol.Stated)
        return None if reply.entry is None else StateEntry.of(reply.entry)

    def entries(self, pattern: str = "*") -> list[StateEntry]:
        """Return all matching keys as of one version, by name; ``cam1/*`` is all below cam1."""
        return [StateEntry.of(entry) for entry in self._listed(pattern)]

    def set(self, key: str, value: Any, *, if_version: int | None = None) -> StateEntry:
        """Set a key and return its entry, with the new version.

        Parameters
        ----------
        if_version
            Only if the key still has that version; 0: only if there is no
            such key.

        Raises
        ------
        VersionConflict
            It has another one; nothing was set.
        CodecError, CapacityError
            The value cannot be shared, or is too large.
        """
        entry = _stated(key, self._connection.ask(_change(key, value, if_version), object))
        assert entry is not None
        return entry

    async def aset(self, key: str, value: Any, *, if_version: int | None = None) -> StateEntry:
        """Do what `set` does without holding up the event loop."""
        reply = await self._connection.aask(_change(key, value, if_version), object)
        entry = _stated(key, reply)
        assert entry is not None
        return entry

    async def aentry(self, key: str) -> StateEntry | None:
        """Do what `entry` does without holding up the event loop."""
        reply = await self._connection.aask(protocol.GetState(check_topic(key)), protocol.Stated)
        return None if reply.entry is None else StateEntry.of(reply.entry)

    def delete(self, key: str, *, if_version: int | None = None) -> bool:
        """Delete a key and return whether it was there; `if_version` as for `set`."""
        body = protocol.SetState(os.urandom(12), check_topic(key), None, if_version)
        return _stated(key, self._connection.ask(body, object)) is not None

    def watch(self, pattern: str = "*") -> StateFeed:
        """Return a feed of what matching keys have, then of every change of them.

        Returns when the broker has told what is there: all of it can be taken.
        Close it, or use it as a context, when it is no longer needed.
        """
        return self._watching.state(pattern)

    def _listed(self, pattern: str) -> list[protocol.StateEntry]:
        """Return what is there, with values as they came: most callers need none of them."""
        with self._watching.state(pattern) as feed:
            # Changes may have come after what was there.
            newest = {entry.key: entry for entry in feed.drain()}
        return [newest[key] for key in sorted(newest) if newest[key].value is not None]


def _change(key: str, value: Any, if_version: int | None) -> protocol.SetState:
    packed = pack(f"the value of {key!r}", value)
    # The random name makes a repetition harmless, at the next broker too.
    return protocol.SetState(os.urandom(12), check_topic(key), packed, if_version)


def _stated(key: str, reply: object) -> StateEntry | None:
    if isinstance(reply, protocol.Conflict):
        there = reply.entry
        what = "is not there" if there is None else f"has version {there.version} ({there.source})"
        raise VersionConflict(
            f"the key {key!r} {what}: somebody else changed it.\n"
            "  Read it again, and decide whether yours is still to be set."
        )
    stated = expected(reply, protocol.Stated)  # type: ignore[arg-type]
    return None if stated.entry is None else StateEntry.of(stated.entry)
