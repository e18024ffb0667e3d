"""Roles and rights: who may do what, and with which names."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhub.hub.broker.rights import ROLES, VERBS, Client, Role, Verb, is_client_name
from pyhub.names import pattern

# Written out, so that a change of the roles has to be meant.
MATRIX: dict[Role, str] = {
    #            read set publish call register offer administer
    "viewer": "  yes  no  no      no   no       no    no",
    "operator": "yes  yes yes     yes  no       no    no",
    "producer": "yes  yes yes     no   yes      yes   no",
    "admin": "   yes  yes yes     yes  yes      yes   yes",
}
roles = st.sampled_from(sorted(ROLES))
verbs = st.sampled_from(VERBS)
names = st.text(st.sampled_from("abc1./*?[]!-\n"), max_size=8)
rights = st.dictionaries(verbs, st.lists(names, max_size=3), max_size=len(VERBS))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("role", MATRIX)
def test_a_role_may_what_the_matrix_says(role: Role, verb: Verb) -> None:
    allowed = MATRIX[role].split()[VERBS.index(verb)] == "yes"
    assert Client("gui", role, {}).may(verb, "cam1") == allowed


def test_the_matrix_has_every_role() -> None:
    assert set(MATRIX) == set(ROLES)


@pytest.mark.parametrize(
    ("text", "name", "matches"),
    [
        ("cam1", "cam1", True),
        ("cam1", "cam10", False),
        ("cam1", "xcam1", False),
        ("cam1.*", "cam1.start", True),
        ("cam1.*", "cam1", False),
        ("cam1.*", "cam10.start", False),
        ("cam1/*", "cam1/exposure/s", True),
        ("cam?/gain", "cam1/gain", True),
        ("cam[12]/gain", "cam3/gain", False),
        ("cam1", "cam1\n", False),
        ("cam1", "CAM1", False),
        ("*", "", True),
        ("*", "a\nb", True),
        ("", "cam1", False),
        ("a.c", "abc", False),
    ],
)
def test_a_pattern_matches_whole_names_as_a_shell_does(text: str, name: str, matches: bool) -> None:
    assert bool(pattern(text).match(name)) == matches


@pytest.mark.parametrize("role", ROLES)
def test_rights_of_a_verb_replace_what_the_role_says_of_it(role: Role) -> None:
    client = Client("gui", role, {"call": ["cam1.*", "stage.stop"], "set": []})
    assert client.may("call", "cam1.start")
    assert client.may("call", "stage.stop")
    assert not client.may("call", "stage.move")
    assert not client.may("set", "cam1/gain")
    assert client.may("read", "anything"), "other verbs stay as the role has them"


@given(roles, rights, verbs, names)
def test_a_client_may_what_a_pattern_reaches_or_else_what_its_role_says(
    role: Role, given_rights: dict[Verb, list[str]], verb: Verb, name: str
) -> None:
    if verb in given_rights:
        expected = any(fnmatchcase(name, each) for each in given_rights[verb])
    else:
        expected = verb in ROLES[role]
    assert Client("gui", role, given_rights).may(verb, name) == expected


@given(rights, verbs, names, names)
def test_one_more_pattern_never_takes_a_right_away(
    given_rights: dict[Verb, list[str]], verb: Verb, text: str, name: str
) -> None:
    more = {**given_rights, verb: [*given_rights.get(verb, []), text]}
    if verb in given_rights and Client("gui", "viewer", given_rights).may(verb, name):
        assert Client("gui", "viewer", more).may(verb, name)


@pytest.mark.parametrize("text", ["gui", "a", "alignment-gui", "x.y_z@host", "1", "a" * 64])
def test_a_client_may_be_called_so(text: str) -> None:
    assert is_client_name(text)


@pytest.mark.parametrize(
    "text", ["", " ", "a b", "a/b", "../a", ".a", "-a", "a\n", "ä", "a" * 65, "a\0", '"', "*"]
)
def test_a_client_may_not_be_called_so(text: str) -> None:
    assert not is_client_name(text)
