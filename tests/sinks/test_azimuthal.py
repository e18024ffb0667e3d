"""Azimuthal averages, against an implementation that takes its time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pyhub.errors import LayoutError
from pyhub.sinks.azimuthal import AzimuthalAverage

SHAPE = (37, 53)
CENTRE = (20.3, 11.8)


def slow_profile(
    frame: npt.NDArray[Any], centre: tuple[float, float], n_bins: int, used: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    rows, columns = frame.shape
    x, y = centre
    farthest = max(math.hypot(c - x, r - y) for r in (0, rows - 1) for c in (0, columns - 1))
    rings: list[list[float]] = [[] for _ in range(n_bins)]
    for row in range(rows):
        for column in range(columns):
            if used[row, column]:
                ring = int(math.hypot(column - x, row - y) / (farthest / n_bins))
                rings[min(ring, n_bins - 1)].append(float(frame[row, column]))
    return np.array([np.mean(ring) if ring else math.nan for ring in rings])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "uint32", "int32", "f4", "f8", "bool"])
def test_profile_equals_the_slow_one(dtype: str) -> None:
    frame = np.random.default_rng(1).integers(0, 200, SHAPE).astype(dtype)
    profile = AzimuthalAverage(SHAPE, CENTRE, n_bins=17).profile(frame)
    expected = slow_profile(frame, CENTRE, 17, np.ones(SHAPE, np.bool_))
    assert profile.dtype == np.float32
    np.testing.assert_allclose(profile, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "mark"),
    [("uint8", 255), ("uint16", 65535), ("int32", -1), ("float32", math.nan), ("f8", math.inf)],
)
def test_pixels_without_a_count_are_left_out(dtype: str, mark: float) -> None:
    rng = np.random.default_rng(2)
    frame = rng.integers(0, 100, SHAPE).astype(dtype)
    bad = rng.random(SHAPE) < 0.2
    frame[bad] = mark
    profile = AzimuthalAverage(SHAPE, CENTRE, n_bins=9).profile(frame)
    np.testing.assert_allclose(profile, slow_profile(frame, CENTRE, 9, ~bad), rtol=1e-6)


def test_other_bad_pixels_in_the_next_frame_are_noticed() -> None:
    rng = np.random.default_rng(3)
    average = AzimuthalAverage(SHAPE, CENTRE, n_bins=9)
    for _ in range(3):
        frame = rng.integers(0, 100, SHAPE, dtype=np.uint16)
        bad = rng.random(SHAPE) < 0.2
        frame[bad] = 65535
        expected = slow_profile(frame, CENTRE, 9, ~bad)
        np.testing.assert_allclose(average.profile(frame), expected, rtol=1e-6)


def test_masked_pixels_are_left_out_whatever_they_hold() -> None:
    rng = np.random.default_rng(4)
    frame = rng.integers(0, 100, SHAPE, dtype=np.uint16)
    mask = rng.random(SHAPE) < 0.3
    frame[mask] = rng.choice([50_000, 65535], size=mask.sum())
    profile = AzimuthalAverage(SHAPE, CENTRE, n_bins=9, mask=mask).profile(frame)
    np.testing.assert_allclose(profile, slow_profile(frame, CENTRE, 9, ~mask), rtol=1e-6)


def test_a_ring_without_pixels_is_nan() -> None:
    frame = np.full(SHAPE, 65535, np.uint16)
    frame[12, 20] = 5
    profile = AzimuthalAverage(SHAPE, CENTRE, n_bins=6).profile(frame)
    assert profile[0] == 5
    assert np.isnan(profile[1:]).all()


def test_a_ring_is_seen_at_its_radius() -> None:
    y, x = np.mgrid[:200, :300]
    radius = np.hypot(x - 140.0, y - 90.0)
    frame = (1000 * np.exp(-0.5 * ((radius - 60) / 2) ** 2)).astype(np.uint16)
    average = AzimuthalAverage(frame.shape, (140.0, 90.0))
    assert average.radii_px[np.argmax(average.profile(frame))] == pytest.approx(60, abs=1)


def test_the_map_stays_while_the_beam_moves_by_half_a_pixel() -> None:
    average = AzimuthalAverage(SHAPE, CENTRE)
    average.profile(np.zeros(SHAPE), (CENTRE[0] + 0.3, CENTRE[1] - 0.39))
    assert average.centre == CENTRE


def test_a_beam_that_moved_farther_gets_a_map_of_its_own() -> None:
    frame = np.random.default_rng(5).integers(0, 100, SHAPE, dtype=np.uint16)
    average = AzimuthalAverage(SHAPE, (26.0, 18.0), n_bins=12)
    average.profile(frame)
    moved = (26.0, 18.0 + 0.6)
    profile = average.profile(frame, moved)
    assert average.centre == moved
    width = average.radii_px[1] - average.radii_px[0]
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    ring = (np.hypot(x - moved[0], y - moved[1]) / width).astype(int)
    assert profile[3] == pytest.approx(frame[ring == 3].mean(), rel=1e-6)


def test_what_is_beyond_the_last_ring_after_a_move_is_left_out() -> None:
    frame = np.ones(SHAPE, np.uint16)
    average = AzimuthalAverage(SHAPE, (26.0, 18.0), n_bins=12)
    frame[-1, -1] = 60_000
    assert average.profile(frame, (0.0, 0.0)).max() == 1


def test_a_beam_that_wanders_for_long_keeps_few_maps() -> None:
    average = AzimuthalAverage(SHAPE, (0.0, 0.0))
    frame = np.ones(SHAPE, np.uint16)
    for n in range(50):
        average.profile(frame, (float(n), 3.0))
    assert len(average._maps) <= 8
    assert average.centre == (49.0, 3.0)


def test_a_known_centre_is_found_again() -> None:
    average = AzimuthalAverage(SHAPE, (10.0, 10.0))
    frame = np.ones(SHAPE)
    average.profile(frame, (15.0, 10.0))
    average.profile(frame, (10.2, 10.0))
    assert average.centre == (10.0, 10.0)


def test_the_frame_is_left_as_it_is() -> None:
    frame = np.full(SHAPE, 65535, np.uint16)
    frame.flags.writeable = False
    AzimuthalAverage(SHAPE, CENTRE).profile(frame)
    assert (frame == 65535).all()


@pytest.mark.parametrize(
    "frame", [np.zeros((3, 3)), np.zeros(SHAPE, np.complex64), np.zeros((2, *SHAPE))]
)
def test_a_frame_that_does_not_fit_is_refused(frame: npt.NDArray[Any]) -> None:
    with pytest.raises(LayoutError, match=r"takes numbers of shape \(37, 53\)"):
        AzimuthalAverage(SHAPE, CENTRE).profile(frame)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(LayoutError, match="rows and columns"):
        AzimuthalAverage((2, 3, 4), CENTRE)  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match="the mask has shape"):
        AzimuthalAverage(SHAPE, CENTRE, mask=np.zeros((2, 2), np.bool_))
    with pytest.raises(ValueError, match="n_bins is 0"):
        AzimuthalAverage(SHAPE, CENTRE, n_bins=0)
    with pytest.raises(ValueError, match="finite"):
        AzimuthalAverage(SHAPE, (math.nan, 0.0))


def test_a_single_pixel_has_a_profile() -> None:
    profile = AzimuthalAverage((1, 1), (0.0, 0.0), n_bins=2).profile(np.full((1, 1), 4.0))
    assert profile[0] == 4
