"""Processors that do not doze: what waking a sleeper mostly costs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["cpus_awake"]

# The kernel's word for it: the longest time, µs, that a processor may take to wake. It
# holds while the file is open (Linux: Documentation/power/pm_qos_interface.rst).
_REQUESTS = "/dev/cpu_dma_latency"
_AT_ONCE = bytes(4)


@contextlib.contextmanager
def cpus_awake() -> Iterator[bool]:
    """Keep this host's processors from dozing while the context is open.

    A processor that has nothing to do dozes, and takes its time to wake: most of
    the tens of µs until a reader that sleeps has a frame, or a caller its
    answer. Kept awake, they have it several times sooner, for electricity. It is for all
    processors and programs of the host, until the last one that asked has left. Never blocks.

    Gives whether the kernel does so. It takes the right to write
    ``/dev/cpu_dma_latency``, which root has, and others by a udev rule; without it
    nothing changes, and programs only take longer.
    """
    with contextlib.ExitStack() as stack:
        is_awake = False
        with contextlib.suppress(OSError):  # no such right, or no such kernel
            descriptor = os.open(_REQUESTS, os.O_WRONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            is_awake = os.write(descriptor, _AT_ONCE) == len(_AT_ONCE)
        yield is_awake
