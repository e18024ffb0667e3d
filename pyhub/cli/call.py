"""pyhub call: have another program do a command."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from pyhub.cli.listing import command_as_dict, looking_hub, show_services
from pyhub.cli.options import Number, example
from pyhub.cli.values import as_line, as_lines, foreign, typed_pair
from pyhub.errors import (
    CallCancelled,
    ChannelClosed,
    CodecError,
    CommandFailed,
    ServiceNotFound,
    WaitTimeout,
)
from pyhub.hub.client.calls import PendingCall
from pyhub.hub.message_hub import MessageHub
from pyhub.monitor.wording import short, to_json

_OWN = "timeout_s"  # of a call, whatever the command


@click.command(
    "call",
    epilog=example(
        "pyhub call",
        "pyhub call cam1",
        "pyhub call cam1 set_exposure exposure_s=0.1 --timeout 2",
    ),
)
@click.argument("service", required=False)
@click.argument("name", metavar="[COMMAND]", required=False)
@click.argument("arguments", metavar="[NAME=VALUE]...", nargs=-1, type=typed_pair)
@click.option("--timeout", "timeout_s", type=Number(0), default=10.0, show_default=True,
              metavar="S", help="How long to wait for the result.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--verbose", is_flag=True, help="Of a failure there, with its traceback.")
def command(
    service: str | None,
    name: str | None,
    arguments: tuple[tuple[str, Any], ...],
    timeout_s: float,
    as_json: bool,
    verbose: bool,
) -> None:
    """Have the program that offers SERVICE do COMMAND, and print its result.

    Without a command: list what there is. A VALUE is JSON; what is no JSON is a
    text, and so is all in JSON's quotes. Progress goes to stderr. Ctrl-C
    cancels the call, and ends with 1, as it was not done.
    """
    given = _checked(arguments)
    with looking_hub("pyhub call") as hub:
        if service is None:
            show_services(hub, as_json)
        elif name is None:
            _show_commands(hub, service, as_json)
        else:
            call = hub.start_call(service, name, timeout_s=timeout_s, **given)
            result = _result(call, timeout_s, verbose)
            if as_json:
                click.echo(json.dumps(to_json(result), indent=2))
            elif result is None:
                click.echo(f"{call} is done", err=True)
            else:
                click.echo(as_lines(result))


def _checked(arguments: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    given = dict(arguments)
    if len(given) < len(arguments):
        raise click.UsageError("an argument is given twice")
    if _OWN in given:
        raise click.UsageError(f"{_OWN} is the call's own; use --timeout")
    return given


def _show_commands(hub: MessageHub, name: str, as_json: bool) -> None:
    services = {service.name: service for service in hub.services()}
    if name not in services:
        raise ServiceNotFound(
            f"nobody offers service {name!r}.\n  There are: {', '.join(services) or 'none'}."
        )
    commands = services[name].commands
    if as_json:
        click.echo(json.dumps([command_as_dict(each) for each in commands], indent=2))
        return
    for each in commands:
        click.echo(short(f"{each.name}{each.signature}"))
        if each.doc:
            click.echo(f"    {short(each.doc.splitlines()[0])}")


def _result(call: PendingCall, timeout_s: float, verbose: bool) -> Any:
    try:
        _show_progress(call, time.monotonic() + timeout_s)
        return call.result()
    except KeyboardInterrupt:
        call.cancel()
        raise CallCancelled(
            f"{call} was cancelled.\n"
            "  If it had begun, it was told that nobody waits; but may not heed that."
        ) from None
    except CommandFailed as error:
        if verbose and error.traceback:
            click.echo(foreign(error.traceback.rstrip()), err=True)
        elif error.traceback:
            raise CommandFailed(
                f"{error}\n  With --verbose, its traceback is shown too."
            ) from error
        raise


def _show_progress(call: PendingCall, deadline: float) -> None:
    """Print what the command reports, until it is done or its time is over."""
    while True:
        try:
            value = call.progress.get(max(deadline - time.monotonic(), 0.0))
        except (ChannelClosed, WaitTimeout):  # `result` knows why
            return
        except CodecError:  # of what it is doing; what comes of it may be sound
            click.echo("<unreadable>", err=True)
            continue
        click.echo(as_line(value), err=True)
