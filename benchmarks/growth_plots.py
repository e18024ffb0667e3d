"""Draws the curves of `growth.py`, one picture a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # files only; no display is needed, nor looked for

import matplotlib.pyplot as plt
from growth_timing import Answer
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

__all__ = ["draw"]

_OURS, _SECOND, _OTHERS = "#d9480f", "#1864ab", "#868e96"

# A curve: its measure, its label, and how it looks.
Curve = tuple[str, str, dict[str, Any]]


def draw(answers: Sequence[Answer], directory: Path) -> list[Path]:
    """Write the pictures and return their paths."""
    draws: dict[str, Callable[[Answer], Any]] = {
        "size": _sizes, "readers": _readers, "channels": _channels, "slots": _slots,
    }  # fmt: skip
    paths = []
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        for answer in answers:
            figure = draws[answer.name](answer)
            path = directory / f"growth-{answer.name}.png"
            figure.savefig(path, dpi=130)
            plt.close(figure)
            paths.append(path)
    return paths


def _sizes(answer: Answer) -> Any:
    figure, (copies, ratios, in_place) = _panels(answer, 3)
    _curves(copies, answer, [
        ("put", "put", _solid(_OURS)), ("copy_in", "numpy, in", _dashed(_OURS)),
        ("read", "read(out=)", _solid(_SECOND)), ("copy_out", "numpy, out", _dashed(_SECOND)),
    ])  # fmt: skip
    copies.set_title("copied")
    copies.set_ylabel("µs a call")
    _curves(ratios, answer, [
        ("put_ratio", "put", _solid(_OURS)), ("read_ratio", "read(out=)", _solid(_SECOND)),
    ])  # fmt: skip
    ratios.axhline(1, color=_OTHERS, linewidth=1)
    ratios.set_title("beside numpy.copyto")
    ratios.set_ylabel("ratio")
    _from_zero(ratios)
    _curves(in_place, answer, [
        ("hand_over", "both in turns", _dashed(_OTHERS)),
        ("publish", "publish", _solid(_OURS)), ("look", "look", _solid(_SECOND)),
    ])  # fmt: skip
    in_place.set_title("in place, one word touched")
    _from_zero(in_place)
    figure.suptitle("A hand-over by the size of its frame")
    return figure


def _readers(answer: Answer) -> Any:
    figure, (times, ratios) = _panels(answer, 2)
    kinds = (
        ("futex", "asleep until each frame", _OURS),
        ("drop_oldest", "admitted, drop_oldest", _SECOND),
        ("plain", "plain", _OTHERS),
    )
    _curves(times, answer, [(kind, text, _solid(colour)) for kind, text, colour in kinds])
    times.set_ylabel("µs of the producer's thread")
    times.set_title("a publish")
    _curves(ratios, answer, [
        (f"{kind}_ratio", text, _solid(colour)) for kind, text, colour in kinds
    ])  # fmt: skip
    ratios.set_title("beside no readers")
    ratios.set_ylabel("ratio")
    ratios.axhline(1, color=_OTHERS, linewidth=1)
    for panel in (times, ratios):
        panel.set_xscale("symlog", base=2, linthresh=1, linscale=0.7)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        _label(panel, answer)
    figure.suptitle("A publish by the number of readers, each a process")
    return figure


def _channels(answer: Answer) -> Any:
    figure, (frames, lives, memory) = _panels(answer, 3)
    _curves(frames, answer, [("put", "put", _solid(_OURS)), ("look", "look", _solid(_SECOND))])
    frames.set_ylabel("µs a call")
    frames.set_title("all channels in turn")
    _from_zero(frames)
    _curves(lives, answer, [
        ("create", "create", _solid(_OURS)), ("attach", "attach", _solid(_SECOND)),
    ])  # fmt: skip
    lives.set_ylabel("µs each")
    lives.set_title("to open one")
    _from_zero(lives)
    _curves(memory, answer, [
        ("shm_kib", "shared", _solid(_OURS)), ("own_kib", "the process's own", _solid(_SECOND)),
    ])  # fmt: skip
    memory.set_ylabel("KiB")
    memory.set_title("memory of a channel, both ends")
    _from_zero(memory)
    figure.suptitle("A hand-over by the number of channels of a process")
    return figure


def _slots(answer: Answer) -> Any:
    figure, (frames, lives) = _panels(answer, 2)
    _curves(frames, answer, [
        ("hand_over", "both in turns", _dashed(_OTHERS)),
        ("publish", "put", _solid(_OURS)), ("look", "look", _solid(_SECOND)),
    ])  # fmt: skip
    frames.set_ylabel("µs a call")
    frames.set_title("in order")
    _from_zero(frames)
    _curves(lives, answer, [
        ("create", "create", _solid(_OURS)), ("attach", "attach", _solid(_SECOND)),
    ])  # fmt: skip
    lives.set_ylabel("µs each")
    lives.set_title("to open one")
    figure.suptitle("A hand-over by the slots of the ring, frames of 64 B")
    return figure


# --- What all pictures share ---


def _panels(answer: Answer, n: int) -> tuple[Any, list[Any]]:
    figure, panels = plt.subplots(
        1, n, squeeze=False, figsize=(0.6 + 3.4 * n, 3.4), layout="constrained"
    )
    for panel in panels[0]:
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
        panel.set_xlabel(answer.grows)
        _label(panel, answer)
    return figure, list(panels[0])


def _label(panel: Any, answer: Answer) -> None:
    """Mark the points that were measured, and no others."""
    is_crowded = max(len(row.label) for row in answer.rows) > 4
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_crowded else {}
    panel.set_xticks([row.at for row in answer.rows], [row.label for row in answer.rows], **turn)
    panel.xaxis.set_minor_locator(NullLocator())


def _curves(panel: Any, answer: Answer, curves: Sequence[Curve]) -> None:
    for measure, label, look in curves:
        points = [(row.at, row.values[measure]) for row in answer.rows if measure in row.values]
        panel.plot([at for at, _ in points], [value for _, value in points], label=label, **look)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.legend(frameon=False)


def _from_zero(panel: Any) -> None:
    """Show what should stay the same on a linear scale, so that a change has its true size."""
    panel.set_yscale("linear")
    panel.set_ylim(0, 1.2 * panel.get_ylim()[1])  # with room for the legend


def _solid(colour: str) -> dict[str, Any]:
    return {"color": colour, "marker": "o", "markersize": 4}


def _dashed(colour: str) -> dict[str, Any]:
    return {
        "color": colour, "marker": "o", "markersize": 4, "linestyle": "--", "alpha": 0.6,
        "markerfacecolor": "white",
    }  # fmt: skip
