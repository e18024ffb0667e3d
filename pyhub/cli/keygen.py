"""pyhub keygen: a key pair for a program, or for a site's broker."""

from __future__ import annotations

from pathlib import Path

import click

from pyhub.cli.options import example
from pyhub.hub.broker.rights import is_client_name
from pyhub.hub.keys import create_key_files

# Not the name of a client: what it needs goes elsewhere.
_BROKER = "broker"


def _client_name(value: str) -> str:
    """Read the name of a client; a type of click's."""
    if not is_client_name(value):
        raise click.BadParameter(
            f"{value!r} is no name; use 1 to 64 letters, digits, '.', '_', '-' and '@'"
        )
    return value


@click.command(
    "keygen",
    epilog=example("pyhub keygen alignment-gui", "pyhub keygen broker --directory /etc/pyhub"),
)
@click.argument("name", type=_client_name)
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), default=".",
              help="Where the files go.  [default: here]")  # fmt: skip
def command(name: str, directory: Path) -> None:
    """Make a key pair: NAME.key, to be kept secret, and NAME.pub.

    Prints the lines that the broker's configuration needs. NAME "broker" is
    the broker itself.
    """
    keys = create_key_files(directory / name)
    key_file = (directory / f"{name}.key").absolute()
    click.echo(f"{key_file} is secret: it stays on the host that uses it", err=True)
    if name == _BROKER:
        click.echo("# In the broker's configuration:")
        click.echo(f"key_file: {key_file}")
        click.echo("# In programs of other hosts:")
        click.echo(f'# pyhub.BrokerConfig(server_key="{keys.public}", ...)')
    else:
        click.echo("# In the broker's configuration, below clients:")
        click.echo(f"  - name: {name}")
        click.echo(f'    key: "{keys.public}"')
        click.echo("    role: viewer  # or operator, producer, admin")
