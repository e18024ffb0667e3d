"""Removing what dead processes left; what may be in use is left alone."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from pyhub._core import remove_dead, remove_leases
from pyhub.errors import AbiMismatch, AccessDenied, SegmentDamaged, SegmentNotFound
from pyhub.hub.runtime import RuntimeDirectory
from pyhub.names import lease_path, segment_names, segment_path

__all__ = ["clean", "force"]


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
    if runtime is not None:
        yield from _clean_runtime(runtime)
    if lease_path().exists() and remove_leases(lease_path()):
        yield f"removed {lease_path()}: no process holds a lease"


def force(name: str) -> str:
    """Remove the file of channel `name` whatever it is; say so."""
    path = segment_path(name)
    try:
        path.unlink()
    except FileNotFoundError as error:
        raise SegmentNotFound(
            f"there is no channel {name!r} (no file {path}).\n  See which there are: pyhub ls"
        ) from error
    return f"removed {path}, whatever it was; who has it mapped keeps it"


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
