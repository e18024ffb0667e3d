"""A reader's hold on a channel: the segment that has its name, now and after a restart."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import numpy as np

from pyhub._datablock import DataBlock
from pyhub.datablock.block_layout import block_layout
from pyhub.errors import ChannelClosed, ProducerDied, PyhubError, SegmentNotFound, SegmentStale
from pyhub.layout import FrameLayout
from pyhub.names import lease_path, segment_path

__all__ = ["Attachment"]

_log = logging.getLogger("pyhub.datablock")


class Attachment:
    """Maps the segment of channel `name`, and the next one when its producer returns.

    Attributes
    ----------
    block
        The segment in use; None until `renew` found one.
    layout
        Of its frames.
    n_restarts
        How often another segment took over the name.
    leases
        The lock file that tells which of its processes live.
    """

    def __init__(self, name: str, owner_uid: int | None = None, *, prefault: bool = False) -> None:
        self.name = name
        self._prefault = prefault
        self.block: DataBlock | None = None
        self.layout = FrameLayout(np.dtype(np.uint8), (0,))
        self.n_restarts = 0
        self._owner_uid = os.geteuid() if owner_uid is None else owner_uid
        self._path = segment_path(name, self._owner_uid)
        self.leases = str(lease_path(self._owner_uid))

    def renew(self, begin: Callable[[DataBlock, FrameLayout], None]) -> bool:
        """Map the segment that has the name now; False if there is none but ours.

        It is in use once `begin`, which is given it, has returned.

        Raises
        ------
        AbiMismatch, SegmentDamaged, AccessDenied, LayoutError
            What has the name cannot be read.
        """
        former = self.block
        if former is not None and former.segment.is_named():
            return False  # its producer died; the name still leads to what it left
        try:
            block = DataBlock.attach(self._path, self.name, self._owner_uid)
        except (FileNotFoundError, SegmentStale):
            return False  # a producer that comes takes the name over
        if former is None and self._was_left(block):
            return False
        layout = block_layout(block)
        if self._prefault:
            block.segment.prefault()
        try:
            begin(block, layout)
        except FileNotFoundError:  # its table of readers
            if block.segment.is_named():
                raise
            return False  # it was closed meanwhile
        self.layout = layout
        self.block = block
        if former is not None:
            self.n_restarts += 1
            _log.warning(
                "channel %r: its producer came back with %s %s (was %s %s)",
                self.name, block.dtype, block.shape, former.dtype, former.shape,
            )  # fmt: skip
        return True

    def departure(self) -> ChannelClosed | None:
        """Return why nothing more will come from the segment in use; None: something may."""
        if self.block is None:
            return None
        segment = self.block.segment
        is_gone = not segment.is_named() or self._was_left(self.block)
        # Asked last: a producer that closes and exits is closed first.
        if segment.is_closed:
            return ChannelClosed(
                f"channel {self.name!r} was closed by its producer (pid {segment.owner_pid}).\n"
                "  Read again to wait for the next one."
            )
        if is_gone:
            return ProducerDied(
                f"the producer of channel {self.name!r} (pid {segment.owner_pid}) died without "
                "closing it.\n"
                "  Start it again: readers go on by themselves. pyhub clean removes what it left."
            )
        return None

    def absence(self, waited_s: float | None) -> PyhubError:
        """Return the error of one who waited in vain for the channel to appear."""
        try:
            left = DataBlock.attach(self._path, self.name, self._owner_uid)
        except SegmentStale as error:
            return error
        except FileNotFoundError:
            why = "Start its producer, or look for the right name with: pyhub ls"
        else:
            why = (
                f"Its producer (pid {left.segment.owner_pid}) died and left the segment; start it "
                "again, or remove\n  what it left with: pyhub clean"
            )
        return SegmentNotFound(f"there is no channel {self.name!r} (waited {waited_s} s).\n  {why}")

    def _was_left(self, block: DataBlock) -> bool:
        return block.segment.is_left(self.leases)
