"""pyhub ls: which channels there are."""

from __future__ import annotations

import json

import click
from rich import box
from rich.console import Console
from rich.table import Table

from pyhub.cli.options import example, format_shape
from pyhub.errors import PyhubError
from pyhub.hub.message_hub import MessageHub
from pyhub.hub.runtime import BrokerConfig
from pyhub.monitor.survey import ChannelState, survey


@click.command("ls", epilog=example("pyhub ls", "pyhub ls --json | jq '.[].name'"))
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
def command(as_json: bool) -> None:
    """List the channels of this machine, with their rates and readers.

    Readers are those that the broker knows; "-" where no broker runs.
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
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("channel", "state", "dtype", "shape", "slots"):
        is_long = column == "dtype" and console.is_terminal  # records; pyhub info has all of it
        table.add_column(column, no_wrap=True, max_width=12 if is_long else None)
    for column in ("rate/Hz", "MB/s", "readers", "age/s", "pid"):
        table.add_column(column, justify="right", no_wrap=True)
    for state in states:
        table.add_row(*_row(state, readers))
    console.print(table)
    for state in states:
        if state.problem:
            console.print(f"{state.name}: {state.problem}", soft_wrap=True)


def known_readers() -> dict[str, int] | None:
    """Ask the broker how many readers each channel has; None: there is no broker."""
    try:
        with MessageHub(BrokerConfig(autostart=False, timeout_s=2.0)) as hub:
            return {channel.name: channel.n_readers for channel in hub.channels()}
    except (PyhubError, OSError):
        return None


def as_dict(state: ChannelState, readers: dict[str, int] | None) -> dict[str, object]:
    """Return `state` as JSON has it; sizes in bytes, times in seconds."""
    found: dict[str, object] = {"name": state.name, "state": state.state}
    if state.header is not None:
        found |= state.header._asdict() | {"dtype": str(state.header.dtype)}
    found |= {
        "rate_hz": round(state.rate_hz, 3),
        "age_s": state.age_s,
        "n_readers": None if readers is None else readers.get(state.name, 0),
    }
    return found | ({"problem": state.problem} if state.problem else {})


def _row(state: ChannelState, readers: dict[str, int] | None) -> list[str]:
    header = state.header
    if header is None:
        return [state.name, state.state]
    return [
        state.name,
        state.state,
        str(header.dtype),
        format_shape(header.shape),
        str(header.n_slots),
        f"{state.rate_hz:.1f}",
        f"{state.rate_hz * header.structured_buffer_size / 1e6:.1f}",
        "-" if readers is None else str(readers.get(state.name, 0)),
        "never" if state.age_s is None else f"{state.age_s:.1f}",
        str(header.owner_pid),
    ]
