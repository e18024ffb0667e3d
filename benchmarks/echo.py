"""Ping-pong between two processes, over each way to wake somebody up.

A link sends a small array to the other process and gets the next one from it.
The partner, this file run as a program, sends back whatever it gets, so a
round trip is two hand-overs and two wake-ups.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import zmq

import pyhub

__all__ = ["LINKS", "Link", "partner", "round_trip"]

Message = npt.NDArray[np.uint64]
N_WORDS = 8  # 64 bytes


class Link(Protocol):
    """One end of a connection between two processes."""

    def send(self, message: Message) -> None:
        """Hand a message to the other process; never waits."""

    def receive(self, timeout_s: float) -> Message | None:
        """Return the next message, asleep until it comes; None: it did not."""

    def close(self) -> None:
        """Let go of sockets and segments."""


class NotificationLink:
    """DataBlocks and a hub; wakes up on the notification socket, then reads."""

    def __init__(self, outward: str, inward: str) -> None:
        self._hub = pyhub.MessageHub()
        self._producer = self._hub.create_datablock_producer(
            outward, dtype="u8", shape=(N_WORDS,), slots=4
        )
        self._consumer = self._hub.find_datablock_consumer(inward, timeout_s=30)

    def send(self, message: Message) -> None:
        """Publish it."""
        self._producer.put(message)

    def receive(self, timeout_s: float) -> Message | None:
        """Wait for the notification; the frame that it names is there."""
        socket = self._consumer.notification_socket
        if not socket.poll(int(timeout_s * 1000)):
            return None
        version = socket.receive(zmq.NOBLOCK).structured_buffer_version
        frame = self._consumer.read(0)
        assert frame.version == version, "the notification named another frame"
        return frame.data

    def close(self) -> None:
        """Close the hub and with it both channels."""
        self._hub.close()


class HubLink(NotificationLink):
    """DataBlocks and a hub; the consumer's own `read` waits."""

    def receive(self, timeout_s: float) -> Message | None:
        """Read."""
        try:
            return self._consumer.read(timeout_s).data
        except pyhub.WaitTimeout:
            return None


class WordLink(HubLink):
    """DataBlocks without a hub; `read` sleeps on the commit word."""

    def __init__(self, outward: str, inward: str) -> None:
        self._producer = pyhub.DataBlockProducer.create(
            outward, dtype="u8", shape=(N_WORDS,), slots=4
        )
        self._consumer = pyhub.DataBlockConsumer.attach(inward, timeout_s=30)

    def close(self) -> None:
        """Close both channels."""
        self._consumer.close()
        self._producer.close()


class PyzmqLink:
    """Bare pyzmq: a PUB and a SUB socket over ipc, and the bytes themselves."""

    def __init__(self, outward: str, inward: str) -> None:
        runtime = os.environ["PYHUB_RUNTIME_DIR"]
        self._context: zmq.Context[Any] = zmq.Context()
        self._topic = outward.encode()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.linger = 0
        self._pub.bind(f"ipc://{runtime}/{outward}.bare")
        self._sub = self._context.socket(zmq.SUB)
        self._sub.linger = 0
        self._sub.reconnect_ivl = 20
        self._sub.subscribe(inward.encode())
        self._sub.connect(f"ipc://{runtime}/{inward}.bare")

    def send(self, message: Message) -> None:
        """Send topic and bytes."""
        self._pub.send_multipart((self._topic, message.data), zmq.NOBLOCK)

    def receive(self, timeout_s: float) -> Message | None:
        """Wait for topic and bytes."""
        if not self._sub.poll(int(timeout_s * 1000)):
            return None
        _, payload = self._sub.recv_multipart(zmq.NOBLOCK)
        return np.frombuffer(payload, np.uint64)

    def close(self) -> None:
        """Close both sockets."""
        self._context.destroy()


class PipeLink:
    """A pipe each way: the least that waking another process costs."""

    def __init__(self, outward: int, inward: int) -> None:
        self._outward, self._inward = outward, inward

    def send(self, message: Message) -> None:
        """Write it."""
        os.write(self._outward, message.data)

    def receive(self, timeout_s: float) -> Message | None:
        """Read it; a pipe loses nothing, so no deadline is needed."""
        return np.frombuffer(os.read(self._inward, 8 * N_WORDS), np.uint64)

    def close(self) -> None:
        """Leave the pipes to whoever made them."""


LINKS: dict[str, Callable[[str, str], Link]] = {
    "notification": NotificationLink,
    "hub": HubLink,
    "word": WordLink,
    "pyzmq": PyzmqLink,
}


@contextlib.contextmanager
def partner(kind: str) -> Iterator[Link]:
    """Start the other process and give this end of the link, in working order."""
    command = [sys.executable, str(Path(__file__)), kind]
    pipe = subprocess.PIPE if kind == "pipe" else None
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0) as child:
        try:
            link: Link
            if kind == "pipe":
                assert child.stdin is not None
                assert child.stdout is not None
                link = PipeLink(child.stdin.fileno(), child.stdout.fileno())
            else:
                link = LINKS[kind](f"{kind}-ping", f"{kind}-pong")
            with contextlib.closing(link):
                _settle(link)
                yield link
        finally:
            child.terminate()


def _settle(link: Link) -> None:
    """Ping until pong: what is published before a subscription is there is lost."""
    for number in range(1, 61):
        link.send(np.full(N_WORDS, number, np.uint64))
        if link.receive(0.5) is not None:
            return
    raise TimeoutError("the other process does not answer")


def round_trip(link: Link, number: int) -> None:
    """Send `number` there and get it back."""
    link.send(np.full(N_WORDS, number, np.uint64))
    came = link.receive(5.0)
    assert came is not None, "no answer within 5 s"
    assert came[0] == number, f"sent {number}, got {came[0]}"
    assert came[-1] == number, f"sent {number}, got {came[-1]}"


def _echo(kind: str) -> None:
    link: Link = PipeLink(1, 0) if kind == "pipe" else LINKS[kind](f"{kind}-pong", f"{kind}-ping")
    while True:
        message = link.receive(60.0)
        if message is None or not len(message):
            return
        link.send(message)


if __name__ == "__main__":
    _echo(sys.argv[1])
