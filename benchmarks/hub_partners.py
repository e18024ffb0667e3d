"""The other processes of the hub's benchmarks, and four ways to ask one of them something.

Asked is always for the bytes that were given. ``command``: by way of the
broker. ``forwarded``: bare sockets with a ROUTER in between that does nothing
but forward, so as many processes and hops as a command has. ``request``: what
the broker answers itself, here a value of the state. ``direct``: bare sockets
and nobody in between, so as many as a request has. All with CurveZMQ, over ipc.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import zmq

import pyhub
from pyhub.hub.keys import KeyPair, load_or_create_keys

__all__ = ["WAYS", "Way", "partner", "payloads", "way_to_ask"]

Socket = zmq.Socket[bytes]

WAYS = ("command", "forwarded", "request", "direct")
N_BYTES = 64
N_PAYLOADS = 256
N_HUBS = 10  # of each process that watches
_TIMEOUT_MS = 10_000


class Way(Protocol):
    """One way to ask."""

    def __call__(self, payload: bytes) -> bytes:
        """Return `payload`, which went to another process and came back."""


@contextlib.contextmanager
def way_to_ask(kind: str) -> Iterator[Way]:
    """Start who is needed, and give the way there, in working order."""
    with contextlib.ExitStack() as stack:
        ask: Way
        if kind == "command":
            hub = stack.enter_context(pyhub.MessageHub())
            stack.enter_context(partner("worker"))
            hub.wait_for_service("bench", timeout_s=30)

            def ask(payload: bytes) -> bytes:
                answer: bytes = hub.call("bench", "echo", payload=payload)
                return answer
        elif kind == "request":
            hub = stack.enter_context(pyhub.MessageHub())
            for payload in payloads():
                hub.state[f"bench/{payload[0]}"] = payload

            def ask(payload: bytes) -> bytes:
                value: bytes = hub.state[f"bench/{payload[0]}"]
                return value
        else:
            names = ["forwarder", "forwarded"] if kind == "forwarded" else ["direct"]
            for name in names:
                stack.enter_context(partner(name))
            context = stack.enter_context(zmq.Context[Socket]())
            line = stack.enter_context(_client(context, kind, b"caller"))

            def ask(payload: bytes) -> bytes:
                line.send(payload)
                if not line.poll(_TIMEOUT_MS):
                    raise TimeoutError(f"{kind}: no answer")
                return line.recv()

        _settle(ask)
        yield ask


@contextlib.contextmanager
def partner(role: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start a process of that role; it says a line when it is ready, and ends with its stdin."""
    command = [sys.executable, str(Path(__file__)), role, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n", f"{role} did not start"
            yield child
            # Those with a hub say goodbye; the bare ones do not look.
            assert child.stdin is not None
            child.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.5)
        finally:
            child.terminate()


def payloads() -> Iterator[bytes]:
    """Return what is asked for, in turn."""
    return (number.to_bytes(N_BYTES, "little") for number in range(N_PAYLOADS))


def _settle(ask: Way) -> None:
    for payload in itertools.islice(payloads(), 20):
        assert ask(payload) == payload, "another answer came back"


# --- The roles ---


def _worker() -> None:
    """Offer the command that does nothing but answer."""
    hub = pyhub.MessageHub()

    @hub.service("bench")
    def echo(payload: bytes) -> bytes:
        return payload

    _ready()
    sys.stdin.read()


def _forwarder() -> None:
    """Do what any broker has to do at least: take a message in, send it on."""
    with zmq.Context[Socket]() as context, _server(context, "forwarded") as router:
        _ready()
        while True:
            peer, payload = router.recv_multipart()
            other = b"caller" if peer == b"worker" else b"worker"
            router.send_multipart([other if payload else peer, payload])


def _forwarded() -> None:
    """Send back what the one in between hands on."""
    with zmq.Context[Socket]() as context, _client(context, "forwarded", b"worker") as line:
        line.send(b"")  # comes back: now the one in between knows us
        line.recv()
        _ready()
        while True:
            line.send(line.recv())


def _direct() -> None:
    """Send back what comes."""
    with zmq.Context[Socket]() as context, _server(context, "direct") as router:
        _ready()
        while True:
            router.send_multipart(router.recv_multipart())


def _watchers(key: str) -> None:
    """Watch a key from many hubs; say when the last one of them had each value."""
    hubs = [pyhub.MessageHub() for _ in range(N_HUBS)]
    feeds = {(feed := hub.state.watch(key)).fileno(): feed for hub in hubs}
    poller = select.poll()
    for descriptor in feeds:
        poller.register(descriptor, select.POLLIN)
    _ready()
    value, n_have = 0, 0
    while True:
        for descriptor, _ in poller.poll():
            entry = feeds[descriptor].get(0)
            assert entry.value == value, f"{entry.value} came, not {value}"
            n_have += 1
        if n_have == N_HUBS:
            print(time.monotonic_ns(), flush=True)
            value, n_have = value + 1, 0


def _listener(pattern: str, n_events: str) -> None:
    """Take so many events, in order; say when the last one came, and how many did not come."""
    with pyhub.MessageHub() as hub, hub.events(pattern) as feed:
        _ready()
        for _ in sys.stdin:
            following = n_missing = 0
            while following < int(n_events):
                event = feed.get(30)
                assert event.value >= following, f"{event.value} came, not {following}"
                n_missing += event.value - following
                following = event.value + 1
            print(time.monotonic_ns(), n_missing, flush=True)


_ROLES: dict[str, Callable[..., None]] = {
    "worker": _worker,
    "forwarder": _forwarder,
    "forwarded": _forwarded,
    "direct": _direct,
    "watchers": _watchers,
    "listener": _listener,
}


def _ready() -> None:
    print("ready", flush=True)


def _server(context: zmq.Context[Socket], kind: str) -> Socket:
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.curve_server = True
    router.curve_secretkey = _keys().secret.encode()
    router.bind(_endpoint(kind))
    return router


def _client(context: zmq.Context[Socket], kind: str, identity: bytes) -> Socket:
    line = context.socket(zmq.DEALER)
    line.linger = 0
    line.identity = identity
    keys = _keys()
    line.curve_serverkey = line.curve_publickey = keys.public.encode()
    line.curve_secretkey = keys.secret.encode()
    line.connect(_endpoint(kind))
    return line


def _keys() -> KeyPair:
    """Return one pair for all: what encrypting costs is asked, not whom it keeps out."""
    return load_or_create_keys(Path(os.environ["PYHUB_RUNTIME_DIR"]) / "bare.key")


def _endpoint(kind: str) -> str:
    return f"ipc://{os.environ['PYHUB_RUNTIME_DIR']}/{kind}.bare"


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _ROLES[sys.argv[1]](*sys.argv[2:])
