"""pyhub sim: a simulated area detector."""

from __future__ import annotations

import time
from typing import Any

import click
import numpy as np

from pyhub.cli import options
from pyhub.cli.options import Number, example, format_shape
from pyhub.hub.message_hub import MessageHub
from pyhub.sources.detector import SimulatedDetector
from pyhub.sources.simulation import simulate

_MAX_EXPOSURE_S = 10.0


@click.command("sim", epilog=example("pyhub sim --name cam1 --rate 100 --shape 512x1028"))
@click.option("--name", default="cam1", show_default=True, help="Name of the channel.")
@click.option(
    "--shape",
    type=options.shape,
    metavar="RxC",
    default="512x1028",
    show_default=True,
    help="Of a frame.",
)
@click.option(
    "--dtype",
    type=options.dtype,
    metavar="DTYPE",
    default="uint16",
    show_default=True,
    help="Of a pixel.",
)
@click.option(
    "--rate", type=Number(min=0, min_open=True), default=100.0, show_default=True,
    metavar="HZ", help="Frames a second.",
)  # fmt: skip
@click.option("--slots", type=click.IntRange(1), default=16, show_default=True, help="Of the ring.")
@click.option("--frames", type=click.IntRange(1), help="End after so many.  [default: go on]")
@click.option("--seconds", type=Number(0), help="End after so long.  [default: go on]")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the noise.")
def command(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    rate: float,
    slots: int,
    frames: int | None,
    seconds: float | None,
    seed: int,
) -> None:
    """Publish frames of a simulated area detector.

    Powder rings and Bragg spots with Poisson noise and a moving beam; the
    parameters (exposure, energy, angle, frame number) come with each frame.
    Ctrl-C ends it.
    """
    if len(shape) != 2:
        raise click.BadParameter("a detector has rows and columns", param_hint="--shape")
    end = float("inf") if seconds is None else time.monotonic() + seconds
    with (
        MessageHub() as hub,
        hub.create_datablock_producer(name, dtype=dtype, shape=shape, slots=slots) as producer,
    ):
        # Not before: of frames that are too large, the channel says so at once.
        detector = SimulatedDetector((shape[0], shape[1]), dtype, seed=seed, exposure_s=1 / rate)
        _offer(hub, name, detector)
        click.echo(f"publishing {name}: {dtype} {format_shape(shape)} at {rate:g} Hz", err=True)
        simulate(
            detector,
            producer,
            rate_hz=rate,
            n_frames=frames,
            is_over=lambda: time.monotonic() >= end,
        )


def _offer(hub: MessageHub, name: str, detector: SimulatedDetector) -> None:
    """Let others set the detector, as they would a real one."""

    @hub.service(name)
    def set_exposure(exposure_s: float) -> float:
        """Expose so long, s, from the next frame on; brighter, at the same rate."""
        if not 0 < exposure_s <= _MAX_EXPOSURE_S:
            raise ValueError(f"exposure_s={exposure_s:g} is not within 0 and {_MAX_EXPOSURE_S:g} s")
        detector.exposure_s = exposure_s
        hub.state[f"{name}/exposure_s"] = exposure_s
        hub.publish(f"{name}/exposure", {"exposure_s": exposure_s})
        return exposure_s

    hub.state[f"{name}/exposure_s"] = detector.exposure_s
