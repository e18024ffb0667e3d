"""Services without sockets: who is given which call, and how it ends."""

from __future__ import annotations

from collections import Counter

import pytest

import pyhub.hub.broker.services as services_module
from pyhub.errors import InvalidName
from pyhub.hub.broker.comebacks import worker_id
from pyhub.hub.broker.holders import Holders
from pyhub.hub.protocol import (
    Abort,
    Accepted,
    CommandInfo,
    Execute,
    Failure,
    Finished,
    Offer,
    Outcome,
    Progress,
    Progressed,
    Refused,
)
from tests.hub.service_table import A, B, C, Table, V, W, X, after, alive, failure_of, hello


@pytest.fixture
def table() -> Table:
    return Table()


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
