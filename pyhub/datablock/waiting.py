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
        return cls("spin", None)

    @classmethod
    def adaptive(cls, spin_s: float = 100e-6) -> Wait:
        """Look at the commit word for `spin_s`, then sleep as `futex` does.

        Raises
        ------
        ValueError
            `spin_s` is no time from 0 to 1 s.
        """
        if not 0 <= spin_s <= 1:
            raise ValueError(f"spin_s={spin_s!r}: give 0 to 1 s; for longer there is Wait.spin()")
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
        make = {
            "notification": cls.notification,
            "futex": cls.futex,
            "spin": cls.spin,
            "adaptive": cls.adaptive,
        }.get(str(wait))
        if make is None:
            raise ValueError(
                f"wait={wait!r} is none of 'notification', 'futex', 'spin', 'adaptive'."
            )
        return make()

    @property
    def is_native(self) -> bool:
        """Whether it watches the commit word, so that it needs no hub."""
        return self.name != "notification"

    @property
    def sleeps(self) -> bool:
        """Whether producers have to wake it."""
        return self.spin_s is not None


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


async def watch_word(block: DataBlock, seen: int, timeout_s: float, nap_s: float) -> None:
    """Look at the commit word every `nap_s` until it differs from `seen`."""
    import asyncio

    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while block.commit == seen and loop.time() < deadline:
        await asyncio.sleep(min(nap_s, timeout_s))


def no_notifications(wait: Wait) -> PyhubError:
    """Return the error of a consumer that has no notification channel."""
    return PyhubError(
        f"a consumer that waits by {wait.name!r} has no notification channel to poll.\n"
        "  Get one with MessageHub().find_datablock_consumer(name), or use read(timeout_s=...)."
    )
