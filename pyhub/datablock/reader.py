"""What one reader was given of a channel, and what it is given next."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyhub._core import lease_is_alive, process_lease
from pyhub._datablock import Cursor, DataBlock
from pyhub._readers import Admission, ReaderTable
from pyhub.datablock.frame import Frame
from pyhub.datablock.pinned import PinnedFrame
from pyhub.datablock.policy import Policy
from pyhub.datablock.view import slot_view
from pyhub.errors import AdmissionRefused, LayoutError
from pyhub.layout import FrameLayout

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
    n_read, n_lost
        Frames given to it, and those that it will not get any more.
    """

    def __init__(self, channel: str, policy: Policy, name: str | None, leases: str) -> None:
        self.channel = channel
        self.policy = policy
        self.name = name
        self.n_read = 0
        self.n_lost = 0
        self._leases = leases
        self._admission: Admission | None = None
        self._is_restart = False

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
        if self.name is None:
            cursor = block.start(from_first)
        else:
            cursor = self._be_admitted(block, self.name, from_first)
        self._block = block
        self._layout = layout
        self._cursor = cursor
        self._is_restart = is_restart

    def _be_admitted(self, block: DataBlock, name: str, from_first: bool) -> Cursor:
        table = ReaderTable.attach(block, self._leases)
        if table.patience_s == 0 and self.policy in (Policy.BLOCK, Policy.DROP_NEWEST):
            raise AdmissionRefused(
                f"channel {self.channel!r} waits for no reader (it was created with patience_s=0), "
                f"and policy {str(self.policy)!r} asks for that.\n"
                "  Use policy 'drop_oldest', or create the channel with patience."
            )
        self._admission, cursor = Admission.admit(
            block, table, name, self.policy.code, from_first, process_lease(self._leases),
            _ADMISSION_S,
        )  # fmt: skip
        return cursor

    def leave(self) -> None:
        """Give the place among the admitted readers up, if there is one."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.leave()

    # --- Facts ---

    @property
    def lag_frames(self) -> int:
        """Frames published that this reader was not given yet."""
        return self._block.lag(self._cursor)

    # --- Taking ---

    def take_newest(self, out: npt.NDArray[Any] | None) -> Frame | None:
        """Copy the newest frame, or the newest parameters; None: nothing is new."""
        if not self._block.has_news(self._cursor):
            return None
        return self._take(False, out)

    def take_next(self, out: npt.NDArray[Any] | None) -> Frame | None:
        """Copy the next frame in order; None: there is none yet.

        A channel of parameters only gives each newest object.
        """
        if self._block.structured_buffer_capacity == 0:
            return self.take_newest(out)
        return self._take(True, out)

    def pin(self, *, in_order: bool) -> PinnedFrame | None:
        """Pin the next frame, or the newest if it was not given yet; None: there is none.

        Raises
        ------
        CapacityError
            The reader holds as many frames as one can.
        AdmissionRefused
            The reader was not admitted by name.
        LayoutError
            The channel has no frames, only parameters.
        """
        admission = self._admission
        if admission is None:
            raise AdmissionRefused(
                f"this reader of channel {self.channel!r} may not pin: it was not admitted.\n"
                "  Give it a name or a policy: attach(..., reader='viewer')."
            )
        if self._block.structured_buffer_capacity == 0:
            raise LayoutError(
                f"channel {self.channel!r} has parameters only: there is no frame to pin.\n"
                "  Use read(), which copies them."
            )
        if not in_order and not self._block.has_news(self._cursor):
            return None
        found = admission.pin(self._cursor, in_order)
        if found[0] != 0:
            return None
        pin = found[-1]
        try:
            frame: PinnedFrame = self._fill(PinnedFrame, found[:-1], None)
            frame._release = lambda: admission.unpin(pin)
        except BaseException:  # closed meanwhile, or Ctrl-C
            admission.unpin(pin)
            raise
        return frame

    def _take(self, in_order: bool, out: npt.NDArray[Any] | None) -> Frame | None:
        layout = self._layout
        data = np.empty(layout.shape, layout.dtype) if out is None else self._checked(out)
        found = self._block.read(self._cursor, in_order, data)
        return self._fill(Frame, found, data) if found[0] == 0 else None

    def _fill(self, kind: type[Any], found: tuple[Any, ...], data: Any) -> Any:
        """Make a frame of what was found, and count it."""
        (
            _, version, frame_id, stamp, size, slot, _, flex_version, encoding, packed,
            n_lost, is_new, is_new_flex,
        ) = found  # fmt: skip
        layout = self._layout
        if size is None:
            data = np.empty(0, layout.dtype)
        elif data is None:
            data = slot_view(self._block, layout, slot, size)
        elif size != layout.frame_bytes and layout.shape:
            data = data[: layout.shape_of(size)[0]]
        frame = kind(data, frame_id, stamp, version, flex_version, encoding, packed)
        frame.n_lost = n_lost
        frame.has_new_data = is_new
        frame.has_new_flex = is_new_flex
        frame.is_restart, self._is_restart = self._is_restart, False
        self.n_lost += n_lost
        self.n_read += is_new or size is None  # new parameters are no new frame
        admission = self._admission  # which a close in another thread takes away
        if admission is not None:
            lag = self._block.lag(self._cursor) + n_lost
            admission.pass_(self._cursor, self.n_read, self.n_lost, lag)
        return frame

    def _checked(self, out: npt.NDArray[Any]) -> npt.NDArray[Any]:
        layout = self._layout
        if out.dtype != layout.dtype or out.shape != layout.shape or not out.flags.c_contiguous:
            raise LayoutError(
                f"out is {out.dtype} {out.shape}, the frames of channel {self.channel!r} are "
                f"{layout.dtype} {layout.shape}.\n"
                f"  Use numpy.empty({layout.shape}, {str(layout.dtype)!r}), C-contiguous."
            )
        return out


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
