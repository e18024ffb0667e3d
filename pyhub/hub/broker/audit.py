"""The log of refusals: one line each, in a file of the broker's user alone."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
from collections import Counter
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from pyhub.errors import AccessDenied

__all__ = ["Audit"]

_MAX_BYTES = 4 * 2**20
_N_OLD = 3
_MAX_CHARACTERS = 200


class Audit:
    """Writes down who was refused what.

    The file is replaced at 4 MiB, and three old ones are kept, so that nobody
    fills the disk by knocking. A disk that is full does not stop the broker.

    Parameters
    ----------
    path
        The file; made, with mode 0600, when it is missing.

    Attributes
    ----------
    counters
        How many refusals there were of each kind.

    Raises
    ------
    AccessDenied
        The file belongs to another user, others may read it, or it is a link.
    """

    def __init__(self, path: Path) -> None:
        self.counters: Counter[str] = Counter()
        self._file = _AuditFile(path)
        # Not getLogger's: no other handler sees these lines, and brokers of one
        # process do not write into each other's files.
        self._log = logging.Logger("pyhub.audit", logging.INFO)
        self._log.addHandler(self._file)

    @property
    def n_unwritten(self) -> int:
        """How many lines could not be written."""
        return self._file.n_unwritten

    def refused(self, what: str, who: str, where: str, why: str) -> None:
        """Write one line; never raises.

        Parameters
        ----------
        what
            The kind of refusal, as it is counted: one word of the broker's own.
        who, where, why
            Whatever was said; it is quoted, so that nobody can forge a line.
        """
        self.counters[what] += 1
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._log.info(
            "%s refused what=%s who=%s where=%s why=%s",
            now, _quoted(what), _quoted(who), _quoted(where), _quoted(why),
        )  # fmt: skip

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._log.removeHandler(self._file)
        self._file.close()


class _AuditFile(RotatingFileHandler):
    def __init__(self, path: Path) -> None:
        self.n_unwritten = 0
        super().__init__(path, maxBytes=_MAX_BYTES, backupCount=_N_OLD, encoding="ascii")

    def _open(self) -> TextIOWrapper:
        path = self.baseFilename
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise _no_file_of_ours(path, str(error.strerror)) from error
        status = os.fstat(descriptor)
        is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not is_ours or status.st_mode & 0o077:
            os.close(descriptor)
            mode = stat.filemode(status.st_mode)
            raise _no_file_of_ours(path, f"mode {mode}, owner {status.st_uid}")
        file = open(descriptor, "a", encoding="ascii")  # noqa: SIM115  the handler closes it
        # Half a line, from a full disk or a death, is not to take the next one in.
        if status.st_size and os.pread(descriptor, 1, status.st_size - 1) != b"\n":
            file.write("\n")
        return file

    def handleError(self, record: logging.LogRecord) -> None:
        """Count the line; the stream goes, as it would write its rest much later."""
        self.n_unwritten += 1
        stream, self.stream = self.stream, None
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _no_file_of_ours(path: str, reason: str) -> AccessDenied:
    return AccessDenied(
        f"the log of refusals {path} cannot be written: {reason}.\n"
        "  It must be a plain file of the broker's user alone (mode 0600); move it away, and "
        "a new one is made."
    )


def _quoted(text: str) -> str:
    """Return `text` in ASCII and in quotes, without control characters."""
    cut = text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 3] + "..."
    return json.dumps(cut).replace("\x7f", "\\u007f")
