"""A turning crystal: when its reflections are seen, and where.

Real enough that spots come, brighten and go as the angle moves, and that a
full turn brings the same ones back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["Spots"]

# Mean counts per second of a whole spot at its brightest.
SPOT_RATE_HZ: Final = 220_000.0
MOSAIC_DEG: Final = 0.3
# A large protein's: even a small and distant detector sees some of its spots.
CELL_ANGSTROM: Final = (117.0, 129.0, 143.0)
MAX_REFLECTIONS: Final = 20_000


@dataclass(frozen=True)
class Spots:
    """Where and when reflections of a crystal turning about the horizontal are seen.

    Sorted by angle; those near 0 and 360 degrees are there twice.
    """

    angle_deg: npt.NDArray[np.float64]
    width_deg: npt.NDArray[np.float64]
    x_px: npt.NDArray[np.float64]
    y_px: npt.NDArray[np.float64]
    rate_hz: npt.NDArray[np.float64]

    MAX_WIDTH_DEG = 4 * MOSAIC_DEG
    WINDOW_DEG = 3 * MAX_WIDTH_DEG

    def at(self, angle_deg: float) -> tuple[npt.NDArray[np.float64], ...]:
        """Return x and y from the beam centre, and rates, of what is seen at an angle."""
        first, last = np.searchsorted(
            self.angle_deg, (angle_deg - self.WINDOW_DEG, angle_deg + self.WINDOW_DEG)
        )
        off = (self.angle_deg[first:last] - angle_deg) / self.width_deg[first:last]
        seen = first + np.flatnonzero(np.abs(off) < 3)
        rocking = np.exp(-0.5 * off[seen - first] ** 2)
        return self.x_px[seen], self.y_px[seen], self.rate_hz[seen] * rocking

    @classmethod
    def of_crystal(
        cls,
        rng: np.random.Generator,
        *,
        wavelength_angstrom: float,
        distance_px: float,
        reach_px: tuple[float, float],
    ) -> Spots:
        """Turn a crystal once about the horizontal and note what crosses Ewald's sphere.

        `reach_px`: how far from the beam, in columns and rows, spots are wanted.
        """
        wavelength = wavelength_angstrom
        reach_x, reach_y = reach_px
        far_px = math.hypot(reach_x, reach_y)
        q_max = 2 / wavelength * math.sin(0.5 * math.atan(far_px / distance_px))
        volume = math.prod(CELL_ANGSTROM)
        q_max = min(q_max, (0.75 / math.pi * MAX_REFLECTIONS / volume) ** (1 / 3))
        axes = [
            np.arange(-n, n + 1) / length
            for length, n in ((length, int(q_max * length)) for length in CELL_ANGSTROM)
        ]
        lattice = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        length = np.linalg.norm(lattice, axis=1)
        lattice = lattice[(length > 0) & (length <= q_max)]
        length = np.linalg.norm(lattice, axis=1)
        # Any rotation will do, so long as no axis lies along the beam.
        turned = lattice @ np.linalg.qr(rng.normal(size=(3, 3)))[0]

        # Turning about x, a reflection meets the sphere where its component
        # along the beam is -q^2 wavelength / 2: at two angles, or never.
        radius = np.hypot(turned[:, 1], turned[:, 2])
        phase = np.arctan2(turned[:, 1], turned[:, 2])
        depth = -0.5 * wavelength * length**2
        met = np.abs(depth) < radius
        turned, length, radius, phase, depth = (
            a[met] for a in (turned, length, radius, phase, depth)
        )
        opening = np.arccos(depth / radius)
        # Wilson statistics with a temperature factor of 20 square Angstrom.
        rate = SPOT_RATE_HZ * rng.exponential(size=length.size) * np.exp(-10 * length**2)
        # What lies near the axis crosses the sphere slowly.
        width = MOSAIC_DEG * length / (radius * np.sin(opening))
        width = np.minimum(width, cls.MAX_WIDTH_DEG)

        scale = distance_px / (1 / wavelength + depth)
        height = radius * np.sin(opening)
        angle = np.degrees(np.concatenate((phase + opening, phase - opening))) % 360.0
        quantities = (
            angle,
            np.tile(width, 2),
            np.tile(turned[:, 0] * scale, 2),
            np.concatenate((-height * scale, height * scale)),
            np.tile(rate, 2),
        )
        on_detector = (np.abs(quantities[2]) < reach_x) & (np.abs(quantities[3]) < reach_y)
        table = np.stack(quantities)[:, on_detector]
        turn = np.array((360.0, 0.0, 0.0, 0.0, 0.0))[:, None]
        before = table[:, table[0] > 360.0 - cls.WINDOW_DEG] - turn
        after = table[:, table[0] < cls.WINDOW_DEG] + turn
        table = np.concatenate((before, table, after), axis=1)
        return cls(*table[:, np.argsort(table[0])])
