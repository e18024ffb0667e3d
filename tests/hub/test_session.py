"""A program's side of the protocol, with a real switchboard at the other end, but no sockets."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyhub.errors import PyhubError
from pyhub.hub import protocol
from pyhub.hub.broker.registry import Registry
from pyhub.hub.broker.rights import Client
from pyhub.hub.broker.store import Store
from pyhub.hub.broker.switchboard import Switchboard
from pyhub.hub.client.session import PATIENCE_S, Ask, Session
from pyhub.hub.protocol import PushBody, Refused, Reply, ReplyBody, RequestBody

PEER, OTHER = b"program", b"another"
CLIENT = Client("local", "admin", {}, "key")


class Program:
    """A session, and what it told its program."""

    def __init__(self, *introduction: RequestBody) -> None:
        self.has = [Ask(body, None, is_news=True) for body in introduction]
        self.pushes: list[PushBody] = []
        self.gaps: list[int] = []
        self.refusals: list[Refused] = []
        self.replies: list[ReplyBody] = []
        self.versions: list[int] = []
        self.session = Session(self._hello, self, self.refusals.append)

    def introduction(self) -> list[Ask]:
        return list(self.has)

    def report(self) -> list[Ask]:
        return []

    def take(self, body: PushBody) -> None:
        self.pushes.append(body)

    def take_gap(self, n_lost: int) -> None:
        self.gaps.append(n_lost)

    def glance(self, body: PushBody) -> bool:
        return isinstance(body, protocol.Finished)

    def end(self, error: PyhubError) -> None:
        raise AssertionError("sessions end nothing")

    def ask(self, body: RequestBody | Callable[[str], RequestBody]) -> None:
        self.session.ask(Ask(body, self.replies.append))

    def sent(self, now: float = 0.0) -> list[protocol.Request]:
        return [protocol.decode_request(frame) for frame in self.session.outgoing(now)]

    def hear(self, request_id: int, body: ReplyBody | PushBody, now: float = 0.0) -> None:
        self.session.receive(protocol.encode(Reply(request_id, body)), now)

    def _hello(self, version: int) -> protocol.Hello:
        self.versions.append(version)
        return protocol.Hello(version, "host", 42, 1, "leases", "a test")


class Broker:
    """A switchboard, as its server runs it; it may be told to lose messages."""

    def __init__(self, store: Store, epoch: str) -> None:
        registry = Registry(epoch, lambda name: f"ipc://{name}")
        self.sent: list[tuple[bytes, ReplyBody | PushBody]] = []
        self.board = Switchboard(registry, store, self.send, lambda *refusal: None)
        self.heard: list[RequestBody] = []

    def send(self, peer: bytes, frame: bytes) -> bool:
        reply = protocol.decode_reply(frame)
        assert reply.id == 0, "a push: replies are what `answer` returns"
        self.sent.append((peer, reply.body))
        return True

    def answer(self, program: Program, now: float = 0.0, *, n_lost_pushes: int = 0) -> None:
        """Let both talk until they have no more to say."""
        while requests := program.sent(now):
            for request in requests:
                self.heard.append(request.body)
                reply = self.reply(request.body, now)
                sent, self.sent = self.sent, []
                for peer, body in sent:
                    if peer == PEER and n_lost_pushes:
                        n_lost_pushes -= 1
                    elif peer == PEER:
                        program.hear(0, body, now)
                program.hear(request.id, reply, now)

    def reply(self, body: RequestBody, now: float = 0.0) -> ReplyBody:
        reply = self.board.answer(PEER, CLIENT, body, now)
        assert reply is not None
        return reply

    def happens(self, topic: str = "beam") -> None:
        """Let another program publish, whose message to ours is lost."""
        if OTHER not in self.board.registry.programs:
            hello = protocol.Hello(protocol.PROTOCOL, "host", 43, 2, "leases", "another")
            self.board.answer(OTHER, CLIENT, hello, 0.0)
        publish = protocol.Publish(os.urandom(8), topic, b"\x01", "info", 0)
        self.board.answer(OTHER, CLIENT, publish, 0.0)
        self.sent.clear()


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Callable[[], Broker]]:
    """Brokers that follow one another in the same directory."""
    stores = contextlib.ExitStack()
    epochs = iter("ABCDEFGH")

    def begin() -> Broker:
        stores.close()
        store = stores.enter_context(contextlib.closing(Store(tmp_path / "state.db")))
        return Broker(store, next(epochs))

    with stores:
        yield begin


@pytest.fixture
def broker(brokers: Callable[[], Broker]) -> Broker:
    return brokers()


def kinds(bodies: list[RequestBody]) -> list[str]:
    return [type(body).__name__ for body in bodies]


# --- Greeting ---


def test_without_a_line_nothing_is_sent() -> None:
    program = Program()
    program.ask(protocol.Ping())
    assert program.sent() == []
    assert not program.session.is_overdue(1e9)


def test_the_greeting_comes_first_and_alone(broker: Broker) -> None:
    program = Program()
    program.ask(protocol.ListChannels())
    program.session.begin_line(0.0)
    (greeting,) = program.sent()
    assert isinstance(greeting.body, protocol.Hello)
    assert program.sent() == [], "it waits for the answer"
    assert (program.session.is_known, program.session.protocol) == (False, 0)
    program.hear(greeting.id, broker.reply(greeting.body))
    session = program.session
    assert (session.is_known, session.protocol, session.epoch) == (True, protocol.PROTOCOL, "A")


def test_the_introduction_comes_before_what_was_asked(broker: Broker) -> None:
    program = Program(protocol.ReaderAttached(1, "cam1", "id"), protocol.ReaderDetached(1))
    program.ask(protocol.ListChannels())
    program.session.ask(Ask(protocol.ReaderAttached(1, "cam1", "id"), None, is_news=True))
    program.session.begin_line(0.0)
    broker.answer(program)
    assert kinds(broker.heard) == ["Hello", "ReaderAttached", "ReaderDetached", "ListChannels"], (
        "news that the introduction has is not said twice"
    )
    assert kinds(program.replies) == ["Channels"]  # type: ignore[arg-type]


def test_what_is_asked_is_asked_in_that_order_and_no_more_than_a_window_of_it(
    broker: Broker,
) -> None:
    program = Program()
    program.session.begin_line(0.0)
    broker.answer(program)
    for number in range(250):
        program.ask(protocol.LookUp(f"cam{number}"))
    first = program.sent()
    assert len(first) == 100
    assert program.sent() == []
    program.hear(first[0].id, protocol.Done())
    (next_one,) = program.sent()
    assert next_one.body == protocol.LookUp("cam100")
    for request in first[1:]:
        program.hear(request.id, protocol.Done())
    program.hear(next_one.id, protocol.Done())
    broker.answer(program)
    assert len(program.replies) == 250
    assert broker.heard[1:] == [protocol.LookUp(f"cam{number}") for number in range(101, 250)]


def test_a_message_may_be_made_for_the_epoch_that_it_is_sent_to(
    brokers: Callable[[], Broker],
) -> None:
    program, made = Program(), []

    def make(epoch: str) -> RequestBody:
        made.append(epoch)
        return protocol.Ping()

    program.ask(make)
    for _ in range(2):
        program.session.begin_line(0.0)
        (greeting,) = program.sent()
        program.hear(greeting.id, brokers().reply(greeting.body))
        program.sent()
        program.session.lost_line()
    assert made == ["A", "B"]


# --- A broker that goes, or forgets ---


def test_what_was_not_answered_is_asked_again_on_a_new_line_in_its_order(
    brokers: Callable[[], Broker],
) -> None:
    program = Program()
    program.session.begin_line(0.0)
    brokers().answer(program)
    for name in ("a", "b", "c"):
        program.ask(protocol.LookUp(name))
    first = program.sent()
    program.hear(first[0].id, protocol.Done())
    program.session.lost_line()
    program.ask(protocol.LookUp("d"))
    assert program.sent() == []
    program.session.begin_line(1.0)
    broker = brokers()
    broker.answer(program, 1.0)
    assert broker.heard[1:] == [protocol.LookUp(name) for name in ("b", "c", "d")]
    assert len(program.replies) == 4


def test_a_late_answer_to_what_was_asked_again_counts_once(broker: Broker) -> None:
    program = Program()
    program.session.begin_line(0.0)
    broker.answer(program)
    program.ask(protocol.LookUp("cam1"))
    (asked,) = program.sent()
    program.session.lost_line()
    program.session.begin_line(0.0)
    program.hear(asked.id, protocol.Done())
    assert program.replies == []
    broker.answer(program)
    assert kinds(program.replies) == ["Found"]  # type: ignore[arg-type]


def test_a_broker_that_forgot_us_is_greeted_and_asked_again(broker: Broker) -> None:
    program = Program(protocol.ReaderAttached(1, "cam1", "id"))
    program.session.begin_line(0.0)
    broker.answer(program)
    broker.reply(protocol.Goodbye())  # as if it had fallen silent
    broker.heard.clear()
    for name in ("a", "b"):
        program.ask(protocol.LookUp(name))
    broker.answer(program)
    assert kinds(broker.heard) == [
        "LookUp", "LookUp", "Hello", "ReaderAttached", "LookUp", "LookUp",
    ]  # fmt: skip
    assert kinds(program.replies) == ["Found", "Found"]  # type: ignore[arg-type]
    assert program.gaps == []


def test_a_ping_that_another_broker_answers_is_followed_by_a_greeting(
    brokers: Callable[[], Broker],
) -> None:
    program = Program()
    program.session.begin_line(0.0)
    brokers().answer(program)
    (ping,) = program.sent(1.0)
    assert isinstance(ping.body, protocol.Ping)
    program.hear(ping.id, protocol.Welcome(protocol.PROTOCOL, "another", 1.0), 1.0)
    assert kinds([request.body for request in program.sent(1.0)]) == ["Hello"]


def test_who_owes_an_answer_is_overdue_and_who_owes_none_is_not(broker: Broker) -> None:
    program = Program()
    program.session.begin_line(0.0)
    program.sent(0.0)
    assert not program.session.is_overdue(PATIENCE_S)
    assert program.session.is_overdue(PATIENCE_S + 0.01), "of the greeting, too"
    broker.answer(program, 0.0)
    program.session.lost_line()
    assert not program.session.is_overdue(100.0)
    program.session.begin_line(100.0)
    broker.answer(program, 100.0)
    assert not program.session.is_overdue(100.9), "all was answered"
    program.ask(protocol.ListChannels())
    program.sent(100.5)
    assert not program.session.is_overdue(100.5 + PATIENCE_S)
    assert program.session.is_overdue(100.6 + PATIENCE_S)


# --- Versions ---


def test_a_broker_of_the_version_before_is_greeted_again_in_its_own(broker: Broker) -> None:
    program = Program()
    program.session.begin_line(0.0)
    (greeting,) = program.sent()
    program.hear(greeting.id, Refused("protocol", "this broker speaks protocol 1"))
    assert program.refusals == []
    (again,) = program.sent()
    assert isinstance(again.body, protocol.Hello)
    program.hear(again.id, protocol.Welcome(again.body.protocol, "old", 1.0))
    assert program.versions == [protocol.PROTOCOL, protocol.OLDEST]
    assert (program.session.is_known, program.session.protocol) == (True, protocol.OLDEST)


@pytest.mark.parametrize(("code", "n_greetings"), [("protocol", 2), ("too_many", 1)])
def test_who_is_turned_away_knocks_again_but_not_at_once(code: str, n_greetings: int) -> None:
    program = Program()
    program.ask(protocol.ListChannels())
    program.session.begin_line(0.0)
    n_sent = 0
    for _ in range(10):
        for request in program.sent(0.0):
            n_sent += 1
            program.hear(request.id, Refused(code, "go away"))
    assert n_sent == n_greetings
    assert kinds(program.refusals) == ["Refused"]  # type: ignore[arg-type]
    assert not program.session.is_overdue(PATIENCE_S), "an answer is an answer"
    assert program.sent(PATIENCE_S - 0.01) == []
    assert len(program.sent(PATIENCE_S)) == 1


def test_a_greeting_that_is_answered_with_nonsense_is_not_repeated_at_once() -> None:
    program = Program()
    program.session.begin_line(0.0)
    (greeting,) = program.sent(0.0)
    with pytest.raises(ValueError, match="a hello was answered by Done"):
        program.hear(greeting.id, protocol.Done(), 0.0)
    assert program.sent(0.0) == []
    assert kinds([request.body for request in program.sent(PATIENCE_S)]) == ["Hello"]


# --- Pushes and pings ---


def test_a_broker_is_pinged_once_a_heartbeat(broker: Broker) -> None:
    program = Program()
    program.session.begin_line(0.0)
    broker.answer(program)
    assert program.session.due() == 1.0
    for tenth in range(31):
        broker.answer(program, tenth / 10)
    assert kinds(broker.heard) == ["Hello", "Ping", "Ping", "Ping"]


def watching(program: Program, broker: Broker) -> None:
    program.has = [Ask(protocol.Watch(1, "events", "beam"), None, is_news=True)]
    program.session.begin_line(0.0)
    broker.answer(program)


def test_pushes_that_were_lost_are_found_by_the_next_ping_and_counted_once(
    broker: Broker,
) -> None:
    program = Program()
    watching(program, broker)
    program.ask(protocol.Publish(b"1", "beam", b"\x01", "info", 0))
    broker.answer(program)
    assert len(program.pushes) == 1
    broker.answer(program, 1.0)
    assert program.gaps == [], "the negative control: nothing was lost"
    for _ in range(3):
        broker.happens()
    broker.answer(program, 2.0)
    assert program.gaps == [3]
    broker.answer(program, 3.0)
    assert program.gaps == [3]


def test_after_a_new_greeting_the_count_of_pushes_begins_anew(broker: Broker) -> None:
    program = Program()
    watching(program, broker)
    broker.happens()
    program.session.lost_line()
    program.session.begin_line(0.0)
    broker.answer(program)
    broker.answer(program, 1.0)
    assert program.gaps == [], "all that is there was told again instead"


def test_a_push_that_is_a_refusal_is_logged_and_is_no_push(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program()
    watching(program, broker)
    program.hear(0, Refused("bad_message", "it cannot be read"))
    assert "it cannot be read" in caplog.text
    assert program.pushes == []


def test_a_refusal_that_nobody_waits_for_is_logged(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program()
    program.session.begin_line(0.0)
    program.session.ask(Ask(protocol.Publish(b"1", "hub/mine", b"\x01", "info", 0)))
    with caplog.at_level(logging.WARNING, "pyhub.hub"):
        broker.answer(program)
    assert "may not publish 'hub/mine'" in caplog.text


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x00" * 100])
def test_what_is_no_message_is_an_error_and_changes_nothing(broker: Broker, frame: bytes) -> None:
    program = Program()
    program.session.begin_line(0.0)
    with pytest.raises(ValueError):
        program.session.receive(frame, 0.0)
    broker.answer(program)
    assert program.session.is_known


# --- What no broker would take ---


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (protocol.Publish(b"1", "beam", bytes(49 * 1024), "info", 0), "length <= 49152"),
        (protocol.LookUp("x" * 70_000), "at most 65536"),
        (protocol.Offer("cam1", [], capacity=5000), "<= 1024"),
        (protocol.LookUp("half a pair: \ud800"), "surrogates"),
    ],
)
def test_what_no_broker_could_read_is_refused_here_and_not_sent_for_ever(
    broker: Broker, body: RequestBody, why: str
) -> None:
    program = Program()
    program.session.begin_line(0.0)
    broker.answer(program)
    program.ask(body)
    program.ask(protocol.LookUp("cam1"))
    broker.answer(program)
    refused, found = program.replies
    assert isinstance(refused, Refused)
    assert refused.code == "bad_message"
    assert why in refused.reason
    assert isinstance(found, protocol.Found), "the next one is not held up"
    assert not program.session.is_overdue(100.0)


def test_a_program_whose_right_was_taken_away_hears_so_by_its_next_ping(broker: Broker) -> None:
    program = Program()
    program.session.begin_line(0.0)
    broker.answer(program)
    (ping,) = program.sent(1.0)
    assert ping.body == protocol.Ping()
    program.hear(ping.id, Refused("not_allowed", "its key is allowed no more"), 1.0)
    assert [refused.code for refused in program.refusals] == ["not_allowed"]
    assert not program.session.is_known
    assert program.sent(2.0) == [], "not at once"
    assert [type(request.body) for request in program.sent(7.0)] == [protocol.Hello]


def test_a_broker_of_the_version_before_is_asked_only_what_it_understands() -> None:
    program = Program()
    program.session.begin_line(0.0)
    (hello,) = program.sent(0.0)
    program.hear(hello.id, protocol.Welcome(1, "epoch", 1.0))
    program.session.ask(Ask(protocol.Report({}), None, is_news=True))
    program.ask(protocol.SetState(b"1", "k", b"\x01"))
    program.ask(protocol.ListChannels())
    assert [type(request.body) for request in program.sent(0.0)] == [protocol.ListChannels]
    (refused,) = program.replies
    assert isinstance(refused, Refused)
    assert refused.code == "protocol"
    assert "speaks protocol 1, which has no SetState" in refused.reason


# --- What a thread does that may be interrupted at any point ---


def test_what_may_go_at_once_is_composed_and_else_nothing_happens(broker: Broker) -> None:
    program = Program()
    ask = Ask(protocol.ListChannels(), program.replies.append)
    assert program.session.compose(ask, 0.0) is None, "nobody is there"
    program.session.begin_line(0.0)
    assert program.session.compose(ask, 0.0) is None, "they have not met"
    broker.answer(program)
    program.ask(protocol.ListServices())
    assert program.session.compose(ask, 0.0) is None, "another one comes first"
    broker.answer(program)
    assert [type(reply) for reply in program.replies] == [protocol.Services]
    frame = program.session.compose(ask, 0.0)
    assert frame is not None
    request = protocol.decode_request(frame)
    program.hear(request.id, broker.reply(request.body))
    assert [type(reply) for reply in program.replies] == [protocol.Services, protocol.Channels]


def test_what_no_broker_could_read_is_not_composed(broker: Broker) -> None:
    program = Program()
    program.session.begin_line(0.0)
    broker.answer(program)
    ask = Ask(protocol.LookUp("\ud800"), program.replies.append)
    assert program.session.compose(ask, 0.0) is None
    assert program.replies == [], "that is for who has time"
    program.session.ask(ask)
    assert program.sent() == []
    (refused,) = program.replies
    assert isinstance(refused, Refused)


def test_no_more_than_a_window_is_composed(broker: Broker) -> None:
    program = Program()
    program.session.begin_line(0.0)
    broker.answer(program)
    asks = [Ask(protocol.LookUp(f"cam{number}")) for number in range(101)]
    frames = [program.session.compose(ask, 0.0) for ask in asks]
    assert [frame is None for frame in frames] == [False] * 100 + [True]


def test_what_was_composed_and_never_sent_is_asked_again(brokers: Callable[[], Broker]) -> None:
    program = Program()
    program.session.begin_line(0.0)
    brokers().answer(program)
    ask = Ask(protocol.ListChannels(), program.replies.append)
    assert program.session.compose(ask, 5.0) is not None
    assert not program.session.is_overdue(5.5)
    assert program.session.is_overdue(7.0)
    program.session.lost_line()
    program.session.begin_line(7.0)
    brokers().answer(program, 7.0)
    assert [type(reply) for reply in program.replies] == [protocol.Channels]


def test_an_answer_is_glanced_at_and_still_taken(broker: Broker) -> None:
    program, glances = Program(), []

    def glance(reply: ReplyBody) -> bool:
        glances.append(reply)
        return True

    program.session.begin_line(0.0)
    broker.answer(program)
    program.session.ask(Ask(protocol.ListChannels(), program.replies.append, on_glance=glance))
    program.ask(protocol.ListServices())
    first, second = program.sent()
    channels = protocol.encode(Reply(first.id, protocol.Channels([])))
    services = protocol.encode(Reply(second.id, protocol.Services([])))
    assert program.session.glance(channels)
    assert program.session.glance(channels), "as often as one likes"
    assert not program.session.glance(services), "it has no glance"
    assert not program.session.glance(protocol.encode(Reply(9999, protocol.Done())))
    assert glances == [protocol.Channels([])] * 2
    assert program.replies == []
    program.session.receive(channels, 0.0)
    program.session.receive(services, 0.0)
    assert [type(reply) for reply in program.replies] == [protocol.Channels, protocol.Services]
    assert not program.session.glance(channels), "it was taken"


def test_a_push_is_glanced_at_and_still_taken(broker: Broker) -> None:
    program = Program()
    program.session.begin_line(0.0)
    broker.answer(program)
    finished, changed = protocol.Finished(b"call", None, None), protocol.StateChanged(0, [])
    assert program.session.glance(protocol.encode(Reply(0, finished)))
    assert not program.session.glance(protocol.encode(Reply(0, changed)))
    assert not program.session.glance(protocol.encode(Reply(0, Refused("bad_message", "no"))))
    assert not program.session.glance(b"no message")
    assert program.pushes == []
    program.hear(0, finished)
    assert program.pushes == [finished]


def test_what_has_no_answer_is_asked_again_though_others_have(
    brokers: Callable[[], Broker],
) -> None:
    program, broker = Program(), brokers()
    program.session.begin_line(0.0)
    broker.answer(program)
    program.ask(protocol.ListChannels())
    (lost,) = program.sent(0.0)
    for tick in range(1, 31):
        now = tick / 10
        program.ask(protocol.ListServices())
        for request in program.sent(now):
            program.hear(request.id, broker.reply(request.body, now), now)
        assert not program.session.is_overdue(now), "the broker is only slow"
    assert program.session.is_overdue(3.1)
    program.session.lost_line()
    program.session.begin_line(3.1)
    broker.answer(program, 3.1)
    assert [type(reply) for reply in program.replies[-1:]] == [protocol.Channels]
    assert lost.body == protocol.ListChannels()
    assert not program.session.is_overdue(3.2)
