"""What a reader wants of the frames that it cannot take in time."""

from __future__ import annotations

from enum import StrEnum

from pyhub import _readers

__all__ = ["Policy"]


class Policy(StrEnum):
    """Which frames a reader is given, and what happens when it falls behind.

    None but `BLOCK` makes a producer wait; all losses are counted exactly.

    Attributes
    ----------
    LATEST
        The newest frame, each time; for viewers.
    EVERY
        All frames in order; those that were overwritten are counted as lost.
    BLOCK
        All frames in order. A producer that would overwrite one waits for the
        reader, as long as the channel's patience; then it goes on.
    DROP_NEWEST
        All frames in order. A producer that would overwrite one drops its own
        new frame instead, for all readers, as long as the channel's patience.
    DROP_OLDEST
        As `EVERY`, for a reader that is known by name.
    """

    LATEST = "latest"
    EVERY = "every"
    BLOCK = "block"
    DROP_NEWEST = "drop_newest"
    DROP_OLDEST = "drop_oldest"

    @classmethod
    def _missing_(cls, value: object) -> Policy:
        raise ValueError(f"{value!r} is no policy of a reader.\n  Choose one of: {', '.join(cls)}.")

    @property
    def is_in_order(self) -> bool:
        """Whether it gives every frame in order."""
        return self is not Policy.LATEST

    @property
    def needs_admission(self) -> bool:
        """Whether only a reader that is known by name can have it."""
        return self in (Policy.BLOCK, Policy.DROP_NEWEST, Policy.DROP_OLDEST)

    @property
    def code(self) -> int:
        """Its number in the table of readers."""
        return _CODES[self]

    @classmethod
    def of_code(cls, code: int) -> Policy:
        """Return the policy with that number; `LATEST` if there is none."""
        return next((policy for policy, n in _CODES.items() if n == code), cls.LATEST)


_CODES = {
    Policy.LATEST: _readers.LATEST,
    Policy.EVERY: _readers.EVERY,
    Policy.BLOCK: _readers.BLOCK,
    Policy.DROP_NEWEST: _readers.DROP_NEWEST,
    Policy.DROP_OLDEST: _readers.DROP_OLDEST,
}
