"""A function as others call it: its signature as text, its arguments checked."""

from __future__ import annotations

import contextlib
import inspect
import operator
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import msgspec.inspect
import numpy as np

from pyhub.hub.client.failures import cut
from pyhub.hub.client.job import Job
from pyhub.hub.protocol import CommandInfo, ParameterInfo

__all__ = ["BadArguments", "Command"]

_OWN = "timeout_s"


class BadArguments(Exception):
    """The arguments do not fit the command."""


class Command:
    """A function as it is called for others: looked at once, called often."""

    def __init__(self, name: str, function: Callable[..., Any], idempotent: bool) -> None:
        self.function = function
        self._signature = inspect.signature(function)
        hints = _hints(function)
        self._jobs = [each for each in self._signature.parameters if hints.get(each) is Job]
        if _OWN in self._signature.parameters:
            raise TypeError(
                f"{name} has a parameter {_OWN!r}, which is the call's own: nobody could give it.\n"
                "  Call it otherwise: patience_s, say."
            )
        given = [
            each for each in self._signature.parameters.values() if each.name not in self._jobs
        ]
        if any(each.kind is each.POSITIONAL_ONLY for each in given):
            raise TypeError(
                f"{name} has parameters without names (before a /), but arguments go by name.\n"
                "  Leave the / out."
            )
        self._hints = {
            each: hint for each, hint in hints.items() if hint is not Job and _is_known(hint)
        }
        # Mostly, nothing has to be converted, and no default looked up. But what only looks
        # like another function may take by position what that one takes by name.
        self._is_plain = inspect.unwrap(function) is function and not hasattr(
            function, "__signature__"
        )
        self._types = {
            name: hints.get(name)
            for name, each in self._signature.parameters.items()
            if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        }
        self.info = CommandInfo(
            name,
            cut(inspect.getdoc(function) or "", 1000),
            [self._parameter(each) for each in given
             if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)],
            _type_text(self._signature.return_annotation),
            idempotent,
        )  # fmt: skip

    def __call__(self, arguments: Any, job: Job) -> Any:
        """Call it, with arguments that its annotations allow."""
        if not isinstance(arguments, dict):
            raise BadArguments(f"arguments go by name, in a map; not {arguments!r:.80}")
        for name in self._jobs:
            arguments[name] = job
        if self._fits(arguments):
            return self.function(**arguments)
        try:
            bound = self._signature.bind(**arguments)
        except TypeError as error:
            raise BadArguments(f"{error}; it takes {self.info.signature}") from None
        for name, value in bound.arguments.items():
            hint = self._hints.get(name)
            if hint is None or type(value) is hint:
                continue
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                converted: Any = {key: self._taken(key, each, hint) for key, each in value.items()}
            else:
                converted = self._taken(name, value, hint)
            bound.arguments[name] = converted
        return self.function(*bound.args, **bound.kwargs)

    def _fits(self, arguments: dict[str, Any]) -> bool:
        """Whether these are all its parameters, each of exactly the type that is asked for."""
        asked_for = self._types
        return (
            self._is_plain
            and arguments.keys() == asked_for.keys()
            and all(map(operator.is_, map(type, arguments.values()), map(asked_for.get, arguments)))
        )

    def _taken(self, name: str, value: Any, hint: Any) -> Any:
        try:
            return _converted(value, hint)
        except msgspec.ValidationError as error:
            raise BadArguments(f"{name}: {error}; it takes {self.info.signature}") from None

    def _parameter(self, parameter: inspect.Parameter) -> ParameterInfo:
        default = None if parameter.default is parameter.empty else repr(parameter.default)[:255]
        return ParameterInfo(parameter.name, _type_text(parameter.annotation), default)


def _converted(value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError:
        plain = _plain(value)
        if plain is value:
            raise
        return msgspec.convert(plain, hint)


def _plain(value: Any) -> Any:
    """Return numpy's numbers and arrays as Python's, where there are any."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list) and any(isinstance(each, np.generic | list) for each in value):
        return [_plain(each) for each in value]
    return value


def _is_known(hint: Any) -> bool:
    """Whether msgspec can check it; any other type is the command's own matter."""
    if hint is Any:
        return False
    try:
        return not _has_custom(msgspec.inspect.type_info(hint))
    except Exception:  # it may be anything
        return False


def _has_custom(info: Any) -> bool:
    if isinstance(info, msgspec.inspect.CustomType):
        return info.cls is not np.ndarray  # which values may be
    parts = [getattr(info, name, None) for name in ("item_type", "key_type", "value_type")]
    parts += [*getattr(info, "types", ()), *getattr(info, "item_types", ())]
    return any(part is not None and _has_custom(part) for part in parts)


def _type_text(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return cut(text, 255)


def _hints(function: Any) -> dict[str, Any]:
    """Return the types of those arguments whose annotations are types, here and now."""
    function = inspect.unwrap(function)
    scope = getattr(function, "__globals__", {})
    # A function within another one does not see what that one imported.
    local = {} if "Job" in scope else {"Job": Job}
    hints: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        # It may be a remark, or a name that only a type checker sees: then it
        # raises whatever it likes, and says nothing about the others.
        with contextlib.suppress(Exception):
            one = types.SimpleNamespace(__annotations__={name: annotation})
            hints |= typing.get_type_hints(one, scope, local, include_extras=True)
    return hints
