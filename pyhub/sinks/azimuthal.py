"""The mean intensity against the distance from the beam, for each frame as it comes."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pyhub.errors import LayoutError

__all__ = ["AzimuthalAverage"]

# A map is used for beam centres up to that far from its own ...
TOLERANCE_PX: Final = 0.5
# ... and as many are kept as a beam that wanders to and fro needs; each takes
# 8 bytes a pixel.
MAX_MAPS: Final = 8


class AzimuthalAverage:
    """Averages a frame over circles about the beam centre.

    Parameters
    ----------
    shape
        Rows and columns of the frames.
    centre
        Column and row of the beam centre, in pixels from the first pixel's middle.
    n_bins
        Rings of equal width from the centre to the farthest corner. The width
        stays when the centre moves; what is then farther away is left out.
    mask
        True where a pixel is never to be used.

    Notes
    -----
    Also left out, in each frame anew: the largest value of an unsigned type
    (saturated, or between modules), negative values of a signed one, NaN and
    infinities.

    Examples
    --------
    >>> import numpy as np
    >>> average = AzimuthalAverage((3, 3), centre=(1, 1), n_bins=2)
    >>> average.profile(np.array([[2, 2, 2], [2, 8, 2], [2, 2, 2]], dtype=np.uint16))
    array([8., 2.], dtype=float32)
    """

    def __init__(
        self,
        shape: tuple[int, int],
        centre: tuple[float, float],
        n_bins: int = 256,
        *,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Map each pixel to its ring."""
        if len(shape) != 2 or min(shape) < 1:
            raise LayoutError(
                f"an azimuthal average needs frames of rows and columns, not {shape}.\n"
                "  Take one plane of a stack: profile(frame[0])."
            )
        if mask is not None and mask.shape != shape:
            raise LayoutError(f"the mask has shape {mask.shape}, the frames {shape}.")
        if n_bins < 1:
            raise ValueError(f"n_bins is {n_bins}; it must be 1 or more.")
        self.shape = shape
        self.n_bins = n_bins
        x, y = centre
        self._bin_px = (
            math.hypot(max(x, shape[1] - 1 - x), max(y, shape[0] - 1 - y)) / n_bins or 1.0
        )
        self._mask = mask
        self._maps: dict[tuple[float, float], _RingMap] = {}
        self._map = self._map_of(centre)
        # Kept, because a fresh array of that size costs more than what is done with it.
        self._weights = np.empty(shape, dtype=np.float64)
        self._bad = np.zeros(shape, dtype=np.bool_)

    @property
    def centre(self) -> tuple[float, float]:
        """Column and row of the centre in use: within half a pixel of the one asked for."""
        return self._map.centre

    @property
    def radii_px(self) -> npt.NDArray[np.float64]:
        """Radius in the middle of each ring."""
        return np.linspace(0.5, self.n_bins - 0.5, self.n_bins) * self._bin_px

    def profile(
        self, frame: npt.NDArray[Any], centre: tuple[float, float] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the mean of each ring, NaN where it has no pixel.

        Parameters
        ----------
        frame
            Of the shape given before, of an integer or float type.
        centre
            Where the beam is now. Costs as much as several profiles when it moved by
            more than half a pixel to where it has not been of late.

        Raises
        ------
        LayoutError
            The frame has another shape, or no numbers to average.
        """
        if frame.shape != self.shape or frame.dtype.kind not in "buif":
            raise LayoutError(
                f"the frame is {frame.dtype} {frame.shape}; this average takes numbers "
                f"of shape {self.shape}.\n"
                "  Make a new AzimuthalAverage when the channel's frames change."
            )
        if centre is not None:
            self._map = self._map_of(centre)
        self._find_bad(frame)
        np.copyto(self._weights, frame, casting="unsafe")
        np.copyto(self._weights, 0.0, where=self._bad)
        sums = np.bincount(self._map.rings, self._weights.reshape(-1), self.n_bins + 1)
        counts = self._map.count_good(self._bad)
        with np.errstate(invalid="ignore"):
            mean = sums[: self.n_bins] / counts[: self.n_bins]
        return mean.astype(np.float32)

    def _find_bad(self, frame: npt.NDArray[Any]) -> None:
        if frame.dtype.kind == "f":
            np.isfinite(frame, out=self._bad)
            np.logical_not(self._bad, out=self._bad)
        elif frame.dtype.kind == "u":
            np.equal(frame, np.iinfo(frame.dtype).max, out=self._bad)
        elif frame.dtype.kind == "i":
            np.less(frame, 0, out=self._bad)
        else:
            self._bad.fill(False)

    def _map_of(self, centre: tuple[float, float]) -> _RingMap:
        """Return the map of the centre closest by, or a new one if none is close."""
        x, y = centre
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"the centre is {centre}; both must be finite numbers.")
        closest = min(
            self._maps, key=lambda known: math.hypot(known[0] - x, known[1] - y), default=None
        )
        if closest is None or math.hypot(closest[0] - x, closest[1] - y) > TOLERANCE_PX:
            closest = (float(x), float(y))
            self._maps[closest] = _RingMap(
                self.shape, closest, self._bin_px, self.n_bins, self._mask
            )
        # The one used longest ago stands first and goes first.
        self._maps[closest] = self._maps.pop(closest)
        if len(self._maps) > MAX_MAPS:
            del self._maps[next(iter(self._maps))]
        return self._maps[closest]


class _RingMap:
    """The ring of each pixel; ring `n_bins` takes those that are left out."""

    def __init__(
        self,
        shape: tuple[int, int],
        centre: tuple[float, float],
        bin_px: float,
        n_bins: int,
        mask: npt.NDArray[np.bool_] | None,
    ) -> None:
        self.centre = centre
        x = np.arange(shape[1]) - centre[0]
        y = np.arange(shape[0]) - centre[1]
        radius = np.sqrt(x * x + (y * y)[:, None])
        # The farthest corner lies on the outer edge of the last ring.
        farthest = n_bins * bin_px * (1 + 1e-12)
        rings = np.minimum(radius / bin_px, n_bins - 1).astype(np.intp)
        rings[radius > farthest] = n_bins
        if mask is not None:
            rings[mask] = n_bins
        self.rings = rings.reshape(-1)
        self._all = np.bincount(self.rings, minlength=n_bins + 1)
        self._bad = np.zeros(shape, dtype=np.bool_)
        self._good = self._all

    def count_good(self, bad: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
        """Count the pixels of each ring; anew only if other pixels are bad than last time."""
        if not np.array_equal(bad, self._bad):
            n_bad = np.bincount(self.rings[np.flatnonzero(bad)], minlength=self._all.size)
            self._bad, self._good = bad.copy(), self._all - n_bad
        return self._good
