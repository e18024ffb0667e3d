"""What comes in one after another, for whoever takes it: blocking, polled or awaited."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pyhub._deadlines import deadline_after, left_until
from pyhub._handover import Bell, Wake, take
from pyhub.errors import ChannelClosed, CodecError, ForkedHandle, WaitTimeout

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
        check_turn: Callable[[], None] | None = None,
    ) -> None:
        self._what = what
        self._on_close = on_close
        self._check_turn = check_turn  # raises where one must not wait
        # What an item is to whoever takes it. A value that another program
        # wrote may not be readable: then it raises, in its reader's thread.
        self._convert = convert
        self._items: deque[Any] = deque()
        # No lock: a signal's handler may run wherever the main thread is, and end the
        # hub, whose thread feeds this. So each step leaves things in order.
        self._changed = Bell()
        self._error: BaseException | None = None
        self._is_closed = False
        self._readable: Wake | None = None  # made when it is first asked for
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
        while True:
            seen = self._changed.n_strokes
            for item in self._take(1):
                return self._converted(item)
            self._check()
            if self._check_turn is not None:
                self._check_turn()
            if not self._changed.wait(seen, left_until(deadline)):
                self._check_fork()
                raise WaitTimeout(f"{self._what}: nothing came within {timeout_s:g} s.")

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

            self._wakers.append(wake)  # first: what comes from now on, wakes
            try:
                for item in self._take(1):
                    return self._converted(item)
                self._check()
                async with asyncio.timeout(left_until(deadline)):
                    await woken.wait()
            except TimeoutError:
                raise WaitTimeout(f"{self._what}: nothing came within {timeout_s:g} s.") from None
            finally:
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
        self._check_fork()
        if self._is_closed:
            raise self._closed()
        if self._readable is None:
            # Two threads may ask at once: they get the same one.
            self._readable = self.__dict__.setdefault("_first_readable", Wake())
            self._settle_descriptor()
            if self.is_closed:  # meanwhile: nobody else would close it
                self._readable.close()
                raise self._closed()
        return self._readable.fd

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    def close(self) -> None:
        """End it. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._items.clear()
        if self._readable is not None:
            self._readable.close()
        self._wake()
        if self._on_close is not None:
            self._on_close()

    # --- For whoever feeds it ---

    def put(self, item: Any) -> None:
        """Add an item, before it is converted; never waits. One thread at a time."""
        if self._is_closed:
            return
        if len(self._items) >= MAX_ITEMS:
            self._make_room()
        self._items.append(item)
        self._wake()

    def drain(self) -> list[Any]:
        """Return, and take, what is there now, as it was put."""
        return self._take(len(self._items))

    def end(self, error: BaseException) -> None:
        """Let who waits, and who comes when all was taken, have `error`."""
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

    def _make_room(self) -> None:
        self.n_lost += len(self._take(1))

    def _take(self, n_items: int) -> list[Any]:
        """Return, and take, so many items; fewer, if there are not so many."""
        self._check_fork()
        items = take(self._items, n_items)
        self._settle_descriptor()
        return [] if self._is_closed else items  # what came while it was closed

    def _converted(self, item: Any) -> T:
        return item if self._convert is None else self._convert(item)

    def _put_back(self, items: list[Any]) -> None:
        if items and not self._is_closed:
            self._items.extendleft(reversed(items))
            self._wake()

    def _settle_descriptor(self) -> None:
        """Have the descriptor readable if, and only if, there is something to take."""
        if self._readable is not None and not self._items:
            self._readable.quiet()
            if self._items or self._error is not None:  # meanwhile
                self._readable.wake()
        elif self._readable is not None:
            self._readable.wake()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._is_closed:
            raise self._closed()

    def _closed(self) -> ChannelClosed:
        return ChannelClosed(f"{self._what}: this was closed.")

    def _check_fork(self) -> None:
        if self._pid != os.getpid():
            raise ForkedHandle.of(f"{self._what}: this")

    def _wake(self) -> None:
        self._changed.ring()
        if self._readable is not None:
            self._readable.wake()
        for waker in list(self._wakers):
            waker()
