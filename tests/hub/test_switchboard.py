"""A broker without its sockets: who may do what, who is told what, and what is forgotten."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pyhub.hub import protocol
from pyhub.hub.broker import registry as registry_module
from pyhub.hub.broker.comebacks import worker_id
from pyhub.hub.broker.registry import GONE_S, Registry
from pyhub.hub.broker.rights import ROLES, Client, Role, Verb
from pyhub.hub.broker.store import Store
from pyhub.hub.broker.switchboard import Gone, Switchboard
from pyhub.hub.protocol import (
    ChannelInfo,
    CommandInfo,
    Done,
    EventHappened,
    Execute,
    Finished,
    PushBody,
    Refused,
    ReplyBody,
    RequestBody,
    StateChanged,
)

A, B, C = b"program A", b"program B", b"program C"
ID = b"0123456789abcdef"


def client(role: Role = "admin", key: str = "", **rights: list[str]) -> Client:
    return Client(f"a {role}", role, rights, key or f"key of a {role}")  # type: ignore[arg-type]


ADMIN = client("admin")


def hello(name: str = "", lease: int = 1, host: str = "here") -> protocol.Hello:
    return protocol.Hello(protocol.PROTOCOL, host, 42, lease, "/dev/shm/leases", name)


def channel(name: str = "cam1", segment_id: str = "s1") -> ChannelInfo:
    return ChannelInfo(name, "datablock", "<u2", (4, 4), 4, segment_id, "here", 42)


def alive(_: protocol.Hello) -> bool:
    return True


class Desk:
    """A switchboard, with what it sent and refused."""

    def __init__(self, store: Store, epoch: str = "epoch") -> None:
        self.refusals: list[tuple[str, str, str]] = []
        self.sent: list[tuple[bytes, ReplyBody | PushBody, int]] = []
        self.deaf: set[bytes] = set()  # who does not read
        self.board = Switchboard(
            Registry(epoch, lambda name: f"ipc:///run/{name}.sock"),
            store,
            self.send,
            lambda *refusal: self.refusals.append(refusal),
        )
        self.now = 0.0

    def send(self, peer: bytes, frame: bytes) -> bool:
        reply = protocol.decode_reply(frame)
        self.sent.append((peer, reply.body, reply.id))
        return peer not in self.deaf

    def ask(
        self, peer: bytes, body: RequestBody, client: Client = ADMIN, request_id: int = 0
    ) -> ReplyBody | None:
        return self.board.answer(peer, client, body, self.now, request_id)

    def pushed(self, peer: bytes) -> list[PushBody]:
        """Return what was pushed to a program since anybody's last look."""
        sent = [(whom, body) for whom, body, request_id in self.sent if not request_id]
        self.sent = [each for each in self.sent if each[2]]
        return [body for whom, body in sent if whom == peer]  # type: ignore[misc]

    @property
    def replies(self) -> list[tuple[bytes, int, ReplyBody]]:
        """What calls were answered later: whom, which request, what."""
        return [(peer, id_, body) for peer, body, id_ in self.sent if id_]  # type: ignore[misc]

    def events(self, peer: bytes) -> list[tuple[str, dict[str, str]]]:
        """Return the topics and values of the events that were pushed."""
        return [
            (event.topic, msgspec.msgpack.decode(event.value))
            for body in self.pushed(peer)
            if isinstance(body, EventHappened)
            for event in body.events
        ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(tmp_path / "state.db")) as store:
        yield store


@pytest.fixture
def desk(store: Store) -> Desk:
    """A switchboard that programs A and B, of an administrator, have greeted."""
    desk = Desk(store)
    for number, peer in enumerate((A, B), 1):
        desk.ask(peer, hello(peer.decode(), number))
    return desk


def code_of(reply: ReplyBody | None) -> str:
    return reply.code if isinstance(reply, Refused) else ""


# How a program ends: that of C, with the lease 3 and the channel cam1.


def names(gone: Gone) -> list[str]:
    return [name for name, _ in gone]


def leave(desk: Desk) -> None:
    desk.ask(C, protocol.Goodbye())


def die(desk: Desk) -> None:
    assert names(desk.board.tick(desk.now, lambda hello: hello.lease != 3)) == ["cam1"]


def be_found_dead(desk: Desk) -> None:
    assert names(desk.board.bury(lambda hello: hello.lease != 3, [b"nobody", A, C])) == ["cam1"]


def fall_silent(desk: Desk) -> None:
    desk.now = GONE_S + 0.1
    for peer in (A, B):
        desk.ask(peer, protocol.Ping())
    assert names(desk.board.tick(desk.now, alive)) == ["cam1"]


