"""The state that programs share: a dictionary with versions, whose every change is seen."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhub import BrokerConfig, ChannelClosed, InvalidName, MessageHub, WaitTimeout
from pyhub.codec import encode_value
from pyhub.errors import CapacityError, CodecError, VersionConflict
from pyhub.hub import protocol
from pyhub.hub.client.entries import StateEntry
from pyhub.hub.client.feed import MAX_ITEMS
from pyhub.hub.client.watching import EventFeed, StateFeed, Watching
from pyhub.hub.runtime import RuntimeDirectory
from tests.conftest import eventually
from tests.hub.conftest import Spawn, go_on, line

WATCHDOG_S = 30

COUNTER = """
    import sys
    from pyhub import BrokerConfig, MessageHub
    from pyhub.errors import VersionConflict

    with MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False)) as hub:
        print("here", flush=True)
        input()
        for _ in range(int(sys.argv[3])):
            while True:
                old = hub.state.entry(sys.argv[2])
                try:
                    hub.state.set(sys.argv[2], old.value + 1, if_version=old.version)
                    break
                except VersionConflict:
                    pass
        print("done", flush=True)
"""

WRITER = """
    import sys
    from pyhub import BrokerConfig, MessageHub

    with MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False)) as hub:
        print("here", flush=True)
        input()
        for number in range(int(sys.argv[3])):
            hub.state[f"{sys.argv[2]}/{number % 7}"] = number
        print("done", flush=True)
"""

WATCHER = """
    import sys
    from pyhub import BrokerConfig, MessageHub

    with MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False)) as hub:
        for entry in hub.state.watch(sys.argv[2]):
            print(entry.key, "deleted" if entry.is_deleted else entry.value, flush=True)
