"""The simulated detector publishes what its options say."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np

import pyhub
from pyhub.sources.detector import SimulatedDetector

OPTIONS = ("--name", "det.7", "--shape", "20x36", "--dtype", "float32", "--rate", 50,
           "--slots", 32, "--frames", 25, "--seed", 7)  # fmt: skip


def test_its_frames_are_those_that_its_options_describe(cli: Any) -> None:
    sim = cli.start("sim", *OPTIONS)
    with pyhub.DataBlockConsumer.attach("det.7", timeout_s=20) as consumer:
        header = consumer.header()
        frames = list(consumer.frames(20))
    assert sim.end() == 0
    assert (header.dtype, header.shape, header.n_slots) == (np.float32, (20, 36), 32)
    assert [frame.frame_id for frame in frames] == list(range(25))
    assert "publishing det.7: float32 20x36 at 50 Hz" in sim.err

    detector = SimulatedDetector((20, 36), "float32", seed=7, exposure_s=1 / 50)
    other = SimulatedDetector((20, 36), "float32", seed=8, exposure_s=1 / 50)
    picture = np.empty((20, 36), np.float32)
    for frame in frames:
        detector.frame_into(picture, frame.frame_id)
        assert np.array_equal(frame.data, picture)
        assert frame.flex == detector.parameters(frame.frame_id)
    other.frame_into(picture, 0)
    assert not np.array_equal(frames[0].data, picture), "another seed, another noise"
    # Each frame has its turn; the first one may have been late.
    assert frames[-1].timestamp - frames[0].timestamp > 0.5 * 24 / 50


def test_it_ends_when_its_time_is_over(cli: Any) -> None:
    sim = cli("sim", "--shape", "16x16", "--seconds", 0.3)
    assert sim.code == 0
    assert "Traceback" not in sim.err


def test_the_name_of_a_living_producer_is_refused_with_its_pid(cli: Any) -> None:
    first = cli.start("sim", "--shape", "16x16")
    first.says("publishing")
    second = cli("sim", "--shape", "16x16")
    assert second.code == 1
    assert f"channel 'cam1' belongs to a living producer (pid {first.pid})" in second.err
    assert cli("tap", "cam1", "--frames", 3).code == 0, "the first one is unharmed"
    assert first.end(signal.SIGTERM) == 0


def test_the_name_of_a_dead_producer_is_free(cli: Any) -> None:
    cli_first = cli.start("sim", "--shape", "16x16")
    cli_first.says("publishing")
    cli_first.end(signal.SIGKILL)
    again = cli("sim", "--shape", "16x16", "--frames", 1)
    assert again.code == 0
    assert "removed the segment of a producer that died" in again.err


def test_what_cannot_be_simulated_is_refused(cli: Any) -> None:
    cases = {
        "--name text --dtype complex64": "LayoutError: a detector cannot count in dtype complex64",
        "--name small --shape 4x4": "LayoutError: shape (4, 4)",
        "--name .hidden": "InvalidName",
        "--name other --slots 70000": "CapacityError: slots=70000",
        "--name huge --shape 9000000x9000000": "SharedMemoryFull",
        "--name large --shape 200000x200000 --slots 1000": "SharedMemoryFull",
    }
    refused = cli.side_by_side(*(["sim", *options.split()] for options in cases))
    for program, words in zip(refused, cases.values(), strict=True):
        assert program.code == 1, program
        assert words in program.err
        assert "Traceback" not in program.err


def test_it_can_be_set_as_a_detector_would_be(cli: Any) -> None:
    sim = cli.start("sim", "--shape", "16x16", "--rate", 50)
    sim.says("publishing")
    assert cli("state", "cam1/exposure_s").out == "0.02\n"
    assert cli("call", "cam1", "set_exposure", "exposure_s=0.5").out == "0.5\n"
    assert cli("state", "cam1/exposure_s").out == "0.5\n"
    with pyhub.DataBlockConsumer.attach("cam1") as consumer:
        assert any(frame.flex["exposure_s"] == 0.5 for frame in consumer.frames(100))
    refused = cli("call", "cam1", "set_exposure", "exposure_s=-1")
    assert refused.code == 1
    assert "exposure_s=-1 is not within 0 and 10 s" in refused.err
    assert sim.end(signal.SIGTERM) == 0
