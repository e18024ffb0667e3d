"""Services in any order of events: nothing is done twice, and who waits is told in the end."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyhub.hub import protocol
from pyhub.hub.broker.comebacks import FORMER_S, FormerWorker
from pyhub.hub.broker.services import Services
from pyhub.hub.protocol import (
    Abort,
    Accepted,
    Call,
    Cancel,
    CommandInfo,
    Execute,
    Finished,
    Hold,
    Offer,
    Outcome,
    PushBody,
    Refused,
    RequestBody,
    Withdraw,
)

COMMANDS = [CommandInfo("do"), CommandInfo("again", is_idempotent=True), CommandInfo("rare")]
TIMEOUT_S = 30.0
SETTLED_S = 2 * TIMEOUT_S


class Roster:
    """What one broker leaves to the next."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bytes], protocol.Hello] = {}

    def keep_worker(self, service: str, peer: bytes, hello: protocol.Hello) -> None:
        self.rows[service, peer] = hello

    def drop_worker(self, service: str, peer: bytes) -> None:
        self.rows.pop((service, peer), None)


class Waiting:
    """A call as its caller has it, see `pyhub.hub.client.calls.PendingCall`."""

    def __init__(self, call: bytes, command: str, deadline: float) -> None:
        self.call, self.command, self.deadline = call, command, deadline
        self.epoch = self.worker = ""

    def request(self, epoch: str, now: float) -> Call:
        self.epoch = self.epoch or epoch
        first = "" if self.epoch == epoch else self.epoch
        left = max(self.deadline - now, 0.0)
        return Call(self.call, "s", self.command, b"\x80", left, first, self.worker)


class Program:
    """A caller and worker, as `pyhub.hub.client` has them; lines keep their order."""

    def __init__(self, number: int) -> None:
        self.peer = b"program %d" % number
        self.hello = protocol.Hello(protocol.PROTOCOL, "here", number, number, "/dev/shm/leases")
        self.is_alive = True
        self.is_known = False  # to the broker that there is
        self.gap = False
        self.to_broker: deque[RequestBody | Waiting] = deque()
        self.pushes: deque[PushBody] = deque()
        self.waiting: dict[bytes, Waiting] = {}
        self.offer: Offer | None = None
        self.jobs: list[tuple[bytes, str]] = []
        self.kept: dict[bytes, Outcome] = {}

    def held(self) -> Hold:
        return Hold([*self.kept, *(call for call, _ in self.jobs)])

    def greeted(self) -> None:
        """A new line: what was not answered is asked again, after an introduction."""
        self.is_known, self.gap = True, False
        self.pushes.clear()
        # An introduction says the same as news do, of calls too. What came of
        # calls is said one-way: it is lost with the line.
        asks = [ask for ask in self.to_broker if isinstance(ask, Cancel)]
        introduction: list[RequestBody | Waiting] = []
        if self.offer is not None or self.kept or self.jobs:
            introduction.append(self.held())
        if self.offer is not None:
            introduction.append(self.offer)
        self.to_broker = deque([*introduction, *self.waiting.values(), *asks])

    def notice_gap(self) -> None:
        if self.gap:
            self.gap = False
            self.to_broker.extend([self.held(), *self.waiting.values()])

    def take(self, body: PushBody) -> bytes | None:
        """Take a push; the call that is begun with it, if any."""
        if isinstance(body, Finished):
            self.waiting.pop(body.call, None)
        elif isinstance(body, Execute):
            if body.call in self.kept:
                self.to_broker.append(self.kept[body.call])
            elif body.call not in [call for call, _ in self.jobs]:
                if self.offer is None:
                    failure = protocol.Failure("died", "it was closed")
                    self.to_broker.append(Outcome(body.call, None, failure))
                else:
                    self.jobs.append((body.call, body.command))
                    return body.call
        else:
            assert isinstance(body, Abort)
        return None

    def finish(self, index: int) -> None:
        call, _ = self.jobs.pop(index)
        self.kept[call] = Outcome(call, b"\x01")
        self.to_broker.append(self.kept[call])


