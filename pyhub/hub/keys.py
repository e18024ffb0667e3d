"""CurveZMQ key pairs in files that only their owner can read."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

import msgspec
import zmq

from pyhub.errors import AccessDenied

__all__ = ["KeyPair", "load_or_create_keys"]


class KeyPair(NamedTuple):
    """A CurveZMQ key pair, in Z85."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r}, secret=...)"


class _KeyFile(msgspec.Struct):
    public: str
    secret: str


def load_or_create_keys(path: Path) -> KeyPair:
    """Return the key pair in `path`; make it first if there is none.

    Two that come at once end up with one pair.

    Raises
    ------
    AccessDenied
        The file belongs to another user or others may read it.
    """
    if not path.exists():
        _create_keys(path)
    return _load_keys(path)


def _create_keys(path: Path) -> None:
    public, secret = zmq.curve_keypair()
    part = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    # O_EXCL and 0600 from the start: whatever the umask says, nobody else can
    # read it for a moment.
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(_KeyFile(public.decode(), secret.decode())))
        with contextlib.suppress(FileExistsError):
            os.link(part, path)  # the first one wins, whole
    finally:
        part.unlink()


def _load_keys(path: Path) -> KeyPair:
    try:
        # NONBLOCK: a pipe of that name shall not keep us waiting for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _no_plain_file(path, str(error.strerror)) from error
    try:
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise _no_plain_file(path, "it is no file")
        if status.st_uid != os.geteuid() or mode & 0o077:
            raise AccessDenied(
                f"the key file {path} has mode {mode:04o} and owner {status.st_uid}; its secret "
                "may be known to others.\n"
                f"  It must be yours alone: chmod 600 {path}; if others could have read it, "
                "remove it and\n  stop the broker, and new keys are made."
            )
        content = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    try:
        keys = msgspec.json.decode(content, type=_KeyFile)
        if zmq.curve_public(keys.secret.encode()).decode() != keys.public:
            raise ValueError("its public key is not that of its secret key")
    except (msgspec.MsgspecError, ValueError, zmq.ZMQError) as error:
        raise AccessDenied(
            f"the key file {path} holds no CurveZMQ key pair.\n"
            "  Remove it and stop the broker; new keys are made."
        ) from error
    return KeyPair(keys.public, keys.secret)


def _no_plain_file(path: Path, reason: str) -> AccessDenied:
    return AccessDenied(
        f"the key file {path} cannot be read: {reason}.\n"
        "  It must be a plain file of your own; remove it to have new keys made."
    )
