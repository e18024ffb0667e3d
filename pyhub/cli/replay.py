"""pyhub replay: a file's frames as a channel."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from math import prod

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pyhub.cli.options import Number, example, format_shape
from pyhub.cli.waiting import saying
from pyhub.codec import encode
from pyhub.errors import PyhubError, WaitTimeout
from pyhub.hub.message_hub import MessageHub
from pyhub.sources.hdf5 import FrameFile
from pyhub.sources.replay import parameters_of, replay


@click.command(
    "replay",
    epilog=example(
        "pyhub replay scan.h5 --name cam2 --rate 10",
        "pyhub record cam2 copy.h5 --frames 10 &",
        "pyhub replay scan.h5 --dataset /entry/data/data --name cam2 --wait-for-readers 1",
    ),
)
@click.argument("file", type=click.Path())
@click.option("--dataset", help="Of the frames.  [default: the file's default plot]")
@click.option("--name", default="replay", show_default=True, help="Name of the channel.")
@click.option("--rate", type=Number(min=0, min_open=True), metavar="HZ",
              help="Frames a second.  [default: as fast as it goes]")  # fmt: skip
@click.option("--loop", is_flag=True, help="Begin again at the end, until Ctrl-C.")
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="First frame.")
@click.option("--stop", type=click.IntRange(0), help="Frame to stop before.  [default: the end]")
@click.option("--slots", type=click.IntRange(1), help="Of the ring.  [default: all, up to 256 MiB]")
@click.option("--wait-for-readers", type=click.IntRange(0), default=0, metavar="N",
              help="Wait until N programs read the channel.")  # fmt: skip
@click.option("--timeout", "timeout_s", type=Number(0), metavar="S",
              help="How long to wait for them.  [default: for ever]")  # fmt: skip
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    file: str,
    dataset: str | None,
    name: str,
    rate: float | None,
    loop: bool,
    start: int,
    stop: int | None,
    slots: int | None,
    wait_for_readers: int,
    timeout_s: float | None,
    quiet: bool,
) -> None:
    """Publish each frame of an HDF5 data set, with the parameters in the file.

    Scalars in the frames' entry, and data sets with one value a frame, go into
    the flex zone with their units.
    """
    with FrameFile(file, dataset) as source, MessageHub() as hub:
        stop = source.n_frames if stop is None else min(stop, source.n_frames)
        if start >= stop:
            raise click.BadParameter(
                f"no frames from {start} to {stop}; the data set has {source.n_frames}",
                param_hint="--start",
            )
        n_frames = stop - start
        with hub.create_datablock_producer(
            name,
            dtype=source.dtype,
            shape=source.frame_shape,
            flexible_zone_size=_flex_bytes_for(source, start, stop),
            slots=slots or _slots_for(n_frames, source.dtype.itemsize * prod(source.frame_shape)),
        ) as producer:
            label = f"{name}: {source.dtype} {format_shape(source.frame_shape)}"
            with saying(f"waiting for {wait_for_readers} readers of {name!r}; Ctrl-C ends"):
                has_readers = hub.wait_for_readers(name, wait_for_readers, timeout_s)
            if not has_readers:
                raise WaitTimeout(
                    f"{hub.n_readers(name)} of {wait_for_readers} readers of {name!r} came in "
                    f"{timeout_s} s; nothing was published.\n  Start them first, or wait longer."
                )
            was_read = _is_read(hub, name)
            frames = range(start, stop)
            indices: Iterable[int] = itertools.cycle(frames) if loop else frames
            with Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TimeRemainingColumn(), console=Console(stderr=True),
                disable=quiet or not Console(stderr=True).is_terminal,
            ) as progress:  # fmt: skip
                task = progress.add_task(label, total=None if loop else n_frames)
                n_published = replay(
                    source, producer, indices, rate_hz=rate,
                    on_frame=lambda _: progress.advance(task),
                )  # fmt: skip
            was_read = was_read or _is_read(hub, name)
    click.echo(f"published {n_published} frames of {label}", err=True)
    if not was_read:
        click.echo(
            "  nobody read them, as far as the broker knows; to wait for readers: "
            "--wait-for-readers 1",
            err=True,
        )


def _is_read(hub: MessageHub, name: str) -> bool:
    """Whether the channel has readers; also if no broker says that it has none."""
    try:
        return hub.n_readers(name) > 0
    except PyhubError:
        return True


def _flex_bytes_for(source: FrameFile, start: int, stop: int) -> int:
    """Room for the parameters of every frame, whose sizes may differ: texts, values that lack."""
    step = max(1, (stop - start) // 10_000)  # to look at millions of them would take a minute
    largest = max(len(encode(parameters_of(source, i))) for i in range(start, stop, step))
    return max(4096, 2 * largest)


def _slots_for(n_frames: int, frame_bytes: int) -> int:
    """Room for the whole file if it is small: then no reader loses a frame of it."""
    return max(4, min(n_frames, 4096, (256 << 20) // max(frame_bytes, 1)))
