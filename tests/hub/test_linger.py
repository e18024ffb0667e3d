"""How long a broker stays without programs."""

from __future__ import annotations

from pyhub.hub.broker.linger import Linger


def test_it_ends_when_it_was_alone_for_so_long() -> None:
    linger = Linger(3.0)
    looks = [(0, 0, 0), (2, 1, 1), (4, 1, 1), (6, 0, 1), (6.5, 0, 1), (7, 0, 1)]
    assert [linger.is_over(*look) for look in looks] == [False] * 5 + [True]


def test_a_program_that_came_and_went_between_two_looks_was_there() -> None:
    linger = Linger(3.0)
    looks = [(0, 0, 0), (2, 0, 1), (4, 0, 1), (5, 0, 1)]
    assert [linger.is_over(*look) for look in looks] == [False, False, False, True]


def test_nobody_comes_at_all() -> None:
    linger = Linger(3.0)
    assert [linger.is_over(now, 0, 0) for now in (0, 2, 3)] == [False, False, True]


def test_with_no_time_it_stays_as_long_as_somebody_is_there() -> None:
    linger = Linger(0.0)
    looks = [(2, 1, 1), (4, 0, 2), (6, 0, 2)]
    assert [linger.is_over(*look) for look in looks] == [False, False, True]


def test_a_sites_broker_stays() -> None:
    assert not Linger(None).is_over(1e9, 0, 0)
