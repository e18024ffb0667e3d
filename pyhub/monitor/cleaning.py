"""Removing what dead processes left; what may be in use is left alone."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from pyhub._core import remove_dead, remove_leases
from pyhub.errors import AbiMismatch, AccessDenied, SegmentDamaged
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
    if runtime is not None and runtime.read_broker() is None:
        yield from _clean_runtime(runtime)
    if lease_path().exists() and remove_leases(lease_path()):
        yield f"removed {lease_path()}: no process holds a lease"


def force(name: str) -> str:
    """Remove the file of channel `name` whatever it is; say so."""
    path = segment_path(name)
    path.unlink()
    return f"removed {path}, whatever it was; who has it mapped keeps it"


def _clean_runtime(runtime: RuntimeDirectory) -> Iterator[str]:
    with runtime.lock("broker.lock", 0.0) as is_ours:
        if not is_ours:
            return  # a broker is starting
        for path in sorted(runtime.path.iterdir()):
            if path.name == "broker.json" or _is_socket(path):
                path.unlink(missing_ok=True)
                yield f"removed {path}: its broker is gone"


def _is_socket(path: Path) -> bool:
    return path.suffix == ".sock" and stat.S_ISSOCK(path.lstat().st_mode)
