"""The command line as a user meets it: processes, their words, their ends, real signals."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import pyhub
from tests.conftest import eventually

# A watchdog, not a claim: what takes so long has stopped.
PATIENCE_S = 20.0
MARK = "PYHUB_TEST_MARK"


def await_that(claim: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Return `claim()` once it is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := claim()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.01)
    return found


class Program:
    """A command that was started: what it says, and how it ends."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process, self._out, self._err = process, out, err
        self.pid = process.pid

    def __repr__(self) -> str:
        words = " ".join(map(str, self.process.args[1:]))  # type: ignore[index,union-attr]
        return f"<{words}: {self.code}>\n{(self.out + self.err)[-3000:]}"

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def says(self, pattern: str) -> re.Match[str]:
        """Wait until it has said `pattern`, on either stream."""

        def said() -> re.Match[str] | None:
            has_ended = self.code is not None
            found = re.search(pattern, self.out + self.err)
            assert found or not has_ended, f"{self!r} did not say {pattern!r}"
            return found

        found: re.Match[str] = await_that(said, f"{pattern!r} of {self!r}")
        return found

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"goes on and on: {self!r}") from None

    def suspend(self) -> None:
        """Stop it as Ctrl-Z does, and wait until it stands."""
        self.process.send_signal(signal.SIGSTOP)
        await_that(lambda: _state(self.pid) == "T", "a process that stands")

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


