"""The messages: typed, bounded, and never guessed at."""

from __future__ import annotations

import ast
import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
import zmq
from hypothesis import example, given
from hypothesis import strategies as st

import pyhub.hub.broker as broker
import pyhub.hub.client as client
import pyhub.hub.protocol as protocol
from pyhub import BrokerConfig, Notification
from pyhub.hub.keys import load_or_create_keys
from pyhub.hub.protocol import (
    MAX_MESSAGE_BYTES,
    ChannelInfo,
    PushBody,
    Reply,
    ReplyBody,
    Request,
    RequestBody,
    decode_notification,
    decode_reply,
    decode_request,
    encode,
    encode_notification,
)
from pyhub.hub.runtime import RuntimeDirectory

CHANNEL = ChannelInfo("cam1", "datablock", "<u2", (512, 1028), 8, "ab" * 16, "host", 42)

METRICS = protocol.ChannelMetrics(7, 1, 2.5)
COMMAND = protocol.CommandInfo(
    "move", "Move it.", [protocol.ParameterInfo("to", "float", "0.0")], "float", True
)
FAILURE = protocol.Failure("raised", "too far", "ValueError", "Traceback ...")
ENTRY = protocol.StateEntry("cam1/exposure", b"\x01", 7, 1_000, "gui (42@host)")
EVENT = protocol.Event("cam1/hot", b"\x01", "warning", "gui (42@host)", 1_000, 3, True)
ID = b"0123456789abcdef"

REQUESTS: list[RequestBody] = [
    protocol.Hello(1, "host", 42, 4711, "/dev/shm/leases"),
    protocol.Hello(2, "host", 42, 4711, "/dev/shm/leases", "detector"),
    protocol.Register(CHANNEL),
    protocol.Unregister("cam1", "ab" * 16),
    protocol.LookUp("cam1"),
    protocol.ReaderAttached(7, "cam1", "ab" * 16),
    protocol.ReaderDetached(7),
    protocol.ListChannels(),
    protocol.ListChannels("cam1"),
    protocol.Report({"ab" * 16: METRICS}),
    protocol.Ping(),
    protocol.Goodbye(),
    protocol.ListPrograms("7"),
    protocol.Shutdown(),
    protocol.Offer("stage", [COMMAND], 3),
    protocol.Withdraw("stage"),
    protocol.Hold([ID, b"1"]),
    protocol.ListServices("stage"),
    protocol.Call(ID, "stage", "move", b"\x80", 10.0, "epoch", "worker"),
    protocol.Cancel(ID),
    protocol.Outcome(ID, b"\x01"),
    protocol.Outcome(ID, None, FAILURE),
    protocol.Progress(ID, b"\x01"),
    protocol.GetState("cam1/exposure"),
    protocol.SetState(ID, "cam1/exposure", b"\x01", 6),
    protocol.SetState(ID, "cam1/exposure", None),
    protocol.Watch(1, "state", "cam1/*"),
    protocol.Unwatch(1),
    protocol.Publish(ID, "cam1/hot", b"\x01", "warning", 1_000, True),
]
REPLIES: list[ReplyBody] = [
    protocol.Welcome(1, "epoch", 1.0),
    protocol.Welcome(2, "epoch", 1.0, 9),
    protocol.Registered("ipc:///run/x.sock"),
    protocol.Found("ipc:///run/x.sock", None),
    protocol.Found("ipc:///run/x.sock", CHANNEL),
    protocol.Found("ipc:///run/x.sock", None, "pending", "it has just begun"),
    protocol.Channels([CHANNEL]),
    protocol.Channels([msgspec.structs.replace(CHANNEL, metrics=METRICS)], False),
    protocol.Done(),
    protocol.Refused("name_taken", "it belongs to pid 42"),
    protocol.Programs(
        [protocol.ProgramInfo("1", "gui", "own", "admin", "host", 42, 0.5, 1, 2, 3, 4)], {"n": 1}
    ),
    protocol.Accepted("worker"),
    protocol.Finished(ID, b"\x01"),
    protocol.Services([protocol.ServiceInfo("stage", [COMMAND], ["worker"], 3, 2, 1)]),
    protocol.Stated(ENTRY),
    protocol.Stated(None),
    protocol.Conflict(ENTRY),
    protocol.Watching(7),
]
PUSHES: list[PushBody] = [
    protocol.Execute(ID, "stage", "move", b"\x80", 10.0, "gui (42@host)"),
    protocol.Abort(ID),
    protocol.Finished(ID, b"\x01"),
    protocol.Finished(ID, None, FAILURE),
    protocol.Progressed(ID, b"\x01"),
    protocol.StateChanged(1, [ENTRY, msgspec.structs.replace(ENTRY, value=None)]),
    protocol.EventHappened(0, [EVENT]),
]
# What no frame, list or text may exceed.
VALUE_BYTES = 48 * 1024


