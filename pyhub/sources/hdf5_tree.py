"""Looking into an HDF5 file: opening, walking, reading small values."""

from __future__ import annotations

import errno
import math
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhub.errors import AccessDenied, CodecError, MissingExtra

MAX_TEXT_BYTES = 1024


def load_h5py() -> Any:
    """Import h5py, on use: it is an extra.

    Raises
    ------
    MissingExtra
        It is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra(
            f"HDF5 files need the package h5py, which cannot be imported ({error}).\n"
            "  pip install pyhub[hdf5], or conda install h5py."
        ) from error
    return h5py


def open_file(h5py: Any, path: str) -> Any:
    """Open `path` for reading; errors say what it is instead."""
    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no file {path!r}, seen from {os.getcwd()!r}.\n"
            "  Check the path; a relative one starts at the current directory."
        ) from error
    except PermissionError as error:
        raise AccessDenied(
            f"{path!r} cannot be read by uid {os.getuid()}: {error}\n"
            "  Ask its owner for read permission: chmod a+r."
        ) from error
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise CodecError(
                f"{path!r} is locked: another program is writing it ({error}).\n"
                "  Wait until it has finished, or copy the file and open the copy."
            ) from error
        raise CodecError(
            f"{path!r} is no HDF5 file, or a damaged one: {error}\n"
            "  Look at its kind with `file`; if its writing was interrupted, try `h5clear`."
        ) from error


def walk(h5py: Any, root: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield path and data set of everything below `root`, nearest first, sorted.

    Where a link leads to another file or nowhere, the data set is None and the
    third item says where the link leads.
    """
    queue = deque([("", root)])
    seen = {address_of(h5py, root)}
    while queue:
        prefix, group = queue.popleft()
        links = {name: _link(group, name) for name in group}
        for name in sorted(links, key=lambda name: (isinstance(links[name], h5py.SoftLink), name)):
            path, link = prefix + name, links[name]
            if isinstance(link, h5py.ExternalLink):
                yield path, None, f"external link to {link.filename}:{link.path}"
                continue
            try:
                item = group[name]
            except (KeyError, OSError, RuntimeError):
                where = link.path if isinstance(link, h5py.SoftLink) else "an unreadable object"
                yield path, None, f"broken link to {where}"
                continue
            if isinstance(item, h5py.Dataset):
                yield path, item, ""
            elif isinstance(item, h5py.Group):
                address = address_of(h5py, item)
                if address not in seen:
                    seen.add(address)
                    queue.append((path + "/", item))


def _link(group: Any, name: str) -> Any:
    try:
        return group.get(name, getlink=True)
    except (TypeError, OSError):  # a user-defined link
        return None


def address_of(h5py: Any, item: Any) -> tuple[int, int]:
    """Return where the object lies: the same for each link to it."""
    info = h5py.h5o.get_info(item.id)
    return int(info.fileno), int(info.addr)


def text_attribute(attributes: Any, name: str) -> str | None:
    """Return an attribute of text, whichever of HDF5's ways it is stored in."""
    try:
        value = attributes.get(name)
    except (OSError, TypeError):
        return None
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        value = decode_text(value)
    return str(value) if isinstance(value, str) else None


def decode_text(text: bytes) -> str:
    """Return text that is UTF-8, or else Latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")  # older writers: a degree sign, an angstrom


def read_values(h5py: Any, item: Any, max_bytes: int | None = MAX_TEXT_BYTES) -> npt.NDArray[Any]:
    """Return numbers in native byte order, or text as an array of str.

    Raises
    ------
    ValueError
        It is neither, or a text is longer than `max_bytes`.
    """
    dtype = item.dtype
    is_text = dtype.kind in "SU" or h5py.check_string_dtype(dtype) is not None
    if not is_text:
        if dtype.kind not in "biufc":
            raise ValueError(f"type {type_name(item)} is neither a number nor text")
        return np.asarray(item[()], bare_dtype(dtype).newbyteorder("="))
    limit = math.inf if max_bytes is None else max_bytes
    if dtype.kind == "S" and dtype.itemsize > limit:
        raise ValueError(f"text of {dtype.itemsize} bytes, more than {max_bytes}")
    raw = np.asarray(item[()], object)
    longest = max((len(text) for text in raw.flat), default=0)
    if longest > limit:
        raise ValueError(f"text of {longest} bytes, more than {max_bytes}")
    texts = np.empty(raw.size, object)
    texts[:] = [decode_text(t) if isinstance(t, bytes) else str(t) for t in raw.flat]
    return texts.reshape(raw.shape)


def plain(value: Any) -> Any:
    """Return Python's own type where it says the same, else the numpy value."""
    if isinstance(value, (np.bool_, np.int64, np.float64)):
        return value.item()
    return value


def bare_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Drop what h5py notes beside a type: encodings, the names of an enum."""
    if dtype.subdtype is not None:
        return np.dtype((bare_dtype(dtype.base), dtype.shape))
    if dtype.fields is None:
        return np.dtype(dtype.str)
    names = list(dtype.names or ())
    layout = {
        "names": names,
        "formats": [bare_dtype(dtype.fields[name][0]) for name in names],
        "offsets": [dtype.fields[name][1] for name in names],
        "itemsize": dtype.itemsize,
    }
    # numpy's stub knows literal dictionaries only.
    bare: np.dtype[Any] = np.dtype(layout)  # type: ignore[call-overload]
    return bare


def variable_fields(dtype: np.dtype[Any], name: str = "") -> list[str]:
    """Return the names of fields without a fixed size; "" for the type itself."""
    base = dtype.base
    if base.names is not None:
        fields = ((f"{name}.{field}" if name else field, field) for field in base.names)
        return [wrong for full, field in fields for wrong in variable_fields(base[field], full)]
    if not base.hasobject:
        return []
    what = "variable-length or reference values"
    return [f"field {name!r} ({what})" if name else what]


def type_name(item: Any) -> str:
    """Return the type for a message."""
    try:
        return str(item.dtype)
    except TypeError:
        return "of a type that numpy does not have"
