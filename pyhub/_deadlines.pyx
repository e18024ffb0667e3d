# cython: language_level=3, embedsignature=False, binding=False
# binding: methods that are plain are called sooner; nobody asks for their signatures.
"""When waits end, and how much is left until then: monotonic time, s."""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t

from pyhub._abi cimport phb_monotonic_ns

__all__ = ["deadline_after", "left_until"]

cdef double _LONGEST_S = 1e9  # as messages have it, too (`protocol.Seconds`)


def deadline_after(timeout_s):
    """Return when a wait of `timeout_s` ends, in monotonic time (s); None: never, infinity.

    Raises
    ------
    ValueError
        It is no time: negative, or not a number.
    """
    cdef double seconds
    if timeout_s is None:
        return INFINITY
    try:
        seconds = timeout_s + 0.0  # a text is no time, though float() takes it
    except OverflowError:  # an integer beyond all floats
        seconds = INFINITY if timeout_s > 0 else -INFINITY
    if not seconds >= 0:  # NaN neither
        raise ValueError(
            f"timeout_s={timeout_s!r} is no time to wait.\n"
            "  Use seconds, 0 for not at all, or None for as long as it takes."
        )
    return 1e-9 * phb_monotonic_ns() + seconds


cpdef double left_until(double deadline) noexcept:
    """Return the seconds that are left: not below 0, and finite."""
    cdef double left_s = deadline - 1e-9 * phb_monotonic_ns()
    return 0.0 if left_s <= 0 else left_s if left_s < _LONGEST_S else _LONGEST_S


cdef int64_t end_of(double timeout_s) noexcept:
    if not timeout_s < _LONGEST_S:
        timeout_s = _LONGEST_S
    return phb_monotonic_ns() + <int64_t>(1e9 * timeout_s)


cdef int64_t ns_until(int64_t end) noexcept:
    cdef int64_t left = end - phb_monotonic_ns()
    return 0 if left <= 0 else left if left < LONGEST_NS else LONGEST_NS


cdef int ms_until(int64_t end) noexcept:
    cdef int64_t left = ns_until(end)
    return 0 if left == 0 else <int>(left // 1_000_000 + 1)
