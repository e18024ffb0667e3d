"""A slot's bytes as a numpy array."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pyhub._datablock import DataBlock
from pyhub.errors import LayoutError
from pyhub.layout import FrameLayout, text_to_dtype

__all__ = ["block_layout", "slot_view"]


def block_layout(block: DataBlock) -> FrameLayout:
    """Return dtype and shape of `block`'s frames.

    Raises
    ------
    LayoutError
        What its header says is no dtype, or does not fill its slots.
    """
    layout = FrameLayout(text_to_dtype(block.dtype), block.shape)
    if layout.frame_bytes != block.structured_buffer_capacity:
        raise LayoutError(
            f"channel {block.segment.name!r} has frames of {layout.dtype} {layout.shape}, which "
            f"take {layout.frame_bytes} bytes, and slots of {block.structured_buffer_capacity}.\n"
            "  Its producer described them wrongly: correct dtype, shape or capacity there."
        )
    return layout


def slot_view(
    block: DataBlock, layout: FrameLayout, slot: int, size: int | None = None
) -> npt.NDArray[Any]:
    """Return the frame in `slot`, of `size` valid bytes, where it lies.

    Read-only unless `block` was mapped by a producer. The array keeps the
    mapping alive, also after its channel was closed.
    """
    return np.ndarray(
        layout.shape if size is None else layout.shape_of(size),
        layout.dtype,
        cast(memoryview, block.segment),  # implements the buffer protocol
        block.slot_offset(slot),
    )
