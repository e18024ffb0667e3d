"""Between a Python dictionary and the bytes of a flex zone; and any value and the hub's.

A flex zone holds exactly one object, a map from names to values, written as
MessagePack or, on request, as JSON. The hub's messages carry values of any such
kind, as MessagePack. What survives the trip unchanged:

- ``None``, bool, int (64 bits), float, str, bytes, list, dict with str keys
- numpy scalars and arrays of fixed-size dtypes, with their dtype and shape
- ``datetime`` with a time zone (comes back in UTC)

Tuples come back as lists. NaN and infinities are kept by MessagePack; JSON has
none, so there they are refused. Nothing is ever pickled.

MessagePack extension types: -1 time stamp (the standard's own), 1 numpy array
``[dtype, shape, bytes]``, 2 numpy scalar ``[dtype, bytes]``. In JSON, whatever
JSON lacks is an object with the key ``$type``.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import math
import threading
from enum import IntEnum
from typing import Any

import msgpack
import numpy as np

from pyhub._codec import check_msgpack
from pyhub.errors import CodecError, LayoutError
from pyhub.layout import dtype_to_text, text_to_dtype

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "Encoding", "decode", "decode_value", "encode", "encode_value"]

MAX_DEPTH = 32
MAX_ITEMS = 65536
_ARRAY, _SCALAR = 1, 2
# What a subclass (an enum, say) is written as.
_PLAIN: tuple[type[Any], ...] = (bool, int, float, bytes, dict)
_JSON_TYPES = ("datetime", "bytes", "ndarray", "scalar")


class Encoding(IntEnum):
    """How a flex zone's object is written; the values stand in the segment."""

    MSGPACK = 1
    JSON = 2


def encode(parameters: dict[str, Any], encoding: Encoding = Encoding.MSGPACK) -> bytes:
    """Return `parameters` as the bytes of a flex zone.

    Raises
    ------
    CodecError
        A value cannot be shared, a key is no text, or there are more than
        32 levels or 65,536 items.
    """
    if not isinstance(parameters, dict):
        raise CodecError(
            f"a flex zone holds a dictionary of parameters, not {_kind(parameters)}.\n"
            "  Give the value a name: {'name': value}."
        )
    if encoding == Encoding.JSON:
        return _encode_json(parameters)
    if encoding != Encoding.MSGPACK:
        raise CodecError(f"encoding={encoding!r} is none of pyhub's.\n  Use pyhub.Encoding.")
    return encode_value(parameters)


def encode_value(value: Any) -> bytes:
    """Return any one value as MessagePack, within the same limits; errors as `encode`."""
    try:
        packed: bytes = _packer().pack(value)
    except CodecError:
        _local.packer = None  # it keeps what it had written so far
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        _local.packer = None
        raise _unsuitable(error) from error
    check_msgpack(packed, MAX_DEPTH, MAX_ITEMS)
    return packed


def decode(packed: bytes, encoding: int = Encoding.MSGPACK) -> dict[str, Any]:
    """Return the dictionary that the bytes of a flex zone stand for.

    Raises
    ------
    CodecError
        The bytes are not one whole object within the limits.
    """
    if encoding == Encoding.JSON:
        return _decode_json(packed)
    if encoding != Encoding.MSGPACK:
        raise CodecError(
            f"the flex zone is written in encoding {encoding}, which this pyhub does not know.\n"
            "  Its producer may be newer: conda update pyhub"
        )
    return _as_map(decode_value(packed))


def decode_value(packed: bytes) -> Any:
    """Return the value that MessagePack bytes stand for; errors as `decode`."""
    check_msgpack(packed, MAX_DEPTH, MAX_ITEMS)
    return _unpack(packed)


# --- MessagePack ---


def _packer() -> Any:
    """Return this thread's packer: making one costs more than most objects."""
    packer = getattr(_local, "packer", None)
    if packer is None:
        packer = _local.packer = msgpack.Packer(
            default=_to_msgpack, strict_types=True, datetime=True, buf_size=4096
        )
    return packer


_local = threading.local()


def _pack_inner(value: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _to_msgpack(value: Any) -> Any:
    if not isinstance(value, (np.ndarray, np.generic)):
        value = _to_plain(value)
    if isinstance(value, np.ndarray):
        text, raw = _from_numpy(value)
        return msgpack.ExtType(_ARRAY, _pack_inner([text, list(value.shape), raw]))
    if isinstance(value, np.generic):
        return msgpack.ExtType(_SCALAR, _pack_inner([*_from_numpy(value)]))
    return value


def _to_plain(value: Any) -> Any:
    """Turn what is nearly a value of the format (an enum, a tuple) into one."""
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            raise CodecError(
                f"datetime {value} has no time zone, so other programs cannot know when it was.\n"
                "  Use datetime.now(timezone.utc), or value.astimezone()."
            )
        utc = value.astimezone(dt.UTC)
        return dt.datetime.combine(utc.date(), utc.timetz())  # no subclass any more
    if isinstance(value, str):
        return str.__str__(value)  # str() of an enum would be its name
    for plain in _PLAIN:
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, complex):
        return np.complex128(value)
    raise CodecError(
        f"a flex zone, or a message of the hub, cannot hold {_kind(value)}: {value!r:.80}.\n"
        "  Use numbers, texts, bytes, lists, dictionaries, numpy arrays and scalars,\n"
        "  and datetimes with a time zone."
    )


