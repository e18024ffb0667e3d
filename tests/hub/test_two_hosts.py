"""Two hosts: programs of another one find what is here, and get what they have a right to.

Each host is a network namespace, joined to the other by a cable (veth). Where
the kernel lets nobody make one, in a container say, two loopback addresses of
this host stand for them, and a proxy for the cable.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyhub import MessageHub, ServiceDied
from tests.conftest import eventually
from tests.verify.brokers import (
    WATCHDOG_S,
    Harmed,
    Program,
    broker,
    line_of,
    new_keys,
    program,
    tell,
    write_site,
)
from tests.verify.chaos import Chaos, chaos

_numbers = itertools.count()

# A program of the other host. It does what it is told, line by line.
FAR = """
    import os, sys
    import pyhub
    from pyhub import BrokerConfig, MessageHub

    endpoint, server_key, key_file = sys.argv[1:]
    def config(server_key=server_key, key_file=key_file, timeout_s=30.0):
        return BrokerConfig(endpoint=endpoint, server_key=server_key, key_file=key_file,
            timeout_s=timeout_s, name="far")
    hub = None
    for line in sys.stdin:
        try:
            said = eval(line) if line.startswith("(") else exec(line)
        except pyhub.PyhubError as error:
            said = type(error).__name__
        print(said, flush=True)
"""


@dataclass
class Hosts:
    """Two hosts: how to run something on each, where the first one is, and the cable."""

    here: Sequence[str]
    there: Sequence[str]
    address: str
    cable: str | Chaos | None

    def pull(self, is_out: bool) -> None:
        """Pull the cable out of the other host, or put it in again."""
        if isinstance(self.cable, Chaos):
            self.cable.stall() if is_out else self.cable.flow()
        elif self.cable is not None:
            run(*self.there, "ip", "link", "set", self.cable, "down" if is_out else "up")


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def joined_namespaces(here: str, there: str) -> Hosts:
    """Make two namespaces and join them; `CalledProcessError` if that is forbidden."""
    cables = {here: f"{here}c", there: f"{there}c"}
    network = f"10.{os.getpid() % 250}.{next(_numbers) % 250}"
    run("ip", "netns", "add", here)
    run("ip", "netns", "add", there)
    run("ip", "link", "add", cables[here], "netns", here, "type", "veth",
        "peer", "name", cables[there], "netns", there)  # fmt: skip
    for number, (host, cable) in enumerate(cables.items(), 1):
        within = ("ip", "netns", "exec", host)
        run(*within, "ip", "address", "add", f"{network}.{number}/24", "dev", cable)
        run(*within, "ip", "link", "set", cable, "up")
        run(*within, "ip", "link", "set", "lo", "up")
    netns = ("ip", "netns", "exec")
    return Hosts((*netns, here), (*netns, there), f"{network}.1", cables[there])


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    tag = f"phb{os.getpid()}x{next(_numbers)}"
    names = (f"{tag}a"[-13:], f"{tag}b"[-13:])
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.callback(forget_namespace, name)
        try:
            found = joined_namespaces(*names)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            why = (getattr(error, "stderr", None) or str(error).encode()).decode().strip()
            print(f"no network namespaces here ({why}): two loopback addresses instead")
            found = Hosts((), (), "127.0.0.2", None)
        yield found


def forget_namespace(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # without ip, there is none
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


RIGHTS = {"far": "admin", "display": "viewer"}


@pytest.fixture
def near(hosts: Hosts, tmp_path: Path) -> Iterator[Harmed]:
    """The broker of the first host."""
    with broker(tmp_path, clients=RIGHTS, within=hosts.here, address=hosts.address) as harmed:
        yield harmed


@pytest.fixture
def far(hosts: Hosts, near: Harmed, tmp_path: Path) -> Iterator[Program]:
    """A program of the other host, with a runtime directory of its own, and not yet a hub."""
    own, shm = tmp_path / "far.run", tmp_path / "far.shm"
    shm.mkdir()
    with contextlib.ExitStack() as stack:
        endpoint = near.endpoint
        if hosts.cable is None:
            hosts.cable = stack.enter_context(chaos(endpoint))
            endpoint = hosts.cable.endpoint
        yield stack.enter_context(
            program(
                FAR, endpoint, near.file.public_key, tmp_path / "far.key",
                within=hosts.there, PYHUB_RUNTIME_DIR=str(own), PYHUB_SHM_DIR=str(shm),
            )
        )  # fmt: skip


def do(far: Program, what: str) -> str:
    """Have the other host's program do a line of Python; what came of it."""
    tell(far, what)
    return line_of(far)


def value(far: Program, what: str) -> object:
    """Return what an expression is there: a number or a text."""
    said = do(far, f"(repr({what}))")
    try:
        return eval(said, {"__builtins__": {}})
    except (SyntaxError, NameError):
        return said


CONNECT = "hub = MessageHub(config())"


