"""Collects what was measured; medians, and ratios to a reference of the same repetition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from course import Measures

__all__ = ["Case", "Record", "Tally"]


@dataclass(frozen=True, order=True)
class Case:
    """What all ways are asked to do."""

    n_bytes: int
    n_receivers: int

    @property
    def size(self) -> str:
        """The size as people write it."""
        for unit, n_bytes in (("GiB", 1 << 30), ("MiB", 1 << 20), ("MB", 10**6), ("kB", 1000)):
            if self.n_bytes >= n_bytes and (self.n_bytes % n_bytes == 0 or unit == "kB"):
                return f"{self.n_bytes / n_bytes:g} {unit}"
        return f"{self.n_bytes} B"


@dataclass(frozen=True)
class Record:
    """One course of one way in one repetition."""

    repeat: int
    way: str
    case: Case
    measures: Measures
    error: str


class Tally:
    """All records of a session."""

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self.records: list[Record] = []

    def add(self, record: Record) -> None:
        """Take one more."""
        self.records.append(record)

    def median(self, way: str, case: Case, measure: str) -> float | None:
        """Return the median over the repetitions, None if it was never measured."""
        values = self._values(way, case, measure)
        return median(values.values()) if values else None

    def ratio(self, way: str, case: Case, measure: str) -> float | None:
        """Return the median of the ratios to the reference, each of one repetition."""
        values = self._values(way, case, measure)
        references = self._values(self.reference, case, measure)
        ratios = [
            value / references[repeat] for repeat, value in values.items() if references.get(repeat)
        ]
        return median(ratios) if ratios else None

    def errors(self) -> Iterator[tuple[str, Case, str]]:
        """Iterate over what failed; each failure of a way at a case once."""
        seen = set()
        for record in self.records:
            key = (record.way, record.case)
            if record.error and key not in seen:
                seen.add(key)
                yield record.way, record.case, record.error

    def failed(self, way: str, case: Case) -> bool:
        """Say whether this way failed at this case in any repetition."""
        return any(each.error for each in self.records if (each.way, each.case) == (way, case))

    def is_hopeless(self, way: str, case: Case) -> bool:
        """Say whether it failed before anything was measured; once more would be in vain."""
        return any(
            each.error and not each.measures
            for each in self.records
            if (each.way, each.case) == (way, case)
        )

    def as_json(self) -> dict[str, Any]:
        """Return medians and ratios by way and case, and every single record."""
        summary: list[dict[str, Any]] = []
        for way, case in dict.fromkeys((each.way, each.case) for each in self.records):
            names = dict.fromkeys(
                name
                for each in self.records
                if (each.way, each.case) == (way, case)
                for name in each.measures
            )
            summary.append(
                {
                    "way": way,
                    **asdict(case),
                    "median": {name: self.median(way, case, name) for name in names},
                    "ratio": {name: self.ratio(way, case, name) for name in names},
                }
            )
        return {
            "reference": self.reference,
            "summary": summary,
            "records": [asdict(record) for record in self.records],
        }

    def _values(self, way: str, case: Case, measure: str) -> dict[int, float]:
        return {
            each.repeat: each.measures[measure]
            for each in self.records
            if (each.way, each.case) == (way, case) and measure in each.measures
        }
