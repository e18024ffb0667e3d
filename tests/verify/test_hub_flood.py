"""Peers that never show who they are: they cost little, are cut, and keep nobody out."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhub import MessageHub
from tests.conftest import eventually
from tests.verify.brokers import (
    MEGABYTE,
    WATCHDOG_S,
    Harmed,
    broker,
    cpu_s,
    line_of,
    n_descriptors,
    now_s,
    program,
    resident_bytes,
)

N_PEERS = 100
MAX_GROWTH = 8 * MEGABYTE
FOUR_GIB = 2**32
# ZMTP 3.1: signature, version, mechanism, as-server, filler.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
# Flags of a frame with a length of 8 bytes.
MESSAGE, COMMAND = 2, 6

# A ROUTER with CURVE and without a limit for the length of a message.
UNBOUNDED = """
    import sys
    import zmq

    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.curve_server = True
        router.curve_secretkey = zmq.curve_keypair()[1]
        router.bind("tcp://127.0.0.1:*")
        print(router.last_endpoint.decode(), flush=True)
        sys.stdin.readline()
"""

FEW_DESCRIPTORS = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
"""


@contextlib.contextmanager
def peers(endpoint: str, n_peers: int) -> Iterator[list[socket.socket]]:
    """So many connections that have said nothing."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(n_peers):
            peer = stack.enter_context(socket.create_connection((host, int(port)), WATCHDOG_S))
            opened.append(peer)
        yield opened


def declare(peer: socket.socket, kind: int, n_bytes: int) -> None:
    """Greet, and announce a frame of that length."""
    peer.sendall(GREETING)
    with contextlib.suppress(ConnectionError):  # cut already
        peer.sendall(bytes([kind]) + struct.pack(">Q", n_bytes) + b"x" * 1000)


def wait_until_cut(peer: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while peer.recv(65536):
            pass


def stream(peer: socket.socket, n_bytes: int) -> int:
    """Send a frame of that length, as far as it is taken; how far that was."""
    peer.settimeout(2.0)
    peer.sendall(GREETING + bytes([COMMAND]) + struct.pack(">Q", n_bytes))
    n_sent = 0
    with contextlib.suppress(OSError):
        while n_sent < n_bytes:
            n_sent += peer.send(bytes(65536))
    return n_sent


@pytest.fixture
def flooded(tmp_path: Path) -> Iterator[Harmed]:
    with broker(tmp_path, clients={"op": "operator"}) as harmed:
        yield harmed


def serves(harmed: Harmed, n: int) -> None:
    """A program that is new, and from afar, is served."""
    with MessageHub(harmed.from_afar("op")) as hub:
        hub.state["served"] = n
        assert hub.state["served"] == n


@pytest.mark.parametrize("kind", [MESSAGE, COMMAND], ids=["message", "command"])
def test_strangers_that_declare_4_gib_cost_nothing_and_are_cut(flooded: Harmed, kind: int) -> None:
    """Promise P10."""
    serves(flooded, 0)
    with peers(flooded.endpoint, N_PEERS) as strangers:
        size = resident_bytes(flooded.pid)
        largest = size
        for stranger in strangers:
            declare(stranger, kind, FOUR_GIB)
        for stranger in strangers:
            wait_until_cut(stranger)
            largest = max(largest, resident_bytes(flooded.pid))
    print(f"{N_PEERS} strangers: the broker grew by {(largest - size) / MEGABYTE:.1f} MiB")
    assert largest - size < MAX_GROWTH
    serves(flooded, 1)


def test_a_stranger_that_streams_is_cut(flooded: Harmed) -> None:
    """Promise P10: with 64 MiB, of which none is to be kept."""
    serves(flooded, 0)
    size = resident_bytes(flooded.pid)
    with peers(flooded.endpoint, 1) as (stranger,):
        stream(stranger, 64 * MEGABYTE)
        assert resident_bytes(flooded.pid) - size < MAX_GROWTH
        wait_until_cut(stranger)
    serves(flooded, 1)


def test_without_our_limit_a_stranger_that_streams_fills_the_memory() -> None:
    # The negative control: it is the limit that cuts it.
    with program(UNBOUNDED) as unbounded:
        endpoint = line_of(unbounded)
        size = resident_bytes(unbounded.pid)
        with peers(endpoint, 1) as (stranger,):
            stream(stranger, 64 * MEGABYTE - 1)
            assert eventually(
                lambda: resident_bytes(unbounded.pid) - size > 32 * MEGABYTE, WATCHDOG_S
            )


def be_silent(harmed: Harmed, n_peers: int) -> None:
    serves(harmed, 0)
    n_before = n_descriptors(harmed.pid)
    begun = now_s()
    with peers(harmed.endpoint, n_peers) as strangers:
        for n in range(5):
            serves(harmed, n + 1)
        for stranger in strangers:
            wait_until_cut(stranger)
        took_s = now_s() - begun
    print(f"{n_peers} silent strangers were all cut after {took_s:.1f} s")
    assert took_s >= 4.0, "they were given no time to say who they are"
    assert eventually(lambda: n_descriptors(harmed.pid) <= n_before, WATCHDOG_S)


def test_silent_strangers_are_cut_and_others_are_served_meanwhile(flooded: Harmed) -> None:
    be_silent(flooded, 20)


@pytest.mark.verify
def test_five_hundred_silent_strangers_are_cut_and_others_are_served_meanwhile(
    flooded: Harmed,
) -> None:
    """Promise P10: a flood before any key is shown."""
    be_silent(flooded, 500)


def test_out_of_descriptors_a_broker_lives_says_so_and_serves_again(tmp_path: Path) -> None:
    with (
        broker(tmp_path, clients={"op": "operator"}, prelude=FEW_DESCRIPTORS) as harmed,
        MessageHub(harmed.config) as hub,
    ):
        hub.state["n"] = 0
        used_s = cpu_s(harmed.pid)
        with peers(harmed.endpoint, 200):
            crowded = eventually(lambda: "descriptors are in use" in harmed.log(), WATCHDOG_S)
            assert harmed.process.poll() is None, harmed.log()[-3000:]
            assert crowded, harmed.log()[-3000:]
            for n in range(20):  # who was there before, is served
                hub.state["n"] = n
                assert hub.state["n"] == n
        serves(harmed, 1)
        used_s = cpu_s(harmed.pid) - used_s
        print(f"out of descriptors, the broker used {used_s:.2f} s of a processor")
        assert hub.programs()[1]["crowds"] >= 1