class Terminal(Program):
    """A program in a terminal of its own, which passes keys on as real ones do."""

    # Makes the terminal its session's, so that Ctrl-C goes to all that run in it.
    _LAUNCH = (
        "import fcntl, os, sys, termios\n"
        "os.setsid()\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )

    def __init__(self, arguments: list[str], environment: dict[str, str], size: tuple[int, int]):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        environment = environment | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            environment.pop(name, None)
        process = subprocess.Popen(
            [sys.executable, "-c", self._LAUNCH, *arguments],
            env=environment, stdin=slave, stdout=slave, stderr=slave,
        )  # fmt: skip
        os.close(slave)
        os.set_blocking(self._master, False)
        super().__init__(process, Path(os.devnull), Path(os.devnull))
        self._seen = b""

    @property
    def raw(self) -> str:
        """All that came out so far, control sequences included."""
        with contextlib.suppress(BlockingIOError, OSError):  # nothing now; nobody is left
            while chunk := os.read(self._master, 1 << 16):
                self._seen += chunk
        return self._seen.decode(errors="replace")

    @property
    def out(self) -> str:
        """What can be read on it."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.raw)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        # A terminal that nobody reads stops who writes to it.
        await_that(lambda: self.raw is not None and self.code is not None, f"its end: {self!r}")
        return self.process.wait()

    def close(self) -> None:
        """Close the window."""
        os.close(self._master)


class CommandLine:
    """Calls ``python -m pyhub``; `cli("ls")` waits for its end, `start` does not."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.mark = secrets.token_hex(8)
        self.folder = folder
        settings = {
            MARK: self.mark,
            "COLUMNS": "160",
            "TZ": "UTC",
            "OPENBLAS_NUM_THREADS": "1",  # to start more takes longer than most commands
        }
        self.environment = os.environ | settings | environment
        self._programs: list[Program] = []

    def __call__(self, *arguments: object, **options: Any) -> Program:
        program = self.start(*arguments, **options)
        program.end()
        return program

    def side_by_side(self, *commands: list[Any], **options: Any) -> list[Program]:
        """Call several commands at once, and wait for all of them."""
        programs = [self.start(*command, **options) for command in commands]
        for program in programs:
            program.end()
        return programs

    def start(self, *arguments: object, **options: Any) -> Program:
        return self.start_python("-m", "pyhub", *map(str, arguments), **options)

    @contextlib.contextmanager
    def in_terminal(
        self, *arguments: object, size: tuple[int, int] = (40, 120)
    ) -> Iterator[Terminal]:
        terminal = Terminal(["-m", "pyhub", *map(str, arguments)], dict(self.environment), size)
        self._programs.append(terminal)
        try:
            yield terminal
        finally:
            if terminal.code is None:
                terminal.end(signal.SIGTERM)
            with contextlib.suppress(OSError):
                terminal.close()

    def start_shell(self, script: str, **options: Any) -> Program:
        return self._start(["sh", "-c", script], **options)

    def start_python(self, *arguments: str, **options: Any) -> Program:
        return self._start([sys.executable, *arguments], **options)

    def _start(self, arguments: list[str], **options: Any) -> Program:
        number = len(self._programs)
        out, err = (self.folder / f"{number}.{stream}" for stream in ("out", "err"))
        environment = self.environment | options.pop("env", {})
        with open(out, "wb") as to_out, open(err, "wb") as to_err:
            streams = {"stdin": subprocess.DEVNULL, "stdout": to_out, "stderr": to_err} | options
            process = subprocess.Popen(arguments, env=environment, **streams)
        self._programs.append(Program(process, out, err))
        return self._programs[-1]

    def running(self, *, with_brokers: bool = False) -> list[int]:
        """Return the processes that came of this command line; brokers end in their own time."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if not entry.name.isdigit() or int(entry.name) == os.getpid():
                    continue
                if f"{MARK}={self.mark}".encode() not in (entry / "environ").read_bytes():
                    continue
                if with_brokers or b"broker.daemon" not in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def words_of_running(self) -> list[str]:
        """Return the command lines of `running`."""
        found = []
        for pid in self.running():
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:200])
        return found

    def await_nobody(self) -> None:
        """Wait for the end of all that was started; it must come by itself."""
        try:
            assert eventually(lambda: not self.running(), 15.0), f"go on: {self.words_of_running()}"
        finally:
            for pid in self.running():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for program in self._programs:
                program.end()


def _state(pid: int) -> str:
    """Return the kernel's letter for what a process does; X: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


@pytest.fixture
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """The command line, with the session's broker; no process may outlive its test."""
    line = CommandLine(tmp_path_factory.mktemp("cli"))
    yield line
    line.await_nobody()


@pytest.fixture(scope="module")
def called_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A command line whose programs serve a whole module."""
    line = CommandLine(tmp_path_factory.mktemp("cli"))
    yield line
    line.await_nobody()


@pytest.fixture
def apart(
    tmp_path_factory: pytest.TempPathFactory, runtime: Path, shm: Path
) -> Iterator[CommandLine]:
    """A command line with shared memory and a runtime directory that no other process uses."""
    with command_line_apart(tmp_path_factory.mktemp("cli"), runtime, shm) as line:
        yield line


@contextlib.contextmanager
def command_line_apart(
    folder: Path, runtime: Path, shm: Path, **environment: str
) -> Iterator[CommandLine]:
    """Give a command line of one's own; all that it started, its broker too, ends with it."""
    segments = tempfile.mkdtemp(prefix="pyhub-test-", dir=shm.parent)
    line = CommandLine(
        folder, PYHUB_SHM_DIR=segments, PYHUB_RUNTIME_DIR=str(runtime), **environment
    )
    yield line
    try:
        line.await_nobody()
    finally:
        end_broker(runtime)
        shutil.rmtree(segments)


def end_broker(runtime: Path, number: int = signal.SIGTERM) -> None:
    """End the broker of `runtime`, if one runs, and wait until it is gone.

    Not by its lease: to ask for that would make this process one of those that hold one.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pid = json.loads((runtime / "broker.json").read_bytes())["pid"]
        if b"pyhub" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, number)
            await_that(lambda: _state(pid) in "ZX", "the end of the broker")


@pytest.fixture
def hub() -> Iterator[pyhub.MessageHub]:
    """This process's own place in the session's hub."""
    with pyhub.MessageHub() as connected:
        yield connected


@pytest.fixture
def awaiting() -> Callable[..., Any]:
    """`awaiting(claim, what)`: wait until `claim()` holds."""
    return await_that


@pytest.fixture
def kill_broker() -> Callable[..., None]:
    """`kill_broker(runtime, number)`: end the broker of a runtime directory."""
    return end_broker


@pytest.fixture
def example_file(tmp_path: Path) -> Path:
    """A file such as a beamline writes: int32 frames, parameters with units, decoys."""
    path = tmp_path / "example.hdf5"
    rng = np.random.default_rng(5)
    with h5py.File(path, "w") as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs.update(NX_class="NXentry", default="data")
        entry["title"] = np.array([b"In 625"])
        data = entry.create_group("data")
        data.attrs.update(NX_class="NXdata", signal="frames")
        frames = rng.integers(-2, 1 << 20, (10, 39, 61), dtype=np.int32)
        data.create_dataset("frames", data=frames, chunks=(1, 39, 61), compression="gzip")
        data["blank"] = np.zeros((39, 61), np.int32)
        data["horizontal"] = np.arange(61)
        instrument = entry.create_group("instrument")
        instrument.attrs["NX_class"] = "NXinstrument"
        for name, value, units in (
            ("monochromator/energy", np.array([24.0]), "keV"),
            ("detector/distance", np.float64(5.25), "mm"),
            ("control/integral", rng.normal(size=10), "clock"),
            ("sample/image_times", np.arange(10) * 3, "minutes"),
        ):
            instrument[name] = value
            instrument[name].attrs["units"] = units
        instrument["sample/name"] = np.array([b"heater \xc3\xa9"])
    return path
