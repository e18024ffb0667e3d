"""Whether a recorder keeps up with its channel: found out while it writes its first frames."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from pyhub.datablock import DataBlockConsumer, Frame

__all__ = ["Pace", "Trial"]

# The measure is taken over windows of this time, of two frames at least.
_WINDOW_S = 0.5
# So many in a row must be slow: anything else that a machine does may take a moment.
_N_SLOW = 3
# After so many that were slow, and the ring still not half full: let it try.
_N_MAX = 10


@dataclass(frozen=True)
class Pace:
    """How fast frames came, and how fast they could be written; all a second."""

    came_hz: float
    written_hz: float
    came_bytes_s: float
    written_bytes_s: float
    is_too_slow: bool = False

    def __str__(self) -> str:
        return (
            f"{self.came_hz:.1f} frames/s come ({self.came_bytes_s / 1e6:.1f} MB/s), "
            f"{self.written_hz:.1f} frames/s can be written ({self.written_bytes_s / 1e6:.1f} MB/s)"
        )


class Trial:
    """Compares what a recorder can write with what its channel sends.

    Writing is timed without the waits for frames. What the channel sends is
    counted: frames taken, lost, and left in the ring. Their time stamps are not
    asked, for they are the producer's: they may come from another clock, or
    from an older recording.

    The recorder passes when it keeps up in one window. It is too slow if it
    does not in several, one after the other, and frames are lost, or more came
    than the ring holds and it is half full of those that wait. So nothing is
    said against frames that the ring can hold, nor against a slow start, nor
    against a moment in which the machine was busy with something else. A disk
    that is slower than the system's memory for files is not found out: that
    takes minutes.

    Parameters
    ----------
    n_frames
        That are to be written; if the ring takes what they leave, all is well.
    n_warm
        First frames that say nothing: with compression in threads, those that
        the recorder takes before it has to wait for the first of them.
    """

    def __init__(self, consumer: DataBlockConsumer, n_frames: int | None, n_warm: int) -> None:
        self._consumer = consumer
        self._n_frames = n_frames
        self._n_warm = n_warm
        self._n_written = 0
        self._n_slow = 0
        self._n_windows = 0
        self._n_gone = 0  # frames that left the ring, since the channel last stood still
        self._asked_at = time.monotonic()
        self._lag = 0
        self._begin_window(self._asked_at)

    def _begin_window(self, now: float) -> None:
        self._began_at = now
        self._lag_before = self._consumer.lag_frames
        self._waited_s = 0.0
        self._n_taken = self._n_lost = self._n_bytes = 0

    def ask(self) -> None:
        """Note that a frame is asked for."""
        self._lag = self._consumer.lag_frames
        self._asked_at = time.monotonic()

    def take(self, frame: Frame) -> None:
        """Note that it came; it is being written from now on."""
        if not self._lag:  # otherwise it was there, and to copy it is work
            self._waited_s += time.monotonic() - self._asked_at
        self._n_taken += 1
        self._n_lost += frame.n_lost
        self._n_gone += 1 + frame.n_lost
        self._n_bytes += frame.data.nbytes
        if frame.is_restart:
            self.pause()

    def pause(self) -> None:
        """Note that the channel stands still, or begins anew: so does the measure."""
        self._n_slow = self._n_windows = self._n_gone = 0
        self._begin_window(time.monotonic())

    def write(self) -> Pace | None:
        """Note that it was written; return the finding once the trial is over."""
        self._n_written += 1
        now = time.monotonic()
        if self._n_written <= self._n_warm:
            self._begin_window(now)
            return None
        if now - self._began_at < _WINDOW_S or self._n_taken < 2:
            return None
        lag = self._consumer.lag_frames
        came = self._n_taken + self._n_lost + lag - self._lag_before
        if came <= self._n_taken and not self._waited_s:
            return None  # as many as were written, but it never had to wait: no finding yet
        self._n_windows += 1
        pace = self._pace(now - self._began_at, max(came, 1))
        if pace.written_hz >= pace.came_hz:
            return pace
        n_slots = self._consumer.header().n_slots
        if self._will_fit(pace, lag, n_slots):
            return pace
        self._n_slow += 1
        is_sure = self._n_lost > 0 or (self._n_gone + lag > n_slots and lag > n_slots // 2)
        if self._n_slow >= _N_SLOW and is_sure:
            return replace(pace, is_too_slow=True)
        if self._n_windows >= _N_MAX:
            return pace
        self._begin_window(now)
        return None

    def _pace(self, span_s: float, came: int) -> Pace:
        busy_s = max(span_s - self._waited_s, 1e-9)
        frame_bytes = self._n_bytes / self._n_taken
        came_hz, written_hz = came / span_s, self._n_taken / busy_s
        return Pace(came_hz, written_hz, came_hz * frame_bytes, written_hz * frame_bytes)

    def _will_fit(self, pace: Pace, lag: int, n_slots: int) -> bool:
        """Whether the ring holds what the frames still wanted leave behind."""
        if self._n_frames is None or self._n_lost:
            return False
        n_left = self._n_frames - self._n_written
        return lag + n_left * (pace.came_hz / pace.written_hz - 1) < n_slots
