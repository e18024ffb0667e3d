# cython: language_level=3, embedsignature=False
"""An array's memory, lent to torch, JAX and others through DLPack.

numpy lends its arrays itself, but refuses for a read-only one when the consumer
asks for the protocol without versions, which cannot say "read-only". Frames are
read-only for every consumer, and JAX 0.10 asks that way; torch 2.13 no longer does.
"""

from cpython.buffer cimport PyBUF_STRIDED_RO, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

import numpy as np

from pyhub.errors import LayoutError

cdef extern from "Python.h" nogil:
    const int PyBUF_MAX_NDIM
    bint Py_IsInitialized()

# The structures and numbers are those of DLPack's C ABI 1.0. The producer, here,
# writes them before it gives the capsule away; from then on the consumer reads.
cdef struct Device:
    int32_t kind
    int32_t number

cdef struct DataType:
    uint8_t code
    uint8_t bits
    uint16_t lanes

cdef struct Tensor:
    void *data
    Device device
    int32_t ndim
    DataType dtype
    int64_t *shape
    int64_t *strides  # in elements
    uint64_t byte_offset

cdef struct PlainTensor:
    Tensor tensor
    void *producers_own
    void (*deleter)(PlainTensor *) noexcept nogil  # the consumer calls it once

cdef struct Version:
    uint32_t major
    uint32_t minor

cdef struct VersionedTensor:
    Version version
    void *producers_own
    void (*deleter)(VersionedTensor *) noexcept nogil  # the consumer calls it once
    uint64_t flags
    Tensor tensor

cdef enum:
    CPU = 1
    READ_ONLY = 1

# One capsule's memory. The buffer keeps the array, whose base keeps the mapping.
# Raw memory: a deleter may be called, and look at it, after the interpreter's end.
cdef struct Export:
    Py_buffer buffer
    int64_t shape[PyBUF_MAX_NDIM]
    int64_t strides[PyBUF_MAX_NDIM]
    PlainTensor plain
    VersionedTensor versioned

# A consumer that takes the tensor renames its capsule.
cdef const char *_PLAIN = "dltensor"
cdef const char *_VERSIONED = "dltensor_versioned"

# A dtype in another byte order is equal to none of these.
_CODES = {
    np.dtype(name): code
    for code, names in {
        0: ["int8", "int16", "int32", "int64"],
        1: ["uint8", "uint16", "uint32", "uint64"],
        2: ["float16", "float32", "float64"],
        5: ["complex64", "complex128"],
        6: ["bool"],
    }.items()
    for name in names
}


def export(array, max_version):
    """Lend the memory of `array` to one consumer: a DLPack capsule, without a copy.

    The array lives until the consumer lets go, or the capsule is collected
    before one took it.

    Parameters
    ----------
    max_version
        The newest protocol that the consumer knows. From (1, 0) on the capsule
        says whether the array is read-only. An older one, or None, cannot say it:
        who writes through that capsule into a reader's mapping ends with SIGSEGV.

    Raises
    ------
    LayoutError
        The dtype has no counterpart in DLPack, or the elements are not aligned.
    """
    code = _CODES.get(array.dtype)
    if code is None:
        raise LayoutError(
            f"an array of dtype {array.dtype} cannot go through DLPack.\n"
            "  It knows bool, integers, floats and complex numbers in this machine's byte order.\n"
            "  Convert a copy with array.astype, or export one field of a structured array."
        )
    is_versioned = max_version is not None and tuple(max_version) >= (1, 0)
    cdef Export *lent = <Export *>PyMem_RawCalloc(1, sizeof(Export))
    if lent == NULL:
        raise MemoryError()
    try:
        PyObject_GetBuffer(array, &lent.buffer, PyBUF_STRIDED_RO)
        if not _measure(lent) or not array.flags.aligned:
            raise LayoutError(
                f"the elements of this {array.dtype} array do not lie on multiples of their size "
                f"(strides of {array.strides} bytes).\n"
                "  It may be one field of a structured array; DLPack counts in whole elements.\n"
                "  Copy it first: array.copy()"
            )
        if is_versioned:
            return _versioned_capsule(lent, code)
        return _plain_capsule(lent, code)
    except BaseException:
        _give_back(lent)
        raise


cdef bint _measure(Export *lent) noexcept:
    """Fill in shape and strides; return whether the strides are whole elements."""
    cdef int i
    for i in range(lent.buffer.ndim):
        lent.shape[i] = lent.buffer.shape[i]
        lent.strides[i] = lent.buffer.strides[i] // lent.buffer.itemsize
        if lent.buffer.strides[i] % lent.buffer.itemsize:
            return False
    return True


cdef object _versioned_capsule(Export *lent, uint8_t code):
    cdef VersionedTensor *tensor = &lent.versioned
    tensor.version = Version(1, 0)
    tensor.producers_own = lent
    tensor.deleter = _delete_versioned
    tensor.flags = READ_ONLY if lent.buffer.readonly else 0
    _describe(&tensor.tensor, lent, code)
    return PyCapsule_New(tensor, _VERSIONED, _drop)


cdef object _plain_capsule(Export *lent, uint8_t code):
    cdef PlainTensor *tensor = &lent.plain
    tensor.producers_own = lent
    tensor.deleter = _delete_plain
    _describe(&tensor.tensor, lent, code)
    return PyCapsule_New(tensor, _PLAIN, _drop)


cdef void _describe(Tensor *tensor, Export *lent, uint8_t code) noexcept:
    if lent.buffer.len:  # without elements the ABI wants NULL
        tensor.data = lent.buffer.buf
    tensor.device = Device(CPU, 0)
    tensor.ndim = lent.buffer.ndim
    tensor.dtype = DataType(code, <uint8_t>(8 * lent.buffer.itemsize), 1)
    tensor.shape = lent.shape
    tensor.strides = lent.strides


cdef void _drop(object capsule) noexcept:
    """Take the array back from a capsule that is collected, if no consumer has it."""
    if PyCapsule_IsValid(capsule, _VERSIONED):
        _delete_versioned(<VersionedTensor *>PyCapsule_GetPointer(capsule, _VERSIONED))
    elif PyCapsule_IsValid(capsule, _PLAIN):
        _delete_plain(<PlainTensor *>PyCapsule_GetPointer(capsule, _PLAIN))


cdef void _delete_versioned(VersionedTensor *tensor) noexcept nogil:
    _take_back(<Export *>tensor.producers_own)


cdef void _delete_plain(PlainTensor *tensor) noexcept nogil:
    _take_back(<Export *>tensor.producers_own)


cdef void _take_back(Export *lent) noexcept nogil:
    # Consumers written in C++ let go in any thread, and also in exit handlers that
    # run after the interpreter's end: its objects are gone then, the mapping goes
    # with the process.
    if Py_IsInitialized():
        _give_back(lent)


cdef void _give_back(Export *lent) noexcept with gil:
    PyBuffer_Release(&lent.buffer)  # does nothing if none was taken
    PyMem_RawFree(lent)
