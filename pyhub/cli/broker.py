"""pyhub broker: a broker in the foreground."""

from __future__ import annotations

import logging
import signal

import click

from pyhub.cli.options import Number, example
from pyhub.cli.outcome import ExitCode
from pyhub.hub.broker import Broker
from pyhub.hub.runtime import RuntimeDirectory


@click.command("broker", epilog=example("pyhub broker", "pyhub broker --runtime-dir /run/pyhub"))
@click.option("--runtime-dir", type=click.Path(file_okay=False),
              help="Where programs look for it.  [default: the user's own]")  # fmt: skip
@click.option("--linger", "linger_s", type=Number(0), metavar="S",
              help="End when alone for so long.  [default: never]")  # fmt: skip
@click.pass_context
def command(ctx: click.Context, runtime_dir: str | None, linger_s: float | None) -> None:
    """Run a broker in the foreground, until Ctrl-C.

    Nobody has to: a program that finds no broker starts one in the background.
    """
    logging.getLogger("pyhub").setLevel(logging.INFO)
    runtime = RuntimeDirectory(runtime_dir)
    broker = Broker(runtime, linger_s)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: broker.stop())
    if not broker.run():
        found = runtime.read_broker()
        pid = f" (pid {found.pid})" if found else ""
        click.echo(f"another broker{pid} serves {runtime.path}; use it, or end it first", err=True)
        ctx.exit(ExitCode.FAILED)
