"""The broker's file: what it returned for is there, whatever happens to the broker or the file."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyhub.errors import AccessDenied, PyhubError
from pyhub.hub import protocol
from pyhub.hub.broker.comebacks import FormerWorker
from pyhub.hub.broker.state import StateTable
from pyhub.hub.broker.store import LAYOUT, Store
from pyhub.hub.broker.topics import NIL
from pyhub.hub.broker.watches import Watches
from pyhub.hub.protocol import Event, Hello, SetState, StateEntry
from tests.hub.conftest import Spawn, line

HELLO = Hello(protocol.PROTOCOL, "here", 42, 7, "/dev/shm/leases", "detector")

# Says which versions are kept, each after it is, until it is killed. Every
# third one is of a key of its own, every fifth a deletion, and some are large.
WRITER = """
    import sys
    from pathlib import Path
    from pyhub.hub.broker.store import Store
    from pyhub.hub.protocol import StateEntry

    store = Store(Path(sys.argv[1]))
    version = store.version
    while True:
        version += 1
        key = f"key{version}" if version % 3 == 0 else f"key{version % 7}"
        value = None if version % 5 == 0 else str(version).encode() * (version % 1000)
        store.keep_entry(StateEntry(key, value, version, version, "me"), str(version).encode())
        print(version, flush=True)
