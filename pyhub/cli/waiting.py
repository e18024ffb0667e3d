"""Saying what a command waits for, once it takes a moment."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import click

from pyhub.datablock import DataBlockConsumer
from pyhub.hub.message_hub import MessageHub

__all__ = ["find_consumer", "saying"]

_MOMENT_S = 0.5


@contextlib.contextmanager
def saying(text: str) -> Iterator[None]:
    """Print `text` to stderr if the block takes longer than a moment."""
    timer = threading.Timer(_MOMENT_S, click.echo, [text], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def find_consumer(
    hub: MessageHub,
    channel: str,
    timeout_s: float | None,
    *,
    policy: str | None = None,
    reader: str | None = None,
) -> DataBlockConsumer:
    """Return a consumer of `channel`, as `MessageHub.find_datablock_consumer` does."""
    with saying(f"waiting for channel {channel!r}; Ctrl-C ends"):
        return hub.find_datablock_consumer(
            channel, policy=policy, reader=reader, timeout_s=timeout_s
        )
