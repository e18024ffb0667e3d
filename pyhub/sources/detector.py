"""A simulated area detector, whose pictures look like a real one's and come as fast.

Its frames hold the powder rings of a calibrant, the Bragg spots of a turning
crystal, air scatter, a beamstop's shadow, gaps between modules, hot and dead
pixels, and the noise of counted photons, while the beam drifts slowly.

Drawing a Poisson number for each pixel takes longer than a frame may. A sum of
two Poisson numbers is one too, so each frame adds two pictures drawn
beforehand, each with half of the intensity. Rings and air scatter are
symmetric about the beam: a picture flipped about it is as good as another one,
and the beam moves by cutting another part out of pictures that are larger than
the frame. What is new in each frame besides, the spots, is small and drawn anew.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pyhub.errors import LayoutError
from pyhub.sources.crystal import Spots

__all__ = ["CALIBRANTS", "SimulatedDetector"]

HC_KEV_ANGSTROM: Final = 12.398419843

# d-spacings in Angstrom with relative intensities. Silver behenate: 00n of
# d001 = 58.380 (Huang et al. 1993, J. Appl. Cryst. 26, 180). LaB6: a = 4.15692
# (NIST SRM 660), Si: a = 5.43109 (NIST SRM 640); intensities are rounded.
CALIBRANTS: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "AgBeh": tuple((58.380 / n, 1.0 / n) for n in range(1, 16)),
    "LaB6": tuple(
        (4.15692 / math.sqrt(n), intensity)
        for n, intensity in (
            *((1, 0.55), (2, 1.0), (3, 0.41), (4, 0.22), (5, 0.46), (6, 0.24)),
            *((8, 0.08), (9, 0.22), (10, 0.15), (11, 0.10), (12, 0.02), (13, 0.07)),
        )
    ),
    "Si": tuple(
        (5.43109 / math.sqrt(n), intensity)
        for n, intensity in ((3, 1.0), (8, 0.55), (11, 0.30), (16, 0.06), (19, 0.11), (24, 0.12))
    ),
}

# Counts per second and pixel, as on a weak bending-magnet beamline.
RING_RATE_HZ: Final = 14_000.0
AIR_RATE_HZ: Final = 1_100.0
FLAT_RATE_HZ: Final = 250.0
HOT_RATE_HZ: Final = 60_000.0
AIR_FALL_DEG: Final = 3.0

RING_SIGMA_PX: Final = 2.2
SPOT_SIGMA_PX: Final = 1.1
SPOT_HALF_PX: Final = 4

# Rows and columns of a module, and between two of them as in a Pilatus.
MODULE_PX: Final = (256, 512)
GAP_PX: Final = (17, 7)
STOP_RADIUS_M: Final = 2.2e-3
DRIFT_FRAMES: Final = (1500.0, 1100.0)
# Pixels of all pictures drawn beforehand: bounds memory and construction time.
POOL_PX: Final = 10_000_000


class SimulatedDetector:
    """Draws frame number n of an endless exposure, the same one for the same seed.

    Parameters
    ----------
    shape
        Rows and columns of a frame.
    dtype
        An integer or float type. Counts end below its largest value, as in a
        counter of that many bits.
    seed
        Frames depend on it, on the other parameters, and on their number only.
    exposure_s
        Scales all intensities.
    energy_keV, distance_m, pixel_m
        Geometry: the detector stands perpendicular to the beam.
    calibrant
        A key of `CALIBRANTS`, whose powder rings are seen.
    beam_centre_px
        Column and row where the beam would meet the detector before it drifts,
        rounded to a whole pixel; near the middle by default.
    drift_px
        The beam wanders that far to each side.
    angle_step_deg
        The sample turns that far from one frame to the next.

    Raises
    ------
    LayoutError
        The shape is not one of a picture, or the dtype no integer or float type.
    ValueError
        Another parameter is out of its range.

    Notes
    -----
    Gaps between modules carry what detectors put there: the largest value of
    an unsigned type (Eiger), -1 in a signed one (Pilatus), NaN in floats. Dead
    pixels are 0.

    The sum of two of about 15 pictures in 4 orientations each is no endless
    supply of noise: while the beam stays, the mean of thousands of frames keeps
    about a fifth of the noise of one.
    """

    def __init__(
        self,
        shape: tuple[int, int] = (512, 1028),
        dtype: npt.DTypeLike = "uint16",
        *,
        seed: int = 1,
        exposure_s: float = 0.01,
        energy_keV: float = 12.0,
        distance_m: float = 0.35,
        pixel_m: float = 75e-6,
        calibrant: str = "AgBeh",
        beam_centre_px: tuple[float, float] | None = None,
        drift_px: float = 5.0,
        angle_step_deg: float = 0.02,
    ) -> None:
        """Draw the pictures that frames are made of, which takes up to a second."""
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.seed = seed
        self.exposure_s = exposure_s
        self.energy_keV = energy_keV
        self.distance_m = distance_m
        self.pixel_m = pixel_m
        self.calibrant = calibrant
        self.drift_px = drift_px
        self.angle_step_deg = angle_step_deg
        _check(self)
        x_px, y_px = beam_centre_px or (0.46 * shape[1], 0.37 * shape[0])
        if not (0 <= x_px < shape[1] and 0 <= y_px < shape[0]):
            raise ValueError(f"beam_centre_px is {x_px}, {y_px}; it must lie on the detector.")

        self._centre_px = (round(x_px), round(y_px))
        self._limit = _largest_count(self.dtype)
        rng = np.random.default_rng(seed)
        self._spots = Spots.of_crystal(
            rng,
            wavelength_angstrom=self.wavelength_angstrom,
            distance_px=self.distance_m / self.pixel_m,
            reach_px=self._reach_px(),
        )
        self._draw_pool(rng)
        self._build_mask(rng)

    @property
    def wavelength_angstrom(self) -> float:
        """Wavelength of the beam."""
        return HC_KEV_ANGSTROM / self.energy_keV

    @property
    def ring_radii_px(self) -> tuple[float, ...]:
        """Radii of the powder rings about the beam centre, smallest first (Bragg's law)."""
        return tuple(radius for radius, _ in self._rings())

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """True where a pixel counts no photons: gaps between modules, hot and dead pixels."""
        return self._mask.copy()

    def beam_centre(self, frame_number: int) -> tuple[float, float]:
        """Return column and row of the beam centre, in pixels from the first pixel's middle.

        It moves in steps of half a pixel.
        """
        x2, y2 = self._beam_centre_half_px(frame_number)
        return x2 / 2, y2 / 2

    def parameters(self, frame_number: int) -> dict[str, Any]:
        """Return what belongs to a frame, as plain numbers with their units in the names."""
        frame_number = int(frame_number)
        x_px, y_px = self.beam_centre(frame_number)
        elapsed_s = frame_number * self.exposure_s
        return {
            "frame_number": frame_number,
            "exposure_s": float(self.exposure_s),
            "energy_keV": float(self.energy_keV),
            "angle_deg": self._angle_deg(frame_number),
            "detector_distance_m": float(self.distance_m),
            "pixel_size_m": float(self.pixel_m),
            "beam_centre_x_px": x_px,
            "beam_centre_y_px": y_px,
            # Topped up each minute; too little to be seen in the counts.
            "ring_current_mA": 300.0 - 0.01 * (elapsed_s % 60.0),
        }

    def frame_into(self, out: npt.NDArray[Any], frame_number: int) -> None:
        """Fill `out`, of the detector's shape and dtype, with a frame.

        Raises
        ------
        LayoutError
            `out` has another shape or dtype.
        """
        if out.shape != self.shape or out.dtype != self.dtype:
            raise LayoutError(
                f"the array is {out.dtype} {out.shape}, the detector {self.dtype} {self.shape}.\n"
                "  Make the array, or the channel, with the detector's shape and dtype."
            )
        rng = np.random.default_rng((self.seed, frame_number))
        self._fill_with_rings(out, frame_number, rng)
        self._add_spots(out, frame_number, rng)
        self._apply_defects(out, rng)

    def _beam_centre_half_px(self, frame_number: int) -> tuple[int, int]:
        turn = 2 * math.pi * frame_number
        drift_x = self.drift_px * math.sin(turn / DRIFT_FRAMES[0])
        drift_y = self.drift_px * math.sin(turn / DRIFT_FRAMES[1] + 1.0)
        return (
            2 * self._centre_px[0] + round(2 * drift_x),
            2 * self._centre_px[1] + round(2 * drift_y),
        )

    def _angle_deg(self, frame_number: int) -> float:
        return float(frame_number * self.angle_step_deg % 360.0)

    def _reach_px(self) -> tuple[float, float]:
        """Columns and rows from the beam to the far edges, wherever it drifts."""
        x, y = self.beam_centre(0)
        rows, columns = self.shape
        return (
            max(x, columns - x) + 2 * self.drift_px,
            max(y, rows - y) + 2 * self.drift_px,
        )

    def _rings(self) -> list[tuple[float, float]]:
        """Radius in pixels and relative intensity of each ring that is scattered forward."""
        rings = []
        for spacing, intensity in CALIBRANTS[self.calibrant]:
            sine = self.wavelength_angstrom / (2 * spacing)
            if sine < math.sqrt(0.5):
                radius_m = self.distance_m * math.tan(2 * math.asin(sine))
                rings.append((radius_m / self.pixel_m, intensity))
        return rings

    def _draw_pool(self, rng: np.random.Generator) -> None:
        """Draw pictures of half the intensity with the beam in their very middle."""
        margin = math.ceil(self.drift_px) + 1
        half_x, half_y = (
            max(centre, size - 1 - centre) + margin
            for centre, size in zip(self._centre_px, reversed(self.shape), strict=True)
        )
        half_mean = 0.5 * self.exposure_s * self._rate_hz(half_x, half_y)
        peak = float(half_mean.max())
        largest = min(self._limit // 2, int(peak + 12 * math.sqrt(peak) + 30))
        pool_dtype = np.min_scalar_type(2 * largest)
        # Odd, so that the two halves of the pool have lengths without a common
        # factor: each picture of one meets each of the other, and frames that
        # follow each other share none.
        n_pictures = min(max(POOL_PX // half_mean.size, 5), 15) | 1
        pictures = [
            np.minimum(rng.poisson(half_mean), largest).astype(pool_dtype)
            for _ in range(n_pictures)
        ]
        self._middle = (half_y, half_x)
        self._pool = (pictures[: n_pictures // 2], pictures[n_pictures // 2 :])

    def _rate_hz(self, half_x: int, half_y: int) -> npt.NDArray[np.float64]:
        """Rates of rings and air scatter, up to `half_x` and `half_y` pixels from the beam."""
        x = np.arange(-half_x, half_x + 1.0)
        y = np.arange(-half_y, half_y + 1.0)[:, None]
        squared = x * x + y * y
        steps = np.arange(0.0, math.hypot(half_x, half_y) + 1.0, 0.25)
        two_theta = np.arctan(steps * self.pixel_m / self.distance_m)
        profile = FLAT_RATE_HZ + AIR_RATE_HZ * np.exp(-np.degrees(two_theta) / AIR_FALL_DEG)
        for radius, intensity in self._rings():
            ring = np.exp(-0.5 * ((steps - radius) / RING_SIGMA_PX) ** 2)
            profile += RING_RATE_HZ * intensity * ring
        # Inclined pixels are farther away and seem smaller.
        profile *= np.cos(two_theta) ** 3
        rate: npt.NDArray[np.float64] = np.interp(np.sqrt(squared), steps, profile)
        # A synchrotron's beam is polarised horizontally.
        rate *= 1 - x * x / (squared + (self.distance_m / self.pixel_m) ** 2)
        return rate

    def _build_mask(self, rng: np.random.Generator) -> None:
        rows, columns = self.shape
        self._gaps = [
            *((slice(start, stop), slice(None)) for start, stop in _gaps(rows, 0)),
            *((slice(None), slice(start, stop)) for start, stop in _gaps(columns, 1)),
        ]
        self._mask = np.zeros(self.shape, dtype=np.bool_)
        for gap in self._gaps:
            self._mask[gap] = True
        n_bad = rows * columns // 40_000 + 1
        bad = rng.choice(np.flatnonzero(~self._mask), size=min(3 * n_bad, rows * columns // 4))
        self._hot = np.unravel_index(bad[:n_bad], self.shape)
        self._dead = np.unravel_index(bad[n_bad:], self.shape)
        self._mask[self._hot] = True
        self._mask[self._dead] = True
        self._gap_value = _gap_value(self.dtype)

        # The stop hangs on an arm from the left and lets some photons pass at its edge.
        x = np.arange(columns) - self._centre_px[0]
        y = np.arange(rows)[:, None] - self._centre_px[1]
        radius = min(STOP_RADIUS_M / self.pixel_m, 0.06 * min(self.shape))
        inside = np.hypot(x, y) - radius
        arm = np.where(x < 0, np.abs(y) - 0.14 * radius, np.inf)
        passed = np.clip(np.minimum(inside, arm) / 3 + 0.5, 0.0, 1.0)
        self._shadow = np.nonzero(passed == 0)
        self._edge = np.nonzero((passed > 0) & (passed < 1))
        self._edge_passed = passed[self._edge]

    def _fill_with_rings(
        self, out: npt.NDArray[Any], frame_number: int, rng: np.random.Generator
    ) -> None:
        rows, columns = self.shape
        x2, y2 = self._beam_centre_half_px(frame_number)
        flips = rng.integers(0, 2, size=4) * 2 - 1
        halves = []
        # A centre between two pixels: one half lies before it and one behind.
        for number, (x, y) in enumerate(((x2 // 2, y2 // 2), (-(-x2 // 2), -(-y2 // 2)))):
            pool = self._pool[number]
            picture = pool[frame_number % len(pool)]
            flipped = picture[:: flips[2 * number], :: flips[2 * number + 1]]
            top, left = self._middle[0] - y, self._middle[1] - x
            halves.append(flipped[top : top + rows, left : left + columns])
        np.add(halves[0], halves[1], out=out)

    def _add_spots(
        self, out: npt.NDArray[Any], frame_number: int, rng: np.random.Generator
    ) -> None:
        x_px, y_px, counts = self._spots.at(self._angle_deg(frame_number))
        centre_x, centre_y = self.beam_centre(frame_number)
        x_px, y_px = x_px + centre_x, y_px + centre_y
        left, top = np.rint(x_px), np.rint(y_px)
        grid = np.arange(-SPOT_HALF_PX, SPOT_HALF_PX + 1)
        shape_x = np.exp(-0.5 * ((grid - (x_px - left)[:, None]) / SPOT_SIGMA_PX) ** 2)
        shape_y = np.exp(-0.5 * ((grid - (y_px - top)[:, None]) / SPOT_SIGMA_PX) ** 2)
        peaks = counts * self.exposure_s / (2 * math.pi * SPOT_SIGMA_PX**2)
        photons = rng.poisson(peaks[:, None, None] * shape_y[:, :, None] * shape_x[:, None, :])
        rows, columns = self.shape
        size = grid.size
        corners = np.stack((top, left), axis=1).astype(np.intp) - SPOT_HALF_PX
        for (y, x), spot in zip(corners.tolist(), photons, strict=True):
            if 0 <= y <= rows - size and 0 <= x <= columns - size:
                patch = out[y : y + size, x : x + size]
                patch[...] = np.minimum(patch + spot, self._limit)

    def _apply_defects(self, out: npt.NDArray[Any], rng: np.random.Generator) -> None:
        out[self._shadow] = 0
        out[self._edge] = rng.binomial(out[self._edge].astype(np.int64), self._edge_passed)
        hot = rng.poisson(HOT_RATE_HZ * self.exposure_s, size=len(self._hot[0]))
        out[self._hot] = np.minimum(hot, self._limit)
        out[self._dead] = 0
        for gap in self._gaps:
            out[gap] = self._gap_value


def _largest_count(dtype: np.dtype[Any]) -> int:
    """Return the largest count of a pixel: an unsigned type's last value marks gaps."""
    largest = np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max
    # More than a float64 counts exactly, and than Poisson numbers go, is no count.
    return int(min(float(largest), 2.0**53)) - (dtype.kind == "u")


def _gap_value(dtype: np.dtype[Any]) -> float:
    if dtype.kind == "f":
        return math.nan
    return int(np.iinfo(dtype).max) if dtype.kind == "u" else -1


def _gaps(n_pixels: int, axis: int) -> list[tuple[int, int]]:
    """Return where the gaps between equal modules begin and end."""
    gap = GAP_PX[axis]
    n_modules = max(1, round(n_pixels / (MODULE_PX[axis] + gap)))
    starts = [(n_pixels + gap) * n // n_modules - gap for n in range(1, n_modules)]
    return [(start, start + gap) for start in starts]


def _check(detector: SimulatedDetector) -> None:
    if detector.dtype.kind not in "uif":
        raise LayoutError(
            f"a detector cannot count in dtype {detector.dtype}.\n"
            "  Use an integer or float type, such as 'uint16' or 'float32'."
        )
    if len(detector.shape) != 2 or min(detector.shape) < 16:
        raise LayoutError(
            f"shape {detector.shape} is not one of a picture.\n"
            "  Use rows and columns, each 16 or more."
        )
    for name in ("exposure_s", "energy_keV", "distance_m", "pixel_m"):
        value = getattr(detector, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be a positive number.")
    if not 0 <= detector.drift_px < math.inf:
        raise ValueError(f"drift_px is {detector.drift_px}; it must be 0 or more.")
    if detector.calibrant not in CALIBRANTS:
        known = ", ".join(CALIBRANTS)
        raise ValueError(f"there is no calibrant {detector.calibrant!r}, only {known}.")
