"""Services without sockets: who is given which call, and that nothing is done twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import pyhub.hub.broker.services as services_module
from pyhub.errors import InvalidName
from pyhub.hub import protocol
from pyhub.hub.broker.comebacks import FORMER_S, FormerWorker, worker_id
from pyhub.hub.broker.holders import Holders
from pyhub.hub.broker.services import Services
from pyhub.hub.protocol import (
    Abort,
    Accepted,
    Call,
    CommandInfo,
    Done,
    Execute,
    Failure,
    Finished,
    Offer,
    Outcome,
    Progress,
    Progressed,
    PushBody,
    Refused,
)

A, B, C = b"caller A", b"caller B", b"caller C"
V, W, X = b"worker V", b"worker W", b"worker X"


def hello(peer: bytes) -> protocol.Hello:
    return protocol.Hello(protocol.PROTOCOL, "here", 42, 1, "/dev/shm/leases", peer.decode())


def alive(_: protocol.Hello) -> bool:
    return True


class Rows:
    """Who works for what, as the broker's file has it."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bytes], protocol.Hello] = {}
        self.is_full = False

    def keep_worker(self, service: str, peer: bytes, hello: protocol.Hello) -> None:
        if self.is_full:
            raise OSError("no room")
        self.rows[service, peer] = hello

    def drop_worker(self, service: str, peer: bytes) -> None:
        self.rows.pop((service, peer), None)


class Table:
    """A broker's services; what it pushes is a list."""

    def __init__(self, rows: Rows | None = None, epoch: str = "e1", now: float = 0.0) -> None:
        self.rows = rows or Rows()
        self.here = {A, B, C, V, W, X}
        self.pushed: list[tuple[bytes, PushBody]] = []
        former = [FormerWorker(p, name, h) for (name, p), h in sorted(self.rows.rows.items())]
        self.no_workers: set[tuple[bytes, str]] = set()  # who may not offer what
        self.services = Services(
            epoch, self.tell, self.here.__contains__, self.may_offer, self.rows, former, now
        )

    def may_offer(self, peer: bytes, service: str) -> bool:
        return (peer, service) not in self.no_workers

    def tell(
        self, peers: Sequence[bytes], body: PushBody | Accepted, request_id: int = 0, /
    ) -> None:
        assert not isinstance(body, Accepted), "nothing here is an answer to a request"
        assert not request_id
        self.pushed += [(peer, body) for peer in peers]

    def taken(self) -> list[tuple[bytes, PushBody]]:
        """Return what was pushed since the last look."""
        pushed, self.pushed = self.pushed, []
        return pushed

    def executed(self) -> list[tuple[bytes, bytes]]:
        """Return who was given which call since the last look, whatever else was pushed."""
        return [(peer, body.call) for peer, body in self.taken() if isinstance(body, Execute)]

    def given(self) -> list[tuple[bytes, bytes]]:
        """Return who was given which call since the last look; nothing else was pushed."""
        given = []
        for peer, body in self.taken():
            assert isinstance(body, Execute)
            given.append((peer, body.call))
        return given

    def offer(self, peer: bytes, *commands: str, service: str = "s", **fields: Any) -> None:
        infos = [CommandInfo(name) for name in commands or ("do",)]
        offer = Offer(service, infos, **fields)
        assert self.services.offer(peer, offer, hello(peer)) == Done()

    def call(
        self, peer: bytes, call_id: bytes, now: float = 0.0, timeout_s: float = 10.0, **fields: str
    ) -> Accepted | Refused:
        service, command = fields.pop("service", "s"), fields.pop("command", "do")
        body = Call(call_id, service, command, b"\x80", timeout_s, **fields)
        reply = self.services.call(peer, f"source of {peer!r}", body, now)
        assert reply is not None
        return reply

    def done(self, peer: bytes, call_id: bytes, value: bytes = b"\x01") -> None:
        self.services.outcome(peer, Outcome(call_id, value))

    def hold(self, peer: bytes, *calls: bytes) -> None:
        self.services.hold(peer, calls)

    def leave(self, peer: bytes, may_come_back: bool = False) -> None:
        """As the switchboard has it: who is told of a death is here, the dead is not."""
        self.here.discard(peer)
        self.services.forget(peer, may_come_back)

    def is_empty(self) -> bool:
        table = self.services
        return not table.is_busy and not table._n_calls and not table.workers_at_work()

    def numbers(self, service: str = "s") -> tuple[int, int]:
        """Return how many calls of the service run, and how many wait."""
        (info,) = [info for info in self.services.list() if info.name == service]
        return info.n_running, info.n_waiting


@pytest.fixture
def table() -> Table:
    return Table()


def after(table: Table, now: float = 100.0) -> Table:
    """Return the table of the broker that comes after that one's."""
    return Table(table.rows, "e2", now)


@pytest.fixture
def next_table(table: Table) -> Table:
    """A new broker, where V and W worked for the one before."""
    table.offer(V)
    table.offer(W)
    return after(table)


def failure_of(body: PushBody) -> str:
    assert isinstance(body, Finished)
    assert body.failure is not None
    assert body.value is None
    return body.failure.code


# --- Offers ---


