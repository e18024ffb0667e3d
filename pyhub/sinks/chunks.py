"""Frames as chunks of an HDF5 data set: types, filters, compression."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhub.errors import CapacityError, LayoutError, MissingExtra
from pyhub.layout import FrameLayout

__all__ = [
    "COMPRESSIONS",
    "Filters",
    "bytes_of",
    "check_chunk",
    "deflate",
    "file_type",
    "filters_of",
    "make_dataset",
]

COMPRESSIONS = ("gzip", "lzf", "bitshuffle-lz4", "none")
MAX_CHUNK_BYTES = (1 << 32) - 1  # HDF5: the size of a chunk has 32 bits

Filters = list[tuple[int, tuple[int, ...]]]


def check_chunk(layout: FrameLayout) -> None:
    """Refuse frames that HDF5 cannot hold as one chunk."""
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


def filters_of(h5py: Any, compression: str) -> Filters:
    """Return HDF5's filters, with their parameters, for a name in `COMPRESSIONS`."""
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


def file_type(h5py: Any, dtype: np.dtype[Any]) -> Any:
    """Return HDF5's type for `dtype`, of the same bytes: what numpy alone has is opaque."""
    if dtype.subdtype is not None:
        return h5py.h5t.array_create(file_type(h5py, dtype.base), dtype.shape)
    if dtype.fields is not None:
        record = h5py.h5t.create(h5py.h5t.COMPOUND, dtype.itemsize)
        for name in dtype.names or ():
            inner, offset = dtype.fields[name][:2]
            record.insert(name.encode(), offset, file_type(h5py, inner))
        return record
    return h5py.h5t.py_create(h5py.opaque_dtype(dtype) if dtype.kind in "UMm" else dtype)


def make_dataset(
    h5py: Any,
    group: Any,
    name: bytes | None,
    kind: Any,
    chunk: tuple[int, ...],
    fill: npt.NDArray[Any] | None = None,
    filters: Filters | None = None,
) -> Any:
    """Make a data set of no rows that grows, without a cache: each write goes to the file."""
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_chunk(chunk)
    create.set_fill_time(h5py.h5d.FILL_TIME_IFSET)
    if fill is not None:
        create.set_fill_value(fill)
    for code, options in filters or ():
        create.set_filter(code, h5py.h5z.FLAG_OPTIONAL, options)
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(1, 0, 1.0)
    space = h5py.h5s.create_simple((0, *chunk[1:]), (h5py.h5s.UNLIMITED, *chunk[1:]))
    made = h5py.h5d.create(group.id, name, kind, space, create, None, access)
    return h5py.Dataset(made)


def bytes_of(block: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the bytes of a contiguous block, as they lie."""
    return block.reshape(-1).view(np.uint8)


def deflate(block: npt.NDArray[Any]) -> tuple[bytes, int]:
    """Do what HDF5's filters shuffle and deflate do; say which of them was left out.

    Runs of equal bytes are all that counts and noise have to offer: the
    strategy Z_RLE is faster and packs them more tightly than level 1 alone.
    """
    size = block.itemsize
    data = bytes_of(block)
    if size > 1:
        data = np.ascontiguousarray(data.reshape(-1, size).T).reshape(-1)
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    packed = packer.compress(data.data) + packer.flush()
    if len(packed) < data.nbytes:
        return packed, 0
    return data.tobytes(), 0b10
