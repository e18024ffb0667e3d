"""Errors form the tree that their module draws, and are built-in ones too."""

from __future__ import annotations

import inspect
import re

import pytest

import pyhub
from pyhub import errors

_BRANCH = re.compile(r" {4}(?P<indent>[ │]*)[├└]── (?P<name>\w+) *(?:\((?P<base>\w+)\))?")


def drawn_tree() -> dict[str, tuple[str, ...]]:
    """Name the bases of each error as the docstring draws them."""
    above: list[str] = ["PyhubError"]
    bases: dict[str, tuple[str, ...]] = {"PyhubError": ("Exception",)}
    for line in (errors.__doc__ or "").splitlines():
        if found := _BRANCH.match(line):
            depth = len(found["indent"]) // 4
            del above[depth + 1 :]
            bases[found["name"]] = (above[depth], *([found["base"]] if found["base"] else []))
            above.append(found["name"])
    return bases


def real_tree() -> dict[str, tuple[str, ...]]:
    classes = inspect.getmembers(errors, inspect.isclass)
    return {name: tuple(base.__name__ for base in kind.__bases__) for name, kind in classes}


def test_the_tree_that_is_drawn_is_the_real_one() -> None:
    assert drawn_tree() == real_tree()


def test_every_error_is_exported_by_the_package() -> None:
    assert set(errors.__all__) == set(real_tree())
    assert set(errors.__all__) <= set(pyhub.__all__)


@pytest.mark.parametrize("name", sorted(set(errors.__all__) - {"PyhubError"}))
def test_every_error_can_be_caught_as_a_built_in(name: str) -> None:
    kind = getattr(errors, name)
    built_in = [base for base in kind.__mro__ if base.__module__ == "builtins"]
    assert issubclass(kind, errors.PyhubError)
    assert built_in[0] not in (Exception, BaseException, object)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_keeps_its_message(name: str) -> None:
    assert str(getattr(errors, name)("what\n  next")) == "what\n  next"
