"""pyhub info: all about one channel."""

from __future__ import annotations

import json
import time

import click
from rich import box
from rich.console import Console
from rich.table import Table

from pyhub.cli.facts import as_dict, known_readers, losses
from pyhub.cli.options import example
from pyhub.cli.outcome import ExitCode
from pyhub.datablock import ReaderState
from pyhub.monitor.survey import survey
from pyhub.monitor.wording import spelled, to_json


@click.command("info", epilog=example("pyhub info cam1"))
@click.argument("channel")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.pass_context
def command(ctx: click.Context, channel: str, as_json: bool) -> None:
    """Show CHANNEL's header, rate, readers and newest parameters.

    Of readers that it knows by name: frames read and lost, the most that each
    was behind, frames that it holds, how long the producer waited for it, and
    frames dropped for its sake.
    """
    (state,) = survey([channel])
    facts = as_dict(state, known_readers())
    if as_json:
        click.echo(json.dumps(facts | {"flex": to_json(state.flex)}, indent=2))
    else:
        table = Table(show_header=False, box=None)
        del facts["admitted"]
        for name, value in facts.items():
            if name in ("timestamp", "created") and isinstance(value, float) and value:
                value = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
            table.add_row(name, str(value))
        for name, value in spelled(state.flex or {}).items():
            table.add_row(f"flex.{name}", value)
        # What a producer writes is text, and no markup of ours.
        console = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
        console.print(table)
        if state.admitted:
            if not console.is_terminal:
                console.width = 10_000  # a pipe has no edge to fold at
            console.print(_readers_table(state.admitted))
        for line in losses(state):
            console.print(line)
    if state.state == "unreadable":
        ctx.exit(ExitCode.FAILED)


def _readers_table(readers: list[ReaderState]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("reader", overflow="fold", min_width=12)
    table.add_column("policy", no_wrap=True)
    for column in ("read", "lost", "max\nlag", "pins", "stalled\n/s", "dropped", "pid"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for reader in readers:
        table.add_row(
            "".join(letter if letter.isprintable() else "?" for letter in reader.name),
            str(reader.policy),
            *(str(n) for n in (reader.n_read, reader.n_lost, reader.max_lag, reader.n_pinned)),
            f"{reader.stalled_s:.1f}",
            str(reader.n_dropped),
            str(reader.pid),
            "alive" if reader.is_alive else "dead",
        )
    return table
