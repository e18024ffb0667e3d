"""Removing what dead processes left; what may be in use is left alone."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from pyhub._core import companion, is_dead, remove_dead, remove_leases
from pyhub._datablock import DataBlock
from pyhub.errors import AbiMismatch, AccessDenied, PyhubError, SegmentDamaged, SegmentNotFound
from pyhub.hub.runtime import RuntimeDirectory
from pyhub.names import lease_path, reader_tables, segment_names, segment_path

__all__ = ["clean", "force", "recover"]


def clean(runtime: RuntimeDirectory | None) -> Iterator[str]:
    """Remove dead segments, and what a dead broker left; say each, as it goes.

    Lines that begin with "kept" name what was left alone and why.
    """
    for name in segment_names():
        path = segment_path(name)
        try:
            if remove_dead(path, lease_path()):
                yield f"removed segment {name} ({path}): its producer died"
        except FileNotFoundError:
            continue  # its producer was quicker
        except (SegmentDamaged, AbiMismatch, AccessDenied) as error:
            yield f"kept {path}: {str(error).splitlines()[0]} Remove it: pyhub clean --force {name}"
    yield from _clean_tables()
    if runtime is not None:
        yield from _clean_runtime(runtime)
    if lease_path().exists() and remove_leases(lease_path()):
        yield f"removed {lease_path()}: no process holds a lease"


def force(name: str) -> str:
    """Remove the file of channel `name` whatever it is; say so."""
    path = segment_path(name)
    table = _table_of(path)
    try:
        path.unlink()
    except FileNotFoundError as error:
        raise SegmentNotFound(
            f"there is no channel {name!r} (no file {path}).\n  See which there are: pyhub ls"
        ) from error
    if table is not None and table not in _tables_in_use():
        Path(table).unlink(missing_ok=True)
    return f"removed {path}, whatever it was; who has it mapped keeps it"


def recover(name: str) -> Iterator[str]:
    """Make good what the dead left in the channel `name`, which lives on; say each.

    The next producer and the next reader would do it as well: this is for
    those who do not want to wait for them.

    Raises
    ------
    SegmentNotFound
        There is no such channel.
    """
    block = DataBlock.attach(segment_path(name), name, os.geteuid(), lease_path())
    n_rolled_back, n_readers = block.recover()
    if n_rolled_back is None:
        yield f"kept the lock of {name}: a living producer (pid {block.writer_pid}) is publishing"
    elif n_rolled_back:
        yield f"rolled back what a dead producer of {name} had not published"
    if n_readers:
        places = "the place" if n_readers == 1 else f"{n_readers} places"
        yield f"emptied {places} of dead readers of {name}"


def _clean_tables() -> Iterator[str]:
    """Remove the tables of readers whose channel is gone."""
    for path in reader_tables():
        try:
            # In this order: a creator that is dead names no channel any more.
            if is_dead(path, lease_path()) and str(path) not in _tables_in_use():
                path.unlink(missing_ok=True)
                yield f"removed {path}: the readers of a channel that is gone"
        except FileNotFoundError:
            continue
        except (PyhubError, OSError) as error:
            yield f"kept {path}: {str(error).splitlines()[0]}"


def _tables_in_use() -> set[str]:
    tables = (_table_of(segment_path(name)) for name in segment_names())
    return {table for table in tables if table is not None}


def _table_of(path: Path) -> str | None:
    """Return the table of readers of the segment `path`; None: that is no segment."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(path.lstat().st_mode):  # a pipe would be waited for
            return companion(path)
    return None


def _clean_runtime(runtime: RuntimeDirectory) -> Iterator[str]:
    for path in sorted(runtime.path.glob("*.sock")):
        if _is_abandoned(path):
            path.unlink(missing_ok=True)
            yield f"removed {path}: nobody listens there any more"
    if runtime.read_broker() is not None:
        return
    with runtime.lock("broker.lock", 0.0) as is_ours:
        path = runtime.path / "broker.json"
        if is_ours and path.exists():  # otherwise a broker is starting
            path.unlink()
            yield f"removed {path}: its broker is gone"


def _is_abandoned(path: Path) -> bool:
    """Whether `path` is a socket at which nobody listens; a producer outlives its broker."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as caller:
            caller.setblocking(False)
            caller.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError:  # a full queue, say: somebody is there
        return False
    return False
