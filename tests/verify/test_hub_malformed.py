"""Malformed messages: a broker refuses each of them, and nothing else changes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from pyhub import MessageHub
from pyhub.hub import protocol
from pyhub.hub.protocol import MAX_MESSAGE_BYTES, RequestBody
from tests.verify.brokers import (
    MEGABYTE,
    Harmed,
    Line,
    ask,
    broker,
    dialled,
    hear,
    hello,
    line_of,
    program,
    resident_bytes,
    tell,
)

N_FRAMES = 20_000
N_FRAMES_VERIFY = 1_000_000
MAX_GROWTH = 16 * MEGABYTE
# As many on their way as a broker has room for: it drops what one does not read.
WINDOW = 500

CHANNEL = protocol.ChannelInfo("mutant", "datablock", "|u1", (4,), 4, "segment", "host", 1)
COMMAND = protocol.CommandInfo("run", "Does it.", [protocol.ParameterInfo("n", "int", "1")])
BODIES: list[RequestBody] = [
    hello("mutant"),
    protocol.Ping(),
    protocol.Goodbye(),
    protocol.ListPrograms(),
    protocol.Shutdown(),
    protocol.Register(CHANNEL),
    protocol.Unregister("good", "segment"),
    protocol.Report({"segment": protocol.ChannelMetrics(1, 2, 3.0)}),
    protocol.LookUp("good"),
    protocol.ReaderAttached(1, "good", "segment"),
    protocol.ReaderDetached(1),
    protocol.ListChannels(),
    protocol.Offer("good", [COMMAND]),
    protocol.Withdraw("good"),
    protocol.Hold([b"call"]),
    protocol.ListServices(),
    protocol.Call(b"call", "good", "run", b"\x80", 1.0),
    protocol.Cancel(b"call"),
    protocol.Outcome(b"call", b"\xc0"),
    protocol.Progress(b"call", b"\xc0"),
    protocol.GetState("good/n"),
    protocol.SetState(b"change", "good/n", b"\xc0"),
    protocol.Watch(1, "state", "good/*"),
    protocol.Unwatch(1),
    protocol.Publish(b"event", "good/n", b"\xc0", "info", 1),
]
TEMPLATES = [protocol.encode(protocol.Request(1, body)) for body in BODIES]

# A program that asks all the time; at the end it says how often, how often it
# was answered, and how long the slowest hundredth took at least, in ms.
GOOD = """
    import sys, threading, time
    import pyhub

    hub = pyhub.MessageHub(pyhub.BrokerConfig(runtime_dir=sys.argv[1], autostart=False))
    took, n_asked, is_over = [], 0, threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), is_over.set()), daemon=True).start()
    print("up", flush=True)
    while not is_over.wait(0.002):
        begun = time.perf_counter()
        n_asked += 1
        assert hub.state["good/n"] == 7
        took.append(time.perf_counter() - begun)
    hub.close()
    print(n_asked, len(took), 1000 * sorted(took)[int(0.99 * len(took))], flush=True)
