"""Methods that act on an object, or, called on its class, on that one's default object."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

__all__ = ["OnAnyHub", "OnAnyHubProperty"]

P = ParamSpec("P")
R = TypeVar("R")


class OnAnyHub(Generic[P, R]):
    """A method that, called on the class, acts on the hub of `initialize`.

    The seed's MessageHub is a static class; a Python program rather holds an
    object. One definition serves both.
    """

    def __init__(self, method: Callable[Concatenate[Any, P], R]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, hub: Any, kind: Any) -> Callable[P, R]:
        if hub is not None:
            return MethodType(self._method, hub)

        @functools.wraps(self._method)
        def bound(*args: P.args, **kwargs: P.kwargs) -> R:
            return self._method(kind.instance(), *args, **kwargs)

        return bound


class OnAnyHubProperty(Generic[R]):
    """The same for what is read."""

    def __init__(self, method: Callable[[Any], R]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, hub: Any, kind: Any) -> R:
        if hub is None and kind._default is None:
            raise AttributeError("there is no default hub: call MessageHub.initialize() first")
        return self._method(kind.instance() if hub is None else hub)
