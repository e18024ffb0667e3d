"""An exported array is its own memory, described as DLPack's consumers expect it.

numpy is one of those consumers; what it does not look at is read as C does, through
structures written down here a second time.
"""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from pyhub._dlpack import export
from pyhub.errors import LayoutError

if TYPE_CHECKING:
    from typing_extensions import CapsuleType

Array = npt.NDArray[Any]

both = pytest.mark.parametrize("max_version", [None, (1, 0)], ids=["plain", "versioned"])

numpy_reads_versioned = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="numpy reads versioned capsules from 2.1"
)
both_by_numpy = pytest.mark.parametrize(
    "max_version",
    [None, pytest.param((1, 0), marks=numpy_reads_versioned)],
    ids=["plain", "versioned"],
)


class Lender:
    """An array as one protocol exports it, whatever the consumer asks for."""

    def __init__(self, array: Array, max_version: tuple[int, int] | None) -> None:
        self.array, self.max_version = array, max_version

    def __dlpack__(self, *, stream: None = None, **wishes: object) -> CapsuleType:
        return export(self.array, self.max_version)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Plain(ctypes.Structure):
    _fields_ = [
        ("tensor", Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
    ]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


CAPSULES = {b"dltensor": Plain, b"dltensor_versioned": Versioned}
USED = b"used"


def address_of(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def name_of(capsule: object) -> bytes:
    name_of_capsule = ctypes.pythonapi.PyCapsule_GetName
    name_of_capsule.restype, name_of_capsule.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return bytes(name_of_capsule(capsule))


def look_into(capsule: object) -> Any:
    """Return the structure in `capsule`, which stays the capsule's and keeps it."""
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    name = name_of(capsule)
    structure = CAPSULES[name].from_address(pointer_of(capsule, name))
    structure.capsule = capsule
    return structure


def take_from(capsule: object) -> Any:
    """Return the structure in `capsule`, whose deleter the caller has to call."""
    taken = look_into(capsule)
    rename = ctypes.pythonapi.PyCapsule_SetName
    rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
    rename(capsule, USED)
    return taken


# Which protocol


@pytest.mark.parametrize(
    ("max_version", "name"),
    [
        (None, b"dltensor"),
        ((0, 8), b"dltensor"),
        ((1, 0), b"dltensor_versioned"),
        ((1, 2), b"dltensor_versioned"),
        ((2, 0), b"dltensor_versioned"),
    ],
)
def test_the_capsule_is_of_the_newest_protocol_that_both_know(
    max_version: tuple[int, int] | None, name: bytes
) -> None:
    assert name_of(export(np.zeros(3), max_version)) == name


def test_a_versioned_capsule_says_which_version_it_is() -> None:
    found = look_into(export(np.zeros(3), (1, 2)))
    assert (found.major, found.minor) == (1, 0)


@numpy_reads_versioned
@pytest.mark.parametrize("is_writable", [False, True])
def test_a_versioned_capsule_says_whether_it_may_be_written(is_writable: bool) -> None:
    array = np.arange(4)
    array.flags.writeable = is_writable
    assert np.from_dlpack(Lender(array, (1, 0))).flags.writeable == is_writable


@numpy_reads_versioned
def test_writing_through_a_capsule_writes_the_array() -> None:
    array = np.zeros(4)
    np.from_dlpack(Lender(array, (1, 0)))[2] = 7
    assert list(array) == [0, 0, 7, 0]


def test_a_plain_capsule_lends_what_numpy_refuses_to() -> None:
    array = read_only(np.arange(4))
    with pytest.raises(BufferError):
        array.__dlpack__()
    assert np.array_equal(np.from_dlpack(Lender(array, None)), array)


# What is in it


@both_by_numpy
@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 1, 3), (1,) * 32], ids=str)
def test_an_array_is_lent_without_a_copy(
    max_version: tuple[int, int] | None, shape: tuple[int, ...]
) -> None:
    size = int(np.prod(shape))
    array = read_only(np.arange(size, dtype="uint16").reshape(shape))
    found = np.from_dlpack(Lender(array, max_version))
    assert address_of(found) == address_of(array)
    assert np.array_equal(found, array)


