"""A scan: it moves the motor, exposes the camera at each point, and records the frames.

Start camera.py and motor.py first, then `python scan.py scan.h5`. Ctrl-C ends it: the motor
stops, and the file keeps the frames up to then. It needs h5py: `pip install h5py`.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import pyhub

POSITIONS_MM = [0.0, 0.5, 1.0, 1.5, 2.0]
FRAMES_PER_POINT = 2


def main(path: str) -> None:
    """Scan, and write all frames into the file at `path`."""
    with pyhub.MessageHub() as hub:
        hub.wait_for_service("stage1", timeout_s=10)
        hub.wait_for_service("cam1", timeout_s=10)
        n_readers = hub.n_readers("cam1")
        recorder = start_recorder(path)
        try:
            # No frame is taken before the recorder reads.
            while not hub.wait_for_readers("cam1", n_readers + 1, timeout_s=0.5):
                if recorder.poll() is not None:
                    sys.exit("no scan: the recorder did not start; it says why above")
            for number, position_mm in enumerate(POSITIONS_MM, 1):
                hub.state["scan/status"] = f"point {number} of {len(POSITIONS_MM)}"
                reached_mm = hub.call("stage1", "move", position_mm=position_mm, timeout_s=60)
                if reached_mm != position_mm:
                    sys.exit(f"the scan ends: stage1 was stopped at {reached_mm:g} mm")
                hub.call(
                    "cam1",
                    "expose",
                    n_frames=FRAMES_PER_POINT,
                    parameters={"position_mm": position_mm},
                    timeout_s=60,
                )
            if recorder.wait(60):
                sys.exit(f"{path} is not complete; the recorder says why above")
        finally:
            recorder.terminate()  # if it has not ended: it finishes its file first
            recorder.wait()
            hub.state["scan/status"] = "idle"


def start_recorder(path: str) -> subprocess.Popen[bytes]:
    """Return a recorder of all frames of the scan; it ends by itself after the last one."""
    n_frames = len(POSITIONS_MM) * FRAMES_PER_POINT
    # --policy block: the camera waits for the recorder, so that no frame is lost.
    options = f"--frames {n_frames} --policy block --timeout 10".split()
    return subprocess.Popen(
        [sys.executable, "-m", "pyhub", "record", "cam1", path, *options],
        start_new_session=True,  # Ctrl-C is for this program, which then ends the recorder
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scan.py FILE")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same as Ctrl-C
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit("the scan was stopped")
    except pyhub.PyhubError as error:
        sys.exit(f"the scan failed: {error}")
