"""pyhub doctor: is this machine fit?"""

from __future__ import annotations

import click
from rich.console import Console

from pyhub.cli.options import example
from pyhub.cli.outcome import ExitCode
from pyhub.monitor.doctor import Verdict, examine

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


@click.command("doctor", epilog=example("pyhub doctor"))
@click.pass_context
def command(ctx: click.Context) -> None:
    """Look at what pyhub needs of this machine, and say what to do.

    Ends with 1 if something fails, with 0 if there are warnings only.
    """
    console = Console(soft_wrap=True, highlight=False)
    has_failed = False
    for finding in examine():
        console.print(
            f"[{_STYLES[finding.verdict]}]{finding.verdict:>4}[/]  {finding.subject}: ",
            end="",
        )
        console.print(finding.fact, markup=False)
        if finding.verdict is not Verdict.OK and finding.advice:
            console.print(f"      → {finding.advice}", markup=False)
        has_failed = has_failed or finding.verdict is Verdict.FAIL
    if has_failed:
        ctx.exit(ExitCode.FAILED)
