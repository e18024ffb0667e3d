"""A recording: frames, their parameters and what is missing, in one NeXus file.

What the file holds, with one row for each frame since the first, received or lost::

    /entry                    NXentry; attributes pyhub_complete, end_time, reason
      start_time, end_time, title
      data                    NXdata, the default plot
        data                  the frames, one chunk each; attributes n_frames, n_missing
        frame_valid           bool: whether the row's frame was received
        frame_id              int64: its number; -1 if lost and not certain
        timestamp             float64: seconds since 1970, NaN if lost
        timestamp_ns          int64: the same exactly, -1 if lost
        frame_rows            int64: how many rows of the frame are valid
      instrument/detector     NXdetector: data, a hard link to the frames
      parameters/...          NXcollection: one value per row

A lost frame's row is a hole: no chunk, it reads as zeros and `frame_valid` says
so. Its `frame_id` is filled in where the neighbours leave no doubt. A gap of
more than a million frames gets one row only, and the attribute
``n_rows_omitted`` of the frames counts the others.

Parameters keep their type; nested ones become groups, lists of numbers arrays.
Numbers of several types become the type that holds them all exactly. Where a
frame lacks a parameter, the row has NaN, an empty text, False, or for integers
the value in the attribute ``missing_value``. Values that are neither number,
text nor array of one shape stand as JSON: in the data set itself if the first
one was such, else beside it as ``..._json``. After 4,096 names, further ones
share the JSON of ``others``.

How it survives
    The file is written as ``path + ".partial"`` and renamed when it is finished,
    so the final name never shows half a file. A process that is killed, at any
    instant, leaves a .partial that opens and has all frames of the last flush:
    the index of the chunks has the format of HDF5 1.10, which is written in
    order; object headers do not grow after the start; what is made later is
    linked when it is in the file; and `NexusFile._commit` names the new end of
    the file first. Only the linking itself, of a parameter that the first frame
    did not have, may cost the parameters of its group if it is cut off. The
    superblock has version 0: version 3 marks the file as open for writing, which
    a killed writer cannot take back, and nothing would open it without h5clear.
    The disk itself is synced by `NexusFile.finish` only: a power cut may take a
    recording that is not finished.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt

from pyhub.errors import ChannelClosed, LayoutError
from pyhub.layout import FrameLayout
from pyhub.sinks.chunks import (
    COMPRESSIONS,
    Filters,
    bytes_of,
    check_chunk,
    deflate,
    file_type,
    filters_of,
    make_dataset,
)
from pyhub.sinks.columns import Column, Parameters, Tree, make_group
from pyhub.sinks.partial import (
    END_OF_FILE_OFFSET,
    create_file,
    opens,
    rename_to_new,
    sync_file,
    write_error,
)
from pyhub.sinks.values import Value, clean_text, split_flex
from pyhub.sources.hdf5 import load_h5py

__all__ = ["COMPRESSIONS", "MAX_GAP_ROWS", "NexusFile"]

MAX_GAP_ROWS = 1_000_000
GROW_ROWS = 256
MAX_PENDING_BYTES = 256 << 20
UNFINISHED = "the recording was not finished"

_log = logging.getLogger("pyhub.sinks")


class NexusFile:
    """Writes frames one by one into a new file; use it from one thread.

    Parameters
    ----------
    path
        The final name. The frames go to ``path + ".partial"`` until `finish`.
    dtype, frame_shape
        What every frame is; one may have fewer rows.
    compression
        ``"gzip"`` (level 1 with shuffle, read by every HDF5; compressed in
        threads), ``"lzf"`` (read by h5py), ``"bitshuffle-lz4"`` (needs
        hdf5plugin, here and to read) or ``"none"``.
    title, detector
        Texts for ``/entry/title`` and the detector's ``local_name``, such as
        the channel's name.
    overwrite
        Replace a file of the final name, when this one is finished.
    n_threads
        How many frames are compressed at a time; default: one for each CPU,
        up to 8.
    flush_interval_s
        A killed process loses at most the frames of this time.

    Raises
    ------
    FileExistsError
        `path` or its .partial is there.
    LayoutError, CapacityError
        Frames like these cannot be a chunk of HDF5.
    MissingExtra
        h5py or hdf5plugin is not installed.
    OSError
        The file cannot be made.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dtype: npt.DTypeLike,
        frame_shape: int | tuple[int, ...],
        compression: str = "gzip",
        title: str = "",
        detector: str = "",
        overwrite: bool = False,
        n_threads: int | None = None,
        flush_interval_s: float = 1.0,
    ) -> None:
        """Create the .partial file."""
        self.path = os.fspath(path)
        self.partial_path = self.path + ".partial"
        self.layout = FrameLayout.of(dtype, frame_shape)
        self.n_frames = 0
        self.n_missing = 0
        self.n_rows = 0
        self._h5py = load_h5py()
        self._overwrite = overwrite
        self._flush_interval_s = flush_interval_s
        self._flushed_at = float("-inf")
        self._n_flushed = 0
        self._n_stored = 0
        self._end = 0  # rows of the frames that are stored, holes before them included
        self._n_missing_stored = 0
        self._n_rows_omitted = 0
        self._last: tuple[int, int] | None = None
        self._pending: deque[_Pending] = deque()
        self._is_closed = False
        check_chunk(self.layout)
        n = n_threads or min(8, len(os.sched_getaffinity(0)))
        self._max_pending = max(1, min(2 * n, MAX_PENDING_BYTES // self.layout.frame_bytes))
        filters = filters_of(self._h5py, compression)
        self._is_direct = compression in ("gzip", "none")
        self._pool = (
            ThreadPoolExecutor(n, thread_name_prefix="pyhub-gzip")
            if compression == "gzip"
            else None
        )
        self._refuse_existing()
        try:
            self._file: Any = create_file(self._h5py, self.partial_path)
        except OSError as error:
            raise write_error(error, f"{self.partial_path!r} cannot be created") from error
        try:
            self._lay_out(filters, title, detector)
            self._flush_file()
            self._flushed_at = float("-inf")  # the first frame goes out at once
        except (OSError, RuntimeError) as error:
            self._abandon(error)

    @property
    def closed(self) -> bool:
        """Whether the file was finished or given up."""
        return self._is_closed

    @property
    def n_ahead(self) -> int:
        """Frames that `append` takes before it waits for the first of them."""
        return self._max_pending if self._pool is not None else 0

    def append(
        self,
        frame: npt.NDArray[Any],
        *,
        frame_id: int,
        timestamp_ns: int,
        flex: Mapping[str, Any] | None = None,
        n_lost: int = 0,
    ) -> None:
        """Add a frame; it is copied, and may not have reached the file yet.

        Parameters
        ----------
        frame
            Of the file's dtype and shape, or with fewer rows.
        frame_id, timestamp_ns
            Its number, and when it was published (ns since 1970).
        flex
            Its parameters; ``flex["units"]``, if it is a dictionary of texts,
            gives the units of the others by name.
        n_lost
            How many frames are missing between the one before and this.

        Raises
        ------
        LayoutError, CapacityError
            It is no frame of this file. Nothing was written.
        OSError
            The disk is full or failed, `errno` says how. The file is closed and
            stays as .partial; the message says how many frames are in it.
        ChannelClosed
            The file was finished.
        """
        self._check_open()
        if n_lost < 0 or not 0 <= frame_id < 1 << 63:
            raise LayoutError(
                f"frame_id={frame_id}, n_lost={n_lost} cannot be recorded.\n"
                "  Both count from 0, and a number has 63 bits."
            )
        block, n_frame_rows = self._block(frame)
        units, leaves = split_flex(flex)
        row = self._place(frame_id, n_lost)
        data: Any = block
        if self._pool is not None:
            data = self._pool.submit(deflate, block)
        self._pending.append(
            _Pending(row, data, frame_id, timestamp_ns, n_frame_rows, n_lost, leaves, units)
        )
        self.n_frames += 1
        self.n_missing += n_lost
        self.n_rows = row + 1
        try:
            self._store(self._max_pending if self._pool else 0)
            if monotonic() - self._flushed_at >= self._flush_interval_s:
                self._flush_file()
        except (OSError, RuntimeError) as error:
            self._abandon(error)

    def flush(self) -> None:
        """Hand all frames to the operating system; a kill cannot take them any more.

        `append` does so once in `flush_interval_s`; call this when no frames come.
        Raises as `append`.
        """
        self._check_open()
        try:
            self._store(0)
            if self._n_stored != self._n_flushed:
                self._flush_file()
        except (OSError, RuntimeError) as error:
            self._abandon(error)

    def finish(self, complete: bool = True, reason: str = "") -> None:
        """Write what is left, sync, and give the file its final name.

        Parameters
        ----------
        complete
            False marks the file: `/entry` has ``pyhub_complete`` False and `reason`.

        Raises
        ------
        OSError
            As for `append`: there is no file of the final name, and what was
            recorded is in .partial.
        FileExistsError
            Another program made a file of the final name meanwhile; the
            recording is whole, in .partial.
        ChannelClosed
            The file was finished before.
        """
        self._check_open()
        try:
            self._store(0)
            self._flush_file()
            attributes = self._file["entry"].attrs
            attributes.modify("end_time", self._end_time[()].decode())
            attributes.modify("reason", clean_text(reason))
            attributes.modify("pyhub_complete", complete)
            self._commit()
            self._file.close()
            sync_file(self.partial_path)
        except (OSError, RuntimeError) as error:
            self._abandon(error)
        self._end_threads()
        self._is_closed = True
        self._publish()

    def close(self) -> None:
        """Finish the file, marked as partial, unless it is finished."""
        if not self._is_closed:
            self.finish(complete=False, reason="closed before the recording was finished")

    def discard(self) -> None:
        """Give the recording up and remove the .partial; nothing, if it is finished."""
        if not self._is_closed:
            self._is_closed = True
            self._pending.clear()
            self._end_threads()
            os.unlink(self.partial_path)
            # What it still writes goes to a file without a name.
            with contextlib.suppress(OSError, RuntimeError):
                self._file.close()

    def __enter__(self) -> Self:
        """Return the open file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the file: complete, or marked as partial if an exception came."""
        if self._is_closed:
            return
        if error is None:
            self.finish()
        elif isinstance(error, KeyboardInterrupt):
            self.finish(complete=False, reason="interrupted")
        else:
            self.finish(complete=False, reason=f"{type(error).__name__}: {error}"[:1000])

    # Making the file

    def _refuse_existing(self) -> None:
        if not self._overwrite and os.path.lexists(self.path):
            raise FileExistsError(
                f"{self.path!r} exists; it was not touched.\n"
                "  Choose another name, or ask to overwrite it."
            )
        if os.path.lexists(self.partial_path):
            raise FileExistsError(
                f"{self.partial_path!r} exists: a recording that was interrupted, or that "
                "another program is writing now.\n"
                "  It is an HDF5 file with all frames up to the interruption: rename it to keep "
                "it, or delete it; then record again."
            )

    def _lay_out(self, filters: Filters, title: str, detector: str) -> None:
        h5py, file = self._h5py, self._file
        now = _now()
        file.attrs.update(default="entry", creator="pyhub", file_time=now)
        file.attrs["file_name"] = clean_text(self.path)
        entry = make_group(file, "entry", "NXentry")
        # All that the entry will ever hold is made now: an object header that
        # grows later is the one thing that a kill in the wrong moment can break.
        entry.attrs.update(default="data", pyhub_complete=False, reason=UNFINISHED, end_time="")
        entry["start_time"] = now
        self._end_time = entry.create_dataset("end_time", data=np.bytes_(now.encode()))
        make_group(entry, "parameters", "NXcollection")
        if title:
            entry["title"] = clean_text(title)
        group = make_group(entry, "data", "NXdata")
        n_axes = len(self.layout.shape)
        group.attrs.update(signal="data", frame_id_indices=[0], timestamp_indices=[0])
        group.attrs["axes"] = np.array(["frame_id", *["."] * n_axes], h5py.string_dtype())
        self._type = file_type(h5py, self.layout.dtype)
        self._memory_space = h5py.h5s.create_simple((1, *self.layout.shape))
        chunk = (1, *self.layout.shape)
        self._data = make_dataset(h5py, group, b"data", self._type, chunk, None, filters)
        self._data.attrs.update(target="/entry/data/data", n_frames=0, n_missing=0)
        self._data.attrs["n_rows_omitted"] = 0
        if (interpretation := _interpretation(self.layout.shape)) is not None:
            self._data.attrs["interpretation"] = interpretation
        place = make_group(
            make_group(entry, "instrument", "NXinstrument"), "detector", "NXdetector"
        )
        place["data"] = self._data
        if detector:
            place["local_name"] = clean_text(detector)

        self._tree = Tree(entry)
        self._tree.adopt("data", group)
        self._parameters = Parameters(h5py, self._tree)

        def column(name: str, like: Value, fill: Any, **attributes: Any) -> Column:
            made = Column(h5py, self._tree, f"data/{name}", like, fill)
            made.attributes.update(attributes)
            return made

        self._valid = column("frame_valid", np.False_, False)
        self._id = column("frame_id", np.int64(), -1)
        epoch = "1970-01-01T00:00:00Z"
        self._time = column("timestamp", np.float64(), np.nan, units="s", epoch=epoch)
        self._time_ns = column("timestamp_ns", np.int64(), -1, units="ns", epoch=epoch)
        self._frame_rows = column("frame_rows", np.int64(), 0)
        self._columns = [self._valid, self._id, self._time, self._time_ns, self._frame_rows]

    # Writing

    def _block(self, frame: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
        """Return an array of the full size with the frame in it, and the frame's rows."""
        frame = np.asarray(frame)
        self.layout.size_of(frame)
        n_rows = len(frame) if frame.ndim else 1
        if frame.shape == self.layout.shape and frame.flags.c_contiguous and self._pool is None:
            return frame, n_rows
        # A copy also for threads: they compress later, when the caller may have
        # reused the array. Zeros, as padding within records is not copied.
        block = np.zeros(self.layout.shape, self.layout.dtype)
        if frame.flags.c_contiguous:
            bytes_of(block)[: frame.nbytes] = bytes_of(frame)
        else:
            block[:n_rows] = frame
        return block, n_rows

    def _place(self, frame_id: int, n_lost: int) -> int:
        """Return the frame's row, behind the hole of those that were lost."""
        if n_lost <= MAX_GAP_ROWS:
            return self.n_rows + n_lost
        _log.warning(
            "%s: %d frames lost before frame %d; one row stands for them all",
            self.path,
            n_lost,
            frame_id,
        )
        return self.n_rows + 1

    def _store(self, max_pending: int) -> None:
        """Write frames, oldest first, that are compressed or too many to wait for."""
        while self._pending:
            first = self._pending[0]
            ready = not isinstance(first.data, Future) or first.data.done()
            if not ready and len(self._pending) <= max_pending:
                return
            self._write_frame(first)
            # Only now: if Ctrl-C comes before, `finish` writes the row once more.
            self._pending.popleft()
            self._n_stored += 1

    def _write_frame(self, frame: _Pending) -> None:
        shape, row = self.layout.shape, frame.row
        if row >= self._data.id.shape[0]:
            self._data.id.set_extent((row + GROW_ROWS, *shape))
        start = (row, *(0 for _ in shape))
        if isinstance(frame.data, Future):
            packed, skipped = frame.data.result()
            self._data.id.write_direct_chunk(start, packed, skipped)
        elif self._is_direct:
            self._data.id.write_direct_chunk(start, bytes_of(frame.data), 0)
        else:
            space = self._data.id.get_space()
            space.select_hyperslab(start, (1, *shape))
            self._data.id.write(self._memory_space, space, frame.data, self._type)
        self._note(frame)
        self._end = row + 1

    def _note(self, frame: _Pending) -> None:
        row, last = frame.row, self._last
        if last is not None and frame.n_lost and row - last[0] == frame.frame_id - last[1]:
            for k in range(1, row - last[0]):
                self._id.put(last[0] + k, np.int64(last[1] + k))
        self._n_missing_stored += frame.n_lost
        self._n_rows_omitted += frame.n_lost - (row - self._end)
        self._last = row, frame.frame_id
        self._valid.put(row, np.True_)
        self._id.put(row, np.int64(frame.frame_id))
        self._time.put(row, np.float64(frame.timestamp_ns / 1e9))
        self._time_ns.put(row, np.int64(frame.timestamp_ns))
        self._frame_rows.put(row, np.int64(frame.n_frame_rows))
        self._parameters.put(row, frame.leaves, frame.units)

    def _flush_file(self) -> None:
        """Make the file whole up to the last stored frame, and hand it to the system."""
        self._data.id.set_extent((self._end, *self.layout.shape))
        for column in (*self._columns, *self._parameters.columns()):
            column.write(self._end)
        self._end_time[()] = np.bytes_(_now().encode())
        self._data.attrs.modify("n_frames", self._n_stored)
        self._data.attrs.modify("n_missing", self._n_missing_stored)
        self._data.attrs.modify("n_rows_omitted", self._n_rows_omitted)
        self._commit()
        if self._tree.link():
            self._commit()
        self._n_flushed = self._n_stored
        self._flushed_at = monotonic()

    def _commit(self) -> None:
        """Flush in an order that leaves a readable file wherever it is cut off.

        HDF5 writes the superblock last, and what lies beyond the end of file
        that an old superblock names cannot be read. So name the new end first.
        """
        descriptor = self._file.id.get_vfd_handle()
        end = self._file.id.get_filesize()
        if os.fstat(descriptor).st_size < end:
            os.ftruncate(descriptor, end)
        os.pwrite(descriptor, end.to_bytes(8, "little"), END_OF_FILE_OFFSET)
        self._file.flush()

    # Ending

    def _publish(self) -> None:
        """Give the file its final name; one that appeared meanwhile is not replaced."""
        whole = f"the recording is whole, in {self.partial_path!r}"
        try:
            if self._overwrite:
                os.replace(self.partial_path, self.path)
            else:
                rename_to_new(self.partial_path, self.path)
            sync_file(os.path.dirname(self.path) or ".")
        except FileExistsError as error:
            raise FileExistsError(
                f"{self.path!r} was made by another program during the recording; {whole}.\n"
                "  Rename it to a free name."
            ) from error
        except OSError as error:
            raise write_error(error, f"{self.path!r} cannot be made", whole) from error

    def _abandon(self, cause: Exception) -> NoReturn:
        """Leave the file as of the last flush, and say so.

        HDF5 cannot drop what it has not written: closing would try again, now
        or at exit, and leave a file that is cut off. So its descriptor is
        pointed elsewhere first.
        """
        self._is_closed = True
        with contextlib.suppress(Exception):
            descriptor = self._file.id.get_vfd_handle()
            scratch = os.memfd_create("pyhub-abandoned")
            os.dup2(scratch, descriptor)
            os.close(scratch)
        with contextlib.suppress(Exception):
            self._file.close()
        self._end_threads()
        n_given = self._n_stored + len(self._pending)
        self._pending.clear()
        what = f"writing {self.partial_path!r} failed"
        if self._n_flushed and opens(self._h5py, self.partial_path):
            kept = (
                f"{self._n_flushed} of {n_given} frames are safe in it: an HDF5 file, marked "
                "as not complete; rename it to keep it"
            )
        else:
            kept = f"none of {n_given} frames is safe, and it was removed"
            with contextlib.suppress(OSError):
                os.unlink(self.partial_path)
        raise write_error(cause, what, kept) from cause

    def _end_threads(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ChannelClosed(
                f"the recording {self.path!r} was finished or given up.\n"
                "  Make a new NexusFile for further frames."
            )


@dataclass(slots=True)
class _Pending:
    """A frame on its way: its block, or the bytes that it becomes."""

    row: int
    data: npt.NDArray[Any] | Future[tuple[bytes, int]]
    frame_id: int
    timestamp_ns: int
    n_frame_rows: int
    n_lost: int
    leaves: dict[str, Any]
    units: dict[str, str]


def _now() -> str:
    """Return the time in ISO 8601, always of the same length."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")


def _interpretation(shape: tuple[int, ...]) -> str | None:
    if len(shape) == 3:
        return {3: "rgb-image", 4: "rgba-image"}.get(shape[-1])
    return ("scalar", "spectrum", "image")[len(shape)] if len(shape) < 3 else None
