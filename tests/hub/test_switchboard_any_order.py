"""A broker without its sockets, in any order of events: of who is gone, nothing is left."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyhub.hub import protocol
from pyhub.hub.broker.registry import GONE_S, Registry
from pyhub.hub.broker.rights import Client, Role
from pyhub.hub.broker.store import Store
from pyhub.hub.broker.switchboard import Switchboard
from pyhub.hub.protocol import (
    ChannelInfo,
    CommandInfo,
    Refused,
    RequestBody,
)

PEERS = [b"program %d" % number for number in range(4)]
ROLES: list[Role] = ["admin", "producer", "operator", "viewer"]
CLIENTS = {
    peer: Client(role, role, {}, f"key of {role}") for peer, role in zip(PEERS, ROLES, strict=True)
}

peers = st.sampled_from(PEERS)
names = st.sampled_from(["x", "y", "not a name"])
few = st.integers(1, 2)


class AnyOrder(RuleBasedStateMachine):
    """Programs that come, work, ask twice, and go in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.now = 0.0
        self.allowed = set(PEERS)
        self.n_refused = self.n_told = self.n_calls = 0
        self.owed: set[tuple[bytes, int]] = set()  # answers to calls: to whom, to which request
        self.store = Store(self.directory / "state.db")
        self.begin("e1")

    def teardown(self) -> None:
        for peer in PEERS:
            if peer in self.board.registry.programs:
                self.ask(peer, protocol.Goodbye())
        self.nothing_is_left_of_who_is_gone()
        assert not self.board.services.is_busy
        self.store.close()
        shutil.rmtree(self.directory)

    def begin(self, epoch: str) -> None:
        registry = Registry(epoch, lambda name: f"ipc:///run/{name}.sock", now=self.now)
        self.board = Switchboard(registry, self.store, self.send, self.note_refusal, self.now)
        self.pushed: dict[bytes, int] = dict.fromkeys(PEERS, 0)
        self.owed.clear()
        self.sent: list[tuple[bytes, int]] = []

    def send(self, peer: bytes, frame: bytes) -> bool:
        self.sent.append((peer, protocol.decode_reply(frame).id))
        return True

    def note_refusal(self, code: str, who: str, why: str) -> None:
        assert all((code, who, why))
        self.n_told += 1

    def ask(self, peer: bytes, body: RequestBody, request_id: int = 0) -> bool:
        """Ask, and take what is pushed; whether it was not refused."""
        if peer not in self.allowed:
            return False  # the server lets it no more in than this
        if isinstance(body, protocol.Hello):
            self.take()
            self.pushed[peer] = 0
            self.owed = {each for each in self.owed if each[0] != peer}
        reply = self.board.answer(peer, CLIENTS[peer], body, self.now, request_id)
        if isinstance(reply, Refused) and reply.code != "no_hello":
            self.n_refused += 1
        assert self.n_told == self.n_refused
        if reply is None:
            self.owed.add((peer, request_id))
        self.take()
        return not isinstance(reply, Refused)

    def take(self) -> None:
        sent, self.sent = self.sent, []
        for peer, request_id in sent:
            if request_id:
                self.owed.remove((peer, request_id))  # once
            else:
                self.pushed[peer] += 1

    def twice(self, peer: bytes, body: RequestBody) -> None:
        """Ask, and ask again, as the first answer was lost: it is the same."""
        assert self.ask(peer, body) == self.ask(peer, body)

    # --- What may happen ---

    @rule(peer=peers)
    def greet(self, peer: bytes) -> None:
        lease = PEERS.index(peer)
        self.ask(peer, protocol.Hello(protocol.PROTOCOL, "here", 42, lease, "/dev/shm/leases"))

    @rule(peer=peers, name=names, segment=st.sampled_from(["s1", "s2"]))
    def register(self, peer: bytes, name: str, segment: str) -> None:
        if " " in name:
            return  # refused before it reaches the switchboard
        channel = ChannelInfo(name, "datablock", "<u2", (4, 4), 4, segment, "here", 42)
        self.twice(peer, protocol.Register(channel))
        self.twice(peer, protocol.Report({segment: protocol.ChannelMetrics(1)}))

    @rule(peer=peers, name=names, segment=st.sampled_from(["s1", "s2"]), reader=few)
    def use_a_channel(self, peer: bytes, name: str, segment: str, reader: int) -> None:
        self.twice(peer, protocol.LookUp(name))
        self.twice(peer, protocol.ReaderAttached(reader, name, segment))
        self.twice(peer, protocol.Unregister(name, segment))

    @rule(peer=peers, reader=few)
    def detach(self, peer: bytes, reader: int) -> None:
        self.twice(peer, protocol.ReaderDetached(reader))

    @rule(peer=peers, name=names, capacity=few)
    def offer(self, peer: bytes, name: str, capacity: int) -> None:
        self.twice(peer, protocol.Offer(name, [CommandInfo("do")], capacity))

    @rule(peer=peers, name=names)
    def withdraw(self, peer: bytes, name: str) -> None:
        self.twice(peer, protocol.Withdraw(name))

    @rule(peer=peers, name=names, call=few, has_id=st.booleans())
    def call(self, peer: bytes, name: str, call: int, has_id: bool) -> None:
        body = protocol.Call(b"%d" % call, name, "do", b"\x80", 2.0)
        self.n_calls += 1
        self.ask(peer, body, self.n_calls if has_id else 0)

    @rule(peer=peers, call=few)
    def end_a_call(self, peer: bytes, call: int) -> None:
        self.twice(peer, protocol.Progress(b"%d" % call, b"\x01"))
        self.twice(peer, protocol.Outcome(b"%d" % call, b"\x01"))

    @rule(peer=peers, calls=st.sets(few))
    def hold(self, peer: bytes, calls: set[int]) -> None:
        self.twice(peer, protocol.Hold([b"%d" % call for call in calls]))

    @rule(peer=peers, call=few)
    def cancel(self, peer: bytes, call: int) -> None:
        self.twice(peer, protocol.Cancel(b"%d" % call))

    @rule(peer=peers, watch=few, subject=st.sampled_from(["state", "events", "weather"]))
    def watch(self, peer: bytes, watch: int, subject: str) -> None:
        self.twice(peer, protocol.Watch(watch, subject, "*"))

    @rule(peer=peers, watch=few)
    def unwatch(self, peer: bytes, watch: int) -> None:
        self.twice(peer, protocol.Unwatch(watch))

    @rule(peer=peers, change=few, value=st.sampled_from([None, b"\x01"]))
    def tell(self, peer: bytes, change: int, value: bytes | None) -> None:
        self.twice(peer, protocol.SetState(b"%d" % change, "k", value))
        self.twice(peer, protocol.Publish(b"%d" % change, "t", b"\x01", "info", 0, True))

    @rule(peer=peers)
    def say_goodbye(self, peer: bytes) -> None:
        self.ask(peer, protocol.Goodbye())

    @rule(dead=st.sets(peers), bury=st.booleans())
    def die(self, dead: set[bytes], bury: bool) -> None:
        leases = {PEERS.index(peer) for peer in dead}
        if bury:
            self.board.bury(lambda hello: hello.lease not in leases, dead)
        else:
            self.board.tick(self.now, lambda hello: hello.lease not in leases)
        self.take()
        assert not dead & set(self.board.registry.programs)

    @rule(step_s=st.sampled_from([0.01, 0.5, GONE_S + 0.1]), heard=st.sets(peers))
    def let_time_pass(self, step_s: float, heard: set[bytes]) -> None:
        here = set(self.board.registry.programs)
        self.now += step_s
        for peer in sorted(heard):
            self.ask(peer, protocol.Ping())
        self.board.services.acknowledge(self.now)
        self.board.tick(self.now, lambda hello: True)
        self.take()
        if step_s > GONE_S:
            assert set(self.board.registry.programs) == here & heard & self.allowed

    @rule(allowed=st.sets(peers, min_size=3))
    def change_rights(self, allowed: set[bytes]) -> None:
        self.allowed = allowed
        by_key = {CLIENTS[peer].key.encode(): CLIENTS[peer] for peer in allowed}
        self.board.let_in(by_key.get)
        self.take()

    @rule()
    def restart_broker(self) -> None:
        self.begin(f"e{self.now}")

    # --- What holds all the time ---

    @invariant()
    def nothing_is_left_of_who_is_gone(self) -> None:
        here = self.board.registry.programs
        registry, services, watches = self.board.registry, self.board.services, self.board._watches
        assert set(here) <= self.allowed
        assert set(registry.channels.values()) <= set(here)
        for name, peer in registry.channels.items():
            assert name in here[peer].channels
        attached = [key for program in here.values() for key in program.readers.values()]
        assert registry._n_readers == {key: attached.count(key) for key in attached}
        for program in here.values():
            assert set(program.metrics) <= {each.segment_id for each in program.channels.values()}
        assert set(watches._watches) <= set(here)
        for watchers in watches._watchers.values():
            assert set(watchers) <= set(here)
        assert services.workers_at_work() <= set(here)
        assert set(services._n_calls) <= set(here)
        for service in services._services.values():
            assert set(service.workers) <= set(here)
        for call in services._calls.values():
            assert set(call.callers) <= set(here)

    @invariant()
    def every_push_is_counted(self) -> None:
        for peer, program in self.board.registry.programs.items():
            assert program.n_pushed == self.pushed[peer]

    @invariant()
    def no_answer_is_forgotten(self) -> None:
        calls = self.board.services._calls.values()
        here = self.board.registry.programs
        assert {
            (peer, asked.request_id)
            for call in calls
            for peer, asked in call.callers.items()
            if asked is not None
        } == {(peer, request_id) for peer, request_id in self.owed if peer in here}


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
