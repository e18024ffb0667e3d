"""pyhub record: a channel's frames into a file."""

from __future__ import annotations

import os

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pyhub.cli.options import Number, example
from pyhub.cli.outcome import ExitCode
from pyhub.cli.waiting import find_consumer
from pyhub.datablock import DataBlockConsumer
from pyhub.hub.message_hub import MessageHub
from pyhub.sinks.nexus import COMPRESSIONS
from pyhub.sinks.recorder import check_target, record


@click.command("record", epilog=example("pyhub record cam1 scan0042.h5 --frames 1000"))
@click.argument("channel")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--frames", type=click.IntRange(1), help="End after so many.  [default: go on]")
@click.option("--compression", type=click.Choice(COMPRESSIONS), default="gzip", show_default=True)
@click.option("--policy", type=click.Choice(("drop_oldest", "drop_newest", "block")),
              default="drop_oldest", show_default=True,
              help="What is dropped if this is too slow; block: the producer waits.")  # fmt: skip
@click.option("--reader", metavar="NAME", help="Its name for pyhub info.  [default: record-PID]")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option("--timeout", "timeout_s", type=Number(0), metavar="S",
              help="How long to wait for the channel.  [default: for ever]")  # fmt: skip
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.pass_context
def command(
    ctx: click.Context,
    channel: str,
    file: str,
    frames: int | None,
    compression: str,
    policy: str,
    reader: str | None,
    overwrite: bool,
    timeout_s: float | None,
    quiet: bool,
) -> None:
    """Write every frame of CHANNEL into a new NeXus FILE (HDF5).

    The frames are /entry/data/data, their parameters stand beside them; frames
    that were missed are marked. Waits for the channel. Ctrl-C ends the
    recording and finishes the file. While it is written it is FILE.partial.

    Ends at once, without a file, if the first seconds show that frames come
    faster than they can be written; but not with --policy block.
    """
    check_target(file, compression=compression, overwrite=overwrite)
    with (
        MessageHub() as hub,
        _find(ctx, hub, channel, timeout_s, policy, reader) as consumer,
        Progress(
            TextColumn("recording {task.description}"),
            BarColumn(),
            TextColumn("{task.completed} frames, {task.fields[missing]} missing"),
            console=Console(stderr=True),
            disable=quiet or not Console(stderr=True).is_terminal,
        ) as progress,
    ):
        task = progress.add_task(channel, total=frames, missing=0)
        recording = record(
            consumer,
            file,
            n_frames=frames,
            compression=compression,
            overwrite=overwrite,
            on_frame=lambda n, missing: progress.update(task, completed=n, missing=missing),
        )
    ended = "" if recording.is_complete else f"; marked partial: {recording.reason}"
    click.echo(
        f"wrote {recording.n_frames} frames to {file}, {recording.n_missing} missing{ended}",
        err=True,
    )
    if recording.stalled_s:
        click.echo(f"  the producer waited {recording.stalled_s:.1f} s for it", err=True)
    if recording.n_missing:
        fate = "dropped" if policy == "drop_newest" else "overwritten"
        click.echo(
            f"  missing frames were {fate} before they could be written, and are marked in the "
            "file;\n  give the producer more slots (pyhub sim --slots, replay --slots), or record "
            "with --compression none",
            err=True,
        )
    if not recording.is_complete:
        ctx.exit(ExitCode.PARTIAL)


def _find(
    ctx: click.Context,
    hub: MessageHub,
    channel: str,
    timeout_s: float | None,
    policy: str,
    reader: str | None,
) -> DataBlockConsumer:
    try:
        return find_consumer(
            hub, channel, timeout_s, policy=policy, reader=reader or f"record-{os.getpid()}"
        )
    except KeyboardInterrupt:
        click.echo(f"nothing recorded: {channel!r} did not appear; no file was made", err=True)
        ctx.exit(ExitCode.PARTIAL)
