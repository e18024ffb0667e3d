"""Who gets in: programs with the right keys, and nobody in any state of the broker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from pyhub import BrokerConfig
from pyhub.hub import protocol
from pyhub.hub.broker.server import secure
from pyhub.hub.broker.zap import ZAP_DOMAIN, ZAP_ENDPOINT, decide
from pyhub.hub.keys import KeyPair, load_or_create_keys
from pyhub.hub.runtime import RuntimeDirectory

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]

WATCHDOG_S = 30
# What a client's monitor says when it is not let in.
REFUSED = (
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.DISCONNECTED
)
LET_IN = zmq.Event.HANDSHAKE_SUCCEEDED


def new_keys() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def curve(server_key: str, keys: KeyPair) -> Callable[[Socket], None]:
    def set_up(line: Socket) -> None:
        line.curve_serverkey = server_key.encode()
        line.curve_publickey = keys.public.encode()
        line.curve_secretkey = keys.secret.encode()

    return set_up


def null(_: Socket) -> None:
    pass


def plain(line: Socket) -> None:
    line.plain_username = b"pyhub"
    line.plain_password = b"pyhub"


@pytest.fixture
def context() -> Iterator[Context]:
    with zmq.Context() as context:
        yield context


def knock(
    context: Context, endpoint: str, set_up: Callable[[Socket], None], message: bytes
) -> tuple[bool, bytes | None]:
    """Connect and send; whether one was let in, and the answer.

    Ends with the first event that says either, so nothing is timed.
    """
    with context.socket(zmq.DEALER) as line:
        line.linger = 0
        line.reconnect_ivl = -1  # one try
        set_up(line)
        with line.get_monitor_socket(REFUSED | LET_IN) as monitor:
            line.connect(endpoint)
            with contextlib.suppress(zmq.Again):  # it may have been refused already
                line.send(message, zmq.NOBLOCK)
            assert monitor.poll(WATCHDOG_S * 1000), "neither let in nor refused"
            event = recv_monitor_message(monitor)["event"]
            line.disable_monitor()
        is_in = event == LET_IN
        answer = line.recv() if line.poll(WATCHDOG_S * 1000 if is_in else 50) else None
        return is_in, answer


# --- The decision ---

KEYS = new_keys()
GOOD = [b"1.0", b"7", ZAP_DOMAIN, b"localhost", b"", b"CURVE", z85.decode(KEYS.public)]


def nobody_is_refused(who: str, address: str, why: str) -> None:
    raise AssertionError(f"{who} at {address} was refused: {why}")


def test_an_allowed_key_is_let_in_under_its_name() -> None:
    public = KEYS.public.encode()
    reply = decide(GOOD, {public}, nobody_is_refused)
    assert reply == [b"1.0", b"7", b"200", b"OK", public, b""]


@pytest.mark.parametrize(
    "request_frames",
    [
        [*GOOD[:6], z85.decode(new_keys().public)],
        [*GOOD[:6], b"\0" * 32],
        [*GOOD[:6], b"short"],
        [*GOOD[:6], b""],
        GOOD[:6],
        [*GOOD, GOOD[6]],
        [*GOOD[:5], b"NULL"],
        [*GOOD[:5], b"NULL", GOOD[6]],
        [*GOOD[:5], b"PLAIN", b"user", b"password"],
        [*GOOD[:2], b"", *GOOD[3:]],
        [*GOOD[:2], b"*", *GOOD[3:]],
        [b"2.0", *GOOD[1:]],
        GOOD[:1],
        [],
    ],
)
def test_anything_else_is_refused_for_good(request_frames: list[bytes]) -> None:
    refused: list[tuple[str, str, str]] = []
    reply = decide(request_frames, {KEYS.public.encode()}, lambda *told: refused.append(told))
    assert len(reply) == 6
    assert reply[2] in (b"400", b"500")  # 300 would have the client never try again
    # What could be read is told, once, and what could not be is logged.
    assert len(refused) == (reply[2] == b"400")


def test_of_a_refusal_it_is_told_who_from_where_and_why() -> None:
    stranger = new_keys()
    refused: list[tuple[str, str, str]] = []
    requests = [
        [*GOOD[:6], z85.decode(stranger.public)],
        [*GOOD[:3], b"10.0.0.9", b"", b"NULL"],
    ]
    for request in requests:
        decide(request, {KEYS.public.encode()}, lambda *told: refused.append(told))
    assert [(who, address) for who, address, _ in refused] == [
        (stranger.public, "localhost"),
        ("nobody", "10.0.0.9"),
    ]
    assert ["CURVE" in why for *_, why in refused] == [True, False]
    assert ["NULL" in why for *_, why in refused] == [False, True]


def test_who_cannot_be_told_of_a_refusal_lets_nobody_in() -> None:
    def fail(*told: str) -> None:
        raise OSError("no room for the audit log")

    reply = decide([*GOOD[:6], z85.decode(new_keys().public)], {KEYS.public.encode()}, fail)
    assert reply[2] == b"500"


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_no_request_makes_the_decision_fail(request_frames: list[bytes]) -> None:
    reply = decide(request_frames, {KEYS.public.encode()}, lambda *_: None)
    assert reply[2] in (b"400", b"500")


class Broken:
    """A list of keys that cannot be asked."""

    def __contains__(self, key: object) -> bool:
        raise RuntimeError("the list of keys is broken")


def test_an_error_while_deciding_lets_nobody_in() -> None:
    assert decide(GOOD, Broken(), nobody_is_refused)[2] == b"500"


# --- The broker ---


@pytest.fixture
def broker(shared: BrokerConfig) -> tuple[str, str, KeyPair]:
    """The shared broker's endpoint and public key, and the key that it allows."""
    runtime = RuntimeDirectory(shared.runtime_dir)
    found = runtime.read_broker()
    assert found is not None
    return found.endpoint, found.public_key, load_or_create_keys(runtime.key_path("client"))


