"""Draws a comparison: latency by size, throughput, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # files only; no display is needed, nor looked for

import matplotlib.pyplot as plt
from link import Way
from tables import cost_case
from tally import Case, Tally

__all__ = ["draw"]

_OURS = ("pyhub", "hub", "floor")
_COLOURS = {"ours": "#d9480f", "in place": "#1864ab", "copies": "#868e96"}
_PALE = 0.45


def draw(tally: Tally, ways: dict[str, Way], cases: list[Case], directory: Path) -> list[Path]:
    """Write the pictures and return their paths."""
    few = min(case.n_receivers for case in cases)
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        return [
            _latency(tally, ways, [each for each in cases if each.n_receivers == few], directory),
            _throughput(tally, ways, cases, directory),
            _cost(tally, ways, cost_case(cases), directory),
        ]


def _latency(tally: Tally, ways: dict[str, Way], cases: list[Case], directory: Path) -> Path:
    figure, panels = _panels(len(cases), len(ways))
    for panel, case in zip(panels, cases, strict=True):
        for row, (name, way) in enumerate(ways.items()):
            middle = tally.median(name, case, "paced_p50_us")
            late = tally.median(name, case, "paced_p99_us")
            if middle is None or late is None:
                continue
            colour = _COLOURS[_family(name, way)]
            panel.plot([middle, late], [row, row], color=colour, alpha=_PALE, linewidth=2)
            fill = colour if way.waits == "sleeps" else "white"
            panel.plot(middle, row, "o", color=colour, markerfacecolor=fill, markersize=6)
        panel.set_title(f"{case.size}")
        panel.set_xlabel("µs, p50 (dot) to p99 (line)")
    _label(panels, ways)
    figure.suptitle("Latency of a frame; hollow dots: the receiver polls")
    return _save(figure, directory / "peers-latency.png")


def _throughput(tally: Tally, ways: dict[str, Way], cases: list[Case], directory: Path) -> Path:
    sizes = sorted({case.n_bytes for case in cases})
    counts = sorted({case.n_receivers for case in cases})
    figure, panels = _panels(len(sizes), len(ways))
    for panel, size in zip(panels, sizes, strict=True):
        for place, count in enumerate(counts):
            case = Case(size, count)
            for row, (name, way) in enumerate(ways.items()):
                rate = tally.median(name, case, "flood_received_hz")
                if rate:
                    height = 0.8 / len(counts)
                    panel.barh(
                        row - 0.4 + (place + 0.5) * height,
                        rate,
                        height,
                        color=_COLOURS[_family(name, way)],
                        alpha=1.0 if place == 0 else _PALE,
                    )
        panel.set_title(Case(size, 1).size)
        panel.set_xlabel("frames/s at each receiver")
    _label(panels, ways)
    pale = f"; pale: {counts[-1]} receivers instead of {counts[0]}" if len(counts) > 1 else ""
    figure.suptitle(f"Throughput, three words of a frame touched{pale}")
    return _save(figure, directory / "peers-throughput.png")


def _cost(tally: Tally, ways: dict[str, Way], case: Case, directory: Path) -> Path:
    figure, panels = _panels(2, len(ways))
    measures = (("paced_cpu_s_per_gb", "CPU seconds per GB"), ("paced_pss_mib", "memory, MiB"))
    for panel, (measure, text) in zip(panels, measures, strict=True):
        for row, (name, way) in enumerate(ways.items()):
            value = tally.median(name, case, measure)
            if value:
                panel.barh(row, value, 0.7, color=_COLOURS[_family(name, way)])
        panel.set_xlabel(text)
    _label(panels, ways)
    panels[1].set_xscale("linear")
    figure.suptitle(f"Cost of frames of {case.size} at a steady pace, all processes together")
    return _save(figure, directory / "peers-cost.png")


def _panels(n_panels: int, n_rows: int) -> tuple[Any, list[Any]]:
    figure, panels = plt.subplots(
        1,
        n_panels,
        sharey=True,
        squeeze=False,
        figsize=(2.2 + 2.9 * n_panels, 1.6 + 0.27 * n_rows),
        layout="constrained",
    )
    return figure, list(panels[0])


def _label(panels: list[Any], ways: dict[str, Way]) -> None:
    """Name the rows, top down, and make the scales logarithmic."""
    for panel in panels:
        panel.set_xscale("log")
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
    panels[0].set_yticks(range(len(ways)), list(ways))
    panels[0].set_ylim(len(ways) - 0.4, -0.6)
    patches = [
        plt.Rectangle((0, 0), 1, 1, color=colour)
        for family, colour in _COLOURS.items()
        if family in {_family(name, way) for name, way in ways.items()}
    ]
    names = [
        family
        for family in _COLOURS
        if family in {_family(name, way) for name, way in ways.items()}
    ]
    panels[-1].figure.legend(patches, names, loc="outside lower right", ncols=3, frameon=False)


def _family(name: str, way: Way) -> str:
    if name.startswith(_OURS):
        return "ours"
    return "in place" if way.in_place else "copies"


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
