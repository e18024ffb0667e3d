"""pyhub demo: a detector, two consumers and a live table, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import click
from rich.console import Console
from rich.live import Live

from pyhub.cli import options
from pyhub.cli.options import Number, example, format_shape
from pyhub.errors import PyhubError
from pyhub.hub.message_hub import MessageHub
from pyhub.monitor.live import Dashboard

_REFRESH_S = 0.1
_LINES_S = 1.0
_PICTURE_SIZE = (100, 40)  # characters


@click.command("demo", epilog=example("pyhub demo", "pyhub demo --seconds 10 --rate 50"))
@click.option("--name", default="cam1", show_default=True, help="Name of the detector's channel.")
@click.option(
    "--shape",
    type=options.shape,
    metavar="RxC",
    default="512x1028",
    show_default=True,
    help="Of a frame.",
)
@click.option("--rate", type=Number(min=0, min_open=True), default=100.0,
              show_default=True, metavar="HZ", help="Frames a second.")  # fmt: skip
@click.option("--seconds", type=Number(0), help="End after so long.  [default: Ctrl-C]")
@click.option("--picture", type=click.Path(dir_okay=False), metavar="FILE.svg",
              help="Save what was shown last.")  # fmt: skip
def command(
    name: str, shape: tuple[int, ...], rate: float, seconds: float | None, picture: str | None
) -> None:
    """Show frames flowing: a simulated detector and two consumers.

    One consumer averages every frame around the beam, the other follows the
    newest. Without a terminal it prints a line a second and channel.
    """
    readers = {f"{name}.azimuthal": "azimuthal", f"{name}.follow": "follow"}
    console = Console()
    end = float("inf") if seconds is None else time.monotonic() + seconds
    with MessageHub() as hub, contextlib.ExitStack() as stack:
        parts = [
            stack.enter_context(_process("sim", "--name", name, "--shape", format_shape(shape),
                                         "--rate", f"{rate:g}")),
            *(stack.enter_context(_process(reader, name)) for reader in readers.values()),
        ]  # fmt: skip
        dashboard = Dashboard(hub, name, readers)
        stack.callback(dashboard.close)
        with contextlib.suppress(KeyboardInterrupt):  # the end that a demo expects
            _show(dashboard, parts, console, end)
    if picture is not None:
        _save(dashboard, picture)
    click.echo(f"{dashboard.n_frames} frames flowed; all processes have ended")
    click.echo(
        "Each part was a program of its own. Next, in two terminals:\n"
        f"  {_pyhub()} sim --name {name}\n"
        f"  {_pyhub()} tap {name}\n"
        "Then your own detector: the source's examples/python/camera.py is a beginning."
    )


def _pyhub() -> str:
    """Return how this command line is reached in the user's shell."""
    here = os.path.dirname(sys.executable)
    found = shutil.which("pyhub")
    if found is not None and os.path.samefile(os.path.dirname(found), here):
        return "pyhub"
    python = min(sys.executable, os.path.relpath(sys.executable), key=len)
    return f"{shlex.quote(python)} -m pyhub"


@dataclass
class _Part:
    """A command that runs beside this one, and the file that it writes its messages to."""

    name: str
    process: subprocess.Popen[bytes]
    messages: IO[bytes]

    def check(self) -> None:
        """Raise if it has ended; it was not asked to."""
        code = self.process.poll()
        if code is not None:
            self.messages.seek(0)
            lines = self.messages.read().decode(errors="replace").strip().splitlines()
            said = "".join(f"\n    {line}" for line in lines[-20:])
            raise PyhubError(
                f"a part of the demo ended with {code} (pid {self.process.pid}): "
                f"pyhub {self.name}{said}\n  Look at the machine with: pyhub doctor"
            )


def _show(
    dashboard: Dashboard,
    parts: list[_Part],
    console: Console,
    end: float,
) -> None:
    """Draw, or print lines without a terminal, until `end` or the death of a child."""
    is_screen = console.is_terminal and not console.is_dumb_terminal
    live = Live(console=console, auto_refresh=False, screen=is_screen)
    next_lines = time.monotonic() + _LINES_S
    with live if is_screen else contextlib.nullcontext():
        while time.monotonic() < end:
            for part in parts:
                part.check()
            dashboard.update()
            if is_screen:
                live.update(dashboard.renderable(console.width, console.height), refresh=True)
            elif time.monotonic() >= next_lines:
                next_lines += _LINES_S
                click.echo("\n".join(dashboard.lines()))
            time.sleep(_REFRESH_S)  # the eye's pace


def _save(dashboard: Dashboard, path: str) -> None:
    width, height = _PICTURE_SIZE
    with open(os.devnull, "w") as nowhere:
        console = Console(
            record=True, width=width, height=height, file=nowhere, force_terminal=True,
            color_system="truecolor",
        )  # fmt: skip
        console.print(dashboard.renderable(width, height))
        console.save_svg(path, title="pyhub demo")


@contextlib.contextmanager
def _process(name: str, *arguments: str) -> Iterator[_Part]:
    """Run a pyhub command beside this one; ended, as by Ctrl-C, when the context is left."""
    with contextlib.ExitStack() as stack:
        messages = stack.enter_context(tempfile.TemporaryFile())
        with _interrupted_later():
            child = subprocess.Popen(
                [sys.executable, "-m", "pyhub", name, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=messages,  # the screen is for the table
                stderr=messages,
            )
            stack.callback(_end, child)
        yield _Part(name, child, messages)


def _end(child: subprocess.Popen[bytes]) -> None:
    # A terminal's Ctrl-C reached it too; then this comes second, and is not heeded.
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(10.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Let Ctrl-C wait: in the midst of a fork it would leave a child that nobody knows."""
    caught: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if callable(signal.getsignal(number))
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if caught:
        raise KeyboardInterrupt
