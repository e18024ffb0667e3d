"""A data set of an HDF5 file as a sequence of frames, with the parameters beside it.

Which axis counts the frames
    Three and more dimensions: the first. Two: the data set is one image. One
    or none: it is one frame, a spectrum or a number. The NeXus attribute
    ``interpretation`` (scalar, spectrum, image, rgb-image, ...) or the
    argument ``frame_ndim`` says otherwise where the number of dimensions of a
    frame is known: a data set with one dimension more holds frames along its
    first axis, so (n, w) with ``spectrum`` is n line profiles.

Which values are parameters
    Those below the entry of the data set: the nearest group above it of class
    NXentry, else the topmost group above it, else the file. A data set of one
    number or one string is a constant; one of shape (n,) has a value for each
    of the n frames. Names are paths relative to the entry. An object with
    several links counts once: under the path in its ``target`` attribute
    (NeXus), else under its shortest path, else the first of these by name.

A file that pyhub recorded (`pyhub.sinks.nexus`) gives back the parameters as
they were published: named relative to ``/entry/parameters``, JSON decoded.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import posixpath
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pyhub.errors import ChannelClosed, CodecError, LayoutError, MissingExtra
from pyhub.sources.hdf5_tree import (
    address_of,
    bare_dtype,
    load_h5py,
    open_file,
    plain,
    read_values,
    text_attribute,
    type_name,
    variable_fields,
    walk,
)

__all__ = ["FrameFile", "load_h5py"]

MAX_CHUNK_CACHE_BYTES = 256 << 20
N_LISTED = 20
# NeXus manual, NXdata/DATA@interpretation: the fastest dimensions that make one item.
NDIM_OF_INTERPRETATION = {
    "scalar": 0,
    "spectrum": 1,
    "vertex": 1,
    "image": 2,
    "rgb-image": 3,
    "rgba-image": 3,
    "hsl-image": 3,
    "hsla-image": 3,
    "cmyk-image": 3,
}

_log = logging.getLogger("pyhub.sources")


class FrameFile:
    """Frames and parameters of one data set; the file stays open, read-only.

    Parameters
    ----------
    path
        The HDF5 file.
    dataset
        Path of the data set in the file. Without it, the NeXus default
        plottable data are taken, else the only data set of two or more
        dimensions.
    frame_ndim
        Dimensions of one frame, where the rule in this module's text is wrong
        for the file: 3 for a single (h, w, 3) picture.

    Attributes
    ----------
    dataset
        Path of the data set that was opened.
    constants
        Parameters that belong to all frames, by name: str, bool, int, float,
        or a numpy scalar of any other type.
    per_frame
        Parameters with one value a frame: arrays of length `n_frames`.
    units
        Units of the parameters that have some.
    skipped
        Data sets below the entry that are no parameters, and why not.
    frame_valid, frame_rows, timestamp_ns
        What pyhub recorded for each frame: whether it is there (else a frame
        was lost), how many of its rows are, and when it was published. None
        for other files.

    Raises
    ------
    FileNotFoundError, AccessDenied
        The file cannot be opened.
    CodecError
        The file is no HDF5 file or damaged; the data set is not there or holds nothing.
    LayoutError
        The data set's type has no fixed size, or what has that name is a group.
    MissingExtra
        h5py, or a filter that the data set is compressed with, is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dataset: str | None = None,
        frame_ndim: int | None = None,
    ) -> None:
        """Open the file and find the data set and its parameters."""
        self._h5py = load_h5py()
        self.path = os.fspath(path)
        self._file: Any = open_file(self._h5py, self.path)
        try:
            self.dataset = self._find(dataset)
            self._data: Any = self._open_data()
            self._set_frames(frame_ndim)
            self.constants: dict[str, Any] = {}
            self.per_frame: dict[str, npt.NDArray[Any]] = {}
            self.units: dict[str, str] = {}
            self.skipped: dict[str, str] = {}
            self.frame_valid: npt.NDArray[np.bool_] | None = None
            self.frame_rows: npt.NDArray[np.int64] | None = None
            self.timestamp_ns: npt.NDArray[np.int64] | None = None
            self._missing: dict[str, Any] = {}
            self._json: dict[str, str] = {}
            self._collect_parameters()
        except BaseException:
            self._file.close()
            raise

    @property
    def n_frames(self) -> int:
        """How many frames there are."""
        return self._n_frames

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """The shape of each frame."""
        return self._frame_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the frames' elements, byte order as in the file."""
        return self._dtype

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return not self._file

    def read_into(self, i: int, out: npt.NDArray[Any]) -> None:
        """Read frame `i` into `out`, without a copy in between.

        `out` is C-contiguous, of `frame_shape` and `dtype`.

        Raises
        ------
        IndexError
            There is no frame `i`.
        LayoutError
            `out` does not fit.
        CodecError
            The file is damaged at that place.
        """
        self._check(i)
        if out.shape != self._frame_shape or out.dtype != self._dtype:
            raise LayoutError(
                f"an array of {out.dtype}, shape {out.shape}, cannot take a frame of "
                f"{self._dtype}, shape {self._frame_shape}.\n"
                "  Make it with numpy.empty(file.frame_shape, file.dtype)."
            )
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise LayoutError(
                f"frame {i} needs a writable, C-contiguous array to be read into.\n"
                "  Make it with numpy.empty(file.frame_shape, file.dtype)."
            )
        try:
            self._data.id.read(self._memory_space, self._select(i), out, self._memory_type)
        except (OSError, RuntimeError, ValueError) as error:
            raise CodecError(
                f"frame {i} of {self.dataset!r} in {self.path!r} cannot be read: {error}\n"
                "  The file is damaged there, or was moved without a file that it refers to."
            ) from error

    def read(self, i: int) -> npt.NDArray[Any]:
        """Return frame `i`, owned by the caller. Raises as `read_into`."""
        out = np.empty(self._frame_shape, self._dtype)
        self.read_into(i, out)
        return out

    def parameters(self, i: int) -> dict[str, Any]:
        """Return constants and the values of frame `i`, by name, in a dict of its own.

        Raises
        ------
        IndexError
            There is no frame `i`.
        """
        self._check(i)
        values = dict(self.constants)
        for name, column in self.per_frame.items():
            if name in self._json:
                continue
            value = column[i]
            if name not in self._missing or not np.all(value == self._missing[name]):
                values[name] = plain(value)
        for column_name, name in self._json.items():
            if text := self.per_frame[column_name][i]:
                values[name] = json.loads(text)
        return values

    def close(self) -> None:
        """Close the file; what was read stays valid."""
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
        """Close the file."""
        self.close()

    def __repr__(self) -> str:
        """Describe the frames in one line."""
        return (
            f"<FrameFile {self.path!r} {self.dataset} "
            f"{self._n_frames} x {self._frame_shape} {self._dtype}>"
        )

    # Finding the data set

    def _find(self, dataset: str | None) -> str:
        if dataset is None:
            return self._find_default()
        path = posixpath.normpath("/" + dataset.strip("/"))
        try:
            item = self._file[path]
        except (KeyError, OSError) as error:
            raise CodecError(
                f"{self.path!r} has no data set {path!r} ({error}).\n  {self._listing()}"
            ) from error
        if not isinstance(item, self._h5py.Dataset):
            raise LayoutError(f"{path!r} in {self.path!r} is no data set.\n  {self._listing(path)}")
        return path

    def _find_default(self) -> str:
        default = self._default_plottable()
        if default and len(self._file[default].shape or ()) >= 2:
            return default
        images = [
            "/" + path
            for path, item, _ in self._distinct("/")
            if item is not None and len(item.shape or ()) >= 2 and item.size
        ]
        signals = {path for path in images if self._is_signal(path)}
        for candidates in (signals, images, [default] if default else []):
            if len(candidates) == 1:
                return next(iter(candidates))
        raise CodecError(
            f"{self.path!r} does not say which of its data sets holds the frames: "
            f"{len(images)} have two dimensions or more, and no NeXus default names one.\n"
            f"  Name it (pyhub replay --dataset PATH). {self._listing()}"
        )

    def _default_plottable(self) -> str | None:
        """Follow the NeXus attributes default, default, signal from the root."""
        path = "/"
        for _ in range(8):
            group = self._file[path]
            step = text_attribute(group.attrs, "signal") or text_attribute(group.attrs, "default")
            if not step or step not in group:
                return None
            path = posixpath.join(path, step)
            if isinstance(self._file[path], self._h5py.Dataset):
                return path
        return None

    def _is_signal(self, path: str) -> bool:
        group = self._file[posixpath.dirname(path)]
        marked = self._file[path].attrs.get("signal") is not None  # NeXus before 2014
        return marked or text_attribute(group.attrs, "signal") == posixpath.basename(path)

    def _listing(self, under: str = "/") -> str:
        """Say which data sets there are, for an error."""
        group = self._file[under]
        found = []
        for path, item, where in walk(self._h5py, group):
            full = posixpath.join(under, path)
            if item is not None:
                found.append(f"{full} {item.shape} {type_name(item)}")
            else:
                found.append(f"{full} ({where})")
            if len(found) > N_LISTED:
                break
        if not found:
            return f"There is no data set below {under!r}."
        more = " ..." if len(found) > N_LISTED else ""
        return f"Data sets below {under!r}: " + "; ".join(found[:N_LISTED]) + more

    # The frames

    def _open_data(self) -> Any:
        data = self._file[self.dataset]
        if not data.shape and data.shape != ():
            raise CodecError(f"{self._label()} has no values (a null dataspace).\n  Name another.")
        if data.size == 0:
            raise CodecError(
                f"{self._label()} has shape {data.shape}: nothing is in it.\n"
                "  The recording may have ended before its first frame; name another data set."
            )
        self._check_filters(data)
        # h5py's chunk cache of 1 MiB decompresses a chunk that spans many frames
        # anew for each of them.
        chunks = data.chunks
        if chunks and data.ndim and chunks[0] > 1:
            h5py, path = self._h5py, self.dataset.encode()
            row = math.prod(-(-n // c) * c for n, c in zip(data.shape[1:], chunks[1:], strict=True))
            need = chunks[0] * row * data.dtype.itemsize
            access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
            access.set_chunk_cache(10007, min(max(need, 1 << 20), MAX_CHUNK_CACHE_BYTES), 0.75)
            del data
            data = h5py.Dataset(h5py.h5d.open(self._file.id, path, access))
        return data

    def _check_filters(self, data: Any) -> None:
        h5z = self._h5py.h5z
        plist = data.id.get_create_plist()
        for k in range(plist.get_nfilters()):
            code, _, _, name = plist.get_filter(k)
            if not h5z.filter_avail(code):
                with contextlib.suppress(ImportError):
                    import hdf5plugin  # noqa: F401  (registers its filters)
            if not h5z.filter_avail(code):
                raise MissingExtra(
                    f"{self._label()} is compressed with filter {code} "
                    f"({name.decode(errors='replace') or 'no name'}), which is not installed.\n"
                    "  pip install hdf5plugin, or conda install -c conda-forge hdf5plugin."
                )

    def _set_frames(self, frame_ndim: int | None) -> None:
        data = self._data
        try:
            dtype = data.dtype
        except TypeError as error:
            raise LayoutError(
                f"{self._label()} has a type that numpy does not have: {error}\n"
                "  Frames are numbers, fixed-length text or records of these."
            ) from error
        if wrong := variable_fields(dtype):
            raise LayoutError(
                f"{self._label()} holds values of no fixed size: {', '.join(wrong)}.\n"
                "  Frames are numbers, fixed-length text or records of these; name another "
                "data set."
            )
        base, inner = dtype.subdtype or (dtype, ())
        shape = tuple(int(n) for n in data.shape)
        known = frame_ndim
        if known is None:
            known = NDIM_OF_INTERPRETATION.get(text_attribute(data.attrs, "interpretation") or "")
        # How many axes of the data set are not of its frames: 0 or 1.
        n_outer = -1 if known is None else len(shape) + len(inner) - known
        if frame_ndim is not None and (n_outer not in (0, 1) or n_outer > len(shape)):
            raise LayoutError(
                f"{self._label()} has shape {(*shape, *inner)}: not one frame of {frame_ndim} "
                "dimensions, and not a stack of them.\n"
                f"  frame_ndim can be {len(shape) + len(inner)} or one less."
            )
        self._is_stack = n_outer == 1 if n_outer in (0, 1) and shape else len(shape) >= 3
        own = shape[1:] if self._is_stack else shape
        self._n_frames = shape[0] if self._is_stack else 1
        self._frame_shape = (*own, *(int(n) for n in inner))
        self._dtype: np.dtype[Any] = bare_dtype(base)
        h5py = self._h5py
        self._file_space = data.id.get_space()
        self._memory_space = h5py.h5s.create_simple(own or (1,))
        try:
            self._memory_type = h5py.h5t.py_create(dtype)
        except TypeError:  # text and dates of numpy: opaque to HDF5, the same bytes
            self._memory_type = data.id.get_type()

    def _select(self, i: int) -> Any:
        space = self._file_space
        if self._is_stack:
            rest = self._data.shape[1:]
            space.select_hyperslab((i, *(0 for _ in rest)), (1, *rest))
        return space

    def _check(self, i: int) -> None:
        if self.closed:
            raise ChannelClosed(
                f"{self.path!r} was closed.\n  Open it again: FrameFile({self.path!r})."
            )
        if not 0 <= i < self._n_frames:
            raise IndexError(
                f"{self._label()} has frames 0 to {self._n_frames - 1}, not {i}.\n"
                "  Choose --start and --stop within these."
            )

    def _label(self) -> str:
        return f"{self.dataset!r} in {self.path!r}"

    # The parameters

    def _collect_parameters(self) -> None:
        entry_path = self._entry_path()
        recorded = "pyhub_complete" in self._file[entry_path].attrs
        own = address_of(self._h5py, self._data)
        for path, item, where in sorted(self._distinct(entry_path), key=lambda found: found[0]):
            if item is None:
                self.skipped[path] = where
                _log.warning("%s: %s is left out: %s", self.path, path, where)
            elif address_of(self._h5py, item) == own:
                continue
            elif not recorded:
                self._add(path, item)
            elif path.startswith("parameters/"):
                self._add_recorded(path.removeprefix("parameters/"), item)
        if recorded:
            group = self._file[posixpath.dirname(self.dataset)]
            for column in ("frame_valid", "frame_rows", "timestamp_ns"):
                if column in group:
                    setattr(self, column, group[column][: self._n_frames])

    def _entry_path(self) -> str:
        parts = posixpath.dirname(self.dataset).strip("/").split("/")
        above = ["/" + "/".join(parts[:k]) for k in range(len(parts), 0, -1) if parts[0]]
        for path in above:
            if text_attribute(self._file[path].attrs, "NX_class") == "NXentry":
                return path
        return above[-1] if above else "/"

    def _distinct(self, root: str) -> Iterator[tuple[str, Any, str]]:
        """Walk below `root`, but yield a data set that has several links once."""
        seen = set()
        prefix = root.rstrip("/") + "/"
        for path, item, where in walk(self._h5py, self._file[root]):
            name = path
            if item is not None:
                address = address_of(self._h5py, item)
                if address in seen:
                    continue
                seen.add(address)
                target = text_attribute(item.attrs, "target") or ""
                if target.startswith(prefix) and self._is_at(target, address):
                    name = target.removeprefix(prefix)
            yield name, item, where

    def _is_at(self, path: str, address: tuple[int, int]) -> bool:
        try:
            return address_of(self._h5py, self._file[path]) == address
        except (KeyError, OSError):
            return False

    def _add(self, name: str, item: Any) -> None:
        """Take a data set as a parameter, or note why not."""
        n, shape = self._n_frames, item.shape
        is_constant = shape is not None and math.prod(shape) == 1
        if not is_constant and (shape != (n,) or n == 1):
            self.skipped[name] = f"shape {shape}: neither one value nor one for each of {n} frames"
            return
        try:
            values = read_values(self._h5py, item)
        except (TypeError, ValueError, OSError) as error:
            self.skipped[name] = str(error)
            _log.warning("%s: %s is left out: %s", self.path, name, error)
            return
        if is_constant:
            self.constants[name] = plain(values.reshape(())[()])
        else:
            self.per_frame[name] = values
        if units := text_attribute(item.attrs, "units"):
            self.units[name] = units

    def _add_recorded(self, path: str, item: Any) -> None:
        """Take a column that pyhub wrote, under the name that it was published with."""
        name = text_attribute(item.attrs, "pyhub_name") or path
        column = path if text_attribute(item.attrs, "pyhub_encoding") == "json" else name
        values = read_values(self._h5py, item, max_bytes=None)
        if len(values) != self._n_frames:
            self.skipped[path] = f"{len(values)} values for {self._n_frames} frames"
            return
        self.per_frame[column] = values
        if column != name or text_attribute(item.attrs, "pyhub_encoding") == "json":
            self._json[column] = name
        if "missing_value" in item.attrs:
            self._missing[column] = item.attrs["missing_value"]
        if units := text_attribute(item.attrs, "units"):
            self.units[name] = units
