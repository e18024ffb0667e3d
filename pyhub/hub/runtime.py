"""The runtime directory: where a user's broker, keys and sockets are found.

``$PYHUB_RUNTIME_DIR``, else ``$XDG_RUNTIME_DIR/pyhub``, else
``/tmp/pyhub-<uid>``; mode 0700, so that the directory is the credential.

    broker.json    where the broker listens, its public key, its lease
    broker.lock    locked by the broker for as long as it lives
    start.lock     locked by the program that starts one
    broker.log     what the broker has to say
    *.key          key pairs, mode 0600
    *.sock         the broker's socket, and one a channel
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pyhub._core import lease_is_alive
from pyhub.errors import AccessDenied, BrokerUnreachable, PyhubError
from pyhub.hub.keys import KeyPair, is_public_key, load_or_create_keys, read_keys
from pyhub.hub.protocol import Lease

__all__ = ["BrokerConfig", "BrokerFile", "RuntimeDirectory", "endpoint_digest"]

# sockaddr_un.sun_path holds 108 bytes with the closing NUL.
_MAX_SOCKET_PATH = 107
# A broker is of the same pyhub as the program that starts it, wherever that one
# found it; and what lies in the user's present directory (a signal.py, say) is
# not to be taken for a module: so no -m.
_PACKAGE = Path(__file__).resolve().parents[1] / "__init__.py"
_DAEMON = """\
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("pyhub", sys.argv.pop(1))
sys.modules["pyhub"] = package = module_from_spec(spec)
spec.loader.exec_module(package)
from pyhub.hub.broker.daemon import main
main()
"""


@dataclass(frozen=True)
class BrokerConfig:
    """How a program finds its broker. All defaults work.

    Attributes
    ----------
    runtime_dir
        Where broker, keys and sockets live; None: the user's own.
    autostart
        Whether a broker is started if there is none.
    linger_s
        How long a broker that was so started stays when its last program is
        gone.
    timeout_s
        How long to wait for the broker's answer.
    endpoint, server_key
        Of a broker of another user or host, as ``tcp://beamline:5570``, and its
        public key; default: ``$PYHUB_BROKER`` and ``$PYHUB_BROKER_KEY``.
    key_file
        This program's key pair, made by ``pyhub keygen``, for such a broker;
        default: ``$PYHUB_KEY_FILE``, else the user's own.
    name
        What this program calls itself; default: its file's name.
    """

    runtime_dir: str | os.PathLike[str] | None = None
    autostart: bool = True
    linger_s: float = 10.0
    timeout_s: float = 10.0
    endpoint: str | None = None
    server_key: str | None = None
    key_file: str | os.PathLike[str] | None = None
    name: str | None = None

    @property
    def resolved_endpoint(self) -> str | None:
        """Where the broker is, if it is not the one of the runtime directory."""
        if self.endpoint is None and self.runtime_dir is None:
            return os.environ.get("PYHUB_BROKER") or None
        return self.endpoint


class BrokerFile(msgspec.Struct, frozen=True):
    """What ``broker.json`` says."""

    endpoint: str
    public_key: str
    epoch: str
    pid: int
    lease: Lease
    lease_file: str

    def is_alive(self) -> bool:
        """Whether that broker's process lives; of another host's, only its answers tell."""
        return not self.lease_file or lease_is_alive(self.lease_file, self.lease)


class RuntimeDirectory:
    """A runtime directory that was checked, or made, with the right modes."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        # Absolute: a broker, and its clients, may work in other directories.
        self.path = (Path(path) if path is not None else _default_path()).absolute()
        _make_private(self.path)
        if len(os.fsencode(self.endpoint_of("x").removeprefix("ipc://"))) > _MAX_SOCKET_PATH:
            raise PyhubError(
                f"the runtime directory {self.path} has too long a name for sockets: at most "
                f"{_MAX_SOCKET_PATH} bytes with the socket's own name.\n"
                "  Set PYHUB_RUNTIME_DIR to a shorter one."
            )

    @property
    def broker_endpoint(self) -> str:
        """Where the broker listens."""
        return f"ipc://{self.path / 'broker.sock'}"

    def endpoint_of(self, channel: str) -> str:
        """Return where the notifications of `channel` are published."""
        return f"ipc://{self.path / f'{endpoint_digest(channel)}.sock'}"

    def key_path(self, who: str) -> Path:
        """Return the file of a key pair: of the "broker" or the "client"."""
        return self.path / f"{who}.key"

    @property
    def state_path(self) -> Path:
        """Where a broker leaves the state, and kept events, to the next one."""
        return self.path / "state.db"

    @property
    def log_path(self) -> Path:
        """Where a broker that was started by a program writes."""
        return self.path / "broker.log"

    def read_broker(self) -> BrokerFile | None:
        """Return what is known of the living broker; None if there is none."""
        try:
            broker = msgspec.json.decode((self.path / "broker.json").read_bytes(), type=BrokerFile)
        except (FileNotFoundError, msgspec.MsgspecError, ValueError):
            return None
        is_whole = is_public_key(broker.public_key) and broker.endpoint.startswith("ipc://")
        return broker if is_whole and broker.lease_file and broker.is_alive() else None

    def write_broker(self, broker: BrokerFile) -> None:
        """Tell programs where the broker is; they see all of it or nothing."""
        part = self.path / f".broker.json.{os.getpid()}"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(broker))
            part.replace(self.path / "broker.json")
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def remove_broker(self, epoch: str) -> None:
        """Take back what `write_broker` told, unless another broker has come."""
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            path = self.path / "broker.json"
            if msgspec.json.decode(path.read_bytes(), type=BrokerFile).epoch == epoch:
                path.unlink()

    @contextlib.contextmanager
    def lock(self, name: str, timeout_s: float) -> Iterator[bool]:
        """Hold the lock file `name`; gives False if it was not to be had in time."""
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield _lock_until(descriptor, time.monotonic() + timeout_s)
        finally:
            os.close(descriptor)  # and with it the lock

    def find_broker(self, config: BrokerConfig, deadline: float) -> BrokerFile:
        """Return the living broker; start one if there is none.

        However many programs come at once, one broker is started. `deadline`
        is monotonic time, s.

        Raises
        ------
        BrokerUnreachable
            There is none and none could be started in time.
        AccessDenied
            It could not start, as a key file is open to others.
        """
        if config.resolved_endpoint is not None:
            return _distant(config, config.resolved_endpoint)
        broker = self.read_broker()
        if broker is not None:
            return broker
        if not config.autostart:
            raise BrokerUnreachable(
                f"no broker runs in {self.path}, and none may be started.\n"
                "  Start one with: pyhub broker"
            )
        with self.lock("start.lock", deadline - time.monotonic()) as is_ours:
            broker = self.read_broker()
            if broker is None and is_ours:
                self._start_broker(config.linger_s)
            while broker is None and time.monotonic() < deadline:
                time.sleep(0.01)  # until the broker that was started tells where it is
                broker = self.read_broker()
        if broker is None:
            raise self.not_started(config.timeout_s)
        return broker

    def not_started(self, timeout_s: float) -> BrokerUnreachable:
        """Return the error that says that no broker came."""
        return BrokerUnreachable(
            f"the broker did not start within {timeout_s:g} s ({self.path}).\n"
            f"  See why in {self.log_path}, or run it yourself: pyhub broker"
        )

    def not_answered(self, endpoint: str, config: BrokerConfig) -> BrokerUnreachable:
        """Return the error that says that a distant broker did not answer, and why, if known."""
        says = f"the broker at {endpoint} did not answer within {config.timeout_s:g} s"
        found = re.fullmatch(r"tcp://\[?(.+?)\]?:(\d+)", endpoint)
        if found is not None:
            try:
                socket.create_connection((found[1], int(found[2])), 0.5).close()
            except OSError as error:
                return BrokerUnreachable(
                    f"{says}: {error.strerror or error}.\n"
                    "  Nothing listens there, or a firewall lets nobody through: is the broker "
                    "running, and is that its port?"
                )
        return BrokerUnreachable(
            f"{says}, though something listens there.\n"
            "  Either server_key= (PYHUB_BROKER_KEY) is not that broker's public key, or its list "
            "of clients\n  does not have this program's: "
            f"{self.client_keys(config).public} ({self._key_file(config)}).\n"
            "  audit.log, in the broker's runtime directory, says whom it refused."
        )

    def client_keys(self, config: BrokerConfig) -> KeyPair:
        """Return the key pair with which this program shows who it is."""
        path = self._key_file(config)
        is_own = path == self.key_path("client")
        return load_or_create_keys(path) if is_own else read_keys(path)

    def _key_file(self, config: BrokerConfig) -> Path:
        path = config.key_file or os.environ.get("PYHUB_KEY_FILE")
        if config.resolved_endpoint is None or not path:
            return self.key_path("client")
        return Path(path)

    def _start_broker(self, linger_s: float) -> None:
        import subprocess  # 5 ms, which most programs need not spend: one starts it

        # It would end over these in its log; here, the user is told.
        for who in ("broker", "client"):
            load_or_create_keys(self.key_path(who))
        log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # It forks once more and this half ends at once: no child to wait
            # for later, and no terminal to be ended with.
            subprocess.run(
                [sys.executable, "-P", "-c", _DAEMON, _PACKAGE, self.path, str(linger_s)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                check=False,
            )
        finally:
            os.close(log)


def _distant(config: BrokerConfig, endpoint: str) -> BrokerFile:
    if not re.fullmatch(r"tcp://.+:\d+|ipc://.+", endpoint):
        raise BrokerUnreachable(
            f"{endpoint!r} is no address of a broker.\n"
            "  Write it as tcp://HOST:PORT, in endpoint= or PYHUB_BROKER."
        )
    server_key = config.server_key or os.environ.get("PYHUB_BROKER_KEY", "")
    if not is_public_key(server_key):
        raise AccessDenied(
            f"the broker at {endpoint} cannot be trusted without its public key; "
            f"{server_key[:50]!r} is none.\n"
            "  Give server_key= or set PYHUB_BROKER_KEY to its 40 characters: on its host, "
            "`cat NAME.pub`."
        )
    return BrokerFile(endpoint, server_key, epoch="", pid=0, lease=0, lease_file="")


def endpoint_digest(name: str) -> str:
    """Return a short name for a channel's socket: paths of sockets are short."""
    import hashlib  # loads OpenSSL, which takes a fifth of all that pyhub loads

    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def _lock_until(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)  # until whoever holds it lets go or dies


def _default_path() -> Path:
    if directory := os.environ.get("PYHUB_RUNTIME_DIR"):
        return Path(directory)
    if directory := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(directory, "pyhub")
    return Path("/tmp", f"pyhub-{os.geteuid()}")


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        pass
    except OSError as error:
        raise AccessDenied(
            f"the runtime directory {path} cannot be made: {error.strerror}.\n"
            "  Set PYHUB_RUNTIME_DIR to a directory of your own."
        ) from error
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or mode & 0o077:
        raise AccessDenied(
            f"the runtime directory {path} has mode {mode:04o} and owner {status.st_uid}; "
            "others could listen in.\n"
            f"  It must be a directory of yours alone: chmod 700 {path}, or set "
            "PYHUB_RUNTIME_DIR to another."
        )
