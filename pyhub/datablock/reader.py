"""What one reader was given of a channel, and what it is given next."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyhub._core import lease_is_alive, process_lease
from pyhub._datablock import DataBlock
from pyhub._readers import Admission, ReaderTable
from pyhub._reading import Cursor
from pyhub.datablock.frame import Frame, LiveView
from pyhub.datablock.pinned import PinnedFrame
from pyhub.datablock.policy import Policy
from pyhub.datablock.waiting import Wait
from pyhub.errors import AdmissionRefused, LayoutError, NamespaceMismatch
from pyhub.layout import FrameLayout

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Reader", "ReaderState", "admitted_readers"]

# How long a reader waits for others that are being admitted.
_ADMISSION_S = 5.0

_numbers = itertools.count(1)


class Reader:
    """One reader's way through the frames of a channel, segment after segment.

    Attributes
    ----------
    name
        Under which the channel admitted it; None: it did not have to.
    way
        What takes frames: the cursor itself, or one that also tells producers
        how far an admitted reader is. Its `read` and `look` give None if there
        is nothing, also after waiting for a slice of `timeout_s`, if the
        strategy waits by itself.
    """

    way: Cursor | _Admitted | _Nothing

    def __init__(
        self, channel: str, policy: Policy, name: str | None, wait: Wait, leases: str
    ) -> None:
        self.channel = channel
        self.policy = policy
        self.name = name
        self.way = _Nothing()
        self._wait = wait
        self._leases = leases
        self._cursor: Cursor | None = None
        self._layout: FrameLayout | None = None

    def begin(
        self, block: DataBlock, layout: FrameLayout, *, from_first: bool, is_restart: bool
    ) -> None:
        """Go over to `block`: to its newest frame, or to its first.

        Raises
        ------
        AdmissionRefused
            The channel has no place, or a reader of that name.
        """
        self.leave()
        way: Cursor | _Admitted
        way = cursor = Cursor(
            block, from_first=from_first, former=self._cursor, is_restart=is_restart
        )
        table = None
        if self.name is not None:
            table = ReaderTable.attach(block, self._leases)
            way = _Admitted(cursor, self._be_admitted(cursor, table, self.name, from_first))
        if self._wait.is_native:
            cursor.wait_by(self._wait.spin_s)
            if self._wait.sleeps:
                self._let_sleep(cursor, table)
        self._cursor = cursor
        self._layout = layout
        self.way = way

    def _be_admitted(
        self, cursor: Cursor, table: ReaderTable, name: str, from_first: bool
    ) -> Admission:
        if table.patience_s == 0 and self.policy in (Policy.BLOCK, Policy.DROP_NEWEST):
            raise AdmissionRefused(
                f"channel {self.channel!r} waits for no reader (it was created with patience_s=0), "
                f"and policy {str(self.policy)!r} asks for that.\n"
                "  Use policy 'drop_oldest', or create the channel with patience."
            )
        return Admission.admit(
            cursor, table, name, self.policy.code, from_first, process_lease(self._leases),
            _ADMISSION_S,
        )  # fmt: skip

    def _let_sleep(self, cursor: Cursor, table: ReaderTable | None) -> None:
        """See that producers wake it. Who may not write to the table naps instead."""
        # Another user's, of another PID namespace, on a read-only mount, or gone: no
        # error, but a slower wait.
        with contextlib.suppress(OSError, NamespaceMismatch):
            (table or ReaderTable.attach(cursor.block, self._leases)).let_sleep(cursor)

    def leave(self) -> None:
        """Give the place among the admitted readers up, if there is one."""
        if isinstance(self.way, _Admitted):
            self.way.leave()

    # --- Facts ---

    @property
    def lag_frames(self) -> int:
        """Frames published that this reader was not given yet."""
        return 0 if self._cursor is None else self._cursor.lag_frames

    @property
    def n_read(self) -> int:
        """Frames given to it."""
        return 0 if self._cursor is None else self._cursor.n_read

    @property
    def n_lost(self) -> int:
        """Frames that it will not get any more."""
        return 0 if self._cursor is None else self._cursor.n_lost

    @property
    def began_s(self) -> float:
        """When what was taken last in vain began to wait, or now (`time.monotonic`)."""
        began_s = 0.0 if self._cursor is None else self._cursor.began_s
        return began_s or time.monotonic()

    # --- Taking ---

    def pin(self, in_order: bool, timeout_s: float | None) -> PinnedFrame | None:
        """Pin the next frame, or the newest if it was not given yet.

        Raises
        ------
        CapacityError
            The reader holds as many frames as one can.
        AdmissionRefused
            The reader was not admitted by name.
        LayoutError
            The channel has no frames, only parameters.
        """
        if self._cursor is None:
            return None
        if not isinstance(self.way, _Admitted):
            raise AdmissionRefused(
                f"this reader of channel {self.channel!r} may not pin: it was not admitted.\n"
                "  Give it a name or a policy: attach(..., reader='viewer')."
            )
        if self._cursor.block.structured_buffer_capacity == 0:
            raise LayoutError(
                f"channel {self.channel!r} has parameters only: there is no frame to pin.\n"
                "  Use read(), which copies them."
            )
        return self.way.pin(in_order, timeout_s)

    def check(self, out: npt.NDArray[Any]) -> None:
        """See that a frame can be read into `out`."""
        layout = self._layout
        if layout is None:
            return  # there is nothing to read yet
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out is {type(out).__name__}, not a numpy array to copy into")
        if not out.flags.writeable:
            raise LayoutError("out is read-only.\n  Give an array that can be written to.")
        if out.dtype != layout.dtype or out.shape != layout.shape or not out.flags.c_contiguous:
            raise LayoutError(
                f"out is {out.dtype} {out.shape}, the frames of channel {self.channel!r} are "
                f"{layout.dtype} {layout.shape}.\n"
                f"  Use numpy.empty({layout.shape}, {str(layout.dtype)!r}), C-contiguous."
            )


class _Nothing:
    """The way of a reader that has not begun."""

    def read(self, *_: object) -> None:
        """Take no frame."""

    def look(self, *_: object) -> None:
        """Take no frame."""


class _Admitted:
    """The way of a reader with a place: each frame is told to producers."""

    def __init__(self, cursor: Cursor, admission: Admission) -> None:
        self._cursor = cursor
        self._admission: Admission | None = admission

    def leave(self) -> None:
        """Give the place up."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.leave()

    def read(
        self,
        kind: type[Frame],
        in_order: bool,
        out: npt.NDArray[Any] | None,
        timeout_s: float | None,
    ) -> Frame | None:
        """Do what the cursor does."""
        frame = self._cursor.read(kind, in_order, out, timeout_s)
        if frame is not None:
            self._pass(frame)
        return frame

    def look(
        self, kind: type[LiveView], in_order: bool, timeout_s: float | None
    ) -> LiveView | None:
        """Do what the cursor does."""
        frame = self._cursor.look(kind, in_order, timeout_s)
        if frame is not None:
            self._pass(frame)
        return frame

    def pin(self, in_order: bool, timeout_s: float | None) -> PinnedFrame | None:
        """Pin a frame where it lies."""
        if self._admission is None:
            return None  # closed: the consumer says so
        frame = self._admission.pin(self._cursor, PinnedFrame, in_order, timeout_s)
        if frame is not None:
            try:
                self._pass(frame)
            except BaseException:  # closed meanwhile, or Ctrl-C
                frame.release()
                raise
        return frame

    def _pass(self, frame: Frame) -> None:
        admission = self._admission  # which a close in another thread takes away
        if admission is not None:
            admission.pass_(self._cursor, self._cursor.lag_frames + frame.n_lost)


