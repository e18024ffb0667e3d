"""pyhub events: what happened, and what happens."""

from __future__ import annotations

import json
import time
from typing import get_args

import click

from pyhub.cli.feeds import following
from pyhub.cli.listing import looking_hub
from pyhub.cli.options import example
from pyhub.cli.values import moment, shown, typed
from pyhub.hub.client.entries import Event
from pyhub.hub.message_hub import MessageHub
from pyhub.hub.protocol import Severity
from pyhub.hub.runtime import BrokerConfig
from pyhub.monitor.wording import short, to_json

_NAME = "pyhub events"
_SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # the least severe first


@click.command(
    "events",
    epilog=example(
        "pyhub events",
        "pyhub events 'alarm/*' --follow --severity warning",
        "pyhub events --publish alarm/door '\"open\"' --keep --severity error",
        "pyhub events --publish alarm/door null --keep",
    ),
)
@click.argument("what", metavar="[PATTERN|VALUE]", required=False)
@click.option("--follow", is_flag=True, help="Go on with every event, until Ctrl-C.")
@click.option("--publish", "topic", metavar="TOPIC", help="Tell of an event, with VALUE.")
@click.option("--keep", is_flag=True,
              help="Of --publish: tell also who comes later; null: none any more.")  # fmt: skip
@click.option("--severity", type=click.Choice(_SEVERITIES),
              help="The least; of --publish, its own.  [default: debug; info]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(
    what: str | None,
    follow: bool,
    topic: str | None,
    keep: bool,
    severity: Severity | None,
    as_json: bool,
) -> None:
    """Print the events that are kept, by topics that match PATTERN.

    A VALUE is JSON; what is no JSON is a text, and so is all in JSON's quotes.
    Topics below hub/ tell of channels, services and programs, to who asks for
    them: pyhub events 'hub/*' --follow. alarm/ and log/ are customary.
    """
    if topic is not None:
        if follow or as_json:
            raise click.UsageError("--publish prints nothing: no --follow, no --json")
        with MessageHub(BrokerConfig(name=_NAME)) as hub:
            value = None if what is None else typed(what)
            hub.publish(topic, value, severity=severity or "info", keep=keep)
        return
    if keep:
        raise click.UsageError("--keep goes with --publish")
    least = _SEVERITIES.index(severity or "debug")
    # What only looks starts no broker to find it empty.
    with (
        MessageHub(BrokerConfig(name=_NAME))
        if follow
        else looking_hub(_NAME, is_stored=True) as hub,
        hub.events(what or "*") as feed,
    ):
        n_shown = 0
        for event in following(feed, "events") if follow else feed.taken():
            # Who comes and goes is told to who asks for it.
            is_own = event.topic.startswith("hub/") and what is None
            if _SEVERITIES.index(event.severity) < least or is_own or not (follow or event.is_kept):
                continue
            n_shown += 1
            click.echo(json.dumps(_as_dict(event)) if as_json else _line(event))
        if not n_shown and not as_json:
            click.echo("no event is kept; as they happen: pyhub events --follow", err=True)


def _line(event: Event) -> str:
    return (
        f"{_when(event)}  {event.severity:<8}  {short(event.topic)}  "
        f"{shown(event)}  {short(event.source)}"
    )


def _when(event: Event) -> str:
    # Of what ended while no broker was there to tell, nobody knows when.
    return moment(event.time_ns or time.time_ns())


def _as_dict(event: Event) -> dict[str, object]:
    return {
        "time": _when(event),
        "time_ns": event.time_ns,
        "severity": event.severity,
        "topic": event.topic,
        "value": to_json(event.value),
        "source": event.source,
        "number": event.number,
        "is_kept": event.is_kept,
    } | ({"problem": event.problem} if event.problem else {})
