"""The bounded walk accepts what msgpack writes, and nothing that is damaged."""

from __future__ import annotations

import datetime as dt
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhub._codec import check_msgpack
from pyhub.errors import CodecError

DEPTH, ITEMS = 64, 1_000_000
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

# No time of a machine is a claim, and no file is left behind.
bounded = settings(max_examples=200, deadline=None, database=None)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=40))
    | st.builds(msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**9 - 1))
    | st.datetimes(min_value=dt.datetime(1970, 1, 2), timezones=st.just(dt.UTC))
)
objects = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=10), inner, max_size=20)
    ),
    max_leaves=60,
)


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, datetime=True)
    return packed


def is_accepted(packed: bytes, depth: int = DEPTH, items: int = ITEMS) -> bool:
    try:
        check_msgpack(packed, depth, items)
    except CodecError:
        return False
    return True


@bounded
@given(objects)
def test_what_msgpack_packs_is_accepted(value: Any) -> None:
    assert is_accepted(pack(value))


@bounded
@given(objects, st.data())
def test_a_truncated_object_is_refused(value: Any, data: Any) -> None:
    packed = pack(value)
    length = data.draw(st.integers(0, len(packed) - 1))
    assert not is_accepted(packed[:length])


@bounded
@given(objects, st.binary(min_size=1, max_size=5))
def test_an_object_with_more_behind_it_is_refused(value: Any, more: bytes) -> None:
    assert not is_accepted(pack(value) + more)


@bounded
@given(st.binary(max_size=60))
def test_what_is_accepted_can_be_unpacked(packed: bytes) -> None:
    if is_accepted(packed):
        try:
            msgpack.unpackb(packed, raw=True, strict_map_key=False, ext_hook=lambda *ext: ext)
        except ValueError as error:
            # The walk looks at sizes, not into a time stamp of a wrong length.
            assert "Timestamp" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(bytes(head) + bytes(length), id=f"{head[0]:#x}")
        for head, length in [
            (b"\xc0", 0), (b"\xc2", 0), (b"\xc3", 0),
            (b"\xc4\x03", 3), (b"\xc5\x00\x03", 3), (b"\xc6\x00\x00\x00\x03", 3),
            (b"\xc7\x03\x05", 3), (b"\xc8\x00\x03\x05", 3), (b"\xc9\x00\x00\x00\x03\x05", 3),
            (b"\xca", 4), (b"\xcb", 8),
            (b"\xcc", 1), (b"\xcd", 2), (b"\xce", 4), (b"\xcf", 8),
            (b"\xd0", 1), (b"\xd1", 2), (b"\xd2", 4), (b"\xd3", 8),
            (b"\xd4\x05", 1), (b"\xd5\x05", 2), (b"\xd6\x05", 4), (b"\xd7\x05", 8),
            (b"\xd8\x05", 16),
            (b"\xd9\x03", 3), (b"\xda\x00\x03", 3), (b"\xdb\x00\x00\x00\x03", 3),
            (b"\xdc\x00\x03", 3), (b"\xdd\x00\x00\x00\x03", 3),
            (b"\xde\x00\x01\xa0", 1), (b"\xdf\x00\x00\x00\x01\xa0", 1),
            (b"\x00", 0), (b"\x7f", 0), (b"\xe0", 0), (b"\xff", 0),
            (b"\x80", 0), (b"\x81\xa0", 1), (b"\x90", 0), (b"\x9f", 15), (b"\xa0", 0),
            (b"\xbf", 31),
        ]
    ],
)  # fmt: skip
def test_every_form_takes_exactly_its_bytes(packed: bytes) -> None:
    msgpack.unpackb(packed)
    assert is_accepted(packed)
    assert not is_accepted(packed[:-1])
    assert not is_accepted(packed + b"\x00")


def test_the_byte_that_starts_nothing_is_refused() -> None:
    assert not is_accepted(b"\xc1")
    assert not is_accepted(b"\x91\xc1")


def test_nothing_is_no_object() -> None:
    assert not is_accepted(b"")


@pytest.mark.parametrize("depth", [1, 2, 3, 32, 64])
@pytest.mark.parametrize("kind", ["list", "dict"])
def test_depth_is_bounded_exactly(depth: int, kind: str) -> None:
    value: Any = 1
    for _ in range(depth - 1):
        value = [value] if kind == "list" else {"a": value}
    deeper = [value] if kind == "list" else {"a": value}
    assert is_accepted(pack(value), depth=depth)
    assert not is_accepted(pack(deeper), depth=depth)


def test_an_empty_container_at_the_last_level_is_accepted() -> None:
    assert is_accepted(pack([[]]), depth=2)
    assert is_accepted(pack([{}]), depth=2)


@pytest.mark.parametrize("n_items", [1, 2, 100])
def test_number_of_items_is_bounded_exactly(n_items: int) -> None:
    value = [0] * (n_items - 1)  # itself counts
    assert is_accepted(pack(value), items=n_items)
    assert not is_accepted(pack([*value, 0]), items=n_items)


@pytest.mark.parametrize("first", [b"\xdd", b"\xdf"])
def test_five_bytes_that_announce_billions_are_refused(first: bytes) -> None:
    assert not is_accepted(first + struct.pack(">I", 2**32 - 1))


@pytest.mark.parametrize("first", [b"\xc6", b"\xc9", b"\xdb"])
def test_a_length_beyond_the_end_is_refused(first: bytes) -> None:
    for length in (0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF):
        assert not is_accepted(first + struct.pack(">I", length) + bytes(100))


@bounded
@given(st.integers() | st.none() | st.binary(max_size=5) | st.floats(allow_nan=False))
def test_a_key_that_is_no_text_is_refused(key: Any) -> None:
    if not isinstance(key, int) or -(2**63) <= key < 2**64:
        assert not is_accepted(pack({key: 1}))
        assert not is_accepted(pack({"a": [{"b": 1, key: 2}]}))
        assert is_accepted(pack({"a": [key, {"b": key}], "c": key}))


def test_no_byte_outside_the_object_is_read(build: Any, run: Any) -> None:
    seen = run(build("flex_corners.c", *SANITIZE), 1, 2, 64, 65, 2**32 - 1)
    assert min(seen.values()) > 1000


def test_a_limit_of_no_depth_is_kept_as_well(build: Any, run: Any) -> None:
    seen = run(build("flex_corners.c", *SANITIZE), 0)
    assert seen["beyond"] > 0
