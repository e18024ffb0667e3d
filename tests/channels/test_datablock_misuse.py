"""What a program does wrong, or at the wrong moment, is told, and harms nobody else."""

from __future__ import annotations

import copy
import pickle
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pyhub import (
    CodecError,
    DataBlockConsumer,
    DataBlockProducer,
    LayoutError,
    Overrun,
    PublishError,
    Wait,
)
from pyhub.datablock.reader import admitted_readers
from pyhub.names import lease_path


@pytest.fixture
def cam() -> Iterator[DataBlockProducer]:
    with DataBlockProducer.create("cam", dtype="u2", shape=(500, 10), slots=2) as producer:
        yield producer


@pytest.fixture
def view(cam: DataBlockProducer) -> Iterator[DataBlockConsumer]:
    with DataBlockConsumer.attach("cam", reader="viewer") as consumer:
        yield consumer


def publish(cam: DataBlockProducer, *values: int) -> None:
    for value in values:
        cam.put(np.full(cam.shape, value, "u2"))


def copied(frame: Any) -> Any:
    return copy.copy(frame)


def pickled(frame: Any) -> Any:
    return pickle.loads(pickle.dumps(frame))


@pytest.mark.parametrize("duplicate", [copied, pickled])
def test_a_copy_of_a_view_is_of_its_own_frame_or_none(
    cam: DataBlockProducer, view: DataBlockConsumer, duplicate: Any
) -> None:
    publish(cam, 1)
    seen, pinned = view.look(0), None
    assert (duplicate(seen).data == 1).all()
    publish(cam, 2, 3, 4)
    with pytest.raises(Overrun, match="frame 0 of channel 'cam' was overwritten"):
        duplicate(seen)
    pinned = view.pin(0)
    assert (duplicate(pinned).data == 4).all()
    pinned.release()
    publish(cam, 5, 6)
    with pytest.raises(Overrun):
        duplicate(pinned)


@pytest.mark.parametrize("n_rows", [np.uint8(200), np.uint16(400), np.int16(499), 500])
def test_rows_may_be_counted_with_numpys_numbers(
    cam: DataBlockProducer, view: DataBlockConsumer, n_rows: Any
) -> None:
    with cam.publish() as slot:
        slot.data[...] = 7
        slot.n_rows = n_rows
    assert view.read(0).data.shape == (int(n_rows), 10)


@pytest.mark.parametrize("what", ["frame_id", "timestamp_ns"])
@pytest.mark.parametrize(
    ("value", "error"), [(1.9, TypeError), (-1, LayoutError), (2**64, LayoutError)]
)
def test_numbers_that_a_header_cannot_hold_are_refused(
    cam: DataBlockProducer, what: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        cam.put(np.zeros(cam.shape, "u2"), **{what: value})
    with pytest.raises(error), cam.publish() as slot:
        slot.data[...] = 1
        setattr(slot, what, value)
    assert cam.header().commit == 0


def test_a_publication_is_used_once(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    publication = cam.publish()
    with publication as slot:
        slot.data[...] = 1
        slot.frame_id = 77
    with pytest.raises(PublishError, match=r"was used.*\n.*publish\(\) for each"), publication:
        pass
    publish(cam, 2)
    assert view.read(0).frame_id == 1


@pytest.mark.parametrize("encoding", [0, -1, 99])
def test_parameters_in_an_encoding_that_nobody_knows_are_not_published(
    cam: DataBlockProducer, encoding: Any
) -> None:
    with pytest.raises(CodecError, match="encoding="):
        cam.put(flex={"a": 1}, encoding=encoding)
    with pytest.raises(CodecError), cam.publish() as slot:
        slot.encoding = encoding
    assert cam.header().commit == 0


@pytest.mark.parametrize("out", [[1, 2], "x", memoryview(b"12345678")])
def test_what_is_read_into_is_an_array(
    cam: DataBlockProducer, view: DataBlockConsumer, out: Any
) -> None:
    publish(cam, 1)
    with pytest.raises(TypeError, match="not a numpy array"):
        view.read(0, out=out)


def test_what_is_read_into_can_be_written_to(
    cam: DataBlockProducer, view: DataBlockConsumer
) -> None:
    publish(cam, 1)
    out = np.zeros(cam.shape, "u2")
    out.flags.writeable = False
    with pytest.raises(LayoutError, match="out is read-only"):
        view.read(0, out=out)


@pytest.mark.parametrize("make", [lambda: Wait("rubbish"), lambda: Wait("adaptive", -5.0),
                                  lambda: Wait("adaptive", 1e300), lambda: Wait("adaptive", None)])  # fmt: skip
def test_a_strategy_is_one_that_there_is(make: Any) -> None:
    with pytest.raises(ValueError, match="wait=|spin_s="):
        make()


def test_a_strategy_says_how_it_is_written() -> None:
    for wait in (Wait.futex(), Wait.spin(), Wait.notification(), Wait.adaptive(2e-4)):
        assert eval(repr(wait), {"Wait": Wait}) == wait


def test_an_interrupt_leaves_no_pin_behind(cam: DataBlockProducer, view: DataBlockConsumer) -> None:
    """At any moment, also while the frame is being forgotten."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    n_interrupted = 0
    try:
        for round_ in range(200):
            publish(cam, round_)
            frame = None
            try:
                signal.setitimer(signal.ITIMER_REAL, 50e-6 + 1e-6 * round_)
                while True:
                    cam.put(np.zeros(cam.shape, "u2"))
                    frame = view.pin(0)
                    frame = None
            except KeyboardInterrupt:
                n_interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            del frame
    finally:
        signal.signal(signal.SIGALRM, former)
    assert n_interrupted == 200
    [reader] = admitted_readers(cam._block, str(lease_path()))
    assert reader.n_pinned == 0
