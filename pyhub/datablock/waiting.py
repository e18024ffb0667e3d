"""How a consumer waits until something new is published: `Wait`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pyhub._datablock import DataBlock
from pyhub.errors import PyhubError

__all__ = ["Listener", "Wait", "no_notifications", "watch_word"]


@dataclass(frozen=True)
class Wait:
    """A strategy of waiting: what it costs to wake up, and to wait.

    ================ ============================= ==========================
    strategy         wakes up                      costs while it waits
    ================ ============================= ==========================
    `notification()` through ZeroMQ; can be polled nothing
    `futex()`        by the kernel                 nothing
    `spin()`         at once                       a whole core
    `adaptive()`     as `spin`, then as `futex`    a core, for a bounded time
    ================ ============================= ==========================

    Consumers of a hub take `notification`, others `futex`; both take a name as
    well (``wait="spin"``). All end in time, and by Ctrl-C. Figures, and when to
    use which: docs/explanations/waiting.md.

    Attributes
    ----------
    name
        Of the strategy.
    spin_s
        How long it looks again and again before it sleeps; None: all the time.
    """

    name: str
    spin_s: float | None = 0.0

    def __post_init__(self) -> None:
        if self.name not in _SPIN_S:
            raise ValueError(
                f"wait={self.name!r} is none of 'notification', 'futex', 'spin', 'adaptive'."
            )
        if self.name != "adaptive":
            object.__setattr__(self, "spin_s", _SPIN_S[self.name])
        elif self.spin_s is None or not 0 <= self.spin_s <= 1:
            raise ValueError(
                f"spin_s={self.spin_s!r}: give 0 to 1 s; for longer there is Wait.spin()"
            )

    def __repr__(self) -> str:
        return f"Wait.{self.name}({self.spin_s if self.name == 'adaptive' else ''})"

    @classmethod
    def notification(cls) -> Wait:
        """Sleep on the channel's notification socket, which can be polled. Needs a hub."""
        return cls("notification")

    @classmethod
    def futex(cls) -> Wait:
        """Sleep on the channel's commit word, until a publish on this host wakes it.

        A reader that may not write to the table of readers (another user's)
        cannot say that it sleeps: it looks again after naps of 50 us to 1 ms.
        """
        return cls("futex")

    @classmethod
    def spin(cls) -> Wait:
        """Look at the commit word all the time. For a core that has nothing else to do."""
        return cls("spin")

    @classmethod
    def adaptive(cls, spin_s: float = 100e-6) -> Wait:
        """Look at the commit word for `spin_s`, then sleep as `futex` does.

        Raises
        ------
        ValueError
            `spin_s` is no time from 0 to 1 s.
        """
        return cls("adaptive", float(spin_s))

    @classmethod
    def of(cls, wait: Wait | str) -> Wait:
        """Return the strategy of that name; a strategy as it is.

        Raises
        ------
        ValueError
            There is none of that name.
        """
        if isinstance(wait, cls):
            return wait
        return cls.adaptive() if wait == "adaptive" else cls(str(wait))

    @property
    def is_native(self) -> bool:
        """Whether it watches the commit word, so that it needs no hub."""
        return self.name != "notification"

    @property
    def sleeps(self) -> bool:
        """Whether producers have to wake it."""
        return self.spin_s is not None


# What the strategies spin for; None: all the time.
_SPIN_S = {"notification": 0.0, "futex": 0.0, "spin": None, "adaptive": 0.0}


class Listener(Protocol):
    """What wakes a consumer that waits by `notification`; the hub's client supplies it.

    Early or needless wakes do no harm: the consumer looks again.
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


async def watch_word(block: DataBlock, seen: int, timeout_s: float, nap_s: float = 0.001) -> None:
    """Look at the commit word every `nap_s` until it differs from `seen`."""
    import asyncio

    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while block.commit == seen and loop.time() < deadline:
        await asyncio.sleep(min(nap_s, timeout_s))


def no_notifications(wait: Wait) -> PyhubError:
    """Return the error of a consumer that has no notification channel."""
    if not wait.is_native:
        return PyhubError(
            "wait='notification' needs a hub, whose client listens.\n"
            "  Use MessageHub().find_datablock_consumer(name), or wait='futex'."
        )
    return PyhubError(
        f"this consumer waits by {wait.name!r}, so it has no notification channel to poll.\n"
        "  Get one that has with MessageHub().find_datablock_consumer(name), whose wait is\n"
        "  'notification'; or use read(timeout_s=...)."
    )