"""

# The same, but that what it says is kept never is.
FORGETFUL = WRITER.replace(
    "version = store.version",
    "store._connection.execute('BEGIN'); "
    "store._transaction = lambda: contextlib.nullcontext(store._connection); "
    "version = store.version",
).replace("import sys", "import contextlib, sys")

# Writes until its files may not grow any more, then with that bound gone.
FULL = """
    import resource, sys
    from pathlib import Path
    from pyhub.hub.broker.store import Store
    from pyhub.hub.protocol import StateEntry

    store = Store(Path(sys.argv[1]))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
    version = 0
    problem = None
    while problem is None and version < 2000:
        entry = StateEntry(f"key{version + 1}", bytes(20_000), version + 1, 0, "me")
        try:
            store.keep_entry(entry, b"x")
            version += 1
        except OSError as error:
            problem = error
    print(version, flush=True)
    print(repr(str(problem)), flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if problem is not None:
        store.keep_entry(entry, b"x")  # the same one, again
    print(store.version, len(store.entries()), flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[[], Store]]:
    """Open the file as the next broker does, after the one before has closed it."""
    stores: list[Store] = []

    def open_next() -> Store:
        if stores:
            stores[-1].close()
        stores.append(Store(path))
        return stores[-1]

    yield open_next
    for store in stores:
        store.close()


def entry(key: str, value: bytes | None, version: int) -> StateEntry:
    return StateEntry(key, value, version, 1000 + version, f"me (1@host{version})")


def event(topic: str, number: int, value: bytes = b"\x01") -> Event:
    return Event(topic, value, "info", "me", 5, number, True)


# --- What is kept ---


def test_a_new_file_holds_nothing(opened: Callable[[], Store]) -> None:
    store = opened()
    assert store.version == 0
    assert store.entries() == store.kept_events() == store.workers() == []


def test_entries_are_there_for_the_next_broker_with_their_changes(
    opened: Callable[[], Store],
) -> None:
    store = opened()
    for each in [entry("b", b"\x00\xff", 1), entry("a", b"", 2), entry("µ/x", b"3", 7)]:
        store.keep_entry(each, b"change %d" % each.version)
    store = opened()
    assert store.entries() == [
        (entry("b", b"\x00\xff", 1), b"change 1"),
        (entry("a", b"", 2), b"change 2"),
        (entry("µ/x", b"3", 7), b"change 7"),
    ]
    assert store.version == 7


def test_what_was_overwritten_or_deleted_is_known_without_its_value(
    opened: Callable[[], Store],
) -> None:
    store = opened()
    for each in [
        entry("a", b"1", 1),
        entry("b", b"2", 2),
        entry("a", b"3", 3),
        entry("b", None, 4),
    ]:
        store.keep_entry(each, b"change %d" % each.version)
    assert opened().entries() == [
        (entry("a", None, 1), b"change 1"),
        (entry("b", None, 2), b"change 2"),
        (entry("a", b"3", 3), b"change 3"),
        (entry("b", None, 4), b"change 4"),
    ]


def test_the_version_is_that_of_a_deleted_key_too(opened: Callable[[], Store]) -> None:
    store = opened()
    store.keep_entry(entry("a", b"1", 1), b"1")
    store.keep_entry(entry("a", None, 2), b"2")
    assert store.version == opened().version == 2


def test_past_changes_are_forgotten_and_present_values_never(
    opened: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyhub.hub.broker.store._N_PAST", 10)
    store = opened()
    store.keep_entry(entry("old", b"1", 1), b"1")
    for version in range(2, 102):
        store.keep_entry(entry("new", None if version % 2 else b"2", version), b"x")
    assert [each.version for each, _ in store.entries()] == [1, *range(92, 102)]
    assert store.entries()[0] == (entry("old", b"1", 1), b"1")
    assert store.version == 101


def test_a_table_of_state_goes_on_from_the_file(opened: Callable[[], Store]) -> None:
    def table(store: Store) -> StateTable:
        watches = Watches(lambda peer, subject, name: True)
        return StateTable(
            lambda peers, body: None, watches, store.keep_entry, store.entries(), store.version
        )

    bodies = [
        SetState(b"1", "a", b"1"),
        SetState(b"2", "a", b"2", if_version=1),
        SetState(b"3", "b", b"3"),
        SetState(b"4", "b", None),
        SetState(b"5", "c", b"5" * 48 * 1024),
    ]
    first = table(opened())
    replies = [first.set(body, "me") for body in bodies]
    then = table(opened())
    assert [then.get(key) for key in "abc"] == [first.get(key) for key in "abc"]
    assert [then.set(body, "me") for body in bodies] == replies
    assert then.version == 5
    assert [each.version for each, _ in opened().entries()] == [1, 2, 3, 4, 5]


def test_the_last_event_of_a_topic_is_kept_until_nil_is(opened: Callable[[], Store]) -> None:
    store = opened()
    for each in [event("z", 1), event("b", 2), event("a", 3), event("z", 4, b"\x02")]:
        store.keep_event(each)
    store.keep_event(event("b", 5, NIL))
    store.keep_event(event("none", 6, NIL))
    assert opened().kept_events() == [event("a", 3), event("z", 4, b"\x02")]


def test_workers_are_kept_until_they_are_dropped(opened: Callable[[], Store]) -> None:
    a, b = b"\x00peer a", b"\xffpeer b"
    store = opened()
    for service, peer in itertools.product(["cam1", "motor", "stage"], [a, b]):
        store.keep_worker(service, peer, HELLO)
        store.keep_worker(service, peer, HELLO)  # it may say so again
    store.drop_worker("cam1", a)
    store.drop_worker("nothing", a)
    assert set(opened().workers()) == {
        FormerWorker(peer, service, HELLO)
        for service, peer in [("cam1", b), ("motor", a), ("motor", b), ("stage", a), ("stage", b)]
    }
    for service in ("cam1", "motor", "stage"):
        opened().drop_worker(service, b)
    assert {(worker.peer, worker.service) for worker in opened().workers()} == {
        (a, "motor"),
        (a, "stage"),
    }


def test_a_closed_store_is_closed_once_more_and_leaves_one_file(
    opened: Callable[[], Store], path: Path
) -> None:
    store = opened()
    store.keep_event(event("a", 1))
    store.close()
    store.close()
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(OSError, match="closed"):
        store.keep_event(event("a", 2))


# --- Death and full disks ---


def test_a_killed_broker_leaves_all_that_it_was_told_is_kept(
    path: Path, spawn: Spawn, opened: Callable[[], Store]
) -> None:
    n_told = 0
    for n_more in (1, 40, 200, 1000):
        writer = spawn(WRITER, path)
        for _ in range(n_more):
            n_told = int(line(writer))
        writer.send_signal(signal.SIGKILL)
        assert writer.stdout is not None
        # It went on until it was killed; half a line was told to nobody.
        rest = writer.stdout.read()
        n_told = int(rest[: rest.rfind("\n") + 1].split()[-1]) if "\n" in rest else n_told
        writer.wait()
        assert writer.returncode == -signal.SIGKILL
        store = opened()
        found = {each.key: each for each, _ in store.entries() if each.value is not None}
        assert store.version in (n_told, n_told + 1)  # kept, but killed before it said so
        expected: dict[str, tuple[bytes, int]] = {}
        for version in range(1, store.version + 1):
            key = f"key{version}" if version % 3 == 0 else f"key{version % 7}"
            expected.pop(key, None)
            if version % 5:
                expected[key] = (str(version).encode() * (version % 1000), version)
        assert {key: (each.value, each.version) for key, each in found.items()} == expected
        store.close()
    assert list(path.parent.glob("*damaged*")) == []


def test_what_was_not_written_is_not_there_after_a_kill(
    path: Path, spawn: Spawn, opened: Callable[[], Store]
) -> None:
    """The control of the test above: a kill does lose what a store does not write."""
    writer = spawn(FORGETFUL, path)
    while int(line(writer)) < 40:
        pass
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert opened().version == 0


def test_a_full_disk_is_an_error_that_loses_nothing(
    path: Path, spawn: Spawn, opened: Callable[[], Store]
) -> None:
    child = spawn(FULL, path, 500_000)
    n_kept = int(line(child))
    problem = line(child)
    assert 5 < n_kept < 50
    assert str(path) in problem
    assert "cannot write" in problem
    assert "Make room" in problem
    # With room again, the same store goes on.
    assert line(child) == f"{n_kept + 1} {n_kept + 1}"
    assert child.wait() == 0
    entries = [each for each, _ in opened().entries()]
    assert [(each.key, each.version) for each in entries] == [
        (f"key{version}", version) for version in range(1, n_kept + 2)
    ]
    assert all(each.value == bytes(20_000) for each in entries)
    assert list(path.parent.glob("*damaged*")) == []


def test_a_disk_with_room_is_no_error(path: Path, spawn: Spawn) -> None:
    """The control of the test above: it is the bound that fails there."""
    child = spawn(FULL, path, 500_000_000)
    assert [line(child) for _ in range(3)] == ["2000", "'None'", "2000 2000"]


# --- Files that are not ours, or damaged ---


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_file_and_what_lies_beside_it_are_their_owners_alone(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = Store(path)
        store.keep_event(event("a", 1))
        files = list(path.parent.iterdir())
        assert len(files) == 2  # with the log of what was written
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        store.close()
    finally:
        os.umask(before)


@pytest.mark.parametrize("has_target", [True, False])
def test_a_link_in_the_place_of_the_file_is_not_followed(path: Path, has_target: bool) -> None:
    elsewhere = path.with_name("elsewhere.db")
    if has_target:
        elsewhere.touch(0o600)
    path.symlink_to(elsewhere)
    with pytest.raises(AccessDenied, match=r"link.*\n.*Remove it"):
        Store(path)
    assert elsewhere.exists() == has_target


@pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK])
def test_what_is_no_plain_file_is_refused(path: Path, kind: int) -> None:
    if kind == stat.S_IFDIR:
        path.mkdir(0o600)
    else:
        os.mknod(path, kind | 0o600)
    with pytest.raises(AccessDenied, match="no plain file"):
        Store(path)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o602])
