"""The comparison with peers runs, and says what it cannot run."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

COMPARE = Path(__file__).parents[1] / "benchmarks/peers/compare.py"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("peers")
    command = [
        sys.executable, str(COMPARE), "--quick", "--ways", "pyzmq ipc, copy", "pyhub, futex",
        "pyhub, spin, block", "--sizes", "64B", "1MiB", "--receivers", "1",
        "--output", str(output),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = output.glob("*.json")
    result: dict[str, Any] = json.loads(found.read_text())
    return result


def test_each_way_hands_frames_over(compared: dict[str, Any]) -> None:
    for record in compared["records"]:
        assert not record.get("error"), record
        assert record["measures"]["paced_p50_us"] > 0
        assert record["measures"]["flood_received_hz"] > 0
    assert len(compared["records"]) == 6


def test_with_back_pressure_nothing_is_lost(compared: dict[str, Any]) -> None:
    blocking = [r for r in compared["records"] if r["way"] == "pyhub, spin, block"]
    assert [r["measures"]["flood_lost_percent"] for r in blocking] == [0.0, 0.0]


def test_a_peer_that_is_not_installed_is_named_with_the_reason(compared: dict[str, Any]) -> None:
    reasons = dict(line.split(": ", 1) for line in compared["missing"])
    for library in ("iceoryx2", "zenoh", "pynng"):
        assert (library in reasons) == (find_spec(library) is None)
    assert all(reason.startswith("not installed: ") for reason in reasons.values())
