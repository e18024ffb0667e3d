"""The broker: one a directory, there when it is needed, gone when not, and hard to end."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from pyhub import (
    BrokerConfig,
    BrokerUnreachable,
    DataBlockConsumer,
    DataBlockProducer,
    MessageHub,
    PyhubError,
)
from pyhub._core import process_lease
from pyhub.hub import protocol
from pyhub.hub.broker.registry import Program
from pyhub.hub.broker.rights import Client
from pyhub.hub.broker.server import Broker
from pyhub.hub.broker.site import read_site
from pyhub.hub.keys import load_or_create_keys
from pyhub.hub.protocol import MAX_MESSAGE_BYTES, ReplyBody, RequestBody
from pyhub.hub.runtime import BrokerFile, RuntimeDirectory
from pyhub.names import lease_path
from tests.conftest import eventually
from tests.hub.conftest import FOREGROUND, Spawn, go_on, line, stopped, wait_until_gone

Line = zmq.Socket[bytes]

WATCHDOG_S = 30
# What a broker leaves behind: keys and locks are for the next one.
LEFT = {
    "audit.log", "broker.key", "broker.lock", "broker.log", "client.key", "start.lock", "state.db",
}  # fmt: skip

# Several programs at once: each waits for the signal, makes a hub, and says
# which broker it found.
MEET = """
    import os, sys
    from pyhub import BrokerConfig, MessageHub

    hold, release = os.pipe()
    for _ in range(int(sys.argv[2])):
        if os.fork() == 0:
            os.close(release)
            os.read(hold, 1)
            with MessageHub(BrokerConfig(runtime_dir=sys.argv[1], linger_s=0.3)) as hub:
                os.write(1, (hub._connection.epoch + "\\n").encode())
                sys.stdin.readline()
            os._exit(0)
    os.close(hold)
    os.close(release)
    while True:
        try:
            assert os.wait()[1] == 0
        except ChildProcessError:
            break
    print("done", flush=True)
"""

# A program with a channel and a reader of it.
CLIENT = """
    import sys
    from pyhub import BrokerConfig, MessageHub

    hub = MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False))
    producer = hub.create_datablock_producer(sys.argv[2], dtype="u1", shape=4)
    consumer = hub.find_datablock_consumer(sys.argv[2])
    reader = hub.find_datablock_consumer(sys.argv[3]) if len(sys.argv) > 3 else None
    hub.channels()
    print("ready", flush=True)
    input()
    hub.close()
    print("closed", flush=True)
    input()