def test_a_file_that_is_open_to_others_is_refused(path: Path, mode: int) -> None:
    Store(path).close()
    path.chmod(mode)
    with pytest.raises(AccessDenied, match=f"mode {mode:04o}.*(\n.*)*chmod 600 {path}"):
        Store(path)


def test_a_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path).close()
    stranger = os.geteuid() + 1
    if os.geteuid() == 0:
        os.chown(path, stranger, -1)
    else:  # nobody else may give a file away, so become somebody else
        monkeypatch.setattr(os, "geteuid", lambda: stranger)
    with pytest.raises(AccessDenied, match="owner"):
        Store(path)


def test_a_file_that_another_process_has_is_refused_and_left_alone(
    path: Path, spawn: Spawn, opened: Callable[[], Store]
) -> None:
    writer = spawn(WRITER, path)
    assert line(writer) == "1"
    with pytest.raises(OSError, match=r"locked(.*\n)*.*nobody else has the file"):
        opened()
    assert int(line(writer)) > 1
    assert list(path.parent.glob("*damaged*")) == []


def run_sql(path: Path, script: str) -> None:
    """Do to a file of SQLite's what no broker does; it need not be there."""
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()


def filled(path: Path) -> bytes:
    """Make a file of ours; what it holds."""
    store = Store(path)
    for version in range(1, 200):
        store.keep_entry(entry(f"key{version}", b"v" * 500, version), b"change")
    store.keep_event(event("topic", 1))
    store.keep_worker("cam1", b"peer", HELLO)
    store.close()
    return path.read_bytes()


def overwrite(path: Path, start: float, content: bytes) -> None:
    """Put `content` at that part of a file of ours."""
    whole = bytearray(filled(path))
    begin = int(start * len(whole))
    whole[begin : begin + len(content)] = content
    path.write_bytes(whole)


def meddle(path: Path, script: str) -> None:
    """Do it to a file of ours."""
    filled(path)
    run_sql(path, script)


