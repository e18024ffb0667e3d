"""What channels there are, read from their headers; in nobody's path."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from pyhub._datablock import DataBlock
from pyhub.codec import decode
from pyhub.datablock.header import Header, read_header
from pyhub.errors import PyhubError
from pyhub.names import lease_path, segment_names, segment_path

__all__ = ["ChannelState", "survey"]


@dataclass(frozen=True)
class ChannelState:
    """A channel as found in shared memory.

    Attributes
    ----------
    state
        "live", "closed", "dead" (its producer died) or "unreadable".
    header, flex
        What it says; None if unreadable, or if there are no parameters.
    rate_hz
        Frames a second over the time of the survey.
    age_s
        Since the last publish; None: there was none.
    problem
        Why it is unreadable.
    """

    name: str
    state: str
    header: Header | None = None
    flex: dict[str, Any] | None = None
    rate_hz: float = 0.0
    age_s: float | None = None
    problem: str = ""


def survey(names: list[str] | None = None, *, sample_s: float = 0.25) -> list[ChannelState]:
    """Look at the channels `names` (default: all of this user's) for `sample_s`."""
    blocks: dict[str, DataBlock] = {}
    states: dict[str, ChannelState] = {}
    for name in segment_names() if names is None else names:
        try:
            blocks[name] = DataBlock.attach(segment_path(name), name, os.geteuid())
        except FileNotFoundError:
            if names is not None:
                raise
        except (PyhubError, OSError) as error:
            states[name] = ChannelState(name, "unreadable", problem=str(error))
    before = {name: (block.snapshot()[4], time.monotonic()) for name, block in blocks.items()}
    if blocks and sample_s:
        time.sleep(sample_s)  # to see how many frames come meanwhile
    for name, block in blocks.items():
        version, since = before[name]
        states[name] = _state_of(name, block, version, time.monotonic() - since)
    return [states[name] for name in sorted(states)]


def _state_of(name: str, block: DataBlock, version_before: int, span_s: float) -> ChannelState:
    header = read_header(block)
    if header.is_closed:
        state = "closed"
    else:
        state = "dead" if block.segment.is_left(lease_path()) else "live"
    flex, problem = None, ""
    try:
        found = block.read(None, False, None)
        if found[0] == 0 and found[9] is not None:
            flex = decode(found[9], found[8])
    except PyhubError as error:
        problem = str(error)
    return ChannelState(
        name,
        state,
        header,
        flex,
        (header.structured_buffer_version - version_before) / max(span_s, 1e-9),
        max(time.time() - header.timestamp, 0.0) if header.commit else None,
        problem,
    )
