"""Programs: greeting a broker, staying in touch, leaving; and what the broker says of itself."""

from __future__ import annotations

from typing import Annotated

import msgspec

from pyhub.hub.protocol.fields import Count, Lease, Message, Text

__all__ = [
    "Done", "Goodbye", "Hello", "ListPrograms", "Ping", "ProgramInfo", "Programs", "Refused",
    "Shutdown", "Welcome",
]  # fmt: skip


class Hello(Message, frozen=True):
    """The first message of a program; again after the broker changed."""

    protocol: int  # the newest that it speaks
    host: Text
    pid: int
    lease: Lease  # of the program, in `lease_file`; how its host sees it die
    lease_file: Annotated[str, msgspec.Meta(max_length=4096)]
    name: Text = ""  # what it calls itself


class Ping(Message, frozen=True):
    """Are you there, and the same broker as before?"""


class Goodbye(Message, frozen=True):
    """This program leaves; it has nothing any more."""


class Welcome(Message, frozen=True):
    """To `Hello` and `Ping`. Another `epoch`: another broker than before."""

    protocol: int  # what both speak from here on
    epoch: str
    heartbeat_s: float  # how often a program shall ping
    # Pushes sent to this program since its hello, with those that found no room:
    # who received fewer when this arrives has lost the others.
    n_pushed: Count = 0


class Done(Message, frozen=True):
    """To everything that has no more to say."""


class Refused(Message, frozen=True):
    """The broker understood, or could not understand, and does nothing."""

    code: str  # see `docs/reference/hub-protocol.md`
    reason: str


class ListPrograms(Message, frozen=True):
    """Who is there? For administrators."""

    after: Text = ""  # of a page: the last `ProgramInfo.id` of the page before


class ProgramInfo(msgspec.Struct, frozen=True):
    """A program as its broker sees it."""

    id: Text  # the broker's number for it
    name: str
    client: str  # its key's name in the list of clients
    role: str
    host: str
    pid: int
    silent_s: float
    n_channels: int
    n_services: int
    n_watches: int
    n_dropped: int  # pushes that found no room, as it did not read


class Programs(Message, frozen=True):
    """To `ListPrograms`; `counters` are the broker's own, of what it refused and dropped."""

    programs: list[ProgramInfo]
    counters: dict[str, int]
    is_last: bool = True


class Shutdown(Message, frozen=True):
    """End. For administrators."""
