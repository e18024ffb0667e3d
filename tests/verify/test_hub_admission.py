"""Who has no right: nothing of theirs gets in, and nothing gets out to them, in any state."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pyhub import MessageHub
from pyhub.hub import protocol
from pyhub.hub.keys import KeyPair, read_keys
from tests.conftest import eventually
from tests.verify.brokers import (
    WATCHDOG_S,
    Harmed,
    Line,
    ask,
    broker,
    dialled,
    hear,
    hello,
    new_keys,
    say,
)

N_ATTEMPTS = 10  # of each of the 20 kinds
N_ATTEMPTS_VERIFY = 500
N_AT_ONCE = 50
# Nothing tells that nothing comes: so long it is given to come.
QUIET_MS = 300

# Writes down whose messages got in, and does to the decision what a file says.
FAULTS = """
    import pathlib, sys, time
    import zmq
    from pyhub.hub.broker.allow_list import AllowList
    from pyhub.hub.broker.server import Broker

    directory = pathlib.Path(sys.argv[-1]).parent
    got_in = open(directory / "got_in", "a", buffering=1)
    fault, contains, answer = directory / "fault", AllowList.__contains__, Broker._answer

    def faulty(self, key):
        what = fault.read_text() if fault.exists() else ""
        if what == "raised":
            raise RuntimeError("the list of keys is broken")
        while what == "hung":
            time.sleep(0.01)
            what = fault.read_text() if fault.exists() else ""
        return contains(self, key)

    def watched(self, peer, key, frame, n_more):
        got_in.write(key.decode() + "\\n")
        return answer(self, peer, key, frame, n_more)

    AllowList.__contains__, Broker._answer = faulty, watched