def test_an_offered_command_is_executed_and_its_outcome_reaches_the_caller(table: Table) -> None:
    table.offer(W)
    assert table.call(A, b"1") == Accepted(worker_id(W))
    assert table.taken() == [(W, Execute(b"1", "s", "do", b"\x80", 10.0, f"source of {A!r}"))]
    table.done(W, b"1", b"\x2a")
    assert table.taken() == [(A, Finished(b"1", b"\x2a"))]
    assert table.is_empty()


def test_services_are_listed_by_name_with_all_commands_and_workers(table: Table) -> None:
    table.offer(W, "b", service="z", capacity=2)
    table.offer(W, "a", "b")
    table.offer(V, "c", capacity=3)
    last, first = table.services.list()[::-1]
    assert (first.name, last.name) == ("s", "z")
    assert {command.name for command in first.commands} == {"a", "b", "c"}
    assert sorted(first.workers) == sorted([worker_id(V), worker_id(W)])
    assert (first.capacity, last.capacity) == (4, 2)
    assert (table.services.n_services(W), table.services.n_services(V)) == (2, 1)
    assert W.hex() not in str(first.workers)  # an address is its program's secret


def test_an_offer_that_is_repeated_changes_nothing_but_what_it_says_anew(table: Table) -> None:
    for _ in range(3):
        table.offer(W, "do", capacity=2)
    table.call(A, b"1")
    table.offer(W, "do", "more", capacity=1)
    (info,) = table.services.list()
    assert [command.name for command in info.commands] == ["do", "more"]
    assert (info.capacity, info.n_running, info.n_waiting) == (1, 1, 0)


@pytest.mark.parametrize("name", ["../x", "", "a b", "-x"])
def test_an_illegal_name_is_not_offered(table: Table, name: str) -> None:
    for offer in (Offer(name, [CommandInfo("do")]), Offer("s", [CommandInfo(name)])):
        with pytest.raises(InvalidName):
            table.services.offer(W, offer, hello(W))
    assert table.services.list() == []
    assert not table.rows.rows


def test_an_offer_that_cannot_be_written_down_is_not_taken(table: Table) -> None:
    table.rows.is_full = True
    with pytest.raises(OSError, match="no room"):
        table.services.offer(W, Offer("s", [CommandInfo("do")]), hello(W))
    assert table.services.list() == []


def test_unknown_services_and_commands_are_refused_and_what_there_is_is_named(
    table: Table,
) -> None:
    table.offer(W, "do", "stop")
    for service, command, code, named in (
        ("t", "do", "no_service", "there are: s"),
        ("s", "go", "no_command", "it has: do, stop"),
    ):
        reply = table.call(A, b"1", service=service, command=command)
        assert isinstance(reply, Refused)
        assert reply.code == code
        assert named in reply.reason
    assert table.is_empty()


# --- Sharing the work ---


def test_calls_go_to_the_worker_that_is_most_free(table: Table) -> None:
    table.offer(W, capacity=1)
    table.offer(V, capacity=3)
    for number in range(4):
        table.call(A, b"%d" % number)
    assert Counter(peer for peer, _ in table.given()) == {V: 3, W: 1}
    assert table.call(A, b"waits") == Accepted("")
    assert table.given() == []


def test_of_workers_that_are_equally_free_each_has_its_turn(table: Table) -> None:
    for peer in (V, W, X):
        table.offer(peer)
    turns = []
    for number in range(6):
        call_id = b"%d" % number
        table.call(A, call_id)
        ((peer, _),) = table.given()
        turns.append(peer)
        table.done(peer, call_id)
        table.taken()
    assert turns == [V, W, X] * 2


def test_no_worker_has_more_calls_than_it_said(table: Table) -> None:
    table.offer(W, capacity=2)
    for number in range(5):
        table.call(A, b"%d" % number)
    assert table.given() == [(W, b"0"), (W, b"1")]
    assert table.numbers() == (2, 3)
    table.done(W, b"1")
    assert table.executed() == [(W, b"2")]
    assert table.numbers() == (2, 2)


def test_a_call_goes_only_to_workers_that_have_its_command(table: Table) -> None:
    table.offer(V, "see")
    table.offer(W, "see", "do")
    for number in range(2):
        table.call(A, b"do%d" % number)
        table.call(A, b"see%d" % number, command="see")
    # V is free, and W busy: what only W can do waits, what comes after it does not.
    assert table.given() == [(W, b"do0"), (V, b"see0")]
    table.done(V, b"see0")
    assert table.executed() == [(V, b"see1")]
    table.done(W, b"do0")
    assert table.executed() == [(W, b"do1")]


def test_a_worker_that_comes_later_takes_what_waits(table: Table) -> None:
    table.offer(V)
    table.call(A, b"0")
    assert table.call(A, b"1") == Accepted("")
    table.given()
    table.offer(W)
    assert table.given() == [(W, b"1")]


# --- Waiting, expiry, cancelling ---


