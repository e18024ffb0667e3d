"""pyhub tap: a channel's frames as lines of text."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import click
import numpy as np

from pyhub.cli.options import Number, example, format_shape
from pyhub.cli.waiting import find_consumer
from pyhub.datablock import Frame, Policy
from pyhub.hub.message_hub import MessageHub
from pyhub.monitor.wording import spelled, to_json


@click.command("tap", epilog=example("pyhub tap cam1", "pyhub tap cam1 --json --frames 10"))
@click.argument("channel")
@click.option("--frames", type=click.IntRange(1), help="End after so many.  [default: go on]")
@click.option("--policy", type=click.Choice([str(policy) for policy in Policy]),
              default="every", show_default=True,
              help="Which frames; what happens to those that come too fast.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--timeout", "timeout_s", type=Number(0), metavar="S",
              help="Longest wait for channel or frame.  [default: for ever]")  # fmt: skip
def command(
    channel: str, frames: int | None, policy: str, as_json: bool, timeout_s: float | None
) -> None:
    """Print each frame of CHANNEL as it comes: its numbers and its parameters.

    Ends when the channel is closed, or with Ctrl-C. Its producer waits for this
    program with --policy block only.
    """
    with (
        MessageHub() as hub,
        find_consumer(hub, channel, timeout_s, policy=policy) as consumer,
    ):
        for n, frame in enumerate(consumer.frames(timeout_s), 1):
            click.echo(json.dumps(to_json(summary(frame))) if as_json else line_of(frame))
            if n == frames:
                break


def summary(frame: Frame) -> dict[str, Any]:
    """Return the numbers that tell whether a frame is what one expects."""
    facts: dict[str, Any] = {
        "frame_id": frame.frame_id,
        "timestamp": frame.timestamp,
        "timestamp_ns": frame.timestamp_ns,
        "dtype": str(frame.data.dtype),
        "shape": list(frame.data.shape),
        "n_lost": frame.n_lost,
    }
    if frame.data.size and frame.data.dtype.kind in "biuf":
        with np.errstate(all="ignore"):  # of NaN and infinities the numbers speak
            facts |= {
                "min": frame.data.min().item(),
                "max": frame.data.max().item(),
                "mean": float(frame.data.mean(dtype=np.float64)),
            }
    return facts | {"flex": frame.flex}


def line_of(frame: Frame) -> str:
    """Return what a person wants to see of a frame, in one line."""
    facts = summary(frame)
    when = dt.datetime.fromtimestamp(frame.timestamp).strftime("%H:%M:%S.%f")[:-3]
    numbers = f"{facts['dtype']} {format_shape(frame.data.shape)}"
    if "mean" in facts:
        numbers += f"  min {facts['min']:g} mean {facts['mean']:.4g} max {facts['max']:g}"
    lost = f"  LOST {frame.n_lost}" if frame.n_lost else ""
    flex = "  ".join(f"{name}={value}" for name, value in spelled(frame.flex, 40).items())
    return f"{when}  {frame.frame_id:>7}{lost}  {numbers}  {flex}"
