"""Which programs are there, which channels they have, and who reads those. Does no I/O.

Everything here is soft: programs say it again when they meet a new broker, and
it is dropped when they say goodbye, die, or fall silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from pyhub.hub import protocol
from pyhub.hub.broker.rights import Client
from pyhub.hub.protocol import ChannelInfo, ChannelMetrics, Refused
from pyhub.names import check_name

__all__ = ["Program", "Registry", "page_of"]

T = TypeVar("T")

MAX_PROGRAMS = 4096
# Of one key, so that nobody takes all places; the broker's own user may.
MAX_PROGRAMS_PER_KEY = 1000
MAX_CHANNELS_PER_PROGRAM = 4096
PAGE = 1000
# Of descriptions that are long there are fewer on a page: it must fit into a reply.
_PAGE_BYTES = protocol.MAX_REPLY_BYTES // 2
# A program pings every second: one that was not heard for so long is in doubt,
SILENT_S = 1.5
# and one that missed three is gone; with a tick, death is seen within 4 s.
GONE_S = 3.5
# So long after its start, a broker says "pending" of what it does not know: it
# may have been there under the one before.
COMING_BACK_S = 5.0


@dataclass
class Program:
    """A connected program."""

    number: int
    client: Client
    hello: protocol.Hello
    protocol: int  # what both speak
    last_heard: float
    channels: dict[str, ChannelInfo] = field(default_factory=dict)
    metrics: dict[str, ChannelMetrics] = field(default_factory=dict)  # by segment id
    # its number for a reader -> name and segment id of what that one reads
    readers: dict[int, tuple[str, str]] = field(default_factory=dict)
    n_pushed: int = 0
    n_dropped: int = 0  # of those, how many found no room
    source: str = field(init=False)  # what others are told of who did something

    def __post_init__(self) -> None:
        self.belong_to(self.client)

    def belong_to(self, client: Client) -> None:
        """Have it be that client's from now on."""
        self.client = client
        # The client's name is its key's; all else is what the program says of itself.
        where = f"{self.hello.pid}@{self.hello.host[:80]}"
        self.source = f"{self.hello.name[:80]} ({client.name[:64]}, {where})".lstrip()


