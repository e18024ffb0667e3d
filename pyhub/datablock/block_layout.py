"""What a block's bytes are, as numpy arrays."""

from __future__ import annotations

from pyhub._datablock import DataBlock
from pyhub.errors import LayoutError
from pyhub.layout import FrameLayout, text_to_dtype

__all__ = ["block_layout"]


def block_layout(block: DataBlock) -> FrameLayout:
    """Return dtype and shape of `block`'s frames, and tell it.

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
    block.describe(layout.dtype, layout.shape)
    return layout