"""

STATES = ("running", "stopped", "raised", "hung")
WHO = ("no key", "wrong key", "wrong server key", "NULL", "other topic")

SECRET = "secret"
# What somebody without a right to it would do with it.
ATTEMPTS: list[protocol.RequestBody] = [
    protocol.GetState("secret/n"),
    protocol.SetState(b"change", "secret/n", b"\x01"),
    protocol.SetState(b"change", "open/n", b"\x01"),
    protocol.Watch(1, "state", "secret/n"),
    protocol.Watch(2, "events", "secret/n"),
    protocol.LookUp(SECRET),
    protocol.ReaderAttached(1, SECRET, "segment"),
    protocol.Call(b"call", SECRET, "run", b"\x80", 10.0),
    protocol.Offer(SECRET, [protocol.CommandInfo("run")]),
    protocol.Publish(b"event", "secret/n", b"\x01", "info", 1),
    protocol.ListPrograms(),
    protocol.Shutdown(),
]


class Prize:
    """What is secret, and what is open, in a broker; and whether anything happened to it."""

    def __init__(self, hub: MessageHub) -> None:
        self.hub = hub
        self.n_runs = 0
        hub.state["secret/n"] = "secret"
        hub.state["open/n"] = "open"
        self.producer = hub.create_datablock_producer(SECRET, dtype="u1", shape=4)
        hub.service(SECRET).command(self.run)
        self.before = self.as_it_is()

    def run(self) -> None:
        self.n_runs += 1

    def as_it_is(self) -> object:
        entries = [(e.key, e.value, e.version) for e in self.hub.state.entries("*/n")]
        return entries, [c.name for c in self.hub.channels()], self.n_runs

    def stir(self) -> None:
        """Have something happen that watchers of it would be told."""
        self.hub.publish("secret/n", "secret")


@contextlib.contextmanager
def in_state(harmed: Harmed, state: str) -> Iterator[None]:
    fault = harmed.directory / "fault"
    if state in ("raised", "hung"):
        fault.write_text(state)
    if state == "stopped":
        os.kill(harmed.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if state == "stopped":
            os.kill(harmed.pid, signal.SIGCONT)
        fault.unlink(missing_ok=True)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Harmed]:
    viewer = 'viewer\n    rights: {read: ["open/*"]}'
    with broker(tmp_path, clients={"viewer": viewer}, prelude=FAULTS) as harmed:
        yield harmed


def line_for(context: zmq.Context[Line], harmed: Harmed, who: str) -> Line:
    own, server_key = harmed.own_keys, harmed.file.public_key
    keys: dict[str, tuple[str | None, KeyPair | None]] = {
        "no key": (server_key, KeyPair("0" * 40, "0" * 40)),
        "wrong key": (server_key, new_keys()),
        "wrong server key": (new_keys().public, own),
        "NULL": (None, None),
        "other topic": (server_key, read_keys(harmed.directory / "viewer.key")),
    }
    return dialled(context, harmed.endpoint, *keys[who])


def intrude(harmed: Harmed, state: str, who: str, n_attempts: int, prize: Prize) -> None:
    """Let `who` try so often; nobody gets in, nothing gets out."""
    with zmq.Context() as context, contextlib.ExitStack() as lines, in_state(harmed, state):
        poller = zmq.Poller()
        for n in range(n_attempts):
            line = lines.enter_context(line_for(context, harmed, who))
            poller.register(line, zmq.POLLIN)
            for body in (hello("intruder"), ATTEMPTS[n % len(ATTEMPTS)]):
                with contextlib.suppress(zmq.Again):  # it was turned away already
                    line.send(protocol.encode(protocol.Request(1, body)), zmq.NOBLOCK)
        assert poller.poll(QUIET_MS) == []
        if state in ("running", "raised"):
            prize.stir()
            assert poller.poll(QUIET_MS) == []
        # ... and not later either: whoever tried is gone before it is mended.
    assert prize.as_it_is() == prize.before


def read_beyond(harmed: Harmed, n_attempts: int) -> None:
    """With the right key and another right: every single one is refused, none is answered."""
    with zmq.Context() as context, line_for(context, harmed, "other topic") as line:
        assert isinstance(ask(line, hello("viewer")), protocol.Welcome)
        for n in range(n_attempts):
            reply = ask(line, ATTEMPTS[n % len(ATTEMPTS)], n + 2)
            assert isinstance(reply, protocol.Refused), ATTEMPTS[n % len(ATTEMPTS)]
            assert reply.code == "not_allowed"
        assert ask(line, protocol.Goodbye()) == protocol.Done()


def who_got_in(harmed: Harmed) -> set[str]:
    return set((harmed.directory / "got_in").read_text().split())


def check(harmed: Harmed, n_attempts: int) -> None:
    with MessageHub(harmed.config) as hub:
        prize = Prize(hub)
        viewer = read_keys(harmed.directory / "viewer.key").public
        for state in STATES:
            for who in WHO:
                if (state, who) == ("running", "other topic"):
                    assert who_got_in(harmed) == {harmed.own_keys.public}
                    read_beyond(harmed, n_attempts)
                    continue
                for first in range(0, n_attempts, N_AT_ONCE):
                    intrude(harmed, state, who, min(N_AT_ONCE, n_attempts - first), prize)
                # The right keys get in again: it was no more than this state.
                answered(harmed)
        assert who_got_in(harmed) == {harmed.own_keys.public, viewer}
        assert prize.as_it_is() == prize.before
        prize.producer.close()


def answered(harmed: Harmed) -> None:
    with (
        zmq.Context() as context,
        dialled(context, harmed.endpoint, harmed.file.public_key, harmed.own_keys) as line,
    ):
        assert isinstance(ask(line, hello("right")), protocol.Welcome)
        assert ask(line, protocol.Goodbye()) == protocol.Done()


def test_nobody_without_a_right_gets_anything_in_or_out(guarded: Harmed) -> None:
    """Promise P9, in short: four states of the door by five ways to have no right."""
    check(guarded, N_ATTEMPTS)


@pytest.mark.verify
@pytest.mark.timeout(1200)
def test_ten_thousand_attempts_get_nothing_in_or_out(guarded: Harmed) -> None:
    """Promise P9: some 2 minutes."""
    check(guarded, N_ATTEMPTS_VERIFY)


def test_the_right_key_gets_in_in_running_and_in_no_other_state(guarded: Harmed) -> None:
    # The negative control: it is the state that keeps the right key out, and
    # the right that keeps the viewer from what it may not read.
    for state in STATES:
        with (
            zmq.Context() as context,
            dialled(context, guarded.endpoint, guarded.file.public_key, guarded.own_keys) as line,
            in_state(guarded, state),
        ):
            say(line, hello("right"))
            if state == "running":
                assert isinstance(hear(line).body, protocol.Welcome)
            else:
                assert not line.poll(QUIET_MS)
    with MessageHub(guarded.config) as hub:
        prize = Prize(hub)
        with MessageHub(guarded.from_afar("viewer")) as viewer:
            with viewer.events("*") as events, viewer.state.watch("*") as feed:
                assert [entry.key for entry in feed.taken()] == ["open/n"]
                hub.publish("secret/n", "secret")
                hub.state["secret/n"] = "more"
                hub.publish("open/n", "open")
                hub.state["open/n"] = "more"
                assert events.get(WATCHDOG_S).topic == "open/n"
                assert feed.get(WATCHDOG_S).key == "open/n"
                assert events.taken() == feed.taken() == []
            assert viewer.state["open/n"] == "more"
            assert [*viewer.channels(), *viewer.services()] == []
        prize.producer.close()


def test_each_refusal_is_counted_and_written_down(guarded: Harmed) -> None:
    log = guarded.runtime.path / "audit.log"
    with MessageHub(guarded.config) as hub, zmq.Context() as context:
        stranger = new_keys()
        with dialled(context, guarded.endpoint, guarded.file.public_key, stranger) as line:
            say(line, protocol.Ping())
            assert eventually(lambda: stranger.public[:8] in log.read_text(), WATCHDOG_S)
        assert hub.programs()[1]["refused: connections"] >= 1
        read_beyond(guarded, len(ATTEMPTS))
        assert hub.programs()[1]["refused: not_allowed"] == len(ATTEMPTS)
