"""Messages as bytes: what travels between programs and the broker, and on notification channels.

To the broker: one frame, MessagePack of `Request`; from it: `Reply` with the
same `id`, or with id 0 a push, which nobody asked for just then. All are
bounded and typed: what does not decode is refused, never guessed at. A request
does no harm when it is repeated: who got no answer sends it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import msgspec

from pyhub.datablock import Notification
from pyhub.errors import InvalidName
from pyhub.hub.protocol import channels, events, programs, services, state

__all__ = [
    "MAX_MESSAGE_BYTES", "MAX_REPLY_BYTES", "OLDEST", "PROTOCOL", "PushBody", "REQUESTS_1",
    "Reply", "ReplyBody",
    "Request", "RequestBody", "decode_notification", "decode_reply", "decode_request", "encode",
    "encode_notification", "id_of",
]  # fmt: skip

T = TypeVar("T")

# Neighbouring versions talk: each adds messages, and fields with defaults, only.
PROTOCOL = 2
OLDEST = PROTOCOL - 1
MAX_MESSAGE_BYTES = 64 * 1024
MAX_REPLY_BYTES = 16 * MAX_MESSAGE_BYTES  # a page of a list

# What a broker of protocol 1 understands.
REQUESTS_1 = (
    programs.Hello,
    programs.Ping,
    programs.Goodbye,
    channels.Register,
    channels.Unregister,
    channels.LookUp,
    channels.ReaderAttached,
    channels.ReaderDetached,
    channels.ListChannels,
)

RequestBody: TypeAlias = (
    programs.Hello
    | programs.Ping
    | programs.Goodbye
    | programs.ListPrograms
    | programs.Shutdown
    | channels.Register
    | channels.Unregister
    | channels.Report
    | channels.LookUp
    | channels.ReaderAttached
    | channels.ReaderDetached
    | channels.ListChannels
    | services.Offer
    | services.Withdraw
    | services.Hold
    | services.ListServices
    | services.Call
    | services.Cancel
    | services.Outcome
    | services.Progress
    | state.GetState
    | state.SetState
    | state.Watch
    | state.Unwatch
    | events.Publish
)

ReplyBody: TypeAlias = (
    programs.Welcome
    | programs.Done
    | programs.Refused
    | programs.Programs
    | channels.Registered
    | channels.Found
    | channels.Channels
    | services.Accepted
    | services.Services
    | services.Finished
    | state.Stated
    | state.Conflict
    | state.Watching
)

PushBody: TypeAlias = (
    services.Execute
    | services.Abort
    | services.Finished
    | services.Progressed
    | state.StateChanged
    | events.EventHappened
)


class Request(msgspec.Struct, frozen=True):
    """A message to the broker; the reply carries the same `id`. With id 0 there is none."""

    id: int
    body: RequestBody


class Reply(msgspec.Struct, frozen=True):
    """A message from the broker; id 0: a push."""

    id: int
    body: ReplyBody | PushBody


class _Id(msgspec.Struct):
    id: int


_encoder = msgspec.msgpack.Encoder()
_ids = msgspec.msgpack.Decoder(_Id)
_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)
_notifications = msgspec.msgpack.Decoder(Notification)


# A message as bytes.
encode: Callable[[Request | Reply], bytes] = _encoder.encode


def decode_request(frame: bytes) -> Request:
    """Return the request that `frame` holds.

    Raises
    ------
    ValueError
        It is too long, no message, or a field is out of bounds.
    """
    return _bounded(_requests, frame, MAX_MESSAGE_BYTES)


def id_of(frame: bytes) -> int | None:
    """Return the id of a request whose body could not be read; None if not even that can be.

    So that a program of a later version is told that its message means nothing here.
    """
    try:
        return _ids.decode(frame).id
    except (msgspec.MsgspecError, RecursionError):
        return None


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