class Registry:
    """Knows who is there and who has what.

    Parameters
    ----------
    epoch
        Tells this broker from the one before it.
    endpoint_of
        Where the notifications of a channel are to be published.
    heartbeat_s
        How often programs are asked to ping.
    now
        When this broker began, s.
    """

    def __init__(
        self,
        epoch: str,
        endpoint_of: Callable[[str], str],
        heartbeat_s: float = 1.0,
        now: float = 0.0,
    ) -> None:
        self.epoch = epoch
        self._endpoint_of = endpoint_of
        self._heartbeat_s = heartbeat_s
        self._began = now
        self.n_met = 0  # hellos that were taken, ever
        self.programs: dict[bytes, Program] = {}
        self.channels: dict[str, bytes] = {}  # name -> who has it
        self._n_readers: Counter[tuple[str, str]] = Counter()  # of a name and segment id

    # --- Programs ---

    def hello(
        self, peer: bytes, client: Client, body: protocol.Hello, now: float
    ) -> protocol.Welcome | Refused:
        """Take a program in, whoever it was before."""
        if not protocol.OLDEST <= body.protocol <= protocol.PROTOCOL + 1:
            return Refused(
                "protocol",
                f"this broker speaks protocol {protocol.PROTOCOL}, the program {body.protocol}: "
                "bring both to neighbouring versions of pyhub",
            )
        if len(self.programs) >= MAX_PROGRAMS:
            return Refused("too_many", f"more than {MAX_PROGRAMS} programs")
        if not client.is_own and self._n_programs_of(client) >= MAX_PROGRAMS_PER_KEY:
            return Refused(
                "too_many",
                f"more than {MAX_PROGRAMS_PER_KEY} programs of client {client.name!r}",
            )
        spoken = min(body.protocol, protocol.PROTOCOL)
        self.n_met += 1
        self.programs[peer] = Program(self.n_met, client, body, spoken, now)
        return self.welcome(self.programs[peer])

    def welcome(self, program: Program) -> protocol.Welcome:
        """Return what a program is told that is there."""
        return protocol.Welcome(program.protocol, self.epoch, self._heartbeat_s, program.n_pushed)

    def forget(self, peer: bytes) -> list[str]:
        """Drop a program and what it had; the names of its channels."""
        program = self.programs.pop(peer, None)
        if program is None:
            return []
        for reader in list(program.readers):
            self.detach(program, reader)
        names = [name for name in program.channels if self.channels.get(name) == peer]
        for name in names:
            del self.channels[name]
        return names

    def silent(self, now: float) -> list[bytes]:
        """Return the programs that fell silent."""
        return [p for p, program in self.programs.items() if now - program.last_heard > GONE_S]

    # --- Channels ---

    def register(
        self, peer: bytes, program: Program, channel: ChannelInfo
    ) -> protocol.Registered | Refused:
        """Note that `program` has that channel."""
        holder = self.programs.get(self.channels.get(channel.name, b""))
        # Of one user on one host the segment itself settles whose the name is:
        # only one process could create it. Anybody else's claim is refused.
        if holder is not None and (holder.hello.host, holder.client.key) != (
            program.hello.host,
            program.client.key,
        ):
            return Refused(
                "name_taken",
                f"channel {channel.name!r} belongs to pid {holder.hello.pid} "
                f"on {holder.hello.host}",
            )
        is_more = channel.name not in program.channels
        if is_more and len(program.channels) >= MAX_CHANNELS_PER_PROGRAM:
            return Refused("too_many", f"more than {MAX_CHANNELS_PER_PROGRAM} channels")
        former = program.channels.get(channel.name)
        if former is not None and former.segment_id != channel.segment_id:
            program.metrics.pop(former.segment_id, None)
        program.channels[channel.name] = channel
        self.channels[channel.name] = peer
        return protocol.Registered(self._endpoint_of(channel.name))

    def unregister(self, peer: bytes, program: Program, body: protocol.Unregister) -> bool:
        """Forget a channel; whether it was that program's."""
        channel = program.channels.get(check_name(body.name))
        if channel is None or channel.segment_id != body.segment_id:
            return False
        del program.channels[body.name]
        program.metrics.pop(body.segment_id, None)
        if self.channels.get(body.name) != peer:
            return False
        del self.channels[body.name]
        return True

    def report(self, program: Program, body: protocol.Report) -> None:
        """Note what a program's channels counted."""
        own = {channel.segment_id for channel in program.channels.values()}
        program.metrics.update({i: m for i, m in body.metrics.items() if i in own})

    def look_up(self, name: str, now: float) -> protocol.Found:
        """Say at once what is known of a channel: who waits does so himself."""
        channel = self._channel(check_name(name), now)
        status, reason = "ready", ""
        if channel is None and now - self._began < COMING_BACK_S:
            status = "pending"
            reason = "the broker has just started; programs are still coming back to it"
        elif channel is None:
            status, reason = "not_found", "no program has registered a channel of that name"
        elif channel.liveness != "live":
            status = "pending"
            reason = f"its program (pid {channel.pid} on {channel.host}) misses its heartbeats"
        return protocol.Found(self._endpoint_of(name), channel, status, reason)

    def list(self, after: str, may_read: Callable[[str], bool], now: float) -> protocol.Channels:
        """Return a page of the channels, by name."""
        names = sorted(name for name in self.channels if name > after and may_read(name))
        found = (self._channel(name, now) for name in names)
        return protocol.Channels(*page_of((each for each in found if each is not None), PAGE))

    # --- Readers ---

    def attach(self, program: Program, body: protocol.ReaderAttached) -> Refused | None:
        """Count a reader of a segment."""
        key = (check_name(body.name), body.segment_id)
        self.detach(program, body.reader)
        if len(program.readers) >= MAX_CHANNELS_PER_PROGRAM:
            return Refused("too_many", f"more than {MAX_CHANNELS_PER_PROGRAM} readers")
        program.readers[body.reader] = key
        self._n_readers[key] += 1
        return None

    def detach(self, program: Program, reader: int) -> None:
        """Count it no longer."""
        key = program.readers.pop(reader, None)
        if key is not None:
            self._n_readers[key] -= 1
            if not self._n_readers[key]:
                del self._n_readers[key]

    def _n_programs_of(self, client: Client) -> int:
        return sum(program.client.key == client.key for program in self.programs.values())

    def _channel(self, name: str, now: float) -> ChannelInfo | None:
        holder = self.programs.get(self.channels.get(name, b""))
        if holder is None:
            return None
        channel = holder.channels[name]
        return msgspec.structs.replace(
            channel,
            n_readers=self._n_readers[name, channel.segment_id],
            producer=channel.producer or holder.hello.name,
            endpoint=self._endpoint_of(name),
            liveness="silent" if now - holder.last_heard > SILENT_S else "live",
            metrics=holder.metrics.get(channel.segment_id),
        )


def page_of(items: Iterable[T], n_most: int) -> tuple[list[T], bool]:
    """Return as many of `items` as one reply takes, at most `n_most`; and whether it is all."""
    page: list[T] = []
    n_bytes = 0
    for item in items:
        n_bytes += len(msgspec.msgpack.encode(item))
        if page and (len(page) >= n_most or n_bytes > _PAGE_BYTES):
            return page, False
        page.append(item)
    return page, True