# --- Rights ---

# Each request with the verb that it needs, and the name that it is done to.
NEEDS: list[tuple[RequestBody, Verb | None, str]] = [
    (protocol.Ping(), None, ""),
    (protocol.ListChannels(), None, ""),
    (protocol.ListServices(), None, ""),
    (protocol.Register(channel()), "register", "cam1"),
    (protocol.Unregister("cam1", "s1"), None, ""),
    (protocol.Report({}), None, ""),
    (protocol.LookUp("cam1"), "read", "cam1"),
    (protocol.ReaderAttached(1, "cam1", "s1"), "read", "cam1"),
    (protocol.ReaderDetached(1), None, ""),
    (protocol.Offer("stage", [CommandInfo("move")]), "offer", "stage"),
    (protocol.Call(ID, "stage", "move", b"\x80", 1.0), "call", "stage.move"),
    (protocol.Cancel(ID), None, ""),
    (protocol.Outcome(ID), None, ""),
    (protocol.Progress(ID, b""), None, ""),
    (protocol.Hold([]), None, ""),
    (protocol.Withdraw("stage"), None, ""),
    (protocol.SetState(ID, "cam1/gain", b"\x01"), "set", "cam1/gain"),
    (protocol.GetState("cam1/gain"), "read", "cam1/gain"),
    (protocol.Watch(1, "state", "cam1/gain"), "read", "cam1/gain"),
    (protocol.Watch(1, "events", "cam1/hot"), "read", "cam1/hot"),
    (protocol.Watch(1, "events", "cam1/*"), None, ""),
    (protocol.Unwatch(1), None, ""),
    (protocol.Publish(ID, "cam1/hot", b"\x01", "info", 0), "publish", "cam1/hot"),
    (protocol.ListPrograms(), "administer", "programs"),
    (protocol.Shutdown(), "administer", "shutdown"),
    (protocol.Goodbye(), None, ""),
]
named = pytest.mark.parametrize(
    ("body", "verb", "name"), NEEDS, ids=[type(body).__name__ for body, *_ in NEEDS]
)


def check_right(desk: Desk, who: Client, body: RequestBody, may: bool) -> None:
    """Ask, as a program of that client; whether it may is told once, or not at all."""
    desk.ask(C, hello(), who)
    code = code_of(desk.ask(C, body, who))
    if may:
        assert code in (
            "",
            "no_service",
            "no_command",
        )  # there is none: that is no matter of rights
    else:
        assert code == "not_allowed"
    told = [refusal for refusal in desk.refusals if refusal[0] == "not_allowed"]
    assert len(told) == (not may)
    assert desk.board.counters["refused: not_allowed"] == (not may)
    if not may:
        ((_, name, why),) = told
        assert name == who.name
        assert who.role in why


def test_every_request_is_tried_here() -> None:
    tried = {type(body) for body, *_ in NEEDS} | {protocol.Hello}
    assert tried == set(protocol.RequestBody.__args__)


@named
@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_do_what_it_says_and_nothing_else(
    desk: Desk, role: Role, body: RequestBody, verb: Verb | None, name: str
) -> None:
    """Seed 18: access control by roles."""
    check_right(desk, client(role), body, verb is None or verb in ROLES[role])


@named
@pytest.mark.parametrize("may", [True, False])
def test_rights_by_name_stand_for_what_the_role_says(
    desk: Desk, may: bool, body: RequestBody, verb: Verb | None, name: str
) -> None:
    if verb is None:
        return
    role: Role = "admin" if not may else ("viewer" if verb != "read" else "operator")
    patterns = ["other", name[:-1] + "?"] if may else ["other", name[:-1], name + "?"]
    who = Client("named", role, {verb: patterns}, "its key")
    check_right(desk, who, body, may)


@pytest.mark.parametrize(
    ("who", "may"),
    [
        (client("viewer"), False),
        (client("operator"), False),
        (client("producer"), True),
        (client("producer", offer=[]), False),
        (client("viewer", offer=["stage"]), True),
    ],
    ids=["viewer", "operator", "producer", "producer of none", "viewer of one"],
)
def test_only_who_may_offer_something_holds_calls(desk: Desk, who: Client, may: bool) -> None:
    desk.ask(C, hello(), who)
    assert code_of(desk.ask(C, protocol.Hold([ID]), who)) == ("" if may else "not_allowed")
    assert desk.ask(C, protocol.Hold([]), who) == Done()  # who lost pushes says it, too


