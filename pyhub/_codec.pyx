# cython: language_level=3, embedsignature=False, binding=False
"""The bounded walk over MessagePack bytes (include/pyhub/flex.h)."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from pyhub._abi cimport PHB_CAPACITY, PHB_MISUSE, PHB_OK, phb_flex_check

from pyhub.errors import CodecError


def check_msgpack(bytes packed not None, unsigned int max_depth, unsigned long long max_items):
    """Refuse MessagePack bytes that are no single whole object within the limits."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(packed)
    cdef int status = phb_flex_check(
        <const unsigned char *>PyBytes_AS_STRING(packed), size, max_depth, max_items)
    if status == PHB_CAPACITY:
        raise CodecError(
            f"the object nests deeper than {max_depth} levels or has more than "
            f"{max_items} items.\n"
            "  A flex zone holds parameters; put bulk data into the frame itself."
        )
    if status == PHB_MISUSE:
        raise CodecError(
            "the object has a key that is not a text.\n"
            "  Parameters have names: use str for the keys of all dictionaries."
        )
    if status != PHB_OK:
        raise CodecError(
            f"these {size} bytes are not one whole MessagePack object.\n"
            "  The producer wrote something else into its flex zone, or named a wrong size."
        )