"""


def read_broker(config: BrokerConfig) -> BrokerFile:
    assert config.runtime_dir is not None
    broker = RuntimeDirectory(config.runtime_dir).read_broker()
    assert broker is not None
    return broker


def names(hub: MessageHub) -> list[str]:
    return [channel.name for channel in hub.channels()]


@contextmanager
def raw_line(config: BrokerConfig) -> Iterator[Line]:
    """A connection with the right keys, to say anything over."""
    broker = read_broker(config)
    keys = load_or_create_keys(RuntimeDirectory(config.runtime_dir).key_path("client"))
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.curve_serverkey = broker.public_key.encode()
        dealer.curve_publickey = keys.public.encode()
        dealer.curve_secretkey = keys.secret.encode()
        dealer.connect(broker.endpoint)
        yield dealer


def receive(dealer: Line) -> ReplyBody:
    assert dealer.poll(WATCHDOG_S * 1000), "no answer"
    return protocol.decode_reply(dealer.recv()).body


def ask(dealer: Line, body: RequestBody) -> ReplyBody:
    dealer.send(protocol.encode(protocol.Request(1, body)))
    return receive(dealer)


def hello(version: int = protocol.PROTOCOL) -> protocol.Hello:
    leases = lease_path()
    return protocol.Hello(
        version, socket.gethostname(), os.getpid(), process_lease(leases), str(leases)
    )


# --- One broker ---


def test_a_hub_starts_a_broker_and_the_next_hub_finds_it(config: BrokerConfig) -> None:
    """Seed 11: ZeroMQ with a central broker, whose life is looked after."""
    with MessageHub(config) as first:
        broker = read_broker(config)
        assert broker.pid != os.getpid()
        with MessageHub(config) as second:
            assert read_broker(config) == broker
            assert names(first) == names(second) == []


def test_the_broker_is_no_child_of_whoever_started_it(config: BrokerConfig) -> None:
    with MessageHub(config):
        status = Path(f"/proc/{read_broker(config).pid}/status").read_text()
        assert f"\nPPid:\t{os.getpid()}\n" not in status
        with pytest.raises(ChildProcessError):
            os.waitpid(read_broker(config).pid, os.WNOHANG)


def test_a_broker_does_not_take_the_users_files_for_modules(
    config: BrokerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("signal", "logging", "zmq", "pyhub"):
        (tmp_path / f"{module}.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    with MessageHub(config) as hub:
        assert names(hub) == []


@pytest.mark.parametrize("n_programs", [2, 10])
def test_programs_that_start_at_once_end_up_with_one_broker(
    config: BrokerConfig, spawn: Spawn, n_programs: int
) -> None:
    programs = spawn(MEET, config.runtime_dir, n_programs)
    epochs = [line(programs) for _ in range(n_programs)]
    assert set(epochs) == {read_broker(config).epoch}
    assert programs.stdin is not None
    programs.stdin.close()
    programs.stdin = None
    assert line(programs) == "done"


def test_a_broker_ends_when_its_last_program_has_gone_and_leaves_keys_and_locks(
    config: BrokerConfig, runtime: Path
) -> None:
    with MessageHub(config) as hub, MessageHub(config) as other:
        producer = hub.create_datablock_producer("ends", dtype="u1", shape=4)
        consumer = other.find_datablock_consumer("ends")
        assert {path.name for path in runtime.iterdir()} > LEFT | {"broker.json", "broker.sock"}
        producer.close()
        consumer.close()
        keys = [load_or_create_keys(runtime / f"{who}.key") for who in ("broker", "client")]
    wait_until_gone(runtime)
    assert {path.name for path in runtime.iterdir()} == LEFT
    with MessageHub(config):  # the next one has the same keys
        assert read_broker(config).public_key == keys[0].public
    assert [load_or_create_keys(runtime / f"{who}.key") for who in ("broker", "client")] == keys


def test_a_broker_stays_for_as_long_as_a_program_is_there(
    config: BrokerConfig, runtime: Path
) -> None:
    # The negative control of lingering: another broker's whole life passes.
    with MessageHub(config):
        broker = read_broker(config)
        other = runtime / "other"
        with MessageHub(BrokerConfig(runtime_dir=other, linger_s=config.linger_s)):
            pass
        wait_until_gone(other)
        assert read_broker(config) == broker


def test_its_log_tells_of_its_life_and_of_no_secret(config: BrokerConfig, runtime: Path) -> None:
    with MessageHub(config):
        pass
    wait_until_gone(runtime)
    log = (runtime / "broker.log").read_text()
    assert "listens on" in log
    for who in ("broker", "client"):
        assert load_or_create_keys(runtime / f"{who}.key").secret not in log


def test_a_second_broker_in_the_foreground_is_refused(
    shared: BrokerConfig, spawn: Spawn, hub: MessageHub
) -> None:
    broker = read_broker(shared)
    assert line(spawn(FOREGROUND, shared.runtime_dir)) == "refused"
    assert Broker(RuntimeDirectory(shared.runtime_dir)).run() is False
    assert read_broker(shared) == broker
    assert names(hub) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_broker_that_is_told_to_end_leaves_keys_and_locks(
    runtime: Path, number: signal.Signals
) -> None:
    directory = RuntimeDirectory(runtime)
    patient = BrokerConfig(runtime_dir=runtime, linger_s=3600.0)
    broker = directory.find_broker(patient, time.monotonic() + WATCHDOG_S)
    os.kill(broker.pid, number)
    wait_until_gone(runtime)
    assert {path.name for path in runtime.iterdir()} == LEFT


def test_a_broker_waits_for_the_one_that_is_just_leaving(runtime: Path, spawn: Spawn) -> None:
    # That one tells nobody where it is any more, but still has the lock.
    directory = RuntimeDirectory(runtime)
    with directory.lock("broker.lock", 0.0) as is_ours:
        assert is_ours
        spawn(
            """
            import sys
            from pyhub.hub.broker.server import Broker
            from pyhub.hub.runtime import RuntimeDirectory
            print("starts", flush=True)
            Broker(RuntimeDirectory(sys.argv[1]), 0.1).run(60.0)
            """,
            runtime,
        )
        assert not eventually(lambda: (runtime / "broker.json").exists(), 0.3)
    assert eventually(lambda: (runtime / "broker.json").exists(), WATCHDOG_S)
    wait_until_gone(runtime)


def test_a_broker_that_has_no_descriptor_left_ends_all_the_same(
    runtime: Path, spawn: Spawn
) -> None:
    broker = spawn(
        """
        import resource, signal, sys
        from pyhub.hub.broker.server import Broker
        from pyhub.hub.runtime import RuntimeDirectory

        def end(*_):
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            broker.stop()

        broker = Broker(RuntimeDirectory(sys.argv[1]))
        signal.signal(signal.SIGTERM, end)
        print("runs" if broker.run() else "refused", flush=True)
        """,
        runtime,
    )
    directory = RuntimeDirectory(runtime)
    assert eventually(lambda: directory.read_broker() is not None, WATCHDOG_S)
    broker.terminate()
    assert line(broker) == "runs"
    assert broker.wait(WATCHDOG_S) == 0
    assert directory.read_broker() is None  # what it left behind tells of a dead one


def test_a_port_in_use_is_named_with_what_to_do(runtime: Path, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        endpoint = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        config = tmp_path / "broker.yaml"
        config.write_text(f'listen: ["{endpoint}"]\n')
        with pytest.raises(PyhubError, match="Choose another one under `listen`") as raised:
            Broker(RuntimeDirectory(runtime), site=read_site(config)).run()
    assert endpoint in str(raised.value)
    assert "in use" in str(raised.value)
    assert not (runtime / "broker.json").exists()
    assert Broker(RuntimeDirectory(runtime), 0.0, read_site(config)).run()  # now it is free


# --- Programs that die ---


@pytest.mark.parametrize(
    ("host", "lease_file", "is_own", "is_removed"),
    [
        ("here", "own", True, True),
        ("elsewhere", "own", True, False),
        ("here", "/dev/shm/pyhub.1.leases", True, False),
        ("here", "own", False, False),
    ],
    ids=["own", "of another host", "of another lease file", "of another user"],
)
def test_of_programs_that_are_elsewhere_no_socket_here_is_removed(
    runtime: Path, host: str, lease_file: str, is_own: bool, is_removed: bool
) -> None:
    directory = RuntimeDirectory(runtime)
    path = Path(directory.endpoint_of("cam1").removeprefix("ipc://"))
    path.touch()
    greeting = protocol.Hello(
        protocol.PROTOCOL,
        socket.gethostname() if host == "here" else host,
        os.getpid(),
        1,
        str(lease_path()) if lease_file == "own" else lease_file,
    )
    client = Client("somebody", "producer", {}, "its key", is_own)
    program = Program(1, client, greeting, protocol.PROTOCOL, 0.0)
    Broker(directory)._forget_sockets([("cam1", program)])
    assert path.exists() != is_removed


def test_a_killed_program_is_forgotten_with_its_channels_readers_and_sockets(
    shared: BrokerConfig, hub: MessageHub, spawn: Spawn, name: str
) -> None:
    runtime = RuntimeDirectory(shared.runtime_dir)
    producer = hub.create_datablock_producer(name, dtype="u1", shape=4)
    clients = {kind: spawn(CLIENT, runtime.path, kind, name) for kind in ("killed", "stopped")}
    for client in clients.values():
        assert line(client) == "ready"
    assert hub.n_readers(name) == 2
    assert names(hub) == sorted([name, "killed", "stopped"])
    with stopped(clients["stopped"].pid):
        clients["killed"].kill()
        assert eventually(lambda: "killed" not in names(hub), WATCHDOG_S)
        # The negative control: who only does not speak is there still.
        assert names(hub) == sorted([name, "stopped"])
        assert hub.n_readers(name) == 1
    assert not Path(runtime.endpoint_of("killed").removeprefix("ipc://")).exists()
    assert Path(runtime.endpoint_of("stopped").removeprefix("ipc://")).exists()
    go_on(clients["stopped"])
    assert line(clients["stopped"]) == "closed"
    assert eventually(lambda: names(hub) == [name], WATCHDOG_S)
    assert hub.n_readers(name) == 0
    producer.close()


# --- Brokers that die ---


def test_when_the_broker_is_killed_frames_flow_on_and_all_register_with_one_new_broker(
    config: BrokerConfig, runtime: Path, spawn: Spawn
) -> None:
    with MessageHub(config) as hub:
        former = read_broker(config)
        producer = hub.create_datablock_producer("here", dtype="u1", shape=4)
        clients = [spawn(CLIENT, runtime, f"there{n}", "here") for n in range(2)]
        assert [line(client) for client in clients] == ["ready", "ready"]
        consumer = hub.find_datablock_consumer("here")

        os.kill(former.pid, signal.SIGKILL)
        for number in range(20):  # nobody waits for a broker
            producer.put(np.full(4, number, "u1"), {"number": number})
            frame = consumer.read(timeout_s=WATCHDOG_S)
            assert (frame.data[0], frame.flex, frame.n_lost) == (number, {"number": number}, 0)

        everything = {"here": 3, "there0": 1, "there1": 1}
        assert eventually(
            lambda: {c.name: c.n_readers for c in hub.channels()} == everything, WATCHDOG_S
        )
        new = read_broker(config)
        assert new.epoch != former.epoch
        # Exactly one: who has the lock is the one that all talk to.
        with MessageHub(config) as fourth:
            assert {c.name for c in fourth.channels()} == set(everything)
        assert read_broker(config) == new
        consumer.close()
        assert hub.n_readers("here") == 2
        for client in clients:
            go_on(client)
            assert line(client) == "closed"
        # Their goodbyes, and this question, come over three lines.
        assert eventually(lambda: names(hub) == ["here"])


def test_a_stopped_broker_is_unreachable_at_the_deadline_and_frames_flow_on(
    config: BrokerConfig, runtime: Path
) -> None:
    with MessageHub(
        BrokerConfig(runtime_dir=runtime, linger_s=config.linger_s, timeout_s=1.0)
    ) as hub:
        producer = hub.create_datablock_producer("here", dtype="u1", shape=4)
        consumer = hub.find_datablock_consumer("here")
        assert hub.n_readers("here") == 1
        broker = read_broker(config)
        with stopped(broker.pid):
            with pytest.raises(BrokerUnreachable) as error:
                hub.channels()
            for part in (
                "within 1 s",
                str(runtime / "broker.log"),
                f"kill -9 {broker.pid}",
                "flow on",
            ):
                assert part in str(error.value)
            for number in range(20):
                producer.put(np.full(4, number, "u1"))
                assert consumer.read(timeout_s=WATCHDOG_S).frame_id == number
            # What only tells the broker of something does not wait for it.
            producer.close()
            consumer.close()
        assert eventually(lambda: answers(hub), WATCHDOG_S)
        assert names(hub) == []


def answers(hub: MessageHub) -> bool:
    try:
        hub.channels()
    except BrokerUnreachable:
        return False
    return True


def test_a_broker_that_was_stopped_for_a_while_still_knows_everybody(
    config: BrokerConfig, runtime: Path
) -> None:
    with MessageHub(
        BrokerConfig(runtime_dir=runtime, linger_s=config.linger_s, timeout_s=1.0)
    ) as hub:
        held: list[DataBlockProducer | DataBlockConsumer] = [
            hub.create_datablock_producer("here", dtype="u1", shape=4),
            hub.find_datablock_consumer("here"),
        ]
        assert hub.n_readers("here") == 1
        broker = read_broker(config)
        with stopped(broker.pid):
            with pytest.raises(BrokerUnreachable):
                hub.create_datablock_producer("other", dtype="u1", shape=4)
            # ... and its name is free again.
            DataBlockProducer.create("other", dtype="u1", shape=4).close()
        assert eventually(lambda: answers(hub), WATCHDOG_S)
        # It was greeted again, and told all of it, but nothing of the other.
        assert [(c.name, c.n_readers) for c in hub.channels()] == [("here", 1)]
        assert read_broker(config) == broker
        assert not any(channel.is_closed for channel in held)


def test_closing_does_not_wait_for_a_stopped_broker(config: BrokerConfig, runtime: Path) -> None:
    patient = BrokerConfig(runtime_dir=runtime, linger_s=config.linger_s, timeout_s=3600.0)
    hub = MessageHub(patient)
    producer = hub.create_datablock_producer("here", dtype="u1", shape=4)
    consumer = hub.find_datablock_consumer("here")
    with stopped(read_broker(config).pid):
        hub.close()
    assert producer.is_closed
    assert consumer.is_closed


def test_when_keys_were_removed_and_the_broker_ended_new_ones_serve_everybody(
    config: BrokerConfig, runtime: Path
) -> None:
    # As the refusal of a loose key file says.
    with MessageHub(config) as hub, hub.create_datablock_producer("here", 4, 4):
        former = read_broker(config)
        for who in ("broker", "client"):
            (runtime / f"{who}.key").unlink()
        os.kill(former.pid, signal.SIGTERM)
        assert eventually(lambda: RuntimeDirectory(runtime).read_broker() != former, WATCHDOG_S)
        assert names(hub) == ["here"]
        assert read_broker(config).public_key != former.public_key


# --- Programs that talk nonsense ---


def test_a_program_of_another_protocol_is_refused_over_the_wire(shared: BrokerConfig) -> None:
    with raw_line(shared) as dealer:
        reply = ask(dealer, hello(protocol.PROTOCOL + 2))
        assert isinstance(reply, protocol.Refused)
        assert reply.code == "protocol"
        reply = ask(dealer, protocol.ListChannels())  # it is as if it had said nothing
        assert isinstance(reply, protocol.Refused)
        assert reply.code == "no_hello"


def raw(body: object, request_id: object = 1) -> bytes:
    return msgspec.msgpack.encode({"id": request_id, "body": body})


HELLO = {"type": "Hello", "protocol": 1, "host": socket.gethostname(), "pid": 1}


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"", raw({"type": "Ping"})],  # two frames
        [raw({"type": "Ping"})] * 100,
        [b"\xc1" * 100],
        [b"\x91" * (MAX_MESSAGE_BYTES - 100)],
        [raw({"type": "NoSuchMessage"})],
        [raw({"type": "LookUp", "name": "n" * 60_000})],
        [raw({"type": "LookUp", "name": "\x1b[2J\n"})],
        # These were let through, and then ended the broker in its next tick.
        [raw(HELLO | {"lease": -1, "lease_file": str(lease_path())})],
        [raw(HELLO | {"lease": 2**64 - 1, "lease_file": str(lease_path())})],
    ],
    ids=lambda frames: f"{len(frames)}x{frames[-1][:20]!r}",
)
def test_nonsense_is_refused_with_a_short_reason(shared: BrokerConfig, frames: list[bytes]) -> None:
    broker = read_broker(shared)
    with raw_line(shared) as dealer:
        assert isinstance(ask(dealer, hello()), protocol.Welcome)
        dealer.send_multipart(frames)
        reply = receive(dealer)
        assert isinstance(reply, protocol.Refused)
        assert reply.code == "bad_message"
        assert len(reply.reason) <= 200
        assert ask(dealer, protocol.Goodbye()) == protocol.Done()
    assert read_broker(shared) == broker


def test_a_message_of_a_later_version_is_refused_under_its_own_id(shared: BrokerConfig) -> None:
    with raw_line(shared) as dealer:
        assert isinstance(ask(dealer, hello()), protocol.Welcome)
        for sent, answered in ((raw({"type": "Later", "x": 1}, 77), 77), (b"\xc1", 0)):
            dealer.send(sent)
            assert dealer.poll(WATCHDOG_S * 1000)
            reply = protocol.decode_reply(dealer.recv())
            assert reply.id == answered
            assert isinstance(reply.body, protocol.Refused)
        assert ask(dealer, protocol.Goodbye()) == protocol.Done()


def test_an_oversize_message_ends_its_own_line_only(shared: BrokerConfig, hub: MessageHub) -> None:
    with raw_line(shared) as dealer, raw_line(shared) as other:
        assert isinstance(ask(dealer, hello()), protocol.Welcome)
        assert isinstance(ask(other, hello()), protocol.Welcome)
        with dealer.get_monitor_socket(zmq.Event.DISCONNECTED) as monitor:
            dealer.send(b"x" * (MAX_MESSAGE_BYTES + 1))
            assert monitor.poll(WATCHDOG_S * 1000)
            dealer.disable_monitor()
        for each in (other, dealer):  # ZeroMQ connects it again by itself
            ask(each, protocol.Goodbye())
    assert names(hub) == []


def mutated(frame: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged[: rng.randint(1, len(damaged))])


def test_thirty_thousand_malformed_frames_change_nothing(
    shared: BrokerConfig, hub: MessageHub, name: str
) -> None:
    rng = random.Random(20)
    broker = read_broker(shared)
    producer = hub.create_datablock_producer(name, dtype="u1", shape=4)
    consumer = hub.find_datablock_consumer(name)
    channel = protocol.ChannelInfo(name, "datablock", "|u1", (4,), 4, "s", "h", 1)
    # None of these may change what is known, however it is damaged: a damaged
    # Register may be a good one of another name.
    templates = [
        protocol.encode(protocol.Request(1, body))
        for body in (
            protocol.Unregister(name, producer.header().segment_id),
            protocol.LookUp(name),
            protocol.ReaderDetached(0),
            protocol.ListChannels(),
            protocol.Ping(),
        )
    ]
    kinds: list[Callable[[], bytes]] = [
        lambda: rng.randbytes(rng.randint(0, 64)),
        lambda: mutated(rng.choice(templates), rng),
        lambda: raw({"type": rng.choice(["Register", "Hello", "X", 1]), "channel": name}),
        lambda: raw({"type": "Register", "channel": [channel.name] * rng.randint(0, 9)}),
        lambda: raw({"type": "ReaderAttached", "reader": rng.random(), "name": name}),
        lambda: raw([{}] * rng.randint(0, 50), rng.choice([None, -1, "x", [], 2**64 - 1])),
    ]
    n_frames = 30_000
    with raw_line(shared) as dealer:
        assert isinstance(ask(dealer, hello()), protocol.Welcome)
        n_answers = 0
        for number in range(n_frames):
            dealer.send(rng.choice(kinds)())
            # As many on their way as fit: the broker drops what one does not read.
            while dealer.poll(0) or number - n_answers >= 500:
                receive(dealer)
                n_answers += 1
        while n_answers < n_frames:
            receive(dealer)
            n_answers += 1
        assert ask(dealer, protocol.Goodbye()) == protocol.Done()
    assert read_broker(shared) == broker
    assert [(c.name, c.n_readers) for c in hub.channels()] == [(name, 1)]
    producer.put(np.arange(4, dtype="u1"))
    assert consumer.read(timeout_s=WATCHDOG_S).frame_id == 0


def test_a_broker_lives_on_when_programs_come_and_go_in_the_middle(
    shared: BrokerConfig, hub: MessageHub
) -> None:
    broker = read_broker(shared)
    for _ in range(30):
        lines: list[AbstractContextManager[Line]] = [raw_line(shared) for _ in range(3)]
        for opened in lines:
            with opened as dealer:
                dealer.send(protocol.encode(protocol.Request(1, hello())))
    assert eventually(lambda: names(hub) == [])
    assert read_broker(shared) == broker


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", None])
def test_a_broker_whose_file_is_damaged_writes_it_again(
    config: BrokerConfig, runtime: Path, content: bytes | None
) -> None:
    with MessageHub(config) as hub:
        broker = read_broker(config)
        file = runtime / "broker.json"
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        assert eventually(lambda: RuntimeDirectory(runtime).read_broker() == broker, WATCHDOG_S)
        with MessageHub(config) as other:
            assert names(other) == names(hub) == []
