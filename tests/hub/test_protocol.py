"""The messages: typed, bounded, and never guessed at."""

from __future__ import annotations

import ast
import contextlib
import pickle
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pyhub.hub.protocol as protocol
import pyhub.hub.registry as registry
from pyhub import Notification
from pyhub.hub.protocol import (
    MAX_MESSAGE_BYTES,
    ChannelInfo,
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

CHANNEL = ChannelInfo("cam1", "datablock", "<u2", (512, 1028), 8, "ab" * 16, "host", 42)

REQUESTS: list[RequestBody] = [
    protocol.Hello(1, "host", 42, 4711, "/dev/shm/leases"),
    protocol.Register(CHANNEL),
    protocol.Unregister("cam1", "ab" * 16),
    protocol.LookUp("cam1"),
    protocol.ReaderAttached(7, "cam1", "ab" * 16),
    protocol.ReaderDetached(7),
    protocol.ListChannels(),
    protocol.Ping(),
    protocol.Goodbye(),
]
REPLIES: list[ReplyBody] = [
    protocol.Welcome(1, "epoch", 1.0),
    protocol.Registered("ipc:///run/x.sock"),
    protocol.Found("ipc:///run/x.sock", None),
    protocol.Found("ipc:///run/x.sock", CHANNEL),
    protocol.Channels([CHANNEL]),
    protocol.Done(),
    protocol.Refused("name_taken", "it belongs to pid 42"),
]


def wire(body: dict[str, Any], request_id: object = 1) -> bytes:
    return msgspec.msgpack.encode({"id": request_id, "body": body})


HELLO = {"type": "Hello", "protocol": 1, "host": "h", "pid": 1, "lease": 1, "lease_file": "/x"}
INFO = msgspec.to_builtins(CHANNEL)


@pytest.mark.parametrize("body", REQUESTS, ids=lambda body: type(body).__name__)
def test_a_request_survives_the_trip(body: RequestBody) -> None:
    assert decode_request(encode(Request(9, body))) == Request(9, body)


@pytest.mark.parametrize("body", REPLIES, ids=lambda body: type(body).__name__)
def test_a_reply_survives_the_trip(body: ReplyBody) -> None:
    assert decode_reply(encode(Reply(9, body))) == Reply(9, body)


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
    ],
    ids=lambda frame: f"{frame[:24]!r}",
)
def test_what_is_no_request_is_refused(frame: bytes) -> None:
    with pytest.raises(ValueError):
        decode_request(frame)


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


@pytest.mark.parametrize("module", [protocol, registry], ids=["protocol", "registry"])
def test_messages_and_registry_do_no_io(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text())
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
    assert not imported & {"zmq", "socket", "os", "io", "pathlib", "subprocess", "pickle"}
