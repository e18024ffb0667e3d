"""What a hub pushes, one thing after another, for a command that prints it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import click

from pyhub.errors import WaitTimeout
from pyhub.hub.client.feed import Feed

__all__ = ["following"]

T = TypeVar("T")

_LOOK_S = 1.0  # losses are to be told also while nothing comes


def following(feed: Feed[T], what: str) -> Iterator[T]:
    """Yield what comes, for ever; losses are told on stderr."""
    n_told = 0
    while True:
        try:
            item = feed.get(_LOOK_S)
        except WaitTimeout:
            item = None
        if feed.n_lost > n_told:
            click.echo(f"{feed.n_lost - n_told} {what} were lost on the way", err=True)
            n_told = feed.n_lost
        if item is not None:
            yield item