def wire(body: dict[str, Any], request_id: object = 1) -> bytes:
    return msgspec.msgpack.encode({"id": request_id, "body": body})


def packed(body: RequestBody, **fields: object) -> bytes:
    """Return a request as a frame, with other fields than it has."""
    return wire(msgspec.to_builtins(body, builtin_types=(bytes,)) | fields)


HELLO = {"type": "Hello", "protocol": 1, "host": "h", "pid": 1, "lease": 1, "lease_file": "/x"}
INFO = msgspec.to_builtins(CHANNEL)


@pytest.mark.parametrize("body", REQUESTS, ids=lambda body: type(body).__name__)
def test_a_request_survives_the_trip(body: RequestBody) -> None:
    assert decode_request(encode(Request(9, body))) == Request(9, body)


@pytest.mark.parametrize("body", REPLIES, ids=lambda body: type(body).__name__)
def test_a_reply_survives_the_trip(body: ReplyBody) -> None:
    assert decode_reply(encode(Reply(9, body))) == Reply(9, body)


@pytest.mark.parametrize("body", PUSHES, ids=lambda body: type(body).__name__)
def test_a_push_survives_the_trip(body: PushBody) -> None:
    assert decode_reply(encode(Reply(0, body))) == Reply(0, body)


@pytest.mark.parametrize(
    ("union", "messages"),
    [(RequestBody, REQUESTS), (ReplyBody, REPLIES), (PushBody, PUSHES)],
    ids=["requests", "replies", "pushes"],
)
def test_every_message_is_tried_here(union: Any, messages: list[Any]) -> None:
    assert {type(message) for message in messages} == set(union.__args__)


def test_every_message_has_a_name_of_its_own() -> None:
    # A call's outcome is a reply or a push, as it comes soon or late.
    messages = {*RequestBody.__args__, *ReplyBody.__args__, *PushBody.__args__}
    assert len({each.__name__ for each in messages}) == len(messages)


