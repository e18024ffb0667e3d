"""Whatever a program does with channels, in whatever order, it does not crash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
N_LIVES = 60
N_LIVES_SANITIZED = 1000

# A defect to put in, which the sanitizer must see: the mapping goes with the
# handle, not with the last view of it.
SEED = (
    "    def __dealloc__(self):\n        phb_segment_detach(&self.db.readers.segment)\n",
    "    def __dealloc__(self):\n        phb_segment_detach(&self.db.readers.segment)\n"
    "        phb_segment_detach(&self.segment.c)\n",
)


def live(n_lives: int, environment: dict[str, str], first: int = 1) -> Any:
    return subprocess.run(
        [sys.executable, HERE / "orders.py", str(first), str(n_lives)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def sanitized(tree: Path, *seed: str) -> dict[str, str]:
    """Build the package in `tree` with AddressSanitizer; the environment to run it in."""
    shutil.copytree(ROOT / "pyhub", tree / "pyhub", ignore=shutil.ignore_patterns("*.so", "*.c"))
    shutil.copytree(ROOT / "include", tree / "include")
    shutil.copy(ROOT / "setup.py", tree)
    shutil.copy(ROOT / "pyproject.toml", tree)
    shutil.copy(ROOT / "README.md", tree)
    if seed:
        source = tree / "pyhub/_datablock.pyx"
        text = source.read_text()
        assert text.count(seed[0]) == 1
        source.write_text(text.replace(*seed))
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -g -w"
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env=os.environ | {"CFLAGS": flags, "LDFLAGS": "-fsanitize=address,undefined"},
        check=True,
        capture_output=True,
    )
    libraries = [
        subprocess.run(
            [os.environ.get("CC", "gcc"), f"-print-file-name={name}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        "PYTHONPATH": str(tree),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "PYTHONMALLOC": "malloc",
    }


def counts(done: Any) -> dict[str, int]:
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: int(n) for name, n in (line.split() for line in done.stdout.splitlines())}


def test_random_orders_end_well() -> None:
    seen = counts(live(N_LIVES, {}))
    assert all(seen[f"do_{what}"] > N_LIVES // 4 for what in ("put", "read", "pin", "look"))
    assert seen["kills"] > 0


@pytest.mark.verify
@pytest.mark.timeout(1200)
def test_random_orders_end_well_under_the_sanitizer(tmp_path: Path) -> None:
    """Promise P15: 1,000 orders, some 5 minutes."""
    seen = counts(live(N_LIVES_SANITIZED, sanitized(tmp_path)))
    assert all(seen[f"do_{what}"] > N_LIVES_SANITIZED // 4 for what in ("put", "read", "pin"))


@pytest.mark.verify
@pytest.mark.timeout(600)
def test_a_mapping_that_goes_too_early_is_seen(tmp_path: Path) -> None:
    done = live(100, sanitized(tmp_path, *SEED))
    assert done.returncode != 0
    assert "ended with status" in done.stderr
