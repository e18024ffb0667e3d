"""What channels may be called, and where files are found: segments, leases, headers."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pyhub.errors import InvalidName

__all__ = [
    "check_name",
    "shm_directory",
    "segment_path",
    "segment_names",
    "reader_tables",
    "lease_path",
    "get_include",
]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def check_name(name: str) -> str:
    """Return `name` if a channel may have it.

    Raises
    ------
    InvalidName
        Not 1 to 200 of letters, digits, ``.``, ``_`` and ``-``, or it starts
        with ``.`` or ``-``. A name becomes part of a file's name and of a
        notification topic.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidName(
            f"{name!r} cannot be the name of a channel.\n"
            "  Use 1 to 200 letters, digits, '.', '_' and '-', the first one no '.' or '-'."
        )
    return name


def shm_directory() -> Path:
    """Return where segments live: ``$PYHUB_SHM_DIR``, or ``/dev/shm``."""
    return Path(os.environ.get("PYHUB_SHM_DIR") or "/dev/shm")


def segment_path(name: str, uid: int | None = None) -> Path:
    """Return the file of channel `name` of user `uid` (default: of this one)."""
    return shm_directory() / f"{_prefix(uid)}{check_name(name)}"


def segment_names(uid: int | None = None) -> list[str]:
    """Return the names of all segments of user `uid`, sorted."""
    prefix = _prefix(uid)
    files = [path.name for path in shm_directory().iterdir() if path.name.startswith(prefix)]
    names = [file.removeprefix(prefix) for file in files]
    return sorted(name for name in names if _NAME.fullmatch(name))


def reader_tables(uid: int | None = None) -> list[Path]:
    """Return the files of all tables of admitted readers of user `uid` (readers.h)."""
    prefix = f"{_prefix(uid)}.readers."
    return sorted(path for path in shm_directory().iterdir() if path.name.startswith(prefix))


def lease_path(uid: int | None = None) -> Path:
    """Return the lock file in which user `uid`'s processes hold their leases.

    Its name is no channel's: those do not start with a dot.
    """
    return shm_directory() / f"{_prefix(uid)}.leases"


def get_include() -> str:
    """Return the directory to give a C compiler: ``#include <pyhub/datablock.h>``."""
    package = Path(__file__).resolve().parent
    for directory in (package / "include", package.parent / "include"):
        if (directory / "pyhub" / "abi.h").is_file():
            return str(directory)
    raise FileNotFoundError(f"pyhub's headers are missing beside {package}.\n  Install it again.")


def _prefix(uid: int | None) -> str:
    return f"pyhub.{os.geteuid() if uid is None else uid}."
