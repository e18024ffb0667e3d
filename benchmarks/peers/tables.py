"""The tables of a comparison, for the terminal and as Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from link import Way
from rich.table import Table
from tally import Case, Tally

__all__ = ["Grid", "cost_case", "grids", "rich_table"]

_NONE = "-"


@dataclass(frozen=True)
class Grid:
    """One table: a title, what it means, headings, and rows of text."""

    title: str
    caption: str
    headings: list[str]
    rows: list[list[str]]
    is_text: bool = False
    """Whether the columns hold words rather than numbers."""

    def markdown(self) -> str:
        """Return it as a section of Markdown."""
        lines = [f"## {self.title}", "", self.caption, ""]
        lines.append(f"| {' | '.join(self.headings)} |")
        lines.append(f"|---|{('---|' if self.is_text else '--:|') * (len(self.headings) - 1)}")
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join(lines) + "\n"


def grids(tally: Tally, ways: dict[str, Way], cases: list[Case], missing: list[str]) -> list[Grid]:
    """Lay out all tables; `missing` are lines about peers that are not here."""
    n_receivers = sorted({case.n_receivers for case in cases})
    tables = []
    for n in n_receivers:
        some = [case for case in cases if case.n_receivers == n]
        tables += [_latency(tally, ways, some), _throughput(tally, ways, some)]
    tables += [_cost(tally, ways, cases), _about(ways)]
    wrong = [[way, f"{case.size}, {_to(case)}", error] for way, case, error in tally.errors()]
    wrong += [[*line.split(": ", 1)[:1], "all", line.split(": ", 1)[1]] for line in missing]
    if wrong:
        caption = "A failure ends a course; what was measured before it is in the tables."
        tables.append(Grid("Not measured", caption, ["way", "at", "reason"], wrong, True))
    return tables


def rich_table(grid: Grid) -> Table:
    """Return it for the terminal."""
    table = Table(title=grid.title, caption=grid.caption, title_justify="left")
    table.caption_justify = "left"
    for index, heading in enumerate(grid.headings):
        justify = "left" if index == 0 or grid.is_text else "right"
        table.add_column(heading, justify=justify, overflow="fold")
    for row in grid.rows:
        table.add_row(*row)
    return table


def cost_case(cases: list[Case]) -> Case:
    """Return the case that costs are quoted for: 1 MiB if there is one, few receivers."""
    return min(cases, key=lambda case: (abs(case.n_bytes - (1 << 20)), case.n_receivers))


def _latency(tally: Tally, ways: dict[str, Way], cases: list[Case]) -> Grid:
    has_trips = any(tally.median(way, cases[0], "round_trip_p50_us") for way in ways)
    headings = ["way"]
    for case in cases:
        headings += [f"{case.size} p50", "p99", "ratio"]
    if has_trips:
        headings += ["round trip", "ratio"]
    rows = []
    for name, way in ways.items():
        row = [name]
        for case in cases:
            middle, late = (tally.median(name, case, f"paced_{p}_us") for p in ("p50", "p99"))
            ratio = tally.ratio(name, case, "paced_p50_us")
            lost = tally.median(name, case, "paced_lost_percent")
            text = _number(middle) + (f" ({lost:.0f} % lost)" if lost and lost >= 0.5 else "")
            row += [_or_why(tally, way, case, text), _number(late), _times(ratio)]
        if has_trips:
            row.append(_number(tally.median(name, cases[0], "round_trip_p50_us")))
            row.append(_times(tally.ratio(name, cases[0], "round_trip_p50_us")))
        rows.append(row)
    caption = (
        "Microseconds from the sender's time stamp to the frame in hand, frames at a steady pace. "
        f"Ratio: the median over repetitions of the ratio to '{tally.reference}'."
    )
    return Grid(f"Latency, {_to(cases[0])}", caption, headings, rows)


def _throughput(tally: Tally, ways: dict[str, Way], cases: list[Case]) -> Grid:
    headings = ["way"]
    for case in cases:
        headings += [f"{case.size} frames/s", *(["GB/s"] if case.n_bytes >= 10**5 else [])]
        headings += ["lost", "ratio"]
    rows = []
    for name, way in ways.items():
        row = [name]
        for case in cases:
            received_hz = tally.median(name, case, "flood_received_hz")
            row.append(_or_why(tally, way, case, _number(received_hz)))
            if case.n_bytes >= 10**5:
                row.append(_number(tally.median(name, case, "flood_gb_per_s")))
            lost = tally.median(name, case, "flood_lost_percent")
            row.append(_NONE if lost is None else f"{lost:.0f} %" if lost else "0")
            row.append(_times(tally.ratio(name, case, "flood_received_hz")))
        rows.append(row)
    caption = (
        "Frames per second that arrive at each receiver, sent as fast as the way takes them; "
        "only three words of a frame are touched, so GB/s in place are handed over, not moved."
    )
    return Grid(f"Throughput, {_to(cases[0])}", caption, headings, rows)


def _cost(tally: Tally, ways: dict[str, Way], cases: list[Case]) -> Grid:
    chosen = [case for case in cases if case.n_bytes == cost_case(cases).n_bytes]
    headings = ["way"]
    for case in chosen:
        headings += [f"{_to(case)}: CPU s/GB", "ratio", "CPU µs/frame", "memory MiB"]
    rows = []
    for name, way in ways.items():
        row = [name]
        for case in chosen:
            cpu = tally.median(name, case, "paced_cpu_s_per_gb")
            row.append(_or_why(tally, way, case, _number(cpu)))
            row.append(_times(tally.ratio(name, case, "paced_cpu_s_per_gb")))
            row.append(_number(tally.median(name, case, "paced_cpu_us_per_frame")))
            row.append(_number(tally.median(name, case, "paced_pss_mib")))
        rows.append(row)
    caption = (
        "CPU time of sender and receivers together, per GB sent, at the steady pace of the "
        "latency run; memory of all of them (PSS) after it. A way that polls uses a core always."
    )
    return Grid(f"Cost, frames of {chosen[0].size}", caption, headings, rows)


def _about(ways: dict[str, Way]) -> Grid:
    rows = [
        [name, "yes" if way.in_place else "no", way.waits, way.remark or _NONE]
        for name, way in ways.items()
    ]
    caption = "In place: neither end copies the frame. The receiver polls or sleeps for the next."
    return Grid("Ways", caption, ["way", "in place", "waits", "remark"], rows, True)


def _to(case: Case) -> str:
    return "1 receiver" if case.n_receivers == 1 else f"{case.n_receivers} receivers"


def _or_why(tally: Tally, way: Way, case: Case, text: str) -> str:
    """Return the text, or the reason why there is none."""
    if text != _NONE:
        return text
    if way.max_receivers is not None and case.n_receivers > way.max_receivers:
        return f"{way.max_receivers} at most"
    return "failed" if tally.failed(way.name, case) else _NONE


def _number(value: float | None) -> str:
    if value is None:
        return _NONE
    for limit, digits in ((100, 0), (10, 1), (1, 2)):
        if value >= limit:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}"


def _times(ratio: float | None) -> str:
    if ratio is None:
        return _NONE
    digits = 0 if ratio >= 10 else 2 if ratio >= 0.1 else 3
    return f"{ratio:,.{digits}f}x"