def test_control_messages_are_messagepack_that_any_client_can_write() -> None:
    """Seed 12: MessagePack is the primary encoding, here of control messages."""
    packed = msgpack.packb({"id": 5, "body": {"type": "LookUp", "name": "cam1"}})
    assert decode_request(packed) == Request(5, protocol.LookUp("cam1"))
    assert msgpack.unpackb(encode(Reply(5, protocol.Done()))) == {
        "id": 5,
        "body": {"type": "Done"},
    }


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert decode_request(wire({"type": "Ping", "mood": "good"})).body == protocol.Ping()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",  # the one byte that MessagePack never uses
        b"{}",
        b"\x81" * 5000,  # deep
        b"\x91" * 60_000,  # deeper than the stack
        b"\xdd\xff\xff\xff\xff",  # an array of 4 G items, in five bytes
        b"\xdf\xff\xff\xff\xff",  # a map of them
        pickle.dumps({"id": 1}),
        msgspec.msgpack.encode({"id": 1}),
        msgspec.msgpack.encode([1, {"type": "Ping"}]),
        wire({}),
        wire({"type": "NoSuchMessage"}),
        wire({"type": "Welcome", "protocol": 1, "epoch": "e", "heartbeat_s": 1.0}),  # a reply
        wire({"type": 3}),
        wire({"type": "Ping"}, request_id="1"),
        wire({"type": "Ping"}, request_id=None),
        wire({"type": "LookUp"}),
        wire({"type": "LookUp", "name": 5}),
        wire({"type": "LookUp", "name": b"cam1"}),
        wire(HELLO | {"lease": -1}),
        wire(HELLO | {"lease": 2**63}),  # no offset in a file: it ended the broker once
        wire(HELLO | {"lease": 1.5}),
        wire(HELLO | {"host": "h" * 256}),
        wire(HELLO | {"lease_file": "/" * 4097}),
        wire({"type": "Register", "channel": INFO | {"name": "../../etc/passwd"}}),
        wire({"type": "Register", "channel": INFO | {"name": ""}}),
        wire({"type": "Register", "channel": INFO | {"name": "n" * 201}}),
        wire({"type": "Register", "channel": INFO | {"shape": [1] * 9}}),
        wire({"type": "Register", "channel": INFO | {"shape": ["1"]}}),
        wire({"type": "Register", "channel": INFO | {"dtype": "d" * 1024}}),
        wire({"type": "Register", "channel": INFO | {"segment_id": "s" * 256}}),
        wire({"type": "ReaderAttached", "reader": 1, "name": "n", "segment_id": "s" * 256}),
        wire({"type": "ReaderDetached", "reader": "1"}),
        packed(protocol.Report({}), metrics={f"s{n}": {} for n in range(501)}),
        packed(protocol.Report({}), metrics={"s" * 256: {}}),
        packed(protocol.Report({}), metrics={"s": {"n_frames": -1}}),
        packed(protocol.Report({}), metrics={"s": {"n_dropped": 2**63}}),
        packed(protocol.Offer("s", []), service="s" * 201),
        packed(protocol.Offer("s", []), commands=[{"name": "c"}] * 257),
        packed(protocol.Offer("s", []), commands=[{"name": "c" * 201}]),
        packed(protocol.Offer("s", []), commands=[{"name": "c", "doc": "d" * 1001}]),
        packed(
            protocol.Offer("s", []), commands=[{"name": "c", "parameters": [{"name": "p"}] * 33}]
        ),
        packed(protocol.Offer("s", []), commands=[{"name": "c", "is_idempotent": 1}]),
        packed(protocol.Offer("s", []), capacity=0),
        packed(protocol.Offer("s", []), capacity=1025),
        packed(protocol.Hold([]), calls=[ID] * 1001),
        packed(protocol.Hold([]), calls=[b""]),
        packed(protocol.Hold([]), calls=[b"i" * 33]),
        packed(protocol.Hold([]), calls=["text"]),
        packed(protocol.Call(ID, "s", "c", b"", 1.0), call=b"i" * 33),
        packed(protocol.Call(ID, "s", "c", b"", 1.0), arguments=b"a" * (VALUE_BYTES + 1)),
        packed(protocol.Call(ID, "s", "c", b"", 1.0), timeout_s=-1.0),
        packed(protocol.Call(ID, "s", "c", b"", 1.0), timeout_s=float("nan")),
        packed(protocol.Call(ID, "s", "c", b"", 1.0), timeout_s=float("inf")),
        packed(protocol.Call(ID, "s", "c", b"", 1.0), epoch="e" * 256),
        packed(protocol.Outcome(ID), value=b"v" * (VALUE_BYTES + 1)),
        packed(protocol.Outcome(ID), failure={"code": "raised", "message": "m" * 4001}),
        packed(protocol.Outcome(ID), failure={"code": "raised", "traceback": "t" * 16001}),
        packed(protocol.Progress(ID, b""), value=b"v" * (VALUE_BYTES + 1)),
        packed(protocol.GetState("k"), key="k" * 256),
        packed(protocol.GetState("k"), key=""),
        packed(protocol.SetState(ID, "k", b""), value=b"v" * (VALUE_BYTES + 1)),
        packed(protocol.SetState(ID, "k", b""), value="text"),
        packed(protocol.SetState(ID, "k", b""), if_version=-1),
        packed(protocol.SetState(ID, "k", b""), change=b""),
        packed(protocol.Watch(1, "state", "k"), watch=0),
        packed(protocol.Watch(1, "state", "k"), watch=2**31),
        packed(protocol.Watch(1, "state", "k"), pattern="k" * 256),
        packed(protocol.Publish(ID, "t", b"", "info", 0), topic="t" * 256),
        packed(protocol.Publish(ID, "t", b"", "info", 0), severity="fatal"),
        packed(protocol.Publish(ID, "t", b"", "info", 0), event=b"i" * 33),
        packed(protocol.Publish(ID, "t", b"", "info", 0), time_ns="now"),
        *(wire(msgspec.to_builtins(push, builtin_types=(bytes,))) for push in PUSHES),
    ],
    ids=lambda frame: f"{frame[:24]!r}",
)
def test_what_is_no_request_is_refused(frame: bytes) -> None:
    with pytest.raises(ValueError):
        decode_request(frame)


