"""The consumer's side of a DataBlock: find it, read frames, outlive its producers."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhub._core import lease_is_alive
from pyhub._datablock import EMPTY, OVERRUN, DataBlock
from pyhub.codec import decode
from pyhub.datablock.frame import Frame, LiveView
from pyhub.datablock.header import Header, read_header
from pyhub.datablock.view import slot_view
from pyhub.datablock.waiting import Waiter, WordWaiter
from pyhub.errors import (
    ChannelClosed,
    LayoutError,
    Overrun,
    ProducerDied,
    PyhubError,
    SegmentNotFound,
    SegmentStale,
    WaitTimeout,
)
from pyhub.layout import FrameLayout, text_to_dtype
from pyhub.names import lease_path, segment_path

__all__ = ["DataBlockConsumer"]

_log = logging.getLogger("pyhub.datablock")

# A sleeping consumer looks this often whether its producer still lives.
_SLICE_S = 0.05
# With no producer there, this often for the next one's segment: a file that
# appears, for which nobody can notify.
_AWAY_NAP_S = 0.01

# One way of picking the frame to read: a version, or None for the newest.
_Take: TypeAlias = Callable[["npt.NDArray[Any] | None"], "Frame | None"]


class DataBlockConsumer:
    """Reads the frames of a channel; never locks, never slows the producer.

    A consumer outlives its producers. When one comes back under the same name,
    with the same or another shape, reading goes on with the new segment, and
    the first frame of it says `is_restart`. When none is there, a wait ends at
    its deadline with `ProducerDied` or `ChannelClosed`, at once if it has no
    deadline; the next call waits for the next producer.

    One consumer serves one thread; `close` may be called from any.
    """

    def __init__(
        self, name: str, *, owner_uid: int | None = None, waiter: Waiter | None = None
    ) -> None:
        self.name = name
        self._owner_uid = os.geteuid() if owner_uid is None else owner_uid
        self._path = segment_path(name, self._owner_uid)
        self._waiter: Waiter = waiter or WordWaiter()
        self._block: DataBlock | None = None
        self._layout = FrameLayout(np.dtype(np.uint8), (0,))
        self._is_closed = False
        self._on_close: Callable[[], None] | None = None
        self._on_attach: Callable[[str], None] | None = None  # given the segment's id
        self._came_first = False
        self._cursor = 0  # version of the last frame given out
        self._flex_cursor = 0  # version of the last parameters given out
        self._is_restart = False  # the next frame is the first of another producer
        self.n_read = 0
        self.n_lost = 0
        self.n_restarts = 0

    # --- Life ---

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        owner_uid: int | None = None,
        timeout_s: float | None = 0.0,
        waiter: Waiter | None = None,
    ) -> DataBlockConsumer:
        """Return a consumer of the channel `name`.

        Parameters
        ----------
        name
            The channel's name.
        owner_uid
            User whose channel it is; default: this process's.
        timeout_s
            How long to wait for its producer; None: for ever.
        waiter
            What wakes it; the hub's client supplies one.

        Raises
        ------
        SegmentNotFound
            The channel did not appear in time.
        AbiMismatch, SegmentDamaged, SegmentStale, AccessDenied
            What has that name cannot be read.
        """
        consumer = cls(name, owner_uid=owner_uid, waiter=waiter)
        consumer.wait_for_producer(timeout_s)
        return consumer

    def wait_for_producer(self, timeout_s: float | None) -> None:
        """Attach to the channel, waiting for its producer if need be.

        A consumer that had to wait is given the producer's frames from the
        first on; one that comes later begins with the newest.

        Raises
        ------
        SegmentNotFound
            The channel did not appear in time.
        """
        deadline = _deadline(timeout_s)
        while not self._attach_block():
            self._came_first = True
            if time.monotonic() >= deadline:
                raise SegmentNotFound(
                    f"there is no channel {self.name!r} (waited {timeout_s} s).\n"
                    "  Start its producer, or look for the right name with: pyhub ls"
                )
            time.sleep(_AWAY_NAP_S)

    def close(self) -> None:
        """Stop reading; a call that waits in another thread ends with `ChannelClosed`.

        Arrays that were given out stay valid. May be called twice.
        """
        if not self._is_closed:
            self._is_closed = True
            self._waiter.close()
            on_close, self._on_close = self._on_close, None
            if on_close is not None:
                on_close()

    @property
    def is_closed(self) -> bool:
        """Whether this consumer was closed."""
        return self._is_closed

    def __enter__(self) -> DataBlockConsumer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- Facts ---

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the channel's frames, as of the present producer."""
        return self._layout.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the channel's largest frame, as of the present producer."""
        return self._layout.shape

    def header(self) -> Header:
        """Return what the channel's header says now. Never waits."""
        return read_header(self._attached())

    @property
    def lag_frames(self) -> int:
        """Frames published that this reader was not given yet."""
        return self._attached().snapshot()[4] - self._cursor

    @property
    def notification_socket(self) -> Any:
        """The ZeroMQ SUB socket of the channel's notifications, to poll.

        Raises
        ------
        PyhubError
            The consumer was made without a hub.
        """
        return self._waiter.socket

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when something was published.

        It is ZeroMQ's, which reports changes only: after it fired, read until
        `WaitTimeout` with ``timeout_s=0`` before waiting on it again.
        """
        return self._waiter.fileno()

    # --- Reading ---

    def read(self, timeout_s: float | None = 1.0, *, out: npt.NDArray[Any] | None = None) -> Frame:
        """Copy the newest complete frame that this reader was not given yet.

        A publish of parameters alone counts: it gives the same frame again,
        with the new parameters (`has_new_data` is False).

        Parameters
        ----------
        timeout_s
            How long to wait for something new; 0: do not wait, None: for ever.
        out
            Array of the channel's dtype and full shape to copy into, instead
            of a new one.

        Returns
        -------
        Frame
            Never torn; `n_lost` counts the frames that were passed over.

        Raises
        ------
        WaitTimeout
            Nothing new came, and the producer lives.
        ProducerDied, ChannelClosed
            Nothing new came, and the producer is gone.
        """
        return self._next(self._take_newest, timeout_s, out)

    async def aread(
        self, timeout_s: float | None = 1.0, *, out: npt.NDArray[Any] | None = None
    ) -> Frame:
        """Do what `read` does, without holding up the event loop."""
        deadline = _deadline(timeout_s)
        while True:
            block = self._attached()
            seen = block.commit
            frame = self._step(self._take_newest, out, deadline, timeout_s)
            if frame is not None:
                return frame
            slice_s = min(_SLICE_S, max(deadline - time.monotonic(), 0.0))
            if block.segment.is_closed:
                await asyncio.sleep(min(slice_s, _AWAY_NAP_S))
            else:
                await self._waiter.wait_async(block, seen, slice_s)

    def frames(self, timeout_s: float | None = None, *, follow: bool = False) -> Iterator[Frame]:
        """Return every frame in order, with exact counts of those that were lost.

        Starts with the newest frame, or with the one after the last that this
        reader was given. A channel of parameters only gives each newest object.

        Parameters
        ----------
        timeout_s
            How long to wait for each frame; None: for ever.
        follow
            Go on with the next producer when this one leaves. Otherwise the
            loop ends when the channel is closed.

        Raises
        ------
        ProducerDied
            The producer died and no other one came; not with `follow`.
        WaitTimeout
            No frame came in `timeout_s`.
        """
        while True:
            try:
                yield self._next(self._take_in_order, timeout_s, None)
            except ProducerDied as error:
                if not follow or self._is_closed:
                    raise
                _log.warning("%s", error)
                self._wait_for_return(timeout_s)
            except ChannelClosed:
                if self._is_closed or not follow:
                    return
                self._wait_for_return(timeout_s)

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def latest(self, timeout_s: float | None = 1.0) -> LiveView:
        """Return the newest frame where it lies, without copying it.

        Waits only if nothing has been published yet. Does not count as read.

        Raises
        ------
        WaitTimeout
            Nothing was published in time.
        Overrun
            The producer writes faster than its frames can be looked at: give
            the channel more slots.
        """
        deadline = _deadline(timeout_s)
        while True:
            block = self._attached()
            seen = block.commit
            status, _, version, frame_id, stamp, size, slot, flex_version, encoding, packed = (
                block.read(None, None)
            )
            if status == 0 and (size is not None or version == 0):
                break
            if time.monotonic() >= deadline:
                if status == EMPTY:
                    raise self._timeout(timeout_s)
                raise Overrun(
                    f"channel {self.name!r}: the newest frame is being overwritten all the time.\n"
                    "  Give the channel more slots when it is created (slots=4)."
                )
            self._sleep(block, seen, deadline)
        if size is None:
            data = np.empty(0, self._layout.dtype)
        else:
            data = slot_view(block, self._layout, slot, size)
        frame = Frame(data, frame_id, stamp, version, flex_version, encoding, packed)
        return LiveView(block, frame, slot)

    # --- The zones, without waiting ---

    def get_structured_data(self) -> npt.NDArray[Any] | None:
        """Return the newest frame where it lies, read-only; None: none yet.

        Safe after a notification; whether it was overwritten since, only
        `latest` can tell.
        """
        block = self._attached()
        status, _, _, _, _, size, slot, *_ = block.read(None, None)
        if status != 0 or size is None:
            return None
        return slot_view(block, self._layout, slot, size)

    def get_flexible_zone_data(self) -> dict[str, Any] | None:
        """Return the newest parameters; None: none yet."""
        status, *_, encoding, packed = self._attached().read(None, None)
        return None if status != 0 or packed is None else decode(packed, encoding)

    # --- How a frame is found ---

    def _next(self, take: _Take, timeout_s: float | None, out: npt.NDArray[Any] | None) -> Frame:
        """Wait until `take` finds a frame."""
        frame = take(out) if self._block is not None and not self._is_closed else None
        if frame is not None:
            return frame  # no clock is read when there is something to read
        deadline = _deadline(timeout_s)
        while True:
            block = self._attached()
            seen = block.commit
            frame = self._step(take, out, deadline, timeout_s)
            if frame is not None:
                return frame
            self._sleep(block, seen, deadline)

    def _step(
        self,
        take: _Take,
        out: npt.NDArray[Any] | None,
        deadline: float,
        timeout_s: float | None,
    ) -> Frame | None:
        """Take a frame if there is one; else look after the producer and the clock."""
        block = self._attached()
        frame = take(out)
        if frame is not None:
            return frame
        away = self._departure(block)
        if away is not None:
            # What it published before it left comes first.
            frame = take(out)
            if frame is not None:
                return frame
            if self._attach_block():
                return take(out)
            if timeout_s is None or time.monotonic() >= deadline:
                raise away
        elif time.monotonic() >= deadline:
            raise self._timeout(timeout_s)
        return None

    def _take_newest(self, out: npt.NDArray[Any] | None) -> Frame | None:
        block = self._attached()
        _, _, flex_version, _, version, _, _, _ = block.snapshot()
        if version == self._cursor and flex_version == self._flex_cursor:
            return None
        return self._copy(block, None, out)[1]

    def _take_in_order(self, out: npt.NDArray[Any] | None) -> Frame | None:
        block = self._attached()
        if block.structured_buffer_capacity == 0:
            return self._take_newest(out)
        wanted = self._cursor + 1
        while True:
            _, _, _, _, newest, _, n_filled, _ = block.snapshot()
            if newest == self._cursor:
                return None
            status, frame = self._copy(block, wanted, out)
            if status != OVERRUN:
                return frame
            # Everything older than the ring is lost. The oldest slot is the
            # next to be overwritten, so begin with the one after it.
            wanted = max(newest - n_filled + (2 if n_filled > 2 else 1), wanted + 1)

    def _copy(
        self, block: DataBlock, wanted: int | None, out: npt.NDArray[Any] | None
    ) -> tuple[int, Frame | None]:
        """Copy frame `wanted`, or the newest, and count what was passed over."""
        layout = self._layout
        data = np.empty(layout.shape, layout.dtype) if out is None else self._checked(out)
        status, _, version, frame_id, stamp, size, _, flex_version, encoding, packed = block.read(
            wanted, data
        )
        if status != 0:
            return status, None
        if size is None:
            data = np.empty(0, layout.dtype)
        elif size != layout.frame_bytes and layout.shape:
            data = data[: layout.shape_of(size)[0]]
        frame = Frame(data, frame_id, stamp, version, flex_version, encoding, packed)
        frame.has_new_data = version != self._cursor
        frame.has_new_flex = flex_version != self._flex_cursor
        frame.n_lost = version - self._cursor - 1 if frame.has_new_data else 0
        frame.is_restart, self._is_restart = self._is_restart, False
        self._cursor = version
        self._flex_cursor = flex_version
        self.n_lost += frame.n_lost
        self.n_read += 1
        return status, frame

    def _checked(self, out: npt.NDArray[Any]) -> npt.NDArray[Any]:
        layout = self._layout
        if out.dtype != layout.dtype or out.shape != layout.shape or not out.flags.c_contiguous:
            raise LayoutError(
                f"out is {out.dtype} {out.shape}, the frames of channel {self.name!r} are "
                f"{layout.dtype} {layout.shape}.\n"
                f"  Use numpy.empty({layout.shape}, {str(layout.dtype)!r}), C-contiguous."
            )
        return out

    # --- Producers come and go ---

    def _attached(self) -> DataBlock:
        if self._is_closed:
            raise ChannelClosed(
                f"this consumer of channel {self.name!r} was closed.\n  Attach again."
            )
        if self._block is None:
            raise PyhubError(f"this consumer of channel {self.name!r} is not attached.")
        return self._block

    def _attach_block(self) -> bool:
        """Map the segment that has the name now, if it is another than ours."""
        former = self._block
        if former is not None and former.segment.is_named():
            return False  # its producer died; the name still leads to what it left
        try:
            block = DataBlock.attach(self._path, self.name, self._owner_uid, False)
        except (FileNotFoundError, SegmentStale):
            return False
        if former is None and _left_by_the_dead(block, self._owner_uid):
            return False
        self._layout = FrameLayout(text_to_dtype(block.dtype), block.shape)
        self._block = block
        _, _, _, _, newest, _, n_filled, _ = block.snapshot()
        self._cursor = self._flex_cursor = 0
        if former is None and not self._came_first:
            # The newest frame is where a late reader begins.
            self._cursor = newest - 1 if n_filled else newest
        elif former is not None:
            self._is_restart = True
            self.n_restarts += 1
            _log.warning(
                "channel %r: its producer came back with %s %s (was %s %s)",
                self.name, block.dtype, block.shape, former.dtype, former.shape,
            )  # fmt: skip
        if self._on_attach is not None:
            self._on_attach(block.segment_id.hex())
        return True

    def _departure(self, block: DataBlock) -> ChannelClosed | None:
        """Return why nothing more will come from `block`, or None: something may."""
        segment = block.segment
        is_gone = not segment.is_named() or _left_by_the_dead(block, self._owner_uid)
        # Asked last: a producer that closes and exits is closed first.
        if segment.is_closed:
            return ChannelClosed(
                f"channel {self.name!r} was closed by its producer (pid {segment.owner_pid}).\n"
                "  Read again to wait for the next one."
            )
        if is_gone:
            return ProducerDied(
                f"the producer of channel {self.name!r} (pid {segment.owner_pid}) died without "
                "closing it.\n"
                "  Start it again: readers go on by themselves. pyhub clean removes what it left."
            )
        return None

    def _wait_for_return(self, timeout_s: float | None) -> None:
        deadline = _deadline(timeout_s)
        while not self._attach_block():
            if time.monotonic() >= deadline:
                raise self._timeout(timeout_s)
            self._attached()  # ends the wait when this consumer is closed
            time.sleep(_AWAY_NAP_S)

    def _sleep(self, block: DataBlock, seen: int, deadline: float) -> None:
        """Sleep until something may have changed, at most one slice."""
        slice_s = min(_SLICE_S, max(deadline - time.monotonic(), 0.0))
        if block.segment.is_closed:
            time.sleep(min(slice_s, _AWAY_NAP_S))
        else:
            self._waiter.wait(block, seen, slice_s)

    def _timeout(self, timeout_s: float | None) -> WaitTimeout:
        block = self._attached()
        state = f"pid {block.segment.owner_pid}" + (
            ", publishing right now" if block.is_writing else ""
        )
        return WaitTimeout(
            f"channel {self.name!r}: nothing new in {timeout_s} s; its producer lives ({state}).\n"
            "  It may be idle or stopped: see when it last published with pyhub info "
            f"{self.name}"
        )


def _left_by_the_dead(block: DataBlock, owner_uid: int) -> bool:
    return not lease_is_alive(lease_path(owner_uid), block.segment.owner_lease)


def _deadline(timeout_s: float | None) -> float:
    return float("inf") if timeout_s is None else time.monotonic() + timeout_s
