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
    the file first. The superblock has version 0: version 3 marks the file as
    open for writing, which a killed writer cannot take back, and nothing would
    open it without h5clear. The disk itself is synced by `NexusFile.finish`
    only: a power cut may take a recording that is not finished.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import errno
import json
import logging
import math
import os
import re
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt

from pyhub.errors import CapacityError, ChannelClosed, LayoutError, MissingExtra
from pyhub.layout import FrameLayout
from pyhub.sources.hdf5 import load_h5py

__all__ = ["COMPRESSIONS", "MAX_GAP_ROWS", "NexusFile"]

COMPRESSIONS = ("gzip", "lzf", "bitshuffle-lz4", "none")
MAX_GAP_ROWS = 1_000_000
MAX_PARAMETERS = 4096
MAX_CHUNK_BYTES = (1 << 32) - 1  # HDF5: the size of a chunk has 32 bits
GROW_ROWS = 256
COLUMN_CHUNK_BYTES = 1 << 13
MAX_FILLED_ROWS = 1 << 12
MAX_PENDING_BYTES = 256 << 20
END_OF_FILE_OFFSET = 40  # in a superblock of version 0
UNFINISHED = "the recording was not finished"

_log = logging.getLogger("pyhub.sinks")

Value = np.generic | npt.NDArray[Any]


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
        _check_chunk(self.layout)
        n = n_threads or min(8, len(os.sched_getaffinity(0)))
        self._max_pending = max(1, min(2 * n, MAX_PENDING_BYTES // self.layout.frame_bytes))
        filters = _filters(self._h5py, compression)
        self._is_direct = compression in ("gzip", "none")
        self._pool = (
            ThreadPoolExecutor(n, thread_name_prefix="pyhub-gzip")
            if compression == "gzip"
            else None
        )
        self._refuse_existing()
        try:
            self._file: Any = _create(self._h5py, self.partial_path)
        except OSError as error:
            raise _write_error(error, f"{self.partial_path!r} cannot be created") from error
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
        units, leaves = _split_flex(flex)
        row = self._place(frame_id, n_lost)
        data: Any = block
        if self._pool is not None:
            data = self._pool.submit(_deflate, block)
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
            attributes.modify("reason", _clean(reason))
            attributes.modify("pyhub_complete", complete)
            self._commit()
            self._file.close()
            _sync(self.partial_path)
        except (OSError, RuntimeError) as error:
            self._abandon(error)
        self._end_threads()
        self._is_closed = True
        self._publish()

    def close(self) -> None:
        """Finish the file, marked as partial, unless it is finished."""
        if not self._is_closed:
            self.finish(complete=False, reason="closed before the recording was finished")

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

    def _lay_out(self, filters: _Filters, title: str, detector: str) -> None:
        h5py, file = self._h5py, self._file
        now = _now()
        file.attrs.update(default="entry", creator="pyhub", file_time=now)
        file.attrs["file_name"] = _clean(self.path)
        entry = _group(file, "entry", "NXentry")
        # All that the entry will ever hold is made now: an object header that
        # grows later is the one thing that a kill in the wrong moment can break.
        entry.attrs.update(default="data", pyhub_complete=False, reason=UNFINISHED, end_time="")
        entry["start_time"] = now
        self._end_time = entry.create_dataset("end_time", data=np.bytes_(now.encode()))
        _group(entry, "parameters", "NXcollection")
        if title:
            entry["title"] = _clean(title)
        group = _group(entry, "data", "NXdata")
        n_axes = len(self.layout.shape)
        group.attrs.update(signal="data", frame_id_indices=[0], timestamp_indices=[0])
        group.attrs["axes"] = np.array(["frame_id", *["."] * n_axes], h5py.string_dtype())
        self._type = _file_type(h5py, self.layout.dtype)
        self._memory_space = h5py.h5s.create_simple((1, *self.layout.shape))
        chunk = (1, *self.layout.shape)
        self._data = _make_dataset(h5py, group, b"data", self._type, chunk, None, filters)
        self._data.attrs.update(target="/entry/data/data", n_frames=0, n_missing=0)
        self._data.attrs["n_rows_omitted"] = 0
        if (interpretation := _interpretation(self.layout.shape)) is not None:
            self._data.attrs["interpretation"] = interpretation
        place = _group(_group(entry, "instrument", "NXinstrument"), "detector", "NXdetector")
        place["data"] = self._data
        if detector:
            place["local_name"] = _clean(detector)

        self._tree = _Tree(entry)
        self._tree.adopt("data", group)
        self._parameters = _Parameters(h5py, self._tree)

        def column(name: str, like: Value, fill: Any, **attributes: Any) -> _Column:
            made = _Column(h5py, self._tree, f"data/{name}", like, fill)
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
        """Return a block of the full size with the frame in it, and the frame's rows."""
        frame = np.asarray(frame)
        self.layout.size_of(frame)
        if frame.shape == self.layout.shape:
            # Threads compress later, when the caller may have reused the array.
            block = frame.copy(order="C") if self._pool else np.asarray(frame, order="C")
        else:
            block = np.zeros(self.layout.shape, self.layout.dtype)
            block[: len(frame)] = frame
        return block, len(frame) if frame.ndim else 1

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
            self._data.id.write_direct_chunk(start, frame.data.reshape(-1).view(np.uint8), 0)
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
                _rename_to_new(self.partial_path, self.path)
            _sync(os.path.dirname(self.path) or ".")
        except FileExistsError as error:
            raise FileExistsError(
                f"{self.path!r} was made by another program during the recording; {whole}.\n"
                "  Rename it to a free name."
            ) from error
        except OSError as error:
            raise _write_error(error, f"{self.path!r} cannot be made", whole) from error

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
        if self._n_flushed and _opens(self._h5py, self.partial_path):
            kept = (
                f"{self._n_flushed} of {n_given} frames are safe in it: an HDF5 file, marked "
                "as not complete; rename it to keep it"
            )
        else:
            kept = f"none of {n_given} frames is safe, and it was removed"
            with contextlib.suppress(OSError):
                os.unlink(self.partial_path)
        raise _write_error(cause, what, kept) from cause

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


_Filters = list[tuple[int, tuple[int, ...]]]


# One value a row


class _Tree:
    """The entry. What is made during the recording is linked once it is in the file.

    A group that nobody can reach yet takes links at once; so the parameters of
    the first frame appear together, with their group. A kill while a name that
    came later is linked may cost that group, never the frames.
    """

    def __init__(self, entry: Any) -> None:
        self.entry = entry
        self._groups = {"": entry}
        self._hidden: set[str] = set()
        self._links: list[tuple[Any, str, Any]] = []

    def attach(self, path: str, item: Any) -> None:
        """Let `item` appear as `path`, in place of what is there, after the next flush."""
        above, _, name = path.rpartition("/")
        group = self._group(above)
        if above in self._hidden:
            _set_link(group, name, item)
        else:
            self._links.append((group, name, item))

    def link(self) -> bool:
        """Make the links that wait; return whether there were any."""
        links = self._links
        self._links, self._hidden = [], set()
        for link in links:
            _set_link(*link)
        return bool(links)

    def adopt(self, path: str, group: Any) -> None:
        self._groups[path] = group

    def _group(self, path: str) -> Any:
        if path not in self._groups:
            made = _group(self.entry, None, "NXcollection")
            self.attach(path, made)
            self._hidden.add(path)
            self._groups[path] = made
        return self._groups[path]


class _Column:
    """A growing data set; values wait here, the data set is made and grows at a flush."""

    def __init__(self, h5py: Any, tree: _Tree, path: str, like: Value, fill: Any = None) -> None:
        self.path = path
        self.attributes: dict[str, Any] = {}
        self.is_changed = True
        self._h5py, self._tree = h5py, tree
        self._dtype, self._shape = _roomy(like.dtype), like.shape
        self._own_fill = fill
        self._dataset: Any = None
        self._rows: list[int] = []
        self._values: list[Value] = []

    def put(self, row: int, value: Value) -> bool:
        """Take `value`, or return that it does not fit those before it."""
        if value.shape != self._shape:
            return False
        if value.dtype != self._dtype and not self._widen(value):
            return False
        self._rows.append(row)
        self._values.append(value)
        return True

    def write(self, n_rows: int) -> None:
        """Write what waits and let the data set have `n_rows` rows."""
        if self._dataset is None or self._dataset.dtype != self._dtype:
            self._renew()
        if self.is_changed:
            self._dataset.attrs.update(self.attributes)
            self.is_changed = False
        if self._dataset.shape[0] != n_rows:
            self._dataset.resize(n_rows, axis=0)
        for first, last in self._runs():
            start, stop = self._rows[first], self._rows[last] + 1
            block = np.full((stop - start, *self._shape), self._fill(), self._stored_dtype())
            for k in range(first, last + 1):
                block[self._rows[k] - start] = self._values[k]
            self._dataset[start:stop] = block
        self._rows.clear()
        self._values.clear()

    def _fill(self) -> Any:
        return _fill(self._dtype) if self._own_fill is None else self._own_fill

    def _stored_dtype(self) -> Any:
        is_text = self._dtype.kind == "S"
        return self._h5py.string_dtype("utf-8", self._dtype.itemsize) if is_text else self._dtype

    def _widen(self, value: Value) -> bool:
        """Change to a type for both kinds of value, if none changes by it."""
        kinds = {value.dtype.kind, self._dtype.kind}
        if kinds == {"S"}:
            if value.dtype.itemsize > self._dtype.itemsize:
                self._dtype = _roomy(value.dtype)
            return True
        if not kinds <= set("iufc"):
            return False
        wide = np.result_type(value.dtype, self._dtype)
        if not _survives(value, wide):
            return False
        if wide != self._dtype:
            stored = np.empty(0) if self._dataset is None else self._dataset[()]
            stored = stored[stored != _fill(stored.dtype)]
            if not all(_survives(old, wide) for old in (stored, *self._values)):
                return False
            self._dtype = wide
        return True

    def _renew(self) -> None:
        """Make the data set, with the values that one of a narrower type has."""
        old, fill = self._dataset, self._fill()
        row_bytes = self._dtype.itemsize * math.prod(self._shape)
        chunk = (max(1, COLUMN_CHUNK_BYTES // row_bytes), *self._shape)
        dtype = self._stored_dtype()
        kind = self._h5py.h5t.py_create(dtype, logical=True)
        new = _make_dataset(self._h5py, self._tree.entry, None, kind, chunk, np.array(fill, dtype))
        if self._dtype.kind in "iu":
            self.attributes["missing_value"] = fill
        else:
            self.attributes.pop("missing_value", None)
        if old is not None and len(old):
            new.resize(len(old), axis=0)
            values = old[()]
            lacks = values == _fill(old.dtype)
            with np.errstate(invalid="ignore", over="ignore"):
                new[...] = np.where(lacks, fill, values.astype(self._dtype)).astype(dtype)
        self._dataset, self.is_changed = new, True
        self._tree.attach(self.path, new)

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Yield first and last index of rows that are near enough for one block."""
        rows, first = self._rows, 0
        for k in range(1, len(rows) + 1):
            if k == len(rows) or rows[k] - rows[k - 1] > MAX_FILLED_ROWS:
                yield first, k - 1
                first = k


class _Parameters:
    """The columns of the parameters, made as names appear."""

    def __init__(self, h5py: Any, tree: _Tree) -> None:
        self._h5py, self._tree = h5py, tree
        self._leaves: dict[str, _Leaf] = {}
        self._dataset_paths: set[str] = set()
        self._group_paths: set[str] = set()

    def put(self, row: int, leaves: dict[str, Any], units: dict[str, str]) -> None:
        rest = {}
        for name, value in leaves.items():
            if value is None:
                continue
            leaf = self._leaves.get(name)
            if leaf is None:
                if len(self._leaves) >= MAX_PARAMETERS:
                    rest[name] = value
                    continue
                leaf = self._leaves[name] = _Leaf(self, name)
            leaf.put(row, value, units.get(name))
        if rest:  # names that change from frame to frame would make a data set each
            self._leaves.setdefault("others", _Leaf(self, "others")).put(row, rest, None)

    def columns(self) -> Iterator[_Column]:
        for leaf in self._leaves.values():
            yield from leaf.columns

    def column(self, name: str, suffix: str, like: Value) -> _Column:
        """Return a new column for the parameter `name`, where HDF5 allows it to be."""
        *above, last = [_component(part) for part in name.split("/") if part] or ["_"]
        path = "parameters"
        for part in above:
            path = f"{path}/{part}"
            while path in self._dataset_paths:
                path += "_"
            self._group_paths.add(path)
        path = f"{path}/{last}{suffix}"
        while path in self._dataset_paths or path in self._group_paths:
            path += "_"
        self._dataset_paths.add(path)
        made = _Column(self._h5py, self._tree, path, like)
        if path != f"parameters/{name}":
            made.attributes["pyhub_name"] = _clean(name)
        return made


class _Leaf:
    """One parameter: a column of its type, and one of JSON for what has another."""

    def __init__(self, parameters: _Parameters, name: str) -> None:
        self.columns: list[_Column] = []
        self._parameters, self._name = parameters, name
        self._typed: _Column | None = None
        self._json: _Column | None = None
        self._units: str | None = None

    def put(self, row: int, value: Any, units: str | None) -> None:
        typed = _typed(value)
        if typed is not None and self._typed is None and self._json is None:
            self._typed = self._add("", typed)
        if typed is None or self._typed is None or not self._typed.put(row, typed):
            text = np.bytes_(_to_json(value).encode())
            if self._json is None:
                self._json = self._add("_json" if self._typed else "", text)
                self._json.attributes["pyhub_encoding"] = "json"
            self._json.put(row, text)
        if units and units != self._units:
            self._note_units(row, units)

    def _add(self, suffix: str, like: Value) -> _Column:
        made = self._parameters.column(self._name, suffix, like)
        self.columns.append(made)
        return made

    def _note_units(self, row: int, units: str) -> None:
        for column in self.columns:
            if self._units is None:
                column.attributes["units"] = units
            else:  # earlier values keep theirs
                column.attributes["units_changed"] = f"from row {row}: {units}"
            column.is_changed = True
        if self._units is not None:
            _log.warning("units of %s: %s, from row %d %s", self._name, self._units, row, units)
        self._units = units


# Small parts


def _check_chunk(layout: FrameLayout) -> None:
    if not layout.frame_bytes:
        raise LayoutError(
            f"frames of shape {layout.shape} hold nothing, and HDF5 has no empty chunks.\n"
            "  Record frames without a dimension of 0."
        )
    if layout.frame_bytes > MAX_CHUNK_BYTES:
        raise CapacityError(
            f"a frame of shape {layout.shape}, {layout.dtype}, has {layout.frame_bytes} bytes; "
            f"a chunk of HDF5 has at most {MAX_CHUNK_BYTES}.\n"
            "  Publish it in parts: tiles, or fewer rows a frame."
        )


def _filters(h5py: Any, compression: str) -> _Filters:
    if compression == "gzip":
        return [(h5py.h5z.FILTER_SHUFFLE, ()), (h5py.h5z.FILTER_DEFLATE, (1,))]
    if compression == "lzf":
        return [(h5py.h5z.FILTER_SHUFFLE, ()), (h5py.h5z.FILTER_LZF, ())]
    if compression == "none":
        return []
    if compression != "bitshuffle-lz4":
        raise LayoutError(
            f"there is no compression {compression!r}.\n  Choose one of: {', '.join(COMPRESSIONS)}."
        )
    try:
        import hdf5plugin
    except ImportError as error:
        raise MissingExtra(
            f"compression 'bitshuffle-lz4' needs the package hdf5plugin ({error}).\n"
            "  pip install hdf5plugin, or conda install -c conda-forge hdf5plugin; or use 'gzip'."
        ) from error
    chosen = hdf5plugin.Bitshuffle(cname="lz4")
    return [(chosen.filter_id, tuple(chosen.filter_options))]


def _now() -> str:
    """Return the time in ISO 8601, always of the same length."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")


def _create(h5py: Any, path: str) -> Any:
    """Make a file with an old superblock and new structures: see the module's text."""
    h5py.File(path, "x", libver=("earliest", "v110")).close()
    return h5py.File(path, "r+", libver=("v110", "v110"))


def _file_type(h5py: Any, dtype: np.dtype[Any]) -> Any:
    """Return HDF5's type for `dtype`, of the same bytes: what numpy alone has is opaque."""
    if dtype.subdtype is not None:
        return h5py.h5t.array_create(_file_type(h5py, dtype.base), dtype.shape)
    if dtype.fields is not None:
        record = h5py.h5t.create(h5py.h5t.COMPOUND, dtype.itemsize)
        for name in dtype.names or ():
            inner, offset = dtype.fields[name][:2]
            record.insert(name.encode(), offset, _file_type(h5py, inner))
        return record
    return h5py.h5t.py_create(h5py.opaque_dtype(dtype) if dtype.kind in "UMm" else dtype)


def _make_dataset(
    h5py: Any,
    group: Any,
    name: bytes | None,
    kind: Any,
    chunk: tuple[int, ...],
    fill: npt.NDArray[Any] | None = None,
    filters: _Filters = [],  # noqa: B006  (not changed)
) -> Any:
    """Make a data set of no rows that grows, without a cache: each write goes to the file."""
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_chunk(chunk)
    create.set_fill_time(h5py.h5d.FILL_TIME_IFSET)
    if fill is not None:
        create.set_fill_value(fill)
    for code, options in filters:
        create.set_filter(code, h5py.h5z.FLAG_OPTIONAL, options)
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(1, 0, 1.0)
    space = h5py.h5s.create_simple((0, *chunk[1:]), (h5py.h5s.UNLIMITED, *chunk[1:]))
    made = h5py.h5d.create(group.id, name, kind, space, create, None, access)
    return h5py.Dataset(made)


def _set_link(group: Any, name: str, item: Any) -> None:
    if name in group:
        del group[name]
    group[name] = item


def _group(parent: Any, name: str | None, nexus_class: str) -> Any:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nexus_class
    return group


def _interpretation(shape: tuple[int, ...]) -> str | None:
    if len(shape) == 3:
        return {3: "rgb-image", 4: "rgba-image"}.get(shape[-1])
    return ("scalar", "spectrum", "image")[len(shape)] if len(shape) < 3 else None


def _deflate(block: npt.NDArray[Any]) -> tuple[bytes, int]:
    """Do what HDF5's filters shuffle and deflate do; say which of them was left out.

    Runs of equal bytes are all that counts and noise have to offer: the
    strategy Z_RLE is faster and packs them more tightly than level 1 alone.
    """
    size = block.itemsize
    data = block.reshape(-1).view(np.uint8)
    if size > 1:
        data = np.ascontiguousarray(data.reshape(-1, size).T).reshape(-1)
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    packed = packer.compress(data.data) + packer.flush()
    if len(packed) < data.nbytes:
        return packed, 0
    return data.tobytes(), 0b10


def _split_flex(flex: Mapping[str, Any] | None) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the units by name, and the parameters without dictionaries in them."""
    if not flex:
        return {}, {}
    units = flex.get("units")
    if isinstance(units, Mapping):
        named = _flatten(units)
        if all(isinstance(text, str) for text in named.values()):
            return named, _flatten({key: flex[key] for key in flex if key != "units"})
    return {}, _flatten(flex)


def _flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        inner = _flatten(value, name + "/") if isinstance(value, Mapping) and value else {}
        for path, leaf in (inner or {name: value}).items():
            while path in flat:  # {"a": {"b": 1}, "a/b": 2}
                path += "_"
            flat[path] = leaf
    return flat


def _typed(value: Any) -> Value | None:
    """Return `value` as a numpy value or a text, or None if it is neither."""
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        value = value.isoformat()
    elif isinstance(value, (list, tuple)):
        value = _number_array(value)
    elif isinstance(value, np.generic) and value.dtype.kind in "USM":
        value = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if isinstance(value, str):
        return np.bytes_(value.encode()) if "\0" not in value and _is_unicode(value) else None
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        for kind in (np.int64, np.uint64):
            if np.iinfo(kind).min <= value <= np.iinfo(kind).max:
                return kind(value)
        return None
    if isinstance(value, (float, complex)) and not isinstance(value, np.generic):
        return np.float64(value) if isinstance(value, float) else np.complex128(value)
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "biufc" and value.size:
        native = np.asarray(value, value.dtype.newbyteorder("="))
        return native if native.ndim else native[()]
    return None


def _number_array(values: list[Any] | tuple[Any, ...]) -> npt.NDArray[Any] | None:
    """Return a list of numbers, however nested, as an array of the same numbers."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different length
        return None
    numbers = list(_scalars(values))
    kinds = {type(number) for number in numbers}
    if kinds == {int, float} and all(abs(n) <= 1 << 53 for n in numbers if isinstance(n, int)):
        return array
    if kinds in ({int}, {float}, {bool}) and array.dtype.kind in "biu" + "f" * (kinds == {float}):
        return array
    return None


def _scalars(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _scalars(value)
        else:
            yield value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _roomy(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Leave a text room to grow; text of variable length would not survive a kill."""
    return np.dtype(f"S{1 << max(5, dtype.itemsize.bit_length())}") if dtype.kind == "S" else dtype


def _fill(dtype: np.dtype[Any]) -> Any:
    """Return what stands where a frame lacks the parameter."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return limits.min if dtype.kind == "i" else limits.max
    return {"f": np.nan, "c": complex(np.nan, np.nan), "b": False}.get(dtype.kind, b"")


def _survives(numbers: Value, wide: np.dtype[Any]) -> bool:
    """Whether integers stay what they are as floats of type `wide`."""
    if numbers.dtype.kind not in "iu" or wide.kind not in "fc":
        return True
    limit = 1 << (np.finfo(wide).nmant + 1)
    values = np.asarray(numbers)
    return bool(np.all((values <= limit) & (values >= -limit)))


def _component(part: str) -> str:
    """Return `part` as HDF5 allows it in a path."""
    return "_" if part == "." else _clean(part)


def _clean(text: str) -> str:
    """Replace what HDF5's text cannot have: NUL, and bytes that were no UTF-8."""
    return text.encode(errors="replace").decode().replace("\0", "_")


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, default=_jsonable)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(repr(value))


def _jsonable(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(value).decode()}
    return value.isoformat() if isinstance(value, (dt.datetime, dt.date)) else str(value)


def _rename_to_new(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.rename(source, target)
    else:
        os.unlink(source)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opens(h5py: Any, path: str) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return "data" in file["entry/data"]
    except (OSError, KeyError, RuntimeError):
        return False


def _write_error(cause: Exception, what: str, kept: str = "") -> OSError:
    found = re.search(r"errno = (\d+)", str(cause))  # h5py sets it for some calls only
    number = getattr(cause, "errno", None) or (int(found[1]) if found else 0)
    why = os.strerror(number) if number else str(cause)
    advice = {
        errno.ENOSPC: "Free space on that disk (df -h), or record to another.",
        errno.EDQUOT: "Free space within your quota (quota -s), or record elsewhere.",
        errno.EFBIG: "Raise the limit of file sizes (ulimit -f), or record elsewhere.",
        errno.ENOENT: "Create the directory, or choose another.",
        errno.EACCES: "Choose a directory that you may write to.",
    }.get(number, "Look at the disk and its mount (dmesg), or record elsewhere.")
    message = f"{what}: {why}" + (f"; {kept}" if kept else "") + f".\n  {advice}"
    return OSError(number, message) if number else OSError(message)
