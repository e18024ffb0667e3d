"""A frame drawn with characters: two pixels in each, one above the other."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.style import Style
from rich.text import Span, Text

__all__ = ["fit", "render"]

Floats: TypeAlias = npt.NDArray[np.float64]

# A tile looks at no more than so many rows and columns of the frame: enough to
# find a spot, and a frame of 16 megapixels costs no more than one of half that.
MAX_TILE: Final = 32
# The logarithm tells apart what is this many times weaker than the brightest.
CONTRAST: Final = 50.0

N_LEVELS: Final = 64
# Equal steps of matplotlib's inferno (Smith and van der Walt, CC0).
INFERNO: Final = (
    *((0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103)),
    *((188, 55, 84), (221, 81, 58), (243, 120, 25), (252, 165, 10), (246, 215, 70)),
    (252, 255, 164),
)
BLANK: Final = (48, 54, 61)
CURVE_STYLE: Final = Style(color=Color.from_rgb(252, 165, 10))
BARS: Final = " ▁▂▃▄▅▆▇█"
SHADES: Final = ".:-=+*#%@"


def render(
    frame: npt.NDArray[Any], columns: int, rows: int, *, log: bool = True, ascii: bool = False
) -> Text:
    """Draw `frame`, whatever it holds, as `rows` lines of `columns` characters.

    Parameters
    ----------
    frame
        1-D: a curve. 2-D: an image. Rows, columns and 3 or 4 values: a colour
        picture. Anything else with more dimensions: its first plane. Complex
        numbers: their size. Structured: the first field. No numbers: nothing.
    columns, rows
        Size in characters; see `fit` for one that keeps the frame's proportions.
    log
        Draw the logarithm, so that weak and strong rings are both seen.
    ascii
        Neither colours nor block characters; one pixel in a character.

    Notes
    -----
    NaN, infinities and, in unsigned types of two bytes and more, the largest
    value (a detector's mark for "no pixel here") are left blank. A pixel of the
    picture lies midway between mean and maximum of what it covers: spots stay
    visible and noise stays low. Contrast ignores the few darkest and brightest.

    Examples
    --------
    >>> import numpy as np
    >>> print(render(np.eye(3, dtype=np.uint16), 3, 3, ascii=True).plain)
    @..
    .@.
    ..@
    """
    columns, rows = max(columns, 1), max(rows, 1)
    plane = _plane(frame)
    if plane.size == 0:
        return _text([" " * columns] * rows, [])
    if plane.ndim == 1:
        return _curve(plane, columns, rows, log=log, ascii=ascii)
    height = rows if ascii else 2 * rows
    if plane.ndim == 3:
        colours = _colours(plane, columns, height)
        return _shades(colours.mean(axis=-1) / 256) if ascii else _half_blocks(colours)
    mean, most = _pool(plane, columns, height, gaps=True)
    brightness = _stretch(_between(mean, most, log=log), 1.0, 99.7)
    if ascii:
        return _shades(brightness)
    return _half_blocks(_palette()[_levels(brightness, N_LEVELS)])


def fit(shape: tuple[int, ...], columns: int, rows: int) -> tuple[int, int]:
    """Return the most columns and rows, up to those given, in a frame's proportions.

    Examples
    --------
    >>> fit((512, 1028), columns=80, rows=16)
    (64, 16)
    """
    if len(shape) < 2:
        return columns, rows
    height, width = shape[:2] if _is_colour(shape) else shape[-2:]
    # A character is twice as high as it is wide.
    scale = min(columns / max(width, 1), 2 * rows / max(height, 1))
    return max(1, round(width * scale)), max(1, round(height * scale / 2))


def _is_colour(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) > 4


def _plane(frame: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return numbers in one dimension, in two, or in two and a colour."""
    if frame.dtype.names:
        frame = frame[frame.dtype.names[0]]
    if frame.dtype.kind not in "buifc":
        return np.empty(0)
    while frame.ndim > 2 and frame.size and not _is_colour(frame.shape):
        frame = frame[0]
    if frame.dtype.kind == "c":
        frame = np.abs(frame)
    if frame.dtype.kind == "b":
        frame = frame.view(np.uint8)
    return frame.reshape(1) if frame.ndim == 0 else frame


def _pool(
    plane: npt.NDArray[Any], columns: int, height: int, *, gaps: bool = False
) -> tuple[Floats, Floats]:
    """Return mean and maximum of each tile, NaN where most of its pixels are not valid."""
    plane = plane[:: _step(plane.shape[0], height), :: _step(plane.shape[1], columns)]
    tops = np.arange(height) * plane.shape[0] // height
    lefts = np.arange(columns) * plane.shape[1] // columns
    n_pixels = np.outer(_lengths(tops, plane.shape[0]), _lengths(lefts, plane.shape[1]))
    n_good = n_pixels.astype(np.float64)
    bad = _bad(plane, gaps=gaps)
    filled = plane
    if bad.any():
        lowest = -np.inf if plane.dtype.kind == "f" else np.iinfo(plane.dtype).min
        filled = np.where(bad, plane.dtype.type(lowest), plane)
        n_bad = np.add.reduceat(bad, tops, axis=0, dtype=np.float64)
        n_good -= np.add.reduceat(n_bad, lefts, axis=1)
        n_good[2 * n_good < n_pixels] = np.nan
    most = np.maximum.reduceat(np.maximum.reduceat(filled, tops, axis=0), lefts, axis=1)
    if plane.dtype.kind == "f" and filled is not plane:
        filled[bad] = 0
    total = np.add.reduceat(filled, tops, axis=0, dtype=np.float64)
    total = np.add.reduceat(total, lefts, axis=1)
    return total / n_good, np.where(np.isnan(n_good), np.nan, most.astype(np.float64))


def _step(n_pixels: int, n_tiles: int) -> int:
    return max(1, n_pixels // (n_tiles * MAX_TILE))


def _lengths(starts: npt.NDArray[np.intp], stop: int) -> npt.NDArray[np.intp]:
    """Return how many pixels reduceat takes from each start on: one at least."""
    return np.maximum(np.diff(starts, append=stop), 1)


def _bad(plane: npt.NDArray[Any], *, gaps: bool) -> npt.NDArray[np.bool_]:
    bad = np.zeros(plane.shape, dtype=np.bool_)
    if plane.dtype.kind == "f":
        np.logical_not(np.isfinite(plane), out=bad)
    elif gaps and plane.dtype.kind == "u" and plane.dtype.itemsize > 1:
        np.equal(plane, np.iinfo(plane.dtype).max, out=bad)
    return bad


def _between(mean: Floats, most: Floats, *, log: bool) -> Floats:
    if not log:
        return 0.5 * (mean + most)
    low, high = _limits(mean, 1.0, 99.5)
    scale = CONTRAST / (high - low) if high > low else 0.0
    scaled = (np.log1p(np.maximum((values - low) * scale, 0)) for values in (mean, most))
    return 0.5 * (next(scaled) + next(scaled))


def _limits(values: Floats, lowest: float, highest: float) -> tuple[float, float]:
    """Return two percentiles, or the extremes if these do not differ."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 0.0
    low, high = np.percentile(finite, (lowest, highest)).tolist()
    return (low, high) if high > low else (float(finite.min()), float(finite.max()))


def _stretch(values: Floats, lowest: float, highest: float) -> Floats:
    """Bring `values` to 0...1: what does not vary to 1/3, what is no number to NaN."""
    low, high = _limits(values, lowest, highest)
    finite = np.isfinite(values)
    if high <= low:
        return np.where(finite, 1 / 3, np.nan)
    top = float(values[finite].max())
    # What is beyond still differs: the brightest spot is brighter than the rest.
    knee = 0.9 if top > high else 1.0
    return np.where(finite, np.interp(values, (low, high, max(top, high)), (0, knee, 1)), np.nan)


def _levels(brightness: Floats, n_levels: int) -> npt.NDArray[np.intp]:
    """Return whole steps of brightness, -1 where there is none."""
    return np.where(
        np.isnan(brightness), -1, np.nan_to_num(brightness) * n_levels * (1 - 1e-9)
    ).astype(np.intp)


def _colours(plane: npt.NDArray[Any], columns: int, height: int) -> npt.NDArray[np.uint8]:
    pooled = np.stack([_pool(plane[..., n], columns, height)[0] for n in range(3)], axis=-1)
    if plane.dtype != np.uint8:
        pooled = 255 * np.nan_to_num(_stretch(pooled, 0.5, 99.5))
    # Fewer colours, fewer changes of colour to send to the terminal.
    return pooled.astype(np.uint8) & np.uint8(0xFC)


@lru_cache(maxsize=1)
def _palette() -> npt.NDArray[np.uint8]:
    """Return the colours of all levels, and last, for level -1, that of no pixel."""
    steps = np.linspace(0, len(INFERNO) - 1, N_LEVELS)
    table = [
        np.interp(steps, range(len(INFERNO)), channel) for channel in zip(*INFERNO, strict=True)
    ]
    return np.vstack((np.stack(table, axis=1), BLANK)).astype(np.uint8)


def _half_blocks(colours: npt.NDArray[np.uint8]) -> Text:
    """Draw each two pixels as an upper half block: its colour and its background."""
    height, columns, _ = colours.shape
    cells = np.concatenate((colours[::2], colours[1::2]), axis=2)
    differs = np.ones((height // 2, columns), dtype=np.bool_)
    differs[:, 1:] = (cells[:, 1:] != cells[:, :-1]).any(axis=2)
    spans = []
    for row in range(height // 2):
        starts = np.flatnonzero(differs[row])
        stops = [*starts[1:].tolist(), columns]
        offset = row * (columns + 1)
        for start, stop, cell in zip(starts.tolist(), stops, cells[row, starts], strict=True):
            spans.append(Span(offset + start, offset + stop, _style(cell.tobytes())))
    return _text(["▀" * columns] * (height // 2), spans)


@lru_cache(maxsize=16384)
def _style(cell: bytes) -> Style:
    return Style(color=Color.from_rgb(*cell[:3]), bgcolor=Color.from_rgb(*cell[3:]))


def _shades(brightness: Floats) -> Text:
    levels = _levels(brightness, len(SHADES)).tolist()
    return _text(["".join(f"{SHADES} "[level] for level in line) for line in levels], [])


def _curve(values: npt.NDArray[Any], columns: int, rows: int, *, log: bool, ascii: bool) -> Text:
    """Draw bars, of which the smallest value has the lowest."""
    mean, most = _pool(values[None, :], columns, 1)
    steps = 1 if ascii else len(BARS) - 1
    unit = _stretch(_between(mean, most, log=log)[0], 0.0, 100.0)
    full = 1 + _levels(unit, rows * steps)
    lines = []
    for row in range(rows - 1, -1, -1):
        filled = np.clip(full - row * steps, 0, steps).tolist()
        lines.append("".join(" #"[n] if ascii else BARS[n] for n in filled))
    return _text(lines, [] if ascii else [Span(0, rows * (columns + 1) - 1, CURVE_STYLE)])


def _text(lines: list[str], spans: list[Span]) -> Text:
    return Text("\n".join(lines), spans=spans, no_wrap=True, overflow="crop", end="")
