"""Programs that watch anything and die: the broker lives, and has its memory back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhub import MessageHub
from tests.conftest import eventually
from tests.verify.brokers import (
    MEGABYTE,
    WATCHDOG_S,
    Harmed,
    broker,
    line_of,
    program,
    resident_bytes,
)

N_PROGRAMS = 6
N_PROGRAMS_VERIFY = 300
# The broker keeps 4,096 compiled patterns for whoever comes with them again: the
# long form begins when it has them; the short one has room for some.
N_WARM_UP = 3
N_WARM_UP_VERIFY = 30
MAX_GROWTH = 16 * MEGABYTE
MAX_GROWTH_VERIFY = 4 * MEGABYTE
MAX_WATCHES = 256

# Watches 1,000 patterns of up to 255 bytes, then speaks messages that are too long.
WATCHER = """
    import os, random, sys
    import zmq
    from pyhub.hub import protocol
    from pyhub.hub.keys import read_keys
    from pathlib import Path

    endpoint, server_key, key_file, seed = sys.argv[1:]
    chance, keys = random.Random(int(seed)), read_keys(Path(key_file))
    line = zmq.Context().socket(zmq.DEALER)
    line.linger = 0
    line.sndhwm = line.rcvhwm = 10_000
    line.curve_serverkey = server_key.encode()
    line.curve_publickey, line.curve_secretkey = keys.public.encode(), keys.secret.encode()
    line.connect(endpoint)

    def ask(body, request_id=1):
        line.send(protocol.encode(protocol.Request(request_id, body)))
        while (reply := protocol.decode_reply(line.recv())).id != request_id:
            pass
        return reply.body

    def pattern():
        letters = "ab*?[c]/.é\\U0001f600"
        text = "".join(chance.choice(letters) for _ in range(chance.randint(1, 255)))
        while len(text.encode()) > 255:
            text = text[:-1]
        return text

    ask(protocol.Hello(protocol.PROTOCOL, "elsewhere", os.getpid(), 0, "", "watcher"))
    said = [ask(protocol.Watch(n + 1, chance.choice(["state", "events"]), pattern()), n + 2)
            for n in range(1000)]
    taken = sum(isinstance(each, protocol.Watching) for each in said)
    refused = {each.code for each in said if isinstance(each, protocol.Refused)}
    print(taken, *sorted(refused), flush=True)
    for _ in range(10):
        line.send(b"x" * 2**20)
    print("said", flush=True)
    line.poll()
"""


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Harmed]:
    with broker(tmp_path) as harmed:
        yield harmed


def watch_and_die(harmed: Harmed, hub: MessageHub, seed: int) -> None:
    arguments = (harmed.endpoint, harmed.file.public_key, harmed.runtime.key_path("client"), seed)
    with program(WATCHER, *arguments) as watcher:
        n_taken, *refused = line_of(watcher).split()
        assert int(n_taken) <= MAX_WATCHES
        assert "too_many" in refused
        # It is there, and is told of what happens, while it watches.
        hub.state[f"a/{seed % 7}"] = seed
        hub.publish("b", seed)
        assert line_of(watcher) == "said"
        watcher.kill()
    hub.state["n"] = seed
    assert hub.state["n"] == seed


def check(harmed: Harmed, n_warm_up: int, n_programs: int, max_growth: int) -> None:
    with MessageHub(harmed.config) as hub:
        for seed in range(n_warm_up):
            watch_and_die(harmed, hub, seed)
        assert eventually(lambda: len(hub.programs()[0]) == 1, WATCHDOG_S)
        size = resident_bytes(harmed.pid)
        for seed in range(n_programs):
            watch_and_die(harmed, hub, 1000 + seed)
        assert eventually(lambda: len(hub.programs()[0]) == 1, WATCHDOG_S)
        growth = resident_bytes(harmed.pid) - size
        print(f"{n_programs} watchers that died: the broker grew by {growth / MEGABYTE:.1f} MiB")
        assert growth < max_growth
        assert harmed.runtime.read_broker() == harmed.file


def test_who_watches_anything_and_dies_leaves_nothing_in_the_broker(watched: Harmed) -> None:
    """Promise P11, in short."""
    check(watched, N_WARM_UP, N_PROGRAMS, MAX_GROWTH)


@pytest.mark.verify
@pytest.mark.timeout(1800)
def test_hundreds_who_watch_anything_and_die_leave_nothing_in_the_broker(
    watched: Harmed,
) -> None:
    """Promise P11: some 5 minutes."""
    check(watched, N_WARM_UP_VERIFY, N_PROGRAMS_VERIFY, MAX_GROWTH_VERIFY)


def test_watches_are_not_free_while_their_program_lives(watched: Harmed) -> None:
    # The negative control: there is something to have back.
    with MessageHub(watched.config) as hub:
        watch = hub.state.watch("*")
        assert [each.n_watches for each in hub.programs()[0]] == [1]
        watch.close()
        assert [each.n_watches for each in hub.programs()[0]] == [0]
