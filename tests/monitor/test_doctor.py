"""Each finding of the doctor says how it stands, and what to do if not well."""

from __future__ import annotations

import os

import pytest

import pyhub
from pyhub.monitor.doctor import Finding, Verdict, examine
from pyhub.names import segment_path


def by_subject() -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine()}


def test_every_finding_that_is_not_well_comes_with_advice() -> None:
    for finding in examine():
        assert finding.fact, finding
        assert finding.verdict is Verdict.OK or finding.advice, finding


def test_it_names_the_versions_that_a_bug_report_needs() -> None:
    fact = by_subject()["versions"].fact
    for part in (
        f"pyhub {pyhub.__version__}",
        "layout ",
        "Python 3.",
        "numpy ",
        "pyzmq ",
        "h5py ",
        "PyYAML ",
    ):
        assert part in fact


def test_it_counts_channels_and_names_what_cannot_be_read() -> None:
    with pyhub.DataBlockProducer.create("cam1"):
        segment_path("odd").write_bytes(b"?" * 100)
        found = by_subject()["channels"]
        segment_path("odd").unlink()
    assert found.verdict is Verdict.WARN
    assert found.fact == "1 live, unreadable: odd"
    assert "pyhub clean" in found.advice


def test_an_examination_leaves_nothing_open() -> None:
    list(examine())
    before = set(os.listdir("/proc/self/fd"))
    list(examine())
    assert set(os.listdir("/proc/self/fd")) == before


def test_one_thing_that_cannot_be_looked_at_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    monkeypatch.setenv("PYHUB_SHM_DIR", f"{tmp_path}/nowhere")
    monkeypatch.setenv("PYHUB_RUNTIME_DIR", "/proc/version")
    found = by_subject()
    assert found["shared memory"].verdict is Verdict.FAIL
    assert found["runtime"].verdict is Verdict.FAIL
    assert found["open files"].fact
    assert found["versions"].verdict is Verdict.OK
