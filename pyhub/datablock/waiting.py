"""How a consumer sleeps until something new is published."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from pyhub._datablock import DataBlock
from pyhub.errors import PyhubError

__all__ = ["Waiter", "WordWaiter"]

# A waiting coroutine looks at the commit word this often.
_ASYNC_NAP_S = 0.001


class Waiter(Protocol):
    """What wakes a consumer. Early or needless wakes do no harm: it looks again.

    The hub's client supplies one that listens to the notification channel.
    """

    def wait(self, block: DataBlock, seen: int, timeout_s: float) -> None:
        """Sleep until `block.commit` may differ from `seen`, at most `timeout_s`."""

    async def wait_async(self, block: DataBlock, seen: int, timeout_s: float) -> None:
        """Do the same without holding up the event loop."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable on a publish."""

    @property
    def socket(self) -> Any:
        """The ZeroMQ socket behind it."""

    def close(self) -> None:
        """Let go of what it holds."""


class WordWaiter:
    """Watches the commit word, in naps of up to 1 ms: needs no hub."""

    def wait(self, block: DataBlock, seen: int, timeout_s: float) -> None:
        """Sleep until `block.commit` differs from `seen`, at most `timeout_s`."""
        block.wait(seen, timeout_s)

    async def wait_async(self, block: DataBlock, seen: int, timeout_s: float) -> None:
        """Do the same without holding up the event loop."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while block.commit == seen and loop.time() < deadline:
            await asyncio.sleep(min(_ASYNC_NAP_S, timeout_s))

    def fileno(self) -> int:
        """Refuse: shared memory has no descriptor to poll."""
        raise _nothing_to_poll()

    @property
    def socket(self) -> Any:
        """None: there is nothing but the word."""
        raise _nothing_to_poll()

    def close(self) -> None:
        """Nothing is held."""


def _nothing_to_poll() -> PyhubError:
    return PyhubError(
        "a consumer without a hub has no notification channel to poll.\n"
        "  Get it with MessageHub().find_datablock_consumer, or use read(timeout_s=...)."
    )
