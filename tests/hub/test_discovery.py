"""Discovery: which channels and services there are, how they do, and waiting for them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest

from pyhub import BrokerConfig, ChannelInfo, InvalidName, MessageHub, WaitTimeout
from pyhub.errors import SegmentNotFound, ServiceNotFound
from pyhub.hub import protocol
from pyhub.hub.broker.registry import COMING_BACK_S, GONE_S, SILENT_S
from pyhub.hub.runtime import RuntimeDirectory
from tests.conftest import eventually
from tests.hub.conftest import Spawn, go_on, line

WATCHDOG_S = 30

PRODUCER = """
    import sys
    from pyhub import BrokerConfig, MessageHub

    config = BrokerConfig(runtime_dir=sys.argv[1], autostart=False, name="detector")
    with MessageHub(config) as hub:
        producer = hub.create_datablock_producer(sys.argv[2], dtype="u2", shape=(4, 4), slots=4)
        print("here", flush=True)
        input()
"""

WORKER = """
    import sys
    from pyhub import BrokerConfig, MessageHub

    with MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False)) as hub:
        @hub.service(sys.argv[2])
        def snap(exposure_s: float = 0.1, n: int = 1) -> bool:
            '''Take pictures.'''
            return True
        print("here", flush=True)
        input()
"""


def look_up(hub: MessageHub, name: str) -> protocol.Found:
    return hub._connection.ask(protocol.LookUp(name), protocol.Found)


def channel(hub: MessageHub, name: str) -> ChannelInfo:
    (found,) = [each for each in hub.channels() if each.name == name]
    return found


# --- Channels ---


def test_a_channel_is_told_with_who_has_it_where_and_who_may_attach(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn
) -> None:
    child = spawn(PRODUCER, shared.runtime_dir, name)
    assert line(child) == "here"
    found = channel(hub, name)
    assert (found.producer, found.pid, found.host) == ("detector", child.pid, os.uname().nodename)
    assert (found.kind, found.dtype, found.shape, found.n_slots) == ("datablock", "<u2", (4, 4), 4)
    assert found.endpoint == RuntimeDirectory(shared.runtime_dir).endpoint_of(name)
    assert found.access == f"uid {os.geteuid()} on {os.uname().nodename}, mode 0600"
    assert found.liveness == "live"
    assert look_up(hub, name).channel == hub.wait_for(name, 0)


def test_what_a_producer_counts_is_told_a_heartbeat_later(hub: MessageHub, name: str) -> None:
    producer = hub.create_datablock_producer(name, dtype="u1", shape=4, slots=2)
    n_published = 0
    assert eventually(lambda: channel(hub, name).metrics is not None, WATCHDOG_S)
    frame = np.zeros(4, "u1")
    is_over = threading.Event()

    def publish() -> None:
        nonlocal n_published
        while not is_over.wait(0.01):
            producer.put(frame)
            n_published += 1

    publishing = threading.Thread(target=publish)
    publishing.start()
    try:
        assert eventually(lambda: _rate_hz(hub, name) > 0, WATCHDOG_S)
    finally:
        is_over.set()
        publishing.join()
    assert eventually(lambda: _rate_hz(hub, name) == 0, WATCHDOG_S), "and it stops when it stops"
    metrics = channel(hub, name).metrics
    assert metrics is not None
    assert (metrics.n_frames, metrics.n_dropped) == (n_published, 0)


def _rate_hz(hub: MessageHub, name: str) -> float:
    metrics = channel(hub, name).metrics
    return 0.0 if metrics is None else metrics.rate_hz


def test_a_stopped_producer_is_silent_then_gone_and_back_when_it_goes_on(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn
) -> None:
    child = spawn(PRODUCER, shared.runtime_dir, name)
    assert line(child) == "here"
    steady = hub.create_datablock_producer(f"{name}s", dtype="u1", shape=1)
    with hub.events(f"hub/channel/{name}") as events:
        child.send_signal(signal.SIGSTOP)
        # Promise P2: a death that no kernel tells is seen within 4 s.
        seen: list[protocol.Found] = []

        def is_gone() -> bool:
            seen.append(look_up(hub, name))
            return seen[-1].status == "not_found"

        assert eventually(is_gone, WATCHDOG_S)
        silent = [each for each in seen if each.status == "pending"]
        assert silent, "it is in doubt before it is gone"
        assert f"its program (pid {child.pid} on" in silent[0].reason
        assert "misses its heartbeats" in silent[0].reason
        assert silent[0].channel is not None
        assert silent[0].channel.liveness == "silent"
        assert seen[-1].reason == "no program has registered a channel of that name"
        gone = events.get(WATCHDOG_S)
        assert (gone.value["what"], gone.value["why"]) == ("gone", "its program fell silent")
        assert channel(hub, steady.name).liveness == "live", "the control: who speaks is live"
        child.send_signal(signal.SIGCONT)
        assert hub.wait_for(name, WATCHDOG_S).liveness == "live"
        assert events.get(WATCHDOG_S).value["what"] == "registered"
    go_on(child)
    assert SILENT_S < GONE_S <= 3.5, "with a tick, within 4 s"


def test_what_is_not_there_is_pending_under_a_new_broker_and_not_found_under_an_old_one(
    config: BrokerConfig, name: str
) -> None:
    with MessageHub(config) as hub:
        found = look_up(hub, name)
        assert (found.status, found.channel) == ("pending", None)
        assert "still coming back" in found.reason
        assert found.endpoint, "whose notifications will be there"
        wait_s = COMING_BACK_S + WATCHDOG_S
        assert eventually(lambda: look_up(hub, name).status == "not_found", wait_s)


@pytest.mark.parametrize("bad", ["", "a/b", "*", "n" * 201])
def test_what_cannot_be_a_name_is_refused(hub: MessageHub, bad: str) -> None:
    for wait in (lambda: hub.wait_for(bad, 0), lambda: hub.wait_for_service(bad, 0)):
        with pytest.raises(InvalidName):
            wait()


# --- Waiting ---


def test_one_may_wait_for_a_channel_before_its_producer_is_there(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn
) -> None:
    found: list[ChannelInfo] = []
    waiting = threading.Thread(target=lambda: found.append(hub.wait_for(name, WATCHDOG_S)))
    waiting.start()
    pattern_is_watched: Callable[[], bool] = lambda: any(  # noqa: E731
        program.pid == os.getpid() and program.n_watches for program in hub.programs()[0]
    )
    assert eventually(pattern_is_watched)
    child = spawn(PRODUCER, shared.runtime_dir, name)
    waiting.join()
    assert line(child) == "here"
    assert (found[0].name, found[0].pid, found[0].producer) == (name, child.pid, "detector")
    go_on(child)


def test_who_waits_in_vain_is_told_what_the_broker_knows(hub: MessageHub, name: str) -> None:
    hub.create_datablock_producer(f"{name}x", dtype="u1", shape=1).close()
    producer = hub.create_datablock_producer(f"{name}y", dtype="u1", shape=1)
    with pytest.raises(WaitTimeout) as error:
        hub.wait_for(name, 0.01)
    message = str(error.value)
    assert f"channel {name!r} is not there after 0.01 s" in message
    assert f"The broker knows: {producer.name}." in message


# --- Services ---


def test_a_service_is_told_with_its_commands_and_how_busy_it_is(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn
) -> None:
    children = [spawn(WORKER, shared.runtime_dir, name) for _ in range(2)]
    assert [line(child) for child in children] == ["here", "here"]
    service = hub.wait_for_service(name, 0)
    assert service in hub.services()
    assert len(service.workers) == 2
    assert (service.capacity, service.n_running, service.n_waiting) == (2, 0, 0)
    (snap,) = service.commands
    assert (snap.name, snap.doc, snap.returns) == ("snap", "Take pictures.", "bool")
    assert [(p.name, p.type, p.default) for p in snap.parameters] == [
        ("exposure_s", "float", "0.1"),
        ("n", "int", "1"),
    ]
    go_on(children[0])
    assert eventually(lambda: len(hub.wait_for_service(name, 0).workers) == 1)
    go_on(children[1])


def test_one_may_wait_for_a_service_before_its_worker_is_there(
    hub: MessageHub, shared: BrokerConfig, name: str, spawn: Spawn
) -> None:
    child = spawn(WORKER, shared.runtime_dir, name)
    assert hub.wait_for_service(name, WATCHDOG_S).name == name
    assert hub.call(name, "snap") is True
    go_on(child)


def test_a_service_that_nobody_offers_is_told_with_those_there_are(
    hub: MessageHub, name: str
) -> None:
    hub.service(f"{name}x")(print_nothing)
    with pytest.raises(ServiceNotFound, match=f"nobody offers service {name!r} after 0") as error:
        hub.wait_for_service(name, 0)
    assert "There are: " in str(error.value)
    assert f"{name}x" in str(error.value)


def print_nothing() -> None:
    pass


def test_a_channel_whose_frames_are_elsewhere_is_said_to_be(hub: MessageHub, name: str) -> None:
    # As another host's program would register it.
    channel = ChannelInfo(
        name, "datablock", "<u2", (4, 4), 4, "ab" * 16, "elsewhere", 42,
        access="uid 1000 on elsewhere, mode 0600",
    )  # fmt: skip
    assert isinstance(hub._connection.wait(hub._connection.begin(protocol.Register(channel))),
                      protocol.Registered)  # fmt: skip
    with pytest.raises(SegmentNotFound, match=r"memory of uid 1000 on elsewhere.*\n.*do not leave"):
        hub.find_datablock_consumer(name, timeout_s=0.1)
    hub._connection.tell(protocol.Unregister(name, channel.segment_id))