@both_by_numpy
@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        *((f"int{bits}", 0) for bits in (8, 16, 32, 64)),
        *((f"uint{bits}", 1) for bits in (8, 16, 32, 64)),
        *((f"float{bits}", 2) for bits in (16, 32, 64)),
        *((f"complex{bits}", 5) for bits in (64, 128)),
        ("bool", 6),
        ("longlong", 0),
        ("ulonglong", 1),
    ],
)
def test_every_dtype_comes_out_as_it_went_in(
    max_version: tuple[int, int] | None, dtype: str, code: int
) -> None:
    array = read_only(np.array([0, 1, 1, 0]).astype(dtype))
    tensor = look_into(export(array, max_version)).tensor
    assert (tensor.code, tensor.bits, tensor.lanes) == (code, 8 * array.itemsize, 1)
    found = np.from_dlpack(Lender(array, max_version))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@both_by_numpy
@pytest.mark.parametrize(
    "part",
    [
        np.s_[::2, :, 1],
        np.s_[:, ::-1, ::-3],
        np.s_[1:, 2:3],
        np.s_[1, 1, 1],
        np.s_[None, :, 0],
        np.s_[..., 5],
    ],
    ids=str,
)
def test_a_part_of_an_array_is_lent_where_it_lies(
    max_version: tuple[int, int] | None, part: Any
) -> None:
    array = read_only(np.asarray(np.arange(120, dtype="int32").reshape(4, 5, 6)[part]))
    tensor = look_into(export(array, max_version)).tensor
    assert tensor.data == address_of(array)
    assert tensor.shape[: tensor.ndim] == list(array.shape)
    found = np.from_dlpack(Lender(array, max_version))
    assert address_of(found) == address_of(array)
    assert np.array_equal(found, array)


@both
def test_strides_are_counted_in_elements(max_version: tuple[int, int] | None) -> None:
    array = np.zeros((4, 5, 6), "float64").transpose(2, 0, 1)[::-2]
    tensor = look_into(export(array, max_version)).tensor
    assert tensor.strides[:3] == [-2, 30, 6]


@both
def test_a_broadcast_array_repeats_its_bytes(max_version: tuple[int, int] | None) -> None:
    array = np.broadcast_to(np.arange(3), (4, 3))
    tensor = look_into(export(array, max_version)).tensor
    assert tensor.strides[:2] == [0, 1]


@both
def test_the_memory_is_the_hosts_and_begins_at_the_pointer(
    max_version: tuple[int, int] | None,
) -> None:
    tensor = look_into(export(np.zeros((4, 5))[2:], max_version)).tensor
    assert (tensor.device_type, tensor.device_id, tensor.byte_offset) == (1, 0, 0)


@both_by_numpy
def test_a_scalar_has_no_dimensions(max_version: tuple[int, int] | None) -> None:
    array = read_only(np.array(7, "int16"))
    found = np.from_dlpack(Lender(array, max_version))
    assert found.shape == ()
    assert address_of(found) == address_of(array)


@both_by_numpy
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)], ids=str)
def test_without_elements_there_is_no_address_but_a_shape(
    max_version: tuple[int, int] | None, shape: tuple[int, ...]
) -> None:
    array = read_only(np.zeros(shape))
    assert look_into(export(array, max_version)).tensor.data is None
    assert np.from_dlpack(Lender(array, max_version)).shape == shape


# What is refused


@both
@pytest.mark.parametrize(
    "dtype",
    [
        ">u2",
        ">f8",
        "S4",
        "U4",
        "V8",
        "O",
        "M8[s]",
        "m8[s]",
        "longdouble",
        [("x", "f4"), ("n", "i8")],
    ],
    ids=str,
)
def test_what_dlpack_does_not_know_is_refused(
    max_version: tuple[int, int] | None, dtype: Any
) -> None:
    array = np.zeros(3, dtype)
    with pytest.raises(LayoutError) as refusal:
        export(array, max_version)
    assert str(refusal.value) == (
        f"an array of dtype {array.dtype} cannot go through DLPack.\n"
        "  It knows bool, integers, floats and complex numbers in this machine's byte order.\n"
        "  Convert a copy with array.astype, or export one field of a structured array."
    )