@pytest.mark.parametrize(
    "body",
    [
        protocol.Hello(2**31, "h" * 255, 42, 2**63 - 1, "/" * 4096, "n" * 255),
        protocol.Report({f"s{n}": METRICS for n in range(500)}),
        protocol.Offer("s" * 200, [msgspec.structs.replace(COMMAND, doc="d" * 1000)] * 32, 1024),
        protocol.Hold([b"%032d" % n for n in range(1000)]),
        protocol.Call(
            b"i" * 32, "s" * 200, "c" * 200, b"a" * VALUE_BYTES, 1e9, "e" * 255, "w" * 255
        ),
        protocol.Outcome(b"i" * 32, b"v" * VALUE_BYTES),
        protocol.Outcome(ID, None, protocol.Failure("raised", "m" * 4000, "k" * 255, "t" * 16000)),
        protocol.SetState(b"i" * 32, "k" * 255, b"v" * VALUE_BYTES, 2**63 - 1),
        protocol.Publish(b"i" * 32, "t" * 255, b"v" * VALUE_BYTES, "critical", 2**63 - 1, True),
        protocol.Watch(2**31 - 1, "events", "p" * 255),
    ],
    ids=lambda body: type(body).__name__,
)
def test_what_is_just_within_its_bounds_fits_into_a_message(body: RequestBody) -> None:
    assert decode_request(encode(Request(2**63 - 1, body))).body == body


def test_a_longer_message_than_the_broker_reads_is_refused_before_it_is_decoded() -> None:
    frame = wire({"type": "LookUp", "name": "n" * MAX_MESSAGE_BYTES})
    with pytest.raises(ValueError, match=f"{len(frame)} bytes; at most {MAX_MESSAGE_BYTES}"):
        decode_request(frame)


def test_a_list_of_two_thousand_channels_fits_into_a_reply() -> None:
    channels = [msgspec.structs.replace(CHANNEL, name=f"cam{n}") for n in range(2000)]
    frame = encode(Reply(1, protocol.Channels(channels)))
    assert len(frame) > MAX_MESSAGE_BYTES
    assert decode_reply(frame).body == protocol.Channels(channels)


