"""What channels there are, read from their headers and tables; in nobody's path."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from pyhub._datablock import DataBlock
from pyhub._reading import newest
from pyhub.datablock.frame import Frame
from pyhub.datablock.header import Header, read_header
from pyhub.datablock.reader import ReaderState, admitted_readers
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
    age_s, timestamp_ns
        Since the last publish, and when that was; None: there was none.
    admitted
        The readers that it knows by name.
    stalling
        Those for which its producer waited during the survey: their names, and
        what part of that time it was.
    problem
        Why it is unreadable.
    """

    name: str
    state: str
    header: Header | None = None
    flex: dict[str, Any] | None = None
    rate_hz: float = 0.0
    age_s: float | None = None
    timestamp_ns: int | None = None
    admitted: list[ReaderState] = field(default_factory=list)
    stalling: dict[str, float] = field(default_factory=dict)
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
    before = {name: _Before(block) for name, block in blocks.items()}
    if blocks and sample_s:
        time.sleep(sample_s)  # to see how many frames come meanwhile
    for name, block in blocks.items():
        try:
            states[name] = _state_of(name, block, before[name])
        except (PyhubError, OSError) as error:
            states[name] = ChannelState(name, "unreadable", problem=str(error))
    return [states[name] for name in sorted(states)]


class _Before:
    """What is counted of a channel at the survey's beginning."""

    def __init__(self, block: DataBlock) -> None:
        self.version = block.snapshot()[4]
        readers, _ = _readers_of(block)
        self.stalled_s = {(reader.name, reader.pid): reader.stalled_s for reader in readers}
        self.since = time.monotonic()


def _state_of(name: str, block: DataBlock, before: _Before) -> ChannelState:
    header = read_header(block)
    admitted, problem = _readers_of(block)
    span_s = max(time.monotonic() - before.since, 1e-9)
    if header.is_closed:
        state = "closed"
    else:
        state = "dead" if block.segment.is_left(lease_path()) else "live"
    flex, timestamp_ns = None, None
    try:
        found = newest(block, Frame, with_data=False)
        if found is not None:
            timestamp_ns = found.timestamp_ns
            flex = found.flex if found.packed is not None else None
    except PyhubError as error:
        problem = str(error)
    return ChannelState(
        name,
        state,
        header,
        flex,
        (header.structured_buffer_version - before.version) / span_s,
        max(time.time() - header.timestamp, 0.0) if header.commit else None,
        timestamp_ns,
        admitted,
        {
            reader.name: min(waited_s / span_s, 1.0)
            for reader in admitted
            if (waited_s := reader.stalled_s - before.stalled_s.get((reader.name, reader.pid), 0.0))
            > 0
        },
        problem,
    )


def _readers_of(block: DataBlock) -> tuple[list[ReaderState], str]:
    """Return the admitted readers, and why they cannot be told, if so."""
    try:
        return admitted_readers(block, str(lease_path())), ""
    except FileNotFoundError:  # the channel went meanwhile, and its table with it
        return [], ""
    except (PyhubError, OSError) as error:
        return [], f"its readers cannot be told: {error}"