def keep_last_event(path: Path) -> None:
    """Keep an event after which there is no number any more."""
    filled(path)
    store = Store(path)
    store.keep_event(event("topic", 2**63 - 1))
    store.close()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "two letters": lambda path: path.write_bytes(b"xy"),  # of one, SQLite says it is new
    "text": lambda path: path.write_bytes(b'{"state": {}}\n' * 1000),
    "noughts": lambda path: path.write_bytes(bytes(8192)),
    "noise": lambda path: path.write_bytes(os.urandom(8192)),
    "half": lambda path: path.write_bytes(filled(path)[: 4096 * 10 + 100]),
    "only its head": lambda path: path.write_bytes(filled(path)[:100]),
    "a page of noughts": lambda path: overwrite(path, 0.5, bytes(4096)),
    "noise in its middle": lambda path: overwrite(path, 0.4, os.urandom(4096 * 4)),
    "another program's": lambda path: run_sql(path, "CREATE TABLE a (b); PRAGMA user_version=1"),
    "another program's number": lambda path: run_sql(path, "PRAGMA application_id=5"),
    "without a table": lambda path: meddle(path, "DROP TABLE kept"),
    "with another table": lambda path: meddle(path, "CREATE TABLE a (b)"),
    "older than the first": lambda path: meddle(path, "PRAGMA user_version=0"),
    "a text for a number": lambda path: meddle(path, "UPDATE state SET time_ns = 'today'"),
    "the last version there can be": lambda path: meddle(
        path, f"UPDATE state SET version = {2**63 - 1} WHERE version = 199"
    ),
    "an event with the last number there can be": lambda path: keep_last_event(path),
    "no message": lambda path: meddle(path, "UPDATE kept SET event = x'00'"),
    "no hello": lambda path: meddle(
        path, "PRAGMA ignore_check_constraints = 1; UPDATE worker SET hello = 'hello'"
    ),
    "bytes that are no text": lambda path: meddle(
        path, "UPDATE state SET key = CAST(x'ff' AS TEXT) WHERE version = 1"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGE[damage](path)
    path.chmod(0o600)
    damaged = path.read_bytes()
    caplog.set_level(logging.INFO, "pyhub.hub")
    store = Store(path)
    assert store.version == 0
    assert store.entries() == store.kept_events() == store.workers() == []
    store.keep_entry(entry("a", b"1", 1), b"change")
    store.close()
    aside = path.with_name("state.db.damaged-1")
    assert aside.read_bytes()[100:] == damaged[100:]  # but for counters in the file's head
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(path) in record.message
    assert aside.name in record.message
    store = Store(path)
    assert store.entries() == [(entry("a", b"1", 1), b"change")]
    store.close()
    assert len(caplog.records) == 1


def test_a_sound_file_is_not_set_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(path)
    store = Store(path)
    assert len(store.entries()) == 199
    store.close()
    assert not caplog.records
    assert list(path.parent.iterdir()) == [path]


def test_every_damaged_file_is_set_aside_under_a_name_of_its_own(path: Path) -> None:
    for number in (1, 2, 3):
        path.write_bytes(b"damage %d" % number)
        path.chmod(0o600)
        Store(path).close()
    names = [f"state.db.damaged-{number}" for number in (1, 2, 3)]
    assert [path.with_name(name).read_bytes() for name in names] == [
        b"damage 1",
        b"damage 2",
        b"damage 3",
    ]


@pytest.mark.parametrize("is_emptied", [True, False])
def test_what_a_killed_broker_wrote_last_is_not_taken_for_a_new_files(
    path: Path, spawn: Spawn, is_emptied: bool
) -> None:
    writer = spawn(WRITER, path)
    while int(line(writer)) < 40:
        pass
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert path.with_name("state.db-wal").stat().st_size > 10_000
    path.unlink()
    if is_emptied:
        path.touch(0o600)
    store = Store(path)
    assert store.version == 0
    store.keep_entry(entry("a", b"1", 1), b"change")
    store.close()
    store = Store(path)
    assert store.entries() == [(entry("a", b"1", 1), b"change")]
    store.close()


def test_a_file_of_a_newer_pyhub_is_left_alone_and_an_update_asked_for(path: Path) -> None:
    filled(path)
    run_sql(path, f"PRAGMA user_version={LAYOUT + 1}; CREATE TABLE news (id)")
    before = path.read_bytes()
    with pytest.raises(PyhubError, match=f"layout {LAYOUT + 1}.*layout {LAYOUT}(.*\n)*.*update"):
        Store(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_broker_killed_while_it_made_the_file_left_a_new_one(path: Path) -> None:
    run_sql(path, "PRAGMA journal_mode=WAL")
    path.chmod(0o600)
    store = Store(path)
    assert store.version == 0
    store.close()
    assert list(path.parent.iterdir()) == [path]


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        Store(tmp_path / "missing" / "state.db")