@given(st.binary(max_size=200))
@example(b"\x80")
def test_any_bytes_are_a_request_or_refused(frame: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(decode_request(frame), Request)


@given(st.sampled_from(REQUESTS), st.data())
def test_any_damage_gives_a_request_or_a_refusal(body: RequestBody, data: st.DataObject) -> None:
    frame = bytearray(encode(Request(1, body)))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        assert isinstance(decode_request(bytes(frame)), Request)


def test_a_notification_is_an_array_of_five_integers() -> None:
    notification = Notification(7, 3, 5, 2, 4)
    assert msgpack.unpackb(encode_notification(notification)) == [7, 3, 5, 2, 4]
    assert decode_notification(encode_notification(notification)) == notification
    assert (notification.structured_buffer, notification.flex_zone) == (True, False)


@pytest.mark.parametrize("payload", [b"", b"\x90", b"\x95\x01\x02\x03\x04\xa1x", b"\xc1"])
def test_what_is_no_notification_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        decode_notification(payload)


# --- Neighbouring versions ---

# What a program of protocol 1 knows of each reply: its fields, and no others.
KNOWN_TO_1 = {
    "Welcome": {"protocol", "epoch", "heartbeat_s"},
    "Registered": {"endpoint"},
    "Found": {"endpoint", "channel"},
    "Channels": {"channels"},
    "Done": set(),
    "Refused": {"code", "reason"},
}
CHANNEL_OF_1 = {
    "name",
    "kind",
    "dtype",
    "shape",
    "n_slots",
    "segment_id",
    "host",
    "pid",
    "n_readers",
}


class Stranger:
    """A program that was written in another language: it knows MessagePack and CurveZMQ."""

    def __init__(self, line: zmq.Socket[bytes]) -> None:
        self._line = line
        self._next_id = 0

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request; the body of what comes next, which is its reply and no push."""
        self._next_id += 1
        reply = self.exchange(msgpack.packb({"id": self._next_id, "body": body}))
        assert reply["id"] == self._next_id
        told: dict[str, Any] = reply["body"]
        return told

    def exchange(self, frame: bytes) -> dict[str, Any]:
        self._line.send(frame)
        assert self._line.poll(30_000), "the broker does not answer"
        message: dict[str, Any] = msgpack.unpackb(self._line.recv())
        return message

    def is_silent(self) -> bool:
        return not self._line.poll(100)


@pytest.fixture
def stranger(shared: BrokerConfig) -> Iterator[Stranger]:
    """A line to the module's broker."""
    runtime = RuntimeDirectory(shared.runtime_dir)
    found = runtime.read_broker()
    assert found is not None
    keys = load_or_create_keys(runtime.key_path("client"))
    with zmq.Context() as context, context.socket(zmq.DEALER) as line:
        line.linger = 0
        line.curve_serverkey = found.public_key.encode()
        line.curve_publickey = keys.public.encode()
        line.curve_secretkey = keys.secret.encode()
        line.connect(found.endpoint)
        yield Stranger(line)
        line.send(msgpack.packb({"id": 99, "body": {"type": "Goodbye"}}))
        assert line.poll(30_000)


def hello_of(version: int) -> dict[str, Any]:
    return HELLO | {"protocol": version, "host": "elsewhere"}


def test_a_program_of_the_version_before_is_served_as_it_was(stranger: Stranger) -> None:
    channel = {
        "name": "of-1", "kind": "datablock", "dtype": "<u2", "shape": [4, 4], "n_slots": 4,
        "segment_id": "s1", "host": "elsewhere", "pid": 1, "n_readers": 0,
    }  # fmt: skip
    conversation = [
        (hello_of(1), "Welcome"),
        ({"type": "Ping"}, "Welcome"),
        ({"type": "LookUp", "name": "of-1"}, "Found"),
        ({"type": "Register", "channel": channel}, "Registered"),
        ({"type": "ReaderAttached", "reader": 1, "name": "of-1", "segment_id": "s1"}, "Done"),
        ({"type": "LookUp", "name": "of-1"}, "Found"),
        ({"type": "ListChannels"}, "Channels"),
        ({"type": "ReaderDetached", "reader": 1}, "Done"),
        ({"type": "Unregister", "name": "of-1", "segment_id": "s1"}, "Done"),
        ({"type": "LookUp", "name": "../x"}, "Refused"),
    ]
    told = [stranger.ask(body) for body, _ in conversation]
    assert [reply["type"] for reply in told] == [expected for _, expected in conversation]
    for reply in told:
        assert KNOWN_TO_1[reply["type"]] <= set(reply)
    assert [reply["protocol"] for reply in told[:2]] == [1, 1]
    assert told[2]["channel"] is None
    (listed,) = told[6]["channels"]
    for info in (told[5]["channel"], listed):
        assert {key: info[key] for key in CHANNEL_OF_1} == channel | {"n_readers": 1}
    assert stranger.is_silent()


def test_a_program_of_the_next_version_is_served_as_one_of_this(stranger: Stranger) -> None:
    later = hello_of(protocol.PROTOCOL + 1) | {"name": "later", "colour": "blue"}
    assert stranger.ask(later)["protocol"] == protocol.PROTOCOL
    assert stranger.ask({"type": "Ping", "mood": "good"})["protocol"] == protocol.PROTOCOL


@pytest.mark.parametrize("version", [protocol.PROTOCOL + 2, protocol.OLDEST - 1])
def test_a_program_of_a_version_further_off_is_refused(stranger: Stranger, version: int) -> None:
    reply = stranger.ask(hello_of(version))
    assert (reply["type"], reply["code"]) == ("Refused", "protocol")
    assert f"protocol {protocol.PROTOCOL}, the program {version}" in reply["reason"]
    assert stranger.ask({"type": "Ping"})["code"] == "no_hello"


def test_a_message_that_nobody_knows_is_refused_and_its_program_stays(stranger: Stranger) -> None:
    stranger.ask(hello_of(protocol.PROTOCOL + 1))
    frames = [
        wire({"type": "Teleport", "to": "the moon"}, request_id=7),
        wire({"type": "LookUp"}),
        b"no message",
        b"",
    ]
    for frame in frames:
        reply = stranger.exchange(frame)
        assert (reply["body"]["type"], reply["body"]["code"]) == ("Refused", "bad_message")
    assert stranger.ask({"type": "Ping"})["type"] == "Welcome"


# --- No I/O ---

NO_IO = [
    *sorted(Path(protocol.__path__[0]).glob("*.py")),
    *(
        Path(broker.__path__[0], f"{name}.py")
        for name in (
            "registry", "services", "switchboard", "state", "topics", "watches", "rights",
        )
    ),
    Path(client.__path__[0], "session.py"),
]  # fmt: skip
IO = {
    "asyncio",
    "io",
    "os",
    "pathlib",
    "pickle",
    "socket",
    "sqlite3",
    "subprocess",
    "threading",
    "time",
}
IO |= {"zmq"}
# What is asked of the machine there: a random number, and what time it is.
HARMLESS = {
    "switchboard.py": {"os.urandom", "time.time_ns"},
    "state.py": {"time.time_ns"},
}


@pytest.mark.parametrize("path", NO_IO, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_messages_and_registry_do_no_io(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    used = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    harmless = HARMLESS.get(path.name, set()) if path.parent.name == "broker" else set()
    modules = {name.split(".")[0] for name in harmless}
    assert not imported & (IO - modules)
    assert {name for name in used if name.split(".")[0] in modules} <= harmless
