"""The consumer's side of a DataBlock: find it, read frames, outlive its producers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pyhub._core import lease_is_alive
from pyhub._datablock import DataBlock
from pyhub._reading import SLICE, newest
from pyhub.datablock.attachment import Attachment
from pyhub.datablock.frame import Frame, LiveView
from pyhub.datablock.header import Header, read_header
from pyhub.datablock.pinned import PinnedFrame
from pyhub.datablock.policy import Policy
from pyhub.datablock.reader import Reader, reader_name
from pyhub.datablock.waiting import Listener, Wait, no_notifications, watch_word
from pyhub.errors import (
    ChannelClosed,
    Overrun,
    ProducerDied,
    PyhubError,
    WaitTimeout,
    WriterStalled,
)
from pyhub.layout import FrameLayout
from pyhub.process import process_state

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["DataBlockConsumer"]

_log = logging.getLogger("pyhub.datablock")

# With no producer there, this often for the next one's segment: a file that
# appears, for which nobody can notify.
_AWAY_NAP_S = 0.01

_T = TypeVar("_T", Frame, LiveView, PinnedFrame)


class DataBlockConsumer:
    """Reads the frames of a channel; never locks, and holds up no producer unless admitted to.

    A consumer outlives its producers. When one comes back under the same name,
    with the same or another shape, reading goes on with the new segment, and
    the first frame of it says `is_restart`. When none is there, a wait ends at
    its deadline with `ProducerDied` or `ChannelClosed`, at once if it has no
    deadline; the next call waits for the next producer.

    One consumer serves one thread; `close` may be called from any.
    """

    def __init__(
        self,
        name: str,
        *,
        policy: Policy | str | None = None,
        reader: str | None = None,
        wait: Wait | str | None = None,
        prefault: bool = False,
        owner_uid: int | None = None,
        listener: Listener | None = None,
    ) -> None:
        if wait is None:
            wait = "futex" if listener is None else "notification"
        self.name = name
        self._wait = Wait.of(wait)
        if listener is None and not self._wait.is_native:
            raise no_notifications(self._wait)
        self._listener = listener
        self._attachment = Attachment(name, owner_uid, prefault=prefault)
        self._policy = None if policy is None else Policy(policy)
        if reader is None and self._policy is not None and self._policy.needs_admission:
            reader = reader_name()
        self._reader = Reader(
            name, self._policy or Policy.LATEST, reader, self._wait, self._attachment.leases
        )
        self._is_read_in_order = self._policy is not None and self._policy.is_in_order
        self._is_closed = False
        self._on_close: Callable[[], None] | None = None
        self._on_attach: Callable[[str], None] | None = None  # given the segment's id
        self._came_first = False
        self._looked_at = -1  # publish counter at the last look

    # --- Life ---

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        policy: Policy | str | None = None,
        reader: str | None = None,
        wait: Wait | str | None = None,
        prefault: bool = False,
        owner_uid: int | None = None,
        timeout_s: float | None = 0.0,
    ) -> DataBlockConsumer:
        """Return a consumer of the channel `name`.

        Parameters
        ----------
        name
            The channel's name.
        policy
            Which frames `read`, `pin` and iteration give, and what happens to
            those that it cannot take in time: see `Policy`. Default: `read` and
            `pin` give the newest, iteration every one.
        reader
            A name under which the channel admits this reader: it may `pin`
            frames, and `pyhub info` shows it. Policies that need one get one
            made of program and pid.
        wait
            How it waits for frames: see `Wait`. Default: it sleeps, on a futex.
        prefault
            Have all pages mapped at once, and not when they are first looked at.
        owner_uid
            User whose channel it is; default: this process's.
        timeout_s
            How long to wait for its producer; None: for ever.

        Raises
        ------
        SegmentNotFound
            The channel did not appear in time.
        AbiMismatch, SegmentDamaged, SegmentStale, AccessDenied
            What has that name cannot be read.
        AdmissionRefused
            The channel has no place for a reader, one of that name already,
            or no patience for that policy.
        """
        consumer = cls(
            name, policy=policy, reader=reader, wait=wait, prefault=prefault, owner_uid=owner_uid
        )
        consumer.wait_for_producer(timeout_s)
        return consumer

    def wait_for_producer(self, timeout_s: float | None) -> None:
        """Attach to the channel, waiting for its producer if need be.

        A consumer that had to wait is given the producer's frames from the
        first on; one that comes later begins with the newest.

        Raises
        ------
        SegmentNotFound, SegmentStale
            The channel did not appear in time.
        """
        deadline = _deadline(timeout_s)
        while not self._renew():
            self._check_open()  # ends the wait when this consumer is closed
            self._came_first = True
            if time.monotonic() >= deadline:
                raise self._attachment.absence(timeout_s)
            time.sleep(_AWAY_NAP_S)

    def close(self) -> None:
        """Stop reading; a call that waits in another thread ends with `ChannelClosed`.

        Arrays that were given out stay mapped; those of pinned frames may be
        overwritten from now on. May be called twice.
        """
        if not self._is_closed:
            self._is_closed = True
            self._reader.leave()
            if self._listener is not None:
                self._listener.close()
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
        return self._attachment.layout.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the channel's largest frame, as of the present producer."""
        return self._attachment.layout.shape

    @property
    def n_restarts(self) -> int:
        """How often the producer came back with another segment."""
        return self._attachment.n_restarts

    def header(self) -> Header:
        """Return what the channel's header says now. Never waits."""
        return read_header(self._looked())

    @property
    def lag_frames(self) -> int:
        """Frames published that this reader was not given yet."""
        self._attached()
        return self._reader.lag_frames

    @property
    def n_read(self) -> int:
        """Frames that this reader was given."""
        return self._reader.n_read

    @property
    def n_lost(self) -> int:
        """Frames that this reader will not be given any more."""
        return self._reader.n_lost

    @property
    def policy(self) -> Policy | None:
        """Which frames it is given; None: `read` the newest, iteration every one."""
        return self._policy

    @property
    def reader(self) -> str | None:
        """The name under which the channel admitted this reader; None: it did not."""
        return self._reader.name

    @property
    def wait(self) -> Wait:
        """How it waits for frames."""
        return self._wait

    @property
    def notification_socket(self) -> Any:
        """The ZeroMQ SUB socket of the channel's notifications, to poll.

        Raises
        ------
        PyhubError
            It waits by another strategy, or was made without a hub.
        """
        return self._listening().socket

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when something was published.

        It is ZeroMQ's, which reports changes only: after it fired, read until
        `WaitTimeout` with ``timeout_s=0`` before waiting on it again.
        """
        return self._listening().fileno()

    # --- Reading ---

    def read(self, timeout_s: float | None = 1.0, *, out: npt.NDArray[Any] | None = None) -> Frame:
        """Copy the newest complete frame that this reader was not given yet.

        A publish of parameters alone counts: it gives the same frame again,
        with the new parameters (`has_new_data` is False). With a policy that
        has an order: the next frame.

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
        WriterStalled
            Nothing new came, and the producer's process is stopped.
        ProducerDied, ChannelClosed
            Nothing new came, and the producer is gone.
        """
        if not self._is_closed:
            # The whole way of a frame that is there, or that comes soon.
            frame = self._copy(self._is_read_in_order, out, timeout_s)
            if frame is not None:
                return frame
        return self._next(lambda wait_s: self._copy(self._is_read_in_order, out, wait_s), timeout_s)

    def look(self, timeout_s: float | None = 1.0) -> LiveView:
        """Do what `read` does, without copying: give the frame where it lies.

        ::

            with consumer.look() as frame:
                total = frame.data.sum()
                if frame.is_valid():  # no producer has written there meanwhile
                    print(total)

        Of a channel with n slots the newest frame stays until n more were
        published; `pin` keeps producers from it.

        Raises
        ------
        WaitTimeout, WriterStalled, ProducerDied, ChannelClosed
            As for `read`.
        """
        if not self._is_closed:
            frame = self._reader.way.look(LiveView, self._is_read_in_order, timeout_s)
            if frame is not None:
                return frame
        return self._next(
            lambda wait_s: self._reader.way.look(LiveView, self._is_read_in_order, wait_s),
            timeout_s,
        )

    def pin(self, timeout_s: float | None = 1.0) -> PinnedFrame:
        """Return a frame where it lies, read-only, and keep producers from it.

        ::

            with consumer.pin() as frame:
                total = frame.data.sum()

        The newest that this reader was not given yet, or, with a policy that
        has an order, the next one. A reader can hold 6 at a time. The pin goes
        with the frame object, not with arrays or tensors made of it: keep it.

        Raises
        ------
        AdmissionRefused
            This reader was not admitted: attach with `reader` or a policy.
        CapacityError
            It holds 6 frames.
        LayoutError
            The channel has parameters only.
        WaitTimeout, WriterStalled, ProducerDied, ChannelClosed
            As for `read`.
        """
        if not self._is_closed:
            frame = self._reader.pin(self._is_read_in_order, timeout_s)
            if frame is not None:
                return frame
        return self._next(
            lambda wait_s: self._reader.pin(self._is_read_in_order, wait_s), timeout_s
        )

    async def aread(
        self, timeout_s: float | None = 1.0, *, out: npt.NDArray[Any] | None = None
    ) -> Frame:
        """Do what `read` does, without holding up the event loop."""
        deadline = _deadline(timeout_s)
        is_quiet = False
        while True:
            block = self._attached()
            seen = block.commit
            frame = self._copy(self._is_read_in_order, out, 0.0)
            if frame is not None:
                return frame
            slice_s = min(SLICE, max(deadline - time.monotonic(), 0.0))
            if is_quiet or block.segment.is_closed or slice_s == 0.0:
                self._look_after(block, seen, deadline, timeout_s, timeout_s is not None)
            if block.segment.is_closed:
                await watch_word(block, seen, min(slice_s, _AWAY_NAP_S), _AWAY_NAP_S)
            elif self._listener is not None:
                await self._listener.wait_async(block, seen, slice_s)
            else:
                await watch_word(block, seen, slice_s, *([] if self._wait.sleeps else [0.0]))
            is_quiet = block.commit == seen

    def frames(self, timeout_s: float | None = None, *, follow: bool = False) -> Iterator[Frame]:
        """Return every frame in order, with exact counts of those that were lost.

        With policy `LATEST`: each newest frame.

        Starts with the newest frame, or with the one after the last that this
        reader was given. A channel of parameters only gives each newest object.

        Parameters
        ----------
        timeout_s
            How long to wait for each frame; None: for ever.
        follow
            Wait for the next producer when this one leaves. Otherwise the loop
            ends when the channel is closed, unless the next one is there by then.

        Raises
        ------
        ProducerDied
            The producer died and no other one came (with `follow`: in `timeout_s`).
        WaitTimeout
            No frame came in `timeout_s`.
        """
        in_order = self._policy is not Policy.LATEST

        def take(wait_s: float) -> Frame | None:
            return self._copy(in_order, None, wait_s)

        while True:
            try:
                frame = None if self._is_closed else take(0.0)
                yield frame or self._next(take, timeout_s, is_patient=False)
            except ProducerDied as error:
                if not follow or self._is_closed:
                    raise
                _log.warning("%s", error)
                self._wait_for_return(error, timeout_s)
            except ChannelClosed as error:
                if self._is_closed or not follow:
                    return
                self._wait_for_return(error, timeout_s)

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def latest(self, timeout_s: float | None = 1.0) -> LiveView:
        """Return the newest frame where it lies, without copying it.

        Waits only if nothing has been published yet. Does not count as read.

        Raises
        ------
        WaitTimeout
            Nothing was published in time.
        ProducerDied, ChannelClosed
            Nothing was published, and the producer is gone.
        Overrun
            The producer writes faster than its frames can be looked at: give
            the channel more slots.
        """
        deadline = _deadline(timeout_s)
        while True:
            block = self._looked()
            seen = block.commit
            view = newest(block, LiveView)
            if view is not None:
                return view
            is_late = time.monotonic() >= deadline
            if is_late or timeout_s is None:
                away = self._attachment.departure()
                if away is not None:
                    raise away
            if is_late:
                if seen == 0:
                    raise self._timeout(timeout_s)
                raise Overrun(
                    f"channel {self.name!r}: the newest frame is being overwritten all the time.\n"
                    "  Give the channel more slots when it is created (slots=4)."
                )
            self._sleep(block, seen, deadline)

    # --- The zones, without waiting ---

    def get_structured_data(self) -> npt.NDArray[Any] | None:
        """Return the newest frame where it lies, read-only; None: none yet.

        Safe after a notification; whether it was overwritten since, only
        `latest` can tell.
        """
        block = self._looked()
        view = newest(block, LiveView)
        return view.data if view is not None and view.version else None

    def get_flexible_zone_data(self) -> dict[str, Any] | None:
        """Return the newest parameters; None: none yet."""
        view = newest(self._looked(), LiveView, with_data=False)
        return None if view is None or view.packed is None else view.flex

    # --- How a frame is found ---

    def _next(
        self,
        take: Callable[[float], _T | None],
        timeout_s: float | None,
        *,
        is_patient: bool = True,
    ) -> _T:
        """Wait until `take` finds a frame; if patient, of the next producer, too.

        `take` waits by itself, if the strategy does.
        """
        deadline = _deadline(timeout_s, self._reader.began_s)
        is_quiet = False
        while True:
            block = self._attached()
            seen = block.commit
            frame = take(max(deadline - time.monotonic(), 0.0))
            if frame is not None:
                return frame
            if self._listener is None:
                is_quiet = block.commit == seen
            # Costs system calls: only when a slice of sleep brought nothing.
            if is_quiet or block.segment.is_closed or time.monotonic() >= deadline:
                self._look_after(
                    block, seen, deadline, timeout_s, is_patient and timeout_s is not None
                )
            if self._listener is not None or block.segment.is_closed:
                self._sleep(block, seen, deadline)
                is_quiet = block.commit == seen

    def _copy(
        self, in_order: bool, out: npt.NDArray[Any] | None, timeout_s: float | None
    ) -> Frame | None:
        if out is not None:
            self._reader.check(out)
        return self._reader.way.read(Frame, in_order, out, timeout_s)

    def _look_after(
        self,
        block: DataBlock,
        seen: int,
        deadline: float,
        timeout_s: float | None,
        is_patient: bool,
    ) -> None:
        """Go over to the next producer, or raise if the wait is over."""
        self._check_open()  # it may have been closed while it slept
        away = self._attachment.departure()
        if away is None:
            if time.monotonic() >= deadline:
                if self._listener is not None:
                    self._listener.wait(block, seen, 0.0)  # makes its descriptor quiet
                if block.commit == seen:
                    raise self._timeout(timeout_s)
        # What it published before it left comes first.
        elif (
            block.commit == seen
            and not self._renew()
            and (not is_patient or time.monotonic() >= deadline)
        ):
            raise away

    # --- Producers come and go ---

    def _check_open(self) -> None:
        if self._is_closed:
            raise ChannelClosed(
                f"this consumer of channel {self.name!r} was closed.\n  Attach again."
            )

    def _attached(self) -> DataBlock:
        self._check_open()
        if self._attachment.block is None:
            raise PyhubError(
                f"this consumer of channel {self.name!r} is not attached.\n"
                "  Call wait_for_producer first."
            )
        return self._attachment.block

    def _looked(self) -> DataBlock:
        """Return the block to look at: the next producer's, once this one is gone.

        Asks for that one only if nothing was published since the last look, and
        not while there are frames that this reader has still to be given.
        """
        block = self._attached()
        if block.commit == self._looked_at or block.segment.is_closed:
            is_reader = self.n_read > 0 or self._came_first
            if not (is_reader and self.lag_frames) and self._renew():
                block = self._attached()
        self._looked_at = block.commit
        return block

    def _renew(self) -> bool:
        """Go on with the segment that has the name now; False if there is no other."""
        is_first = self._attachment.block is None
        # From the first frame on; but a late reader begins with the newest.
        is_late = is_first and not self._came_first

        def begin(block: DataBlock, layout: FrameLayout) -> None:
            # If it is not admitted, the next call tries again.
            self._reader.begin(block, layout, from_first=not is_late, is_restart=not is_first)
            if self._is_closed:  # by another thread, while it was being admitted
                self._reader.leave()
                self._check_open()

        if not self._attachment.renew(begin):
            return False
        block = self._attached()
        if self._on_attach is not None:
            self._on_attach(block.segment_id.hex())
        return True

    def _wait_for_return(self, away: ChannelClosed, timeout_s: float | None) -> None:
        deadline = _deadline(timeout_s)
        while not self._is_closed and not self._renew():
            if time.monotonic() >= deadline:
                raise away
            time.sleep(_AWAY_NAP_S)

    def _listening(self) -> Listener:
        if self._listener is None:
            raise no_notifications(self._wait)
        return self._listener

    def _sleep(self, block: DataBlock, seen: int, deadline: float) -> None:
        """Sleep until something may have changed, at most one slice."""
        slice_s = min(SLICE, max(deadline - time.monotonic(), 0.0))
        if block.segment.is_closed:
            time.sleep(min(slice_s, _AWAY_NAP_S))
        elif self._listener is not None:
            self._listener.wait(block, seen, slice_s)
        else:
            block.wait(seen, slice_s)

    def _timeout(self, timeout_s: float | None) -> WaitTimeout:
        block = self._attached()
        pid, doing = block.segment.owner_pid, ""
        # Costs a system call or three, so not for who only looks whether there is news.
        state = process_state(pid) if timeout_s else ""
        if block.is_writing:
            writer = block.writer_pid
            writer_state = process_state(writer) if timeout_s else ""
            # A dead one's publication is still to be rolled back.
            if not writer_state.startswith(("dead", "not visible")):
                pid, state, doing = writer, writer_state, ", publishing right now"
        if state.startswith("stopped"):
            return WriterStalled(
                f"channel {self.name!r}: nothing new in {timeout_s} s; its producer (pid {pid}) "
                f"is {state}{doing}.\n"
                f"  Let it go on (kill -CONT {pid}), or end it (kill {pid}) and start another."
            )
        who = f"its producer lives (pid {pid}{doing})"
        if timeout_s and not lease_is_alive(self._attachment.leases, block.owner_lease):
            who = f"its owner (pid {pid}) has died, and another producer lives"
        return WaitTimeout(
            f"channel {self.name!r}: nothing new in {timeout_s} s; {who}.\n"
            "  It may be idle: see when it last published with pyhub info "
            f"{self.name}"
        )


def _deadline(timeout_s: float | None, began_s: float | None = None) -> float:
    if timeout_s is None:
        return float("inf")
    if not timeout_s >= 0:  # NaN as well, which no clock reaches
        raise ValueError(f"timeout_s={timeout_s!r} must be None, 0 or positive, in seconds")
    return (time.monotonic() if began_s is None else began_s) + timeout_s
