"""pyhub clean: remove what dead processes left."""

from __future__ import annotations

import click

from pyhub.cli.options import example
from pyhub.hub.runtime import RuntimeDirectory
from pyhub.monitor.cleaning import clean, force


@click.command("clean", epilog=example("pyhub clean", "pyhub clean --force cam1"))
@click.option("--force", "forced", metavar="CHANNEL",
              help="Remove this one whatever it is, in use or not.")  # fmt: skip
def command(forced: str | None) -> None:
    """Remove what dead processes left in shared memory, and say what.

    What a living process uses, or may use, is kept.
    """
    if forced is not None:
        click.echo(force(forced))
        return
    lines = list(clean(RuntimeDirectory()))
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("nothing to clean")
