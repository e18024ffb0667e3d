"""Between an array's dtype and shape and the bytes of a frame.

A header stores a dtype as text: numpy's own string for simple types
(``<u2``), JSON of numpy's description for structured ones
(``[["x", "<f4"], ["n", "<i8", [3]]]``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pyhub.errors import CapacityError, LayoutError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["FrameLayout", "dtype_to_text", "text_to_dtype"]

MAX_NDIM = 8
MAX_DTYPE_BYTES = 1023
# Bool, integers, floats, complex, bytes, text, raw bytes, dates. Not objects:
# a pointer means nothing to another process.
ALLOWED_KINDS = frozenset("biufcSUVmM")


def dtype_to_text(dtype: np.dtype[Any]) -> str:
    """Write `dtype` as a header stores it.

    Raises
    ------
    LayoutError
        It holds Python objects, has no size, or its description is too long.
    """
    _check_dtype(dtype)
    try:
        descr: object = np.lib.format.dtype_to_descr(dtype)
    except ValueError as error:
        raise LayoutError(
            f"the fields of dtype {dtype} overlap or are out of order, which has no description.\n"
            "  Give each field bytes of its own, in order."
        ) from error
    text = descr if isinstance(descr, str) else json.dumps(descr)
    if len(text.encode()) > MAX_DTYPE_BYTES:
        raise LayoutError(
            f"the description of dtype {dtype} takes {len(text.encode())} bytes; "
            f"a header has room for {MAX_DTYPE_BYTES}.\n  Use fewer or shorter field names."
        )
    return text


@lru_cache(64)
def text_to_dtype(text: str) -> np.dtype[Any]:
    """Read a dtype from a header's text.

    Raises
    ------
    LayoutError
        The text is no dtype that a frame can have.
    """
    try:
        descr = json.loads(text) if text.startswith("[") else text
        dtype = np.lib.format.descr_to_dtype(_with_tuples(descr))
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError) as error:
        raise LayoutError(f"the header's dtype {text!r} is none of numpy's.") from error
    _check_dtype(dtype)
    return dtype


@dataclass(frozen=True)
class FrameLayout:
    """The dtype and shape of a channel's frames.

    A frame may have fewer rows (a smaller first dimension) than `shape`, never
    more, and never another shape in the other dimensions.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, dtype: npt.DTypeLike, shape: int | tuple[int, ...]) -> FrameLayout:
        """Check `dtype` and `shape` and return their layout.

        Raises
        ------
        LayoutError
            The dtype holds objects, or the shape is negative or has more than
            8 dimensions.
        """
        try:
            checked = np.dtype(dtype)
        except TypeError as error:
            raise LayoutError(f"{dtype!r} is no numpy dtype.") from error
        _check_dtype(checked)
        dimensions = tuple(shape) if isinstance(shape, Iterable) else (shape,)
        if checked.subdtype is not None:
            raise LayoutError(
                f"dtype {checked} is an array of its own.\n"
                f"  Use dtype={checked.base} and add {checked.shape} to the shape."
            )
        if len(dimensions) > MAX_NDIM or any(
            not isinstance(n, (int, np.integer)) or n < 0 for n in dimensions
        ):
            raise LayoutError(
                f"shape {shape!r} is not one a frame can have: "
                f"up to {MAX_NDIM} dimensions, none negative."
            )
        return cls(checked, tuple(int(n) for n in dimensions))

    @cached_property
    def frame_bytes(self) -> int:
        """Bytes of a frame of the full shape."""
        return self.dtype.itemsize * math.prod(self.shape)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row: all dimensions but the first."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def is_whole_rows(self, size: int) -> bool:
        """Whether a frame may have `size` bytes; a scalar has no rows to leave out."""
        if not self.shape or not self.row_bytes:
            return size == self.frame_bytes
        return size % self.row_bytes == 0

    def shape_of(self, size: int) -> tuple[int, ...]:
        """Return the shape of a frame of `size` bytes."""
        if not self.shape or size == self.frame_bytes:
            return self.shape
        return (size // self.row_bytes if self.row_bytes else 0, *self.shape[1:])

    def size_of(self, array: npt.NDArray[Any]) -> int:
        """Return the bytes that `array` takes as a frame.

        Raises
        ------
        LayoutError
            Its dtype or a dimension after the first differs.
        CapacityError
            It has more rows than the channel's frames.
        """
        if array.dtype != self.dtype:
            raise LayoutError(
                f"the frame has dtype {array.dtype}, the channel {self.dtype}.\n"
                f"  Convert it first: array.astype({str(self.dtype)!r})."
            )
        if array.shape == self.shape:
            return self.frame_bytes
        if array.ndim != len(self.shape) or not self.shape or array.shape[1:] != self.shape[1:]:
            raise LayoutError(
                f"the frame has shape {array.shape}, the channel {self.shape}; "
                "only the first dimension may be smaller.\n"
                "  Reshape it, or create the channel anew with this shape."
            )
        if array.shape[0] > self.shape[0]:
            raise CapacityError(
                f"the frame has {array.shape[0]} rows ({array.nbytes} bytes), the channel "
                f"room for {self.shape[0]} ({self.frame_bytes} bytes).\n"
                "  Create the channel with the largest shape that will come."
            )
        return array.nbytes


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject or dtype.kind not in ALLOWED_KINDS or dtype.itemsize == 0:
        raise LayoutError(
            f"dtype {dtype} cannot be shared: frames hold fixed-size values, no Python objects.\n"
            "  Use numbers, fixed-length text (such as 'U16') or a structured dtype of these."
        )


def _with_tuples(descr: Any) -> Any:
    """Undo what JSON did to a description: fields and shapes are tuples."""
    if isinstance(descr, str) and not set(descr).isdisjoint(",() "):
        raise ValueError("numpy reads this as several fields, and some of it as Python")
    if not isinstance(descr, list):
        return descr
    fields = []
    for field in descr:
        name, kind, *shape = field
        name = tuple(name) if isinstance(name, list) else name
        fields.append((name, _with_tuples(kind), *(tuple(n) for n in shape)))
    return fields
