"""The operations whose cost is counted exactly: instructions, allocations, system calls.

Run as a program it is what `instructions.py` and `syscalls.py` count: each
operation is prepared and called 1,000 and 3,000 times, and between these parts
getppid() is called, which nothing else does and which the counting tools see.
The difference of the two parts, divided by 2,000, is one operation.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bench_codec import TYPICAL, WITH_NUMPY
from echo import partner
from pairs import dict_loop
from surroundings import own_directories

import pyhub
from pyhub.codec import decode, encode
from pyhub.hub import protocol
from pyhub.hub.broker.registry import Registry
from pyhub.hub.broker.rights import Client
from pyhub.hub.broker.store import Store
from pyhub.hub.broker.switchboard import Switchboard

__all__ = ["FEW", "MANY", "OPERATIONS", "PARTS", "per_operation"]

Call = Callable[[], object]
Channel = tuple[pyhub.DataBlockProducer, pyhub.DataBlockConsumer]
Image = npt.NDArray[np.uint8]

FEW, MANY = 1000, 3000
_WARM_UP = 200  # the interpreter has specialised its code by then
PARTS = 3  # of each operation: preparing, FEW calls, MANY calls
_ALL = _WARM_UP + FEW + MANY  # calls of an operation, in the end

SMALL = np.arange(64, dtype=np.uint8)
LARGE = (np.arange(65536) % 251).astype(np.uint8)


def per_operation(few: int, many: int) -> float:
    """Return what one operation costs, from what `FEW` and `MANY` of them cost."""
    return (many - few) / (MANY - FEW)


@contextmanager
def _channel(
    image: Image,
) -> Iterator[Channel]:
    """Give a producer that has published once and a consumer that has read it."""
    with (
        pyhub.DataBlockProducer.create("ops", dtype="u1", shape=image.shape, slots=4) as producer,
        pyhub.DataBlockConsumer.attach("ops", timeout_s=5) as consumer,
    ):
        producer.put(image)
        consumer.read(0)
        yield producer, consumer


def _check_published(producer: pyhub.DataBlockProducer, image: Image, n: int = _ALL) -> None:
    """All publishes took place, and the last is whole."""
    assert producer.header().commit == n + 1
    with pyhub.DataBlockConsumer.attach("ops") as late:
        assert np.array_equal(late.read(0).data, image)


# --- Publishing, with nobody waiting ---


@contextmanager
def put() -> Iterator[Call]:
    """Put 64 bytes."""
    with _channel(SMALL) as (producer, _):
        yield lambda: producer.put(SMALL)
        _check_published(producer, SMALL)


@contextmanager
def put_with_parameters() -> Iterator[Call]:
    """Put 64 bytes and a frame's typical parameters."""
    with _channel(SMALL) as (producer, consumer):
        yield lambda: producer.put(SMALL, TYPICAL)
        _check_published(producer, SMALL)
        assert consumer.read(0).flex == TYPICAL


@contextmanager
def put_64k() -> Iterator[Call]:
    """Put 64 KiB: what the copy costs per byte."""
    with _channel(LARGE) as (producer, _):
        yield lambda: producer.put(LARGE)
        _check_published(producer, LARGE)


@contextmanager
def publish_in_place() -> Iterator[Call]:
    """Open a slot, write 64 bytes where they lie, publish."""
    with _channel(SMALL) as (producer, _):

        def publish() -> None:
            with producer.publish() as slot:
                slot.data[...] = SMALL

        yield publish
        _check_published(producer, SMALL)


@contextmanager
def publish_explicitly() -> Iterator[Call]:
    """The same, step by step: begin_publish to end_publish."""
    update = pyhub.ZoneUpdateInfo(structured_buffer=True)
    with _channel(SMALL) as (producer, _):

        def publish() -> None:
            producer.begin_publish()
            producer.get_structured_data_buffer()[...] = SMALL
            producer.end_publish(update)

        yield publish
        _check_published(producer, SMALL)


@contextmanager
def put_with_hub() -> Iterator[Call]:
    """Put 64 bytes into a channel of the hub that nobody has subscribed to."""
    with (
        pyhub.MessageHub() as hub,
        hub.create_datablock_producer("ops", dtype="u1", shape=SMALL.shape, slots=4) as producer,
    ):
        producer.put(SMALL)
        yield lambda: producer.put(SMALL)
        _check_published(producer, SMALL)


# --- Hand-over: publish and read ---


@contextmanager
def put_and_read() -> Iterator[Call]:
    """Put 64 bytes, and read them into a new array."""
    with _channel(SMALL) as (producer, consumer):

        def hand_over() -> None:
            producer.put(SMALL)
            consumer.read(0)

        yield hand_over
        _check_published(producer, SMALL)
        assert consumer.n_read == _ALL + 1
        assert consumer.n_lost == 0


