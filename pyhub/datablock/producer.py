"""The producer's side of a DataBlock: create it, fill slots, publish."""

from __future__ import annotations

import logging
import operator
import os
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from pyhub._core import lease_is_alive, process_lease, remove_dead
from pyhub._datablock import MAX_READERS, MAX_SLOTS, DataBlock
from pyhub._writing import DEFAULT_TIMEOUT_S, checked_number
from pyhub.codec import Encoding, encode
from pyhub.datablock.notice import Notify
from pyhub.datablock.publisher import Publisher
from pyhub.errors import CapacityError, LayoutError, SegmentExists
from pyhub.layout import FrameLayout, dtype_to_text
from pyhub.names import check_name, lease_path, segment_path

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["DataBlockProducer"]

_log = logging.getLogger("pyhub.datablock")


class DataBlockProducer(Publisher):
    """Publishes frames, with the parameters that belong to them, under a name.

    Made by `create` (the channel is new, and goes when this producer closes or
    dies) or `attach` (one more producer of a channel that exists). A producer
    may be shared by threads; one publication is open at a time.
    """

    def __init__(self, block: DataBlock, notify: Notify | None = None) -> None:
        super().__init__(block, notify)
        self._on_close: Callable[[], None] | None = None
        # Runs once: at close, when the producer is forgotten, or at exit.
        self._finalizer = weakref.finalize(self, _leave, block, os.getpid())

    # --- Life ---

    @classmethod
    def create(
        cls,
        name: str,
        structured_buffer_size: int | None = None,
        flexible_zone_size: int = 4096,
        *,
        dtype: npt.DTypeLike = "uint8",
        shape: int | tuple[int, ...] | None = None,
        slots: int | None = None,
        readers: int = 64,
        patience_s: float = 1.0,
        prefault: bool = False,
        notify: Notify | None = None,
    ) -> DataBlockProducer:
        """Create the channel `name` in this machine's shared memory.

        Parameters
        ----------
        name
            1 to 200 letters, digits, ``.``, ``_``, ``-``.
        structured_buffer_size
            Bytes of a frame, for a channel of plain bytes. Otherwise give
            `dtype` and `shape`; with neither, the channel has parameters only.
        flexible_zone_size
            Bytes that the parameters of one frame may take when encoded.
        dtype, shape
            Of the largest frame; a frame may have fewer rows.
        slots
            Frames that the ring holds: a reader may be so many behind before
            it loses one. 1 is a single buffer, which readers cannot read while
            it is being written. Default: 1 with `structured_buffer_size`, else 4.
        readers
            Places for readers that are known by name: those that pin frames, or
            ask to be waited for. Others need none.
        patience_s
            How long at most a publish waits for such readers, and how long
            frames are dropped for one that does not move; 0: no reader may ask.
        prefault
            Have all pages mapped now. Otherwise the kernel does it page by page in
            the first lap, which takes that much longer: as long as filling it.
        notify
            Called after each publish, in the publishing thread; the hub's
            client supplies it.

        Raises
        ------
        SegmentExists
            The name belongs to a living producer.
        SharedMemoryFull
            ``/dev/shm`` has no room for it.
        InvalidName, LayoutError, CapacityError
            The arguments do not describe a channel.
        """
        layout = _layout_of(structured_buffer_size, dtype, shape)
        n_slots = slots if slots is not None else (4 if structured_buffer_size is None else 1)
        n_slots, readers = operator.index(n_slots), operator.index(readers)
        if not 1 <= n_slots <= MAX_SLOTS:
            raise CapacityError(f"slots={n_slots}: a channel has 1 to {MAX_SLOTS}.")
        if flexible_zone_size < 0:
            raise CapacityError(f"flexible_zone_size={flexible_zone_size} is negative.")
        if max(flexible_zone_size, layout.frame_bytes, *layout.shape, 0) >= 1 << 63:
            raise CapacityError(
                f"channel {name!r}: {flexible_zone_size} bytes of parameters or a frame of shape "
                f"{layout.shape} are beyond what a segment can have."
            )
        if not 1 <= readers <= MAX_READERS:
            raise CapacityError(f"readers={readers}: a channel has places for 1 to {MAX_READERS}.")
        if not 0 <= patience_s < 1e9:
            raise CapacityError(f"patience_s={patience_s}: give seconds, from 0 on.")
        path, leases = segment_path(name), lease_path()
        lease = process_lease(leases)
        while True:
            try:
                block = DataBlock.create(
                    path,
                    name,
                    leases,
                    lease,
                    flex_zone_capacity=flexible_zone_size,
                    structured_buffer_capacity=layout.frame_bytes,
                    n_slots=n_slots,
                    dtype=dtype_to_text(layout.dtype),
                    itemsize=layout.dtype.itemsize,
                    shape=layout.shape,
                    n_places=readers,
                    patience_ns=int(patience_s * 1e9),
                )
                producer = cls(block, notify)
                if prefault:
                    block.segment.prefault()
                return producer
            except SegmentExists as error:
                _make_way(name, error)

    @classmethod
    def attach(cls, name: str, *, notify: Notify | None = None) -> DataBlockProducer:
        """Become one more producer of the channel `name`; it keeps its owner.

        If the owner has died, this producer becomes it, now or at its next
        publish; until then it keeps the channel alive (decision 0009).

        Raises
        ------
        SegmentNotFound
            There is no such channel.
        NamespaceMismatch
            It was made in another PID namespace, across which no lock works.
        """
        leases = lease_path()
        block = DataBlock.attach(segment_path(name), name, os.geteuid(), leases)
        producer = cls(block, notify)
        block.join(process_lease(leases))
        return producer

    def close(self) -> None:
        """Close the channel, if this producer owns it; its readers are told.

        An open publication of this thread is given up. May be called twice.
        """
        on_close, self._on_close = self._on_close, None
        self._is_closed = True
        try:
            if on_close is not None:
                on_close()  # while the name is still ours
        finally:
            self._finalizer()

    def __enter__(self) -> DataBlockProducer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- Publishing ---

    def put(
        self,
        data: npt.ArrayLike | None = None,
        flex: dict[str, Any] | None = None,
        *,
        frame_id: int | None = None,
        timestamp_ns: int = 0,
        encoding: Encoding = Encoding.MSGPACK,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> bool:
        """Publish a frame, its parameters, or both, in one call.

        Without `flex` the frame carries the last parameters on; without `data`
        the newest frame gets new parameters. Returns whether it was published:
        False if admitted readers left no slot; then it is counted as dropped.

        Parameters
        ----------
        data
            Array of the channel's dtype and shape (or fewer rows); copied.
        flex
            Parameters that belong to it (see `pyhub.codec`).
        frame_id
            Your own number for the frame; default: counted from 0.
        timestamp_ns
            Wall clock, ns since 1970; 0: now.
        timeout_s
            How long to wait for another producer of this channel. Readers that
            block are waited for as long as the channel's patience.

        Raises
        ------
        LayoutError, CapacityError, CodecError
            The frame or the parameters do not fit; nothing was published.
        WriterStalled
            Another producer held the lock until the deadline.
        ChannelClosed
            This producer, or the channel's owner, closed it.
        """
        # All that can fail comes before the slot is opened: what it holds is lost then.
        packed = None if flex is None else encode(flex, encoding)
        if frame_id is not None:
            frame_id = checked_number("frame_id", frame_id)
        if timestamp_ns != 0:
            timestamp_ns = checked_number("timestamp_ns", timestamp_ns)
        array = None if data is None else np.asarray(data)
        done = self._put(array, packed, frame_id, timestamp_ns, encoding, timeout_s)
        if done is not None:
            return done
        # Fewer rows, numpy has to walk it, or it does not fit.
        assert array is not None
        self._layout.size_of(array)
        with self.publish(timeout_s=timeout_s) as slot:
            slot.frame_id = frame_id
            slot.timestamp_ns = timestamp_ns
            slot.encoding = encoding
            if packed is not None:
                slot.copy_packed(packed)
            slot.copy_from(array)
        return not slot.is_dropped


def _layout_of(
    size: int | None, dtype: npt.DTypeLike, shape: int | tuple[int, ...] | None
) -> FrameLayout:
    if size is not None and shape is not None:
        raise LayoutError(
            "give either structured_buffer_size (a channel of bytes) or dtype and shape, not both."
        )
    if size is not None and size < 0:
        raise CapacityError(f"structured_buffer_size={size} is negative.")
    return FrameLayout.of(dtype, (size or 0) if shape is None else shape)


def _make_way(name: str, error: SegmentExists) -> None:
    """Remove the segment `name` if its owner died; raise if it lives."""
    path = segment_path(check_name(name))
    try:
        if remove_dead(path, lease_path()):
            _log.warning("channel %r: removed the segment of a producer that died", name)
            return
        block = DataBlock.attach(path, name, os.geteuid())
    except FileNotFoundError:
        return  # it went away by itself
    owner = block.segment.owner_pid
    whose = f"belongs to a living producer (pid {owner})"
    if not lease_is_alive(lease_path(), block.owner_lease):
        whose = f"is kept by a producer that joined it; its owner (pid {owner}) has died"
    raise SegmentExists(
        f"channel {name!r} {whose}.\n"
        "  Stop that program, choose another name, or become one more producer of it with\n"
        "  DataBlockProducer.attach."
    ) from error


def _leave(block: DataBlock, pid: int) -> None:
    """Close `block` for its producer; in a fork's child it is the parent's."""
    if pid != os.getpid():
        return
    block.abort()
    block.leave()
