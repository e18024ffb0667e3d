"""CurveZMQ key pairs in files that only their owner can read."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from pathlib import Path
from typing import NamedTuple

import msgspec
import zmq
from zmq.utils import z85

from pyhub.errors import AccessDenied

__all__ = [
    "KeyPair",
    "create_key_files",
    "is_public_key",
    "load_or_create_keys",
    "read_keys",
    "shortened_key",
]

_NEW_BY_BROKER = "remove it and stop the broker, and new keys are made"
_NEW_BY_KEYGEN = "have new ones made: pyhub keygen"


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
        with contextlib.suppress(FileExistsError):
            _create_keys(path)
    return _load_keys(path, _NEW_BY_BROKER)


def read_keys(path: Path) -> KeyPair:
    """Return the key pair in `path`, which `create_key_files` made.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    AccessDenied
        The file belongs to another user or others may read it.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"there is no key file {path}, seen from {os.getcwd()!r}.\n"
            "  Check the path, or have a key pair made: pyhub keygen"
        )
    return _load_keys(path, _NEW_BY_KEYGEN)


def create_key_files(stem: Path) -> KeyPair:
    """Make a key pair in two files: `stem`.key, yours alone, and `stem`.pub, to hand out.

    Raises
    ------
    FileExistsError
        One of them is there; neither was touched.
    """
    key_file, public_file = (stem.with_name(f"{stem.name}.{kind}") for kind in ("key", "pub"))
    try:
        path = public_file
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "w") as file:
            try:
                path = key_file
                keys = _create_keys(path)
            except BaseException:
                public_file.unlink()
                raise
            os.fchmod(descriptor, 0o644)  # whatever the umask says
            file.write(f"{keys.public}\n")
    except FileExistsError as error:
        raise FileExistsError(
            f"{path} exists; keys that are in use are not replaced.\n"
            "  Take another name, or remove it if nobody needs it any more."
        ) from error
    return keys


def is_public_key(text: str) -> bool:
    """Whether it is 32 bytes in Z85; a secret key looks no different."""
    try:
        return len(text) == 40 and len(z85.decode(text)) == 32
    except (ValueError, KeyError, struct.error):  # no ASCII, not of Z85, above 2**32
        return False


def shortened_key(public_key: str) -> str:
    """Return what people need of a public key to tell it from others."""
    return f"{public_key[:8]}..."


def _create_keys(path: Path) -> KeyPair:
    """Make a key pair in a file of one's own.

    Raises
    ------
    FileExistsError
        Another one came first.
    """
    public, secret = (key.decode() for key in zmq.curve_keypair())
    part = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    # O_EXCL and 0600 from the start: whatever the umask says, nobody else can
    # read it for a moment.
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(_KeyFile(public, secret)))
        os.link(part, path)  # the first one wins, whole
    finally:
        part.unlink()
    return KeyPair(public, secret)


def _load_keys(path: Path, how_to_renew: str) -> KeyPair:
    try:
        # NONBLOCK: a pipe of that name shall not keep us waiting for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _no_plain_file(path, str(error.strerror), how_to_renew) from error
    try:
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise _no_plain_file(path, "it is no file", how_to_renew)
        if status.st_uid != os.geteuid() or mode & 0o077:
            raise AccessDenied(
                f"the key file {path} has mode {mode:04o} and owner {status.st_uid}; its secret "
                "may be known to others.\n"
                f"  It must be yours alone: chmod 600 {path}; if others could have read it,\n"
                f"  {how_to_renew}."
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
            f"  {how_to_renew[0].upper()}{how_to_renew[1:]}."
        ) from error
    return KeyPair(keys.public, keys.secret)


def _no_plain_file(path: Path, reason: str, how_to_renew: str) -> AccessDenied:
    return AccessDenied(
        f"the key file {path} cannot be read: {reason}.\n"
        f"  It must be a plain file of your own; {how_to_renew}."
    )