@contextmanager
def put_and_read_parameters() -> Iterator[Call]:
    """The same with typical parameters, which the reader decodes."""
    with _channel(SMALL) as (producer, consumer):

        def hand_over() -> None:
            producer.put(SMALL, TYPICAL)
            assert consumer.read(0).flex["frame"] == TYPICAL["frame"]

        yield hand_over
        _check_published(producer, SMALL)
        assert consumer.n_read == _ALL + 1


@contextmanager
def put_and_read_into() -> Iterator[Call]:
    """Put 64 bytes, and read them into an array that is there."""
    out = np.zeros_like(SMALL)
    with _channel(SMALL) as (producer, consumer):

        def hand_over() -> None:
            producer.put(SMALL)
            consumer.read(0, out=out)

        yield hand_over
        _check_published(producer, SMALL)
        assert np.array_equal(out, SMALL)
        assert consumer.n_read == _ALL + 1


@contextmanager
def put_and_read_64k_into() -> Iterator[Call]:
    """Put 64 KiB, and read them into an array that is there."""
    out = np.zeros_like(LARGE)
    with _channel(LARGE) as (producer, consumer):

        def hand_over() -> None:
            producer.put(LARGE)
            consumer.read(0, out=out)

        yield hand_over
        _check_published(producer, LARGE)
        assert np.array_equal(out, LARGE)
        assert consumer.n_read == _ALL + 1


@contextmanager
def put_and_next() -> Iterator[Call]:
    """Put 64 bytes, and take them from the loop over every frame in order."""
    with _channel(SMALL) as (producer, consumer):
        frames = consumer.frames(timeout_s=5)

        def hand_over() -> None:
            producer.put(SMALL)
            next(frames)

        yield hand_over
        _check_published(producer, SMALL)
        assert consumer.n_read == _ALL + 1
        assert consumer.n_lost == 0


@contextmanager
def put_and_follow() -> Iterator[Call]:
    """Put 64 bytes, take the next frame where it lies, ask whether it is valid."""
    with _channel(SMALL) as (producer, consumer):

        def hand_over() -> None:
            producer.put(SMALL)
            assert consumer.look(0).is_valid()

        yield hand_over
        _check_published(producer, SMALL)
        assert consumer.n_read == _ALL + 1
        assert consumer.n_lost == 0


@contextmanager
def put_and_pin() -> Iterator[Call]:
    """Put 64 bytes for a reader that blocks, which pins the frame and lets it go."""
    with (
        pyhub.DataBlockProducer.create("ops", dtype="u1", shape=SMALL.shape, slots=4) as producer,
        pyhub.DataBlockConsumer.attach("ops", policy="block", timeout_s=5) as consumer,
    ):
        producer.put(SMALL)
        consumer.pin(0).release()

        def hand_over() -> None:
            assert producer.put(SMALL)
            with consumer.pin(0):
                pass

        yield hand_over
        _check_published(producer, SMALL)
        assert consumer.n_read == _ALL + 1


@contextmanager
def put_and_look() -> Iterator[Call]:
    """Put 64 bytes, open a view of the newest frame, ask whether it is valid."""
    with _channel(SMALL) as (producer, consumer):

        def hand_over() -> None:
            producer.put(SMALL)
            with consumer.latest() as seen:
                assert seen.is_valid()

        yield hand_over
        _check_published(producer, SMALL)
        with consumer.latest() as seen:
            assert seen.version == _ALL + 1
            assert np.array_equal(seen.data, SMALL)


# --- With nothing new ---


@contextmanager
def look_again() -> Iterator[Call]:
    """Open a view of the newest frame, seen before, and ask whether it is valid."""
    with _channel(SMALL) as (_, consumer):

        def look() -> None:
            with consumer.latest() as seen:
                assert seen.is_valid()

        yield look
        assert np.array_equal(consumer.latest().data, SMALL)


@contextmanager
def read_in_vain() -> Iterator[Call]:
    """Ask for a new frame when there is none, without waiting."""
    with _channel(SMALL) as (producer, consumer):
        n_timeouts = 0

        def read() -> None:
            nonlocal n_timeouts
            try:
                consumer.read(0)
            except pyhub.WaitTimeout:
                n_timeouts += 1

        yield read
        assert n_timeouts == _ALL
        producer.put(SMALL)
        assert consumer.read(0).version == 2


@contextmanager
def read_header() -> Iterator[Call]:
    """Read the header, as monitors do."""
    with _channel(SMALL) as (producer, consumer):
        yield consumer.header
        producer.put(SMALL)
        assert consumer.header().commit == 2


# --- Parameters ---


@contextmanager
def encode_parameters() -> Iterator[Call]:
    """Write a frame's typical parameters as bytes."""
    yield lambda: encode(TYPICAL)
    assert decode(encode(TYPICAL)) == TYPICAL