"""


def pairs(entries: list[StateEntry]) -> list[tuple[str, Any]]:
    return [(entry.key, entry.value) for entry in entries]


def take(feed: StateFeed, n_items: int) -> list[StateEntry]:
    return [feed.get(WATCHDOG_S) for _ in range(n_items)]


def until(feed: StateFeed, value: object) -> StateEntry:
    """Return the first entry with that value."""
    (entry,) = take(feed, 1)
    while entry.value != value:
        (entry,) = take(feed, 1)
    return entry


# --- A dictionary ---


def test_a_key_is_set_read_and_deleted_as_in_a_dictionary(hub: MessageHub, name: str) -> None:
    state = hub.state
    assert name not in state
    for use in (lambda: state[name], lambda: state.__delitem__(name)):
        with pytest.raises(KeyError, match=name):
            use()
    state[name] = 1
    assert name in state
    assert (state[name], state.get(name), state.pop(name)) == (1, 1, 1)
    assert state.get(name, "none") == "none"
    assert state.setdefault(name, 2) == 2
    del state[name]
    assert name not in state
    assert "another" not in state
    assert "the hub" in repr(state)


def test_all_keys_are_there_by_name(config: BrokerConfig) -> None:
    with MessageHub(config) as hub:
        hub.state.update({"b": 2, "a": 1, "c/d": 3})
        assert list(hub.state) == ["a", "b", "c/d"]
        assert len(hub.state) == 3
        assert dict(hub.state) == {"a": 1, "b": 2, "c/d": 3}
        assert pairs(hub.state.entries("c/*")) == [("c/d", 3)]
        assert hub.state.entries("d*") == []
        hub.state.clear()
        assert dict(hub.state) == {}


def test_keys_and_values_are_told_as_of_one_version_and_may_all_be_deleted(
    config: BrokerConfig,
) -> None:
    with MessageHub(config) as hub:
        for number in range(3):
            hub.state[f"k{number}"] = number
        assert list(hub.state.items()) == [("k0", 0), ("k1", 1), ("k2", 2)]
        assert list(hub.state.values()) == [0, 1, 2]
        hub.state.clear()
        assert list(hub.state.items()) == []


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(2**63), 2**64 - 1, 0.1, "text", b"bytes", [], {},
        {"deep": [{"er": [1, None, "x"]}]},
        dt.datetime(2026, 5, 17, 3, 4, 5, 678901, dt.UTC),
    ],
    ids=repr,
)  # fmt: skip
def test_a_value_comes_back_as_it_was_set(hub: MessageHub, name: str, value: object) -> None:
    with hub.state.watch(name) as feed:
        entry = hub.state.set(name, value)
        assert (entry.value, entry.is_deleted) == (value, False)
        assert name in hub.state, "also None is a value"
        assert hub.state[name] == value
        seen = feed.get(WATCHDOG_S)
    assert (seen.value, seen.is_deleted) == (value, False)


def test_arrays_keep_their_dtype_and_shape(hub: MessageHub, name: str) -> None:
    hub.state[name] = {"dark": np.arange(6, dtype=">u2").reshape(2, 3), "gain": np.float32(0.5)}
    found = hub.state[name]
    assert (found["dark"].dtype, found["dark"].shape) == (np.dtype(">u2"), (2, 3))
    np.testing.assert_array_equal(found["dark"], np.arange(6).reshape(2, 3))
    assert (type(found["gain"]), found["gain"]) == (np.float32, 0.5)


def test_what_cannot_be_shared_is_refused_and_nothing_is_set(hub: MessageHub, name: str) -> None:
    with pytest.raises(CodecError, match="cannot hold"):
        hub.state[name] = {1, 2}
    with pytest.raises(CapacityError, match="through a DataBlock"):
        hub.state[name] = bytes(48 * 1024 + 1)
    assert name not in hub.state
    hub.state[name] = bytes(48 * 1024 - 3)  # three bytes tell how many there are
    assert len(hub.state[name]) == 48 * 1024 - 3


@pytest.mark.parametrize("bad", ["", "a*", "a?", "[a", "a\nb", "x" * 256, "é" * 128])
def test_what_cannot_be_a_key_is_refused(hub: MessageHub, bad: str) -> None:
    for use in (
        lambda: hub.state[bad],
        lambda: hub.state.set(bad, 1),
        lambda: hub.state.delete(bad),
        lambda: bad in hub.state,
    ):
        with pytest.raises(InvalidName, match="cannot be a topic or a key"):
            use()


def test_a_key_may_have_255_bytes(hub: MessageHub, name: str) -> None:
    key = name + "é" * ((255 - len(name)) // 2)
    hub.state[key] = 1
    assert hub.state[key] == 1


# --- Versions ---


def test_versions_rise_over_all_keys_and_say_who_and_when(hub: MessageHub, name: str) -> None:
    first, second = hub.state.set(f"{name}/a", 1), hub.state.set(f"{name}/b", 1)
    hub.state.delete(f"{name}/a")
    third = hub.state.set(f"{name}/a", 1)
    assert first.version < second.version < third.version - 1
    assert f"{os.getpid()}@" in first.source
    assert first.time_ns <= second.time_ns
    assert hub.state.entry(f"{name}/a") == third


def test_if_version_sets_only_what_one_has_seen(hub: MessageHub, name: str) -> None:
    first = hub.state.set(name, 1, if_version=0)
    with pytest.raises(
        VersionConflict, match=rf"key '{name}' has version {first.version} .*{os.getpid()}@"
    ):
        hub.state.set(name, 2, if_version=0)
    second = hub.state.set(name, 2, if_version=first.version)
    for use in (
        lambda: hub.state.set(name, 3, if_version=first.version),
        lambda: hub.state.delete(name, if_version=first.version),
    ):
        with pytest.raises(VersionConflict, match="Read it again"):
            use()
    assert hub.state.entry(name) == second
    hub.state.delete(name, if_version=second.version)
    with pytest.raises(VersionConflict, match=f"key '{name}' is not there"):
        hub.state.set(name, 3, if_version=second.version)
    assert name not in hub.state


def test_of_many_who_delete_a_key_at_once_one_did(hub: MessageHub, name: str) -> None:
    n_threads, n_rounds = 4, 50
    together = threading.Barrier(n_threads)
    n_deleted = 0

    def delete() -> None:
        nonlocal n_deleted
        for number in range(n_rounds):
            if together.wait() == 0:
                hub.state[name] = number
            together.wait()
            try:
                del hub.state[name]
            except KeyError:
                continue
            with counting:
                n_deleted += 1

    counting = threading.Lock()
    threads = [threading.Thread(target=delete) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert n_deleted == n_rounds
    assert hub.state.delete(name) is False
    hub.state[name] = 1
    assert hub.state.delete(name) is True


@pytest.mark.parametrize("is_careful", [True, False])
def test_programs_that_count_by_version_lose_no_increment(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn, is_careful: bool
) -> None:
    # The negative control reads and sets, and takes no heed of versions.
    code = COUNTER if is_careful else COUNTER.replace(", if_version=old.version", "")
    hub.state[name] = 0
    children = [spawn(code, shared.runtime_dir, name, 200) for _ in range(2)]
    assert [line(child) for child in children] == ["here", "here"]
    for child in children:
        go_on(child)
    assert [line(child) for child in children] == ["done", "done"]
    assert (hub.state[name] == 400) == is_careful


# --- Watching ---


def test_a_watch_gives_what_is_there_then_every_change(hub: MessageHub, name: str) -> None:
    hub.state[f"{name}/b"] = 1
    hub.state[f"{name}/a"] = 2
    hub.state[f"{name}x"] = 3
    with hub.state.watch(f"{name}/*") as feed:
        assert pairs(take(feed, 2)) == [(f"{name}/b", 1), (f"{name}/a", 2)], "by version"
        hub.state[f"{name}/b"] = 4
        hub.state[f"{name}x"] = 5
        del hub.state[f"{name}/a"]
        hub.state[f"{name}/a"] = None
        changes = take(feed, 3)
        with pytest.raises(WaitTimeout):
            feed.get(0.05)
    assert pairs(changes) == [(f"{name}/b", 4), (f"{name}/a", None), (f"{name}/a", None)]
    assert [entry.is_deleted for entry in changes] == [False, True, False]
    versions = [entry.version for entry in changes]
    assert versions == sorted(versions)
    assert feed.n_lost == 0


def test_no_change_is_missed_between_what_is_there_and_what_comes(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn
) -> None:
    writer = spawn(WRITER, shared.runtime_dir, name, 2000)
    assert line(writer) == "here"
    with hub.state.watch(f"{name}/*") as whole:
        go_on(writer)
        assert take(whole, 1)[0].value == 0
        # From here on, in the midst of it.
        late = [hub.state.watch(f"{name}/*") for _ in range(5)]
        seen = take(whole, 1999)
        assert [entry.value for entry in seen] == list(range(1, 2000)), "each once, in order"
        versions = [entry.version for entry in seen]
        assert versions == sorted(set(versions))
        for feed in late:
            values = [entry.value for entry in feed.taken()]
            begin = next(i for i, v in enumerate(values) if values[i:] == list(range(v, 2000)))
            assert begin <= 7, "at most a key's last value each, from before"
            assert values == sorted(set(values))
            feed.close()
    assert line(writer) == "done"


def test_a_key_that_is_there_already_comes_first_to_who_comes_late(
    hub: MessageHub, shared: BrokerConfig, name: str
) -> None:
    hub.state[name] = 1
    with MessageHub(shared) as other, other.state.watch(name) as feed:
        assert feed.get(WATCHDOG_S).value == 1
        hub.state[name] = 2
        assert feed.get(WATCHDOG_S).value == 2
        with other.state.watch(name) as second:
            assert second.get(WATCHDOG_S).value == 2
        hub.state[name] = 3
        assert feed.get(WATCHDOG_S).value == 3, "the end of one is not the other's"


@pytest.mark.parametrize("bad", ["", "a\nb", "x" * 256])
def test_what_cannot_be_a_pattern_is_refused(hub: MessageHub, bad: str) -> None:
    with pytest.raises(InvalidName, match="cannot be a pattern"):
        hub.state.watch(bad)


def test_a_watch_ends_with_its_hub_and_when_it_is_closed(
    hub: MessageHub, shared: BrokerConfig, name: str
) -> None:
    with MessageHub(shared) as other:
        feed, closed = other.state.watch(name), other.state.watch(name)
        closed.close()
        with pytest.raises(ChannelClosed, match="watching state"):
            closed.get(0)
        waiting = threading.Thread(target=lambda: seen.extend(feed))
        seen: list[object] = []
        waiting.start()
    waiting.join()
    with pytest.raises(ChannelClosed, match="shut down"):
        feed.get(0)
    with pytest.raises(ChannelClosed, match="shut down"):
        _ = other.state
    (mine,) = [program for program in hub.programs()[0] if program.pid == os.getpid()]
    assert mine.n_watches == 0


def test_what_could_not_be_begun_leaves_no_feed(shared: BrokerConfig) -> None:
    with MessageHub(shared) as hub:
        watching = hub._holdings.watching
        hub.state.watch("*")
        assert len(watching._feeds) == 1, "the control"
    for begin in (watching.state, watching.events):
        with pytest.raises(ChannelClosed, match="shut down"):
            begin("*")
    assert watching._feeds == {}


def test_a_gap_is_noted_while_others_close_their_feeds() -> None:
    watching = Watching()

    class Closing(EventFeed):
        """A feed that another thread closes just as it is told."""

        n_told = 0

        def __setattr__(self, attribute: str, value: object) -> None:
            super().__setattr__(attribute, value)
            if attribute == "n_lost" and value == 3:
                Closing.n_told += 1
                watching._feeds.pop(Closing.n_told)

    watching._feeds = {number: Closing("*", lambda: None) for number in (1, 2, 3)}
    assert watching.note_gap(3) == []
    assert Closing.n_told == 3


def test_all_of_5000_keys_are_told_as_of_one_moment(config: BrokerConfig) -> None:
    with MessageHub(config) as hub:
        connection = hub._connection
        value = b"\xa1x"
        asked = [
            connection.begin(protocol.SetState(os.urandom(12), f"key{n:04}", value))
            for n in range(5000)
        ]
        for future in asked:
            connection.wait(future)
        entries = hub.state.entries()
        assert [entry.key for entry in entries] == [f"key{n:04}" for n in range(5000)]
        assert {entry.value for entry in entries} == {"x"}
        assert len(hub.state.entries("key00*")) == 100


def test_keys_are_told_once_and_without_deleted_ones_while_they_change(
    hub: MessageHub, shared: BrokerConfig, name: str
) -> None:
    is_over = threading.Event()

    def change() -> None:
        with MessageHub(shared) as other:
            while not is_over.is_set():
                other.state[f"{name}/stays"] = 1
                other.state[f"{name}/goes"] = 1
                other.state.delete(f"{name}/goes")

    hub.state[f"{name}/stays"] = 0
    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(200):
            entries = hub.state.entries(f"{name}/*")
            assert [entry.key for entry in entries if not entry.is_deleted] in (
                [f"{name}/stays"], [f"{name}/goes", f"{name}/stays"],
            )  # fmt: skip
            assert not any(entry.is_deleted for entry in entries)
    finally:
        is_over.set()
        changing.join()


def test_a_value_that_cannot_be_read_is_an_error_where_it_is_read_and_nowhere_else(
    hub: MessageHub, name: str
) -> None:
    with hub.state.watch(f"{name}/*") as feed:
        for key, value in (("a", b"\x01"), ("b", b"\xc1"), ("c", b"\x03")):
            body = protocol.SetState(os.urandom(12), f"{name}/{key}", value)
            hub._connection.ask(body, protocol.Stated)
        seen = take(feed, 3)
    assert [entry.value for entry in seen] == [1, None, 3]
    assert [entry.problem.partition("\n")[0] for entry in seen] == ["", "unreadable: 1 bytes", ""]
    assert not seen[1].is_deleted
    assert hub.state.entries(f"{name}/*") == seen
    assert hub.state.entry(f"{name}/b") == seen[1]
    assert pairs(seen) == [item for item in hub.state.items() if item[0].startswith(f"{name}/")]
    with pytest.raises(CodecError) as error:
        _ = hub.state[f"{name}/b"]
    assert f"the value of '{name}/b', set by {seen[1].source}, is unreadable" in str(error.value)
    assert "not one whole MessagePack object" in str(error.value)
    assert "flex zone" not in str(error.value)
    assert hub.state[f"{name}/c"] == 3
    assert {f"{name}/a", f"{name}/b", f"{name}/c"} <= set(hub.state)
    del hub.state[f"{name}/b"]
    assert f"{name}/b" not in hub.state


# --- When the broker ends ---


def kill(config: BrokerConfig) -> None:
    broker = RuntimeDirectory(config.runtime_dir).read_broker()
    assert broker is not None
    os.kill(broker.pid, signal.SIGKILL)


def stop(config: BrokerConfig) -> None:
    broker = RuntimeDirectory(config.runtime_dir).read_broker()
    assert broker is not None
    os.kill(broker.pid, signal.SIGTERM)
    # Until then, it does what it is asked: a change that it tells yet says nothing of the next.
    assert eventually(lambda: not broker.is_alive(), WATCHDOG_S)


@pytest.mark.parametrize("ends", [kill, stop])
def test_the_state_and_who_watches_it_outlive_the_broker(
    config: BrokerConfig, ends: Callable[[BrokerConfig], None]
) -> None:
    with MessageHub(config) as hub, MessageHub(config) as other:
        feed = other.state.watch("cam1/*")
        hub.state["cam1/deleted"] = 1
        before = [hub.state.set("cam1/kept", 2), hub.state.set("cam1/changed", 3)]
        del hub.state["cam1/deleted"]
        assert len(take(feed, 4)) == 4
        ends(config)
        # The other one may come back before or after this change.
        last = hub.state.set("cam1/changed", 4)
        assert last.version > before[1].version + 1, "the deletion had one, too"
        assert hub.state.entry("cam1/kept") == before[0]
        assert list(hub.state) == ["cam1/changed", "cam1/kept"]
        assert until(feed, 4) == last
        del hub.state["cam1/kept"]
        hub.state["cam1/kept"] = 5
        assert [(e.value, e.is_deleted) for e in take(feed, 2)] == [(None, True), (5, False)]
        feed.close()


def test_a_key_that_was_deleted_while_one_was_away_is_told(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn
) -> None:
    hub.state[f"{name}/a"] = 1
    hub.state[f"{name}/b"] = 2
    watcher = spawn(WATCHER, shared.runtime_dir, f"{name}/*")
    assert [line(watcher), line(watcher)] == [f"{name}/a 1", f"{name}/b 2"]
    watcher.send_signal(signal.SIGSTOP)
    assert eventually(lambda: watcher.pid not in {p.pid for p in hub.programs()[0]}, WATCHDOG_S)
    del hub.state[f"{name}/a"]
    watcher.send_signal(signal.SIGCONT)
    assert line(watcher) == f"{name}/a deleted"
    hub.state[f"{name}/b"] = 3
    assert line(watcher) == f"{name}/b 3", "and what it had seen is not told again"


def test_who_is_far_behind_still_gets_each_keys_newest_value(
    hub: MessageHub, shared: BrokerConfig, name: str
) -> None:
    with MessageHub(shared) as other, hub.state.watch(f"{name}/*") as feed:
        other.state[f"{name}/door"] = "open"
        versions = [StateChange(n, f"{name}/fast") for n in range(MAX_ITEMS + 1000)]
        last = other.state.entry(f"{name}/door")
        assert last is not None
        for change in versions:
            feed.take(change.after(last.version), change.key)
        newest = {entry.key: entry.value for entry in feed.taken()}
        assert newest == {f"{name}/door": "open", f"{name}/fast": len(versions) - 1}
        assert feed.n_lost > 0


@dataclasses.dataclass
class StateChange:
    """A change as the broker would push it."""

    number: int
    key: str

    def after(self, version: int) -> protocol.StateEntry:
        value = encode_value(self.number)
        return protocol.StateEntry(self.key, value, version + 1 + self.number, 0, "a test")


def test_a_state_that_began_anew_is_seen_though_its_versions_did_too(
    config: BrokerConfig, runtime: Path
) -> None:
    with MessageHub(config) as hub, MessageHub(config) as watcher:
        feed = watcher.state.watch("g/*")
        for number in range(50):
            hub.state["g/x"] = number
        hub.state["g/y"] = "gone with the file"
        while (entry := feed.get(WATCHDOG_S)).key != "g/y":
            pass
        broker = RuntimeDirectory(runtime).read_broker()
        assert broker is not None
        with watcher._connection._line.lock:  # it is late
            os.kill(broker.pid, signal.SIGKILL)
            for file in runtime.glob("state.db*"):
                file.unlink()
            hub.state["g/x"] = "new"
        seen = {entry.key: entry.value for entry in [feed.get(WATCHDOG_S), feed.get(WATCHDOG_S)]}
        assert seen == {"g/x": "new", "g/y": None}
        hub.state["g/x"] = "newest"
        assert feed.get(WATCHDOG_S).value == "newest"
        feed.close()
        assert entry.version > hub.state.entry("g/x").version  # type: ignore[union-attr]