def test_a_holder_that_may_not_offer_the_service_gets_no_calls_of_it(desk: Desk) -> None:
    crook = client("viewer", offer=["other"])
    desk.ask(C, hello(), crook)
    desk.ask(B, protocol.Offer("stage", [CommandInfo("move")]))
    desk.ask(C, protocol.Hold([ID]), crook)
    desk.ask(A, protocol.Call(ID, "stage", "move", b"\x80", 1.0))
    assert [type(body) for body in desk.pushed(B)] == [Execute]
    desk.ask(C, protocol.Outcome(ID, b"\x2a"), crook)
    assert desk.pushed(A) == []


def test_lists_hold_only_what_may_be_read(desk: Desk) -> None:
    for name in ("cam1", "secret1"):
        desk.ask(A, protocol.Register(channel(name)))
        desk.ask(A, protocol.Offer(name, [CommandInfo("do")]))
    guest = client("viewer", read=["cam*"])
    desk.ask(C, hello(), guest)
    channels, services = (
        desk.ask(C, body, guest) for body in (protocol.ListChannels(), protocol.ListServices())
    )
    assert isinstance(channels, protocol.Channels)
    assert isinstance(services, protocol.Services)
    assert [each.name for each in channels.channels] == ["cam1"]
    assert [each.name for each in services.services] == ["cam1"]


def test_a_pattern_reaches_no_further_than_its_programs_rights(desk: Desk) -> None:
    guest = client("viewer", read=["cam1/*"])
    desk.ask(C, hello(), guest)
    for key in ("cam1/gain", "secret"):
        desk.ask(A, protocol.SetState(key.encode(), key, b"\x01"))
        keep = protocol.Publish(key.encode(), key, b"\x01", "info", 0, keep=True)
        desk.ask(A, keep)
    for number, subject in enumerate(("state", "events"), 1):
        assert isinstance(
            desk.ask(C, protocol.Watch(number, subject, "*"), guest), protocol.Watching
        )
    for key in ("cam1/gain", "secret"):
        desk.ask(A, protocol.SetState(b"2" + key.encode(), key, b"\x02"))
        desk.ask(A, protocol.Publish(b"2" + key.encode(), key, b"\x02", "info", 0))
    seen = [
        (body.watch, [e.key if isinstance(e, protocol.StateEntry) else e.topic for e in items])
        for body in desk.pushed(C)
        if isinstance(body, StateChanged | EventHappened)
        for items in [body.entries if isinstance(body, StateChanged) else body.events]
    ]
    assert seen == [(n, ["cam1/gain"]) for n in (1, 2, 0, 0)]


@pytest.mark.parametrize(
    ("read", "seen"),
    [
        (["cam1"], ["hub/channel/cam1", "hub/service/cam1"]),
        (["hub/*", "channel/*", "service/*"], []),
        (["program/*", "1", "2", "3", "4"], []),
    ],
)
def test_of_the_brokers_events_each_is_heard_by_who_may_see_what_it_tells_of(
    desk: Desk, read: list[str], seen: list[str]
) -> None:
    guest = client("viewer", read=read)
    desk.ask(C, hello(), guest)
    desk.ask(C, protocol.Watch(1, "events", "*"), guest)
    for name in ("cam1", "secret1"):
        desk.ask(A, protocol.Register(channel(name)))
        desk.ask(A, protocol.Offer(name, [CommandInfo("do")]))
    desk.ask(b"program D", hello())
    assert [topic for topic, _ in desk.events(C)] == seen


def test_only_administrators_hear_of_programs(desk: Desk) -> None:
    """As only they may list them."""
    producer = client("producer")
    desk.ask(C, hello(), producer)
    for peer, who in ((A, ADMIN), (C, producer)):
        desk.ask(peer, protocol.Watch(1, "events", "hub/*"), who)
    watch = protocol.Watch(2, "events", "hub/program/4")
    assert code_of(desk.ask(C, watch, producer)) == "not_allowed"
    assert isinstance(desk.ask(A, watch), protocol.Watching)
    desk.ask(b"program D", hello())
    assert [peer for peer, body, _ in desk.sent if isinstance(body, EventHappened)] == [A]


def test_a_key_of_the_state_is_no_event_whatever_it_is_called(desk: Desk) -> None:
    guest = client("viewer", read=["cam1"])
    desk.ask(C, hello(), guest)
    for key in ("hub/channel/cam1", "hub/service/hub/channel/cam1"):
        assert code_of(desk.ask(C, protocol.GetState(key), guest)) == "not_allowed"
        watch = protocol.Watch(1, "state", key)
        assert code_of(desk.ask(C, watch, guest)) == "not_allowed"