def test_a_program_of_another_host_sees_the_channels_here(near: Harmed, far: Program) -> None:
    with MessageHub(near.config) as hub:
        producer = hub.create_datablock_producer("here", dtype="u2", shape=(3, 4))
        assert do(far, CONNECT) == "None"
        assert value(far, "[(c.name, c.dtype, c.shape) for c in hub.channels()]") == [
            ("here", "<u2", (3, 4))
        ]
        assert value(far, "hub.channels()[0].host") == os.uname().nodename
        # ... and those there are seen here, by notifications that stay there.
        assert do(far, "p = hub.create_datablock_producer('there', dtype='u1', shape=4)") == "None"
        assert [channel.name for channel in hub.channels()] == ["here", "there"]
        assert value(far, "[c.name for c in hub.channels()]") == ["here", "there"]
        do(far, "p.close()")
        assert eventually(lambda: [c.name for c in hub.channels()] == ["here"], WATCHDOG_S)
        producer.close()


def test_commands_state_and_events_pass_between_hosts(near: Harmed, far: Program) -> None:
    with MessageHub(near.config) as hub:
        hub.service("near").command(lambda n: n + 1, name="add")
        assert do(far, CONNECT) == "None"
        assert value(far, "hub.call('near', 'add', n=1)") == 2
        assert do(far, "hub.service('far').command(lambda n: n * 2, name='double')") == "None"
        assert hub.call("far", "double", n=21) == 42

        assert do(far, "feed = hub.state.watch('*')") == "None"
        hub.state["near/n"] = 7
        assert value(far, "feed.get(30).value") == 7
        assert do(far, "hub.state['far/n'] = 8") == "None"
        assert hub.state["far/n"] == 8

        assert do(far, "events = hub.events('door')") == "None"
        hub.publish("door", "open")
        assert value(far, "events.get(30).value") == "open"
        with hub.events("window") as events:
            assert do(far, "hub.publish('window', 'shut')") == "None"
            assert events.get(WATCHDOG_S).value == "shut"


def test_a_wrong_server_key_is_refused_by_the_program(near: Harmed, far: Program) -> None:
    wrong = new_keys().public
    assert do(far, f"MessageHub(config(server_key={wrong!r}, timeout_s=2))") == "BrokerUnreachable"
    assert do(far, CONNECT) == "None"  # the control: it was the key


def test_a_key_that_is_not_listed_is_refused_by_the_broker(
    hosts: Hosts, near: Harmed, far: Program
) -> None:
    do(far, "from pathlib import Path; from pyhub.hub.keys import create_key_files")
    do(far, "create_key_files(Path(key_file).with_name('stranger'))")
    do(far, "stranger = str(Path(key_file).with_name('stranger.key'))")
    assert do(far, "MessageHub(config(key_file=stranger, timeout_s=2))") == "BrokerUnreachable"
    assert "connection" in (near.runtime.path / "audit.log").read_text()
    clients = {**RIGHTS, "stranger": "viewer"}
    write_site(near.directory / "site.yaml", hosts.address, clients)
    # The control: once listed, it gets in, with a viewer's rights.
    assert do(far, "hub = MessageHub(config(key_file=stranger))") == "None"
    assert do(far, "hub.state['n'] = 1") == "AccessDenied"


def test_who_is_taken_off_the_list_is_forgotten_and_refused_without_a_restart(
    hosts: Hosts, near: Harmed, far: Program
) -> None:
    with MessageHub(near.config) as hub:
        assert do(far, CONNECT) == "None"
        do(far, "hub.service('far').command(lambda: None, name='nothing')")
        do(far, "feed = hub.state.watch('n')")
        assert [service.name for service in hub.services()] == ["far"]
        write_site(near.directory / "site.yaml", hosts.address, {"display": "viewer"})
        assert eventually(lambda: hub.services() == [], WATCHDOG_S)
        assert eventually(lambda: [p.name for p in hub.programs()[0]] != ["far"], WATCHDOG_S)
        hub.state["n"] = 1
        assert do(far, "hub.state['n'] = 2") == "AccessDenied"
        assert value(far, "len(feed.taken())") == 0
        assert hub.state["n"] == 1
        assert near.runtime.read_broker() == near.file
        # Back on the list, it is back by itself, with what it has.
        write_site(near.directory / "site.yaml", hosts.address, RIGHTS)
        assert hub.wait_for_service("far", WATCHDOG_S).name == "far"
        assert value(far, "feed.get(30).value") == 1


def test_a_host_whose_cable_is_pulled_is_forgotten_and_comes_back(
    hosts: Hosts, near: Harmed, far: Program
) -> None:
    with MessageHub(near.config) as hub:
        assert do(far, CONNECT) == "None"
        do(far, "import threading; begun = threading.Event()")
        do(far, "hub.service('far', threads=2).command(lambda: begun.wait(60), name='wait')")
        do(far, "feed = hub.state.watch('n')")
        call = hub.start_call("far", "wait", timeout_s=2 * WATCHDOG_S)
        assert eventually(lambda: sum(s.n_running for s in hub.services()) == 1, WATCHDOG_S)
        hosts.pull(is_out=True)
        with pytest.raises(ServiceDied):
            call.result()
        assert hub.services() == []
        hub.state["n"] = 5
        hosts.pull(is_out=False)
        assert hub.wait_for_service("far", WATCHDOG_S).name == "far"
        assert value(far, "feed.get(30).value") == 5
        do(far, "begun.set()")
        assert hub.call("far", "wait") is True