def test_a_call_that_nobody_begins_in_time_expires_and_is_never_begun(table: Table) -> None:
    table.offer(W)
    table.call(A, b"0")
    table.call(A, b"1", timeout_s=2.0)
    table.given()
    table.services.expire(1.9, alive)
    assert table.taken() == []
    table.services.expire(2.0, alive)
    ((peer, body),) = table.taken()
    assert (peer, failure_of(body)) == (A, "expired")
    table.services.expire(100.0, alive)  # what has begun is its worker's
    table.services.expire(101.0, alive)
    assert table.taken() == [(W, Abort(b"0"))]  # who hears it once
    assert table.numbers() == (1, 0)
    table.done(W, b"0")
    assert table.taken() == [(A, Finished(b"0", b"\x01"))]


def test_a_cancelled_call_that_waits_is_never_begun(table: Table) -> None:
    table.offer(W)
    table.call(A, b"0")
    table.call(A, b"1")
    table.given()
    table.services.cancel(A, b"1")
    ((peer, body),) = table.taken()
    assert (peer, failure_of(body)) == (A, "cancelled")
    table.done(W, b"0")
    assert table.taken() == [(A, Finished(b"0", b"\x01"))]
    assert table.is_empty()


def test_of_a_cancelled_call_that_runs_its_worker_is_told(table: Table) -> None:
    table.offer(W)
    table.call(A, b"0")
    table.given()
    table.services.cancel(A, b"0")
    assert table.taken() == [(W, Abort(b"0"))]
    assert table.numbers() == (1, 0)
    failure = Failure("cancelled", "nobody waits")
    table.services.outcome(W, Outcome(b"0", None, failure))
    assert table.taken() == [(A, Finished(b"0", None, failure))]
    assert table.is_empty()


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "waiting"])
def test_one_of_two_callers_does_not_cancel_for_the_other(table: Table, is_running: bool) -> None:
    table.offer(W, capacity=2 if is_running else 1)
    table.call(C, b"first")
    table.call(A, b"0")
    table.call(B, b"0")
    table.taken()
    table.services.cancel(A, b"0")
    table.services.cancel(A, b"0")
    assert table.taken() == []
    table.done(W, b"first")
    table.done(W, b"0")
    told = [push for push in table.taken() if isinstance(push[1], Finished)]
    assert told == [(C, Finished(b"first", b"\x01")), (B, Finished(b"0", b"\x01"))]
    assert table.is_empty()


def test_nobody_cancels_anothers_call(table: Table) -> None:
    table.offer(W)
    table.call(A, b"0")
    table.call(A, b"1")
    table.given()
    for call_id in (b"0", b"1", b"unknown"):
        table.services.cancel(B, call_id)
    assert table.taken() == []
    assert table.numbers() == (1, 1)


def test_progress_and_outcome_are_taken_only_from_the_worker_that_has_the_call(
    table: Table,
) -> None:
    table.offer(W)
    table.offer(V, "see")
    table.call(A, b"0")
    table.call(B, b"0")
    table.given()
    for peer in (V, A, b"stranger"):
        table.services.progress(peer, Progress(b"0", b"\x09"))
        table.done(peer, b"0")
    assert table.taken() == []
    table.services.progress(W, Progress(b"0", b"\x01"))
    assert table.taken() == [(A, Progressed(b"0", b"\x01")), (B, Progressed(b"0", b"\x01"))]
    table.done(W, b"0")
    table.done(W, b"0")  # repeated
    table.services.progress(W, Progress(b"0", b"\x02"))  # late
    assert table.taken() == [(A, Finished(b"0", b"\x01")), (B, Finished(b"0", b"\x01"))]


# --- Workers that go ---


def test_calls_of_a_worker_that_died_fail_at_once_and_others_calls_go_on(table: Table) -> None:
    table.offer(V)
    table.offer(W)
    for number in range(4):
        table.call(A, b"%d" % number)
    assert table.given() == [(V, b"0"), (W, b"1")]
    table.leave(V)
    ((peer, body),) = table.taken()
    assert (peer, failure_of(body)) == (A, "died")
    assert table.numbers() == (1, 2)
    for number in (1, 2, 3):
        table.done(W, b"%d" % number)
    told = [body.call for _, body in table.taken() if isinstance(body, Finished)]
    assert told == [b"1", b"2", b"3"]
    assert table.is_empty()


def test_what_waits_for_the_last_worker_fails_with_it_and_is_known_not_to_have_begun(
    table: Table,
) -> None:
    table.offer(W)
    table.call(A, b"0")
    table.call(B, b"1")
    table.given()
    table.leave(W)
    told = dict(table.taken())
    assert {peer: failure_of(body) for peer, body in told.items()} == {A: "died", B: "died"}
    assert "had not begun" in str(told[B])
    assert "cannot be told" in str(told[A])
    assert table.is_empty()
    assert table.services.list() == []


def test_a_worker_that_withdraws_ends_what_it_has_and_gets_no_more(table: Table) -> None:
    table.offer(V)
    table.offer(W)
    table.call(A, b"0")
    assert table.given() == [(V, b"0")]
    assert table.services.withdraw(V, "s")
    assert not table.services.withdraw(V, "s")
    assert not table.services.withdraw(V, "unknown")
    table.call(A, b"1")
    assert table.call(A, b"2") == Accepted("")
    assert table.given() == [(W, b"1")]
    table.done(V, b"0")
    assert table.taken() == [(A, Finished(b"0", b"\x01"))]


