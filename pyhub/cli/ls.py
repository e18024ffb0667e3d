"""pyhub ls: which channels there are."""

from __future__ import annotations

import json

import click
from rich import box
from rich.console import Console
from rich.table import Table

from pyhub.cli.facts import as_dict, known_readers, losses
from pyhub.cli.options import example, format_shape
from pyhub.monitor.survey import ChannelState, survey


@click.command("ls", epilog=example("pyhub ls", "pyhub ls --json | jq '.[].name'"))
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
def command(as_json: bool) -> None:
    """List the channels of this machine, with their rates and readers.

    Readers are those that the broker knows; "-" where no broker runs, "!" where
    the producer waits for one.
    """
    states = survey()
    readers = known_readers()
    if as_json:
        click.echo(json.dumps([as_dict(state, readers) for state in states], indent=2))
        return
    if not states:
        click.echo("no channels; start one with: pyhub sim", err=True)
        return
    # What others wrote is text, and no markup of ours.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no edge to fold at
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("channel", overflow="fold", min_width=12)  # gives way first, is told whole
    for column in ("state", "dtype", "shape", "slots"):
        is_long = column == "dtype" and console.is_terminal  # records; pyhub info has all of it
        table.add_column(column, no_wrap=True, max_width=12 if is_long else None)
    for column in ("Hz", "MB/s", "readers", "age/s", "pid"):
        table.add_column(column, justify="right", no_wrap=True)
    for state in states:
        table.add_row(*_row(state, readers))
    console.print(table)
    for state in states:
        if state.problem:
            console.print(f"{state.name}: {state.problem}", soft_wrap=True)
        for line in losses(state):
            console.print(line, soft_wrap=True)


def _row(state: ChannelState, readers: dict[str, int] | None) -> list[str]:
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
    ]
