"""What comes in one after another, for whoever takes it: blocking, polled or awaited."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pyhub.errors import ChannelClosed, CodecError, ForkedHandle, WaitTimeout
from pyhub.hub.client.patience import deadline_after, left_until

__all__ = ["Feed"]

T = TypeVar("T")

MAX_ITEMS = 20_000  # twice what the state may have: all of it, and as many changes


class Feed(Generic[T]):
    """Items in the order in which they came.

    Iterate over it, call `get`, ``async for`` or ``await aget()``, or poll its
    `fileno`. It ends when it is closed, or its hub is. Who is slow loses the
    oldest of more than 20,000 items, and is told how many.

    Attributes
    ----------
    n_lost
        Items that were lost on the way or dropped here.
    """

    def __init__(
        self,
        what: str,
        on_close: Callable[[], None] | None = None,
        convert: Callable[[Any], T] | None = None,
    ) -> None:
        self._what = what
        self._on_close = on_close
        # What an item is to whoever takes it. A value that another program
        # wrote may not be readable: then it raises, in its reader's thread.
        self._convert = convert
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._is_closed = False
        self._descriptor = -1
        self._wakers: list[Callable[[], None]] = []  # of those who await
        self._pid = os.getpid()
        self.n_lost = 0

    def get(self, timeout_s: float | None = None) -> T:
        """Return the next item, waiting for it.

        Raises
        ------
        WaitTimeout
            Nothing came in `timeout_s`.
        CodecError
            The item is no value; the next one may be. Only of a call's
            progress: entries and events have a `problem` instead.
        ChannelClosed
            The feed, or its hub, was closed.
        """
        deadline = deadline_after(timeout_s)
        with self._changed:
            while not self._items:
                self._check()
                if not self._changed.wait(left_until(deadline)) and not left_until(deadline):
                    raise WaitTimeout(f"{self._what}: nothing came within {timeout_s:g} s.")
            item = self._take()
        return self._converted(item)

    async def aget(self, timeout_s: float | None = None) -> T:
        """Do what `get` does without holding up the event loop."""
        import asyncio  # whoever calls this has it already

        loop = asyncio.get_running_loop()
        deadline = deadline_after(timeout_s)
        while True:
            woken = asyncio.Event()

            def wake(woken: asyncio.Event = woken) -> None:
                with contextlib.suppress(RuntimeError):  # its loop is closed
                    loop.call_soon_threadsafe(woken.set)

            with self._changed:
                is_there = bool(self._items)
                if is_there:
                    item = self._take()
                else:
                    self._check()
                    self._wakers.append(wake)
            if is_there:
                return self._converted(item)
            try:
                await asyncio.wait_for(woken.wait(), left_until(deadline))
            except TimeoutError:
                raise WaitTimeout(f"{self._what}: nothing came within {timeout_s:g} s.") from None
            finally:
                # With the lock: `_wake` may be about to call the one behind.
                with self._changed, contextlib.suppress(ValueError):
                    self._wakers.remove(wake)

    def taken(self) -> list[T]:
        """Return, and take, what is there now; never waits.

        Up to an item that is no value: the next call raises its `CodecError`,
        as `get` does, and those behind it are there yet.
        """
        items, found = self.drain(), []
        for position, item in enumerate(items):
            try:
                found.append(self._converted(item))
            except CodecError:
                if not found:
                    self._put_back(items[1:])
                    raise
                self._put_back(items[position:])
                break
        return found

    def fileno(self) -> int:
        """Return a descriptor that is readable while there is something to `get`."""
        with self._changed:
            if self._is_closed:
                raise ChannelClosed(f"{self._what}: this was closed.")
            if self._descriptor < 0:
                self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                if self._items or self._error is not None:
                    os.eventfd_write(self._descriptor, 1)
            return self._descriptor

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    def close(self) -> None:
        """End it. May be called twice."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._items.clear()
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            self._wake()
        if self._on_close is not None:
            self._on_close()

    # --- For whoever feeds it ---

    def put(self, item: Any) -> None:
        """Add an item, before it is converted; never waits."""
        with self._changed:
            if self._is_closed:
                return
            if len(self._items) >= MAX_ITEMS:
                self._make_room()
            self._items.append(item)
            self._wake()

    def drain(self) -> list[Any]:
        """Return, and take, what is there now, as it was put."""
        with self._changed:
            items = list(self._items)
            self._items.clear()
            self._settle_descriptor()
            return items

    def end(self, error: BaseException) -> None:
        """Let who waits, and who comes when all was taken, have `error`."""
        with self._changed:
            self._error = self._error or error
            self._wake()

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                yield self.get()
            except ChannelClosed:
                return

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            try:
                yield await self.aget()
            except ChannelClosed:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:  # nobody closed it
            os.close(self._descriptor)

    def _make_room(self) -> None:
        self._items.popleft()
        self.n_lost += 1

    def _take(self) -> Any:
        item = self._items.popleft()
        self._settle_descriptor()
        return item

    def _converted(self, item: Any) -> T:
        return item if self._convert is None else self._convert(item)

    def _put_back(self, items: list[Any]) -> None:
        with self._changed:
            if items and not self._is_closed:
                self._items.extendleft(reversed(items))
                self._wake()

    def _settle_descriptor(self) -> None:
        if not self._items and self._descriptor >= 0 and self._error is None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._descriptor)

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise ForkedHandle(
                f"{self._what}: this was made before a fork, and is used in the child.\n"
                "  What comes, the parent hears. Make a MessageHub of the child's own."
            )
        if self._error is not None:
            raise self._error
        if self._is_closed:
            raise ChannelClosed(f"{self._what}: this was closed.")

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._descriptor >= 0:
            os.eventfd_write(self._descriptor, 1)
        for waker in list(self._wakers):
            waker()
