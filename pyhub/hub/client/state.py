"""The hub's state: values by key that every program sees, and that outlive their setter."""

from __future__ import annotations

import os
from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from typing import Any

from pyhub.errors import VersionConflict
from pyhub.hub import protocol
from pyhub.hub.client.connection import Connection, expected
from pyhub.hub.client.entries import StateEntry
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
    """

    def __init__(self, connection: Connection, watching: Watching) -> None:
        self._connection = connection
        self._watching = watching

    def __getitem__(self, key: str) -> Any:
        entry = self.entry(key)
        if entry is None:
            raise KeyError(key)
        return entry.value

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        if self.entry(key) is None:
            raise KeyError(key)
        self.delete(key)

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
        entry = _stated(self._connection.ask(_change(key, value, if_version), object))
        assert entry is not None
        return entry

    async def aset(self, key: str, value: Any, *, if_version: int | None = None) -> StateEntry:
        """Do what `set` does without holding up the event loop."""
        reply = await self._connection.aask(_change(key, value, if_version), object)
        entry = _stated(reply)
        assert entry is not None
        return entry

    async def aentry(self, key: str) -> StateEntry | None:
        """Do what `entry` does without holding up the event loop."""
        reply = await self._connection.aask(protocol.GetState(check_topic(key)), protocol.Stated)
        return None if reply.entry is None else StateEntry.of(reply.entry)

    def delete(self, key: str, *, if_version: int | None = None) -> None:
        """Delete a key, if it is there; `if_version` as for `set`."""
        body = protocol.SetState(os.urandom(12), check_topic(key), None, if_version)
        _stated(self._connection.ask(body, object))

    def watch(self, pattern: str = "*") -> StateFeed:
        """Return a feed of what matching keys have, then of every change of them.

        Close it, or use it as a context, when it is no longer needed.
        """
        return self._watching.state(pattern)

    def _listed(self, pattern: str) -> list[protocol.StateEntry]:
        """Return what is there, with values as they came: one may not be readable."""
        with self._watching.state(pattern) as feed:
            # Changes may have come after what was there.
            newest = {entry.key: entry for entry in feed.drain()}
        return [newest[key] for key in sorted(newest) if newest[key].value is not None]


def _change(key: str, value: Any, if_version: int | None) -> protocol.SetState:
    packed = pack(f"the value of {key!r}", value)
    # The random name makes a repetition harmless, at the next broker too.
    return protocol.SetState(os.urandom(12), check_topic(key), packed, if_version)


def _stated(reply: object) -> StateEntry | None:
    if isinstance(reply, protocol.Conflict):
        there = reply.entry
        what = "is not there" if there is None else f"has version {there.version} ({there.source})"
        raise VersionConflict(
            f"the key {what}: somebody else changed it.\n"
            "  Read it again, and decide whether yours is still to be set."
        )
    stated = expected(reply, protocol.Stated)  # type: ignore[arg-type]
    return None if stated.entry is None else StateEntry.of(stated.entry)
