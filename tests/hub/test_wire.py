"""The page about the wire format says what the code does, and is enough to write a client from."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import msgspec.inspect as msi
import pytest
import zmq
from msgspec import NODEFAULT

from pyhub import BrokerConfig
from pyhub.hub import protocol
from pyhub.hub.broker import registry, services, switchboard
from pyhub.hub.broker.state import StateTable
from pyhub.hub.broker.topics import Topics
from pyhub.hub.broker.watches import Watches
from pyhub.hub.client.values import MAX_VALUE_BYTES
from pyhub.hub.protocol import framing
from pyhub.hub.runtime import BrokerFile, RuntimeDirectory

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/hub-protocol.md").read_text()
HUB = ROOT / "pyhub/hub"

STRUCTS = {
    name: value
    for name in protocol.__all__
    if isinstance(value := getattr(protocol, name), type)
    and issubclass(value, msgspec.Struct)
    and name not in ("Message", "Reply", "Request")
}
MESSAGES = {each.__name__ for union in (framing.RequestBody, framing.ReplyBody, framing.PushBody)
            for each in union.__args__}  # fmt: skip
LIMITS = {
    "programs": registry.MAX_PROGRAMS,
    "channels of a program; readers of a program": registry.MAX_CHANNELS_PER_PROGRAM,
    "services of a program": services.MAX_SERVICES_PER_PROGRAM,
    "calls under way of a program": services.MAX_CALLS_PER_CALLER,
    "calls of a service that wait": services.MAX_WAITING,
    "watches of a program": Watches.MAX_WATCHES,
    "keys of the state": StateTable.MAX_KEYS,
    "bytes of the state, keys and values": StateTable.MAX_BYTES,
    "topics with a kept event": Topics.MAX_KEPT,
    "bytes of kept events, topics and values": Topics.MAX_BYTES,
    "a message to the broker, bytes": protocol.MAX_MESSAGE_BYTES,
    "a message from the broker, bytes": protocol.MAX_REPLY_BYTES,
    "a value, bytes": MAX_VALUE_BYTES,
}


# --- The page and the code ---


def section(title: str) -> str:
    """Return what stands below a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{2,3}} |\Z)", PAGE, re.M | re.S)
    assert found, f"the page has no heading {title!r}"
    return found[2]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the first table in `text`, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def described() -> dict[str, list[tuple[str, str, str]]]:
    """Return the fields that the page gives each message: name, type, default."""
    parts = re.split(r"^#### `(\w+)`\n", PAGE[PAGE.index("\n## Messages") :], flags=re.M)[1:]
    texts = {
        name: re.split(r"^#+ ", text, flags=re.M)[0]
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }
    return {
        name: [(row[0].strip("`"), row[1], row[2]) for row in rows(text)]
        for name, text in texts.items()
    }


def declared(struct: type[msgspec.Struct]) -> list[tuple[str, str, str]]:
    """Return the same as the code has it."""
    info = msi.type_info(struct)
    assert isinstance(info, msi.StructType)
    return [(field.name, type_text(field.type), default_text(field)) for field in info.fields]


def type_text(kind: Any) -> str:
    match kind:
        case msi.IntType() | msi.FloatType():
            word = "int" if isinstance(kind, msi.IntType) else "float"
            return word + bounds(kind.ge, kind.le)
        case msi.BoolType():
            return "bool"
        case msi.StrType() | msi.BytesType():
            word = "str" if isinstance(kind, msi.StrType) else "bin"
            return word + bounds(kind.min_length, kind.max_length)
        case msi.ListType() | msi.VarTupleType():
            return f"array{bounds(None, kind.max_length)} of {type_text(kind.item_type)}"
        case msi.DictType():
            each = f"{type_text(kind.key_type)} to {type_text(kind.value_type)}"
            return f"map{bounds(None, kind.max_length)} of {each}"
        case msi.LiteralType():
            return "one of " + ", ".join(map(str, kind.values))
        case msi.StructType():
            return kind.cls.__name__
        case msi.UnionType():
            return " or ".join(type_text(each) for each in kind.types)
        case msi.NoneType():
            return "nil"
    raise AssertionError(f"the page has no words for {kind}")


