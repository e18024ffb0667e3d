"""pyhub state: the values that all programs share."""

from __future__ import annotations

import datetime as dt
import json
import time
from typing import Any

import click

from pyhub.cli.feeds import following
from pyhub.cli.listing import cells, looking_hub, new_console, new_table
from pyhub.cli.options import example
from pyhub.cli.outcome import ExitCode
from pyhub.cli.values import as_lines, moment, shown, typed_pair
from pyhub.hub.client.entries import StateEntry
from pyhub.hub.message_hub import MessageHub
from pyhub.hub.runtime import BrokerConfig
from pyhub.monitor.wording import short, to_json
from pyhub.names import has_wildcards

_NAME = "pyhub state"
_LENGTH = 60  # of a value in the table, in letters


@click.command(
    "state",
    epilog=example(
        "pyhub state 'cam1/*'",
        "pyhub state cam1/exposure_s=0.1",
        "pyhub state cam1/exposure_s",
        "pyhub state --watch 'cam1/*' --json",
        "pyhub state --delete cam1/exposure_s",
    ),
)
@click.argument("what", metavar="[PATTERN|KEY|KEY=VALUE]", default="*")
@click.option("--if-version", type=click.IntRange(0), metavar="N",
              help="Set or delete only if the key has it; 0: if there is no such key.")  # fmt: skip
@click.option("--delete", is_flag=True, help="Delete KEY.")
@click.option("--watch", is_flag=True, help="Go on with every change, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True,
              help="JSON; with --watch one object a line.")  # fmt: skip
@click.pass_context
def command(
    ctx: click.Context,
    what: str,
    if_version: int | None,
    delete: bool,
    watch: bool,
    as_json: bool,
) -> None:
    """List the shared state, print the value of KEY, or set it.

    A VALUE is JSON; what is no JSON is a text, and so is all in JSON's quotes.
    A pattern may have *, ? and [...]; quote it, or the shell takes them.
    """
    is_set = "=" in what and not delete
    if watch and (is_set or delete):
        raise click.UsageError("--watch takes a pattern, and neither sets nor deletes")
    if if_version is not None and not (is_set or delete):
        raise click.UsageError("--if-version goes with KEY=VALUE or --delete")
    if delete and has_wildcards(what):
        raise click.UsageError("--delete takes one KEY, and no pattern")
    # What only looks starts no broker to find it empty.
    with (
        MessageHub(BrokerConfig(name=_NAME))
        if is_set or delete or watch
        else looking_hub(_NAME, is_stored=True) as hub
    ):
        if watch:
            _watch(hub, what, as_json)
        elif is_set:
            key, value = typed_pair(what)
            entry = hub.state.set(key, value, if_version=if_version)
            click.echo(
                json.dumps(_as_dict(entry)) if as_json else f"version {entry.version}",
                err=not as_json,
            )
        elif has_wildcards(what):
            _list(hub.state.entries(what), what, as_json)
        elif not (
            hub.state.delete(what, if_version=if_version) if delete else _show(hub, what, as_json)
        ):
            click.echo(f"there is no key {what!r} in the state; see: pyhub state", err=True)
            ctx.exit(ExitCode.NOT_FOUND)


def _list(entries: list[StateEntry], pattern: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_as_dict(entry) for entry in entries], indent=2))
        return
    if not entries:
        click.echo(f"no key matches {pattern!r}; set one with: pyhub state KEY=VALUE", err=True)
        return
    table = new_table("key", "value", "source", numbers=("version", "age"))
    for entry in entries:
        value = shown(entry, _LENGTH)
        table.add_row(*cells(entry.key, value, entry.source, entry.version, _age(entry)))
    new_console().print(table)


def _show(hub: MessageHub, key: str, as_json: bool) -> bool:
    """Print what the key has; False: there is no such key."""
    if as_json:
        entry = hub.state.entry(key)
        if entry is not None:
            click.echo(json.dumps(_as_dict(entry)))
        return entry is not None
    try:
        # Bare, for scripts: where it cannot be read, that is an error.
        click.echo(as_lines(hub.state[key]))
    except KeyError:
        return False
    return True


def _watch(hub: MessageHub, pattern: str, as_json: bool) -> None:
    with hub.state.watch(pattern) as feed:
        for entry in following(feed, "changes"):
            click.echo(json.dumps(_as_dict(entry)) if as_json else _line(entry))


def _line(entry: StateEntry) -> str:
    # Of a key that went while no broker was there to see it, nobody knows when.
    when = moment(entry.time_ns or time.time_ns())
    who = f"({short(entry.source)}, version {entry.version})"
    if entry.is_deleted:
        return f"{when}  {short(entry.key)} deleted  {who}"
    return f"{when}  {short(entry.key)} = {shown(entry)}  {who}"


def _age(entry: StateEntry) -> str:
    age_s = max(time.time() - entry.time_ns / 1e9, 0.0)
    return str(dt.timedelta(seconds=int(age_s)))


def _as_dict(entry: StateEntry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "value": to_json(entry.value),
        "version": entry.version,
        "time_ns": entry.time_ns,
        "source": entry.source,
        "is_deleted": entry.is_deleted,
    } | ({"problem": entry.problem} if entry.problem else {})
