"""Parameters and figures as people read them, and as JSON can say them."""

from __future__ import annotations

import base64
import datetime as dt
import math
from typing import Any

import numpy as np

__all__ = ["short", "spelled", "to_json"]


def spelled(flex: dict[str, Any], max_length: int | None = None) -> dict[str, str]:
    """Return parameters as texts, with the units that ``flex["units"]`` gives for some."""
    units = flex.get("units")
    known = units if isinstance(units, dict) else {}
    return {
        name: short(value, max_length) + (f" {known[name]}" if name in known else "")
        for name, value in flex.items()
        if name != "units" or not known
    }


def short(value: object, max_length: int | None = None) -> str:
    """Return `value` in one line, of `max_length` letters at most."""
    if isinstance(value, (float, np.floating)):
        return f"{value:.6g}"
    # Line feeds, and what a terminal would take for a command.
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return text if max_length is None or len(text) <= max_length else text[: max_length - 3] + "..."


def to_json(value: Any) -> Any:
    """Return `value` as JSON can say it; NaN and infinities become null."""
    if isinstance(value, dict):
        return {name: to_json(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(inner) for inner in value]
    if isinstance(value, (np.longdouble, np.clongdouble)):  # their tolist() gives themselves
        value = float(value) if isinstance(value, np.longdouble) else complex(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return to_json(value.tolist())
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (dt.datetime, dt.date, dt.timedelta, complex)):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
