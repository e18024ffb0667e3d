"""What is shipped: an sdist that builds, and a wheel with the headers in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import pyhub

ROOT = Path(__file__).parent.parent
HEADERS = {f"pyhub/{path.name}" for path in (ROOT / "include/pyhub").glob("*.h")}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an sdist from a copy of the tree, and a wheel from that sdist."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("include", "pyhub", "examples", "tests"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "*.c~", "__pycache__")
        )
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE",
                 "CHANGELOG.md", "Makefile"):  # fmt: skip
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", target, source],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return target


def test_the_sdist_carries_what_it_is_built_from(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {f"include/{header}" for header in HEADERS} <= names
    assert {"pyhub/_core.pyx", "pyhub/_abi.pxd", "pyhub/_datablock.pyi", "pyhub/py.typed"} <= names
    assert "examples/c/producer.c" in names
    assert not [name for name in names if name.endswith(".so") or name == "pyhub/_core.c"]


def test_the_wheel_carries_headers_stubs_and_the_command(dist: Path) -> None:
    (archive,) = dist.glob("*.whl")
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "pyhub = pyhub.cli:main" in file.read(entry_points).decode()
    assert {f"pyhub/include/{header}" for header in HEADERS} <= names
    assert {"pyhub/py.typed", "pyhub/_core.pyi", "pyhub/_core.pxd"} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_get_include_leads_to_the_headers() -> None:
    include = Path(pyhub.get_include())
    assert {f"pyhub/{path.name}" for path in (include / "pyhub").glob("*.h")} == HEADERS


def test_a_program_that_only_shares_memory_loads_neither_zmq_nor_msgspec() -> None:
    code = """
import sys, pyhub
assert not {"zmq", "msgspec"} & set(sys.modules)
pyhub.DataBlockProducer
assert "zmq" not in sys.modules
pyhub.MessageHub
assert {"zmq", "msgspec"} <= set(sys.modules)
assert "MessageHub" in dir(pyhub)
try:
    pyhub.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)
