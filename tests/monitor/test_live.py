"""The live table says what its channels say, at any size, and disturbs nobody."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import numpy as np
import pytest
from rich.console import Console

import pyhub
from pyhub.monitor.live import Dashboard

FIGURES = {
    "n_frames": 10, "n_lost": 3, "lag_frames": 2, "rate_hz": 99.51, "rate_bytes_s": 2.5e9,
    "latency_p50_s": 0.0012345, "latency_p99_s": 0.02,
}  # fmt: skip


@pytest.fixture
def hub() -> Iterator[pyhub.MessageHub]:
    with pyhub.MessageHub() as connected:
        yield connected


def drawn(dashboard: Dashboard, width: int, height: int) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(dashboard.renderable(width, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.split()[:1] == [name])
    return line.split()


def test_channels_that_are_not_there_yet_have_empty_rows(hub: pyhub.MessageHub) -> None:
    dashboard = Dashboard(hub, "cam1", ["cam1.follow"])
    dashboard.update()
    for text in (drawn(dashboard, 100, 30), "\n".join(dashboard.lines())):
        assert row(text, "cam1").count("-") == 6
        assert row(text, "cam1.follow").count("-") == 6
    dashboard.close()


def test_readers_are_told_by_their_figures_and_the_source_by_its_header(
    hub: pyhub.MessageHub,
) -> None:
    dashboard = Dashboard(hub, "cam1", ["cam1.follow"])
    with (
        hub.create_datablock_producer("cam1", dtype="u2", shape=(40, 60)) as cam,
        hub.create_datablock_producer("cam1.follow") as follow,
    ):
        cam.put(np.ones((40, 60), "u2"), flex={"energy_keV": 12.0})
        follow.put(flex=FIGURES)
        dashboard.update()
        begin = time.monotonic()
        while "frames/s -" in dashboard.lines()[0]:  # its rate takes a second
            cam.put(np.ones((40, 60), "u2"), flex={"energy_keV": 12.5})
            dashboard.update()
            assert time.monotonic() < begin + 20
        lines = dashboard.lines()
        text = drawn(dashboard, 100, 40)
        dashboard.close()
    assert row(text, "cam1.follow")[1:] == ["99.5", "2.500", "1.23", "20.00", "2", "3"]
    assert float(row(text, "cam1")[1]) > 0
    assert "frames/s 99.5  GB/s 2.500  p50 ms 1.23  p99 ms 20.00  lag 2  lost 3" in lines[1]
    assert "energy_keV=12.5" in lines[-1]
    assert "energy_keV=12.5" in text
    assert f"cam1, frame {dashboard.n_frames - 1}" in text
    assert "▀" in text or "█" in text


def test_parameters_are_text_and_no_markup(hub: pyhub.MessageHub) -> None:
    dashboard = Dashboard(hub, "cam1", [])
    with hub.create_datablock_producer("cam1", dtype="u2", shape=(8, 8)) as cam:
        cam.put(
            np.zeros((8, 8), "u2"), flex={"[/b]": "[/nothing]", "x": "[red]y[/]", "z": "w" * 99}
        )
        dashboard.update()
        text = drawn(dashboard, 100, 30)
        dashboard.close()
    assert "[/b]=[/nothing]" in text
    assert "x=[red]y[/]" in text
    assert "z=www" in text
    assert "..." in text


@pytest.mark.parametrize("size", [(1, 1), (10, 3), (40, 12), (300, 100)])
@pytest.mark.parametrize("shape", [(3,), (1, 1), (500, 7), (20, 30, 3)])
def test_it_can_be_drawn_at_any_size_with_frames_of_any_shape(
    hub: pyhub.MessageHub, size: tuple[int, int], shape: tuple[int, ...]
) -> None:
    dashboard = Dashboard(hub, "cam1", [])
    with hub.create_datablock_producer("cam1", dtype="u1", shape=shape) as cam:
        cam.put(np.ones(shape, "u1"))
        dashboard.update()
        assert drawn(dashboard, *size)
        dashboard.close()


def test_it_goes_on_when_the_source_comes_back(hub: pyhub.MessageHub) -> None:
    dashboard = Dashboard(hub, "cam1", [])
    for shape in ((8, 8), (6, 9)):
        with hub.create_datablock_producer("cam1", dtype="u2", shape=shape) as cam:
            cam.put(np.ones(shape, "u2"), flex={"rows": shape[0]})
            begin = time.monotonic()
            while f"rows={shape[0]}" not in dashboard.lines()[-1]:
                dashboard.update()
                assert time.monotonic() < begin + 20
    dashboard.update()
    assert "rows=6" in dashboard.lines()[-1], "what was last seen stays"
    dashboard.close()
