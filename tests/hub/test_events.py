"""Events: what happened, to all who listen; the last one of a topic also to who comes later."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import zmq

from pyhub import AccessDenied, BrokerConfig, ChannelClosed, InvalidName, MessageHub, WaitTimeout
from pyhub.codec import encode_value
from pyhub.errors import CapacityError, CodecError
from pyhub.hub import protocol
from pyhub.hub.client.entries import Event
from pyhub.hub.client.events import LogHandler
from pyhub.hub.client.feed import MAX_ITEMS
from pyhub.hub.client.watching import EventFeed
from pyhub.hub.protocol import Severity
from pyhub.hub.runtime import RuntimeDirectory
from tests.conftest import eventually
from tests.hub.conftest import Spawn, line

WATCHDOG_S = 30


def take(feed: EventFeed, n_items: int) -> list[Event]:
    return [feed.get(WATCHDOG_S) for _ in range(n_items)]


def values(events: list[Event]) -> list[Any]:
    return [event.value for event in events]


def kill_broker(config: BrokerConfig) -> None:
    broker = RuntimeDirectory(config.runtime_dir).read_broker()
    assert broker is not None
    os.kill(broker.pid, signal.SIGKILL)


@pytest.fixture
def other(shared: BrokerConfig) -> Iterator[MessageHub]:
    """Another program's hub."""
    with MessageHub(shared) as other:
        yield other


# --- Telling and listening ---


def test_an_event_says_what_who_and_when(hub: MessageHub, other: MessageHub, name: str) -> None:
    before = time.time_ns()
    with hub.events(name) as feed:
        other.publish(name, {"dose": np.arange(3)}, severity="warning")
        event = feed.get(WATCHDOG_S)
    assert (event.topic, event.severity, event.is_kept) == (name, "warning", False)
    assert event.value["dose"].tolist() == [0, 1, 2]
    assert f"{os.getpid()}@" in event.source
    assert before <= event.time_ns <= time.time_ns()


def test_events_come_in_order_to_all_whose_patterns_match(
    hub: MessageHub, other: MessageHub, name: str
) -> None:
    with hub.events(f"{name}/*") as all_of_it, hub.events(f"{name}/a") as one:
        with other.events(f"{name}/?") as others:
            for number in range(300):
                other.publish(f"{name}/{'ab'[number % 2]}", number)
            other.publish(name, "not below it")
            assert values(take(all_of_it, 300)) == list(range(300))
            assert values(take(one, 150)) == list(range(0, 300, 2))
            events = take(others, 300)
        numbers = [event.number for event in events]
        assert numbers == sorted(set(numbers))
        with pytest.raises(WaitTimeout):
            all_of_it.get(0.05)


def test_who_comes_later_has_missed_it(hub: MessageHub, name: str) -> None:
    hub.publish(name, 1)
    with hub.events(name) as feed:
        hub.publish(name, 2)
        assert values(take(feed, 1)) == [2]


def test_an_event_may_say_nothing_more(hub: MessageHub, name: str) -> None:
    with hub.events(name) as feed:
        hub.publish(name)
        event = feed.get(WATCHDOG_S)
    assert (event.value, event.severity) == (None, "info")


@pytest.mark.parametrize("severity", ["debug", "info", "warning", "error", "critical"])
def test_severities_are_those_of_logging(hub: MessageHub, name: str, severity: Severity) -> None:
    with hub.events(name) as feed:
        hub.publish(name, severity=severity)
        assert feed.get(WATCHDOG_S).severity == severity


@pytest.mark.parametrize("bad", ["fatal", "INFO", "", 20])
def test_another_severity_is_refused_with_those_there_are(
    hub: MessageHub, name: str, bad: object
) -> None:
    with pytest.raises(ValueError, match="Use one of 'critical', 'error', 'warning'"):
        hub.publish(name, severity=cast("Severity", bad))


@pytest.mark.parametrize("bad", ["", "a*", "a?", "[a", "a\nb", "x" * 256, "é" * 128])
def test_what_cannot_be_a_topic_is_refused(hub: MessageHub, bad: str) -> None:
    with pytest.raises(InvalidName, match="cannot be a topic"):
        hub.publish(bad)


