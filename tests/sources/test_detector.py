"""The simulated detector: physics in its pictures, and nothing else in its frames."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pyhub.errors import LayoutError
from pyhub.sinks.azimuthal import AzimuthalAverage
from pyhub.sources.detector import SimulatedDetector

Array = npt.NDArray[Any]
SMALL = (128, 192)


@pytest.fixture(scope="module")
def detector() -> SimulatedDetector:
    return SimulatedDetector(seed=3)


@pytest.fixture(scope="module")
def still() -> SimulatedDetector:
    """Neither beam nor sample moves: every frame has the same mean."""
    return SimulatedDetector(SMALL, seed=5, distance_m=4.0, drift_px=0.0, angle_step_deg=0.0)


def frame_of(detector: SimulatedDetector, frame_number: int) -> Array:
    out = np.zeros(detector.shape, detector.dtype)
    detector.frame_into(out, frame_number)
    return out


def counts_of(detector: SimulatedDetector, n_frames: int) -> Array:
    """Counts of all good pixels beside the beamstop, in frames that follow each other."""
    frames = np.stack([frame_of(detector, n) for n in range(n_frames)])
    good = ~detector.mask
    good[:, : SMALL[1] // 2 + 20] = False
    return frames[:, good].astype(float)


@pytest.mark.parametrize(
    ("calibrant", "distance_m", "spacings"),
    [
        ("AgBeh", 0.35, [58.380 / n for n in (1, 2, 3, 4)]),
        ("LaB6", 0.06, [4.15692 / math.sqrt(n) for n in (1, 2, 3)]),
        ("Si", 0.06, [5.43109 / math.sqrt(n) for n in (3, 8)]),
    ],
)
def test_rings_lie_where_braggs_law_puts_them(
    calibrant: str, distance_m: float, spacings: list[float]
) -> None:
    detector = SimulatedDetector(calibrant=calibrant, distance_m=distance_m, energy_keV=12.0)
    average = AzimuthalAverage(
        detector.shape, detector.beam_centre(0), n_bins=500, mask=detector.mask
    )
    profiles = [average.profile(frame_of(detector, n), detector.beam_centre(n)) for n in range(10)]
    profile = np.mean(profiles, axis=0)
    wavelength = 12.398419843 / 12.0
    for spacing in spacings:
        two_theta = 2 * math.asin(wavelength / (2 * spacing))
        expected_px = distance_m * math.tan(two_theta) / 75e-6
        near = np.flatnonzero(np.abs(average.radii_px - expected_px) < 12)
        height = profile[near] - profile[near].min()
        assert np.average(average.radii_px[near], weights=height**2) == pytest.approx(
            expected_px, abs=1.0
        )
        assert height.max() > 0.3 * profile[near].min()


def test_rings_follow_the_drifting_beam(detector: SimulatedDetector) -> None:
    far_away = 375
    x, y = detector.beam_centre(far_away)
    assert math.dist((x, y), detector.beam_centre(0)) > 3
    frame = frame_of(detector, far_away)
    radius = detector.ring_radii_px[0]
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)

    def on_ring(x: float, y: float) -> float:
        rows = np.rint(y + radius * np.sin(angles)).astype(int)
        columns = np.rint(x + radius * np.cos(angles)).astype(int)
        good = ~detector.mask[rows, columns]
        return float(frame[rows[good], columns[good]].mean())

    assert on_ring(x, y) > 1.3 * on_ring(*detector.beam_centre(0))


def test_ring_radii_shrink_with_energy_and_grow_with_distance() -> None:
    def first_px(**geometry: float) -> float:
        return SimulatedDetector(SMALL, **geometry).ring_radii_px[0]  # type: ignore[arg-type]

    assert first_px(energy_keV=24.0) == pytest.approx(first_px(energy_keV=12.0) / 2, rel=1e-3)
    assert first_px(distance_m=0.7) == pytest.approx(2 * first_px(distance_m=0.35))


def test_background_falls_with_angle(detector: SimulatedDetector) -> None:
    frame = frame_of(detector, 0)
    average = AzimuthalAverage(detector.shape, detector.beam_centre(0), 12, mask=detector.mask)
    profile = average.profile(frame)
    assert profile[1] > 1.5 * profile[4] > 1.5 * profile[10] > 0


def test_noise_is_poisson(still: SimulatedDetector) -> None:
    counts = counts_of(still, 300)
    mean, variance = counts.mean(axis=0), counts.var(axis=0, ddof=1)
    assert variance.mean() / mean.mean() == pytest.approx(1.0, abs=0.05)


def test_noise_is_poisson_within_one_frame(still: SimulatedDetector) -> None:
    counts = counts_of(still, 100)
    mean = counts.mean(axis=0)
    flat = counts[0, np.abs(mean - np.median(mean)) < 1.0]
    assert flat.size > 1000
    assert flat.var() / flat.mean() == pytest.approx(1.0, abs=0.1)


def test_successive_frames_have_independent_noise(still: SimulatedDetector) -> None:
    counts = counts_of(still, 40)
    off = counts - counts.mean(axis=0)
    correlation = (off[1:] * off[:-1]).mean() / off.var()
    assert abs(correlation) < 0.1


def test_no_frame_equals_another(detector: SimulatedDetector) -> None:
    frames = {frame_of(detector, n).tobytes() for n in range(200)}
    assert len(frames) == 200


def test_spots_come_and_go_as_the_sample_turns() -> None:
    detector = SimulatedDetector(drift_px=0.0, angle_step_deg=0.05)
    good = ~detector.mask
    frames = np.stack([frame_of(detector, n) for n in range(0, 200, 10)]).astype(float)
    typical = np.median(frames, axis=0)
    is_spot = (frames > typical + 12 * np.sqrt(typical + 1) + 20) & good
    assert (is_spot.sum(axis=(1, 2)) > 20).all()
    ever = is_spot.any(axis=0)
    assert is_spot.sum(axis=0)[ever].mean() < 5


def test_a_full_turn_brings_the_same_spots() -> None:
    detector = SimulatedDetector(drift_px=0.0, angle_step_deg=0.5)
    first, turned = frame_of(detector, 0), frame_of(detector, 720)
    spots = (first > 150) & ~detector.mask
    spots &= np.roll(first > 150, 1, axis=0) | np.roll(first > 150, 1, axis=1)
    assert spots.sum() > 20
    assert turned[spots].mean() == pytest.approx(first[spots].mean(), rel=0.2)
    other = frame_of(detector, 360)
    assert other[spots].mean() < 0.8 * first[spots].mean()


def test_no_photon_passes_the_beamstop() -> None:
    detector = SimulatedDetector(beam_centre_px=(400, 150), drift_px=0.0)
    frame = frame_of(detector, 0)
    x, y = 400, 150
    assert frame[y - 15 : y + 15, x - 15 : x + 15].sum() == 0
    assert frame[y, 1] == 0


@pytest.mark.parametrize(
    ("dtype", "is_gap"),
    [
        ("uint8", lambda f: f == 255),
        ("uint16", lambda f: f == 65535),
        ("uint32", lambda f: f == 2**32 - 1),
        ("int32", lambda f: f == -1),
        ("float32", np.isnan),
    ],
)
def test_gaps_between_modules_carry_the_mark_of_the_dtype(dtype: str, is_gap: Any) -> None:
    detector = SimulatedDetector(dtype=dtype)
    marked = is_gap(frame_of(detector, 1))
    rows, columns = detector.shape
    assert marked[:, columns // 2].all()
    assert marked[rows // 2, :].all()
    assert marked.sum() < 0.1 * marked.size
    assert (marked <= detector.mask).all()


def test_bad_pixels_stay_where_they_are(detector: SimulatedDetector) -> None:
    frames = np.stack([frame_of(detector, n) for n in (0, 500, 1000)])
    marked = frames[0] == 65535
    bad = detector.mask & ~marked
    values = frames[:, bad]
    dead = (values == 0).all(axis=0)
    hot = (values > 300).all(axis=0)
    assert dead.any()
    assert hot.any()
    assert (dead | hot).all()


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", ">u2", "uint32", "int64", "uint64", "f2", "f4", "f8"]
)
def test_every_integer_and_float_type_shows_the_same_picture(dtype: str) -> None:
    reference = SimulatedDetector(SMALL, "uint16", seed=2, exposure_s=0.003, drift_px=2)
    detector = SimulatedDetector(SMALL, dtype, seed=2, exposure_s=0.003, drift_px=2)
    good = ~detector.mask
    expected = frame_of(reference, 4)[good].astype(float)
    got = frame_of(detector, 4)[good].astype(float)
    assert (got >= 0).all()
    assert got.mean() == pytest.approx(expected.mean(), rel=0.1)


def test_counts_stop_below_the_mark_when_a_pixel_saturates() -> None:
    detector = SimulatedDetector(SMALL, "uint8", exposure_s=1.0)
    frame = frame_of(detector, 0)
    counts = frame[frame != 255]
    assert counts.max() == 254
    assert (frame[~detector.mask] != 255).all()


def test_intensity_grows_with_exposure() -> None:
    short = frame_of(SimulatedDetector(SMALL, "int32", exposure_s=0.01), 0)
    long = frame_of(SimulatedDetector(SMALL, "int32", exposure_s=1.0), 0)
    assert long.mean() == pytest.approx(100 * short.mean(), rel=0.1)


def test_same_seed_gives_the_same_frames_in_any_order() -> None:
    one, other = (SimulatedDetector(SMALL, seed=7) for _ in range(2))
    forward = [frame_of(one, n).tobytes() for n in range(5)]
    backward = [frame_of(other, n).tobytes() for n in reversed(range(5))]
    assert forward == backward[::-1]


def test_another_seed_gives_other_frames() -> None:
    one, other = (SimulatedDetector(SMALL, seed=seed) for seed in (7, 8))
    assert not np.array_equal(frame_of(one, 0), frame_of(other, 0))


def test_nothing_of_an_earlier_frame_is_left(detector: SimulatedDetector) -> None:
    out = np.full(detector.shape, 12345, detector.dtype)
    detector.frame_into(out, 9)
    assert np.array_equal(out, frame_of(detector, 9))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_no_memory_of_a_frames_size_is_allocated(dtype: str) -> None:
    detector = SimulatedDetector((1024, 1028), dtype)
    out = np.empty(detector.shape, detector.dtype)
    detector.frame_into(out, 0)
    tracemalloc.start()
    try:
        for n in range(1, 20):
            detector.frame_into(out, n)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < out.nbytes / 3


def test_a_view_with_strides_is_filled_and_its_surroundings_are_left(
    still: SimulatedDetector,
) -> None:
    rows, columns = still.shape
    around = np.full((rows + 2, columns + 2), 7, still.dtype)
    still.frame_into(around[1:-1, 1:-1], 3)
    assert np.array_equal(around[1:-1, 1:-1], frame_of(still, 3))
    around[1:-1, 1:-1] = 7
    assert (around == 7).all()


def test_parameters_are_plain_numbers_with_units(detector: SimulatedDetector) -> None:
    parameters = detector.parameters(np.int64(40))  # type: ignore[arg-type]
    assert {type(value) for value in parameters.values()} == {int, float}
    assert json.loads(json.dumps(parameters)) == parameters
    assert parameters["frame_number"] == 40
    assert parameters["exposure_s"] == 0.01
    assert parameters["energy_keV"] == 12.0
    assert parameters["angle_deg"] == pytest.approx(0.8)
    assert (parameters["beam_centre_x_px"], parameters["beam_centre_y_px"]) == (
        detector.beam_centre(40)
    )
    assert 299 < parameters["ring_current_mA"] <= 300


def test_beam_wanders_slowly_and_not_too_far(detector: SimulatedDetector) -> None:
    path = np.array([detector.beam_centre(n) for n in range(3000)])
    assert np.abs(np.diff(path, axis=0)).max() <= 0.5
    assert (np.ptp(path, axis=0) >= 8).all()
    assert (np.ptp(path, axis=0) <= 10).all()


@pytest.mark.parametrize("shape", [(16, 16), (33, 500), (700, 90)])
def test_other_shapes_work(shape: tuple[int, int]) -> None:
    detector = SimulatedDetector(shape, beam_centre_px=(0, shape[0] - 1))
    frame = frame_of(detector, 10**9)
    assert frame[~detector.mask].sum() > 0


@pytest.mark.parametrize("out", [np.empty((2, 2), "u2"), np.empty(SMALL, "u4")])
def test_an_array_that_does_not_fit_is_refused(still: SimulatedDetector, out: Array) -> None:
    with pytest.raises(LayoutError, match=r"the detector uint16 \(128, 192\)"):
        still.frame_into(out, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "complex64"}, "cannot count in dtype complex64"),
        ({"dtype": "bool"}, "cannot count in dtype bool"),
        ({"shape": (4, 4)}, "shape \\(4, 4\\) is not one of a picture"),
        ({"shape": (3, 64, 64)}, "not one of a picture"),
        ({"exposure_s": 0}, "exposure_s is 0"),
        ({"energy_keV": -1.0}, "energy_keV is -1.0"),
        ({"distance_m": math.nan}, "distance_m is nan"),
        ({"pixel_m": math.inf}, "pixel_m is inf"),
        ({"drift_px": -1}, "drift_px is -1"),
        ({"calibrant": "gold"}, "no calibrant 'gold', only AgBeh, LaB6, Si"),
        ({"beam_centre_px": (5000, 5)}, "must lie on the detector"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatedDetector(**arguments)
