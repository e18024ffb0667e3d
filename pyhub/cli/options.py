"""Options that several commands share, and how their values are written."""

from __future__ import annotations

import math
import re
from typing import Any

import click
import numpy as np

from pyhub.errors import LayoutError
from pyhub.layout import FrameLayout

__all__ = ["Number", "dtype", "example", "format_shape", "shape"]


class Number(click.FloatRange):
    """A number within bounds. NaN, which no bound holds back, and infinity are none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return `value` as a float."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number to count with.", param, ctx)
        return number


def shape(value: str | tuple[int, ...]) -> tuple[int, ...]:
    """Read a shape such as 512x1028; a type of click's."""
    if isinstance(value, tuple):
        return value
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", value):
        raise click.BadParameter(f"{value!r} is no shape; write it as 512x1028")
    return tuple(int(n) for n in value.split("x"))


def dtype(value: str | np.dtype[Any]) -> np.dtype[Any]:
    """Read a numpy dtype such as uint16; a type of click's."""
    try:
        return FrameLayout.of(value, ()).dtype
    except LayoutError as error:
        raise click.BadParameter(str(error)) from error


def example(*lines: str) -> str:
    """Return a help text's epilog of example command lines."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def format_shape(size: tuple[int, ...]) -> str:
    """Write a shape as the options take it."""
    return "x".join(str(n) for n in size) or "scalar"