def test_a_topic_may_have_255_bytes(hub: MessageHub, name: str) -> None:
    for topic in (name + "x" * (255 - len(name)), name + "é" * ((255 - len(name)) // 2)):
        with hub.events(topic) as feed:
            hub.publish(topic, 1)
            assert feed.get(WATCHDOG_S).topic == topic


def test_the_brokers_own_topics_are_nobody_elses(hub: MessageHub) -> None:
    with pytest.raises(AccessDenied, match="may not publish 'hub/mine'"):
        hub.publish("hub/mine")


def test_what_cannot_be_shared_is_refused(hub: MessageHub, name: str) -> None:
    with pytest.raises(CodecError, match="cannot hold"):
        hub.publish(name, {1})
    with pytest.raises(CapacityError, match="through a DataBlock"):
        hub.publish(name, bytes(49 * 1024))


def test_a_value_that_cannot_be_read_does_not_end_the_feed(hub: MessageHub, name: str) -> None:
    with hub.events(name) as feed:
        for value in (b"\xc1", encode_value(2)):
            body = protocol.Publish(os.urandom(8), name, value, "info", 0)
            hub._connection.ask(body, protocol.Done)
        unreadable, readable = take(feed, 2)
    assert unreadable.value is None
    assert unreadable.problem.startswith("unreadable: 1 bytes\n")
    assert (readable.value, readable.problem) == (2, "")


def test_a_feed_ends_with_its_hub(shared: BrokerConfig) -> None:
    with MessageHub(shared) as hub:
        feed = hub.events("nothing")
    assert list(feed) == []
    with pytest.raises(ChannelClosed, match="shut down"):
        feed.get(0)
    feed.close()


# --- Kept ones ---


def test_a_kept_event_comes_to_who_comes_later_once(
    hub: MessageHub, other: MessageHub, name: str
) -> None:
    hub.publish(name, 1, keep=True)
    hub.publish(name, 2, keep=True)
    hub.publish(name, 3)
    with other.events(f"{name}*") as feed:
        (event,) = take(feed, 1)
        assert (event.value, event.is_kept) == (2, True)
        hub.publish(name, 4, keep=True)
        (event,) = take(feed, 1)
        assert (event.value, event.is_kept) == (4, False)
        with pytest.raises(WaitTimeout):
            feed.get(0.05)


def test_keeping_nothing_ends_what_was_kept(hub: MessageHub, other: MessageHub, name: str) -> None:
    hub.publish(name, 1, keep=True)
    with other.events(name) as feed:
        take(feed, 1)
        hub.publish(name, None, keep=True)
        assert values(take(feed, 1)) == [None]
    with other.events(name) as late:
        hub.publish(name, 2)
        (event,) = take(late, 1)
        assert (event.value, event.is_kept) == (2, False)


@pytest.mark.parametrize("is_late", [True, False])
def test_a_kept_event_is_not_given_twice_when_the_broker_is_another_one(
    config: BrokerConfig, is_late: bool
) -> None:
    with MessageHub(config) as hub, MessageHub(config) as listener:
        feed = None if is_late else listener.events("beam*")
        hub.publish("beam", 1, keep=True)
        hub.publish("beam2", 2, keep=True)
        feed = feed or listener.events("beam*")
        assert values(take(feed, 2)) == [1, 2]
        kill_broker(config)
        hub.publish("beam3", 3, keep=True)
        assert values(take(feed, 1)) == [3]
        hub.publish("beam", 1)
        assert values(take(feed, 1)) == [1], "the same again is another event"
        with listener.events("beam*") as late:
            assert sorted(values(take(late, 3))) == [1, 2, 3], "and all are kept yet"
            assert (feed.n_breaks, late.n_breaks) == (1, 0)
        feed.close()


def test_an_alarm_is_there_until_it_is_over(hub: MessageHub, other: MessageHub, name: str) -> None:
    hub.alarm(name, "the shutter does not open")
    with other.events("alarm/*") as feed:
        (event,) = take(feed, 1)
        assert (event.topic, event.severity) == (f"alarm/{name}", "error")
        assert event.value == {"text": "the shutter does not open"}
        hub.alarm(name, None)
        (event,) = take(feed, 1)
        assert (event.value, event.severity) == (None, "info")
    with other.events("alarm/*") as late, pytest.raises(WaitTimeout):
        late.get(0.05)


LISTENER = """
    import sys
    from pyhub import BrokerConfig, MessageHub

    with MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False)) as hub:
        for event in hub.events(sys.argv[2]):
            print(event.topic, event.value, event.severity, event.source, event.is_kept, flush=True)
"""


def test_an_alarm_that_ended_while_one_was_away_is_told_as_over(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn
) -> None:
    for alarm in ("a", "stays"):
        hub.alarm(f"{name}/{alarm}", "hot")
    listener = spawn(LISTENER, shared.runtime_dir, f"alarm/{name}/*")
    assert line(listener).startswith(f"alarm/{name}/a {{'text': 'hot'}} error")
    assert line(listener).startswith(f"alarm/{name}/stays ")
    hub.alarm(f"{name}/b", "raised while it listens")
    assert line(listener).startswith(f"alarm/{name}/b ")
    listener.send_signal(signal.SIGSTOP)
    assert eventually(lambda: listener.pid not in {p.pid for p in hub.programs()[0]}, WATCHDOG_S)
    hub.alarm(f"{name}/a", None)
    hub.alarm(f"{name}/b", None)
    listener.send_signal(signal.SIGCONT)
    for alarm in ("a", "b"):
        assert line(listener) == f"alarm/{name}/{alarm} None info broker False"
    hub.alarm(f"{name}/a", "again")
    assert line(listener).startswith(f"alarm/{name}/a {{'text': 'again'}}")


def kept(topic: str, number: int, value: object = 1) -> protocol.Event:
    return protocol.Event(topic, encode_value(value), "info", "x", number, number, is_kept=True)


def begin(feed: EventFeed, *events: protocol.Event) -> list[tuple[str, Any]]:
    """Let a broker tell what is kept; return what the feed gives of it."""
    feed.begin_again()
    for event in events:
        feed.take_first(event)
    feed.settle(0)
    return [(event.topic, event.value) for event in feed.taken()]


def test_what_is_not_kept_any_more_is_told_once_and_again_when_it_is_back() -> None:
    feed = EventFeed("*", lambda: None)
    a, b = kept("a", 1), kept("b", 2)
    assert begin(feed, a, b) == [("a", 1), ("b", 1)]
    assert begin(feed, a, b) == [], "the control: all is kept yet"
    assert begin(feed, b) == [("a", None)]
    assert begin(feed, b) == []
    assert begin(feed, a, b) == [("a", 1)]


def test_what_was_seen_to_end_or_was_never_kept_is_not_told_to_have_ended() -> None:
    feed = EventFeed("*", lambda: None)
    assert begin(feed, kept("a", 1)) == [("a", 1)]
    feed.take(protocol.Event("a", encode_value(None), "info", "x", 2, 2), "a")
    feed.take(protocol.Event("b", encode_value(1), "info", "x", 3, 3), "b")
    assert [event.topic for event in feed.taken()] == ["a", "b"]
    assert begin(feed) == []


# --- Who is slow ---


def test_a_slow_listener_loses_the_oldest_and_knows_how_many(
    hub: MessageHub, other: MessageHub, name: str
) -> None:
    n_events = MAX_ITEMS + 500
    with hub.events(name) as feed:
        for number in range(n_events):
            body = protocol.Publish(os.urandom(8), name, encode_value(number), "info", 0)
            other._connection.tell(body, is_news=False)
        assert eventually(lambda: feed.n_lost == 500, WATCHDOG_S)
        assert values(take(feed, MAX_ITEMS)) == list(range(500, n_events))


STOPPED = """
    import sys
    from pyhub import BrokerConfig, MessageHub

    with MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False)) as hub:
        with hub.events(sys.argv[2]) as feed:
            print("listens", flush=True)
            n_given = 0
            for event in feed:
                n_given += 1
                # What was lost is known with the next ping only.
                if event.value is None and feed.n_lost:
                    break
            print(n_given, feed.n_lost, flush=True)
"""


def test_what_did_not_reach_a_stopped_listener_is_counted(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn
) -> None:
    listener = spawn(STOPPED, shared.runtime_dir, name)
    assert line(listener) == "listens"
    listener.send_signal(signal.SIGSTOP)
    value, n_events = encode_value(bytes(40_000)), 2000
    begun = [
        hub._connection.begin(protocol.Publish(os.urandom(8), name, value, "info", 0))
        for _ in range(n_events)
    ]
    for future in begun:
        hub._connection.wait(future)
    n_dropped = hub.programs()[1].get("dropped: pushes", 0)
    assert n_dropped > 0, "the control: there was no room for all"
    listener.send_signal(signal.SIGCONT)
    # The one that ends it must not be among those that are lost.
    assert eventually(
        lambda: hub.publish(name, None) is None and listener.stdout is not None
        and bool(zmq.select([listener.stdout], [], [], 0.2)[0]), WATCHDOG_S,
    )  # fmt: skip
    n_given, n_lost = map(int, line(listener).split())
    assert n_lost >= n_dropped
    assert n_given + n_lost >= n_events


# --- Ways to wait ---


def test_a_feed_is_polled_together_with_sockets(hub: MessageHub, name: str) -> None:
    with hub.events(name) as feed:
        poller = zmq.Poller()
        poller.register(feed.fileno(), zmq.POLLIN)
        assert poller.poll(0) == []
        hub.publish(name, 1)
        assert poller.poll(WATCHDOG_S * 1000) == [(feed.fileno(), zmq.POLLIN)]
        assert feed.get(0).value == 1
        assert poller.poll(0) == []


def test_events_are_awaited(hub: MessageHub, name: str) -> None:
    async def listen() -> list[Any]:
        found = []
        with hub.events(name) as feed:
            for number in range(10):
                await asyncio.to_thread(hub.publish, name, number)
            async for event in feed:
                found.append(event.value)
                if len(found) == 10:
                    break
        return found

    assert asyncio.run(listen()) == list(range(10))


def test_an_event_loop_watches_a_feed(hub: MessageHub, name: str) -> None:
    async def listen() -> Any:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[Any] = loop.create_future()
        with hub.events(name) as feed:
            loop.add_reader(feed.fileno(), lambda: arrived.set_result(feed.get(0).value))
            await asyncio.to_thread(hub.publish, name, 7)
            value = await asyncio.wait_for(arrived, WATCHDOG_S)
            loop.remove_reader(feed.fileno())
        return value

    assert asyncio.run(listen()) == 7


# --- A program's log ---


@pytest.fixture
def log(hub: MessageHub, name: str) -> Iterator[logging.Logger]:
    """A logger that publishes what it is told."""
    log, handler = logging.getLogger(name), hub.log_handler()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    yield log
    log.removeHandler(handler)


def test_a_log_is_published_by_its_loggers_name(
    other: MessageHub, log: logging.Logger, name: str
) -> None:
    with other.events("log/*") as feed:
        log.debug("not so much")
        log.warning("the %s is hot", "detector")
        try:
            raise ValueError("no beam")
        except ValueError:
            log.exception("it failed")
        warning, error = take(feed, 2)
    assert (warning.topic, warning.severity) == (f"log/{name}", "warning")
    assert warning.value["text"] == "the detector is hot"
    assert warning.value["pid"] == os.getpid()
    assert error.severity == "error"
    assert error.value["text"].startswith("it failed\nTraceback")
    assert error.value["text"].endswith("ValueError: no beam")


@pytest.mark.parametrize(
    "logger", ["", "a*[b", "a\nb", "é" * 200, "x" * 300, "pyhubs.own", "日本" * 100]
)
def test_a_logger_of_any_name_is_published(
    hub: MessageHub, other: MessageHub, capsys: pytest.CaptureFixture[str], logger: str
) -> None:
    with other.events("log/*") as feed:
        record = logging.LogRecord(logger, logging.INFO, "file", 1, "text", None, None)
        hub.log_handler().handle(record)
        assert feed.get(WATCHDOG_S).value["text"] == "text"
    assert capsys.readouterr().err == ""


def test_pyhubs_own_log_is_not_published_as_it_would_beget_others(
    hub: MessageHub, other: MessageHub
) -> None:
    handler = hub.log_handler(logging.DEBUG)
    logging.getLogger("pyhub").addHandler(handler)
    try:
        with other.events("log/*") as feed:
            logging.getLogger("pyhub.hub").error("the broker is gone")
            handler.handle(logging.LogRecord("mine", logging.INFO, "", 1, "text", None, None))
            assert feed.get(WATCHDOG_S).value["text"] == "text"
    finally:
        logging.getLogger("pyhub").removeHandler(handler)


def test_a_log_that_cannot_be_told_is_told_to_whoever_looks_and_ends_nothing(
    hub: MessageHub, capsys: pytest.CaptureFixture[str]
) -> None:
    record = logging.LogRecord("mine", logging.INFO, "", 1, "%d", ("no number",), None)
    hub.log_handler().handle(record)
    assert "--- Logging error ---" in capsys.readouterr().err


def test_a_log_without_a_broker_takes_a_bounded_room(config: BrokerConfig) -> None:
    with MessageHub(config) as hub:
        handler = hub.log_handler()
        assert isinstance(handler, LogHandler)
        broker = RuntimeDirectory(config.runtime_dir).read_broker()
        assert broker is not None
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            record = logging.LogRecord("mine", logging.INFO, "", 1, "text", None, None)
            for _ in range(20_000):
                handler.handle(record)
            assert handler.n_lost > 15_000
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        with hub.events("log/*") as feed:

            def is_told() -> bool:
                handler.handle(record)
                return bool(feed.taken())

            assert eventually(is_told, WATCHDOG_S), "and then goes on"


def test_a_log_outlives_its_hub(shared: BrokerConfig) -> None:
    with MessageHub(shared) as hub:
        handler = hub.log_handler()
    handler.handle(logging.LogRecord("mine", logging.INFO, "", 1, "text", None, None))
