"""Tables, and what the broker knows in them: services, commands and programs."""

from __future__ import annotations

import json

import click
from rich import box
from rich.console import Console
from rich.table import Table

from pyhub.hub.message_hub import MessageHub
from pyhub.hub.protocol import CommandInfo, ServiceInfo
from pyhub.hub.runtime import BrokerConfig, RuntimeDirectory
from pyhub.monitor.wording import short

__all__ = [
    "cells", "command_as_dict", "looking_hub", "new_console", "new_table", "show_programs",
    "show_services",
]  # fmt: skip


def looking_hub(name: str, *, is_stored: bool = False) -> MessageHub:
    """Return a hub for a command that only looks: it starts no broker to find it empty.

    What `is_stored` is not empty, once a broker was there that wrote it down.
    """
    is_there = is_stored and RuntimeDirectory().state_path.exists()
    return MessageHub(BrokerConfig(autostart=is_there, name=name))


def new_console() -> Console:
    """Return a console for what others wrote: it is text, and no markup of ours."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no edge to fold at
    return console


def new_table(*columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """Return a table with those columns; texts give way where there is no room."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def cells(*values: object) -> list[str]:
    """Return a row of a table, without what a terminal would take for a command."""
    return [short(value) for value in values]


def show_services(hub: MessageHub, as_json: bool) -> None:
    """Print the services with their load."""
    services = hub.services()
    if as_json:
        click.echo(json.dumps([_service_as_dict(service) for service in services], indent=2))
        return
    if not services:
        click.echo("no services; a program offers one with: hub.service(NAME)", err=True)
        return
    table = new_table(
        "service", "commands", "workers", numbers=("running", "waiting", "capacity")
    )  # fmt: skip
    for service in services:
        names = ", ".join(command.name for command in service.commands)
        load = (service.n_running, service.n_waiting, service.capacity)
        table.add_row(*cells(service.name, names, ", ".join(service.workers), *load))
    new_console().print(table)


def show_programs(hub: MessageHub, as_json: bool) -> None:
    """Print the programs, and what the broker counted."""
    programs, counters = hub.programs()
    if as_json:
        found = [
            {name: getattr(program, name) for name in program.__struct_fields__}
            for program in programs
        ]
        click.echo(json.dumps({"programs": found, "counters": counters}, indent=2))
        return
    table = new_table(
        "program", "client", "role", "host",
        numbers=("pid", "silent/s", "channels", "services", "watches", "dropped"),
    )  # fmt: skip
    for each in programs:
        counts = (each.n_channels, each.n_services, each.n_watches, each.n_dropped)
        silent = f"{each.silent_s:.1f}"
        table.add_row(
            *cells(each.name, each.client, each.role, each.host, each.pid, silent, *counts)
        )
    console = new_console()
    console.print(table)
    for name, count in sorted(counters.items()):
        console.print(short(f"{name}: {count}"), soft_wrap=True)


def command_as_dict(command: CommandInfo) -> dict[str, object]:
    """Return a command as JSON has it; a default is as Python writes it."""
    return {
        "name": command.name,
        "doc": command.doc,
        "parameters": [
            {"name": each.name, "type": each.type, "default": each.default}
            for each in command.parameters
        ],
        "returns": command.returns,
        "is_idempotent": command.is_idempotent,
    }


def _service_as_dict(service: ServiceInfo) -> dict[str, object]:
    return {
        "name": service.name,
        "commands": [command_as_dict(command) for command in service.commands],
        "workers": service.workers,
        "capacity": service.capacity,
        "n_running": service.n_running,
        "n_waiting": service.n_waiting,
    }
