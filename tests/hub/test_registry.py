"""What the broker knows, without a broker: no sockets, no clock."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyhub.errors import InvalidName
from pyhub.hub import protocol
from pyhub.hub.broker.registry import COMING_BACK_S, GONE_S, MAX_CHANNELS_PER_PROGRAM, Registry
from pyhub.hub.broker.rights import Client
from pyhub.hub.broker.store import Store
from pyhub.hub.broker.switchboard import Switchboard
from pyhub.hub.protocol import (
    ChannelInfo,
    ChannelMetrics,
    Done,
    Found,
    Hello,
    Refused,
    ReplyBody,
    RequestBody,
    Welcome,
)
from pyhub.hub.runtime import endpoint_digest
from pyhub.names import check_name

A, B = b"program A", b"program B"


def endpoint_of(name: str) -> str:
    return f"ipc:///run/{name}.sock"


def hello(host: str = "here", lease: int = 1) -> Hello:
    return Hello(protocol.PROTOCOL, host, 42, lease, "/dev/shm/leases")


def channel(name: str = "cam1", segment_id: str = "s1") -> ChannelInfo:
    return ChannelInfo(name, "datablock", "<u2", (4, 4), 4, segment_id, "here", 42)


ADMIN = Client("tests", "admin", {}, "key")


class Desk:
    """A registry behind its switchboard, where all programs have one key."""

    def __init__(self, store: Store, heartbeat_s: float = 1.0) -> None:
        self.registry = Registry("epoch", endpoint_of, heartbeat_s)
        self.board = Switchboard(
            self.registry, store, lambda peer, frame: True, lambda *refusal: None
        )
        self.programs = self.registry.programs

    def answer(self, peer: bytes, body: RequestBody, now: float) -> ReplyBody:
        return self.board.answer(peer, ADMIN, body, now)

    def forget(self, peer: bytes) -> list[str]:
        return [name for name, _ in self.board.forget(peer, "left")]

    def expire(self, now: float, is_alive: Callable[[Hello], bool]) -> list[str]:
        return [name for name, _ in self.board.tick(now, is_alive)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(tmp_path / "state.db")) as store:
        yield store


@pytest.fixture
def empty(store: Store) -> Desk:
    """A registry that nobody has greeted."""
    return Desk(store)


@pytest.fixture
def registry(empty: Desk) -> Desk:
    """A registry that programs A and B, both of this host, have greeted."""
    for peer in (A, B):
        empty.answer(peer, hello(), 0.0)
    return empty


def found(name: str, segment_id: str = "s1") -> Found:
    """What a look-up of a channel that is there brings."""
    endpoint = endpoint_of(name)
    return Found(endpoint, msgspec.structs.replace(channel(name, segment_id), endpoint=endpoint))


def names(registry: Desk, peer: bytes = A) -> list[str]:
    reply = registry.answer(peer, protocol.ListChannels(), 0.0)
    assert isinstance(reply, protocol.Channels)
    return [channel.name for channel in reply.channels]


def n_readers(registry: Desk, name: str = "cam1", peer: bytes = A) -> int:
    reply = registry.answer(peer, protocol.LookUp(name), 0.0)
    assert isinstance(reply, Found)
    assert reply.channel is not None
    return reply.channel.n_readers


# --- Hello ---


def test_a_hello_is_welcomed_with_the_brokers_epoch_and_heartbeat(store: Store) -> None:
    registry = Desk(store, heartbeat_s=0.5)
    assert registry.answer(A, hello(), 0.0) == Welcome(protocol.PROTOCOL, "epoch", 0.5)


@pytest.mark.parametrize("version", [protocol.OLDEST, protocol.PROTOCOL, protocol.PROTOCOL + 1])
def test_programs_of_neighbouring_protocols_speak_the_older_one(empty: Desk, version: int) -> None:
    for body in (msgspec.structs.replace(hello(), protocol=version), protocol.Ping()):
        reply = empty.answer(A, body, 0.0)
        assert reply == Welcome(min(version, protocol.PROTOCOL), "epoch", 1.0)


@pytest.mark.parametrize("version", [0, protocol.PROTOCOL + 2, -1])
def test_a_program_of_another_protocol_is_refused_and_told_both(empty: Desk, version: int) -> None:
    registry = empty
    reply = registry.answer(A, msgspec.structs.replace(hello(), protocol=version), 0.0)
    assert isinstance(reply, Refused)
    assert reply.code == "protocol"
    assert f"protocol {protocol.PROTOCOL}, the program {version}" in reply.reason
    assert "neighbouring versions of pyhub" in reply.reason
    assert not registry.programs


@pytest.mark.parametrize(
    "body",
    [
        protocol.Register(channel()),
        protocol.Unregister("cam1", "s1"),
        protocol.LookUp("cam1"),
        protocol.ReaderAttached(1, "cam1", "s1"),
        protocol.ReaderDetached(1),
        protocol.ListChannels(),
        protocol.Goodbye(),
        # A program that was forgotten, for it was stopped for a while, learns
        # of it by its next heartbeat. Answered with a welcome, it never did.
        protocol.Ping(),
    ],
    ids=lambda body: type(body).__name__,
)
def test_who_has_not_said_hello_is_told_to(empty: Desk, body: RequestBody) -> None:
    reply = empty.answer(A, body, 0.0)
    assert isinstance(reply, Refused)
    assert reply.code == "no_hello"


def test_a_second_hello_starts_afresh(registry: Desk) -> None:
    registry.answer(A, protocol.Register(channel()), 0.0)
    registry.answer(A, protocol.ReaderAttached(1, "cam1", "s1"), 0.0)
    registry.answer(A, hello(), 1.0)
    assert names(registry) == []
    registry.answer(A, protocol.Register(channel()), 1.0)
    assert n_readers(registry) == 0


# --- Channels ---


def test_a_registered_channel_is_listed_and_found(registry: Desk) -> None:
    """Seed 17: the broker registers and discovers every channel."""
    for name in ("cam2", "cam1"):
        reply = registry.answer(A, protocol.Register(channel(name)), 0.0)
        assert reply == protocol.Registered(endpoint_of(name))
    assert names(registry, B) == ["cam1", "cam2"]
    assert registry.answer(B, protocol.LookUp("cam2"), 0.0) == found("cam2")


def test_a_channel_that_is_not_there_yet_has_an_endpoint_to_wait_on(registry: Desk) -> None:
    for now, status in ((0.0, "pending"), (COMING_BACK_S, "not_found")):
        reply = registry.answer(A, protocol.LookUp("later"), now)
        assert isinstance(reply, Found)
        assert (reply.endpoint, reply.channel, reply.status) == (
            endpoint_of("later"), None, status,
        )  # fmt: skip
        assert reply.reason


def test_a_channel_of_a_program_that_misses_heartbeats_is_pending_until_it_is_heard(
    registry: Desk,
) -> None:
    registry.answer(A, protocol.Register(channel()), 0.0)
    reply = registry.answer(B, protocol.LookUp("cam1"), 2.0)
    assert isinstance(reply, Found)
    assert reply.channel is not None
    assert (reply.status, reply.channel.liveness) == ("pending", "silent")
    assert "pid 42 on here" in reply.reason
    registry.answer(A, protocol.Ping(), 2.0)
    assert registry.answer(B, protocol.LookUp("cam1"), 2.0) == found("cam1")


def test_a_channel_has_the_metrics_of_its_last_report(registry: Desk) -> None:
    registry.answer(A, protocol.Register(channel()), 0.0)
    counted = ChannelMetrics(7, 1, 2.5)
    for peer in (A, B):  # nobody reports of another's channel
        metrics = {"s1": counted if peer == A else ChannelMetrics(), "unknown": counted}
        assert registry.answer(peer, protocol.Report(metrics), 0.0) == Done()
    reply = registry.answer(B, protocol.LookUp("cam1"), 0.0)
    assert isinstance(reply, Found)
    assert reply.channel is not None
    assert reply.channel.metrics == counted


def test_of_segments_that_are_gone_no_metrics_are_kept(registry: Desk) -> None:
    for number in range(3):
        registry.answer(A, protocol.Register(channel(segment_id=f"s{number}")), 0.0)
        registry.answer(A, protocol.Report({f"s{number}": ChannelMetrics()}), 0.0)
    registry.answer(A, protocol.Unregister("cam1", "s0"), 0.0)  # late
    assert set(registry.programs[A].metrics) == {"s2"}
    registry.answer(A, protocol.Unregister("cam1", "s2"), 0.0)
    assert not registry.programs[A].metrics


def test_an_unregistered_channel_is_gone(registry: Desk) -> None:
    registry.answer(A, protocol.Register(channel()), 0.0)
    assert registry.answer(A, protocol.Unregister("cam1", "s1"), 0.0) == Done()
    assert names(registry) == []


def test_nobody_unregisters_anothers_channel(registry: Desk) -> None:
    registry.answer(A, protocol.Register(channel()), 0.0)
    registry.answer(B, protocol.Unregister("cam1", "s1"), 0.0)
    assert names(registry) == ["cam1"]


def test_a_late_unregister_leaves_the_next_segment_of_that_name(registry: Desk) -> None:
    registry.answer(A, protocol.Register(channel(segment_id="s1")), 0.0)
    registry.answer(A, protocol.Register(channel(segment_id="s2")), 0.0)
    registry.answer(A, protocol.Unregister("cam1", "s1"), 0.0)
    assert names(registry) == ["cam1"]


def test_a_name_of_another_host_is_refused_until_that_one_is_gone(registry: Desk) -> None:
    there = b"program there"
    registry.answer(there, hello(host="there"), 0.0)
    registry.answer(A, protocol.Register(channel()), 0.0)
    reply = registry.answer(there, protocol.Register(channel(segment_id="s2")), 0.0)
    assert isinstance(reply, Refused)
    assert reply.code == "name_taken"
    assert "pid 42 on here" in reply.reason
    registry.answer(A, protocol.Goodbye(), 0.0)
    reply = registry.answer(there, protocol.Register(channel(segment_id="s2")), 0.0)
    assert reply == protocol.Registered(endpoint_of("cam1"))


def test_the_next_producer_on_the_same_host_has_the_name(registry: Desk) -> None:
    # There, the segment has settled already whose the name is.
    registry.answer(A, protocol.Register(channel(segment_id="s1")), 0.0)
    registry.answer(B, protocol.Register(channel(segment_id="s2")), 0.0)
    assert registry.forget(A) == []  # no socket of B's is to be removed
    assert registry.answer(B, protocol.LookUp("cam1"), 0.0) == found("cam1", "s2")
    assert registry.forget(B) == ["cam1"]


def test_a_goodbye_takes_everything_along(registry: Desk) -> None:
    registry.answer(A, protocol.Register(channel()), 0.0)
    registry.answer(B, protocol.Register(channel("cam2")), 0.0)
    registry.answer(A, protocol.ReaderAttached(1, "cam2", "s1"), 0.0)
    assert registry.answer(A, protocol.Goodbye(), 0.0) == Done()
    assert names(registry, B) == ["cam2"]
    assert n_readers(registry, "cam2", B) == 0


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a b", "n" * 201, "n" * 60_000, "ä"])
def test_an_illegal_name_is_refused_with_a_short_reason(registry: Desk, name: str) -> None:
    reply = registry.answer(A, protocol.LookUp(name), 0.0)
    assert isinstance(reply, Refused)
    assert reply.code == "bad_message"
    assert len(reply.reason) <= 200


def test_one_program_cannot_fill_the_brokers_memory(registry: Desk) -> None:
    for number in range(MAX_CHANNELS_PER_PROGRAM):
        registry.answer(A, protocol.Register(channel(f"c{number}")), 0.0)
        registry.answer(A, protocol.ReaderAttached(number, "c0", "s1"), 0.0)
    for body in (
        protocol.Register(channel("more")),
        protocol.ReaderAttached(MAX_CHANNELS_PER_PROGRAM, "c0", "s1"),
    ):
        reply = registry.answer(A, body, 0.0)
        assert isinstance(reply, Refused)
        assert reply.code == "too_many"
    # What it has, it may say again.
    assert registry.answer(A, protocol.ReaderAttached(0, "c0", "s1"), 0.0) == Done()
    assert registry.answer(A, protocol.Register(channel("c0")), 0.0) == protocol.Registered(
        endpoint_of("c0")
    )
    assert n_readers(registry, "c0") == MAX_CHANNELS_PER_PROGRAM


# --- Readers ---


def test_readers_are_counted_by_segment(registry: Desk) -> None:
    registry.answer(A, protocol.Register(channel(segment_id="s1")), 0.0)
    registry.answer(A, protocol.ReaderAttached(1, "cam1", "s1"), 0.0)
    registry.answer(B, protocol.ReaderAttached(1, "cam1", "s1"), 0.0)
    registry.answer(B, protocol.ReaderAttached(2, "cam1", "s1"), 0.0)
    assert n_readers(registry) == 3
    registry.answer(A, protocol.Register(channel(segment_id="s2")), 0.0)  # it restarted
    assert n_readers(registry) == 0
    registry.answer(B, protocol.ReaderAttached(2, "cam1", "s2"), 0.0)  # one has seen it
    assert n_readers(registry) == 1


def test_a_repeated_message_does_not_count_a_reader_twice(registry: Desk) -> None:
    registry.answer(A, protocol.Register(channel()), 0.0)
    for _ in range(3):
        registry.answer(B, protocol.ReaderAttached(1, "cam1", "s1"), 0.0)
    registry.answer(B, protocol.ReaderAttached(2, "cam1", "s1"), 0.0)
    assert n_readers(registry) == 2
    for _ in range(3):
        registry.answer(B, protocol.ReaderDetached(1), 0.0)
    assert n_readers(registry) == 1


def test_a_reader_that_nobody_knows_may_detach(registry: Desk) -> None:
    assert registry.answer(A, protocol.ReaderDetached(99), 0.0) == Done()


def test_readers_that_come_first_are_counted_once_the_channel_is_there(registry: Desk) -> None:
    # After a broker's restart nobody knows who registers first.
    registry.answer(B, protocol.ReaderAttached(1, "cam1", "s1"), 0.0)
    registry.answer(A, protocol.Register(channel()), 0.0)
    assert n_readers(registry) == 1


# --- Death ---


def test_the_silent_and_the_dead_are_forgotten_and_no_others(empty: Desk) -> None:
    registry = empty
    for peer, lease, heard_at in ((b"silent", 1, 0.0), (b"dead", 2, 9.0), (b"well", 3, 9.0)):
        registry.answer(peer, hello(lease=lease), 0.0)
        registry.answer(peer, protocol.Register(channel(peer.decode())), heard_at)
    gone = registry.expire(10.0, lambda hello: hello.lease != 2)
    assert sorted(gone) == ["dead", "silent"]
    assert set(registry.programs) == {b"well"}
    assert registry.expire(10.0, lambda hello: hello.lease != 2) == []


@pytest.mark.parametrize("body", [protocol.Ping(), protocol.ListChannels()])
def test_whatever_a_program_says_proves_that_it_lives(empty: Desk, body: RequestBody) -> None:
    registry = empty
    registry.answer(A, hello(), 0.0)
    registry.answer(A, body, 4.0)
    assert registry.expire(4.0 + GONE_S, lambda _: True) == []
    assert A in registry.programs
    registry.expire(4.1 + GONE_S, lambda _: True)  # the negative control
    assert A not in registry.programs


# --- Names of sockets ---


def test_each_channel_has_a_short_socket_name_of_its_own() -> None:
    digests = {endpoint_digest(f"cam{number}") for number in range(1000)}
    assert len(digests) == 1000
    assert {len(digest) for digest in digests} == {16}
    assert endpoint_digest("n" * 200) == endpoint_digest("n" * 200)


# --- Any order of events ---

PEERS = {b"a1": "a", b"a2": "a", b"b1": "b"}  # two programs of host a, one of b
peers = st.sampled_from(sorted(PEERS))
channel_names = st.sampled_from(["x", "y", ".not.a.name"])
segments = st.sampled_from(["s1", "s2"])


class AnyOrder(RuleBasedStateMachine):
    """The registry beside a model that is too simple to be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.store = Store(self.directory / "state.db")
        self.registry = Desk(self.store)
        self.greeted: set[bytes] = set()
        self.has: dict[tuple[bytes, str], str] = {}  # program, name -> segment
        self.holder: dict[str, bytes] = {}
        self.reads: dict[tuple[bytes, int], tuple[str, str]] = {}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    def drop(self, peer: bytes) -> None:
        self.greeted.discard(peer)
        self.has = {key: value for key, value in self.has.items() if key[0] != peer}
        self.holder = {name: who for name, who in self.holder.items() if who != peer}
        self.reads = {key: value for key, value in self.reads.items() if key[0] != peer}

    def ask(self, peer: bytes, body: RequestBody) -> bool:
        """Ask the registry; whether it did what it was asked."""
        reply = self.registry.answer(peer, body, 0.0)
        if peer not in self.greeted:
            assert isinstance(reply, Refused)
            assert reply.code == "no_hello"
        return not isinstance(reply, Refused)

    @rule(peer=peers)
    def greet(self, peer: bytes) -> None:
        self.drop(peer)
        self.greeted.add(peer)
        assert self.ask(peer, hello(host=PEERS[peer]))

    @rule(peer=peers, name=channel_names, segment=segments)
    def register(self, peer: bytes, name: str, segment: str) -> None:
        try:
            check_name(name)
        except InvalidName:
            return  # refused before it reaches the registry
        holder = self.holder.get(name)
        is_free = holder is None or PEERS[holder] == PEERS[peer]
        assert self.ask(peer, protocol.Register(channel(name, segment))) == (
            peer in self.greeted and is_free
        )
        if peer in self.greeted and is_free:
            self.has[peer, name] = segment
            self.holder[name] = peer

    @rule(peer=peers, name=channel_names, segment=segments)
    def unregister(self, peer: bytes, name: str, segment: str) -> None:
        if self.ask(peer, protocol.Unregister(name, segment)) and (
            self.has.get((peer, name)) == segment
        ):
            del self.has[peer, name]
            if self.holder.get(name) == peer:
                del self.holder[name]

    @rule(peer=peers, reader=st.integers(0, 1), name=channel_names, segment=segments)
    def attach(self, peer: bytes, reader: int, name: str, segment: str) -> None:
        if self.ask(peer, protocol.ReaderAttached(reader, name, segment)):
            self.reads[peer, reader] = (name, segment)

    @rule(peer=peers, reader=st.integers(0, 1))
    def detach(self, peer: bytes, reader: int) -> None:
        if self.ask(peer, protocol.ReaderDetached(reader)):
            self.reads.pop((peer, reader), None)

    @rule(peer=peers)
    def say_goodbye(self, peer: bytes) -> None:
        self.ask(peer, protocol.Goodbye())
        self.drop(peer)

    @rule(dead=st.sets(peers))
    def expire(self, dead: set[bytes]) -> None:
        leases = {id(self.registry.programs[peer].hello) for peer in dead & self.greeted}
        owned = sorted(name for name, who in self.holder.items() if who in dead)
        gone = self.registry.expire(0.0, lambda hello: id(hello) not in leases)
        assert sorted(gone) == owned
        for peer in dead:
            self.drop(peer)

    @invariant()
    def knows_what_the_model_knows(self) -> None:
        asker = b"asker"
        self.registry.answer(asker, hello(), 0.0)
        listed = self.registry.answer(asker, protocol.ListChannels(), 0.0)
        assert isinstance(listed, protocol.Channels)
        readers = list(self.reads.values())
        assert {(c.name, c.segment_id, c.n_readers) for c in listed.channels} == {
            (name, segment := self.has[who, name], readers.count((name, segment)))
            for name, who in self.holder.items()
        }
        self.registry.answer(asker, protocol.Goodbye(), 0.0)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
