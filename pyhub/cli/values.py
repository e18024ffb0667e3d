"""Values as users type them, and as they are shown."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import click
import numpy as np

from pyhub.cli.options import format_shape
from pyhub.hub.client.entries import Event, StateEntry
from pyhub.monitor.wording import short, to_json

__all__ = ["as_line", "as_lines", "foreign", "moment", "shown", "typed", "typed_pair"]


def typed(text: str) -> Any:
    """Return what `text` says in JSON; what is no JSON is a text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def typed_pair(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE; a type of click's."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is no NAME=VALUE; write it as exposure_s=0.1")
    return name, typed(value)


def as_line(value: Any, max_length: int | None = None) -> str:
    """Return `value` in one line as one would type it: a text as it is, all else as JSON."""
    if not isinstance(value, str):
        value = json.dumps(value, default=to_json, ensure_ascii=False)
    return short(value, max_length)


def shown(item: StateEntry | Event, max_length: int | None = None) -> str:
    """Return the value of `item` in one line; in angle brackets why there is none to show."""
    if item.problem:
        return short(f"<{item.problem.splitlines()[0]}>", max_length)
    return as_line(item.value, max_length)


def as_lines(value: Any) -> str:
    """Return `value` to be read by people: an array with its shape, a text with its lines."""
    if isinstance(value, str):
        return foreign(value)
    if isinstance(value, dict) and value:
        return "\n".join(f"{short(name)}: {as_line(inner)}" for name, inner in value.items())
    if isinstance(value, np.ndarray):
        kind = f"array of shape {format_shape(value.shape)}, {value.dtype}"
        return foreign(f"{kind}\n{np.array2string(value)}")
    return as_line(value)


def foreign(text: str) -> str:
    """Return `text` with its lines, without what a terminal would take for a command."""
    return "\n".join(short(line) for line in text.split("\n"))


def moment(time_ns: int) -> str:
    """Return a time of the wall clock as ISO 8601 has it, in this place's own zone."""
    when = dt.datetime.fromtimestamp(time_ns / 1e9).astimezone()
    return when.isoformat(timespec="milliseconds")
