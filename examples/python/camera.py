"""A camera: it gives frames, offers commands, and keeps its settings in the state.

Start it with `python camera.py`; Ctrl-C ends it. Then, in another terminal:

    pyhub call cam1 set_exposure exposure_s=0.2
    pyhub call cam1 expose n_frames=10
"""

from __future__ import annotations

import numpy as np

import pyhub

SHAPE = (256, 256)


def main() -> None:
    """Offer the camera until Ctrl-C or SIGTERM."""
    random = np.random.default_rng()
    with pyhub.MessageHub() as hub:
        frames = hub.create_datablock_producer("cam1", dtype="uint16", shape=SHAPE, slots=16)
        # The exposure time of the last run, if there was one.
        hub.state["cam1/exposure_s"] = hub.state.get("cam1/exposure_s", 0.1)
        cam1 = hub.service("cam1", exclusive=True)  # no second program for one camera

        @cam1
        def set_exposure(exposure_s: float) -> float:
            """Set how long the next frames are exposed, s."""
            if not 0.001 <= exposure_s <= 10:
                raise ValueError(f"exposure_s={exposure_s:g} is not within 0.001 and 10 s")
            hub.state["cam1/exposure_s"] = exposure_s
            return exposure_s

        @cam1
        def expose(
            n_frames: int, job: pyhub.Job, parameters: dict[str, float] | None = None
        ) -> int:
            """Take frames; each carries the parameters, a motor's position, say."""
            exposure_s = hub.state["cam1/exposure_s"]
            for number in range(n_frames):
                job.wait(exposure_s)  # here a real camera would expose
                job.check()  # ends the command if its caller cancelled it
                with frames.publish() as slot:
                    slot.data[...] = random.poisson(1000 * exposure_s, SHAPE)
                    slot.flex = {"exposure_s": exposure_s, **(parameters or {})}
                job.report(number + 1)
            return n_frames

        print("cam1 is ready; Ctrl-C ends it")
        hub.serve()


if __name__ == "__main__":
    main()