# Which of those that can: there is always one then, so that no step is for nothing.
which = st.integers(0, 11)
# What becomes of a request: it is heard, or it is and the answer is lost, or it is lost itself.
hows = st.sampled_from(["heard", "heard", "heard", "repeated", "lost"])


def can_send(program: Program) -> bool:
    return program.is_alive and program.is_known and bool(program.to_broker)


def can_receive(program: Program) -> bool:
    return program.is_alive and bool(program.pushes)


def someone(claim: Callable[[Program], object]) -> Callable[[AnyOrder], bool]:
    """Return whether the claim holds for a program."""
    return lambda machine: any(map(claim, machine.programs))


class AnyOrder(RuleBasedStateMachine):
    """Programs that call each other, lines that break, and brokers that end."""

    def __init__(self) -> None:
        super().__init__()
        self.programs = [Program(number) for number in range(3)]
        self.by_peer = {program.peer: program for program in self.programs}
        self.here: set[bytes] = set()
        self.roster = Roster()
        self.now = 0.0
        self.n_brokers = self.n_calls = 0
        self.commands: dict[bytes, str] = {}
        self.begun: dict[bytes, list[str]] = {}
        self.new_broker()
        for program in self.programs[1:]:  # the first one only calls, if it does not offer, too
            program.offer = Offer("s", COMMANDS[:2])
        self.let_flow()

    # --- The broker ---

    def new_broker(self) -> None:
        self.n_brokers += 1
        self.epoch = f"e{self.n_brokers}"
        self.here.clear()
        former = [FormerWorker(p, name, h) for (name, p), h in sorted(self.roster.rows.items())]
        self.services = Services(
            self.epoch,
            self.tell,
            self.here.__contains__,
            lambda peer, service: True,
            self.roster,
            former,
            self.now,
        )

    def tell(
        self, peers: Sequence[bytes], body: PushBody | Accepted, request_id: int = 0, /
    ) -> None:
        assert not isinstance(body, Accepted), "nothing here is an answer to a request"
        assert not request_id
        if isinstance(body, Abort):
            assert not any(map(self.is_awaited_by(body.call), self.programs))
        for peer in peers:
            if peer in self.here:
                self.by_peer[peer].pushes.append(body)

    def is_awaited_by(self, call: bytes) -> Callable[[Program], bool]:
        return lambda program: (
            program.is_alive
            and call in program.waiting
            and self.now < program.waiting[call].deadline
        )

    def hear(self, program: Program, ask: RequestBody) -> Refused | None:
        """As the switchboard does."""
        match ask:
            case Call():
                reply = self.services.call(program.peer, "somebody", ask, self.now)
                return reply if isinstance(reply, Refused) else None
            case Offer():
                self.services.offer(program.peer, ask, program.hello)
            case Withdraw():
                self.services.withdraw(program.peer, ask.service)
            case Hold():
                self.services.hold(program.peer, ask.calls)
            case Cancel():
                self.services.cancel(program.peer, ask.call)
            case Outcome():
                self.services.outcome(program.peer, ask)
        return None

    def is_alive(self, hello: protocol.Hello) -> bool:
        return self.programs[hello.lease].is_alive

    # --- What may happen ---

    def one(self, which: int, claim: Callable[[Program], object]) -> Program:
        found = [program for program in self.programs if claim(program)]
        return found[which % len(found)]

    @rule(which=which, commands=st.sets(st.integers(0, 2), min_size=1), capacity=st.integers(1, 2))
    @precondition(someone(lambda p: p.is_alive))
    def offer(self, which: int, commands: set[int], capacity: int) -> None:
        program = self.one(which, lambda p: p.is_alive)
        program.offer = Offer("s", [COMMANDS[index] for index in commands], capacity)
        program.to_broker.append(program.offer)

    @rule(which=which)
    @precondition(someone(lambda p: p.is_alive and p.offer))
    def withdraw(self, which: int) -> None:
        program = self.one(which, lambda p: p.is_alive and p.offer)
        program.offer = None
        program.to_broker.append(Withdraw("s"))

    @rule(which=which, command=st.sampled_from([0, 0, 0, 1, 2]), how=hows)
    @precondition(someone(lambda p: p.is_alive))
    def call(self, which: int, command: int, how: str) -> None:
        program = self.one(which, lambda p: p.is_alive)
        self.n_calls += 1
        call, name = b"%d" % self.n_calls, COMMANDS[command].name
        self.commands[call] = name
        program.waiting[call] = Waiting(call, name, self.now + TIMEOUT_S)
        program.to_broker.append(program.waiting[call])
        if len(program.to_broker) == 1 and can_send(program):
            self.send_one(program, how)

    @rule(which=which, index=which)
    @precondition(someone(lambda p: p.is_alive and p.waiting))
    def cancel(self, which: int, index: int) -> None:
        program = self.one(which, lambda p: p.is_alive and p.waiting)
        call = sorted(program.waiting)[index % len(program.waiting)]
        del program.waiting[call]
        program.to_broker.append(Cancel(call))

    def say_hello(self, program: Program) -> None:
        if program.peer in self.here:
            self.services.met_again(program.peer, program.hello)
        self.here.add(program.peer)
        program.greeted()

    @rule(which=which, how=hows)
    @precondition(someone(can_send))
    def send(self, which: int, how: str) -> None:
        self.send_one(self.one(which, can_send), how)

    def send_one(self, program: Program, how: str) -> None:
        ask = program.to_broker[0]
        if program.peer not in self.here:
            if isinstance(ask, Outcome):  # nobody answers that
                program.to_broker.popleft()
            else:  # it is told so: "no_hello"
                program.is_known = False
            return
        if isinstance(ask, Outcome):
            program.to_broker.popleft()
            if how == "lost":  # and with it the line
                self.say_hello(program)
            else:
                self.hear(program, ask)
            return
        if isinstance(ask, Waiting) and ask.call not in program.waiting:
            program.to_broker.popleft()  # given up meanwhile
            return
        body = ask.request(self.epoch, self.now) if isinstance(ask, Waiting) else ask
        reply = None if how == "lost" else self.hear(program, body)
        if how != "heard":
            return
        program.to_broker.popleft()
        if isinstance(ask, Waiting):
            if isinstance(reply, Accepted):
                ask.worker = reply.worker or ask.worker
            elif isinstance(reply, Refused) and reply.code == "pending":
                program.to_broker.append(ask)
            else:
                program.waiting.pop(ask.call, None)

    @rule(which=which, are_lost=st.lists(st.sampled_from([False, False, True]), min_size=1))
    @precondition(someone(can_receive))
    def receive(self, which: int, are_lost: list[bool]) -> None:
        program = self.one(which, can_receive)
        for is_lost in are_lost:
            if can_receive(program):
                self.receive_one(program, is_lost)

    def receive_one(self, program: Program, is_lost: bool) -> None:
        body = program.pushes.popleft()
        if is_lost:
            program.gap = True
        elif call := program.take(body):
            self.begun.setdefault(call, []).append(f"{program.peer!r} under {self.epoch}")

    @rule(which=which)
    @precondition(someone(lambda p: p.is_known and p.gap))
    def notice_gap(self, which: int) -> None:
        self.one(which, lambda p: p.is_known and p.gap).notice_gap()

    @rule(which=which, index=which)
    @precondition(someone(lambda p: p.is_alive and p.jobs))
    def finish(self, which: int, index: int) -> None:
        program = self.one(which, lambda p: p.is_alive and p.jobs)
        program.finish(index % len(program.jobs))

    @rule(is_all=st.booleans())
    def let_hellos_flow(self, is_all: bool) -> None:
        for program in self.programs:
            if program.is_alive and not program.is_known:
                self.say_hello(program)
            for _ in range(len(program.to_broker) if is_all else 2):
                if can_send(program):
                    self.send_one(program, "heard")

    @rule(lost=st.sampled_from([(), (), Finished, Execute]))
    def let_flow(self, lost: Any = ()) -> None:
        """All that is under way arrives, but for pushes of a kind; who is not known says hello."""
        for program in self.programs:
            if program.is_alive and not program.is_known:
                self.say_hello(program)
            program.notice_gap()
            for _ in range(len(program.to_broker)):
                if can_send(program):
                    self.send_one(program, "heard")
        for program in self.programs:
            while can_receive(program):
                self.receive_one(program, isinstance(program.pushes[0], lost))

    @rule()
    def work(self) -> None:
        """All that is under way is done, and the broker hears of it."""
        for program in self.programs:
            while program.is_alive and program.jobs:
                program.finish(0)
            while can_send(program) and isinstance(program.to_broker[0], Outcome):
                self.send_one(program, "heard")
                if not program.is_known:
                    break

    @rule(which=which, what=st.sampled_from(["line", "line", "silence", "death", "broker"]))
    @precondition(someone(lambda p: p.is_alive))
    def fail(self, which: int, what: str) -> None:
        program = self.one(which, lambda p: p.is_alive)
        match what:
            case "line":
                self.say_hello(program)
            case "silence":  # the broker forgets it, though it lives
                program.is_known = False
                self.forget(program)
            case "death" if sum(p.is_alive for p in self.programs) > 2:
                program.is_alive = False
            case "broker":
                self.new_broker()
                for each in self.programs:
                    each.is_known = False

    def forget(self, program: Program) -> None:
        if program.peer in self.here:
            self.here.discard(program.peer)
            self.services.forget(program.peer, may_come_back=program.is_alive)

    @rule(step_s=st.sampled_from([0.0, 0.25, 1.0]))
    def tick(self, step_s: float) -> None:
        self.now += step_s
        for program in self.programs:
            if not program.is_alive:
                self.forget(program)
        self.services.expire(self.now, self.is_alive)

    # --- What holds all the time ---

    @invariant()
    def nothing_is_done_twice(self) -> None:
        twice = {
            call: who
            for call, who in self.begun.items()
            if len(who) > 1 and self.commands[call] != "again"
        }
        assert not twice

    @invariant()
    def the_table_adds_up(self) -> None:
        table = self.services
        calls = table._calls
        assert table._n_calls == Counter(peer for call in calls.values() for peer in call.callers)
        assert set(table._n_calls) <= self.here
        waiting = {call for service in table._services.values() for call in service.waiting}
        assert waiting == {
            call for call, each in calls.items() if each.worker is None and not each.is_in_doubt
        }
        assert {each.worker for each in calls.values()} <= self.here | {None}
        for name, service in table._services.items():
            assert set(service.workers) <= self.here
            for peer, worker in service.workers.items():
                assert (name, peer) in self.roster.rows
                assert worker.running == {
                    call for call, each in calls.items() if each.worker == peer
                }
            # Nobody is idle while there is something for him to do.
            assert not any(
                calls[call].request.command in worker.commands
                and len(worker.running) < worker.capacity
                for call in service.waiting
                for worker in service.workers.values()
            )

    # --- In the end ---

    def quieten(self) -> None:
        """Let everybody say and hear everything, and do what is to be done."""
        self.let_flow()
        for program in self.programs:
            while program.is_alive and program.jobs:
                program.finish(0)

    def teardown(self) -> None:
        for step_s in (0.0, 0.0, FORMER_S, 0.0, SETTLED_S, 0.0, 0.0, 0.0, 0.0):
            self.quieten()
            self.tick(step_s)
            self.nothing_is_done_twice()
            self.the_table_adds_up()
        for program in self.programs:
            if program.is_alive:
                assert not program.waiting, "somebody was never told"
                assert not program.to_broker
        assert not self.services.is_busy
        assert not self.services._n_calls
        for info in self.services.list():
            assert (info.n_running, info.n_waiting) == (0, 0)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
