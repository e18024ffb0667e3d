"""pyhub events: what happened, and what happens."""

from __future__ import annotations

import json
from typing import get_args

import click

from pyhub.cli.feeds import following
from pyhub.cli.listing import looking_hub
from pyhub.cli.options import example
from pyhub.cli.values import as_line, moment, typed
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
    Topics below hub/ tell of channels, services and programs; alarm/ and log/
    are customary.
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
        MessageHub(BrokerConfig(name=_NAME)) if follow else looking_hub(_NAME) as hub,
        hub.events(what or "*") as feed,
    ):
        for event in following(feed, "events") if follow else feed.taken():
            if _SEVERITIES.index(event.severity) >= least and (follow or event.is_kept):
                click.echo(json.dumps(_as_dict(event)) if as_json else _line(event))


def _line(event: Event) -> str:
    return (
        f"{moment(event.time_ns)}  {event.severity:<8}  {short(event.topic)}  "
        f"{as_line(event.value)}  {short(event.source)}"
    )


def _as_dict(event: Event) -> dict[str, object]:
    return {
        "time": moment(event.time_ns),
        "time_ns": event.time_ns,
        "severity": event.severity,
        "topic": event.topic,
        "value": to_json(event.value),
        "source": event.source,
        "number": event.number,
        "is_kept": event.is_kept,
    }
