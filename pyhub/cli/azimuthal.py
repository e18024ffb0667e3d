"""pyhub azimuthal: a channel's running azimuthal average, as a channel."""

from __future__ import annotations

import click
import numpy as np

from pyhub.cli.options import Number, example
from pyhub.cli.waiting import find_consumer
from pyhub.hub.message_hub import MessageHub
from pyhub.sinks.stages import N_BINS, publish_azimuthal


@click.command("azimuthal", epilog=example("pyhub azimuthal cam1", "pyhub tap cam1.azimuthal"))
@click.argument("channel")
@click.option("--timeout", "timeout_s", type=Number(0), metavar="S",
              help="How long to wait for the channel.  [default: for ever]")  # fmt: skip
def command(channel: str, timeout_s: float | None) -> None:
    """Publish the running azimuthal average of CHANNEL as CHANNEL.azimuthal.

    Reads every frame; goes on when the producer restarts. Ctrl-C ends it.
    """
    with (
        MessageHub() as hub,
        find_consumer(hub, channel, timeout_s) as consumer,
        hub.create_datablock_producer(
            f"{channel}.azimuthal", dtype=np.float32, shape=(N_BINS,), slots=16
        ) as producer,
    ):
        click.echo(f"publishing {producer.name}; look with: pyhub tap {producer.name}", err=True)
        publish_azimuthal(consumer, producer)
