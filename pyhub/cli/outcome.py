"""How a command ends: its exit code, and what a failure says."""

from __future__ import annotations

import io
import logging
import signal
import sys
import time
from enum import IntEnum
from typing import Any

import click

from pyhub.cli.values import foreign
from pyhub.errors import BrokerUnreachable, PyhubError, ServiceNotFound, WaitTimeout

__all__ = ["Commands", "ExitCode"]


class ExitCode(IntEnum):
    """What scripts may rely on; the list for people is in `pyhub --help`."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    TIMEOUT = 4
    PARTIAL = 5
    NO_BROKER = 6


# The first that fits.
_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (FileNotFoundError, ExitCode.NOT_FOUND),
    (ServiceNotFound, ExitCode.NOT_FOUND),
    (WaitTimeout, ExitCode.TIMEOUT),
    (BrokerUnreachable, ExitCode.NO_BROKER),
    (PyhubError, ExitCode.FAILED),
    (OSError, ExitCode.FAILED),
)


# Signals that come so soon after one that was heeded mean the same: a terminal's
# Ctrl-C reaches a child, and its parent asks it to end as well.
_ECHO_S = 1.0
_heeded_at = -_ECHO_S


def _interrupt(number: int, frame: object) -> None:
    """Raise `KeyboardInterrupt`, but not a second time into the cleaning up."""
    global _heeded_at
    if time.monotonic() - _heeded_at >= _ECHO_S:
        _heeded_at = time.monotonic()
        raise KeyboardInterrupt


class Commands(click.Group):
    """A group whose commands end with a message and a code, not a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which a newcomer needs them."""
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; SIGTERM and a terminal that closes are taken as Ctrl-C: all end cleanly."""
        # A terminal without µ or an arrow shows a question mark, and not a traceback.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        logging.basicConfig(level=logging.WARNING, format="pyhub: %(message)s")
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:  # else: nohup, which is to hold
                signal.signal(number, _interrupt)
        try:
            return super().main(*args, **kwargs)
        finally:
            for number in numbers:  # all is done; what is left is the interpreter's own end
                signal.signal(number, signal.SIG_IGN)

    def invoke(self, ctx: click.Context) -> Any:
        """Turn errors that tell what to do into messages."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.DONE)  # to be stopped is how most commands end
        except BrokenPipeError:
            raise  # click ends quietly: whoever read our output has gone
        except (PyhubError, OSError) as error:
            code = next(code for kind, code in _CODES if isinstance(error, kind))
            kind = type(error).__name__
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            if isinstance(error, OSError) and not isinstance(error, PyhubError) and error.filename:
                text = f"{text}: {error.filename}"
            click.echo(foreign(f"{kind}: {text}"), err=True)  # may be another program's words
            ctx.exit(code)
