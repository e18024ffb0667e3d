"""Other processes: real ones, which a test talks to line by line, and may kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from pyhub._core import remove_dead
from pyhub.names import lease_path, segment_names, segment_path

PRELUDE = """
import logging, os, signal, sys, threading, time, zlib
import numpy as np
import pyhub
from pyhub import DataBlockConsumer, DataBlockProducer, ZoneUpdateInfo

logging.basicConfig(level=logging.ERROR)

def say(*words):
    print(*words, flush=True)

def wait_for_go():
    os.read(0, 1)  # no more than its own: `select` still sees the next one

"""


class Child:
    """A Python script in a process of its own, which ends with the test at the latest."""

    def __init__(self, script: str, *arguments: object, prefix: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error", "-c", PRELUDE + script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def expect(self, word: str) -> str:
        """Wait for its next line, which begins with `word`; return the rest."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith(word):
            self.process.kill()
            pytest.fail(f"expected {word!r}, got {line!r}\n{self.process.communicate()[1]}")
        return line.removeprefix(word).strip()

    def go(self) -> None:
        """Let it go on from `wait_for_go`."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self, status: int = 0) -> str:
        """Wait for its end, which must be a quiet one; return what else it said."""
        said, complaints = self.process.communicate()
        assert (self.process.returncode, complaints) == (status, "")
        return said

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop it as a debugger or Ctrl-Z does, and wait until it stands."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def resume(self) -> None:
        """Let it go on after `stop`."""
        self.process.send_signal(signal.SIGCONT)

    def interrupt(self) -> None:
        """Press Ctrl-C once it sleeps: in the call that is tested, if it says so before it."""
        while self.state() != "S":
            time.sleep(0.001)
        self.process.send_signal(signal.SIGINT)

    def state(self) -> str:
        """Return the kernel's letter for what it does."""
        with open(f"/proc/{self.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]


Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start scripts; whatever still runs at the end of the test is killed."""
    children: list[Child] = []

    def start_(script: str, *arguments: object, prefix: tuple[str, ...] = ()) -> Child:
        children.append(Child(script, *arguments, prefix=prefix))
        return children[-1]

    yield start_
    running = [child for child in children if child.process.poll() is None]
    for child in children:
        child.process.kill()
        child.process.communicate()
    if running:  # only a test that failed leaves an owner running: spare the next one
        for name in segment_names():
            remove_dead(segment_path(name), lease_path())


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until a claim holds, where no event tells; the test's watchdog ends it."""

    def wait(claim: Callable[[], object]) -> None:
        while not claim():
            time.sleep(0.002)

    return wait
