"""events prints what is kept and what comes, and tells others of more."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pyhub.cli.feeds import following
from pyhub.hub.client.feed import MAX_ITEMS, Feed
from pyhub.hub.protocol import Done, Publish


@pytest.fixture
def alarm(hub: Any) -> Iterator[Any]:
    """A hub in which an alarm is kept, for as long as the test."""
    hub.publish("alarm/door", {"text": "open\x1b[2J"}, severity="error", keep=True)
    yield hub
    hub.publish("alarm/door", None, keep=True)


def test_what_is_kept_is_printed(cli: Any, alarm: Any) -> None:
    alarm.publish("alarm/gone", "not kept")
    printed, as_json, other = cli.side_by_side(
        ["events"], ["events", "alarm/*", "--json"], ["events", "log/*"]
    )
    (line,) = printed.out.splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00  error     alarm/door  "
        r'\{"text": "open\\u001b\[2J"\}  \S+ \(.*\d+@\S+\)',
        line,
    )
    event = json.loads(as_json.out)
    assert event["topic"] == "alarm/door"
    assert event["value"] == {"text": "open\x1b[2J"}
    assert (event["severity"], event["is_kept"]) == ("error", True)
    assert (other.code, other.out) == (0, "")


def test_following_goes_on_with_what_comes(cli: Any, alarm: Any) -> None:
    every = cli.start("events", "--follow", "--json", "alarm/*")
    severe = cli.start("events", "--follow", "alarm/*", "--severity", "warning")
    every.says("alarm/door")
    severe.says("alarm/door")
    alarm.publish("other/one", 1, severity="critical")
    alarm.publish("alarm/a", 2, severity="info")
    alarm.publish("alarm/b", 3, severity="warning")
    every.says("alarm/b")
    severe.says("alarm/b")
    assert (every.end(signal.SIGINT), severe.end(signal.SIGINT)) == (0, 0)
    events = [json.loads(line) for line in every.out.splitlines()]
    assert [event["topic"] for event in events] == ["alarm/door", "alarm/a", "alarm/b"]
    assert [event["is_kept"] for event in events] == [True, False, False]
    assert "alarm/a" not in severe.out
    assert "other/one" not in every.out + severe.out


def test_a_value_that_cannot_be_read_is_told_as_such_among_the_others(cli: Any, alarm: Any) -> None:
    def publish(value: bytes) -> None:
        body = Publish(os.urandom(12), "alarm/bad", value, "info", time.time_ns(), keep=True)
        alarm._connection.ask(body, Done)

    publish(b"\xc1")  # as a program in another language may
    follow = cli.start("events", "--follow", "alarm/*")
    printed, as_json = cli.side_by_side(["events"], ["events", "--json"])
    follow.says("alarm/bad  <unreadable: 1 bytes>")
    publish(b"\xc0")
    follow.says("alarm/bad  null")
    assert (follow.end(signal.SIGINT), printed.code, as_json.code) == (0, 0, 0)
    assert "alarm/bad  <unreadable: 1 bytes>" in printed.out
    assert "alarm/door" in printed.out
    events = {event["topic"]: event for event in map(json.loads, as_json.out.splitlines())}
    assert events["alarm/bad"]["value"] is None
    assert events["alarm/bad"]["problem"].startswith("unreadable: 1 bytes")
    assert "problem" not in events["alarm/door"]


def test_channels_that_come_and_go_are_events_for_who_asks(cli: Any, alarm: Any) -> None:
    follow, other = cli.start("events", "*", "--follow"), cli.start("events", "--follow")
    for each in (follow, other):
        each.says("alarm/door")  # it listens
    alarm.create_datablock_producer("cam1").close()
    follow.says(r'hub/channel/cam1  \{"what": "registered"')
    follow.says(r'hub/channel/cam1  \{"what": "gone"')
    alarm.publish("beam", "on")
    other.says("beam")
    for each in (follow, other):
        assert each.end(signal.SIGINT) == 0
    assert "hub/" not in other.out


def test_an_event_is_published_and_kept(cli: Any, hub: Any) -> None:
    with hub.events("test/*") as feed:
        for arguments, value, severity, is_kept in (
            (['{"a": 1}'], {"a": 1}, "info", False),
            (["open", "--severity", "error", "--keep"], "open", "error", True),
            ([], None, "info", False),
            (["null", "--keep"], None, "info", False),
        ):
            assert cli("events", "--publish", "test/x", *arguments).code == 0
            event = feed.get(30)
            assert (event.value, event.severity) == (value, severity)
            assert event.source.startswith("pyhub events (")
            assert ("test/x" in cli("events", "test/*").out) is (is_kept or arguments == [])


def test_the_brokers_own_topics_are_not_for_others(cli: Any, hub: Any) -> None:
    refused = cli("events", "--publish", "hub/channel/cam1")
    assert refused.code == 1
    assert refused.err.startswith("AccessDenied: ")


def test_losses_are_told_where_they_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    feed: Feed[int] = Feed("a feed")
    for number in range(MAX_ITEMS + 5):
        feed.put(number)
    items = following(feed, "events")
    assert next(items) == 5
    assert capsys.readouterr().err == "5 events were lost on the way\n"
    assert next(items) == 6
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "line", ["--keep", "--publish a/b --follow", "--publish a/b --json", "--severity loud"]
)
def test_what_does_not_go_together_is_wrong_usage(cli: Any, line: str) -> None:
    assert cli("events", *line.split()).code == 2


def test_only_who_publishes_or_follows_starts_a_broker(apart: Any, runtime: Any) -> None:
    alone = apart("events")
    assert alone.code == 6
    assert f"no broker runs in {runtime}" in alone.err
    assert not (runtime / "broker.json").exists()
    assert apart("events", "--publish", "alarm/door", "open", "--keep").code == 0
    assert "alarm/door  open" in apart("events").out
