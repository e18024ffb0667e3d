"""Compiling C programs and running them on segments in a directory of their own."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent
INCLUDE = SOURCES.parents[1] / "include"

# A program that hangs is killed by the clock. No test claims a time.
WATCHDOG_S = 100

Build = Callable[..., Path]
Run = Callable[..., dict[str, int]]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compile one C file strictly, once; further arguments are the compiler's options."""

    @functools.cache
    def compile_(source: str, *options: str, include: Path = INCLUDE) -> Path:
        program = tmp_path_factory.mktemp("program") / Path(source).stem
        strict = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pedantic")
        subprocess.run(
            [os.environ.get("CC", "gcc"), *strict, "-O2", "-g", *options, f"-I{include}",
             str(SOURCES / source), "-o", str(program), "-pthread"],
            check=True,
        )  # fmt: skip
        return program

    return compile_


@pytest.fixture
def break_header(tmp_path: Path) -> Callable[[str, str], Path]:
    """Copy the headers with one line replaced; where the copy is."""

    def break_(line: str, broken: str) -> Path:
        include = Path(shutil.copytree(INCLUDE, tmp_path / "include"))
        headers = [path for path in include.glob("pyhub/*.h") if line in path.read_text()]
        assert len(headers) == 1, f"a header changed: {line!r}"
        text = headers[0].read_text()
        assert text.count(line) == 1, f"{headers[0].name} changed: {line!r}"
        headers[0].write_text(text.replace(line, broken))
        return include

    return break_


@pytest.fixture
def run() -> Run:
    """Run a test program to its good end; what it counted, from lines of `name number`."""

    def run_(program: Path, *arguments: object, watchdog_s: float = WATCHDOG_S) -> dict[str, int]:
        done = subprocess.run(
            [str(program), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=watchdog_s,
        )
        if done.returncode == 77:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        pairs = (line.split() for line in done.stdout.splitlines())
        return {name: int(number) for name, number in pairs}

    return run_


@pytest.fixture
def shm() -> Iterator[Path]:
    """Return an empty directory in memory for the segments of one test."""
    directory = tempfile.mkdtemp(prefix="pyhub-test-", dir="/dev/shm")
    yield Path(directory)
    shutil.rmtree(directory)