def test_what_nobody_offers_any_more_fails_at_once(table: Table) -> None:
    table.offer(V, "do", "see")
    table.call(A, b"0")
    table.call(A, b"1", command="see")
    table.given()
    table.offer(V, "do")
    ((_, body),) = table.taken()
    assert (failure_of(body), body.call) == ("died", b"1")  # type: ignore[union-attr]


def test_a_dead_callers_waiting_calls_are_dropped_and_running_ones_aborted_and_end_unheard(
    table: Table,
) -> None:
    table.offer(W)
    for call_id in (b"0", b"1"):
        table.call(A, call_id)
    table.call(A, b"2")
    table.call(B, b"2")
    table.given()
    table.leave(A)
    assert table.taken() == [(W, Abort(b"0"))]
    assert table.numbers() == (1, 1)
    table.done(W, b"0")
    assert table.given() == [(W, b"2")]
    table.done(W, b"2")
    assert table.taken() == [(B, Finished(b"2", b"\x01"))]
    assert table.is_empty()


def test_a_program_may_call_its_own_service_and_die_of_it(table: Table) -> None:
    table.offer(W)
    table.call(W, b"0")
    table.call(W, b"1")
    table.leave(W)
    assert table.is_empty()


# --- Nobody waits any more ---


@pytest.mark.parametrize("worker_is_free", [True, False])
def test_a_call_with_no_time_left_is_never_begun(table: Table, worker_is_free: bool) -> None:
    table.offer(W)
    if not worker_is_free:
        table.call(B, b"0")
        table.given()
    table.call(A, b"1", timeout_s=0.0)
    ((peer, body),) = table.taken()
    assert (peer, failure_of(body)) == (A, "expired")
    table.done(W, b"0")
    assert not table.executed()
    assert table.is_empty()


def test_a_call_with_no_time_left_is_still_asked_of_who_has_it(table: Table) -> None:
    table.offer(W)
    table.call(A, b"0")
    table.given()
    assert table.call(A, b"0", timeout_s=0.0) == Accepted(worker_id(W))  # it runs
    assert table.taken() == []
    table.done(W, b"0")
    table.taken()
    assert table.call(A, b"0", timeout_s=0.0) == Accepted(worker_id(W))  # it was done
    assert table.given() == [(W, b"0")]
    table.hold(V, b"1")
    table.call(A, b"1", timeout_s=0.0)
    assert table.given() == [(V, b"1")]


@pytest.mark.parametrize("worker", ["", worker_id(W)], ids=["no worker", "a worker"])
def test_a_call_in_doubt_with_no_time_left_is_not_begun_and_said_to_be_in_doubt(
    table: Table, worker: str
) -> None:
    table.offer(W)
    new = after(table)
    new.offer(W)
    new.call(A, b"0", timeout_s=0.0, epoch="e1", worker=worker)
    ((_, body),) = new.taken()
    assert failure_of(body) == "interrupted"
    assert new.is_empty()


def test_a_worker_hears_once_that_a_calls_time_is_over(table: Table) -> None:
    table.offer(W)
    table.call(A, b"0", timeout_s=2.0)
    table.given()
    table.services.expire(1.9, alive)
    assert table.taken() == []
    for now in (2.0, 2.25):
        table.services.expire(now, alive)
    table.services.cancel(A, b"0")
    assert table.taken() == [(W, Abort(b"0"))]
    table.done(W, b"0")
    assert table.taken() == [(A, Finished(b"0", b"\x01"))]


def test_a_call_is_wanted_for_as_long_as_the_most_patient_caller_waits(table: Table) -> None:
    table.offer(W)
    table.call(A, b"0", timeout_s=2.0)
    table.call(B, b"0", timeout_s=20.0)
    table.given()
    table.services.expire(19.0, alive)
    assert table.taken() == []
    table.services.expire(20.0, alive)
    assert table.taken() == [(W, Abort(b"0"))]


def test_a_worker_is_told_when_the_last_caller_is_gone_not_before(table: Table) -> None:
    table.offer(W)
    for peer in (A, B):
        table.call(peer, b"0")
    table.given()
    table.leave(A)
    assert table.taken() == []
    table.leave(B)
    assert table.taken() == [(W, Abort(b"0"))]


def test_a_silent_caller_that_comes_back_in_time_keeps_its_call(table: Table) -> None:
    table.offer(W)
    table.call(A, b"0", timeout_s=10.0)
    table.given()
    table.leave(A, may_come_back=True)
    table.services.expire(9.0, alive)
    table.here.add(A)
    assert table.call(A, b"0", 9.0, timeout_s=1.0) == Accepted(worker_id(W))
    assert table.taken() == []
    table.done(W, b"0")
    assert table.taken() == [(A, Finished(b"0", b"\x01"))]


def test_a_silent_callers_call_is_aborted_when_its_time_is_over(table: Table) -> None:
    table.offer(W)
    for peer in (A, B, C):
        table.call(peer, b"0", timeout_s=10.0)
    table.given()
    table.leave(A, may_come_back=True)
    table.leave(B)
    table.services.cancel(C, b"0")
    assert table.taken() == []  # A may come back
    table.services.expire(10.0, alive)
    assert table.taken() == [(W, Abort(b"0"))]


