"""What goes into a flex zone comes out again, in both encodings, or is refused by name."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import json
import math
import threading
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyhub.codec import MAX_DEPTH, MAX_ITEMS, Encoding, decode, encode
from pyhub.errors import CodecError

bounded = settings(max_examples=80, deadline=None, database=None)
both = pytest.mark.parametrize("encoding", list(Encoding), ids=lambda e: e.name)

ZONE = dt.timezone(dt.timedelta(hours=5, minutes=45))


class Mode(enum.Enum):
    FAST = 1


class Gain(enum.IntEnum):
    HIGH = 3


class Text(str, enum.Enum):  # noqa: UP042  the older way is the one that goes wrong
    OPEN = "open"


class Instant(dt.datetime):
    """As pandas.Timestamp is."""


def same(found: Any, expected: Any) -> bool:
    """Whether both are equal in type, dtype, shape and every bit."""
    if type(found) is not type(expected):
        return False
    if isinstance(expected, (np.ndarray, np.generic)):
        return bool(
            found.dtype == expected.dtype
            and found.shape == expected.shape
            and found.tobytes() == expected.tobytes()
        )
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[k], expected[k]) for k in found)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float) and math.isnan(expected):
        return math.isnan(found)
    return bool(found == expected)


def trip(value: Any, encoding: Encoding = Encoding.MSGPACK) -> Any:
    return decode(encode({"value": value}, encoding), encoding)["value"]


# What survives

plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=30)
    | st.binary(max_size=30)
    | st.datetimes(
        min_value=dt.datetime(1, 1, 3),
        max_value=dt.datetime(9999, 12, 29),
        timezones=st.just(dt.UTC),
    )
)
dtypes = hnp.scalar_dtypes() | hnp.array_dtypes(max_size=2).filter(
    lambda dtype: len(str(dtype.descr).encode()) < 150
)
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
scalars = hnp.arrays(dtypes, ()).map(lambda array: array[()])
keys = st.text(max_size=10).filter(lambda key: key != "$type")
parameters = st.dictionaries(
    keys,
    st.recursive(
        plain | arrays | scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=12,
    ),
    max_size=5,
)


@both
@bounded
@given(parameters)
def test_parameters_survive_the_trip(encoding: Encoding, parameters: dict[str, Any]) -> None:
    """Seed 12. MessagePack is the first encoding, JSON a supported one."""
    assert same(decode(encode(parameters, encoding), encoding), parameters)


@both
@pytest.mark.parametrize(
    "value",
    [
        np.float32(1.5),
        np.uint64(2**64 - 1),
        np.bool_(True),
        np.complex64(1 - 2j),
        np.datetime64("2026-07-01T12:00:00.123456789", "ns"),
        np.datetime64("NaT", "s"),
        np.str_("µm"),
        np.str_(""),
        np.bytes_(b"\x00\xff"),
        np.array(5, ">i4"),
        np.arange(6, dtype=">u2").reshape(2, 3),
        np.array([["a", "bcd"]]),
        np.zeros((0, 3), "f4"),
        np.array([(1, 2.5)], dtype=[("n", "<i8"), ("x", ">f4")]),
        np.array([np.nan, np.inf, -0.0]),
    ],
    ids=repr,
)
def test_a_numpy_value_keeps_its_dtype_and_shape(encoding: Encoding, value: Any) -> None:
    assert same(trip(value, encoding), value)


@both
def test_an_array_in_another_memory_order_comes_back_equal(encoding: Encoding) -> None:
    array = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    assert np.array_equal(trip(array, encoding), array)


@both
def test_an_array_that_comes_back_is_the_readers_own(encoding: Encoding) -> None:
    found = trip(np.arange(3), encoding)
    found[0] = 7
    assert found.flags.owndata


@both
def test_a_datetime_comes_back_in_utc(encoding: Encoding) -> None:
    then = dt.datetime(1969, 7, 20, 20, 17, 40, 123456, ZONE)
    found = trip(then, encoding)
    assert found == then
    assert found.tzinfo is dt.UTC


@both
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2, "x")), [1, [2, "x"]]),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (1 + 2j, np.complex128(1 + 2j)),
        (Gain.HIGH, 3),
        (Text.OPEN, "open"),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        ({Text.OPEN: 1}, {"open": 1}),
        (Instant(2026, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
    ],
    ids=repr,
)
def test_what_is_nearly_a_value_of_the_format_becomes_one(
    encoding: Encoding, value: Any, expected: Any
) -> None:
    assert same(trip(value, encoding), expected)


def test_messagepack_is_what_other_programs_read() -> None:
    packed = encode({"energy_keV": 12.0, "n": 3, "ok": True, "path": ["a", None]})
    assert msgpack.unpackb(packed) == {"energy_keV": 12.0, "n": 3, "ok": True, "path": ["a", None]}


def test_json_is_what_other_programs_read() -> None:
    packed = encode({"energy_keV": 12.0, "n": 3, "ok": True, "path": ["a", None]}, Encoding.JSON)
    assert json.loads(packed) == {"energy_keV": 12.0, "n": 3, "ok": True, "path": ["a", None]}


# NaN


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_messagepack_keeps_nan_and_infinities(value: float) -> None:
    assert same(trip(value), value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_refuses_nan_and_infinities_and_names_messagepack(value: float) -> None:
    with pytest.raises(CodecError, match=r"no NaN.*\n.*MessagePack"):
        encode({"value": [value]}, Encoding.JSON)


# What is refused


@both
@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        Mode.FAST,
        Path("x"),
        decimal.Decimal(1),
        dt.date(2026, 1, 1),
        dt.timedelta(1),
        len,
        threading.Lock(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_shared_is_refused_by_its_type(encoding: Encoding, value: Any) -> None:
    with pytest.raises(CodecError, match=type(value).__qualname__):
        encode({"value": [value]}, encoding)


@both
def test_a_datetime_without_time_zone_is_refused_with_the_remedy(encoding: Encoding) -> None:
    with pytest.raises(CodecError, match=r"no time zone.*\n.*timezone.utc"):
        encode({"value": dt.datetime(2026, 1, 1)}, encoding)


@both
@pytest.mark.parametrize("key", [1, None, b"key", (1, 2)], ids=repr)
def test_a_key_that_is_no_text_is_refused(encoding: Encoding, key: Any) -> None:
    with pytest.raises(CodecError, match="key"):
        encode({"value": {key: 1}}, encoding)


@both
@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_an_integer_beyond_64_bits_is_refused(encoding: Encoding, value: int) -> None:
    with pytest.raises(CodecError, match="64 bits"):
        encode({"value": value}, encoding)


@both
def test_an_array_of_objects_is_refused(encoding: Encoding) -> None:
    with pytest.raises(CodecError, match="no Python objects"):
        encode({"value": np.array([object()])}, encoding)


@both
@pytest.mark.parametrize("value", [[1], None, 3, "text"], ids=repr)
def test_only_a_dictionary_goes_into_a_flex_zone(encoding: Encoding, value: Any) -> None:
    with pytest.raises(CodecError, match="holds a dictionary"):
        encode(value, encoding)


def test_the_key_that_json_zones_keep_for_themselves_is_refused() -> None:
    with pytest.raises(CodecError, match=r"\$type"):
        encode({"value": {"$type": 1}}, Encoding.JSON)
    assert trip({"$type": 1}) == {"$type": 1}


# Limits


def nested(depth: int) -> dict[str, Any]:
    """Return a dictionary of so many levels."""
    value: Any = 1
    for _ in range(depth - 2):
        value = [value]
    return {"value": value}


@both
def test_objects_may_nest_to_the_limit_and_no_deeper(encoding: Encoding) -> None:
    deepest = nested(MAX_DEPTH)
    assert decode(encode(deepest, encoding), encoding) == deepest
    with pytest.raises(CodecError, match=f"deeper than {MAX_DEPTH}"):
        encode(nested(MAX_DEPTH + 2), encoding)


@both
def test_objects_may_have_items_to_the_limit_and_no_more(encoding: Encoding) -> None:
    # MessagePack counts keys, too: the map, its key, the list.
    most = {"value": [0] * (MAX_ITEMS - 3)}
    assert decode(encode(most, encoding), encoding) == most
    with pytest.raises(CodecError, match=f"more than {MAX_ITEMS} items"):
        encode({"value": [0] * MAX_ITEMS}, encoding)


@both
def test_an_object_that_holds_itself_is_refused(encoding: Encoding) -> None:
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(CodecError):
        encode(endless, encoding)


@both
def test_a_refused_object_leaves_nothing_behind_for_the_next_one(encoding: Encoding) -> None:
    for refused in ({"a": [1, object()]}, {"a": 2**70}, {"a": {1: 2}}, nested(600)):
        with pytest.raises(CodecError):
            encode(refused, encoding)
        assert decode(encode({"b": 2}, encoding), encoding) == {"b": 2}


@both
def test_threads_encode_at_the_same_time_without_mixing(encoding: Encoding) -> None:
    failures: list[Any] = []

    def work(number: int) -> None:
        value = {"n": number, "array": np.full(300, number)}
        for _ in range(200):
            if not same(decode(encode(value, encoding), encoding), value):
                failures.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# Bytes that somebody else wrote


def array_of(*fields: Any, code: int = 1) -> bytes:
    """Pack an extension of `code` with `fields` in it."""
    body = msgpack.packb(list(fields))
    packed: bytes = msgpack.packb({"a": msgpack.ExtType(code, body)})
    return packed


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"\x81\xa1a",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        encode({"a": 1})[:-1],
        encode({"a": 1}) + b"\x00",
        b"\x81\xa1\xff\x01",
        b"\x91" * 1000 + b"\x00",
        bytes(range(256)),
        array_of("<i4", [2], b"\0" * 7),
        array_of("<i4", [-1], b"\0" * 4),
        array_of("<i4", [1 << 40, 1 << 40], b""),
        array_of("<i4", "x", b""),
        array_of("<i4", [1.5], b"\0" * 6),
        array_of("O", [1], b"\0" * 8),
        array_of("no dtype", [1], b"\0"),
        array_of(7, [1], b"\0"),
        array_of(None, [1], b"\0"),
        array_of("<i4"),
        array_of("<i4", [1], 5),
        array_of("<i4", [1], "text"),
        array_of("<i4", b"\0" * 5, code=2),
        array_of("<i4", [1], b"\0" * 4, code=2),
        msgpack.packb({"a": msgpack.ExtType(1, b"")}),
        msgpack.packb({"a": msgpack.Timestamp(1 << 60, 0)}),
        b"\x81\xa1a\xc7\x03\xff123",  # a time stamp of three bytes
    ],
    ids=lambda packed: packed[:12].hex(),
)
def test_damaged_messagepack_is_refused(packed: bytes) -> None:
    with pytest.raises(CodecError):
        decode(packed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "\x00",
        "nonsense",
        '{"a": 1} x',
        '{"a": {"$type": "ndarray"}}',
        '{"a": {"$type": "ndarray", "dtype": 5, "shape": [], "data": ""}}',
        '{"a": {"$type": "ndarray", "dtype": "O", "shape": [1], "data": "AAAAAAAAAAA="}}',
        '{"a": {"$type": "ndarray", "dtype": "<i4", "shape": 3, "data": "AAAA"}}',
        '{"a": {"$type": "ndarray", "dtype": "<i4", "shape": ["x"], "data": "AAAA"}}',
        '{"a": {"$type": "ndarray", "dtype": "<i4", "shape": [1e400], "data": "AAAA"}}',
        '{"a": {"$type": "ndarray", "dtype": "<i4", "shape": [1], "data": "?"}}',
        '{"a": {"$type": "bytes", "data": 5}}',
        '{"a": {"$type": "datetime", "data": "yesterday"}}',
        '{"a": {"$type": "datetime", "data": 5}}',
        '{"a": {"$type": "unheard of", "dtype": "<i4", "shape": [0], "data": ""}}',
        '{"a": {"$type": ["bytes"], "data": ""}}',
        '{"a": "' + "1" * 5000 + '"',
        "[" * 10000,
        '{"a": ' + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1) + "}",
        '{"a": [' + "0," * MAX_ITEMS + "0]}",
    ],
    ids=lambda text: text[:60],
)
def test_damaged_json_is_refused(text: str) -> None:
    with pytest.raises(CodecError):
        decode(text.encode(), Encoding.JSON)


@both
@bounded
@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_a_codec_error(encoding: Encoding, packed: bytes) -> None:
    try:
        assert isinstance(decode(packed, encoding), dict)
    except CodecError:
        return


@both
@bounded
@given(parameters, st.data())
def test_no_damage_raises_anything_but_a_codec_error(
    encoding: Encoding, parameters: dict[str, Any], data: st.DataObject
) -> None:
    packed = bytearray(encode(parameters, encoding))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(decode(bytes(packed), encoding), dict)
    except CodecError:
        return


@both
@pytest.mark.parametrize("value", [[1], 3, "text", None], ids=repr)
def test_an_object_that_is_no_map_is_refused(encoding: Encoding, value: Any) -> None:
    packed = msgpack.packb(value) if encoding == Encoding.MSGPACK else json.dumps(value).encode()
    with pytest.raises(CodecError, match="not a dictionary of parameters"):
        decode(packed, encoding)


def test_an_extension_of_unknown_type_is_named() -> None:
    with pytest.raises(CodecError, match="extension of type 42"):
        decode(msgpack.packb({"a": msgpack.ExtType(42, b"?")}))


def test_an_unknown_encoding_is_named() -> None:
    with pytest.raises(CodecError, match="encoding 9, which this pyhub does not know"):
        decode(b"\x80", 9)


def test_nothing_is_ever_unpickled() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            raise AssertionError("pickled")

    for encoding in Encoding:
        with pytest.raises(CodecError):
            encode({"a": Trap()}, encoding)
        with pytest.raises(CodecError):
            encode({"a": np.array([Trap()], dtype=object)}, encoding)