PING = protocol.encode(protocol.Request(1, protocol.Ping()))


def test_the_right_keys_are_answered(context: Context, broker: tuple[str, str, KeyPair]) -> None:
    """Seed 18: CurveZMQ; the positive control of what follows."""
    endpoint, server_key, keys = broker
    is_in, answer = knock(context, endpoint, curve(server_key, keys), PING)
    assert is_in
    assert answer is not None
    assert protocol.decode_reply(answer).id == 1


@pytest.mark.parametrize("who", ["unknown key", "wrong server key", "NULL", "PLAIN"])
def test_others_are_never_answered(
    context: Context, broker: tuple[str, str, KeyPair], who: str
) -> None:
    """Seed 18: all broker traffic is CurveZMQ, and other traffic gets no answer."""
    endpoint, server_key, keys = broker
    set_up = {
        "unknown key": curve(server_key, new_keys()),
        "wrong server key": curve(new_keys().public, keys),
        "NULL": null,
        "PLAIN": plain,
    }[who]
    assert knock(context, endpoint, set_up, PING) == (False, None)


def test_a_refused_program_does_not_keep_the_others_out(
    context: Context, broker: tuple[str, str, KeyPair]
) -> None:
    endpoint, server_key, keys = broker
    for _ in range(50):
        knocked = context.socket(zmq.DEALER)
        knocked.linger = 0
        curve(server_key, new_keys())(knocked)
        knocked.connect(endpoint)
        knocked.close()
    assert knock(context, endpoint, curve(server_key, keys), PING)[0]


# --- Nobody at the door ---


def bind(router: Socket) -> str:
    """Bind to a free port; return where."""
    router.bind("tcp://127.0.0.1:*")
    endpoint = router.last_endpoint
    assert isinstance(endpoint, bytes)
    return endpoint.decode()


@pytest.fixture
def server(context: Context) -> Iterator[tuple[Socket, str, KeyPair]]:
    """A ROUTER that is secured as the broker's is, not yet bound; no doorman."""
    keys = new_keys()
    with context.socket(zmq.ROUTER) as router:
        secure(router, keys.secret)
        yield router, keys.public, new_keys()


def test_with_no_doorman_nobody_gets_in(
    context: Context, server: tuple[Socket, str, KeyPair]
) -> None:
    """Seed 18: it fails closed."""
    router, server_key, keys = server
    endpoint = bind(router)
    assert knock(context, endpoint, curve(server_key, keys), b"?") == (False, None)
    assert not router.poll(50)


@pytest.mark.parametrize("has_domain", [True, False], ids=["not enforced", "no domain"])
def test_without_our_settings_a_missing_doorman_lets_everybody_in(
    context: Context, has_domain: bool
) -> None:
    # The negative control: it is the domain and its enforcement that keep them out.
    server_keys = new_keys()
    with context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as line:
        router.linger = line.linger = 0
        router.curve_server = True
        router.curve_secretkey = server_keys.secret.encode()
        if has_domain:
            router.zap_domain = ZAP_DOMAIN
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 0 if has_domain else 1)
        endpoint = bind(router)
        curve(server_keys.public, new_keys())(line)
        line.connect(endpoint)
        line.send(b"?")
        assert router.poll(WATCHDOG_S * 1000)
        assert router.recv_multipart()[1:] == [b"?"]


def test_while_the_doorman_does_not_answer_nobody_gets_in(
    context: Context, server: tuple[Socket, str, KeyPair]
) -> None:
    """Seed 18: it fails closed when the handler hangs, too."""
    router, server_key, keys = server
    with context.socket(zmq.REP) as doorman, context.socket(zmq.DEALER) as line:
        doorman.linger = line.linger = 0
        doorman.bind(ZAP_ENDPOINT)
        endpoint = bind(router)
        curve(server_key, keys)(line)
        line.connect(endpoint)
        line.send(b"?")
        assert doorman.poll(WATCHDOG_S * 1000)  # somebody is at the door
        request = doorman.recv_multipart()
        assert not router.poll(200)
        # It was only the answer that was missing.
        doorman.send_multipart(decide(request, {keys.public.encode()}, nobody_is_refused))
        assert router.poll(WATCHDOG_S * 1000)
        assert router.recv_multipart()[1:] == [b"?"]


@pytest.mark.parametrize("status", [b"400", b"500", b"999", b""])
def test_an_answer_other_than_yes_lets_nobody_in(
    context: Context, server: tuple[Socket, str, KeyPair], status: bytes
) -> None:
    router, server_key, keys = server
    with context.socket(zmq.REP) as doorman, context.socket(zmq.DEALER) as line:
        doorman.linger = line.linger = 0
        doorman.bind(ZAP_ENDPOINT)
        endpoint = bind(router)
        line.reconnect_ivl = -1
        curve(server_key, keys)(line)
        with line.get_monitor_socket(REFUSED | LET_IN) as monitor:
            line.connect(endpoint)
            line.send(b"?")
            assert doorman.poll(WATCHDOG_S * 1000)
            version, request_id, *_ = doorman.recv_multipart()
            doorman.send_multipart([version, request_id, status, b"", b"", b""])
            assert monitor.poll(WATCHDOG_S * 1000)
            assert recv_monitor_message(monitor)["event"] & REFUSED
            line.disable_monitor()
        assert not router.poll(50)
