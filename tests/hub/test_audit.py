"""The log of refusals: one line each, whatever was said, in a file of its owner's alone."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhub.errors import AccessDenied
from pyhub.hub.broker.audit import Audit
from tests.hub.conftest import Spawn, line

STRING = r'"(?:[^"\\]|\\.)*"'
LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00) refused "
    rf"what=(?P<what>{STRING}) who=(?P<who>{STRING}) where=(?P<where>{STRING}) why=(?P<why>{STRING})"
)

# Writes refusals until its file may not grow any more, and once more when it may.
FULL_DISK = """
    import json, resource, sys
    from pathlib import Path
    from pyhub.hub.broker.audit import Audit

    audit = Audit(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    for number in range(50):
        audit.refused("connection", f"early {number}", "x" * 100, "y")
    n_lost = audit.n_unwritten
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    audit.refused("connection", "late", "x", "y")
    audit.close()
    print(json.dumps([n_lost, audit.n_unwritten, audit.counters["connection"]]), flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


@pytest.fixture
def audit(path: Path) -> Iterator[Audit]:
    audit = Audit(path)
    yield audit
    audit.close()


def parsed(path: Path) -> list[dict[str, str]]:
    found = [LINE.fullmatch(text) for text in path.read_text().splitlines()]
    assert None not in found
    return [
        {
            name: text if name == "time" else json.loads(text)
            for name, text in each.groupdict().items()
        }
        for each in found
        if each
    ]


def test_a_refusal_is_one_line_with_all_that_was_said(path: Path, audit: Audit) -> None:
    before = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
    audit.refused(
        "not_allowed", "gui (Yne@$w-v)", "a message", "a viewer may not call 'cam1.start'"
    )
    (said,) = parsed(path)
    time = datetime.fromisoformat(said.pop("time"))
    assert time.utcoffset() == timedelta(0)
    assert time > before
    assert said == {
        "what": "not_allowed",
        "who": "gui (Yne@$w-v)",
        "where": "a message",
        "why": "a viewer may not call 'cam1.start'",
    }


def test_refusals_are_counted_by_kind(audit: Audit) -> None:
    for what in ("connection", "not_allowed", "connection"):
        audit.refused(what, "", "", "")
    assert audit.counters == {"connection": 2, "not_allowed": 1}
    assert audit.n_unwritten == 0


texts = st.text(st.one_of(st.characters(), st.sampled_from('\n\r\0\x7f\x1b"\\ =\u2028\x85')))


@given(st.lists(st.tuples(texts, texts, texts, texts), min_size=1, max_size=5))
def test_nobody_forges_a_line(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, str, str, str]]
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.log"
    audit = Audit(path)
    for each in said:
        audit.refused(*each)
    audit.close()
    content = path.read_bytes()
    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in content), "printable ASCII"
    found = parsed(path)
    assert [tuple(each.values())[1:] for each in found] == said
    assert audit.n_unwritten == 0


def test_a_lone_surrogate_is_written_too(path: Path, audit: Audit) -> None:
    audit.refused("connection", b"\xff".decode(errors="surrogateescape"), "", "")
    assert audit.n_unwritten == 0
    assert len(parsed(path)) == 1


def test_a_long_text_is_cut(path: Path, audit: Audit) -> None:
    audit.refused("connection", "w" * 200, "x" * 201, "y" * 10**6)
    (said,) = parsed(path)
    assert said["who"] == "w" * 200
    assert said["where"] == "x" * 197 + "..."
    assert said["why"] == "y" * 197 + "..."


def test_the_file_is_replaced_before_it_fills_the_disk(path: Path, audit: Audit) -> None:
    for _ in range(1000):
        audit.refused("x" * 200, "\0" * 200, "\0" * 200, "\0" * 200)
    n_bytes = path.stat().st_size
    n_needed = 6 * 2**22 // (n_bytes // 1000)
    for _ in range(n_needed):
        audit.refused("x" * 200, "\0" * 200, "\0" * 200, "\0" * 200)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == [path.name, *(f"{path.name}.{n}" for n in (1, 2, 3))]
    assert all(file.stat().st_size <= 2**22 for file in files)
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert audit.n_unwritten == 0


def test_the_next_broker_goes_on_in_the_same_file(path: Path) -> None:
    for who in ("first", "second"):
        audit = Audit(path)
        audit.refused("connection", who, "", "")
        audit.close()
        audit.close()
    assert [said["who"] for said in parsed(path)] == ["first", "second"]


def test_half_a_line_does_not_take_the_next_one_in(path: Path) -> None:
    path.write_text("2026-01-01T00:00:00.000+00:00 refu")
    path.chmod(0o600)
    audit = Audit(path)
    audit.refused("connection", "gui", "", "")
    audit.close()
    _, whole = path.read_text().splitlines()
    assert LINE.fullmatch(whole)


def test_a_full_disk_stops_nobody_and_is_counted(path: Path, spawn: Spawn) -> None:
    n_lost, n_unwritten, n_refused = json.loads(line(spawn(FULL_DISK, path)))
    lines = path.read_text().splitlines()
    whole = [text for text in lines if LINE.fullmatch(text)]
    assert 0 < n_lost < 50, "some fitted, some did not"
    assert n_unwritten == n_lost, "it goes on when there is room"
    assert n_refused == 51
    assert len(whole) == n_refused - n_unwritten, "what is counted as written is there"
    assert '"late"' in whole[-1]


def test_its_lines_go_nowhere_else(
    audit: Audit, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    audit.refused("connection", "gui", "", "")
    audit.close()
    audit.refused("connection", "after its end", "", "")
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_two_brokers_of_one_process_write_apart(tmp_path: Path) -> None:
    one, other = Audit(tmp_path / "one"), Audit(tmp_path / "other")
    one.refused("connection", "first", "", "")
    other.refused("connection", "second", "", "")
    one.close()
    other.close()
    assert [said["who"] for said in parsed(tmp_path / "one")] == ["first"]


# --- Whose file it is ---


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_new_file_is_its_owners_alone_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Audit(path).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_file_that_is_open_to_others_is_refused(path: Path, mode: int) -> None:
    Audit(path).close()
    path.chmod(mode)
    with pytest.raises(AccessDenied, match=f"{path} cannot be written: mode -rw.*\n.*move it away"):
        Audit(path)


@pytest.mark.parametrize("has_target", [True, False])
def test_a_link_in_its_place_is_not_followed(path: Path, has_target: bool) -> None:
    elsewhere = path.with_name("elsewhere")
    if has_target:
        elsewhere.write_text("")
        elsewhere.chmod(0o600)
    path.symlink_to(elsewhere)
    with pytest.raises(AccessDenied, match="plain file of the broker's user"):
        Audit(path)
    assert not has_target or elsewhere.read_text() == ""


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused(path: Path, make: Callable[[Path, int], None]) -> None:
    make(path, 0o600)
    with pytest.raises(AccessDenied):
        Audit(path)
