"""Brokers and programs for the tests of the hub: processes of their own, all ended again."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyhub import BrokerConfig, MessageHub
from pyhub._core import remove_dead
from pyhub.hub.client.calls import PendingCall
from pyhub.hub.runtime import RuntimeDirectory
from pyhub.names import lease_path, segment_names, segment_path
from tests.conftest import eventually

Spawn = Callable[..., "subprocess.Popen[str]"]

WATCHDOG_S = 30

_numbers = itertools.count()

# A broker in the foreground, as `pyhub broker` runs one.
FOREGROUND = """
    import signal, sys
    from pyhub.hub.broker.server import Broker
    from pyhub.hub.runtime import RuntimeDirectory

    broker = Broker(RuntimeDirectory(sys.argv[1]))
    signal.signal(signal.SIGTERM, lambda *_: broker.stop())
    print("runs" if broker.run() else "refused", flush=True)
"""

# Offers commands until it is told to end; notes in a file what it does.
WORKER = """
    import os, sys, time
    from pathlib import Path
    from pyhub import BrokerConfig, MessageHub
    from pyhub import Job

    runtime, name, directory, threads = sys.argv[1:]
    directory = Path(directory)
    with MessageHub(BrokerConfig(runtime_dir=runtime, autostart=False)) as hub:
        service = hub.service(name, threads=int(threads))

        def note(text: str) -> None:
            with open(directory / "done", "a") as file:
                print(text, file=file, flush=True)

        @service.command
        def work(x: int = 0) -> list[int]:
            note(f"work {x}")
            return [x, os.getpid()]

        @service.command
        def wait(x: int = 0) -> list[int]:
            note(f"begun {x}")
            while not (directory / f"go {x}").exists():
                time.sleep(0.005)
            note(f"ended {x}")
            return [x, os.getpid()]

        @service.command
        def count(job: Job, n: int) -> int:
            for number in range(n):
                job.report({"number": number})
            return n

        @service.command
        def until_cancelled(job: Job) -> None:
            note("begun until_cancelled")
            while not job.wait(10.0):
                pass
            note("cancelled")
            job.check()

        print("here", flush=True)
        input()
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run Python code in a process of its own; warnings are errors there too."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(child: subprocess.Popen[str]) -> str:
    """Wait for the next line that `child` prints."""
    assert child.stdout is not None
    return child.stdout.readline().strip()


def go_on(child: subprocess.Popen[str]) -> None:
    """Let `child` return from its `input()`."""
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def end(child: subprocess.Popen[str]) -> None:
    """Kill `child` if it has not ended by itself, and close its pipes."""
    child.kill()
    child.communicate()


def wait_until_gone(runtime: Path) -> None:
    """Wait until no broker has the runtime directory any more."""
    if runtime.exists():
        with RuntimeDirectory(runtime).lock("broker.lock", 30.0) as is_free:
            assert is_free, "a broker was left running"


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process for a while, as SIGSTOP does."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Workers:
    """Programs that offer the same service, and what they noted."""

    def __init__(self, spawn: Spawn, config: BrokerConfig, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self._spawn, self._config = spawn, config

    def start(self, n_workers: int = 1, threads: int = 1) -> list[subprocess.Popen[str]]:
        children = [
            self._spawn(WORKER, self._config.runtime_dir, self.name, self.path, threads)
            for _ in range(n_workers)
        ]
        assert [line(child) for child in children] == ["here"] * n_workers
        return children

    def noted(self) -> list[str]:
        file = self.path / "done"
        return file.read_text().splitlines() if file.exists() else []

    def has_noted(self, text: str, n: int = 1) -> bool:
        return eventually(lambda: self.noted().count(text) >= n, WATCHDOG_S)

    def go(self, x: int = 0) -> None:
        (self.path / f"go {x}").touch()


async def awaited(call: PendingCall) -> Any:
    return await call


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start programs that are killed at the end of the test, with what they leave."""
    children: list[subprocess.Popen[str]] = []

    def spawn_one(code: str, *arguments: object) -> subprocess.Popen[str]:
        children.append(start(code, *arguments))
        return children[-1]

    yield spawn_one
    for child in children:
        end(child)
    for name in segment_names():
        remove_dead(segment_path(name), lease_path())


@pytest.fixture
def config(runtime: Path) -> Iterator[BrokerConfig]:
    """How to find a broker of the test's own, which starts by itself and ends soon."""
    yield BrokerConfig(runtime_dir=runtime, linger_s=0.3)
    broker = RuntimeDirectory(runtime).read_broker()
    if broker is not None:
        os.kill(broker.pid, signal.SIGKILL)  # that it ends by itself has tests of its own
    wait_until_gone(runtime)


@pytest.fixture(scope="module")
def shared() -> Iterator[BrokerConfig]:
    """How to find the broker that this module's tests share, in the foreground."""
    path = Path(tempfile.mkdtemp(prefix="phb-"))
    broker = start(FOREGROUND, path)
    try:
        assert eventually(lambda: RuntimeDirectory(path).read_broker() is not None, WATCHDOG_S)
        yield BrokerConfig(runtime_dir=path, autostart=False)
        broker.terminate()
        assert line(broker) == "runs"
    finally:
        end(broker)
        shutil.rmtree(path)


@pytest.fixture
def hub(shared: BrokerConfig) -> Iterator[MessageHub]:
    """A hub with the shared broker, which has forgotten what earlier tests killed."""
    with MessageHub(shared) as hub:
        assert eventually(lambda: hub.channels() == [])
        yield hub


@pytest.fixture
def name() -> str:
    """A channel's name that no other test uses."""
    return f"channel{next(_numbers)}"


@pytest.fixture
def workers(spawn: Spawn, shared: BrokerConfig, name: str, tmp_path: Path) -> Workers:
    return Workers(spawn, shared, name, tmp_path)


@pytest.fixture
def here(shared: BrokerConfig) -> Iterator[MessageHub]:
    """A second hub of this process, that offers commands to the first one."""
    with MessageHub(shared) as here:
        yield here
