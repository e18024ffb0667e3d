"""Services without sockets: what comes late, twice or not at all, and that nothing is done twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import pyhub.hub.broker.services as services_module
from pyhub.hub.broker.comebacks import FORMER_S, worker_id
from pyhub.hub.protocol import (
    Abort,
    Accepted,
    CommandInfo,
    Done,
    Finished,
    Offer,
    Refused,
)
from tests.hub.service_table import A, B, C, Table, V, W, X, after, alive, failure_of, hello


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def next_table(table: Table) -> Table:
    """A new broker, where V and W worked for the one before."""
    table.offer(V)
    table.offer(W)
    return after(table)


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
