"""A motor: it can be stopped while it moves, and knows where it stood when it starts again.

Start it with `python motor.py`; Ctrl-C ends it. Then, in other terminals:

    pyhub call stage1 move position_mm=80 --timeout 60
    pyhub call stage1 stop
"""

from __future__ import annotations

import threading

import pyhub

LIMIT_MM = 100.0  # the switch at the end of the rail
SPEED_MM_S = 10.0
PERIOD_S = 0.05


class Motor:
    """A stage on a rail. Its public methods are the commands of the service."""

    def __init__(self, hub: pyhub.MessageHub) -> None:
        self._hub = hub
        self._position_mm: float = hub.state.get("stage1/position_mm", 0.0)
        self._is_moving = threading.Lock()
        self._stop = threading.Event()

    def move(self, position_mm: float, job: pyhub.Job) -> float:
        """Move there, mm; returns where it stopped."""
        if not self._is_moving.acquire(blocking=False):
            raise RuntimeError("stage1 is moving.\n  Stop it first: pyhub call stage1 stop")
        try:
            self._stop.clear()
            while self._position_mm != position_mm and not self._stop.is_set():
                job.wait(PERIOD_S)
                job.check()  # ends the move if its caller cancelled it
                self._step_towards(position_mm)
                job.report(self._position_mm)
        finally:
            self._is_moving.release()
        return self._position_mm

    def stop(self) -> None:
        """Stop the move that is under way, whoever asked for it."""
        self._stop.set()

    def _step_towards(self, position_mm: float) -> None:
        step_mm = SPEED_MM_S * PERIOD_S
        # At most one step, either way; and never beyond a switch.
        goal_mm = min(max(position_mm, -LIMIT_MM), LIMIT_MM)
        step_mm = min(max(goal_mm - self._position_mm, -step_mm), step_mm)
        if not step_mm:
            text = f"stage1 ran into its limit at {self._position_mm:g} mm"
            self._hub.alarm("stage1/limit", text)
            raise RuntimeError(f"{text}, on its way to {position_mm:g} mm.\n  Move it back.")
        if abs(self._position_mm) == LIMIT_MM:  # it leaves the switch
            self._hub.alarm("stage1/limit", None)
        self._position_mm = round(self._position_mm + step_mm, 6)
        self._hub.state["stage1/position_mm"] = self._position_mm


def main() -> None:
    """Offer the motor until Ctrl-C or SIGTERM."""
    with pyhub.MessageHub() as hub:
        motor = Motor(hub)
        # One thread for `move`, one for `stop`; and no second program for one motor.
        hub.service("stage1", threads=2, exclusive=True)(motor)
        print("stage1 is ready; Ctrl-C ends it")
        hub.serve()
        motor.stop()


if __name__ == "__main__":
    main()
