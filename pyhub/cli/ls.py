"""pyhub ls: which channels there are, and who does what."""

from __future__ import annotations

import json
import os
from math import prod

import click
from rich.table import Table

from pyhub.cli.facts import as_dict, known_channels, losses
from pyhub.cli.listing import (
    cells,
    looking_hub,
    new_console,
    new_table,
    show_programs,
    show_services,
)
from pyhub.cli.options import example, format_shape
from pyhub.cli.watching import dtype_of, watch_channels
from pyhub.hub.protocol import ChannelInfo, ChannelMetrics
from pyhub.monitor.survey import ChannelState, survey


@click.command(
    "ls",
    epilog=example(
        "pyhub ls",
        "pyhub ls --json | jq '.[].name'",
        "pyhub ls --watch",
        "pyhub ls --services",
    ),
)
@click.option("--watch", is_flag=True,
              help="Go on, until Ctrl-C; a line a change where there is no terminal.")  # fmt: skip
@click.option("--services", is_flag=True, help="Services instead, with workers and load.")
@click.option("--programs", is_flag=True,
              help="Programs instead, and the broker's counts; for administrators.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True,
              help="One JSON array; with --watch one object a line.")  # fmt: skip
def command(watch: bool, services: bool, programs: bool, as_json: bool) -> None:
    """List the channels of this machine, with their rates and readers.

    Then those that only the broker knows, as those of other hosts. Readers are
    those that the broker knows; "-" where no broker runs, "!" where the
    producer waits for one.
    """
    if watch + services + programs > 1:
        raise click.UsageError("--watch, --services and --programs go one at a time")
    if watch:
        watch_channels(as_json)
    elif services or programs:
        with looking_hub("pyhub ls") as hub:
            (show_services if services else show_programs)(hub, as_json)
    else:
        _list(as_json)


def _list(as_json: bool) -> None:
    states = survey()
    known = known_channels()
    readers = None if known is None else {name: info.n_readers for name, info in known.items()}
    here = {state.name for state in states}
    distant = [info for name, info in (known or {}).items() if name not in here]
    if as_json:
        found = [as_dict(state, readers) | {"host": os.uname().nodename} for state in states]
        click.echo(json.dumps([*found, *map(_distant_as_dict, distant)], indent=2))
        return
    if not states and not distant:
        click.echo("no channels; start one with: pyhub sim", err=True)
        return
    console = new_console()
    # Without channels of others, a host would be one more word for nothing.
    host = [os.uname().nodename] if distant else []
    table = _table(console.is_terminal, with_hosts=bool(distant))
    for state in states:
        table.add_row(*_row(state, readers, *host))
    for info in distant:
        table.add_row(*_distant_row(info))
    console.print(table)
    for state in states:
        if state.problem:
            console.print(f"{state.name}: {state.problem}", soft_wrap=True)
        for line in losses(state):
            console.print(line, soft_wrap=True)


def _table(is_terminal: bool, with_hosts: bool) -> Table:
    table = new_table()
    table.add_column("channel", overflow="fold", min_width=12)  # gives way first, is told whole
    for column in ("state", "dtype", "shape", "slots"):
        is_long = column == "dtype" and is_terminal  # records; pyhub info has all of it
        table.add_column(column, no_wrap=True, max_width=12 if is_long else None)
    for column in ("Hz", "MB/s", "readers", "age/s", "pid"):
        table.add_column(column, justify="right", no_wrap=True)
    if with_hosts:
        table.add_column("host", overflow="fold")
    return table


def _row(state: ChannelState, readers: dict[str, int] | None, *host: str) -> list[str]:
    header = state.header
    if header is None:
        return [state.name, state.state]
    n_readers = "-" if readers is None else str(readers.get(state.name, 0))
    return [
        state.name,
        state.state,
        str(header.dtype),
        format_shape(header.shape),
        str(header.n_slots),
        f"{state.rate_hz:.1f}",
        f"{state.rate_hz * header.structured_buffer_size / 1e6:.1f}",
        n_readers + "!" * bool(state.stalling),
        "never" if state.age_s is None else f"{state.age_s:.1f}",
        str(header.owner_pid),
        *host,
    ]


def _distant_row(info: ChannelInfo) -> list[str]:
    dtype, rate_hz = dtype_of(info), (info.metrics or ChannelMetrics()).rate_hz
    frame_bytes = prod(info.shape) * (0 if isinstance(dtype, str) else dtype.itemsize)
    return cells(
        info.name,
        info.liveness,
        dtype,
        format_shape(info.shape),
        info.n_slots,
        f"{rate_hz:.1f}",
        f"{rate_hz * frame_bytes / 1e6:.1f}",
        info.n_readers,
        "-",  # when a frame came last, its own host knows
        info.pid,
        info.host,
    )


def _distant_as_dict(info: ChannelInfo) -> dict[str, object]:
    """Return `info` by the names that `as_dict` has for the same."""
    metrics = info.metrics or ChannelMetrics()
    return {
        "name": info.name,
        "state": info.liveness,
        "kind": info.kind,
        "dtype": str(dtype_of(info)),
        "shape": list(info.shape),
        "n_slots": info.n_slots,
        "owner_pid": info.pid,
        "producer": info.producer,
        "segment_id": info.segment_id,
        "n_dropped": metrics.n_dropped,
        "timestamp_ns": None,
        "rate_hz": round(metrics.rate_hz, 3),
        "age_s": None,
        "n_readers": info.n_readers,
        "admitted": [],
        "host": info.host,
    }