def test_a_caller_that_came_back_and_then_died_waits_no_more(table: Table) -> None:
    table.offer(W)
    table.call(A, b"0")
    table.given()
    table.leave(A, may_come_back=True)
    table.here.add(A)
    table.call(A, b"0")
    table.leave(A)
    assert table.taken() == [(W, Abort(b"0"))]


def test_an_abort_that_was_lost_is_said_again(table: Table) -> None:
    table.offer(W, capacity=2)
    for call_id in (b"0", b"1"):
        table.call(A, call_id)
    table.services.cancel(A, b"0")
    table.taken()
    table.hold(W, b"0", b"1")  # it lost pushes, and says what it has
    assert table.taken() == [(W, Abort(b"0"))]


# --- What may be done twice ---


def offer_twice(table: Table, *peers: bytes) -> None:
    for peer in peers:
        offer = Offer("s", [CommandInfo("do", is_idempotent=True)])
        assert table.services.offer(peer, offer, hello(peer)) == Done()


def test_what_may_be_done_twice_is_done_by_another_worker_when_the_first_one_dies(
    table: Table,
) -> None:
    offer_twice(table, V, W)
    for call_id in (b"0", b"1"):
        table.call(A, call_id)
    assert table.given() == [(V, b"0"), (W, b"1")]
    table.leave(V)
    assert table.taken() == []
    table.done(W, b"1")
    assert table.executed() == [(W, b"0")]
    table.done(W, b"0")
    assert table.taken() == [(A, Finished(b"0", b"\x01"))]
    assert table.is_empty()


def test_what_may_be_done_twice_dies_with_the_last_worker(table: Table) -> None:
    offer_twice(table, W)
    table.call(A, b"0")
    table.given()
    table.leave(W)
    ((_, body),) = table.taken()
    assert failure_of(body) == "died"
    assert "cannot be told" in str(body)
    assert table.is_empty()


@pytest.mark.parametrize("comes_back", [True, False])
def test_what_may_be_done_twice_waits_for_a_worker_that_is_expected_back(
    table: Table, comes_back: bool
) -> None:
    offer_twice(table, V, W)
    table.call(A, b"0")
    assert table.given() == [(V, b"0")]
    table.services.met_again(W, hello(W))  # its line broke
    table.leave(V)
    assert table.taken() == []
    if comes_back:
        offer_twice(table, W)
        assert table.given() == [(W, b"0")]
    else:
        table.services.expire(FORMER_S, alive)
        ((_, body),) = table.taken()
        assert failure_of(body) == "died"
        assert table.is_empty()


def test_what_waits_to_be_done_again_ends_with_its_time(table: Table) -> None:
    offer_twice(table, V, W)
    table.call(A, b"0", timeout_s=2.0)
    table.call(A, b"1", timeout_s=20.0)
    table.given()
    table.leave(V)
    table.services.expire(2.0, alive)
    ((_, body),) = table.taken()
    assert failure_of(body) == "died"  # not "expired": it may have begun
    table.services.cancel(A, b"1")
    assert table.taken() == [(W, Abort(b"1"))]


@pytest.mark.parametrize("how", ["cancelled", "nobody waits", "too late"])
def test_what_nobody_waits_for_is_not_done_again(table: Table, how: str) -> None:
    offer_twice(table, V, W)
    table.call(A, b"0", timeout_s=2.0)
    if how == "cancelled":
        table.services.cancel(A, b"0")
    elif how == "nobody waits":
        table.leave(A)
    else:
        table.services.expire(2.0, alive)
    table.taken()
    table.leave(V)
    assert table.executed() == []
    assert table.is_empty()


def test_a_command_that_ends_its_workers_does_not_end_them_all(table: Table) -> None:
    offer_twice(table, V, W, X, C)
    table.call(A, b"0")
    for n_left in (2, 1, 0):
        ((peer, _),) = table.executed()
        table.leave(peer)
        assert bool(n_left) == table.services.is_busy
    ((_, body),) = table.taken()
    assert failure_of(body) == "died"
    (info,) = table.services.list()
    assert len(info.workers) == 1


def test_what_may_be_done_twice_and_is_asked_again_of_a_dead_worker_is_done_by_another(
    table: Table,
) -> None:
    offer_twice(table, V, W)
    table.call(A, b"0")
    table.done(V, b"0")
    table.taken()
    table.leave(V)
    table.call(A, b"0")
    assert table.given() == [(W, b"0")]


def test_what_may_be_done_twice_is_done_by_another_where_its_known_worker_does_not_come_back(
    next_table: Table,
) -> None:
    offer_twice(next_table, V)
    next_table.call(A, b"0", 100.0, epoch="e1", worker=worker_id(W))
    assert next_table.given() == []
    next_table.services.expire(100.1, lambda hello: hello.name != W.decode())
    assert next_table.given() == [(V, b"0")]


# --- Limits ---


