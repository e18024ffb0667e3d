"""A DataBlock's header, as of one publish."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyhub._datablock import DataBlock
from pyhub.layout import text_to_dtype

__all__ = ["Header"]


class Header(NamedTuple):
    """What a DataBlock's header says. Sizes and versions belong to one publish.

    `*_capacity` are bytes that a zone can take, `*_size` bytes that are valid
    now, `*_version` counters of the publishes that changed that zone.
    """

    flex_zone_capacity: int
    flex_zone_size: int
    flex_zone_version: int
    structured_buffer_capacity: int
    structured_buffer_size: int
    structured_buffer_version: int
    timestamp: float  # of the last publish, s since 1970; 0.0: none yet
    is_writing: bool  # a producer holds the lock; a hint
    # beyond the two zones
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    n_slots: int
    n_filled: int  # frames in the ring
    commit: int  # publishes of any zone
    is_closed: bool
    owner_pid: int
    created: float  # s since 1970
    n_recovered: int  # publications of dead producers, rolled back
    n_aborted: int  # publications given up by their producer
    segment_id: str
    n_dropped: int  # frames for which admitted readers left no slot


def read_header(block: DataBlock) -> Header:
    """Read the header of `block`; never waits for a producer."""
    commit, flex_size, flex_version, size, version, timestamp, n_filled, _ = block.snapshot()
    return Header(
        flex_zone_capacity=block.flex_zone_capacity,
        flex_zone_size=flex_size,
        flex_zone_version=flex_version,
        structured_buffer_capacity=block.structured_buffer_capacity,
        structured_buffer_size=size,
        structured_buffer_version=version,
        timestamp=timestamp,
        is_writing=block.is_writing,
        name=block.segment.name,
        dtype=text_to_dtype(block.dtype),
        shape=block.shape,
        n_slots=block.n_slots,
        n_filled=n_filled,
        commit=commit,
        is_closed=block.segment.is_closed,
        owner_pid=block.segment.owner_pid,
        created=block.created_ns * 1e-9,
        n_recovered=block.n_recovered,
        n_aborted=block.n_aborted,
        segment_id=block.segment_id.hex(),
        n_dropped=block.n_dropped,
    )
