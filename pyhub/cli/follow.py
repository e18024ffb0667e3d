"""pyhub follow: keep up with a channel's newest frame, and say how well."""

from __future__ import annotations

import click

from pyhub.cli.options import Number, example
from pyhub.cli.waiting import find_consumer
from pyhub.hub.message_hub import MessageHub
from pyhub.sinks.stages import publish_progress


@click.command("follow", epilog=example("pyhub follow cam1", "pyhub info cam1.follow"))
@click.argument("channel")
@click.option("--timeout", "timeout_s", type=Number(0), metavar="S",
              help="How long to wait for the channel.  [default: for ever]")  # fmt: skip
def command(channel: str, timeout_s: float | None) -> None:
    """Follow the newest frame of CHANNEL; publish rate and latency as CHANNEL.follow.

    Goes on when the producer restarts. Ctrl-C ends it.
    """
    with (
        MessageHub() as hub,
        find_consumer(hub, channel, timeout_s) as consumer,
        hub.create_datablock_producer(f"{channel}.follow", slots=2) as producer,
    ):
        click.echo(f"publishing {producer.name}; look with: pyhub tap {producer.name}", err=True)
        publish_progress(consumer, producer)
