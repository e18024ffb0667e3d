"""A live table of channels, their readers' figures, and the newest picture."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any

import numpy.typing as npt
from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pyhub.datablock import DataBlockConsumer
from pyhub.errors import PyhubError, WaitTimeout
from pyhub.hub.message_hub import MessageHub
from pyhub.monitor.picture import fit, render
from pyhub.monitor.wording import short

__all__ = ["Dashboard"]

_LENGTH = 24  # of a parameter's value, in letters


class Dashboard:
    """Watches a source channel and the channels its readers publish.

    Reads at its own pace, the newest frame only, and disturbs nobody.

    Parameters
    ----------
    hub
        Where channels are found.
    source
        The channel that is drawn.
    readers
        Channels whose parameters are their readers' figures
        (`pyhub.monitor.meter`).
    """

    def __init__(self, hub: MessageHub, source: str, readers: Iterable[str]) -> None:
        self._hub = hub
        self._source = source
        self._consumers: dict[str, DataBlockConsumer | None] = {source: None}
        self._consumers |= dict.fromkeys(readers)
        self._figures: dict[str, dict[str, Any]] = {}
        self._parameters: dict[str, Any] = {}
        self._frame: npt.NDArray[Any] | None = None
        self._frame_id = -1
        self._counted: tuple[float, int] | None = None  # when, how many frames
        self.n_frames = 0

    def update(self) -> None:
        """Look at every channel once; those that are not there yet, next time."""
        for name in self._consumers:
            consumer = self._find(name)
            if consumer is None:
                continue
            with contextlib.suppress(PyhubError):  # gone or idle: the figures stay
                if name == self._source:
                    self._look_at_source(consumer)
                else:
                    self._figures[name] = consumer.read(timeout_s=0.0).flex

    def close(self) -> None:
        """Detach from all channels."""
        for consumer in self._consumers.values():
            if consumer is not None:
                consumer.close()

    def renderable(self, width: int, height: int) -> RenderableType:
        """Draw all of it into `width` times `height` characters."""
        table = Table(box=box.SIMPLE_HEAD, title_style="bold")
        table.add_column("channel", no_wrap=True)
        for column in ("frames/s", "GB/s", "p50/ms", "p99/ms", "lag", "lost"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, figures in self._rows():
            table.add_row(name, *_cells(figures))
        parts: list[RenderableType] = [table]
        facts = [
            Text.assemble((f"{name}=", "dim"), short(value, _LENGTH))
            for name, value in self._parameters.items()
        ]
        parts.append(Columns(facts, padding=(0, 2)))
        n_lines = 4 + len(self._consumers) + 2 + -(-sum(map(len, facts)) // max(width, 1))
        rows = height - n_lines - 2
        if self._frame is not None and rows >= 4:
            columns, rows = fit(self._frame.shape, width - 2, rows)
            parts.append(Text(f"\n{self._source}, frame {self._frame_id}", style="dim"))
            parts.append(render(self._frame, columns, rows))
        return Group(*parts)

    def lines(self) -> list[str]:
        """Say the same in plain lines, one a channel."""
        header = ("frames/s", "GB/s", "p50 ms", "p99 ms", "lag", "lost")
        lines = []
        for name, figures in self._rows():
            facts = zip(header, _cells(figures), strict=True)
            lines.append(f"{name:<18}" + "  ".join(f"{fact} {value}" for fact, value in facts))
        parameters = "  ".join(
            f"{name}={short(v, _LENGTH)}" for name, v in self._parameters.items()
        )
        lines.append(f"{'':18}frame {self._frame_id}  {parameters}")
        return lines

    def _find(self, name: str) -> DataBlockConsumer | None:
        consumer = self._consumers[name]
        if consumer is None:
            with contextlib.suppress(PyhubError):
                consumer = self._hub.find_datablock_consumer(name, timeout_s=0.0)
                self._consumers[name] = consumer
        return consumer

    def _look_at_source(self, consumer: DataBlockConsumer) -> None:
        now, n_frames = time.monotonic(), consumer.header().structured_buffer_version
        if self._counted is None:
            self._counted = (now, n_frames)
        since, counted = self._counted
        if n_frames < counted:  # another producer
            self._counted = (now, n_frames)
        elif now - since >= 1.0:
            rate_hz = (n_frames - counted) / (now - since)
            self._figures[self._source] = {
                "rate_hz": rate_hz,
                "rate_bytes_s": rate_hz * consumer.header().structured_buffer_size,
            }
            self._counted = (now, n_frames)
        with contextlib.suppress(WaitTimeout):
            frame = consumer.read(timeout_s=0.0)
            self._frame, self._frame_id = frame.data, frame.frame_id
            self._parameters = frame.flex
            self.n_frames = max(self.n_frames, frame.version)

    def _rows(self) -> list[tuple[str, dict[str, Any]]]:
        return [(name, self._figures.get(name, {})) for name in self._consumers]


def _cells(figures: dict[str, Any]) -> list[str]:
    def cell(name: str, form: str, scale: float = 1.0) -> str:
        return format(figures[name] * scale, form) if name in figures else "-"

    return [
        cell("rate_hz", ".1f"),
        cell("rate_bytes_s", ".3f", 1e-9),
        cell("latency_p50_s", ".2f", 1e3),
        cell("latency_p99_s", ".2f", 1e3),
        cell("lag_frames", ".0f"),
        cell("n_lost", ".0f"),
    ]
