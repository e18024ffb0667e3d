"""A monitor: it prints each change of the state and each event, both in one event loop.

Start it with `python monitor.py`; Ctrl-C ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pyhub


async def main() -> None:
    """Watch until Ctrl-C or SIGTERM."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    with pyhub.MessageHub() as hub:
        async with asyncio.TaskGroup() as group:
            group.create_task(show_state(hub))
            group.create_task(show_events(hub))


async def show_state(hub: pyhub.MessageHub) -> None:
    """Print what is in the state, then every change."""
    with hub.state.watch("*") as changes:
        async for entry in changes:
            value = "deleted" if entry.is_deleted else entry.value
            print(f"{entry.key} = {value}  ({entry.source})")


async def show_events(hub: pyhub.MessageHub) -> None:
    """Print the alarms that are on, then every event."""
    with hub.events("*") as events:
        async for event in events:
            print(f"{event.severity}: {event.topic} {event.value}  ({event.source})")


if __name__ == "__main__":
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(main())
