"""What may be called how, and where files are found: segments, leases, headers."""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from pathlib import Path

from pyhub.errors import InvalidName

__all__ = [
    "check_name",
    "check_topic",
    "check_pattern",
    "has_wildcards",
    "pattern",
    "shm_directory",
    "segment_path",
    "segment_names",
    "reader_tables",
    "lease_path",
    "get_include",
]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_WILDCARDS = re.compile(r"[*?[]")
_MAX_TOPIC_BYTES = 255


def check_name(name: str, what: str = "channel") -> str:
    """Return `name` if a channel, or `what` else it is, may have it.

    Raises
    ------
    InvalidName
        Not 1 to 200 of letters, digits, ``.``, ``_`` and ``-``, or it starts
        with ``.`` or ``-``. A name becomes part of a file's name and of a
        notification topic.
    """
    if not isinstance(name, str) or len(name) > 200 or not _is_name(name):
        raise InvalidName(
            f"{name!r} cannot be the name of a {what}.\n"
            "  Use 1 to 200 letters, digits, '.', '_' and '-', the first one no '.' or '-'."
        )
    return name


@functools.lru_cache(maxsize=1024)  # few, said often; long ones do not come here
def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text))


def check_topic(name: str) -> str:
    """Return `name` if a topic of events, or a key of the state, may be called so.

    Raises
    ------
    InvalidName
        Not 1 to 255 bytes of UTF-8, or with control characters or other ones
        that are not seen, or with ``*``, ``?`` or ``[``: those belong to patterns.
    """
    if not _can_be_topic(name) or has_wildcards(name):
        raise InvalidName(
            f"{name!r} cannot be a topic or a key.\n"
            f"  Use 1 to {_MAX_TOPIC_BYTES} bytes of printable text, such as 'cam1/exposure', "
            "without '*', '?' and '['."
        )
    return name


def check_pattern(text: str) -> str:
    """Return `text` if it may be a pattern of topics or keys, or one of them.

    Raises
    ------
    InvalidName
        As for `check_topic`, but that ``*``, ``?`` and ``[...]`` are welcome.
    """
    if not _can_be_topic(text):
        raise InvalidName(
            f"{text!r} cannot be a pattern of topics or keys.\n"
            f"  Use 1 to {_MAX_TOPIC_BYTES} bytes of printable text, such as 'cam1/*'."
        )
    return text


def has_wildcards(text: str) -> bool:
    """Whether the pattern `text` may match anything but itself."""
    return _WILDCARDS.search(text) is not None


@functools.lru_cache(1024)
def pattern(text: str) -> re.Pattern[str]:
    """Return what `text` matches: names with ``*``, ``?`` and ``[...]``, as in a shell.

    A star also matches slashes and dots: ``cam1/*`` is all that is below cam1.
    """
    return re.compile(fnmatch.translate(text))


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


def _can_be_topic(text: str) -> bool:
    # What is not printable could forge a line of a log. Half a surrogate pair
    # is not either, so that all others can be encoded.
    return (
        isinstance(text, str) and text.isprintable() and 1 <= len(text.encode()) <= _MAX_TOPIC_BYTES
    )


def _prefix(uid: int | None) -> str:
    return f"pyhub.{os.geteuid() if uid is None else uid}."
