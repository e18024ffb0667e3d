"""A slot's bytes as a numpy array."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pyhub._datablock import DataBlock
from pyhub.layout import FrameLayout

__all__ = ["slot_view"]


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