@pytest.mark.parametrize("value", [b"\x01", None])
def test_nobody_sets_keys_below_what_is_the_brokers_own(desk: Desk, value: bytes | None) -> None:
    for number, key in enumerate(("hub/", "hub/channel/cam1")):
        body = protocol.SetState(b"%d" % number, key, value)
        assert code_of(desk.ask(A, body)) == "not_allowed"
    assert isinstance(desk.ask(A, protocol.SetState(ID, "hubs/x", b"\x01")), protocol.Stated)


# --- Keys and addresses ---


@pytest.mark.parametrize("is_own", [False, True], ids=["another's", "the broker's own"])
def test_programs_of_one_key_leave_places_for_others(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    monkeypatch.setattr(registry_module, "MAX_PROGRAMS_PER_KEY", 3)
    who = Client("gui", "viewer", {}, "its key", is_own)
    peers = [b"n%d" % number for number in range(5)]
    codes = [code_of(desk.ask(peer, hello(), who)) for peer in peers]
    assert codes == ([""] * 5 if is_own else ["", "", "", "too_many", "too_many"])
    desk.ask(peers[0], protocol.Goodbye(), who)
    assert code_of(desk.ask(peers[4], hello(), who)) == ""
    assert code_of(desk.ask(peers[4], hello(), who)) == ""  # again: it is one
    assert code_of(desk.ask(C, hello(), client("viewer"))) == ""


def test_another_key_at_a_known_address_is_refused(desk: Desk) -> None:
    other = client("admin", key="another key")
    for body in (protocol.Ping(), protocol.Goodbye(), hello(), protocol.SetState(ID, "k", b"")):
        assert code_of(desk.ask(A, body, other)) == "not_allowed"
    assert len(desk.refusals) == 4
    assert isinstance(desk.ask(A, protocol.Ping()), protocol.Welcome)


def test_whoever_lost_its_right_is_forgotten_and_sees_nothing_more(desk: Desk) -> None:
    viewer = client("viewer")
    desk.ask(C, hello(), viewer)
    for subject in ("state", "events"):
        desk.ask(C, protocol.Watch(len(subject), subject, "*"), viewer)
    desk.ask(A, protocol.Watch(1, "events", "hub/*"))
    desk.ask(A, protocol.SetState(b"1", "k", b"\x01"))
    assert any(isinstance(body, StateChanged) for body in desk.pushed(C))
    desk.board.let_in(lambda key: None if key == viewer.key.encode() else ADMIN)
    ((topic, told),) = desk.events(A)
    assert topic.startswith("hub/program/")
    assert told["why"] == "lost its right to be here"
    desk.ask(A, protocol.SetState(b"2", "k", b"\x02"))
    desk.ask(A, protocol.Publish(b"3", "t", b"\x02", "info", 0))
    assert desk.pushed(C) == []
    assert code_of(desk.ask(C, protocol.Ping(), viewer)) == "no_hello"
    assert isinstance(desk.ask(A, protocol.Ping()), protocol.Welcome)


def test_rights_that_were_taken_hold_back_what_is_watched_from_then_on(desk: Desk) -> None:
    viewer = client("viewer")
    desk.ask(C, hello(), viewer)
    desk.ask(C, protocol.Watch(1, "state", "*"), viewer)
    desk.ask(A, protocol.SetState(b"1", "k", b"\x01"))
    assert desk.pushed(C) != []
    blind = client("viewer", read=["other"])
    desk.board.let_in(lambda key: blind if key == viewer.key.encode() else ADMIN)
    desk.ask(A, protocol.SetState(b"2", "k", b"\x02"))
    assert desk.pushed(C) == []


def test_rights_that_were_taken_take_what_was_offered_and_registered(desk: Desk) -> None:
    producer = client("producer")
    desk.ask(C, hello(), producer)
    desk.ask(C, protocol.Offer("s", [protocol.CommandInfo("do")]), producer)
    desk.ask(C, protocol.Register(channel("cam1")), producer)
    desk.ask(A, protocol.Watch(1, "events", "hub/*"))
    viewer = client("viewer")
    desk.board.let_in(lambda key: viewer if key == producer.key.encode() else ADMIN)
    assert {topic for topic, _ in desk.events(A)} == {"hub/service/s", "hub/channel/cam1"}
    assert code_of(desk.ask(A, protocol.Call(ID, "s", "do", b"\x80", 1.0))) == "no_service"
    found = desk.ask(A, protocol.LookUp("cam1"))
    assert isinstance(found, protocol.Found)
    assert found.channel is None


# --- Pushes ---


def test_pushes_are_counted_for_each_program_and_told_with_each_heartbeat(desk: Desk) -> None:
    desk.ask(A, protocol.Watch(1, "state", "*"))
    n_pushed = 0
    for number in range(3):
        desk.ask(B, protocol.SetState(b"%d" % number, "k", b"%d" % number))
        n_pushed += len(desk.pushed(A))
        for peer, expected in ((A, n_pushed), (B, 0)):
            welcome = desk.ask(peer, protocol.Ping())
            assert isinstance(welcome, protocol.Welcome)
            assert welcome.n_pushed == expected
    assert n_pushed == 3
    welcome = desk.ask(A, hello())  # from here on anew
    assert isinstance(welcome, protocol.Welcome)
    assert welcome.n_pushed == 0


def test_pushes_that_found_no_room_are_counted(desk: Desk) -> None:
    for peer in (A, B):
        desk.ask(peer, protocol.Watch(1, "state", "*"))
    desk.deaf.add(A)
    for number in (b"1", b"2"):
        desk.ask(B, protocol.SetState(number, "cam1/gain", number))
    programs = desk.ask(B, protocol.ListPrograms())
    assert isinstance(programs, protocol.Programs)
    assert [program.n_dropped for program in programs.programs] == [2, 0]
    assert programs.counters["dropped: pushes"] == 2


def test_who_watches_sees_what_there_is_then_every_change_once(desk: Desk) -> None:
    desk.ask(A, protocol.SetState(b"1", "cam1/gain", b"\x01"))
    desk.ask(A, protocol.SetState(b"2", "cam2/gain", b"\x02"))
    watching = desk.ask(B, protocol.Watch(7, "state", "cam1/*"))
    assert watching == protocol.Watching(2)
    (first,) = desk.pushed(B)  # before `Watching`, as it was sent already
    assert isinstance(first, StateChanged)
    assert (first.watch, [entry.value for entry in first.entries]) == (7, [b"\x01"])
    desk.ask(B, protocol.Watch(8, "state", "*"))
    desk.pushed(B)
    desk.ask(A, protocol.SetState(b"3", "cam1/gain", b"\x03"))
    (change,) = desk.pushed(B)
    assert isinstance(change, StateChanged)
    assert (change.watch, [entry.value for entry in change.entries]) == (0, [b"\x03"])
    for number in (7, 8):
        desk.ask(B, protocol.Unwatch(number))
    desk.ask(A, protocol.SetState(b"4", "cam1/gain", b"\x04"))
    assert desk.pushed(B) == []


@pytest.mark.parametrize("pattern", ["a\x00b", "p\n"])
@pytest.mark.parametrize("subject", ["state", "events"])
def test_what_cannot_be_watched_is_refused(desk: Desk, subject: str, pattern: str) -> None:
    assert code_of(desk.ask(A, protocol.Watch(1, subject, pattern))) == "bad_message"
    assert code_of(desk.ask(A, protocol.Watch(1, "weather", "*"))) == "bad_message"
    assert desk.board._watches.count(A) == 0


# --- Calls ---


def test_a_short_call_is_answered_by_what_came_of_it_and_a_long_one_accepted(desk: Desk) -> None:
    desk.ask(B, protocol.Offer("s", [CommandInfo("do")], 3))
    for number in (1, 2):
        call = protocol.Call(b"%d" % number, "s", "do", b"\x80", 9.0)
        assert desk.ask(A, call, request_id=number) is None
    desk.ask(B, protocol.Outcome(b"1", b"\x2a"))
    assert desk.replies == [(A, 1, Finished(b"1", b"\x2a"))]
    desk.board.services.acknowledge(desk.now)
    assert len(desk.replies) == 1
    desk.now = 1.0
    desk.ask(A, protocol.Ping())
    desk.board.services.acknowledge(desk.now)
    assert desk.replies[1:] == [(A, 2, protocol.Accepted(worker_id(B)))]
    desk.pushed(A)
    desk.ask(B, protocol.Outcome(b"2", b"\x2b"))
    assert desk.pushed(A) == [Finished(b"2", b"\x2b")]
    assert len(desk.replies) == 2


def test_a_call_that_is_sent_again_has_an_answer_to_each(desk: Desk) -> None:
    """Else its program takes the broker for stuck, and makes new lines for ever."""
    desk.ask(B, protocol.Offer("s", [CommandInfo("do")]))
    call = protocol.Call(b"1", "s", "do", b"\x80", 9.0)
    for request_id in (1, 2, 3):
        assert desk.ask(A, call, request_id=request_id) is None
    accepted = protocol.Accepted(worker_id(B))
    assert desk.replies == [(A, 1, accepted), (A, 2, accepted)]
    desk.ask(A, call, request_id=3)  # the same message twice is one
    desk.ask(A, call)
    assert len(desk.replies) == 2
    desk.ask(B, protocol.Outcome(b"1", b"\x2a"))
    assert desk.replies[2:] == [(A, 3, Finished(b"1", b"\x2a"))]


def test_a_call_is_still_answered_when_another_one_of_its_id_is_refused(desk: Desk) -> None:
    desk.ask(B, protocol.Offer("s", [CommandInfo("do"), CommandInfo("undo")]))
    for number, command in enumerate(("do", "undo"), 1):
        call = protocol.Call(b"1", "s", command, b"\x80", 9.0)
        assert code_of(desk.ask(A, call, request_id=number)) == ("bad_message" * (number - 1))
    assert desk.replies == []
    desk.ask(B, protocol.Outcome(b"1", b"\x2a"))
    assert desk.replies == [(A, 1, Finished(b"1", b"\x2a"))]


def test_a_call_with_no_time_is_answered_by_its_expiry(desk: Desk) -> None:
    desk.ask(B, protocol.Offer("s", [CommandInfo("do")]))
    assert desk.ask(A, protocol.Call(b"1", "s", "do", b"\x80", 0.0), request_id=1) is None
    ((peer, number, reply),) = desk.replies
    assert (peer, number) == (A, 1)
    assert isinstance(reply, Finished)
    assert reply.failure is not None
    assert reply.failure.code == "expired"
    assert desk.pushed(B) == []


@pytest.mark.parametrize(
    ("end", "is_told"),
    [(die, True), (leave, True), (fall_silent, False)],
    ids=["died", "left", "silent"],
)
def test_a_worker_is_told_when_its_caller_is_gone_but_not_when_it_is_only_silent(
    desk: Desk, end: Callable[[Desk], None], is_told: bool
) -> None:
    desk.ask(B, protocol.Offer("s", [CommandInfo("do")]))
    desk.ask(C, hello(lease=3))
    desk.ask(C, protocol.Register(channel()))  # as these ends expect
    desk.ask(C, protocol.Call(b"1", "s", "do", b"\x80", 9.0))
    desk.pushed(B)
    end(desk)
    assert desk.pushed(B) == [protocol.Abort(b"1")] * is_told


def test_a_refused_call_is_answered_at_once(desk: Desk) -> None:
    call = protocol.Call(b"1", "s", "do", b"\x80", 9.0)
    assert code_of(desk.ask(A, call, request_id=1)) == "no_service"
    desk.now = 1.0
    desk.board.services.acknowledge(desk.now)
    assert desk.replies == []


def test_who_cancels_for_itself_alone_is_answered_and_waits_no_more(desk: Desk) -> None:
    desk.ask(B, protocol.Offer("s", [CommandInfo("do")]))
    call = protocol.Call(b"1", "s", "do", b"\x80", 9.0)
    desk.ask(C, hello())
    for number, peer in ((1, A), (2, C)):
        desk.ask(peer, call, request_id=number)
    desk.ask(A, protocol.Cancel(b"1"))
    assert desk.replies == [(A, 1, protocol.Accepted(worker_id(B)))]
    desk.now = 1.0
    desk.ask(A, protocol.Ping())
    desk.board.services.acknowledge(desk.now)
    desk.pushed(A)
    desk.ask(B, protocol.Outcome(b"1", b"\x2a"))
    assert desk.pushed(A) == []
    assert [(peer, number) for peer, number, _ in desk.replies] == [(A, 1), (C, 2)]
    assert not desk.board.services.is_busy


def test_who_cancels_what_has_begun_is_answered_and_told_how_it_ended(desk: Desk) -> None:
    desk.ask(B, protocol.Offer("s", [CommandInfo("do")]))
    desk.ask(A, protocol.Call(b"1", "s", "do", b"\x80", 9.0), request_id=1)
    desk.pushed(B)
    desk.ask(A, protocol.Cancel(b"1"))
    assert desk.pushed(B) == [protocol.Abort(b"1")]
    desk.ask(B, protocol.Outcome(b"1", b"\x2a"))
    assert desk.replies == [(A, 1, protocol.Accepted(worker_id(B)))]
    assert desk.pushed(A) == [Finished(b"1", b"\x2a")]


def test_who_says_hello_again_has_no_answer_to_what_it_asked_before(desk: Desk) -> None:
    """It may ask something else by that number."""
    desk.ask(B, protocol.Offer("s", [CommandInfo("do")]))
    desk.ask(A, protocol.Call(b"1", "s", "do", b"\x80", 9.0), request_id=1)
    desk.ask(A, hello())
    desk.pushed(A)
    desk.ask(B, protocol.Outcome(b"1", b"\x2a"))
    assert desk.replies == []
    assert desk.pushed(A) == [Finished(b"1", b"\x2a")]


def test_a_worker_says_hello_again_and_its_calls_go_on(desk: Desk) -> None:
    """A line may break for a second; what is under way is not lost by that."""
    desk.ask(B, protocol.Offer("s", [CommandInfo("do")]))
    desk.ask(A, protocol.Call(b"1", "s", "do", b"\x80", 9.0))
    desk.pushed(A)
    desk.ask(B, hello())
    assert desk.pushed(A) == []
    desk.ask(B, protocol.Hold([]))  # it never got it
    assert [type(body) for body in desk.pushed(B)] == [Execute]
    desk.ask(B, protocol.Offer("s", [CommandInfo("do")]))
    desk.ask(B, protocol.Outcome(b"1", b"\x2a"))
    assert desk.pushed(A) == [Finished(b"1", b"\x2a")]


# --- The broker's own events ---


@pytest.fixture
def listener(desk: Desk) -> Desk:
    """A switchboard where A listens to what the broker tells."""
    desk.ask(A, protocol.Watch(1, "events", "hub/*"))
    desk.pushed(A)
    return desk


def test_the_broker_tells_of_channels_services_and_programs(listener: Desk) -> None:
    listener.ask(C, hello("detector"))
    listener.ask(C, protocol.Register(channel()))
    listener.ask(C, protocol.Offer("stage", [CommandInfo("move")]))
    listener.ask(C, protocol.Withdraw("stage"))
    listener.ask(C, protocol.Withdraw("stage"))  # repeated
    listener.ask(C, protocol.Unregister("cam1", "s1"))
    listener.ask(C, protocol.Unregister("cam1", "s1"))
    who = listener.board.registry.programs[C].source
    assert "detector" in who
    assert "42@here" in who
    assert listener.events(A) == [
        ("hub/program/3", {"what": "came", "who": who}),
        ("hub/channel/cam1", {"what": "registered", "who": who}),
        ("hub/service/stage", {"what": "offered", "who": who}),
        ("hub/service/stage", {"what": "withdrawn", "who": who}),
        ("hub/channel/cam1", {"what": "gone", "why": "it was closed"}),
    ]


@pytest.mark.parametrize(
    ("end", "why"),
    [(leave, "left"), (die, "died"), (be_found_dead, "died"), (fall_silent, "fell silent")],
    ids=["left", "dead", "found dead", "silent"],
)
def test_of_a_program_that_goes_all_it_had_is_told_to_be_gone(
    listener: Desk, end: Callable[[Desk], None], why: str
) -> None:
    listener.ask(C, hello("detector", lease=3))
    listener.ask(C, protocol.Register(channel()))
    listener.ask(C, protocol.Offer("stage", [CommandInfo("move")]))
    listener.ask(C, protocol.Watch(1, "state", "*"))
    listener.pushed(A)
    who = listener.board.registry.programs[C].source
    end(listener)
    assert listener.events(A) == [
        ("hub/channel/cam1", {"what": "gone", "why": f"its program {why}"}),
        ("hub/program/3", {"what": "gone", "who": who, "why": why}),
        ("hub/service/stage", {"what": "gone", "why": f"its program {why}"}),
    ]
    assert set(listener.board.registry.programs) == {A, B}
    listener.board.tick(listener.now, alive)
    assert listener.events(A) == []  # once


def test_nobody_else_publishes_what_the_broker_tells(listener: Desk) -> None:
    for topic in ("hub/", "hub/program/1", "hub/anything"):
        body = protocol.Publish(topic.encode(), topic, b"\x01", "info", 0, keep=True)
        assert code_of(listener.ask(B, body)) == "not_allowed"
    assert len(listener.refusals) == 3
    assert listener.events(A) == []
    listener.ask(B, protocol.Publish(ID, "hubs/mine", b"\x01", "info", 0))  # not below it
    assert len(listener.refusals) == 3


def test_who_works_for_no_service_cannot_tell_of_its_end(listener: Desk) -> None:
    listener.ask(B, protocol.Offer("stage", [CommandInfo("move")]))
    listener.pushed(A)
    viewer = client("viewer")
    listener.ask(C, hello(), viewer)
    listener.pushed(A)
    assert listener.ask(C, protocol.Withdraw("stage"), viewer) == Done()
    assert listener.events(A) == []


# --- Pages ---


def pages(desk: Desk, ask: Callable[[Any], RequestBody], start: Any = "") -> list[list[Any]]:
    """Ask for page after page; what they hold."""
    found: list[list[Any]] = []
    while True:
        reply = desk.ask(A, ask(start))
        assert isinstance(reply, protocol.Channels | protocol.Services | protocol.Programs)
        (items,) = (
            getattr(reply, name)
            for name in ("channels", "services", "programs")
            if hasattr(reply, name)
        )
        assert len(protocol.encode(protocol.Reply(1, reply))) <= protocol.MAX_REPLY_BYTES
        found.append(items)
        if reply.is_last:
            return found
        start = items[-1].id if isinstance(reply, protocol.Programs) else items[-1].name


def test_more_channels_than_a_page_holds_are_listed_one_page_after_the_other(desk: Desk) -> None:
    names = [f"c{number:04}" for number in range(registry_module.PAGE + 1)]
    for name in reversed(names):
        desk.ask(B, protocol.Register(channel(name)))
    found = pages(desk, protocol.ListChannels)
    assert [len(page) for page in found] == [1000, 1]
    assert [each.name for page in found for each in page] == names


def test_more_services_than_a_page_holds_are_listed_one_page_after_the_other(desk: Desk) -> None:
    names = [f"s{number:03}" for number in range(101)]
    for name in reversed(names):
        desk.ask(B, protocol.Offer(name, [CommandInfo("do")]))
    found = pages(desk, protocol.ListServices)
    assert [len(page) for page in found] == [100, 1]
    assert [each.name for page in found for each in page] == names


def test_more_programs_than_a_page_holds_are_listed_one_page_after_the_other(desk: Desk) -> None:
    for number in range(99):
        desk.ask(b"%d" % number, hello(f"n{number}"))
    found = pages(desk, protocol.ListPrograms)
    assert [len(page) for page in found] == [100, 1]
    ids = [int(each.id) for page in found for each in page]
    assert ids == list(range(1, 102))


def test_large_descriptions_make_smaller_pages_and_no_reply_that_is_too_long(desk: Desk) -> None:
    long = msgspec.structs.replace(channel(), dtype="d" * 1023, access="ä" * 255)
    commands = [CommandInfo(f"c{number}", "d" * 1000) for number in range(50)]
    for number in range(1000):
        desk.ask(B, protocol.Register(msgspec.structs.replace(long, name=f"c{number:04}")))
    for number in range(100):
        desk.ask(B, protocol.Offer(f"s{number:03}", commands))
    for ask, n_items in ((protocol.ListChannels, 1000), (protocol.ListServices, 100)):
        found = pages(desk, ask)
        assert len(found) > 1
        assert sum(map(len, found)) == n_items


def test_the_list_of_programs_tells_what_each_one_has(desk: Desk) -> None:
    desk.ask(B, protocol.Register(channel()))
    desk.ask(B, protocol.Offer("s", [CommandInfo("do")]))
    desk.ask(B, protocol.Watch(1, "events", "*"))
    desk.now = 1.0
    reply = desk.ask(A, protocol.ListPrograms())
    assert isinstance(reply, protocol.Programs)
    assert reply.programs[1] == protocol.ProgramInfo(
        "2", "program B", "a admin", "admin", "here", 42, 1.0, 1, 1, 1, 0
    )
    assert reply.is_last


# --- The end ---


def test_an_administrator_ends_the_broker_and_nobody_else_does(desk: Desk) -> None:
    operator = client("operator")
    desk.ask(C, hello(), operator)
    desk.ask(C, protocol.Shutdown(), operator)
    assert not desk.board.is_ended
    assert desk.ask(A, protocol.Shutdown()) == Done()
    assert desk.board.is_ended


def test_what_cannot_be_written_down_is_refused_and_the_broker_goes_on(
    desk: Desk, store: Store
) -> None:
    desk.ask(B, protocol.Offer("s", [CommandInfo("do")]))
    store.close()  # from here on it cannot write
    for body in (
        protocol.Offer("t", [CommandInfo("do")]),
        protocol.SetState(ID, "k", b"\x01"),
        protocol.Publish(ID, "t", b"\x01", "info", 0, keep=True),
    ):
        assert code_of(desk.ask(A, body)) == "no_room"
    assert desk.board.tick(0.0, lambda hello: hello.lease != 2) == []
    assert set(desk.board.registry.programs) == {A}
