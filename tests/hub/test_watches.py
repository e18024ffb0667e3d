"""Watches: who is told of what, each once, only what they may read, and found at once."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhub.hub import protocol
from pyhub.hub.broker.watches import PART_BYTES, Watches, in_parts
from pyhub.hub.protocol import Event, EventHappened, Refused, Reply, StateChanged, StateEntry
from pyhub.names import pattern

A, B = b"program A", b"program B"


class Rights:
    """Lets everybody read everything, but for what is listed; counts the questions."""

    def __init__(self) -> None:
        self.hidden: set[tuple[bytes, str]] = set()
        self.n_asked = 0

    def may_read(self, peer: bytes, subject: str, name: str) -> bool:
        self.n_asked += 1
        return (peer, name) not in self.hidden


@pytest.fixture
def rights() -> Rights:
    return Rights()


@pytest.fixture
def watches(rights: Rights) -> Watches:
    return Watches(rights.may_read)


def watch(watches: Watches, peer: bytes, number: int, pattern: str) -> None:
    assert watches.add(peer, number, "state", pattern) is None


# --- Who is found ---


@pytest.mark.parametrize(
    "pattern", ["cam1/exposure", "cam1/*", "*", "cam?/exposure", "cam[12]/expo*", "*exposure*"]
)
def test_who_watches_a_name_is_found_by_any_pattern_that_matches(
    watches: Watches, pattern: str
) -> None:
    watch(watches, A, 1, pattern)
    assert watches.matching("state", "cam1/exposure") == [A]
    assert watches.matching("state", "motor/position") == ([A] if pattern == "*" else [])


def test_who_watches_by_many_patterns_is_found_once(watches: Watches) -> None:
    for number, text in enumerate(["cam1/x", "cam1/*", "*", "cam1/x"]):
        watch(watches, A, number, text)
    assert watches.matching("state", "cam1/x") == [A]


def test_state_and_events_are_watched_apart(watches: Watches) -> None:
    watch(watches, A, 1, "cam1/*")
    assert watches.add(B, 1, "events", "cam1/*") is None
    assert watches.matching("state", "cam1/x") == [A]
    assert watches.matching("events", "cam1/x") == [B]


def test_who_ends_a_watch_is_not_found_by_it(watches: Watches) -> None:
    watch(watches, A, 1, "cam1/*")
    watch(watches, B, 1, "cam1/*")
    watches.remove(A, 1)
    assert watches.matching("state", "cam1/x") == [B]


def test_the_same_pattern_twice_lasts_until_both_are_ended(watches: Watches) -> None:
    watch(watches, A, 1, "cam1/*")
    watch(watches, A, 2, "cam1/*")
    watches.remove(A, 1)
    assert watches.matching("state", "cam1/x") == [A]
    watches.remove(A, 2)
    assert watches.matching("state", "cam1/x") == []


def test_a_number_that_is_used_again_replaces_its_watch(watches: Watches) -> None:
    watch(watches, A, 1, "cam1/*")
    watch(watches, A, 1, "cam2/*")
    assert watches.count(A) == 1
    assert watches.matching("state", "cam1/x") == []
    assert watches.matching("state", "cam2/x") == [A]


def test_a_program_that_is_forgotten_watches_nothing(watches: Watches) -> None:
    watch(watches, A, 1, "cam1/*")
    watch(watches, A, 2, "cam1/x")
    watches.forget(A)
    assert watches.count(A) == 0
    assert watches.matching("state", "cam1/x") == []


def test_what_was_never_watched_can_be_ended(watches: Watches) -> None:
    watches.remove(A, 1)
    watches.forget(A)
    watch(watches, A, 1, "x")
    watches.remove(A, 2)
    watches.remove(B, 1)
    assert watches.matching("state", "x") == [A]


# --- What is refused ---


def test_a_program_has_a_bounded_number_of_watches(watches: Watches) -> None:
    for number in range(Watches.MAX_WATCHES):
        watch(watches, A, number, f"key{number}")
    refusal = watches.add(A, Watches.MAX_WATCHES, "state", "one more")
    assert isinstance(refusal, Refused)
    assert refusal.code == "too_many"
    assert "256 watches" in refusal.reason
    assert watches.matching("state", "one more") == []
    # Another program has its own, and a number that is used again is no other watch.
    watch(watches, B, 1, "one more")
    watch(watches, A, 0, "one more")
    assert sorted(watches.matching("state", "one more")) == [A, B]


@pytest.mark.parametrize(
    ("subject", "text", "said"),
    [
        ("channels", "*", "'channels' cannot be watched"),
        ("", "*", "'' cannot be watched"),
        ("state", "", "cannot be a pattern"),
        ("events", "a\nb", "cannot be a pattern"),
        ("state", "ä" * 128, "255 bytes"),
    ],
)
def test_what_cannot_be_watched_is_refused_and_changes_nothing(
    watches: Watches, subject: str, text: str, said: str
) -> None:
    watch(watches, A, 1, "x")
    refusal = watches.add(A, 1, subject, text)
    assert isinstance(refusal, Refused)
    assert refusal.code == "bad_message"
    assert said in refusal.reason
    assert watches.matching("state", "x") == [A]


# --- Rights ---


def test_who_may_not_read_a_name_is_not_found(watches: Watches, rights: Rights) -> None:
    rights.hidden.add((A, "cam1/secret"))
    for peer in (A, B):
        watch(watches, peer, 1, "cam1/*")
    assert watches.matching("state", "cam1/secret") == [B]
    assert watches.matching("state", "cam1/x") == [A, B]


def test_rights_that_changed_hold_once_the_cache_is_cleared(
    watches: Watches, rights: Rights
) -> None:
    watch(watches, A, 1, "*")
    assert watches.matching("state", "x") == [A]
    rights.hidden.add((A, "x"))
    watches.clear_cache()
    assert watches.matching("state", "x") == []


# --- The cache ---


def test_a_name_that_is_set_again_is_looked_up_only(watches: Watches, rights: Rights) -> None:
    for number in range(1000):
        watch(watches, b"program %d" % number, 1, "cam1/*")
    first = watches.matching("state", "cam1/x")
    assert len(first) == rights.n_asked == 1000
    for _ in range(100):
        assert watches.matching("state", "cam1/x") == first
    assert rights.n_asked == 1000


def test_what_a_caller_does_to_the_list_is_its_own_affair(watches: Watches) -> None:
    watch(watches, A, 1, "x")
    watches.matching("state", "x").clear()
    assert watches.matching("state", "x") == [A]


def test_the_cache_does_not_grow_without_end(
    rights: Rights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watches, "MAX_CACHED", 100)
    watches = Watches(rights.may_read)
    watch(watches, A, 1, "*")
    for number in range(1000):
        assert watches.matching("state", f"key{number}") == [A]
    assert len(watches._found) <= 51
    asked = rights.n_asked
    assert watches.matching("state", "key999") == [A]
    assert rights.n_asked == asked  # it still is one


numbers = st.integers(1, 3)
names = st.sampled_from(["a", "b", "a/b", "a/c", "b/c"])
patterns = st.sampled_from(["a", "b", "a/b", "a/*", "*", "?", "[ab]", "*/c", "nothing"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from([A, B]), numbers, patterns),
        st.tuples(st.just("remove"), st.sampled_from([A, B]), numbers),
        st.tuples(st.just("forget"), st.sampled_from([A, B])),
        st.tuples(st.just("look"), names),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None, database=None)
@given(steps)
def test_who_is_found_is_who_watches_whatever_came_before(steps: list[tuple[Any, ...]]) -> None:
    watches = Watches(lambda peer, subject, name: (peer, name) != (B, "a/c"))
    model: dict[bytes, dict[int, str]] = {A: {}, B: {}}
    for step, *rest in [*steps, *(("look", name) for name in ["a", "b", "a/b", "a/c", "b/c"])]:
        if step == "add":
            peer, number, text = rest
            assert watches.add(peer, number, "state", text) is None
            model[peer][number] = text
        elif step == "remove":
            watches.remove(*rest)
            model[rest[0]].pop(rest[1], None)
        elif step == "forget":
            watches.forget(*rest)
            model[rest[0]].clear()
        else:
            (name,) = rest
            watching = {
                peer
                for peer, texts in model.items()
                if any(pattern(text).match(name) for text in texts.values())
            }
            assert sorted(watches.matching("state", name)) == sorted(
                peer for peer in watching if (peer, name) != (B, "a/c")
            )
    assert [watches.count(peer) for peer in (A, B)] == [len(model[A]), len(model[B])]


# --- Parts ---


@pytest.mark.parametrize("n_bytes", [0, 100, 48 * 1024])
def test_parts_of_state_hold_everything_in_order_and_fit_into_messages(n_bytes: int) -> None:
    entries = [
        # The longest key and source, of characters that take the most room.
        StateEntry("🔬" * 63, b"v" * n_bytes, number, 2**63 - 1, "🔬" * 255)
        for number in range(1000 if n_bytes < 1000 else 30)
    ]
    parts = list(in_parts(entries))
    assert [entry for part in parts for entry in part] == entries
    assert len(parts) > 1
    for part in parts:
        frame = protocol.encode(Reply(0, StateChanged(2**31 - 1, part)))
        assert len(frame) < PART_BYTES + 100
    assert PART_BYTES < protocol.MAX_REPLY_BYTES / 2


def test_parts_of_events_fit_into_messages() -> None:
    event = Event("t" * 255, b"v" * 48 * 1024, "critical", "s" * 255, 2**63 - 1, 2**63 - 1, True)
    parts = list(in_parts([event] * 30))
    assert sum(map(len, parts)) == 30
    for part in parts:
        assert len(protocol.encode(Reply(0, EventHappened(2**31 - 1, part)))) < PART_BYTES + 100


def test_nothing_has_no_parts() -> None:
    assert list(in_parts(iter(list[StateEntry]()))) == []


def test_a_part_is_not_cut_smaller_than_need_be() -> None:
    entries = [StateEntry("key", b"v", number, 0, "me") for number in range(1000)]
    assert len(list(in_parts(entries))) == 1
    assert len(msgspec.msgpack.encode(entries)) < PART_BYTES
