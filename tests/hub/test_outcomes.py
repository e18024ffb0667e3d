"""What is remembered of calls that were done."""

from __future__ import annotations

from pyhub.hub.client.outcomes import Outcomes
from pyhub.hub.protocol import Outcome


def outcome(number: int, n_bytes: int = 1) -> Outcome:
    return Outcome(number.to_bytes(4, "big"), bytes(n_bytes))


def test_an_outcome_is_given_to_who_asks_again() -> None:
    outcomes = Outcomes()
    assert outcomes.get(outcome(1).call) is None
    outcomes.keep(outcome(1))
    assert outcomes.get(outcome(1).call) == outcome(1)
    assert outcomes.calls() == [outcome(1).call]


def test_of_many_calls_or_large_ones_it_is_known_that_they_were_done() -> None:
    for n_calls, n_bytes in ((3000, 1), (300, 48 * 1024)):
        outcomes = Outcomes()
        for number in range(n_calls):
            outcomes.keep(outcome(number, n_bytes))
        kept = outcomes.calls()
        assert len(kept) <= 1000
        assert sum(n_bytes for _ in kept) <= 4 * 2**20
        assert kept[-1] == outcome(n_calls - 1).call
        for number in range(n_calls):
            found = outcomes.get(outcome(number).call)
            assert found is not None, "it would be done again"
            if found.call in kept:
                assert found == outcome(number, n_bytes)
            else:
                assert found.failure is not None
                assert found.failure.code == "interrupted"
