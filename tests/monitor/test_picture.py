"""Frames in the terminal: what is bright is seen where it is, and nothing breaks."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console
from rich.text import Text

from pyhub.monitor.picture import BLANK, fit, render
from pyhub.sources.detector import SimulatedDetector

Array = npt.NDArray[Any]


def pixels(text: Text, columns: int, rows: int) -> npt.NDArray[np.int_]:
    """The colours of a picture's pixels: twice as many rows as characters."""
    colours = np.full((2 * rows, columns, 3), -1)
    for span in text.spans:
        row, column = divmod(span.start, columns + 1)
        style = span.style
        assert not isinstance(style, str)
        for half, colour in ((0, style.color), (1, style.bgcolor)):
            assert colour is not None
            assert colour.triplet is not None
            colours[2 * row + half, column : column + span.end - span.start] = colour.triplet
    assert (colours >= 0).all(), "a pixel has no colour"
    return colours


def brightest(text: Text, columns: int, rows: int) -> tuple[int, int]:
    """Row and column of the brightest pixel."""
    brightness = pixels(text, columns, rows).sum(axis=2)
    row, column = np.unravel_index(np.argmax(brightness), brightness.shape)
    return int(row), int(column)


STRUCTURED = np.zeros((6, 6), dtype=[("a", "f4"), ("b", "i4")])
ANYTHING = {
    "bool": np.eye(20, dtype=np.bool_),
    "int8": np.arange(-60, 60, dtype=np.int8).reshape(10, 12),
    "uint16": np.arange(600, dtype=np.uint16).reshape(20, 30),
    "uint64": np.full((5, 5), 2**64 - 1, np.uint64),
    "big-endian": np.arange(600, dtype=">u2").reshape(20, 30),
    "float16": np.linspace(0, 60000, 100, dtype=np.float16).reshape(10, 10),
    "float64 extremes": np.array([[1e300, -1e300], [0.0, 1.0]]),
    "complex": np.full((4, 4), 1 + 2j),
    "nan": np.full((9, 9), np.nan),
    "some nan": np.array([[np.nan, 1.0], [np.inf, -np.inf]]),
    "constant": np.full((64, 64), 3.0),
    "zeros": np.zeros((64, 64), np.uint16),
    "all saturated": np.full((64, 64), 65535, np.uint16),
    "stack": np.zeros((5, 30, 40), np.uint16),
    "deep stack": np.zeros((2, 3, 30, 40), np.float32),
    "colour": np.zeros((30, 40, 3), np.uint8),
    "colour with alpha": np.zeros((30, 40, 4), np.uint16),
    "float colour": np.random.default_rng(0).random((30, 40, 3)),
    "colour with nan": np.full((30, 40, 3), np.nan),
    "vector": np.arange(100.0),
    "vector of nan": np.full(10, np.nan),
    "constant vector": np.ones(10),
    "one value": np.array(3.5),
    "one pixel": np.zeros((1, 1)),
    "one row": np.zeros((1, 500)),
    "one column": np.zeros((500, 1)),
    "empty": np.zeros((0, 10)),
    "empty vector": np.zeros(0),
    "structured": STRUCTURED,
    "text": np.array([["a", "b"]]),
    "dates": np.zeros((3, 3), "M8[s]"),
    "strided": np.zeros((40, 60), np.uint16)[::2, ::-3],
}


@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("what", ANYTHING)
@pytest.mark.parametrize("size", [(24, 7), (1, 1), (90, 30)])
def test_picture_has_the_size_asked_for(
    what: str, size: tuple[int, int], log: bool, ascii: bool
) -> None:
    columns, rows = size
    text = render(ANYTHING[what], columns, rows, log=log, ascii=ascii)
    assert [len(line) for line in text.plain.split("\n")] == [columns] * rows