def bounds(low: float | None, high: float | None) -> str:
    words = {2**31 - 1: "2^31-1", 2**63 - 1: "2^63-1"}
    low_text, high_text = (
        None if each is None else words.get(int(each), f"{each:g}") for each in (low, high)
    )
    if low_text is None:
        return "" if high_text is None else f" ≤ {high_text}"
    return f" {low_text}..{high_text}"


def default_text(field: msi.Field) -> str:
    if field.default_factory is not NODEFAULT:
        return msgspec.json.encode(field.default_factory()).decode()
    if field.default is NODEFAULT:
        return "-"
    return "nil" if field.default is None else msgspec.json.encode(field.default).decode()


def codes_of(*calls: str) -> set[str]:
    """Return the first argument of calls by these names, anywhere in the hub."""
    trees = [ast.parse(path.read_text()) for path in HUB.rglob("*.py")]
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(
            node.func, "id", "")  # fmt: skip
        if name in calls and node.args and isinstance(code := node.args[0], ast.Constant):
            found.add(str(code.value))
    return found


def test_the_page_has_every_message_and_no_other() -> None:
    assert described().keys() == STRUCTS.keys()
    assert STRUCTS.keys() >= MESSAGES


@pytest.mark.parametrize("name", sorted(STRUCTS))
def test_the_page_has_the_fields_of(name: str) -> None:
    assert described().get(name) == declared(STRUCTS[name])


def test_the_page_has_every_code_of_a_refusal() -> None:
    assert {row[0].strip("`") for row in rows(section("Refusals"))} == codes_of("Refused", "refuse")


def test_the_page_has_every_code_of_a_failure() -> None:
    on_page = {row[0].strip("`") for row in rows(section("Failures of calls"))}
    assert on_page == codes_of("Failure")


def test_the_page_has_the_limits() -> None:
    on_page = {what: int(most.replace(",", "")) for what, most in rows(section("Limits"))}
    assert on_page == LIMITS


def test_the_page_has_the_right_that_each_message_needs() -> None:
    on_page = {
        name: verb
        for names, verb, _ in rows(section("Rights"))
        for name in re.findall(r"\w+", names)
    }
    assert on_page == {kind.__name__: verb for kind, (verb, _) in switchboard._RIGHTS.items()}


def test_the_page_has_the_fields_of_the_brokers_file() -> None:
    names = [
        name for row in rows(section("Transport")) for name in row[0].replace("`", "").split(", ")
    ]
    assert names == list(BrokerFile.__struct_fields__)


def test_the_page_is_of_the_version_that_is_spoken() -> None:
    assert f"This is version {protocol.PROTOCOL}." in PAGE
    assert f"Version {protocol.OLDEST} had " in PAGE


# --- A client that knows the page only ---


class Wire:
    """A program that speaks with ZeroMQ and MessagePack alone."""

    def __init__(self, directory: Path) -> None:
        broker = json.loads((directory / "broker.json").read_text())
        keys = json.loads((directory / "client.key").read_text())
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, os.urandom(8))
        self.socket.setsockopt(zmq.CURVE_SERVERKEY, broker["public_key"].encode())
        self.socket.setsockopt(zmq.CURVE_PUBLICKEY, keys["public"].encode())
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, keys["secret"].encode())
        self.socket.setsockopt(zmq.RCVTIMEO, 20_000)
        self.socket.connect(broker["endpoint"])
        self.last_id = 0
        self.pushes: list[dict[str, Any]] = []
        self.n_pushes = 0
        self.welcome = self.ask(
            "Hello", protocol=2, host="elsewhere", pid=1, lease=0, lease_file="", name="wire"
        )

    def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        self.begin(kind, **fields)
        return self.reply()

    def begin(self, kind: str, **fields: Any) -> None:
        self.last_id += 1
        self.send(self.last_id, kind, fields)

    def tell(self, kind: str, **fields: Any) -> None:
        self.send(0, kind, fields)

    def send(self, request_id: int, kind: str, fields: dict[str, Any]) -> None:
        self.socket.send(msgpack.packb({"id": request_id, "body": {"type": kind, **fields}}))

    def reply(self) -> dict[str, Any]:
        while (reply := self.receive()) is None:
            pass
        return reply

    def push(self) -> dict[str, Any]:
        while not self.pushes:
            assert self.receive() is None, "a reply that nobody waits for"
        return self.pushes.pop(0)

    def receive(self) -> dict[str, Any] | None:
        message = msgpack.unpackb(self.socket.recv())
        body: dict[str, Any] = message["body"]
        if message["id"] == 0:
            self.n_pushes += 1
            self.pushes.append(body)
            return None
        assert message["id"] == self.last_id
        return body

    def close(self) -> None:
        self.ask("Goodbye")
        self.context.destroy(linger=0)


