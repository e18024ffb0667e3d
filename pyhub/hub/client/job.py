"""A call as the command that serves it sees it."""

from __future__ import annotations

from typing import Any

from pyhub._deadlines import deadline_after, left_until
from pyhub._handover import Bell
from pyhub.errors import CallCancelled
from pyhub.hub import protocol
from pyhub.hub.client.connection import Connection
from pyhub.hub.client.session import Ask
from pyhub.hub.client.values import pack

__all__ = ["Job"]


class Job:
    """The call that a command serves; given to commands with a parameter of this type.

    Attributes
    ----------
    caller
        Which program called.
    n_unreported
        Reports that were left out, as no broker was there, or it did not read.
    """

    def __init__(self, call: bytes, caller: str, connection: Connection) -> None:
        self.caller = caller
        self.n_unreported = 0
        self._call = call
        self._connection = connection
        self._cancelled = Bell()

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the result any more: a good moment to end."""
        return bool(self._cancelled.n_strokes)

    def check(self) -> None:
        """Raise `CallCancelled` if nobody waits any more."""
        if self.is_cancelled:
            raise CallCancelled("nobody waits for this call any more.")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Sleep for so long (None: without end), or until the call is cancelled; whether it was."""
        return self.is_cancelled or self._cancelled.wait(0, left_until(deadline_after(timeout_s)))

    def report(self, value: Any) -> None:
        """Tell the caller how far it is; any value that a flex zone may hold. Never waits."""
        packed = pack("the progress of a call", value)
        if not self._connection.is_known or self._connection.is_crowded:
            self.n_unreported += 1  # nobody hears it now, and it is not kept for later
        else:
            self._connection.put(Ask(protocol.Progress(self._call, packed), is_one_way=True))

    def cancel(self) -> None:
        """Let it know that nobody waits any more; for its service."""
        self._cancelled.ring()