@pytest.mark.parametrize("what", ANYTHING)
def test_ascii_has_neither_colours_nor_block_characters(what: str) -> None:
    text = render(ANYTHING[what], 20, 6, ascii=True)
    assert text.plain.isascii()
    assert not text.spans


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("place", [(0, 0), (300, 700), (511, 1027)])
def test_a_bright_spot_is_seen_where_it_is(place: tuple[int, int], log: bool, dtype: str) -> None:
    frame = np.random.default_rng(1).poisson(5, (512, 1028)).astype(dtype)
    row, column = place
    frame[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 120
    found = brightest(render(frame, 64, 16, log=log), 64, 16)
    assert found == (row * 32 // 512, column * 64 // 1028)


def test_one_bright_pixel_in_an_empty_frame_is_seen() -> None:
    frame = np.zeros((512, 1028), np.uint16)
    frame[200, 900] = 1
    assert brightest(render(frame, 64, 16), 64, 16) == (200 * 32 // 512, 900 * 64 // 1028)
    plain = render(frame, 64, 16, ascii=True).plain.split("\n")
    assert plain[200 * 16 // 512][900 * 64 // 1028] == "@"


def test_rings_of_a_detector_are_brighter_than_what_is_between() -> None:
    detector = SimulatedDetector()
    frame = np.empty(detector.shape, detector.dtype)
    detector.frame_into(frame, 0)
    brightness = pixels(render(frame, 100, 25), 100, 25).sum(axis=2)
    x, y = detector.beam_centre(0)
    first, second = detector.ring_radii_px[:2]
    row = int(y * 50 / 512)
    on_first, between, on_second = (
        brightness[row, int((x + radius) * 100 / 1028)]
        for radius in (first, (first + second) / 2, second)
    )
    assert on_first > 1.3 * between
    assert on_second > 1.3 * between


def test_values_without_a_number_are_blank() -> None:
    frame = np.linspace(1, 2, 400).reshape(20, 20)
    frame[:10] = np.nan
    colours = pixels(render(frame, 20, 10), 20, 10)
    assert (colours[:10] == BLANK).all()
    assert (colours[10:] != BLANK).any(axis=2).all()


def test_gaps_of_a_detector_are_blank_and_do_not_dim_the_rest() -> None:
    frame = np.random.default_rng(2).integers(0, 100, (40, 40), dtype=np.uint16)
    marked = frame.copy()
    marked[20:24] = 65535
    colours = pixels(render(marked, 40, 20), 40, 20)
    assert (colours[20:24] == BLANK).all()
    assert colours[:20].sum() == pytest.approx(
        pixels(render(frame, 40, 20), 40, 20)[:20].sum(), rel=0.05
    )


def test_a_constant_frame_has_one_colour() -> None:
    colours = pixels(render(np.full((50, 50), 7, np.uint16), 20, 10), 20, 10)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 1
    assert not (colours == BLANK).all()


def test_brightness_does_not_depend_on_the_unit() -> None:
    frame = np.random.default_rng(3).random((40, 40))
    assert render(frame, 20, 10).spans == render(1000 * frame, 20, 10).spans


def test_logarithm_lifts_what_is_weak() -> None:
    frame = np.tile(np.linspace(0, 1000, 64), (64, 1))
    weak = [pixels(render(frame, 32, 16, log=log), 32, 16)[0, 6].sum() for log in (True, False)]
    assert weak[0] > weak[1]


def test_colours_are_those_of_the_frame() -> None:
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[:20] = (252, 0, 0)
    frame[20:] = (0, 100, 200)
    colours = pixels(render(frame, 20, 10), 20, 10)
    assert (colours[:10] == (252, 0, 0)).all()
    assert (colours[10:] == (0, 100, 200)).all()


def test_of_a_stack_the_first_plane_is_drawn() -> None:
    stack = np.random.default_rng(4).random((3, 4, 30, 40))
    assert render(stack, 20, 8).spans == render(stack[0, 0], 20, 8).spans


def test_the_first_field_of_a_structured_frame_is_drawn() -> None:
    frame = STRUCTURED.copy()
    frame["a"] = np.arange(36).reshape(6, 6)
    assert render(frame, 6, 3).spans == render(frame["a"], 6, 3).spans


def test_a_curve_rises_to_its_peak() -> None:
    curve = np.exp(-0.5 * ((np.arange(256) - 128) / 10.0) ** 2)
    lines = render(curve, 32, 4, log=False).plain.split("\n")
    heights = [sum(line[column] != " " for line in lines) for column in range(32)]
    assert heights[16] == 4
    assert heights[0] == heights[31] == 1
    assert lines[0].strip("▁▂▃▄▅▆▇█") != lines[0] or "█" in lines[0]


def test_a_curve_of_one_line_is_a_sparkline() -> None:
    assert render(np.arange(8.0), 8, 1, log=False).plain == "▁▂▃▄▅▆▇█"


def test_a_gap_in_a_curve_stays_empty() -> None:
    curve = np.array([1.0, np.nan, 3.0])
    assert render(curve, 3, 1, log=False, ascii=True).plain == "# #"


def test_the_frame_is_left_as_it_is() -> None:
    frame = np.array([[1.0, np.nan], [np.inf, 2.0]])
    before = frame.copy()
    frame.flags.writeable = False
    render(frame, 4, 2)
    np.testing.assert_array_equal(frame, before)


def test_a_console_prints_it_line_for_line() -> None:
    out = io.StringIO()
    console = Console(file=out, width=40, color_system="truecolor", force_terminal=True)
    console.print(render(np.random.default_rng(5).random((32, 64)), 32, 8))
    assert out.getvalue().count("\n") == 8
    assert out.getvalue().count("▀") == 32 * 8


@pytest.mark.parametrize(
    ("shape", "available", "expected"),
    [
        ((512, 1028), (80, 40), (80, 20)),
        ((512, 1028), (80, 16), (64, 16)),
        ((5, 512, 1028), (80, 16), (64, 16)),
        ((480, 640, 3), (80, 15), (40, 15)),
        ((1, 100_000), (80, 16), (80, 1)),
        ((256,), (80, 4), (80, 4)),
        ((), (80, 4), (80, 4)),
    ],
)
def test_fit_keeps_proportions(
    shape: tuple[int, ...], available: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert fit(shape, *available) == expected