@pytest.fixture
def wire(shared: BrokerConfig) -> Iterator[Wire]:
    wire = Wire(RuntimeDirectory(shared.runtime_dir).path)
    yield wire
    wire.close()


@pytest.fixture
def other(shared: BrokerConfig) -> Iterator[Wire]:
    wire = Wire(RuntimeDirectory(shared.runtime_dir).path)
    yield wire
    wire.close()


def test_a_client_of_its_own_is_greeted(wire: Wire) -> None:
    assert wire.welcome["type"] == "Welcome"
    assert wire.welcome["protocol"] == 2
    assert wire.ask("Ping")["epoch"] == wire.welcome["epoch"]


def test_a_client_of_its_own_sets_and_watches_state(wire: Wire, other: Wire, name: str) -> None:
    change = {"key": f"{name}/a", "value": msgpack.packb(0.1)}
    entry = other.ask("SetState", change=os.urandom(12), **change)["entry"]
    watching = wire.ask("Watch", watch=7, subject="state", pattern=f"{name}/*")
    assert watching == {"type": "Watching", "version": entry["version"]}
    assert wire.push() == {"type": "StateChanged", "watch": 7, "entries": [entry]}

    again = other.ask(
        "SetState", change=os.urandom(12), key=f"{name}/a", value=None, if_version=entry["version"]
    )
    pushed = wire.push()
    assert pushed == {"type": "StateChanged", "watch": 0, "entries": [again["entry"]]}
    assert pushed["entries"][0]["value"] is None
    assert wire.ask("GetState", key=f"{name}/a") == {"type": "Stated", "entry": None}


def test_a_client_of_its_own_finds_out_what_it_lost(wire: Wire, name: str) -> None:
    wire.ask("Watch", watch=1, subject="events", pattern=f"{name}/*")
    event = {"topic": f"{name}/x", "value": b"\xc0", "severity": "info", "time_ns": 1}
    for _ in range(3):
        assert wire.ask("Publish", event=os.urandom(12), **event)["type"] == "Done"
    assert wire.ask("Ping")["n_pushed"] == wire.n_pushes == 3


def test_clients_of_their_own_call_and_serve(wire: Wire, other: Wire, name: str) -> None:
    worker, caller = wire, other
    assert worker.ask("Hold", calls=[])["type"] == "Done"
    commands = [{"name": "double", "parameters": [{"name": "x", "type": "float"}]}]
    assert worker.ask("Offer", service=name, commands=commands)["type"] == "Done"

    call = os.urandom(16)
    request = {
        "call": call, "service": name, "command": "double", "arguments": msgpack.packb({"x": 21}),
        "timeout_s": 10,
    }  # fmt: skip
    accepted = caller.ask("Call", **request)
    [found] = [s for s in caller.ask("ListServices")["services"] if s["name"] == name]
    assert [accepted["worker"]] == found["workers"]

    execute = worker.push()
    assert (execute["type"], execute["call"], execute["command"]) == ("Execute", call, "double")
    assert execute["caller"] == "wire (local, 1@elsewhere)"
    worker.tell("Progress", call=call, value=msgpack.packb(50))
    result = msgpack.packb(2 * msgpack.unpackb(execute["arguments"])["x"])
    worker.tell("Outcome", call=call, value=result)
    assert caller.push() == {"type": "Progressed", "call": call, "value": msgpack.packb(50)}
    assert caller.push() == {"type": "Finished", "call": call, "value": result, "failure": None}

    # Once more: the worker is asked again for what it has.
    caller.begin("Call", **request)
    assert worker.push() == execute
    worker.tell("Outcome", call=call, value=result)
    reply = caller.reply()
    assert (reply if reply["type"] == "Finished" else caller.push())["value"] == result


def test_a_client_of_its_own_is_refused_in_words(wire: Wire, name: str) -> None:
    reply = wire.ask("Call", call=b"1", service=name, command="x", arguments=b"\x80", timeout_s=1)
    assert (reply["type"], reply["code"]) == ("Refused", "no_service")
    assert name in reply["reason"]
