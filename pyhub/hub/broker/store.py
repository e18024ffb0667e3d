"""What a broker leaves to the next one, in a file: state, kept events, and who works for what."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pyhub.errors import AccessDenied, PyhubError
from pyhub.hub.broker.comebacks import FormerWorker
from pyhub.hub.broker.topics import NIL
from pyhub.hub.protocol import Event, Hello, StateEntry

__all__ = ["Store"]

_log = logging.getLogger("pyhub.hub")

# Raised with each change of the tables below; the file says which it has.
LAYOUT = 1
_OURS = 0x70796862  # "pyhb", by which SQLite tells one program's files from another's
# Past changes are kept without their values: a repetition of one is recognised.
_N_PAST = 10_000
# Versions and numbers beyond are nobody's, and there would soon be none to go on with.
_MAX_NUMBER = 2**62
_TABLES = """
CREATE TABLE state (version INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB,
    time_ns INTEGER NOT NULL, source TEXT NOT NULL,
    change BLOB NOT NULL CHECK (typeof(change) = 'blob'));
CREATE UNIQUE INDEX state_present ON state (key) WHERE value IS NOT NULL;
CREATE INDEX state_past ON state (version) WHERE value IS NULL;
CREATE TABLE kept (topic TEXT PRIMARY KEY, event BLOB NOT NULL CHECK (typeof(event) = 'blob'));
CREATE TABLE worker (service TEXT, peer BLOB NOT NULL CHECK (typeof(peer) = 'blob'),
    hello BLOB NOT NULL CHECK (typeof(hello) = 'blob'), PRIMARY KEY (service, peer));
CREATE INDEX worker_peer ON worker (peer);
"""


class Store:
    """The file of a broker, and of nobody else at the time.

    Parameters
    ----------
    path
        The file; made with mode 0600 if there is none. One that is damaged is
        set aside as ``NAME.damaged-1`` (-2, ...), and a new one begun.

    Raises
    ------
    AccessDenied
        It is a link, belongs to somebody else, or others may read it.
    PyhubError
        A newer pyhub wrote it.
    OSError
        It cannot be opened or made.

    Notes
    -----
    What a method that writes returned for is there when the process is killed
    at once. It may not be when the machine loses its power: nothing is
    written through to the disk, for which the broker would have to stand
    still. A method that cannot write raises `OSError`, and changes nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._connection = self._open()
        except _Damaged as error:
            aside = _set_aside(path)
            _log.warning(
                "%s is damaged (%s): set aside as %s. State and kept events begin anew.",
                path,
                error,
                aside.name,
            )
            self._connection = self._open()

    @property
    def version(self) -> int:
        """The last version of any key, also of one that was deleted."""
        ((version,),) = self._read("SELECT coalesce(max(version), 0) FROM state")
        return int(version)

    def entries(self) -> list[tuple[StateEntry, bytes]]:
        """Return what was kept of the state, by version, with the ids of the changes.

        These are all entries that have a value; and of the last 10,000
        changes also those that were overwritten or deleted, with the value
        None. Done again in this order, they make the same state.
        """
        rows = self._read(
            "SELECT key, value, version, time_ns, source, change FROM state ORDER BY version"
        )
        return [(_entry(*fields), change) for *fields, change in rows]

    def keep_entry(self, entry: StateEntry, change: bytes) -> None:
        """Keep an entry in place of the former one with its key; value None: in place of none."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE state SET value = NULL WHERE key = ? AND value IS NOT NULL", (entry.key,)
            )
            connection.execute(
                "INSERT INTO state VALUES (?, ?, ?, ?, ?, ?)",
                (entry.version, entry.key, entry.value, entry.time_ns, entry.source, change),
            )
            connection.execute(
                "DELETE FROM state WHERE value IS NULL AND version <= ?", (entry.version - _N_PAST,)
            )

    def kept_events(self) -> list[Event]:
        """Return the events that were kept, by number."""
        events = [
            msgspec.msgpack.decode(event, type=Event)
            for (event,) in self._read("SELECT event FROM kept")
        ]
        return sorted(events, key=lambda event: event.number)

    def keep_event(self, event: Event) -> None:
        """Keep an event in place of the former one of its topic; of `NIL`: keep none."""
        with self._transaction() as connection:
            if event.value == NIL:
                connection.execute("DELETE FROM kept WHERE topic = ?", (event.topic,))
            else:
                connection.execute(
                    "INSERT OR REPLACE INTO kept VALUES (?, ?)",
                    (event.topic, msgspec.msgpack.encode(event)),
                )

    def workers(self) -> list[FormerWorker]:
        """Return who worked for which service, and was not dropped."""
        rows = self._read("SELECT service, peer, hello FROM worker ORDER BY service, peer")
        return [
            FormerWorker(peer, service, msgspec.msgpack.decode(hello, type=Hello))
            for service, peer, hello in rows
        ]

    def keep_worker(self, service: str, peer: bytes, hello: Hello) -> None:
        """Keep that `peer` works for `service`."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO worker VALUES (?, ?, ?)",
                (service, peer, msgspec.msgpack.encode(hello)),
            )

    def drop_worker(self, service: str, peer: bytes) -> None:
        """Keep no longer that `peer` works for `service`; if it fails, the log says so.

        The next broker then waits in vain for that worker, and not for long.
        """
        try:
            with self._transaction() as connection:
                connection.execute(
                    "DELETE FROM worker WHERE service = ? AND peer = ?", (service, peer)
                )
        except OSError as error:
            _log.warning("a worker of service %r is still written down: %s", service, error)

    def close(self) -> None:
        """Leave the file to the next broker; may be repeated."""
        self._connection.close()

    def _open(self) -> sqlite3.Connection:
        _check_file(self.path)
        try:
            # A second for a broker that is just leaving. One thread at a time uses
            # the connection, but not the one that makes it.
            connection = sqlite3.connect(
                self.path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise _translated(error, self.path) from error
        self._connection = connection
        try:
            _begin(connection, self.path)
            # All is read once: what cannot be, shows now and not at the first look.
            self.entries()
            last = max([self.version, *(event.number for event in self.kept_events())])
            if last > _MAX_NUMBER:
                raise _Damaged(f"it goes on from number {last}")
            self.workers()
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error | msgspec.MsgspecError):
                raise _translated(error, self.path) from error
            raise
        return connection

    def _read(self, query: str) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query).fetchall()
        except sqlite3.Error as error:
            raise _translated(error, self.path) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._connection:  # commits, or takes everything back
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
        except sqlite3.Error as error:
            raise OSError(
                f"the broker cannot write to {self.path}: {error}.\n"
                "  Make room on that disk; what was not written was refused, and may be repeated."
            ) from error