def test_what_others_say_to_hold_pushes_nobodys_calls_out(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Holders, "MAX_PER_PROGRAM", 3)
    monkeypatch.setattr(Holders, "MAX_OF_GONE", 2)
    table.hold(W, b"0")
    for number in range(5):
        table.hold(V, b"V%d" % number)
    table.hold(V, b"V3")
    holders = table.services._holders
    assert [holders.get(b"V%d" % number) for number in range(5)] == [None, None, V, V, V]
    table.leave(V)  # it is known for a while yet
    assert [holders.get(b"V%d" % number) for number in range(5)] == [None, None, None, V, V]
    assert holders.get(b"0") == W
    table.call(A, b"0")
    assert table.given() == [(W, b"0")]


def test_nobody_fills_the_brokers_memory_with_calls(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_module, "MAX_WAITING", 3)
    monkeypatch.setattr(services_module, "MAX_CALLS_PER_CALLER", 3)
    table.offer(W)
    for number in range(3):
        table.call(A, b"%d" % number)
    for peer, code in ((A, "too_many"), (B, None), (C, "busy")):
        reply = table.call(peer, b"of " + peer)
        assert (reply.code if isinstance(reply, Refused) else None) == code
    assert isinstance(table.call(A, b"1"), Accepted)  # what it has, it may ask again
    table.done(W, b"0")
    assert isinstance(table.call(A, b"more"), Accepted)


def test_a_program_offers_a_bounded_number_of_services(table: Table) -> None:
    for number in range(services_module.MAX_SERVICES_PER_PROGRAM):
        table.offer(W, service=f"s{number}")
    reply = table.services.offer(W, Offer("more", [CommandInfo("do")]), hello(W))
    assert isinstance(reply, Refused)
    assert reply.code == "too_many"
    table.offer(W, "do", "more", service="s0")
    table.offer(V, service="more")


# --- Repetitions ---


def test_a_repeated_call_is_done_once_whenever_it_comes(table: Table) -> None:
    table.offer(W)
    table.call(A, b"0")
    assert table.call(A, b"1") == Accepted("")
    assert table.call(A, b"1") == Accepted("")  # while it waits
    assert table.call(A, b"0") == Accepted(worker_id(W))  # while it runs
    assert table.given() == [(W, b"0")]
    assert table.numbers() == (1, 1)
    table.done(W, b"0")
    table.taken()
    # After it ended its worker is asked, which does nothing twice, and answers.
    table.offer(V)
    assert table.call(A, b"0") == Accepted(worker_id(W))
    assert table.given() == [(W, b"0")]
    table.done(W, b"0")
    assert table.taken() == [(A, Finished(b"0", b"\x01"))]


def test_a_repeated_call_of_a_worker_that_died_is_not_done_by_another_one(table: Table) -> None:
    table.offer(V)
    table.call(A, b"0")
    table.offer(W)
    table.leave(V)
    table.taken()
    table.call(A, b"0")
    ((_, body),) = table.taken()
    assert failure_of(body) == "died"
    assert table.is_empty()


def test_another_command_under_a_known_id_is_refused(table: Table) -> None:
    table.offer(W, "do", "see")
    table.call(A, b"0")
    table.given()
    reply = table.call(B, b"0", command="see")
    assert isinstance(reply, Refused)
    assert reply.code == "bad_message"
    assert table.taken() == []


# --- What a worker did not hear of ---


def test_a_worker_is_given_again_what_it_does_not_hold(table: Table) -> None:
    table.offer(W, capacity=3)
    for call_id in (b"0", b"1", b"2"):
        table.call(A, call_id)
    table.given()
    table.hold(W, b"1", b"of long ago")
    assert table.given() == [(W, b"0"), (W, b"2")]
    table.hold(W, b"0", b"1", b"2")
    assert table.given() == []
    table.hold(V)  # nothing of another one's
    assert table.given() == []


def test_a_worker_that_is_asked_again_and_does_not_hear_it_is_asked_once_more(
    table: Table,
) -> None:
    table.offer(W)
    table.call(A, b"0")
    table.done(W, b"0")
    table.taken()
    table.call(A, b"0")  # the outcome was lost
    assert table.given() == [(W, b"0")]  # and so is this
    table.hold(W, b"0")  # done, or under way: it does not say
    assert table.given() == [(W, b"0")]


def test_a_worker_whose_line_broke_goes_on_with_its_calls(table: Table) -> None:
    """Nothing is lost, and nothing told to be, while both programs live."""
    table.offer(W, capacity=2)
    for call_id in (b"0", b"1", b"2"):
        table.call(A, call_id)
    assert table.given() == [(W, b"0"), (W, b"1")]
    table.services.met_again(W, hello(W))
    assert table.taken() == []
    assert isinstance(table.call(B, b"3"), Refused)  # pending: see below
    table.hold(W, b"0")
    table.offer(W, capacity=2)
    assert table.given() == [(W, b"0"), (W, b"1")]  # it does nothing twice
    for call_id in (b"0", b"1", b"2"):
        table.done(W, call_id)
    told = [body.call for _, body in table.taken() if isinstance(body, Finished)]
    assert told == [b"0", b"1", b"2"]
    assert table.is_empty()


def test_what_a_broken_line_swallowed_of_an_outcome_is_asked_for_again() -> None:
    table = Table()
    table.offer(W)
    table.call(A, b"1")
    assert table.given() == [(W, b"1")]
    # W is done, and said so into the line that broke: it holds the call.
    table.services.met_again(W, hello(W))
    table.hold(W, b"1")
    assert table.given() == [(W, b"1")]
    table.offer(W)
    table.done(W, b"1")
    assert table.taken() == [(A, Finished(b"1", b"\x01"))]


def test_a_worker_that_offers_anew_without_saying_what_it_holds_is_given_its_calls_again(
    table: Table,
) -> None:
    table.offer(W)
    table.call(A, b"0")
    table.given()
    table.services.met_again(W, hello(W))
    table.offer(W)
    assert table.given() == [(W, b"0")]
    table.offer(W)
    assert table.given() == []


def test_who_does_not_offer_again_after_its_line_broke_is_waited_for_and_then_not(
    table: Table,
) -> None:
    table.offer(W)
    table.call(A, b"0")
    table.call(A, b"1", timeout_s=100.0)
    table.given()
    table.services.met_again(W, hello(W))
    reply = table.call(B, b"2")
    assert isinstance(reply, Refused)
    assert reply.code == "pending"
    table.services.expire(FORMER_S - 0.1, alive)
    assert table.taken() == []
    table.services.expire(FORMER_S, alive)
    (_, body), again = table.taken()
    assert (failure_of(body), body.call) == ("died", b"1")  # type: ignore[union-attr]
    # Whether that one ever reached it, it says itself.
    assert (again[0], again[1].call) == (W, b"0")  # type: ignore[union-attr]
    reply = table.call(B, b"2")
    assert isinstance(reply, Refused)
    assert reply.code == "no_service"
    table.done(W, b"0")  # it has no such service, but it has the call
    assert table.taken() == [(A, Finished(b"0", b"\x01"))]


# --- A new broker ---


def test_a_new_broker_asks_callers_to_be_patient_until_workers_are_back(
    next_table: Table,
) -> None:
    reply = next_table.call(A, b"0", 100.0)
    assert isinstance(reply, Refused)
    assert reply.code == "pending"
    next_table.offer(W, "do")
    reply = next_table.call(A, b"0", 100.0, command="see")  # V may offer that
    assert isinstance(reply, Refused)
    assert reply.code == "pending"
    assert isinstance(next_table.call(A, b"0", 100.0), Accepted)
    next_table.services.expire(100.0 + FORMER_S, alive)
    reply = next_table.call(A, b"1", 106.0, command="see")
    assert isinstance(reply, Refused)
    assert reply.code == "no_command"


@pytest.mark.parametrize("comes_first", ["call", "hold"])
def test_who_holds_a_call_goes_on_with_it_under_a_new_broker(
    next_table: Table, comes_first: str
) -> None:
    steps: list[Callable[[], Any]] = [
        lambda: next_table.call(A, b"0", 100.0, epoch="e1"),
        lambda: next_table.hold(W, b"0"),
    ]
    for step in steps if comes_first == "call" else reversed(steps):
        step()
    # It is pushed, as it may have been done, and its outcome not heard of.
    assert next_table.given() == [(W, b"0")]
    next_table.offer(W)
    assert next_table.numbers() == (1, 0)
    next_table.offer(V)
    assert next_table.given() == []
    next_table.done(W, b"0")
    assert next_table.taken() == [(A, Finished(b"0", b"\x01"))]
    assert next_table.is_empty()


def test_who_may_not_offer_a_service_cannot_claim_its_calls(next_table: Table) -> None:
    next_table.call(A, b"0", 100.0, epoch="e1")
    next_table.no_workers.add((X, "s"))
    next_table.hold(X, b"0")
    assert next_table.given() == []
    next_table.hold(X, b"1")  # nor before they are known
    next_table.call(A, b"1", 100.0, epoch="e1")
    assert next_table.given() == []


def test_a_call_waits_for_the_worker_that_is_known_to_have_it(next_table: Table) -> None:
    next_table.call(A, b"0", 100.0, epoch="e1", worker=worker_id(W))
    next_table.offer(V)
    assert next_table.given() == []
    next_table.offer(W)
    assert next_table.given() == [(W, b"0")]


def test_a_call_whose_known_worker_does_not_come_back_has_died_with_it(next_table: Table) -> None:
    next_table.call(A, b"0", 100.0, epoch="e1", worker=worker_id(W))
    next_table.offer(V)
    next_table.services.expire(100.1, lambda hello: hello.name != W.decode())
    ((_, body),) = next_table.taken()
    assert failure_of(body) == "died"
    assert next_table.is_empty()


def test_a_call_that_nobody_is_known_to_have_waits_for_all_former_workers_then_is_done(
    next_table: Table,
) -> None:
    next_table.call(A, b"0", 100.0, epoch="e1")
    next_table.offer(V)
    assert next_table.given() == []
    next_table.offer(W)
    ((_, call_id),) = next_table.given()
    assert call_id == b"0"


