"""A TCP proxy that does what networks do: it delays, stalls, cuts and resets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

__all__ = ["Chaos", "chaos"]

# Makes a close a reset: nothing lingers, and the peer gets RST, not FIN.
_RESET = struct.pack("ii", 1, 0)


class Chaos:
    """Stands between programs and a broker; a thread of its own moves the bytes.

    Attributes
    ----------
    endpoint
        Where programs find it.
    delay_s
        How long each piece is held, either way.
    n_bytes
        How many it has moved, both ways.
    """

    def __init__(self, target: str) -> None:
        self._host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._port = int(port)
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._is_open = True
        self._lines: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        self.n_bytes = 0
        self.endpoint = ""

    # --- What is done to the network ---

    def stall(self) -> None:
        """Move nothing any more; connections stay, and new ones are taken."""
        self._do(self._flows.clear)

    def flow(self) -> None:
        """Move bytes again, those that were held first, and let new connections in."""

        def do() -> None:
            self._is_open = True
            self._flows.set()

        self._do(do)

    def cut(self) -> None:
        """Close all connections in order, and let none in until `flow`."""

        def do() -> None:
            self._is_open = False
            self._drop()

        self._do(do)

    def reset(self) -> None:
        """Have all connections reset; new ones are let in."""

        self._do(lambda: self._drop(is_reset=True))

    # --- In its thread ---

    async def _serve(self, is_up: threading.Event, end: asyncio.Event) -> None:
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.endpoint = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        is_up.set()
        await end.wait()
        server.close()
        self._drop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_open:
            writer.transport.abort()
            return
        try:
            there, far = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        for ends in ((reader, far), (there, writer)):
            self._lines.add(ends[1])
            task = asyncio.create_task(self._move(*ends))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _move(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._flows.wait()
                writer.write(piece)
                await writer.drain()
                self.n_bytes += len(piece)
        # Of one that stalls, nobody hears that an end has gone either.
        await self._flows.wait()
        writer.close()
        self._lines.discard(writer)

    def _drop(self, is_reset: bool = False) -> None:
        for line in self._lines:
            if is_reset:
                end = line.get_extra_info("socket")
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                line.transport.abort()
            else:
                line.close()
        self._lines.clear()

    def _do(self, what: Callable[[], None]) -> None:
        done = threading.Event()

        def do() -> None:
            what()
            done.set()

        self._loop.call_soon_threadsafe(do)
        assert done.wait(60.0)


@contextlib.contextmanager
def chaos(target: str) -> Iterator[Chaos]:
    """Run a proxy in front of `target`."""
    proxy = Chaos(target)
    is_up, end = threading.Event(), asyncio.Event()
    thread = threading.Thread(
        target=lambda: proxy._loop.run_until_complete(proxy._serve(is_up, end)), daemon=True
    )
    thread.start()
    assert is_up.wait(60.0)
    try:
        yield proxy
    finally:
        proxy.flow()
        proxy._loop.call_soon_threadsafe(end.set)
        thread.join(60.0)
        proxy._loop.close()
