"""Parameters as what a data set can hold: flattened, typed, or JSON."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Value = np.generic | npt.NDArray[Any]


def split_flex(flex: Mapping[str, Any] | None) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the units by name, and the parameters without dictionaries in them."""
    if not flex:
        return {}, {}
    units = flex.get("units")
    if isinstance(units, Mapping):
        named = flatten(units)
        if all(isinstance(text, str) for text in named.values()):
            return named, flatten({key: flex[key] for key in flex if key != "units"})
    return {}, flatten(flex)


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, their names joined by '/'."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        inner = flatten(value, name + "/") if isinstance(value, Mapping) and value else {}
        for path, leaf in (inner or {name: value}).items():
            while path in flat:  # {"a": {"b": 1}, "a/b": 2}
                path += "_"
            flat[path] = leaf
    return flat


def typed(value: Any) -> Value | None:
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


def component(part: str) -> str:
    """Return `part` as HDF5 allows it in a path."""
    return "_" if part == "." else clean_text(part)


def clean_text(text: str) -> str:
    """Replace what HDF5's text cannot have: NUL, and bytes that were no UTF-8."""
    return text.encode(errors="replace").decode().replace("\0", "_")


def to_json(value: Any) -> str:
    """Return `value` as JSON text; what JSON lacks, as best it can be said."""
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
