"""Says what was measured where, without naming anybody's machine.

Beside `report.py`, which says the same, because that needs what the other
benchmarks need (pytest), and a comparison is run where that may be missing.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

__all__ = ["commit", "describe", "line"]

_HERE = Path(__file__).parent


def describe() -> dict[str, str | int]:
    """Return the kind of machine."""
    model = ""
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith(("model name", "Model")):
            model = text.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "kernel": platform.release().partition("-")[0],
        "libc": "-".join(platform.libc_ver()),
    }


def line() -> str:
    """Return it in a few words."""
    machine = describe()
    return f"{machine['cores']} cores {machine['cpu']}, Linux {machine['kernel']}"


def commit() -> str:
    """Return the commit, and whether files differ from it."""
    command = ["git", "-C", str(_HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""
