"""How long a broker that serves one user stays without programs."""

from __future__ import annotations

__all__ = ["Linger"]


class Linger:
    """Tells a broker that looks now and then when it has been alone for long enough.

    Parameters
    ----------
    linger_s
        How long, from when the last program went; None: for ever.
    """

    def __init__(self, linger_s: float | None) -> None:
        self._linger_s = linger_s
        self._seen_s = 0.0  # when somebody was there last
        self._n_met = 0  # by then

    def is_over(self, now: float, n_programs: int, n_met: int) -> bool:
        """Look: so many programs are here, and so many said hello since the beginning.

        One that came and went between two looks was there.
        """
        if n_programs or n_met > self._n_met:
            self._seen_s, self._n_met = now, n_met
            return False
        return self._linger_s is not None and now - self._seen_s >= self._linger_s