"""


def test_the_templates_are_all_that_can_be_asked() -> None:
    assert {type(body) for body in BODIES} == set(protocol.RequestBody.__args__)


def mutated(frame: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(frame)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(damaged))
        match chance.randrange(4):
            case 0:
                damaged[at] = chance.randrange(256)
            case 1:
                damaged[at] ^= 1 << chance.randrange(8)
            case 2:
                damaged[at:at] = chance.randbytes(chance.randint(1, 9))
            case 3:
                del damaged[at:]
        if not damaged:
            break
    return bytes(damaged)


def oversized(chance: random.Random) -> bytes:
    """Numbers and texts beyond their bounds, in what is otherwise a request."""
    number = chance.choice([2**63, 2**64 - 1, -1, -(2**63), 1.5, None, "1", [1]])
    text = chance.choice(["", "x" * 256, "x" * 60_000, "\x00", "\x1b[2J", "\ud7ff" * 300])
    body = chance.choice(
        [
            {"type": "Hello", "protocol": 2, "host": "h", "pid": 1, "lease": number,
             "lease_file": ""},
            {"type": "GetState", "key": "x" * 256},
            {"type": "Watch", "watch": number, "subject": "state", "pattern": "*"},
            {"type": "Offer", "service": "s", "commands": [{"name": "c"}] * 257, "capacity": 1},
            {"type": "Hold", "calls": [b"c"] * 1001},
            {"type": "SetState", "change": b"c" * 33, "key": "k", "value": b""},
            {"type": "SetState", "change": b"c", "key": "k", "value": b"v" * (48 * 1024 + 1)},
            {"type": "Publish", "event": b"e", "topic": "t", "value": b"", "severity": text,
             "time_ns": 1},
            {"type": "Report", "metrics": {str(n): {} for n in range(501)}},
            {"type": "Call", "call": b"", "service": "s", "command": "c", "arguments": b"",
             "timeout_s": 1.0},
            {"type": text},
        ]
    )  # fmt: skip
    return msgspec.msgpack.encode({"id": 1, "body": body})


def deep(chance: random.Random) -> bytes:
    """Brackets in brackets, as far as a message goes."""
    opening = chance.choice([b"\x91", b"\x81\xa1a", b"\x92\xc0", b"\xdd\x00\x00\x00\x01"])
    return b"\x82\xa2id\x01\xa4body" + opening * chance.randint(1, 60_000 // len(opening))


def malformed(chance: random.Random) -> list[bytes]:
    """Frames of which the broker can make no request."""
    while True:
        kind = chance.random()
        if kind < 0.7:
            frames = [mutated(chance.choice(TEMPLATES), chance)]
        elif kind < 0.85:
            frames = [chance.randbytes(chance.choice([0, 1, 7, 64, 300]))]
        elif kind < 0.95:
            return [chance.choice([*TEMPLATES, b""])] * chance.choice([2, 3, 5, 100])
        elif kind < 0.99:
            frames = [oversized(chance)]
        else:
            frames = [deep(chance)]
        try:
            protocol.decode_request(frames[0])
        except ValueError:
            if protocol.id_of(frames[0]) != 0:  # that one wants no answer
                return frames
        # Or it is a request after all: perhaps one that does what it says.


def pelt(line: Line, n_frames: int, chance: random.Random) -> int:
    """Send so many malformed messages; how many were refused."""
    n_refused = n_heard = 0

    def refusal() -> int:
        body = hear(line).body
        return isinstance(body, protocol.Refused) and body.code == "bad_message"

    for n_sent in range(1, n_frames + 1):
        frames = malformed(chance)
        line.send_multipart(frames)
        while n_sent - n_heard >= WINDOW:
            n_refused += refusal()
            n_heard += 1
    for _ in range(n_frames - n_heard):
        n_refused += refusal()
    return n_refused


@pytest.fixture
def pelted(tmp_path: Path) -> Iterator[Harmed]:
    with broker(tmp_path) as harmed:
        yield harmed


def run() -> None:
    """What "good" would do, if anybody asked for it."""


def check(harmed: Harmed, n_frames: int) -> None:
    seed = int(os.environ.get("PYHUB_SEED", "8"))
    with MessageHub(harmed.config) as hub, zmq.Context() as context:
        hub.state["good/n"] = 7
        producer = hub.create_datablock_producer("good", dtype="u1", shape=4)
        hub.service("good")(run)
        seen = [(e.key, e.value, e.version) for e in hub.state.entries()]
        before = hub.programs()[1]
        with (
            program(GOOD, harmed.runtime.path) as good,
            dialled(context, harmed.file.endpoint, harmed.file.public_key, harmed.own_keys) as line,
        ):
            assert line_of(good) == "up"
            assert isinstance(ask(line, hello("bad")), protocol.Welcome)
            pelt(line, 1000, random.Random(seed + 1))  # everything is done once before it counts
            size = resident_bytes(harmed.pid)

            n_refused = pelt(line, n_frames, random.Random(seed))

            growth = resident_bytes(harmed.pid) - size
            counters = hub.programs()[1]
            # Who says nothing that can be read is forgotten, as if it were silent.
            assert isinstance(ask(line, hello("bad")), protocol.Welcome)
            assert ask(line, protocol.Goodbye()) == protocol.Done()
            tell(good)
            n_asked, n_answered, p99_ms = map(float, line_of(good).split())
        print(
            f"{n_frames} malformed messages (PYHUB_SEED={seed}): the broker grew by "
            f"{growth / MEGABYTE:.1f} MiB; a good client asked {n_asked:.0f} times, p99 {p99_ms:.1f} ms"
        )
        assert n_refused == n_frames
        refused = "refused: bad_message"
        assert counters[refused] - before.get(refused, 0) == n_frames + 1000
        assert {k: v for k, v in counters.items() if k != refused} == {
            k: v for k, v in before.items() if k != refused
        }
        assert growth < MAX_GROWTH
        assert n_asked == n_answered > 0
        # Nobody else's things were touched, and it is the same broker.
        assert harmed.runtime.read_broker() == harmed.file
        assert [(e.key, e.value, e.version) for e in hub.state.entries()] == seen
        assert [channel.name for channel in hub.channels()] == ["good"]
        assert [(s.name, s.n_waiting) for s in hub.services()] == [("good", 0)]
        producer.close()


def test_malformed_messages_are_refused_and_change_nothing(pelted: Harmed) -> None:
    """Promise P8, in short."""
    check(pelted, N_FRAMES)


@pytest.mark.verify
@pytest.mark.timeout(1800)
def test_a_million_malformed_messages_are_refused_and_change_nothing(pelted: Harmed) -> None:
    """Promise P8: some 5 minutes."""
    check(pelted, N_FRAMES_VERIFY)


def test_a_message_that_is_whole_does_change_something(pelted: Harmed) -> None:
    # The negative control: what was sent above is refused for its damage alone.
    with (
        MessageHub(pelted.config) as hub,
        zmq.Context() as context,
        dialled(context, pelted.file.endpoint, pelted.file.public_key, pelted.own_keys) as line,
    ):
        for body in BODIES:
            if not isinstance(body, protocol.Shutdown | protocol.Goodbye):
                ask(line, body)
        assert [channel.name for channel in hub.channels()] == ["mutant"]
        assert hub.state["good/n"] is None
        assert isinstance(ask(line, protocol.Ping(), 2**64 - 1), protocol.Welcome)


def test_a_message_of_any_length_beyond_the_bound_ends_its_line(pelted: Harmed) -> None:
    with MessageHub(pelted.config) as hub, zmq.Context() as context:
        hub.state["good/n"] = 7
        size = resident_bytes(pelted.pid)
        for n_bytes in (MAX_MESSAGE_BYTES + 1, MEGABYTE, 16 * MEGABYTE):
            with dialled(
                context, pelted.file.endpoint, pelted.file.public_key, pelted.own_keys
            ) as line:
                assert isinstance(ask(line, hello()), protocol.Welcome)
                with line.get_monitor_socket(zmq.Event.DISCONNECTED) as monitor:
                    line.send(b"x" * n_bytes)
                    assert monitor.poll(60_000)
                    line.disable_monitor()
        assert resident_bytes(pelted.pid) - size < MAX_GROWTH
        assert hub.state["good/n"] == 7
