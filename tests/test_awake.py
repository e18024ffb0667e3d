"""Processors that are kept awake: asked of the kernel, and taken back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyhub import awake, cpus_awake


def open_files() -> list[str]:
    links = Path("/proc/self/fd").iterdir()
    return [os.readlink(link) for link in links if link.is_symlink()]


def test_the_kernel_is_asked_for_as_long_as_the_context_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = tmp_path / "requests"
    requests.write_bytes(b"before")
    monkeypatch.setattr(awake, "_REQUESTS", str(requests))
    with cpus_awake() as is_awake:
        assert is_awake
        assert requests.read_bytes()[:4] == bytes(4), "no time at all, as 32 bits"
        assert open_files().count(str(requests)) == 1, "it holds while it is open"
        with cpus_awake():
            assert open_files().count(str(requests)) == 2
        assert open_files().count(str(requests)) == 1
    assert str(requests) not in open_files()


def test_it_is_taken_back_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = tmp_path / "requests"
    requests.touch()
    monkeypatch.setattr(awake, "_REQUESTS", str(requests))
    with pytest.raises(ValueError, match="the user's own"), cpus_awake():
        raise ValueError("the user's own")
    assert str(requests) not in open_files()


def test_without_the_right_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awake, "_REQUESTS", str(tmp_path / "none"))
    with cpus_awake() as is_awake:
        assert not is_awake


def test_an_error_of_the_users_is_not_laid_to_the_right_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awake, "_REQUESTS", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="the user's own") as raised, cpus_awake():
        raise ValueError("the user's own")
    assert raised.value.__context__ is None


def test_a_kernel_that_takes_no_request_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awake, "_REQUESTS", "/dev/full")
    before = open_files()
    with cpus_awake() as is_awake:
        assert not is_awake
    assert open_files() == before


def test_the_kernel_of_this_host_takes_the_request_or_it_is_said() -> None:
    may_write = os.access("/dev/cpu_dma_latency", os.W_OK)
    with cpus_awake() as is_awake:
        assert is_awake == may_write
        assert ("/dev/cpu_dma_latency" in open_files()) == may_write
