"""Brokers and programs to do harm to, as processes of their own, and what they take."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import zmq

from pyhub import BrokerConfig
from pyhub.hub import protocol
from pyhub.hub.keys import KeyPair, create_key_files, load_or_create_keys
from pyhub.hub.runtime import BrokerFile, RuntimeDirectory
from tests.conftest import eventually

Line = zmq.Socket[bytes]
Program: TypeAlias = "subprocess.Popen[str]"

WATCHDOG_S = 60.0
MEGABYTE = 2**20

# `pyhub broker`, after whatever a test does to it first.
COMMAND = """
from pyhub.cli import main
main()
"""


@dataclass
class Harmed:
    """A broker that is to survive what is done to it.

    Attributes
    ----------
    process
        It; whoever kills it sets `is_killed`.
    endpoint
        Where it listens for other hosts: a free port of this one.
    """

    process: subprocess.Popen[str]
    runtime: RuntimeDirectory
    file: BrokerFile
    endpoint: str
    directory: Path
    is_killed: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def config(self) -> BrokerConfig:
        """How programs of its own user find it."""
        return BrokerConfig(runtime_dir=self.runtime.path, autostart=False)

    @property
    def own_keys(self) -> KeyPair:
        """The keys of its own user."""
        return load_or_create_keys(self.runtime.key_path("client"))

    def from_afar(self, client: str, endpoint: str = "", name: str | None = None) -> BrokerConfig:
        """How the client of that name finds it from another host."""
        return BrokerConfig(
            runtime_dir=self.runtime.path,
            endpoint=endpoint or self.endpoint,
            server_key=self.file.public_key,
            key_file=self.directory / f"{client}.key",
            name=name,
        )

    def log(self) -> str:
        """What it wrote to standard error."""
        return (self.directory / "broker.err").read_text()


@contextlib.contextmanager
def broker(
    directory: Path,
    *,
    clients: Mapping[str, str] | None = None,
    prelude: str = "",
    environment: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
    address: str = "127.0.0.1",
) -> Iterator[Harmed]:
    """Run a broker that has to be alive at the end, and to end by itself when told to.

    Parameters
    ----------
    clients
        Roles, and rights as YAML behind them, by names: their keys lie in `directory`.
    prelude
        Python that its process runs first.
    within
        What to run it with: `ip netns exec NAME`, say.
    """
    runtime = RuntimeDirectory(directory / "run")
    site = directory / "site.yaml"
    write_site(site, address, clients or {})
    with (directory / "broker.err").open("a") as log:
        process = subprocess.Popen(
            [
                *within, sys.executable, "-W", "error", "-c", textwrap.dedent(prelude) + COMMAND,
                "broker", "--config", str(site), "--runtime-dir", str(runtime.path),
            ],
            env=os.environ | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stderr=log,
            text=True,
        )  # fmt: skip
    try:
        is_up = eventually(lambda: runtime.read_broker() is not None, WATCHDOG_S)
        assert is_up, (directory / "broker.err").read_text()
        file = runtime.read_broker()
        assert file is not None
        port = listening_port(file.pid)
        harmed = Harmed(process, runtime, file, f"tcp://{address}:{port}", directory)
        yield harmed
        if not harmed.is_killed:
            assert process.poll() is None, harmed.log()[-4000:]
            process.send_signal(signal.SIGCONT)
            process.terminate()
            assert process.wait(WATCHDOG_S) == 0, harmed.log()[-4000:]
    finally:
        process.kill()
        process.communicate()


def write_site(path: Path, address: str, clients: Mapping[str, str]) -> None:
    """Write a site's file; keys that are missing are made."""
    lines = [f'listen: ["tcp://{address}:*"]', "clients:" if clients else "clients: []"]
    for name, role in clients.items():
        stem = path.parent / name
        if not stem.with_suffix(".key").exists():
            create_key_files(stem)
        public = stem.with_suffix(".pub").read_text().strip()
        lines += [f"  - name: {name}", f'    key: "{public}"', f"    role: {role}"]
    part = path.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n")
    part.chmod(0o600)
    part.replace(path)


def listening_port(pid: int) -> int:
    """Return the TCP port that a process of one listener listens on."""
    links = (os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())
    inodes = {link[8:-1] for link in links if link.startswith("socket:")}
    for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = row.split()
        if fields[3] == "0A" and fields[9] in inodes:
            return int(fields[1].rpartition(":")[2], 16)
    raise AssertionError(f"process {pid} listens on no port")


def new_keys() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def dialled(
    context: zmq.Context[Line], endpoint: str, server_key: str | None, keys: KeyPair | None
) -> Line:
    """A line to a broker, to say anything over; with no keys, without CURVE."""
    line = context.socket(zmq.DEALER)
    line.linger = 0
    line.maxmsgsize = protocol.MAX_REPLY_BYTES
    line.rcvhwm = line.sndhwm = 100_000
    if server_key is not None and keys is not None:
        line.curve_serverkey = server_key.encode()
        line.curve_publickey = keys.public.encode()
        line.curve_secretkey = keys.secret.encode()
    line.connect(endpoint)
    return line


def hello(name: str = "", host: str = "elsewhere") -> protocol.Hello:
    """A greeting as of a program of another host: only its silence tells of its death."""
    return protocol.Hello(protocol.PROTOCOL, host, os.getpid(), 0, "", name)


def say(line: Line, body: protocol.RequestBody, request_id: int = 1) -> None:
    line.send(protocol.encode(protocol.Request(request_id, body)))


def hear(line: Line) -> protocol.Reply:
    assert line.poll(int(WATCHDOG_S * 1000)), "no answer"
    return protocol.decode_reply(line.recv())


def ask(line: Line, body: protocol.RequestBody, request_id: int = 1) -> object:
    """Return the answer to a request; pushes in between are passed over."""
    say(line, body, request_id)
    while (reply := hear(line)).id != request_id:
        pass
    return reply.body


def resident_bytes(pid: int) -> int:
    """Memory that is the process's own: frames it looks at are not."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(row.split(":", 1) for row in status.splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def cpu_s(pid: int) -> float:
    """What the process has used of processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def n_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def program(
    code: str, *arguments: object, within: Sequence[str] = (), **environment: str
) -> Iterator[Program]:
    """Run Python code in a process of its own, and kill it at the end."""
    child = subprocess.Popen(
        [*within, sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def line_of(child: Program) -> str:
    """Wait for the next line that `child` prints."""
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: Program, text: str = "") -> None:
    """Give `child` a line."""
    assert child.stdin is not None
    child.stdin.write(text + "\n")
    child.stdin.flush()


def now_s() -> float:
    """Return the time for what is printed, never for what is asserted."""
    return time.monotonic()
