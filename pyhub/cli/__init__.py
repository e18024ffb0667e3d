"""The command line: one file a command, all of them thin."""

from __future__ import annotations

import click

import pyhub
from pyhub.cli import (
    azimuthal,
    broker,
    call,
    clean,
    config,
    demo,
    doctor,
    events,
    follow,
    info,
    keygen,
    ls,
    record,
    recover,
    replay,
    sim,
    state,
    tap,
)
from pyhub.cli.outcome import Commands

__all__ = ["main"]


@click.group(cls=Commands)
@click.version_option(pyhub.__version__, prog_name="pyhub")
def main() -> None:
    """Move numpy frames, with their parameters, between programs.

    \b
    Exit codes:
      0  done, or stopped by you       4  nothing came in time
      1  failed                        5  ended early: the file is marked partial
      2  wrong usage                   6  no broker answers
      3  no such channel, file, service or key
    """


for module in (
    demo, sim, replay, record, ls, info, tap, azimuthal, follow, call, state, events, broker,
    keygen, config, clean, recover, doctor,
):  # fmt: skip
    main.add_command(module.command)
