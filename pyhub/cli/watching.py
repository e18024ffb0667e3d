"""The channels as they come and go: a live table, or a line a change."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import click
import numpy as np
from rich.live import Live
from rich.table import Table

from pyhub.cli.listing import cells, new_console, new_table
from pyhub.cli.options import format_shape
from pyhub.cli.values import moment
from pyhub.errors import BrokerUnreachable, LayoutError, WaitTimeout
from pyhub.hub.message_hub import MessageHub
from pyhub.hub.protocol import ChannelInfo, ChannelMetrics
from pyhub.hub.runtime import BrokerConfig
from pyhub.layout import text_to_dtype
from pyhub.monitor.survey import ChannelState, survey
from pyhub.monitor.wording import short

__all__ = ["dtype_of", "watch_channels"]

_LOOK_S = 1.0


def watch_channels(as_json: bool) -> None:
    """Show this host's channels, and those of others that the broker knows, until Ctrl-C."""
    console = new_console()
    is_screen = console.is_terminal and not console.is_dumb_terminal and not as_json
    live = Live(console=console, auto_refresh=False, screen=True)
    with (
        MessageHub(BrokerConfig(name="pyhub ls --watch")) as hub,
        hub.events("hub/channel/*") as changes,
        live if is_screen else contextlib.nullcontext(),
    ):
        before: dict[str, _Channel] = {}
        known: dict[str, ChannelInfo] = {}
        while True:
            known, is_answered = _ask(hub, known)
            channels = _look(known)
            if is_screen:
                live.update(_table(channels, is_answered), refresh=True)
            else:
                _tell(before, channels, as_json)
            before = channels
            with contextlib.suppress(WaitTimeout):
                changes.get(_LOOK_S)
            changes.taken()  # one look sees what all of them tell


def dtype_of(info: ChannelInfo) -> np.dtype[Any] | str:
    """Return the dtype of a channel that the broker knows; as its text, if this pyhub cannot."""
    try:
        return text_to_dtype(info.dtype)
    except LayoutError:
        return info.dtype


@dataclass(frozen=True)
class _Channel:
    name: str
    kind: str
    state: str
    dtype: str
    shape: tuple[int, ...]
    host: str
    producer: str
    rate_hz: float = field(compare=False)  # that it differs is no change to tell


def _ask(hub: MessageHub, known: dict[str, ChannelInfo]) -> tuple[dict[str, ChannelInfo], bool]:
    """Return what the broker knows; what it knew last, and False, where it does not answer."""
    try:
        return {info.name: info for info in hub.channels()}, True
    except BrokerUnreachable:
        return known, False


def _look(known: dict[str, ChannelInfo]) -> dict[str, _Channel]:
    # After the broker was asked: what it knows of this host is then there, too.
    here = {state.name: _own(state, known.get(state.name)) for state in survey()}
    elsewhere = {name: _distant(info) for name, info in known.items() if name not in here}
    channels = here | elsewhere
    return {name: channels[name] for name in sorted(channels)}


def _own(state: ChannelState, info: ChannelInfo | None) -> _Channel:
    header, host = state.header, os.uname().nodename
    if header is None:
        return _Channel(state.name, "", state.state, "", (), host, "", 0.0)
    if info is not None and info.segment_id != header.segment_id:
        info = None  # another one of that name, before or elsewhere
    return _Channel(
        state.name,
        "datablock",
        info.liveness if info is not None and state.state == "live" else state.state,
        str(header.dtype),
        header.shape,
        host,
        f"pid {header.owner_pid}" if info is None else info.producer,
        state.rate_hz,
    )


def _distant(info: ChannelInfo) -> _Channel:
    return _Channel(
        info.name,
        info.kind,
        info.liveness,
        str(dtype_of(info)),
        info.shape,
        info.host,
        info.producer,
        (info.metrics or ChannelMetrics()).rate_hz,
    )


def _table(channels: dict[str, _Channel], is_answered: bool) -> Table:
    table = new_table(
        "channel", "kind", "state", "dtype", "shape", "host", "producer", numbers=("Hz",)
    )  # fmt: skip
    for each in channels.values():
        table.add_row(*cells(*_texts(each), f"{each.rate_hz:.1f}"))
    if not is_answered:
        table.caption = "no broker answers: other hosts' channels are as it knew them last"
    elif not channels:
        table.caption = "no channels; start one with: pyhub sim"
    return table


def _tell(before: dict[str, _Channel], channels: dict[str, _Channel], as_json: bool) -> None:
    """Print a line for each channel that came, changed or went."""
    for name in sorted(before.keys() | channels.keys()):
        old, new = before.get(name), channels.get(name)
        if new == old:
            continue
        time_ns = time.time_ns()
        if as_json:
            facts = {"name": name, "state": "gone"} if new is None else asdict(new)
            click.echo(json.dumps({"time": moment(time_ns)} | facts))
        elif new is None:
            click.echo(f"{moment(time_ns)}  {name}  gone")
        else:
            click.echo(f"{moment(time_ns)}  {short('  '.join(_texts(new)))}")


def _texts(channel: _Channel) -> list[str]:
    shape = format_shape(channel.shape) if channel.dtype else ""
    return [
        channel.name, channel.kind, channel.state, channel.dtype, shape, channel.host,
        channel.producer,
    ]  # fmt: skip
