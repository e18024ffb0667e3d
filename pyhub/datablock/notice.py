"""What a producer says of a publish: to `end_publish`, and to those who wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from pyhub._datablock import ZONE_FLEX, ZONE_STRUCTURED
from pyhub.codec import Encoding

__all__ = ["Notification", "Notify", "ZoneUpdateInfo"]


class ZoneUpdateInfo(NamedTuple):
    """Which zones a publication changed, for `DataBlockProducer.end_publish`.

    Attributes
    ----------
    flex_zone, structured_buffer
        Whether that zone was written.
    flex_zone_size
        Valid bytes of the flex zone, if it was written.
    structured_buffer_size
        Valid bytes of the frame; None: a whole one.
    encoding
        How the flex zone is written.
    frame_id
        The producer's own number for the frame; None: counted from 0.
    timestamp_ns
        Wall clock, ns since 1970; 0: the moment of `end_publish`.
    """

    flex_zone: bool = False
    structured_buffer: bool = False
    flex_zone_size: int = 0
    structured_buffer_size: int | None = None
    encoding: Encoding = Encoding.MSGPACK
    frame_id: int | None = None
    timestamp_ns: int = 0


class Notification(NamedTuple):
    """One publish, as told to those who wait for it.

    Attributes
    ----------
    commit
        Counter of publishes of any zone.
    flex_zone_version, structured_buffer_version
        Counters of publishes that changed that zone.
    zones
        Bits: 1 the flex zone changed, 2 the structured buffer.
    frame_id
        Of the newest frame, if this publish brought it; else -1.
    """

    commit: int
    flex_zone_version: int
    structured_buffer_version: int
    zones: int
    frame_id: int

    @property
    def flex_zone(self) -> bool:
        """Whether the flex zone changed."""
        return bool(self.zones & ZONE_FLEX)

    @property
    def structured_buffer(self) -> bool:
        """Whether there is a new frame."""
        return bool(self.zones & ZONE_STRUCTURED)


# How a producer tells of a publish. The hub's client supplies one; a producer
# without a hub has none, and its readers watch the commit word.
Notify: TypeAlias = Callable[[Notification], None]
