"""Every test gets a shared memory and a runtime directory of its own kind, and leaves no trace."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

# Before anything of pyhub is imported or started: children inherit it.
_SHM = tempfile.mkdtemp(prefix="pyhub-test-", dir="/dev/shm")
_RUNTIME = tempfile.mkdtemp(prefix="phb-")
_PID = os.getpid()
os.environ["PYHUB_SHM_DIR"] = _SHM
os.environ["PYHUB_RUNTIME_DIR"] = _RUNTIME


def pytest_report_header() -> str:
    import zmq

    import pyhub

    return f"pyhub {pyhub.__version__}, libzmq {zmq.zmq_version()}, segments in {_SHM}"


@pytest.fixture(scope="session", autouse=True)
def own_directories() -> Iterator[None]:
    """Remove the session's directories; the broker in them ends by itself."""
    from pyhub.hub.runtime import RuntimeDirectory

    resource_tracker.ensure_running()  # multiprocessing's own, open from here on
    yield
    broker = RuntimeDirectory(_RUNTIME).read_broker()
    if broker is not None:
        os.kill(broker.pid, 15)
    shutil.rmtree(_SHM)
    shutil.rmtree(_RUNTIME)


def segments() -> set[str]:
    """Name the files of all segments; the lock file of the leases is none."""
    return {name for name in os.listdir(_SHM) if not name.endswith("..leases")}


def descriptors() -> dict[str, str]:
    """Name this process's open files, but for those that stay open on purpose."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
        # A lease lasts as long as its process, also in a file that was removed.
        if not target.removesuffix(" (deleted)").endswith("..leases"):
            found[number] = target
    return found


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """After each test, segments and descriptors are as before."""
    files, open_before = segments(), descriptors()
    yield
    if os.getpid() != _PID:  # a child that came back would go on with the next tests
        os._exit(99)
    # ZeroMQ's reaper thread and killed children take a moment.
    eventually(lambda: set(descriptors()) <= set(open_before) and segments() == files)
    left = {number: path for number, path in descriptors().items() if number not in open_before}
    assert segments() == files, "segments were left behind"
    assert not left, "descriptors were left open"


def eventually(claim: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    """Wait until `claim` holds, as the event it waits for has no descriptor."""
    deadline = time.monotonic() + timeout_s
    while not claim():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def fork() -> int:
    """Fork, though there are threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def exit_status(child: int, timeout_s: float = 30.0) -> int:
    """Return the status that a child ends with; where it does not end, it is killed."""
    ended: list[tuple[int, int]] = []

    def has_ended() -> bool:
        ended.append(os.waitpid(child, os.WNOHANG))
        return ended[-1][0] == child

    if not eventually(has_ended, timeout_s):
        os.kill(child, signal.SIGKILL)
        ended.append(os.waitpid(child, 0))
    return os.waitstatus_to_exitcode(ended[-1][1])


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let children take Ctrl-C and a closed window, also under `nohup` or in a shell's background."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.getsignal(number) for number in usual}
    for number, handler in usual.items():
        if before[number] is signal.SIG_IGN:
            signal.signal(number, handler)
    yield
    for number, former in before.items():
        signal.signal(number, former)


async def turns(n: int) -> None:
    """Let the event loop go round `n` times."""
    for _ in range(n):
        await asyncio.sleep(0)


@pytest.fixture
def shm() -> Path:
    """The directory that holds this session's segments."""
    return Path(_SHM)


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A runtime directory of the test's own, with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="phb-"))
    yield path
    shutil.rmtree(path)
