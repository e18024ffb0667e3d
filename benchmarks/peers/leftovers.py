"""Removes what a peer leaves in shared memory, and nothing that is another's."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

__all__ = ["Leftovers"]

_SHM = Path("/dev/shm")
_LOCKS = Path("/tmp/zerobuffer")  # ZeroBuffer's, for all of its users


class Leftovers:
    """What the processes of one run have in /dev/shm.

    Some peers leave files behind when they end in good order (ZeroBuffer its
    semaphores), others when they are killed. Which files are ours is known in
    two ways: by the link's name in theirs, and, for a library that makes up
    its own names, by the mappings of our processes.
    """

    def __init__(self) -> None:
        self._before = set(_SHM.iterdir())
        self._had_locks = _LOCKS.exists()
        self._mapped: set[Path] = set()

    def note(self, pid: int) -> None:
        """Remember what this process, still running, has mapped."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                _, slash, name = line.partition(f"{_SHM}/")
                # multiprocessing removes its semaphores itself, in this process.
                if slash and not name.startswith("sem.mp-"):
                    self._mapped.add(_SHM / name)

    def remove(self, names: list[str]) -> None:
        """Take away what is new and either bears one of `names` or was mapped."""
        for path in _SHM.iterdir():
            is_named = any(name in path.name for name in names)
            if path not in self._before and (is_named or path in self._mapped):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        for name in names:
            (_LOCKS / f"{name}.lock").unlink(missing_ok=True)
        if not self._had_locks:
            with contextlib.suppress(OSError):  # not there, or another's lock is in it
                _LOCKS.rmdir()
