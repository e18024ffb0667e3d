"""A shared memory and a runtime directory of one's own, so that no run meets another."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from unittest import mock

__all__ = ["own_directories"]


@contextlib.contextmanager
def own_directories() -> Iterator[None]:
    """Point pyhub, here and in children, to fresh directories; remove them at the end."""
    from pyhub.hub.runtime import RuntimeDirectory

    shm = tempfile.mkdtemp(prefix="pyhub-bench-", dir="/dev/shm")
    runtime = tempfile.mkdtemp(prefix="phb-")
    try:
        with mock.patch.dict(os.environ, PYHUB_SHM_DIR=shm, PYHUB_RUNTIME_DIR=runtime):
            yield
        broker = RuntimeDirectory(runtime).read_broker()
        if broker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(broker.pid, signal.SIGTERM)
    finally:
        shutil.rmtree(shm)
        # The broker may be taking its socket away at this moment.
        shutil.rmtree(runtime, ignore_errors=True)
