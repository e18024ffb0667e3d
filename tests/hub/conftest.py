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

import pytest

from pyhub import BrokerConfig, MessageHub
from pyhub._core import remove_dead
from pyhub.hub.runtime import RuntimeDirectory
from pyhub.names import lease_path, segment_names, segment_path
from tests.conftest import eventually

Spawn = Callable[..., "subprocess.Popen[str]"]

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
    assert eventually(lambda: RuntimeDirectory(path).read_broker() is not None, 30.0)
    yield BrokerConfig(runtime_dir=path, autostart=False)
    broker.terminate()
    assert line(broker) == "runs"
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
