"""Channels: who has which, where their notifications run, and who reads them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from pyhub.hub.protocol.fields import Count, Message, Name, Text
from pyhub.names import check_name

__all__ = [
    "ChannelInfo", "ChannelMetrics", "Channels", "Found", "ListChannels", "LookUp",
    "ReaderAttached", "ReaderDetached", "Register", "Registered", "Report", "Unregister",
]  # fmt: skip


class ChannelMetrics(msgspec.Struct, frozen=True):
    """What a channel's producer counted, as of its program's last heartbeat.

    Attributes
    ----------
    n_frames, n_dropped
        Published; and not published, because readers left no slot.
    rate_hz
        Frames a second between the last two reports.
    """

    n_frames: Count = 0
    n_dropped: Count = 0
    rate_hz: float = 0.0


class ChannelInfo(msgspec.Struct, frozen=True):
    """What the broker knows of a channel.

    Attributes
    ----------
    kind
        "datablock".
    dtype, shape, n_slots
        Of its frames, as text; of one frame; of the ring.
    host, pid, producer
        Where its producer runs, and what that program calls itself.
    endpoint
        Where its notifications are published; of use on that host only.
    access
        Who may attach: "uid 1000 on host, mode 0600".
    liveness
        "live", or "silent" when its program has missed heartbeats.
    metrics
        As of the last heartbeat; None before the first one.
    n_readers
        Consumers with a hub that read it now.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    n_slots: int
    segment_id: str
    host: str
    pid: int
    n_readers: int = 0
    producer: str = ""
    endpoint: str = ""
    access: str = ""
    liveness: str = "live"
    metrics: ChannelMetrics | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        texts = (self.kind, self.host, self.segment_id, self.producer, self.endpoint, self.access)
        if max(map(len, texts)) > 255 or len(self.shape) > 8 or len(self.dtype) > 1023:
            raise ValueError("a field is too long")


class Register(Message, frozen=True):
    """This program has a channel."""

    channel: ChannelInfo


class Unregister(Message, frozen=True):
    """This program closed its channel."""

    name: str
    segment_id: str


class Report(Message, frozen=True):
    """What this program's channels counted, by segment id."""

    metrics: Annotated[dict[Text, ChannelMetrics], msgspec.Meta(max_length=500)]


class LookUp(Message, frozen=True):
    """Where is the channel of this name?"""

    name: str


class ReaderAttached(Message, frozen=True):
    """This program's reader of that number reads the segment, and no other one."""

    reader: int
    name: Text
    segment_id: Text


class ReaderDetached(Message, frozen=True):
    """This program's reader of that number reads nothing any more."""

    reader: int


class ListChannels(Message, frozen=True):
    """Which channels are there?"""

    after: Name = ""  # of a page: the last name of the page before


class Registered(Message, frozen=True):
    """To `Register`: where the channel's notifications are to be published."""

    endpoint: str


class Found(Message, frozen=True):
    """To `LookUp`, at once: who waits does so itself.

    "ready"; "pending", for the `reason` given; or "not_found". The endpoint
    is where its notifications are, or will be, published.
    """

    endpoint: str
    channel: ChannelInfo | None
    status: str = "ready"
    reason: str = ""


class Channels(Message, frozen=True):
    """To `ListChannels`: by name; unless `is_last`, there are more."""

    channels: list[ChannelInfo]
    is_last: bool = True
