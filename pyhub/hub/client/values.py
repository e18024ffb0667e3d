"""Between Python objects and the values that messages carry (docs/reference/hub-protocol.md)."""

from __future__ import annotations

from typing import Any

from pyhub.codec import decode_value as unpack
from pyhub.codec import encode_value
from pyhub.errors import CapacityError

__all__ = ["MAX_VALUE_BYTES", "pack", "unpack"]

MAX_VALUE_BYTES = 48 * 1024


def pack(what: str, value: Any) -> bytes:
    """Return `value` as a message carries it.

    Raises
    ------
    CodecError
        It cannot be shared.
    CapacityError
        It takes more than 48 KiB.
    """
    packed = encode_value(value)
    if len(packed) > MAX_VALUE_BYTES:
        raise CapacityError(
            f"{what} takes {len(packed)} bytes; a message of the hub carries {MAX_VALUE_BYTES}.\n"
            "  Publish what is larger through a DataBlock, and send its name."
        )
    return packed
