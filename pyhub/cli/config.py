"""pyhub config: a site's configuration, to begin with, and checked."""

from __future__ import annotations

from pathlib import Path

import click

from pyhub.cli.listing import cells, new_console, new_table
from pyhub.cli.options import example
from pyhub.hub.broker import site as site_file
from pyhub.hub.broker.rights import Client
from pyhub.hub.keys import shortened_key


@click.group(
    "config", epilog=example("pyhub config example > broker.yaml", "pyhub config check broker.yaml")
)
def command() -> None:
    """Write and check the configuration of a site's broker."""


@command.command("example", epilog=example("pyhub config example > broker.yaml"))
def show_example() -> None:
    """Print a configuration to begin with."""
    click.echo(site_file.example(), nl=False)


@command.command("check", epilog=example("pyhub config check /etc/pyhub/broker.yaml"))
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Say what FILE grants to whom, or what is wrong with it."""
    site = site_file.read_site(file)
    console = new_console()
    console.print(f"runtime directory: {site.runtime_dir or 'as the user of the broker has it'}")
    console.print(f"listens on: {', '.join(site.listen) or 'its socket in that directory only'}")
    console.print(f"key pair: {site.key_file or 'broker.key in that directory'}")
    table = new_table()
    for column in ("client", "role", "rights", "key"):
        table.add_column(column, no_wrap=column != "rights", overflow="fold")
    for key, client in site.clients.items():
        shortened = shortened_key(key.decode())
        table.add_row(*cells(client.name, client.role, _rights(client), shortened))
    console.print(table)


def _rights(client: Client) -> str:
    reach = (f"{verb}: {', '.join(names) or 'nothing'}" for verb, names in client.rights.items())
    return "; ".join(reach) or "as its role"
