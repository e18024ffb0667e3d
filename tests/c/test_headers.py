"""Each header stands alone, in strict C11 and in strict C++17."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

INCLUDE = Path(__file__).parents[2] / "include"
HEADERS = sorted(path.name for path in (INCLUDE / "pyhub").glob("*.h"))

STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{INCLUDE}", "-fsyntax-only"]
C = os.environ.get("CC", "gcc")
CXX = os.environ.get("CXX", "g++")

needs_cxx = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler ({CXX})")


def test_all_headers_are_found() -> None:
    assert {"abi.h", "sync.h", "lease.h", "segment.h", "datablock.h", "flex.h"} <= set(HEADERS)


@pytest.mark.parametrize("header", HEADERS)
def test_header_is_strict_c11(tmp_path: Path, header: str) -> None:
    source = _source(tmp_path / "alone.c", header)
    subprocess.run([C, "-std=c11", "-D_GNU_SOURCE", "-O2", *STRICT, source], check=True)


@needs_cxx
@pytest.mark.parametrize("header", HEADERS)
def test_header_is_strict_cxx17(tmp_path: Path, header: str) -> None:
    source = _source(tmp_path / "alone.cpp", header)
    subprocess.run([CXX, "-std=c++17", "-O2", *STRICT, source], check=True)


def test_two_files_of_one_program_may_include_them(tmp_path: Path) -> None:
    includes = "".join(f"#include <pyhub/{header}>\n" for header in HEADERS)
    (tmp_path / "one.c").write_text(includes + "int main(void) { return 0; }\n")
    (tmp_path / "two.c").write_text(includes + "int other(void) { return 0; }\n")
    options = ["-std=c11", "-D_GNU_SOURCE", *STRICT[:-1], "-pthread"]
    subprocess.run([C, *options, "one.c", "two.c", "-o", "program"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "program"], check=True)


def _source(path: Path, header: str) -> Path:
    # Twice: each header guards itself.
    path.write_text(f"#include <pyhub/{header}>\n" * 2 + "int main(void) { return 0; }\n")
    return path
