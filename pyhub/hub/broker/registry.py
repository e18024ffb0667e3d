"""What the broker knows: programs, their channels, their readers. Does no I/O.

Everything here is soft: programs say it again when they meet a new broker, and
it is dropped when they say goodbye, die, or fall silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from pyhub.errors import InvalidName
from pyhub.hub import protocol
from pyhub.hub.protocol import ChannelInfo, Refused, ReplyBody, RequestBody
from pyhub.names import check_name

__all__ = ["Program", "Registry"]

MAX_CHANNELS_PER_PROGRAM = 4096


@dataclass
class Program:
    """A connected program."""

    hello: protocol.Hello
    last_heard: float
    channels: dict[str, ChannelInfo] = field(default_factory=dict)
    # its number for a reader -> name and segment id of what that one reads
    readers: dict[int, tuple[str, str]] = field(default_factory=dict)


class Registry:
    """Answers requests and forgets the dead.

    Parameters
    ----------
    epoch
        Tells this broker from the one before it.
    endpoint_of
        Where the notifications of a channel are to be published.
    heartbeat_s
        How often programs are asked to ping.
    """

    def __init__(
        self, epoch: str, endpoint_of: Callable[[str], str], heartbeat_s: float = 1.0
    ) -> None:
        self.epoch = epoch
        self._endpoint_of = endpoint_of
        self._heartbeat_s = heartbeat_s
        self.programs: dict[bytes, Program] = {}
        self.channels: dict[str, bytes] = {}  # name -> who has it
        self._n_readers: Counter[tuple[str, str]] = Counter()  # of a name and segment id

    def answer(self, peer: bytes, body: RequestBody, now: float) -> ReplyBody:
        """Return the reply to what `peer` sent at `now` (monotonic, s)."""
        if isinstance(body, protocol.Hello):
            return self._hello(peer, body, now)
        program = self.programs.get(peer)
        if program is None:
            return Refused("no_hello", "say hello first; the broker may have been restarted")
        program.last_heard = now
        try:
            return self._act(peer, program, body)
        except InvalidName as error:
            return Refused("bad_message", str(error)[:200])

    def forget(self, peer: bytes) -> list[str]:
        """Drop a program and what it had; the names of its channels."""
        program = self.programs.pop(peer, None)
        if program is None:
            return []
        for reader in list(program.readers):
            self._detach(program, reader)
        names = [name for name in program.channels if self.channels.get(name) == peer]
        for name in names:
            del self.channels[name]
        return names

    def expire(
        self, now: float, silence_s: float, is_alive: Callable[[protocol.Hello], bool]
    ) -> list[str]:
        """Drop programs that died or fell silent; the names of their channels."""
        gone = [
            peer
            for peer, program in self.programs.items()
            if now - program.last_heard > silence_s or not is_alive(program.hello)
        ]
        return [name for peer in gone for name in self.forget(peer)]

    def _hello(self, peer: bytes, hello: protocol.Hello, now: float) -> ReplyBody:
        if hello.protocol != protocol.PROTOCOL:
            return Refused(
                "protocol",
                f"this broker speaks protocol {protocol.PROTOCOL}, the program {hello.protocol}: "
                "bring both to the same version of pyhub",
            )
        self.forget(peer)  # it starts afresh
        self.programs[peer] = Program(hello, now)
        return self._welcome()

    def _welcome(self) -> ReplyBody:
        return protocol.Welcome(protocol.PROTOCOL, self.epoch, self._heartbeat_s)

    def _act(self, peer: bytes, program: Program, body: RequestBody) -> ReplyBody:
        if isinstance(body, protocol.Ping):
            return self._welcome()
        if isinstance(body, protocol.Register):
            return self._register(peer, program, body.channel)
        if isinstance(body, protocol.Unregister):
            channel = program.channels.get(check_name(body.name))
            if channel is not None and channel.segment_id == body.segment_id:
                del program.channels[body.name]
                if self.channels.get(body.name) == peer:
                    del self.channels[body.name]
        elif isinstance(body, protocol.LookUp):
            return protocol.Found(
                self._endpoint_of(check_name(body.name)), self._channel(body.name)
            )
        elif isinstance(body, protocol.ReaderAttached):
            key = (check_name(body.name), body.segment_id)
            self._detach(program, body.reader)
            if len(program.readers) >= MAX_CHANNELS_PER_PROGRAM:
                return Refused("too_many", f"more than {MAX_CHANNELS_PER_PROGRAM} readers")
            program.readers[body.reader] = key
            self._n_readers[key] += 1
        elif isinstance(body, protocol.ReaderDetached):
            self._detach(program, body.reader)
        elif isinstance(body, protocol.ListChannels):
            return protocol.Channels(
                [info for name in sorted(self.channels) if (info := self._channel(name))]
            )
        elif isinstance(body, protocol.Goodbye):
            self.forget(peer)
        return protocol.Done()

    def _register(self, peer: bytes, program: Program, channel: ChannelInfo) -> ReplyBody:
        holder = self.programs.get(self.channels.get(channel.name, b""))
        # On one host the segment itself settles whose the name is: only one
        # process could create it. Another host's claim is refused.
        if holder is not None and holder.hello.host != program.hello.host:
            return Refused(
                "name_taken",
                f"channel {channel.name!r} belongs to pid {holder.hello.pid} "
                f"on {holder.hello.host}",
            )
        is_more = channel.name not in program.channels
        if is_more and len(program.channels) >= MAX_CHANNELS_PER_PROGRAM:
            return Refused("too_many", f"more than {MAX_CHANNELS_PER_PROGRAM} channels")
        program.channels[channel.name] = channel
        self.channels[channel.name] = peer
        return protocol.Registered(self._endpoint_of(channel.name))

    def _channel(self, name: str) -> ChannelInfo | None:
        holder = self.programs.get(self.channels.get(name, b""))
        if holder is None:
            return None
        channel = holder.channels[name]
        return msgspec.structs.replace(channel, n_readers=self._n_readers[name, channel.segment_id])

    def _detach(self, program: Program, reader: int) -> None:
        key = program.readers.pop(reader, None)
        if key is not None:
            self._n_readers[key] -= 1
            if not self._n_readers[key]:
                del self._n_readers[key]


def endpoint_digest(name: str) -> str:
    """Return a short name for a channel's socket: paths of sockets are short."""
    import hashlib  # loads OpenSSL, which takes a fifth of all that pyhub loads

    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
