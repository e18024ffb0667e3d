"""pyhub broker: a broker in the foreground."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path

import click

from pyhub.cli.options import Number, example
from pyhub.cli.outcome import ExitCode
from pyhub.errors import BrokerUnreachable, WaitTimeout
from pyhub.hub.broker.server import Broker
from pyhub.hub.broker.site import read_site
from pyhub.hub.message_hub import MessageHub
from pyhub.hub.runtime import BrokerConfig, BrokerFile, RuntimeDirectory


@click.command(
    "broker",
    epilog=example(
        "pyhub broker",
        "pyhub broker --runtime-dir /run/pyhub",
        "pyhub broker --config /etc/pyhub/broker.yaml",
        "pyhub broker --stop",
    ),
)
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path),
              help="A site's endpoints and clients: see pyhub config.")  # fmt: skip
@click.option("--runtime-dir", type=click.Path(file_okay=False, path_type=Path),
              help="Where programs look for it.  [default: the user's own]")  # fmt: skip
@click.option("--linger", "linger_s", type=Number(0), metavar="S",
              help="End when alone for so long.  [default: never]")  # fmt: skip
@click.option("--stop", is_flag=True,
              help="End the one that runs; for administrators.")  # fmt: skip
@click.pass_context
def command(
    ctx: click.Context,
    config: Path | None,
    runtime_dir: Path | None,
    linger_s: float | None,
    stop: bool,
) -> None:
    """Run a broker in the foreground, until Ctrl-C.

    Nobody has to: a program that finds no broker starts one in the background;
    so do, when theirs is ended, the programs that it leaves.
    """
    site = None if config is None else read_site(config)
    if runtime_dir is None and site is not None:
        runtime_dir = site.runtime_dir
    if stop:
        _stop(BrokerConfig(runtime_dir, autostart=False, name="pyhub broker --stop"))
        return
    logging.getLogger("pyhub").setLevel(logging.INFO)
    runtime = RuntimeDirectory(runtime_dir)
    broker = Broker(runtime, linger_s, site)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: broker.stop())
    if not broker.run():
        found = runtime.read_broker()
        pid = f" (pid {found.pid})" if found else ""
        click.echo(f"another broker{pid} serves {runtime.path}; use it, or end it first", err=True)
        ctx.exit(ExitCode.FAILED)


def _stop(config: BrokerConfig) -> None:
    """End the broker that programs find by `config`, and wait until it is gone."""
    if config.resolved_endpoint is not None:
        with MessageHub(config) as hub:
            hub.stop_broker()
        click.echo(f"the broker at {config.resolved_endpoint} ends")
        return
    runtime = RuntimeDirectory(config.runtime_dir)
    broker = runtime.read_broker()
    if broker is None:
        raise BrokerUnreachable(f"no broker runs in {runtime.path}: there is none to end.")
    with MessageHub(config) as hub:
        try:
            hub.stop_broker()
        except BrokerUnreachable:
            if broker.is_alive():  # else it ended before its answer had left
                raise
    _await_end(broker, config.timeout_s)
    click.echo(f"the broker (pid {broker.pid}) of {runtime.path} has ended")


def _await_end(broker: BrokerFile, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while broker.is_alive():
        if time.monotonic() >= deadline:
            raise WaitTimeout(
                f"the broker (pid {broker.pid}) was told to end, and has not in {timeout_s:g} s.\n"
                f"  If it is stuck: kill -9 {broker.pid}"
            )
        time.sleep(0.01)  # a lease's end wakes nobody
