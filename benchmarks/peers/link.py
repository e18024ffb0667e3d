"""What every peer is asked to do: one end that sends frames, one that receives them.

A frame is `n_words` unsigned 64-bit words. The sender writes three of them: its
number in the second and in the last, and, last of all, the time at which it
was handed over in the first. The words between are not touched: filling and
reading a frame costs the same wherever it lies, and is not what is compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Place", "Receiver", "Sender", "Way", "Words", "attempts", "depth", "prepared", "stamp"]

Words = npt.NDArray[np.uint64]

_QUEUE_BYTES = 64 << 20
_SETTLE_S = 15.0


@dataclass(frozen=True)
class Place:
    """Where the ends of one link meet; both are given the same one."""

    directory: str
    """Private, temporary, with a path short enough for a socket."""
    name: str
    """No other link has it; what is left in /dev/shm under it is removed at the end."""
    shared: Any = None
    """What `Way.share` made, handed to each process as it starts."""

    def path(self, suffix: str) -> str:
        """Return a file name of this link's own."""
        return str(Path(self.directory) / f"{self.name}{suffix}")

    def announce(self, text: str) -> None:
        """Tell the receivers how to reach the sender, say by its port."""
        draft = Path(self.path(".draft"))
        draft.write_text(text)
        draft.rename(self.path(".endpoint"))

    def find(self) -> str:
        """Return what the sender announced, as soon as it did."""
        for _ in attempts(f"the sender's endpoint {self.name}"):
            if os.path.exists(self.path(".endpoint")):
                break
        return Path(self.path(".endpoint")).read_text()


class Sender(Protocol):
    """The end that frames go into."""

    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None: ...

    def send(self, number: int) -> None:
        """Take memory for a frame, `stamp` it, and hand it over.

        Where the peer can wait for its receivers, this waits, so that nothing
        is lost; where it cannot, it drops, and the receivers count the gaps.
        """

    def close(self) -> None:
        """Let go of everything; receivers may be gone already."""


class Receiver(Protocol):
    """The end that frames come out of."""

    def __init__(self, place: Place, n_words: int, index: int) -> None: ...

    def receive(self, timeout_s: float) -> Words | None:
        """Return the next frame, or None if none came.

        It may be used until the next call, which gives its memory back: the
        caller has dropped every reference to it by then.
        """

    def close(self) -> None:
        """Let go of everything; the sender may be gone already."""

    # A receiver whose frames may be overwritten while they are looked at has also
    #     def is_whole(self) -> bool
    # which is asked after each look; False: the frame does not count.


@dataclass(frozen=True)
class Way:
    """One way to get frames across: a peer in one of its configurations."""

    name: str
    sender: type[Sender]
    receiver: type[Receiver]
    in_place: bool
    """Whether neither end copies the frame: filled and read where it lies."""
    waits: str
    """What the receiver does until a frame comes: it "polls" or it "sleeps"."""
    max_receivers: int | None = None
    remark: str = ""
    may_repeat: bool = False
    """Whether a frame may come twice in a row; elsewhere that is an error."""
    share: Callable[[Any, int, int], Any] | None = None
    """(multiprocessing context, n_words, n_receivers) -> `Place.shared`."""


def stamp(words: Words, number: int) -> None:
    """Number the frame at both ends, then note the time."""
    words[1] = number
    words[-1] = number
    words[0] = time.perf_counter_ns()


def prepared(n_words: int) -> Words:
    """Return memory of one's own for a frame, for a peer that lends none.

    Written once: pages that never were are all the same page of zeros, which
    would be copied from the processor's cache. The first word, the time, is 0.
    """
    words = np.ones(n_words, np.uint64)
    words[0] = 0
    return words


def depth(n_words: int) -> int:
    """Return how many frames a queue or ring holds: the same for all peers.

    64 MiB of them, but at most 1024, and at least 4, or 2 of the very large.
    """
    n_bytes = 8 * n_words
    fewest = 4 if n_bytes <= _QUEUE_BYTES else 2
    return max(fewest, min(1024, _QUEUE_BYTES // n_bytes))


def attempts(what: str) -> Iterator[None]:
    """Come back every 10 ms until the caller stops asking, 15 s at most."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        yield
        time.sleep(0.01)
    raise TimeoutError(f"{what} did not appear within {_SETTLE_S:.0f} s")
