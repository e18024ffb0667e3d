"""pyhub recover: repair what dead processes left in channels that live on."""

from __future__ import annotations

import click

from pyhub.cli.options import example
from pyhub.errors import PyhubError
from pyhub.monitor.cleaning import recover
from pyhub.names import segment_names


@click.command("recover", epilog=example("pyhub recover", "pyhub recover cam1"))
@click.argument("channels", nargs=-1)
def command(channels: tuple[str, ...]) -> None:
    """Repair CHANNELS (all, if none is named) whose producers or readers died.

    Rolls back what was not published, and empties the places of dead readers.
    What a living process uses is left alone.
    """
    n_lines = 0
    for channel in channels or segment_names():
        try:
            for line in recover(channel):
                click.echo(line)
                n_lines += 1
        except PyhubError as error:
            if channels:
                raise
            click.echo(f"kept {channel}: {str(error).splitlines()[0]}")
            n_lines += 1
    if not n_lines:
        click.echo("nothing to repair")
