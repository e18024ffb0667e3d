"""The messages between programs and the broker, and on notification channels.

To the broker: one frame, MessagePack of `Request`; from it: `Reply` with the
same `id`. All are bounded and typed: what does not decode is refused, never
guessed at. A request does no harm when it is repeated: who got no answer sends
it again.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias, TypeVar

import msgspec

from pyhub.datablock import Notification
from pyhub.errors import InvalidName
from pyhub.names import check_name

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_REPLY_BYTES",
    "PROTOCOL",
    "ChannelInfo",
    "Channels",
    "Done",
    "Found",
    "Goodbye",
    "Hello",
    "Lease",
    "ListChannels",
    "LookUp",
    "Ping",
    "ReaderAttached",
    "ReaderDetached",
    "Refused",
    "Register",
    "Registered",
    "Reply",
    "Request",
    "Unregister",
    "Welcome",
    "decode_notification",
    "decode_reply",
    "decode_request",
    "encode",
    "encode_notification",
]

T = TypeVar("T")

PROTOCOL = 1
MAX_MESSAGE_BYTES = 64 * 1024
MAX_REPLY_BYTES = 16 * MAX_MESSAGE_BYTES  # a list of some thousand channels

_Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=255)]
# A lease is an offset in a file: anything else, the kernel cannot be asked about.
Lease: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class ChannelInfo(msgspec.Struct, frozen=True):
    """What the broker knows of a channel."""

    name: str
    kind: str  # "datablock"
    dtype: str
    shape: tuple[int, ...]
    n_slots: int
    segment_id: str
    host: str
    pid: int
    n_readers: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        if max(len(self.kind), len(self.host), len(self.segment_id)) > 255 or (
            len(self.shape) > 8 or len(self.dtype) > 1023
        ):
            raise ValueError("a field is too long")


# --- Requests ---


class _Message(msgspec.Struct, tag_field="type", frozen=True):
    pass


class Hello(_Message, frozen=True):
    """The first message of a program; again after the broker changed."""

    protocol: int
    host: _Text
    pid: int
    lease: Lease  # of the program, in `lease_file`; how its host sees it die
    lease_file: Annotated[str, msgspec.Meta(max_length=4096)]


class Register(_Message, frozen=True):
    """This program has a channel."""

    channel: ChannelInfo


class Unregister(_Message, frozen=True):
    """This program closed its channel."""

    name: str
    segment_id: str


class LookUp(_Message, frozen=True):
    """Where is the channel of this name?"""

    name: str


class ReaderAttached(_Message, frozen=True):
    """This program's reader of that number reads the segment, and no other one."""

    reader: int
    name: _Text
    segment_id: _Text


class ReaderDetached(_Message, frozen=True):
    """This program's reader of that number reads nothing any more."""

    reader: int


class ListChannels(_Message, frozen=True):
    """Which channels are there?"""


class Ping(_Message, frozen=True):
    """Are you there, and the same broker as before?"""


class Goodbye(_Message, frozen=True):
    """This program leaves; it has nothing any more."""


RequestBody: TypeAlias = (
    Hello
    | Register
    | Unregister
    | LookUp
    | ReaderAttached
    | ReaderDetached
    | ListChannels
    | Ping
    | Goodbye
)


class Request(msgspec.Struct, frozen=True):
    """A message to the broker; the reply carries the same `id`."""

    id: int
    body: RequestBody


# --- Replies ---


class Welcome(_Message, frozen=True):
    """To `Hello` and `Ping`. Another `epoch`: another broker than before."""

    protocol: int
    epoch: str
    heartbeat_s: float  # how often a program shall ping


class Registered(_Message, frozen=True):
    """To `Register`: where the channel's notifications are to be published."""

    endpoint: str


class Found(_Message, frozen=True):
    """To `LookUp`: where notifications are published; None: no such channel yet."""

    endpoint: str
    channel: ChannelInfo | None


class Channels(_Message, frozen=True):
    """To `ListChannels`."""

    channels: list[ChannelInfo]


class Done(_Message, frozen=True):
    """To everything that has no more to say."""


class Refused(_Message, frozen=True):
    """The broker understood, or could not understand, and does nothing."""

    code: str  # "bad_message", "no_hello", "protocol", "name_taken", "too_many"
    reason: str


ReplyBody: TypeAlias = Welcome | Registered | Found | Channels | Done | Refused


class Reply(msgspec.Struct, frozen=True):
    """A message from the broker."""

    id: int
    body: ReplyBody


_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)
_notifications = msgspec.msgpack.Decoder(Notification)


def encode(message: Request | Reply) -> bytes:
    """Return `message` as bytes."""
    return _encoder.encode(message)


def decode_request(frame: bytes) -> Request:
    """Return the request that `frame` holds.

    Raises
    ------
    ValueError
        It is too long, no message, or a field is out of bounds.
    """
    return _bounded(_requests, frame, MAX_MESSAGE_BYTES)


def decode_reply(frame: bytes) -> Reply:
    """Return the reply that `frame` holds; `ValueError` as for requests."""
    return _bounded(_replies, frame, MAX_REPLY_BYTES)


def encode_notification(notification: Notification) -> bytes:
    """Return a notification's payload: an array of its five integers."""
    return _encoder.encode(notification)


def decode_notification(payload: bytes) -> Notification:
    """Return the notification that `payload` holds; `ValueError` if none."""
    return _bounded(_notifications, payload, MAX_MESSAGE_BYTES)


def _bounded(decoder: msgspec.msgpack.Decoder[T], frame: bytes, max_bytes: int) -> T:
    if len(frame) > max_bytes:
        raise ValueError(f"a message of {len(frame)} bytes; at most {max_bytes}")
    try:
        return decoder.decode(frame)
    except (msgspec.MsgspecError, InvalidName, RecursionError) as error:
        raise ValueError(str(error)) from error
