"""Events: everybody who listens gets each once; the kept ones also who comes later."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec
import pytest

from pyhub.hub import protocol
from pyhub.hub.broker.topics import NIL, Topics
from pyhub.hub.broker.watches import Watches
from pyhub.hub.protocol import Done, Event, EventHappened, Publish, Refused

A, B = b"program A", b"program B"

_ids = itertools.count()


class Hub:
    """Topics with what they push and keep, as a broker and its file would have it."""

    def __init__(self, kept: Sequence[Event] = ()) -> None:
        self.pushed: list[tuple[Sequence[bytes], EventHappened]] = []
        self.kept: list[Event] = []
        self.problem: OSError | None = None
        self.watches = Watches(lambda peer, subject, name: True)
        self.topics = Topics(self._push, self.watches, self._keep, kept)

    def _push(self, peers: Sequence[bytes], body: protocol.PushBody) -> None:
        assert isinstance(body, EventHappened)
        self.pushed.append((list(peers), body))

    def _keep(self, event: Event) -> None:
        if self.problem:
            raise self.problem
        self.kept.append(event)

    def publish(self, body: Publish) -> Done | Refused:
        return self.topics.publish(body, "me (1@here)")

    def first(self, pattern: str = "*", hidden: str = "") -> list[Event]:
        """Return what a new watch of `pattern` gets."""
        before = len(self.pushed)
        self.topics.first(B, 7, pattern, lambda name: name != hidden)
        pushes, self.pushed[before:] = self.pushed[before:], []
        assert all(peers == [B] and body.watch == 7 and body.events for peers, body in pushes)
        return [event for _, body in pushes for event in body.events]


@pytest.fixture
def hub() -> Hub:
    """Topics, all of which program A watches."""
    hub = Hub()
    hub.watches.add(A, 1, "events", "*")
    return hub


def happening(topic: str = "beam", value: bytes = b"\x01", keep: bool = False) -> Publish:
    return Publish(b"event %d" % next(_ids), topic, value, "warning", 123, keep)


def test_an_event_is_pushed_with_who_and_when_and_its_number(hub: Hub) -> None:
    assert hub.publish(happening()) == Done()
    event = Event("beam", b"\x01", "warning", "me (1@here)", 123, 1, False)
    assert hub.pushed == [([A], EventHappened(0, [event]))]


def test_events_are_numbered_also_those_that_nobody_listens_to(hub: Hub) -> None:
    hub.watches.add(A, 1, "events", "beam")
    for topic in ["beam", "door", "door", "beam"]:
        hub.publish(happening(topic))
    assert [body.events[0].number for _, body in hub.pushed] == [1, 4]


def test_a_repeated_event_is_done_and_pushed_once(hub: Hub) -> None:
    body = happening(keep=True)
    assert [hub.publish(body) for _ in range(3)] == [Done()] * 3
    assert len(hub.pushed) == len(hub.kept) == 1
    assert hub.publish(happening()) == Done()  # whereas the same with another id is another one
    assert len(hub.pushed) == 2


def test_the_last_ten_thousand_events_are_known_and_no_more(hub: Hub) -> None:
    assert Topics.MAX_REMEMBERED == 10_000
    bodies = [happening() for _ in range(10_001)]
    for body in bodies:
        hub.publish(body)
    for body in bodies[1:]:
        hub.publish(body)
    assert len(hub.pushed) == 10_001
    hub.publish(bodies[0])
    assert len(hub.pushed) == 10_002


@pytest.mark.parametrize("topic", ["beam/*", "a?", "[a]", "a\nb", "ä" * 128])
def test_what_cannot_be_a_topic_is_refused(hub: Hub, topic: str) -> None:
    reply = hub.publish(happening(topic))
    assert isinstance(reply, Refused)
    assert reply.code == "bad_message"
    assert "cannot be a topic" in reply.reason
    assert not hub.pushed


# --- Kept events ---


def test_who_comes_later_gets_the_last_kept_event_of_each_topic(hub: Hub) -> None:
    for topic, value, keep in [
        ("beam", b"\x01", True),
        ("door", b"\x02", True),
        ("beam", b"\x03", True),
        ("beam", b"\x04", False),
        ("noise", b"\x05", False),
    ]:
        hub.publish(happening(topic, value, keep))
    first = hub.first()
    assert [(event.topic, event.value, event.number) for event in first] == [
        ("door", b"\x02", 2),
        ("beam", b"\x03", 3),
    ]
    assert all(event.is_kept for event in first)
    assert [event.topic for event in hub.first("door")] == ["door"]
    assert [event.topic for event in hub.first("b*")] == ["beam"]
    assert hub.first("b*", hidden="beam") == hub.first("nothing") == []


def test_a_kept_event_is_pushed_as_one_that_just_happened(hub: Hub) -> None:
    hub.publish(happening(keep=True))
    assert [event.is_kept for _, body in hub.pushed for event in body.events] == [False]
    assert [event.is_kept for event in hub.kept] == [True]


def test_nil_ends_what_is_kept_and_is_told(hub: Hub) -> None:
    hub.publish(happening(keep=True))
    hub.publish(happening(value=NIL, keep=True))
    assert hub.first() == []
    assert [event.value for event in hub.kept] == [b"\x01", NIL]
    assert [body.events[0].value for _, body in hub.pushed] == [b"\x01", NIL]


def test_nil_is_an_event_like_others_where_nothing_is_kept(hub: Hub) -> None:
    hub.publish(happening(value=NIL, keep=True))
    hub.publish(happening(keep=True))
    hub.publish(happening(value=NIL))  # not to be kept: it ends nothing
    assert len(hub.pushed) == 3
    assert (
        [event.value for event in hub.kept] == [event.value for event in hub.first()] == [b"\x01"]
    )


def test_the_next_broker_goes_on_with_what_was_kept(hub: Hub) -> None:
    for topic in ["beam", "door", "beam"]:
        hub.publish(happening(topic, keep=True))
    next_hub = Hub(kept=list(reversed(hub.first())))
    assert next_hub.first() == hub.first()
    next_hub.watches.add(A, 1, "events", "*")
    next_hub.publish(happening())
    assert next_hub.pushed[0][1].events[0].number == 4


def test_what_cannot_be_kept_did_not_happen(hub: Hub) -> None:
    hub.problem = OSError("the disk is full")
    body = happening(keep=True)
    assert hub.publish(body) == Refused("no_room", "the disk is full")
    assert hub.first() == hub.pushed == []
    assert hub.publish(happening()) == Done()  # that one needs no room
    hub.problem = None
    assert hub.publish(body) == Done()
    assert [event.number for event in hub.first()] == [2]  # none was used up


def test_topics_with_kept_events_are_bounded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Topics, "MAX_KEPT", 3)
    for topic in ["a", "b", "c"]:
        assert hub.publish(happening(topic, keep=True)) == Done()
    reply = hub.publish(happening("d", keep=True))
    assert isinstance(reply, Refused)
    assert reply.code == "too_many"
    assert "3 topics" in reply.reason
    assert len(hub.pushed) == 3
    # What needs no place is welcome: a topic that has one, an event not kept, an end.
    assert hub.publish(happening("a", keep=True)) == Done()
    assert hub.publish(happening("d")) == Done()
    assert hub.publish(happening("a", NIL, keep=True)) == Done()
    assert hub.publish(happening("d", keep=True)) == Done()


def test_bytes_of_kept_events_are_bounded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Topics, "MAX_BYTES", 2 * 11)
    assert hub.publish(happening("a", b"v" * 10, keep=True)) == Done()
    assert hub.publish(happening("b", b"v" * 10, keep=True)) == Done()
    reply = hub.publish(happening("b", b"v" * 11, keep=True))
    assert isinstance(reply, Refused)
    assert reply.code == "too_many"
    assert "22 bytes" in reply.reason
    assert hub.publish(happening("b", b"v" * 9, keep=True)) == Done()
    assert hub.publish(happening("a", b"v" * 11, keep=True)) == Done()


def test_what_is_over_the_bound_already_may_shrink(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish(happening("a", b"v" * 100, keep=True))
    monkeypatch.setattr(Topics, "MAX_BYTES", 50)
    assert isinstance(hub.publish(happening("a", b"v" * 101, keep=True)), Refused)
    assert hub.publish(happening("a", b"v" * 99, keep=True)) == Done()
    assert hub.publish(happening("a", NIL, keep=True)) == Done()


def test_many_kept_events_come_in_several_messages(hub: Hub) -> None:
    value = b"v" * 48 * 1024
    for number in range(20):
        hub.publish(happening(f"topic{number}", value, keep=True))
    hub.pushed.clear()
    hub.topics.first(B, 1, "*", lambda name: True)
    assert len(hub.pushed) > 1
    frames = [protocol.encode(protocol.Reply(0, body)) for _, body in hub.pushed]
    assert all(len(frame) < protocol.MAX_REPLY_BYTES / 2 for frame in frames)
    assert len([event for _, body in hub.pushed for event in body.events]) == 20


def test_the_greatest_event_that_can_be_published_is_one_that_can_be_pushed(hub: Hub) -> None:
    body = msgspec.structs.replace(happening("t" * 255, b"v" * 48 * 1024), severity="critical")
    assert hub.publish(body) == Done()
    frame = protocol.encode(protocol.Reply(0, hub.pushed[0][1]))
    assert protocol.decode_reply(frame).body == hub.pushed[0][1]
