"""Every run has directories of its own, and says nothing of the machine's name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from surroundings import own_directories


@pytest.fixture(scope="session", autouse=True)
def directories() -> Iterator[None]:
    """Keep segments and sockets of this run apart from all others."""
    with own_directories():
        yield


def pytest_configure(config: pytest.Config) -> None:
    """Keep what --benchmark-save saves where git does not look."""
    config.option.benchmark_storage = f"file://{Path(__file__).with_name('results')}"


def pytest_benchmark_update_machine_info(config: object, machine_info: dict[str, Any]) -> None:
    """Take the host's name out of what is written."""
    machine_info.pop("node", None)