class _Damaged(OSError):
    """The file holds what cannot be used."""


def _check_file(path: Path) -> None:
    """Make the file if there is none; raise if it is anybody's but ours alone."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _no_plain_file(path) from error
        raise
    try:
        status = os.fstat(descriptor)
    finally:
        # Before SQLite opens it: closing this one would end the locks of that one.
        os.close(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise _no_plain_file(path)
    if status.st_uid != os.geteuid() or mode & 0o077:
        raise AccessDenied(
            f"the broker's file {path} has mode {mode:04o} and owner {status.st_uid}; others could "
            "read or set the state.\n"
            f"  It must be yours alone: chmod 600 {path}; or remove it, and the state begins anew."
        )


def _no_plain_file(path: Path) -> AccessDenied:
    return AccessDenied(
        f"the broker's file {path} is a link, or no plain file.\n"
        "  Remove it, and the state begins anew."
    )


def _begin(connection: sqlite3.Connection, path: Path) -> None:
    """Look whether the file is one of ours, and give a new one its tables."""
    # One process has it, and says so at once; then SQLite needs no shared
    # memory beside it either, which network file systems do not have.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    ((found,),) = connection.execute("PRAGMA quick_check(1)")
    if found != "ok":
        raise _Damaged(found)
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    tables = _tables(connection)
    if not tables and not owner and not layout:
        # In one transaction: killed in between, it is a new file still.
        connection.executescript(
            f"BEGIN; {_TABLES} PRAGMA application_id = {_OURS}; PRAGMA user_version = {LAYOUT}; "
            "COMMIT"
        )
    elif owner == _OURS and layout > LAYOUT:
        raise PyhubError(
            f"the broker's file {path} has layout {layout}, this pyhub reads layout {LAYOUT}: a "
            "newer pyhub wrote it.\n"
            "  Update here: conda update pyhub; or move the file away, and the state begins anew."
        )
    elif owner != _OURS or layout != LAYOUT or tables != _expected_tables():
        raise _Damaged("it is another program's, or has other tables")


def _tables(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {sql for (sql,) in rows}


def _expected_tables() -> set[str]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_TABLES)
        return _tables(connection)


def _entry(*fields: Any) -> StateEntry:
    return msgspec.convert(
        dict(zip(StateEntry.__struct_fields__, fields, strict=True)), type=StateEntry
    )


def _translated(error: Exception, path: Path) -> Exception:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    # Without a code: what was read is no text, or no message.
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return _Damaged(str(error))
    return OSError(
        f"the broker cannot use {path}: {error}.\n"
        "  See that its disk has room, and that nobody else has the file."
    )


def _set_aside(path: Path) -> Path:
    """Rename the file, which nobody has open any more; the new name.

    SQLite's log beside it went into it, or away, when it was closed.
    """
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside
