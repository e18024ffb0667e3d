"""Names and topics are checked; names lead to files that nobody else has."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyhub
from pyhub.errors import InvalidName
from pyhub.names import (
    check_name,
    check_pattern,
    check_topic,
    get_include,
    has_wildcards,
    lease_path,
    segment_names,
    segment_path,
    shm_directory,
)

LONGEST = "n" * 200
LEGAL = ["cam1", "a", "7", "_private", "lab.cam-1_raw", "A.B..C--D", LONGEST]
ILLEGAL = [
    "",
    ".hidden",
    ".leases",
    "-option",
    "a/b",
    "../up",
    "a b",
    "käm",
    "cam\n",
    "cam\0",
    "cam\udc80",
    LONGEST + "n",
    None,
    1,
    b"cam",
]

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", fullmatch=True)
bounded = settings(max_examples=200, deadline=None, database=None)


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_name_is_returned_unchanged(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_name_is_refused_with_what_is_allowed(name: Any) -> None:
    with pytest.raises(InvalidName, match=re.escape(repr(name))) as caught:
        check_name(name)
    assert "1 to 200 letters, digits" in str(caught.value)


@bounded
@given(st.text(max_size=220))
def test_whatever_is_accepted_stays_a_file_of_the_directory(name: str) -> None:
    try:
        path = segment_path(name)
    except InvalidName:
        return
    assert path.parent == shm_directory()
    assert path == Path(os.path.normpath(path))


@bounded
@given(st.tuples(names, st.integers(0, 2**32 - 1)), st.tuples(names, st.integers(0, 2**32 - 1)))
def test_two_channels_never_share_a_file(one: tuple[str, int], other: tuple[str, int]) -> None:
    assert (segment_path(*one) == segment_path(*other)) == (one == other)


def test_the_longest_name_of_the_largest_user_is_a_legal_file_name(shm: Path) -> None:
    longest_possible = os.pathconf(shm, "PC_NAME_MAX")
    assert len(segment_path(LONGEST, uid=2**32 - 2).name) <= longest_possible


def test_segments_are_in_dev_shm_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYHUB_SHM_DIR")
    assert segment_path("cam", uid=7) == Path("/dev/shm/pyhub.7.cam")
    monkeypatch.setenv("PYHUB_SHM_DIR", "/some/where")
    assert segment_path("cam", uid=7) == Path("/some/where/pyhub.7.cam")


def test_a_file_belongs_to_this_user_by_default() -> None:
    assert segment_path("cam") == segment_path("cam", os.geteuid())
    assert lease_path() == lease_path(os.geteuid())


def test_only_this_users_segments_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYHUB_SHM_DIR", str(tmp_path))
    mine = [segment_path("b"), segment_path("a.b"), segment_path("a")]
    others = [segment_path("x", os.geteuid() + 1), lease_path(), tmp_path / "sem.x"]
    for path in [*mine, *others]:
        path.touch()
    assert segment_names() == ["a", "a.b", "b"]
    assert segment_names(os.geteuid() + 1) == ["x"]


@bounded
@given(names)
def test_no_channel_can_have_the_file_of_the_leases(name: str) -> None:
    assert segment_path(name) != lease_path()


LONGEST_TOPIC = "t" * 255
LEGAL_TOPICS = [
    "x",
    "cam1/exposure",
    "/",
    "/a//b/",
    "a b",
    "a]",
    "Ångström/µ",
    "試料",
    LONGEST_TOPIC,
    "ä" * 127,
]
NO_TOPICS = [
    "",
    "a\nb",
    "a\0",
    "\x1b[2J",
    "a\x7f",
    "a\u2028b",  # ends a line
    "a\u202eb",  # is read backwards
    "a\udc80",  # cannot be encoded
    LONGEST_TOPIC + "t",
    "ä" * 128,
    None,
    1,
    b"x",
]


@pytest.mark.parametrize("name", LEGAL_TOPICS)
def test_a_legal_topic_is_returned_unchanged_and_is_a_pattern_of_itself(name: str) -> None:
    assert check_topic(name) == check_pattern(name) == name
    assert not has_wildcards(name)


@pytest.mark.parametrize("name", NO_TOPICS)
def test_what_can_be_no_topic_can_be_no_pattern_either(name: Any) -> None:
    for check in (check_topic, check_pattern):
        with pytest.raises(InvalidName, match=re.escape(repr(name))) as caught:
            check(name)
        assert "1 to 255 bytes of printable text" in str(caught.value)


@pytest.mark.parametrize("text", ["*", "cam1/*", "cam?", "cam[12]", "a["])
def test_wildcards_belong_to_patterns_only(text: str) -> None:
    assert check_pattern(text) == text
    assert has_wildcards(text)
    with pytest.raises(InvalidName, match=r"without '\*', '\?' and '\['"):
        check_topic(text)


@bounded
@given(st.text(max_size=300))
def test_a_topic_that_is_accepted_fits_and_cannot_forge_a_line(name: str) -> None:
    try:
        check_topic(name)
    except InvalidName:
        return
    assert 1 <= len(name.encode()) <= 255
    assert name.splitlines() == [name]


def test_the_headers_are_where_get_include_says() -> None:
    assert pyhub.get_include is get_include
    for header in ("abi.h", "sync.h", "lease.h", "segment.h", "datablock.h", "flex.h"):
        assert (Path(get_include()) / "pyhub" / header).is_file()