def _unpack(packed: bytes) -> Any:
    try:
        return msgpack.unpackb(packed, ext_hook=_from_ext, timestamp=3)
    except CodecError:
        raise
    # msgpack raises ValueError, its own StackError and ExtraData, and
    # OverflowError for time stamps beyond year 9999.
    except Exception as error:
        raise _damaged(error) from error


def _from_ext(code: int, body: bytes) -> Any:
    if code not in (_ARRAY, _SCALAR):
        raise CodecError(
            f"the object holds an extension of type {code}, which this pyhub does not know.\n"
            "  Whoever wrote it may be newer: conda update pyhub"
        )
    check_msgpack(body, 2 + MAX_DEPTH, MAX_ITEMS)
    fields = msgpack.unpackb(body)
    if code == _ARRAY:
        text, shape, raw = fields
        return _array(text, tuple(shape), raw)
    text, raw = fields
    return _array(text, (), raw)[()]


def _array(text: str, shape: tuple[int, ...], raw: bytes) -> np.ndarray[Any, Any]:
    try:
        dtype = text_to_dtype(text)
        if len(raw) != dtype.itemsize * math.prod(shape):
            raise CodecError(f"{len(raw)} bytes are no {text} array of shape {shape}.")
        return np.frombuffer(raw, dtype).reshape(shape).copy()
    except (LayoutError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(error) from error


def _from_numpy(value: np.ndarray[Any, Any] | np.generic) -> tuple[str, bytes]:
    """Return the dtype's text and the bytes of a numpy value."""
    if value.dtype.kind in "SU" and value.dtype.itemsize == 0:
        value = np.asarray(value).astype(f"{value.dtype.kind}1")  # an empty text has no size
    try:
        return dtype_to_text(value.dtype), value.tobytes()
    except LayoutError as error:
        raise CodecError(str(error)) from error


# --- JSON ---


def _encode_json(parameters: dict[str, Any]) -> bytes:
    counter = [0]
    tree = _to_json(parameters, 1, counter)
    try:
        return json.dumps(tree, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise CodecError(
            "JSON has no NaN and no infinity.\n"
            "  Leave the value out, use None, or publish as MessagePack (the default)."
        ) from error


def _to_json(value: Any, depth: int, counter: list[int]) -> Any:
    counter[0] += 1
    if depth > MAX_DEPTH or counter[0] > MAX_ITEMS:
        raise CodecError(
            f"the object nests deeper than {MAX_DEPTH} levels or has more than "
            f"{MAX_ITEMS} items.\n"
            "  It is to hold parameters; put bulk data into a frame."
        )
    if value is None or type(value) in (bool, float, str):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        kind = "ndarray" if isinstance(value, np.ndarray) else "scalar"
        text, raw = _from_numpy(value)
        data = base64.b64encode(raw).decode()
        return {"$type": kind, "dtype": text, "shape": list(value.shape), "data": data}
    value = _to_plain(value)
    if isinstance(value, dict):
        if "$type" in value or not all(isinstance(key, str) for key in value):
            raise CodecError(
                "a key is not a text, or is '$type', which JSON flex zones keep for themselves.\n"
                "  Rename it, or publish as MessagePack (the default)."
            )
        return {key: _to_json(inner, depth + 1, counter) for key, inner in value.items()}
    if isinstance(value, list):
        return [_to_json(inner, depth + 1, counter) for inner in value]
    if isinstance(value, bytes):
        return {"$type": "bytes", "data": base64.b64encode(value).decode()}
    if isinstance(value, dt.datetime):
        return {"$type": "datetime", "data": value.isoformat()}
    if isinstance(value, np.generic):
        return _to_json(value, depth, counter)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise _unsuitable(OverflowError(f"{value} does not fit into 64 bits"))
    return value


def _decode_json(packed: bytes) -> dict[str, Any]:
    try:
        return _as_map(_from_json(json.loads(packed, parse_constant=_refuse_constant), 1, [0]))
    except CodecError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise _damaged(error) from error


def _from_json(value: Any, depth: int, counter: list[int]) -> Any:
    counter[0] += 1
    if depth > MAX_DEPTH or counter[0] > MAX_ITEMS:
        raise CodecError(
            f"the flex zone nests deeper than {MAX_DEPTH} levels or has more than "
            f"{MAX_ITEMS} items."
        )
    if isinstance(value, list):
        return [_from_json(inner, depth + 1, counter) for inner in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("$type")
    if kind is None:
        return {key: _from_json(inner, depth + 1, counter) for key, inner in value.items()}
    if kind not in _JSON_TYPES:
        raise CodecError(
            f"the flex zone holds a value of type {kind!r}, which this pyhub does not know.\n"
            "  Its producer may be newer: conda update pyhub"
        )
    if kind == "datetime":
        return dt.datetime.fromisoformat(value["data"])
    raw = base64.b64decode(value["data"], validate=True)
    if kind == "bytes":
        return raw
    array = _array(value["dtype"], tuple(value["shape"]), raw)
    return array[()] if kind == "scalar" else array


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# --- Both ---


def _as_map(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CodecError(
            f"the flex zone holds {_kind(value)}, not a dictionary of parameters.\n"
            "  Its producer should publish a map."
        )
    return value


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _unsuitable(error: Exception) -> CodecError:
    return CodecError(
        f"the object cannot be shared with other programs: {error}.\n"
        f"  Use integers of 64 bits, at most {MAX_DEPTH} levels, and no recursive containers."
    )


def _damaged(error: Exception) -> CodecError:
    return CodecError(
        f"the bytes are no valid object: {error}.\n"
        "  Whoever wrote them wrote something else, or named a wrong size."
    )
