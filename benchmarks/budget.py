"""budget.toml: what each operation may cost, and the verdict on what it does cost."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "INTERPRETER",
    "Verdict",
    "add_require_exact",
    "judge",
    "key",
    "report_and_exit_code",
    "stored",
    "update",
    "versions",
]

PATH = Path(__file__).with_name("budget.toml")
_HEADER = """\
# What each operation may cost: see README.md. Written by
#   python benchmarks/instructions.py --update
#   python benchmarks/ratios.py --update
# A higher number is a commit of its own, with the reason.
"""
# Other versions of these change the numbers without a change of pyhub.
_PACKAGES = ("numpy", "pyzmq", "msgpack", "msgspec")

# The operation that is none of pyhub's: it tells one build of Python from another.
INTERPRETER = "interpreter"

Numbers = Mapping[str, float]


def key() -> str:
    """Name the interpreter and architecture that a budget is for.

    To the last digit: of two builds of Python 3.11 one took up to 14 % fewer
    instructions for the same code.
    """
    return f"{sys.implementation.name}-{platform.python_version()}-{platform.machine()}"


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on beside pyhub and Python."""
    return {name: metadata.version(name) for name in _PACKAGES}


def stored(gauge: str) -> tuple[dict[str, float], dict[str, str]]:
    """Return the budget of `gauge` for this interpreter, and the versions it was made with."""
    table = _load().get(key(), {}).get(gauge, {})
    return {k: v for k, v in table.items() if k != "made_with"}, table.get("made_with", {})


def update(gauge: str, numbers: Numbers) -> None:
    """Write `numbers` as the budget of `gauge` for this interpreter."""
    budget = _load()
    budget.setdefault(key(), {})[gauge] = {**numbers, "made_with": versions()}
    lines = [_HEADER]
    for interpreter, gauges in sorted(budget.items()):
        for name, table in sorted(gauges.items()):
            lines.append(f'["{interpreter}".{name}]')
            made_with = ", ".join(f'{k} = "{v}"' for k, v in table["made_with"].items())
            lines += [f"{k} = {v}" for k, v in table.items() if k != "made_with"]
            lines += [f"made_with = {{ {made_with} }}", ""]
    PATH.write_text("\n".join(lines))


@dataclass(frozen=True)
class Verdict:
    """One measured number beside its budget."""

    name: str
    measured: float
    budget: float | None  # None: nobody has measured it for this interpreter
    tolerance: float | None  # None: shown, not gated

    @property
    def change(self) -> float | None:
        """How much more than its budget it costs: 0.05 is 5 % more."""
        return self.measured / self.budget - 1 if self.budget else None

    @property
    def is_over(self) -> bool:
        """Whether it costs more than it may; without a budget, nothing is known."""
        if self.tolerance is None:
            return False
        return self.change is None or self.change > self.tolerance

    @property
    def word(self) -> str:
        """The verdict."""
        if self.tolerance is None:
            return "not gated"
        if self.change is None:
            return "NO BUDGET"
        if self.change > self.tolerance:
            return "OVER BUDGET"
        return "ok" if self.change >= -self.tolerance else "cheaper: keep it with --update"

    @property
    def number(self) -> str:
        """The measured number as text: counts as whole numbers."""
        return f"{self.measured:,}" if isinstance(self.measured, int) else f"{self.measured:.2f}"

    @property
    def percent(self) -> str:
        """The change as text."""
        return "" if self.change is None else f"{self.change:+.1%}"


def judge(
    gauge: str, measured: Numbers, tolerance: float, ungated: Collection[str] = ()
) -> list[Verdict]:
    """Set `measured` beside the budget of `gauge`; a Python without any gates nothing."""
    numbers, _ = stored(gauge)
    return [
        Verdict(
            name,
            value,
            numbers.get(name),
            tolerance if numbers and name not in ungated else None,
        )
        for name, value in measured.items()
    ]


def add_require_exact(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option that makes a gate fail where it cannot be applied."""
    parser.add_argument(
        "--require-exact",
        action="store_true",
        default=bool(os.environ.get("CI")),
        help=f"fail without {what} (the default where CI is set)",
    )


def report_and_exit_code(gauge: str, verdicts: list[Verdict], require_exact: bool) -> int:
    """Print the verdicts and what to do; return what a gate's program exits with.

    1: something is over its budget, or is new and has none. A Python for which
    there is no budget at all passes, unless `require_exact`.
    """
    for verdict in verdicts:
        print(f"{verdict.name:<40} {verdict.number:>10} {verdict.percent:>8}  {verdict.word}")
    if not stored(gauge)[0]:
        print(f"\nnot gated: there is no budget of {gauge} for {key()}.")
        print(f"  Make one: python benchmarks/{gauge}.py --update")
        return 1 if require_exact else 0
    unknown = [verdict.name for verdict in verdicts if verdict.is_over and verdict.budget is None]
    over = [verdict.name for verdict in verdicts if verdict.is_over and verdict.budget is not None]
    if unknown:
        print(f"\nno budget of {gauge} for {key()}: {', '.join(unknown)}.")
        print(f"  Make one: python benchmarks/{gauge}.py --update")
    if over:
        print(f"\nover the budget of {gauge} for {key()}: {', '.join(over)}.")
        _, made_with = stored(gauge)
        for name, version in versions().items():
            if made_with.get(name, version) != version:
                print(f"  The budget was made with {name} {made_with[name]}, this is {version}.")
        if INTERPRETER in over:
            print("  This Python itself takes more than the one that the budget was made with.")
        print(f"  Find the cause, or raise the budget: python benchmarks/{gauge}.py --update")
        print("  in a commit of its own that gives the reason.")
    return 1 if unknown or over else 0


def _load() -> dict[str, dict[str, dict[str, Any]]]:
    return tomllib.loads(PATH.read_text()) if PATH.exists() else {}