# One field of each: between its elements lie no whole ones (but whole halves, of a
# complex number), or before it lies half of one.
@pytest.mark.parametrize(
    "dtype",
    [
        [("value", "f8"), ("n", "i4")],
        [("value", "c16"), ("n", "i8")],
        [("n", "i4"), ("value", "f8"), ("m", "i4")],
    ],
    ids=str,
)
def test_elements_that_are_not_aligned_are_refused(dtype: Any) -> None:
    array = np.zeros(3, dtype)["value"]
    with pytest.raises(LayoutError) as refusal:
        export(array, None)
    assert str(refusal.value) == (
        f"the elements of this {array.dtype} array do not lie on multiples of their size "
        f"(strides of {array.strides} bytes).\n"
        "  It may be one field of a structured array; DLPack counts in whole elements.\n"
        "  Copy it first: array.copy()"
    )


def test_a_refused_array_is_not_held() -> None:
    array = np.zeros(3, [("value", "f8"), ("n", "i4")])["value"]
    with pytest.raises(LayoutError):
        export(array, None)
    gone = weakref.ref(array)
    del array
    gc.collect()
    assert gone() is None


# How long it lasts


@both_by_numpy
def test_an_array_lives_until_its_consumer_is_gone(max_version: tuple[int, int] | None) -> None:
    array = read_only(np.arange(3))
    gone = weakref.ref(array)
    found = np.from_dlpack(Lender(array, max_version))
    del array
    gc.collect()
    assert gone() is not None
    del found
    gc.collect()
    assert gone() is None


@both_by_numpy
def test_a_part_of_what_the_consumer_made_keeps_the_array(
    max_version: tuple[int, int] | None,
) -> None:
    array = read_only(np.arange(3))
    gone = weakref.ref(array)
    part = np.from_dlpack(Lender(array, max_version))[1:]
    del array
    gc.collect()
    assert gone() is not None
    assert list(part) == [1, 2]


@both
def test_a_capsule_that_nobody_takes_gives_the_array_back(
    max_version: tuple[int, int] | None,
) -> None:
    array = np.arange(3)
    gone = weakref.ref(array)
    capsule = export(array, max_version)
    del array
    assert gone() is not None
    del capsule
    assert gone() is None


@both_by_numpy
@pytest.mark.parametrize("is_taken", [False, True])
def test_nothing_is_left_behind(max_version: tuple[int, int] | None, is_taken: bool) -> None:
    lender = Lender(read_only(np.arange(3)), max_version)

    def lend() -> None:
        np.from_dlpack(lender) if is_taken else lender.__dlpack__()

    lend()  # what is made once is made here
    tracemalloc.start()
    try:
        for _ in range(1000):
            lend()
        left_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left_bytes < 100_000  # an export takes more than 1000


def let_go(max_version: tuple[int, int] | None, how: str) -> tuple[int, str, str]:
    """Run a program that calls a deleter as only C can; it tells the array's end."""
    program = f"""
import ctypes, sys, weakref
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
import numpy as np
import test_dlpack

array = np.arange(3)
gone = weakref.ref(array, lambda _: print("gone", flush=True))
taken = test_dlpack.take_from(test_dlpack.export(array, {max_version}))
deleter = ctypes.cast(taken.deleter, ctypes.c_void_p)
tensor = ctypes.c_void_p(ctypes.addressof(taken))
del array
libc = ctypes.CDLL(None)
{how}"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@both
def test_a_consumer_may_let_go_in_a_thread_of_c(max_version: tuple[int, int] | None) -> None:
    how = """
thread = ctypes.c_ulong()
assert libc.pthread_create(ctypes.byref(thread), None, deleter, tensor) == 0
assert libc.pthread_join(thread, None) == 0
assert gone() is None
"""
    assert let_go(max_version, how) == (0, "gone\n", "")


@both
def test_a_consumer_may_let_go_after_the_interpreters_end(
    max_version: tuple[int, int] | None,
) -> None:
    """Statics of C++ do. The C library calls them when Python has finished."""
    how = "assert libc.__cxa_atexit(deleter, tensor, None) == 0"
    assert let_go(max_version, how) == (0, "", "")
