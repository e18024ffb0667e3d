"""The state: a change is done once, kept before it is seen, and seen by everybody who watches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyhub.hub import protocol
from pyhub.hub.broker.state import StateTable
from pyhub.hub.broker.watches import Watches
from pyhub.hub.protocol import Conflict, Refused, SetState, StateChanged, Stated, StateEntry
from pyhub.names import pattern

A, B = b"program A", b"program B"
ME = "me (1@here)"

_ids = itertools.count()


class Hub:
    """A table with what it pushes and keeps, as a broker and its file would have it."""

    def __init__(self) -> None:
        self.pushed: list[tuple[Sequence[bytes], StateChanged]] = []
        self.kept: list[tuple[StateEntry, bytes]] = []
        self.problem: OSError | None = None
        self.begin()

    def begin(self) -> None:
        """Begin as the next broker does; nobody watches yet."""
        version = self.kept[-1][0].version if self.kept else 0
        self.watches = Watches(lambda peer, subject, name: True)
        self.table = StateTable(
            self._push, self.watches, self._keep, list(self.kept), version, lambda: 123
        )

    def _push(self, peers: Sequence[bytes], body: protocol.PushBody) -> None:
        assert isinstance(body, StateChanged)
        self.pushed.append((list(peers), body))

    def _keep(self, entry: StateEntry, change: bytes) -> None:
        assert self.table.get(entry.key) != entry, "seen before it was kept"
        if self.problem:
            raise self.problem
        self.kept.append((entry, change))

    def set(
        self, key: str, value: bytes | None = b"\x01", if_version: int | None = None
    ) -> Stated | Conflict | Refused:
        return self.table.set(change(key, value, if_version), ME)

    def first(self, pattern: str = "*", hidden: str = "") -> list[StateEntry]:
        """Return what a new watch of `pattern` gets."""
        before = len(self.pushed)
        self.table.first(B, 7, pattern, lambda key: key != hidden)
        pushes, self.pushed[before:] = self.pushed[before:], []
        assert all(peers == [B] and body.watch == 7 and body.entries for peers, body in pushes)
        return [entry for _, body in pushes for entry in body.entries]


@pytest.fixture
def hub() -> Hub:
    """A table, all of which program A watches."""
    hub = Hub()
    hub.watches.add(A, 1, "state", "*")
    return hub


def change(key: str, value: bytes | None = b"\x01", if_version: int | None = None) -> SetState:
    return SetState(b"change %d" % next(_ids), key, value, if_version)


def entry(key: str, value: bytes | None, version: int) -> StateEntry:
    return StateEntry(key, value, version, 123, ME)


# --- Setting and getting ---


def test_what_was_set_is_there_with_who_and_when(hub: Hub) -> None:
    assert hub.set("x", b"\x02") == Stated(entry("x", b"\x02", 1))
    assert hub.table.get("x") == entry("x", b"\x02", 1)
    assert hub.table.get("y") is None


def test_every_change_of_any_key_has_the_next_version(hub: Hub) -> None:
    for key, value in [("x", b"1"), ("y", b"1"), ("x", b"2"), ("y", None), ("y", b"3")]:
        hub.set(key, value)
    assert hub.table.version == 5
    assert [body.entries[0].version for _, body in hub.pushed] == [1, 2, 3, 4, 5]


def test_a_change_is_pushed_to_those_who_watch_its_key(hub: Hub) -> None:
    hub.watches.add(A, 1, "state", "cam1/*")
    hub.watches.add(B, 1, "events", "*")
    hub.set("cam1/x")
    hub.set("cam2/x")
    assert hub.pushed == [([A], StateChanged(0, [entry("cam1/x", b"\x01", 1)]))]


def test_a_deleted_key_is_gone_and_its_watchers_are_told(hub: Hub) -> None:
    hub.set("x")
    assert hub.set("x", None) == Stated(entry("x", None, 2))
    assert hub.table.get("x") is None
    assert hub.pushed[-1] == ([A], StateChanged(0, [entry("x", None, 2)]))
    assert hub.first() == []


def test_a_key_that_is_made_anew_never_has_an_old_version(hub: Hub) -> None:
    hub.set("x")
    hub.set("x", None)
    assert hub.set("x") == Stated(entry("x", b"\x01", 3))


def test_deleting_what_is_not_there_changes_nothing(hub: Hub) -> None:
    assert hub.set("x", None) == Stated(None)
    assert hub.table.version == 0
    assert hub.kept == hub.pushed == []


@pytest.mark.parametrize("key", ["cam/*", "a?", "[a]", "a\nb", "ä" * 128])
def test_what_cannot_be_a_key_is_refused(hub: Hub, key: str) -> None:
    reply = hub.set(key)
    assert isinstance(reply, Refused)
    assert reply.code == "bad_message"
    assert "cannot be a topic or a key" in reply.reason
    assert hub.table.version == 0


# --- Only if ---


def test_a_change_of_the_version_that_is_there_is_made(hub: Hub) -> None:
    hub.set("x")
    assert hub.set("x", b"\x02", if_version=1) == Stated(entry("x", b"\x02", 2))
    assert hub.set("x", None, if_version=2) == Stated(entry("x", None, 3))


@pytest.mark.parametrize("value", [b"\x02", None])
def test_a_change_of_another_version_is_not_made_and_told_what_is_there(
    hub: Hub, value: bytes | None
) -> None:
    hub.set("x")
    hub.set("x")
    assert hub.set("x", value, if_version=1) == Conflict(entry("x", b"\x01", 2))
    assert hub.set("x", value, if_version=0) == Conflict(entry("x", b"\x01", 2))
    assert hub.set("y", value, if_version=2) == Conflict(None)
    assert hub.table.version == len(hub.kept) == len(hub.pushed) == 2


def test_only_the_first_of_two_makes_a_key_that_is_not_there(hub: Hub) -> None:
    assert hub.set("x", b"\x01", if_version=0) == Stated(entry("x", b"\x01", 1))
    assert hub.set("x", b"\x02", if_version=0) == Conflict(entry("x", b"\x01", 1))


# --- Repetitions ---


@pytest.mark.parametrize("value", [b"\x02", None])
def test_a_repeated_change_gets_what_the_first_one_made(hub: Hub, value: bytes | None) -> None:
    hub.set("x")
    body = change("x", value, if_version=1)
    first = hub.table.set(body, ME)
    assert first == Stated(entry("x", value, 2))
    hub.set("x", b"\x03")
    assert hub.table.set(body, ME) == first
    assert hub.table.get("x") == entry("x", b"\x03", 3)
    assert len(hub.kept) == len(hub.pushed) == 3


def test_a_repetition_of_what_changed_nothing_changes_nothing(hub: Hub) -> None:
    deletion, condition = change("x", None), change("x", b"\x02", if_version=5)
    assert hub.table.set(deletion, ME) == Stated(None)
    assert hub.table.set(condition, ME) == Conflict(None)
    hub.set("x")
    assert hub.table.set(deletion, ME) == Stated(None)
    assert hub.table.set(condition, ME) == Conflict(entry("x", b"\x01", 1))
    assert hub.table.get("x") == entry("x", b"\x01", 1)
    # A key that was there when it had to be new, and is not there any more.
    new = change("x", b"\x03", if_version=0)
    assert hub.table.set(new, ME) == Conflict(entry("x", b"\x01", 1))
    hub.set("x", None)
    assert hub.table.set(new, ME) == Conflict(None)
    assert hub.table.get("x") is None


def test_a_repetition_is_recognised_by_the_next_broker(hub: Hub) -> None:
    bodies = [change("x"), change("x", b"\x02"), change("y"), change("y", None)]
    replies = [hub.table.set(body, ME) for body in bodies]
    hub.begin()
    assert [hub.table.set(body, ME) for body in bodies] == replies
    assert hub.table.version == 4
    assert hub.first() == [entry("x", b"\x02", 2)]


def test_a_change_with_the_id_of_another_keys_is_refused_and_not_lost(hub: Hub) -> None:
    hub.table.set(SetState(b"1", "x", b"\x01"), ME)
    reply = hub.table.set(SetState(b"1", "y", b"\x02"), "you (2@here)")
    assert isinstance(reply, Refused)
    assert reply.code == "bad_message"
    assert "'y'" in reply.reason
    assert "'x'" in reply.reason
    assert hub.table.get("y") is None


def test_the_last_ten_thousand_changes_are_known_and_no_more(hub: Hub) -> None:
    assert StateTable.MAX_REMEMBERED == 10_000
    bodies = [change("x") for _ in range(10_001)]
    for body in bodies:
        hub.table.set(body, ME)
    for body in bodies[1:]:
        hub.table.set(body, ME)
    assert hub.table.version == 10_001
    hub.table.set(bodies[0], ME)
    assert hub.table.version == 10_002


# --- Keeping, and room ---


def test_what_cannot_be_kept_did_not_change(hub: Hub) -> None:
    hub.set("x")
    hub.problem = OSError("the disk is full")
    body = change("x", b"\x02")
    assert hub.table.set(body, ME) == Refused("no_room", "the disk is full")
    assert hub.set("x", None) == Refused("no_room", "the disk is full")
    assert hub.table.get("x") == entry("x", b"\x01", 1)
    assert hub.table.version == len(hub.pushed) == 1
    hub.problem = None
    assert hub.table.set(body, ME) == Stated(entry("x", b"\x02", 2))


def test_the_next_broker_has_the_state_and_goes_on_counting(hub: Hub) -> None:
    for key, value in [("x", b"1"), ("y", b"2"), ("x", b"3"), ("z", b"4"), ("z", None)]:
        hub.set(key, value)
    hub.begin()
    assert hub.first() == [entry("y", b"2", 2), entry("x", b"3", 3)]
    assert hub.table.version == 5
    assert hub.set("z") == Stated(entry("z", b"\x01", 6))


def test_a_version_that_was_given_is_not_given_again_though_nothing_is_left() -> None:
    hub = Hub()
    table = StateTable(hub._push, hub.watches, lambda entry, change: None, (), 41, lambda: 123)
    assert table.set(change("x"), ME) == Stated(entry("x", b"\x01", 42))


def test_keys_are_bounded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StateTable, "MAX_KEYS", 3)
    for key in ["a", "b", "c"]:
        hub.set(key)
    reply = hub.set("d")
    assert isinstance(reply, Refused)
    assert reply.code == "too_many"
    assert "3 keys" in reply.reason
    assert "delete" in reply.reason
    assert hub.table.get("d") is None
    assert isinstance(hub.set("a", b"\x02"), Stated)
    assert isinstance(hub.set("a", None), Stated)
    assert isinstance(hub.set("d"), Stated)


def test_bytes_are_bounded_and_given_back(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StateTable, "MAX_BYTES", 2 * 12)
    for key in ["ä", "ö"]:  # of two bytes each
        assert isinstance(hub.set(key, b"v" * 10), Stated)
    reply = hub.set("ä", b"v" * 11)
    assert isinstance(reply, Refused)
    assert reply.code == "too_many"
    assert "24 bytes" in reply.reason
    assert hub.table.get("ä") == entry("ä", b"v" * 10, 1)
    assert isinstance(hub.set("ö", b"v" * 9), Stated)
    assert isinstance(hub.set("ä", b"v" * 11), Stated)
    assert isinstance(hub.set("ö", None), Stated)
    assert isinstance(hub.set("ä", b"v" * 22), Stated)
    hub.begin()
    assert isinstance(hub.set("ä", b"v" * 23), Refused)
    assert isinstance(hub.set("ä", b""), Stated)


def test_what_is_over_the_bound_already_may_shrink(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.set("a", b"v" * 100)
    monkeypatch.setattr(StateTable, "MAX_BYTES", 50)
    assert isinstance(hub.set("a", b"v" * 101), Refused)
    assert isinstance(hub.set("b", b""), Refused)
    assert isinstance(hub.set("a", b"v" * 99), Stated)
    assert isinstance(hub.set("a", None), Stated)


# --- What a new watch gets ---


def test_a_new_watch_gets_what_matches_and_may_be_read_by_version(hub: Hub) -> None:
    for key in ["cam1/x", "cam2/x", "cam1/y", "cam1/x"]:
        hub.set(key)
    assert [(e.key, e.version) for e in hub.first()] == [
        ("cam2/x", 2),
        ("cam1/y", 3),
        ("cam1/x", 4),
    ]
    assert [e.key for e in hub.first("cam1/*")] == ["cam1/y", "cam1/x"]
    assert [e.key for e in hub.first("cam2/x")] == ["cam2/x"]
    assert [e.key for e in hub.first("cam1/*", hidden="cam1/y")] == ["cam1/x"]
    assert hub.first("cam2/x", hidden="cam2/x") == hub.first("cam3/*") == hub.first("x") == []


def test_much_state_comes_in_several_messages(hub: Hub) -> None:
    for number in range(20):
        hub.set(f"key{number}", b"v" * 48 * 1024)
    hub.pushed.clear()
    hub.table.first(B, 1, "*", lambda key: True)
    assert len(hub.pushed) > 1
    frames = [protocol.encode(protocol.Reply(0, body)) for _, body in hub.pushed]
    assert all(len(frame) < protocol.MAX_REPLY_BYTES / 2 for frame in frames)
    assert [e.key for _, body in hub.pushed for e in body.entries] == [f"key{n}" for n in range(20)]


# --- All of it, in any order ---

keys = st.sampled_from(["a", "b", "a/x", "a/y"])
values = st.sampled_from([None, b"1", b"2", b"3"])
peers = st.sampled_from([A, B])
watch_numbers = st.integers(1, 2)
patterns = st.sampled_from(["a", "b", "a/*", "*", "a/x", "?"])


class StateAgainstADict(RuleBasedStateMachine):
    """What the table says and pushes is what a dict, and clients' copies of it, would have."""

    def __init__(self) -> None:
        super().__init__()
        self.hub = Hub()
        self.model: dict[str, tuple[bytes, int]] = {}  # value and version
        self.version = 0
        self.done: list[tuple[SetState, Stated | Conflict]] = []
        self.watching: dict[bytes, dict[int, str]] = {A: {}, B: {}}
        self.seen: dict[bytes, dict[str, StateEntry]] = {A: {}, B: {}}

    def receive(self) -> None:
        """Let the programs put into their copies what was pushed to them."""
        for receivers, body in self.hub.pushed:
            for peer in receivers:
                for each in body.entries:
                    self.seen[peer].pop(each.key, None)
                    if each.value is not None:
                        self.seen[peer][each.key] = each
        self.hub.pushed.clear()

    def is_watched(self, peer: bytes, key: str) -> bool:
        return any(pattern(text).match(key) for text in self.watching[peer].values())

    @rule(key=keys, value=values, against=st.sampled_from([None, "right", "wrong", "none"]))
    def change(self, key: str, value: bytes | None, against: str | None) -> None:
        there = self.model.get(key)
        if_version = {
            None: None,
            "right": there[1] if there else 0,
            "wrong": self.version + 1,
            "none": 0,
        }[against]
        body = change(key, value, if_version)
        reply = self.hub.table.set(body, ME)
        if if_version not in (None, there[1] if there else 0):
            expected = entry(key, *there) if there else None
            assert reply == Conflict(expected)
        elif value is None and there is None:
            assert reply == Stated(None)
        else:
            self.version += 1
            assert reply == Stated(entry(key, value, self.version))
            self.model.pop(key, None)
            if value is not None:
                self.model[key] = (value, self.version)
        assert not isinstance(reply, Refused)
        self.done.append((body, reply))
        self.receive()

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        body, reply = data.draw(st.sampled_from(self.done))
        again = self.hub.table.set(body, ME)
        if isinstance(reply, Conflict):
            there = self.model.get(body.key)
            assert again == Conflict(entry(body.key, *there) if there else None)
        else:
            assert again == reply
        assert not self.hub.pushed

    @rule(peer=peers, number=watch_numbers, text=patterns)
    def watch(self, peer: bytes, number: int, text: str) -> None:
        assert self.hub.watches.add(peer, number, "state", text) is None
        self.watching[peer][number] = text
        # A program that begins to watch knows nothing of what matches.
        for key in [key for key in self.seen[peer] if pattern(text).match(key)]:
            del self.seen[peer][key]
        self.hub.table.first(peer, number, text, lambda key: True)
        self.receive()

    @rule(peer=peers, number=watch_numbers)
    def unwatch(self, peer: bytes, number: int) -> None:
        self.hub.watches.remove(peer, number)
        self.watching[peer].pop(number, None)

    @rule()
    def begin_again(self) -> None:
        self.hub.begin()
        # What came of changes that made no entry is not kept: see `Store.entries`.
        self.done = [(b, r) for b, r in self.done if isinstance(r, Stated) and r.entry]
        for peer, texts in self.watching.items():
            self.seen[peer].clear()
            for number, text in texts.items():
                self.watch(peer, number, text)

    @invariant()
    def the_table_is_the_model(self) -> None:
        assert self.hub.table.version == self.version
        by_version = sorted(self.model, key=lambda key: self.model[key][1])
        assert self.hub.first() == [entry(key, *self.model[key]) for key in by_version]

    @invariant()
    def every_copy_is_the_table(self) -> None:
        for peer, seen in self.seen.items():
            watched = {key: e for key, e in seen.items() if self.is_watched(peer, key)}
            assert watched == {
                key: entry(key, *there)
                for key, there in self.model.items()
                if self.is_watched(peer, key)
            }


StateAgainstADict.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, database=None
)
TestStateAgainstADict = StateAgainstADict.TestCase
