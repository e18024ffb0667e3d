"""An exception as it travels to whoever called."""

from __future__ import annotations

import os
import traceback

from pyhub.hub.protocol import Failure

__all__ = ["cut", "raised"]

_OURS = os.path.dirname(__file__) + os.sep


def raised(error: BaseException) -> Failure:
    """Return what a caller is told of an exception that its command raised."""
    return Failure(
        "raised", cut(_text(error), 4000), cut(type(error).__qualname__, 255), _traceback(error)
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as failure:  # its own text is a program, too
        return f"<its text cannot be had: {type(failure).__qualname__}>"


def cut(text: str, n_bytes: int, keep_end: bool = False) -> str:
    """Return as much of `text` as a message has room for, and nothing that it cannot carry."""
    raw = text.encode(errors="backslashreplace")
    return (raw[-n_bytes:] if keep_end else raw[:n_bytes]).decode(errors="ignore")


def _traceback(error: BaseException) -> str:
    steps = list(traceback.extract_tb(error.__traceback__))
    # The first ones are ours: how the command was called.
    ours = [number for number, step in enumerate(steps) if step.filename.startswith(_OURS)]
    steps = steps[ours[-1] + 1 :] if ours else steps
    lines = [*traceback.format_list(steps), *traceback.format_exception_only(error)]
    return cut("".join(lines), 16000, keep_end=True)