@contextmanager
def decode_parameters() -> Iterator[Call]:
    """Check and read typical parameters from bytes."""
    packed = encode(TYPICAL)
    yield lambda: decode(packed)
    assert decode(packed) == TYPICAL


@contextmanager
def encode_numpy() -> Iterator[Call]:
    """Write two numpy scalars and a small array as bytes."""
    yield lambda: encode(WITH_NUMPY)
    assert list(decode(encode(WITH_NUMPY))) == list(WITH_NUMPY)


@contextmanager
def decode_numpy() -> Iterator[Call]:
    """Check and read two numpy scalars and a small array from bytes."""
    packed = encode(WITH_NUMPY)
    yield lambda: decode(packed)
    assert np.array_equal(decode(packed)["roi_sums"], WITH_NUMPY["roi_sums"])


# --- The hub, without its sockets ---


@contextmanager
def call_in_broker() -> Iterator[Call]:
    """Lead a call to its worker, and what came of it to its caller: from bytes to bytes."""
    sent: list[bytes] = []
    numbers, client = itertools.count(1), Client("bench", "admin", {})

    def send(peer: bytes, frame: bytes) -> bool:
        sent[:] = [frame]
        return True

    def ask(peer: bytes, body: protocol.RequestBody, request_id: int = 0) -> None:
        request = protocol.decode_request(protocol.encode(protocol.Request(request_id, body)))
        board.answer(peer, client, request.body, 0.0, request_id)

    def call() -> None:
        number = next(numbers)
        name = number.to_bytes(16, "little")
        ask(b"caller", protocol.Call(name, "bench", "echo", b"\x80", 10.0), number)
        ask(b"worker", protocol.Outcome(name, b"\x01"))

    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.closing(Store(Path(directory, "state.db"))) as store,
    ):
        board = Switchboard(Registry("epoch", str), store, send, lambda *refusal: None)
        for lease, peer in enumerate((b"caller", b"worker")):
            ask(peer, protocol.Hello(protocol.PROTOCOL, "host", 1, lease, "leases"))
        ask(b"worker", protocol.Offer("bench", [protocol.CommandInfo("echo")]))
        yield call
        reply = protocol.decode_reply(sent[0])
        n_called = next(numbers) - 1
        assert reply.id == n_called, "the last call was not answered"
        assert isinstance(reply.body, protocol.Finished)
        assert reply.body.value == b"\x01"


# --- No part of pyhub ---


@contextmanager
def interpreter() -> Iterator[Call]:
    """Forty turns of a loop over a dictionary: tells one build of Python from another."""
    yield dict_loop


# --- With a reader in another process: for syscalls.py, never twice the same ---

# After each publish, so that the reader is asleep again at the next.
_PAUSE_S = 0.0003


def _send_to(kind: str) -> Iterator[Call]:
    message = np.ones(8, np.uint64)
    with partner(kind) as link:

        def send() -> None:
            link.send(message)
            time.sleep(_PAUSE_S)

        yield send
        assert link.receive(5.0) is not None, "the reader is gone"


@contextmanager
def put_with_reader() -> Iterator[Call]:
    """Put 64 bytes into a channel that another process waits on, without a hub."""
    yield from _send_to("word")


@contextmanager
def put_with_hub_and_reader() -> Iterator[Call]:
    """Put 64 bytes into a channel of the hub that another process waits on."""
    yield from _send_to("hub")


OPERATIONS: dict[str, Callable[[], AbstractContextManager[Call]]] = {
    prepare.__name__: prepare
    for prepare in (
        put,
        put_with_parameters,
        put_64k,
        publish_in_place,
        publish_explicitly,
        put_with_hub,
        put_and_read,
        put_and_read_parameters,
        put_and_read_into,
        put_and_read_64k_into,
        put_and_next,
        put_and_follow,
        put_and_pin,
        put_and_look,
        look_again,
        read_in_vain,
        read_header,
        encode_parameters,
        decode_parameters,
        encode_numpy,
        decode_numpy,
        call_in_broker,
        interpreter,
    )
}
WITH_OTHERS: dict[str, Callable[[], AbstractContextManager[Call]]] = {
    prepare.__name__: prepare for prepare in (put_with_reader, put_with_hub_and_reader)
}


def _repeat(call: Call, n: int) -> None:
    for _ in range(n):
        call()


def _perform(name: str) -> None:
    with {**OPERATIONS, **WITH_OTHERS}[name]() as call:
        gc.collect()
        gc.disable()
        _repeat(call, _WARM_UP)
        os.getppid()
        _repeat(call, FEW)
        os.getppid()
        _repeat(call, MANY)
        os.getppid()
        gc.enable()


if __name__ == "__main__":
    with own_directories():
        for name in sys.argv[1:]:
            _perform(name)
