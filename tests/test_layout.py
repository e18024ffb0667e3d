"""Any fixed-size dtype survives the header's text; frames are measured before they are copied."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyhub.errors import CapacityError, LayoutError
from pyhub.layout import FrameLayout, dtype_to_text, text_to_dtype

bounded = settings(max_examples=200, deadline=None, database=None)

DTYPES: list[Any] = [
    "?",
    "i1",
    "u1",
    "<i2",
    ">u2",
    "<u4",
    ">i8",
    "<f2",
    "<f4",
    ">f8",
    np.longdouble,
    "<c8",
    ">c16",
    "S5",
    "<U16",
    ">U3",
    "V7",
    "<M8[ns]",
    ">M8[25s]",
    "<m8[us]",
    [("x", "<f4"), ("n", ">i8", (3,)), ("name", "U4")],
    [("outer", [("a", "<u2"), ("when", "<M8[ms]")], (2, 2)), ("b", "S3")],
    np.dtype([("a", "u1"), ("b", "<f8")], align=True),
    np.dtype({"names": ["a"], "formats": ["<u4"], "offsets": [4], "itemsize": 16}),
    [(("a title", "field"), "<i4")],
    [("größe µm", "<f4")],
]

REFUSED: list[Any] = [
    object,
    [("a", "<i4"), ("b", object)],
    [("nested", [("o", "O")])],
    "V0",
    "S0",
    [],
]

OVERLAPPING = np.dtype({"names": ["all", "low"], "formats": ["<u4", "<u2"], "offsets": [0, 0]})
OUT_OF_ORDER = np.dtype({"names": ["b", "a"], "formats": ["<u4", "<u4"], "offsets": [4, 0]})


# The header's text


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_dtype_survives_the_headers_text(dtype: npt.DTypeLike) -> None:
    expected = np.dtype(dtype)
    found = text_to_dtype(dtype_to_text(expected))
    assert found == expected
    assert found.itemsize == expected.itemsize


@bounded
@given(
    hnp.scalar_dtypes()
    | hnp.array_dtypes(max_size=3).filter(lambda dtype: len(str(dtype.descr).encode()) < 150)
)
def test_any_fixed_size_dtype_survives_the_headers_text(dtype: np.dtype[Any]) -> None:
    assert text_to_dtype(dtype_to_text(dtype)) == dtype


def test_the_text_is_numpys_own_or_json_of_numpys_description() -> None:
    assert dtype_to_text(np.dtype(">u2")) == ">u2"
    structured = np.dtype([("x", "<f4"), ("n", "<i8", (3,))])
    assert json.loads(dtype_to_text(structured)) == [["x", "<f4"], ["n", "<i8", [3]]]


@pytest.mark.parametrize("dtype", REFUSED, ids=str)
def test_a_dtype_with_objects_or_without_size_is_refused(dtype: npt.DTypeLike) -> None:
    with pytest.raises(LayoutError, match="no Python objects"):
        dtype_to_text(np.dtype(dtype))
    with pytest.raises(LayoutError, match="no Python objects"):
        FrameLayout.of(dtype, (2,))


@pytest.mark.parametrize("dtype", [OVERLAPPING, OUT_OF_ORDER], ids=["overlapping", "unordered"])
def test_fields_that_numpy_cannot_describe_are_refused(dtype: np.dtype[Any]) -> None:
    with pytest.raises(LayoutError, match="overlap or are out of order"):
        dtype_to_text(dtype)


def test_a_description_too_long_for_the_header_is_refused_with_both_sizes() -> None:
    dtype = np.dtype([(f"a_rather_long_field_name_{i}", "<f8") for i in range(40)])
    with pytest.raises(LayoutError, match=r"takes \d{4} bytes; a header has room for 1023"):
        dtype_to_text(dtype)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "O",
        "|O",
        "no dtype",
        "[",
        "[1]",
        "[[]]",
        '[["a"]]',
        '[["a", "O"]]',
        "(0),",
        "i4,i4",
        '[["a", "(2),i4"]]',
        '[["a", "<i4", [-1]]]',
        '[["a", "<i4", ["x"]]]',
        '[["a", "<i4", [1e99]]]',
        '[["a", "<i4"], ["a", "<i4"]]',
        "[" * 5000,
        "<U4000000000",
        f'[["a", "<i4", [{2**100}]]]',
    ],
)
def test_a_text_that_is_no_dtype_is_refused(text: str) -> None:
    with pytest.raises(LayoutError):
        text_to_dtype(text)


@bounded
@given(st.text(alphabet="[]()<>|,\"' 0123456789ifuUSVmMO?:{}", max_size=30))
def test_no_text_raises_anything_but_a_layout_error(text: str) -> None:
    try:
        dtype = text_to_dtype(text)
    except LayoutError:
        return
    assert not dtype.hasobject


@bounded
@given(
    st.recursive(
        st.none() | st.integers(-5, 10**20) | st.sampled_from(["b", "<i4", "V3", "O", ""]),
        lambda inner: st.lists(inner, max_size=4),
        max_leaves=12,
    )
)
def test_no_description_raises_anything_but_a_layout_error(descr: Any) -> None:
    try:
        text_to_dtype(json.dumps([descr]))
    except LayoutError:
        return


# Shapes


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), ()),
        (5, (5,)),
        (0, (0,)),
        (np.int64(5), (5,)),
        ([512, 1028], (512, 1028)),
        ((2, 0, 3), (2, 0, 3)),
        (np.array([3, 4]), (3, 4)),
        ((1,) * 8, (1,) * 8),
    ],
    ids=str,
)
def test_a_shape_is_what_numpy_takes_for_one(shape: Any, expected: tuple[int, ...]) -> None:
    assert FrameLayout.of("u2", shape).shape == expected


@pytest.mark.parametrize(
    "shape", [-1, (2, -3), (1,) * 9, 2.5, (2.5,), "12", (None,), None], ids=str
)
def test_a_shape_that_no_frame_can_have_is_refused(shape: Any) -> None:
    with pytest.raises(LayoutError, match="not one a frame can have"):
        FrameLayout.of("u2", shape)


@pytest.mark.parametrize("dtype", ["no dtype", 3.5, [("a",)]], ids=str)
def test_what_is_no_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(LayoutError, match="no numpy dtype"):
        FrameLayout.of(dtype, (2,))


def test_a_dtype_that_is_an_array_is_refused_with_the_shape_to_use() -> None:
    with pytest.raises(LayoutError, match=r"Use dtype=float32 and add \(2, 3\) to the shape"):
        FrameLayout.of(("<f4", (2, 3)), (5,))


def test_sizes_follow_from_dtype_and_shape() -> None:
    layout = FrameLayout.of("<u2", (512, 1028))
    assert (layout.row_bytes, layout.frame_bytes) == (2056, 512 * 2056)
    scalar = FrameLayout.of("<f8", ())
    assert (scalar.row_bytes, scalar.frame_bytes) == (8, 8)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((4, 3), 24, (4, 3)),
        ((4, 3), 12, (2, 3)),
        ((4, 3), 0, (0, 3)),
        ((), 2, ()),
        ((4, 0), 0, (4, 0)),
        ((0, 3), 0, (0, 3)),
    ],
)
def test_the_rows_of_a_frame_follow_from_its_size(
    shape: tuple[int, ...], size: int, expected: tuple[int, ...]
) -> None:
    assert FrameLayout.of("u2", shape).shape_of(size) == expected


# Frames


def test_a_frame_of_the_right_dtype_and_shape_fits() -> None:
    layout = FrameLayout.of("<f4", (4, 3))
    assert layout.size_of(np.zeros((4, 3), "<f4")) == 48
    assert layout.size_of(np.zeros((1, 3), "<f4")) == 12
    assert layout.size_of(np.zeros((0, 3), "<f4")) == 0


def test_a_frame_of_another_dtype_is_refused_with_the_conversion() -> None:
    layout = FrameLayout.of("<u2", (4, 3))
    for other in ("<i2", ">u2", "<f8"):
        with pytest.raises(LayoutError, match=r"astype\('uint16'\)"):
            layout.size_of(np.zeros((4, 3), other))


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 4), (4, 3, 1), (), (12,)], ids=str)
def test_a_frame_of_another_shape_is_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError) as caught:
        FrameLayout.of("u1", (4, 3)).size_of(np.zeros(shape, "u1"))
    assert str(shape) in str(caught.value)
    assert "(4, 3)" in str(caught.value)


def test_a_frame_with_too_many_rows_is_refused_with_both_sizes() -> None:
    with pytest.raises(CapacityError, match=r"5 rows \(30 bytes\).*room for 4 \(24 bytes\)"):
        FrameLayout.of("u2", (4, 3)).size_of(np.zeros((5, 3), "u2"))


def test_a_frame_is_not_one_of_a_scalar_channel_unless_it_is_a_scalar() -> None:
    layout = FrameLayout.of("u1", ())
    assert layout.size_of(np.zeros((), "u1")) == 1
    with pytest.raises(LayoutError):
        layout.size_of(np.zeros((1,), "u1"))