@pytest.mark.parametrize("is_idempotent", [False, True])
@pytest.mark.parametrize("how", ["died", "did not come back", "left before it offered"])
def test_a_call_that_a_lost_worker_may_have_done_is_not_done_again_unless_it_may_be(
    next_table: Table, how: str, is_idempotent: bool
) -> None:
    command = CommandInfo("do", is_idempotent=is_idempotent)
    next_table.services.offer(V, Offer("s", [command]), hello(V))
    next_table.call(A, b"0", 100.0, epoch="e1")
    assert next_table.given() == []
    if how == "died":
        next_table.services.expire(100.1, lambda hello: hello.name != W.decode())
    elif how == "did not come back":
        next_table.services.expire(100.0 + FORMER_S - 0.1, alive)
        assert next_table.taken() == []
        next_table.services.expire(100.0 + FORMER_S, alive)
    else:
        next_table.leave(W)
    if is_idempotent:
        assert next_table.given() == [(V, b"0")]
    else:
        ((_, body),) = next_table.taken()
        assert failure_of(body) == "interrupted"
        assert next_table.is_empty()


def test_a_call_in_doubt_that_is_cancelled_or_too_old_is_not_said_not_to_have_begun(
    next_table: Table,
) -> None:
    for call_id in (b"0", b"1"):
        next_table.call(A, call_id, 100.0, timeout_s=1.0, epoch="e1")
    next_table.services.cancel(A, b"0")
    next_table.services.expire(101.0, alive)
    told = [body for _, body in next_table.taken()]
    assert [failure_of(body) for body in told] == ["cancelled", "interrupted"]
    assert all("cannot be told" in str(body) for body in told)
    next_table.offer(V)
    next_table.offer(W)
    assert next_table.taken() == []


def test_what_a_worker_held_and_took_to_its_grave_is_not_done_by_another_one(
    next_table: Table,
) -> None:
    next_table.offer(V)
    next_table.hold(W, b"0")
    next_table.offer(W)
    next_table.leave(W)
    next_table.call(A, b"0", 100.0, epoch="e1")
    ((_, body),) = next_table.taken()
    assert failure_of(body) == "died"


@pytest.mark.parametrize("how", ["died", "withdrew"])
def test_a_worker_that_had_calls_and_went_is_known_to_the_next_broker(
    table: Table, how: str
) -> None:
    table.offer(V)
    table.call(A, b"0")
    table.offer(W)
    assert table.given() == [(V, b"0")]
    if how == "died":
        table.leave(V)
    else:
        table.services.withdraw(V, "s")
    # The broker ends before A hears what became of its call.
    new = after(table)
    new.offer(W)
    new.call(A, b"0", 100.0, epoch="e1")
    assert new.given() == []
    new.services.expire(100.0, lambda hello: hello.name != V.decode())
    ((_, body),) = new.taken()
    assert failure_of(body) == "interrupted"


def test_a_worker_that_never_had_a_call_is_forgotten_when_it_goes(table: Table) -> None:
    table.offer(V)
    table.offer(W)
    table.leave(V)
    table.services.withdraw(W, "s")
    assert not table.rows.rows


def test_a_worker_that_had_calls_is_forgotten_a_while_after_it_went(table: Table) -> None:
    table.offer(V)
    table.offer(W)
    for call_id in (b"0", b"1"):
        table.call(A, call_id)
    table.leave(V)
    table.services.withdraw(W, "s")
    table.services.expire(59.0, alive)
    assert set(table.rows.rows) == {("s", V), ("s", W)}
    table.services.expire(60.0, alive)
    assert set(table.rows.rows) == {("s", W)}  # it still has a call
    table.done(W, b"1")
    table.services.expire(60.1, alive)
    assert not table.rows.rows


def test_a_call_that_may_be_forgotten_is_not_begun_again(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_module, "_MAX_ENDED", 3)
    for worker in (V, W):
        table.offer(worker)
    table.call(A, b"first")
    table.done(table.given()[0][0], b"first")
    table.taken()
    # Its caller did not hear that, and asks again; nobody else has been served since.
    table.call(A, b"never came", epoch="e1")
    assert len(table.given()) == 1, "what never came is begun"
    for number in range(4):
        table.call(B, b"%d" % number)
        for worker in (V, W):
            table.done(worker, b"%d" % number)
    table.taken()
    table.call(A, b"first", epoch="e1")
    ((to, body),) = table.taken()
    assert to == A
    assert failure_of(body) == "interrupted"
    table.call(A, b"new")
    assert len(table.given()) == 1, "one that is asked for once is no matter of memory"


@pytest.mark.parametrize("is_first", [True, False])
def test_an_exclusive_service_is_one_programs_alone(table: Table, is_first: bool) -> None:
    offers = [
        Offer("s", [CommandInfo("do")], is_exclusive=is_first == first) for first in (True, False)
    ]
    assert table.services.offer(V, offers[0], hello(V)) == Done()
    refused = table.services.offer(W, offers[1], hello(W))
    assert isinstance(refused, Refused)
    assert refused.code == "taken"
    assert "worker V (pid 42 on here)" in refused.reason
    assert table.services.offer(V, offers[0], hello(V)) == Done(), "who has it, may say so again"
    table.here.discard(V)
    table.services.forget(V)
    assert table.services.offer(W, offers[1], hello(W)) == Done()