class ReaderState(NamedTuple):
    """What the table of a channel says of one admitted reader.

    Attributes
    ----------
    max_lag
        Frames that it was behind at worst, beside the one that it took.
    n_pinned
        Frames that it holds now.
    stalled_s
        That producers waited for it, in all.
    n_dropped
        Frames that producers dropped for its sake.
    is_alive
        False: it died; its place is emptied by the next who comes.
    """

    name: str
    pid: int
    policy: Policy
    n_read: int
    n_lost: int
    max_lag: int
    n_pinned: int
    stalled_s: float
    n_dropped: int
    is_alive: bool


def admitted_readers(block: DataBlock, leases: str) -> list[ReaderState]:
    """Return the admitted readers of `block`'s channel, in the order of their places."""
    return [
        ReaderState(
            name, pid, Policy.of_code(policy), n_read, n_lost, max_lag, n_pinned,
            stalled_ns * 1e-9, n_dropped, lease_is_alive(leases, lease),
        )
        for name, pid, lease, policy, _, n_read, n_lost, max_lag, n_pinned, stalled_ns, n_dropped
        in ReaderTable.attach(block, leases).rows()
    ]  # fmt: skip


def reader_name() -> str:
    """Return a name for a reader that was given none: its program and process."""
    program = os.path.basename(sys.argv[0] if sys.argv else "") or "python"
    printable = "".join(c if c.isprintable() else "?" for c in program)
    # At most 30 bytes of it, and no letter cut in the middle.
    short = printable.encode(errors="replace")[:30].decode(errors="ignore")
    number = next(_numbers)
    return f"{short}-{os.getpid()}" + (f"-{number}" if number > 1 else "")
