"""Programs that stop and networks that fail: the broker forgets them, and they come back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyhub import BrokerConfig, MessageHub, ServiceDied, WaitTimeout
from tests.conftest import eventually
from tests.verify.brokers import (
    WATCHDOG_S,
    Harmed,
    Program,
    broker,
    line_of,
    program,
    stopped,
    tell,
)
from tests.verify.chaos import Chaos, chaos

# A program elsewhere: it offers a service whose "slow" never ends by itself, and
# watches a key of the state.
FAR = """
    import sys, threading
    from pathlib import Path
    import pyhub
    from pyhub import Job

    runtime_dir, endpoint, server_key, key_file, done = sys.argv[1:]
    hub = pyhub.MessageHub(pyhub.BrokerConfig(runtime_dir=runtime_dir, endpoint=endpoint,
        server_key=server_key, key_file=key_file, name="far"))
    service = hub.service("far", threads=4)

    @service
    def slow(job: Job) -> None:
        print("slow", flush=True)
        job.wait(60)

    @service
    def echo(value):
        with open(done, "a") as file:
            file.write(f"{value}\\n")
        return value

    feed = hub.state.watch("near/n")
    print("up", flush=True)
    for wanted in sys.stdin:
        while feed.get(60).value != int(wanted):
            pass
        print("seen", flush=True)
"""


@pytest.fixture
def beset(tmp_path: Path) -> Iterator[Harmed]:
    with broker(tmp_path, clients={"far": "producer", "op": "operator"}) as harmed:
        yield harmed


@contextlib.contextmanager
def far_program(harmed: Harmed, endpoint: str = "") -> Iterator[Program]:
    config = harmed.from_afar("far", endpoint)
    with program(
        FAR, harmed.runtime.path, config.endpoint, config.server_key, config.key_file,
        harmed.directory / "done",
    ) as far:  # fmt: skip
        assert line_of(far) == "up"
        yield far


def is_known(hub: MessageHub) -> bool:
    return any(service.name == "far" for service in hub.services())


def forgotten(hub: MessageHub, harm: Callable[[], None]) -> float:
    """Do harm while `far.slow` is under way; that call fails, and far is forgotten.

    Returns how long that took, in s.
    """
    with hub.events("hub/program/*") as events:
        call = hub.start_call("far", "slow", timeout_s=2 * WATCHDOG_S)
        wait_until_begun(hub)
        begun = time.monotonic()
        harm()
        with pytest.raises(ServiceDied):
            call.result()
        took_s = time.monotonic() - begun
        while events.get(WATCHDOG_S).value["what"] != "gone":
            pass
    assert not is_known(hub)
    return took_s


def wait_until_begun(hub: MessageHub) -> None:
    """Wait until the call that was just made is with its worker."""
    assert eventually(lambda: sum(s.n_running for s in hub.services()) == 1, WATCHDOG_S)


def comes_back(hub: MessageHub, far: Program, n: int) -> None:
    """It is there again by itself, takes calls, and sees what was set meanwhile."""
    assert hub.wait_for_service("far", WATCHDOG_S).name == "far"
    assert hub.call("far", "echo", value=n, timeout_s=WATCHDOG_S) == n
    tell(far, str(n))
    said = line_of(far)
    while said == "slow":
        said = line_of(far)
    assert said == "seen"


def test_a_stopped_program_is_forgotten_and_comes_back(beset: Harmed) -> None:
    """Promise: within 4 s; printed, as no test asserts that a time was short."""
    with MessageHub(beset.config) as hub, far_program(beset) as far:
        hub.state["near/n"] = 0
        with contextlib.ExitStack() as stop:
            took_s = forgotten(hub, lambda: stop.enter_context(stopped(far.pid)))
            hub.state["near/n"] = 1
        print(f"a stopped program was forgotten after {took_s:.2f} s")
        comes_back(hub, far, 1)


HARMS: dict[str, Callable[[Chaos], None]] = {
    "stalled": Chaos.stall,
    "cut": Chaos.cut,
}


@pytest.mark.parametrize("harm", HARMS)
def test_who_cannot_be_reached_is_forgotten_and_comes_back(beset: Harmed, harm: str) -> None:
    with MessageHub(beset.config) as hub, chaos(beset.endpoint) as proxy:
        hub.state["near/n"] = 0
        with far_program(beset, proxy.endpoint) as far:
            for n in (1, 2):
                took_s = forgotten(hub, lambda: HARMS[harm](proxy))
                hub.state["near/n"] = n
                print(f"a program behind a {harm} line was forgotten after {took_s:.2f} s")
                proxy.flow()
                comes_back(hub, far, n)


def test_a_reset_line_costs_nothing(beset: Harmed) -> None:
    """It is back before it is missed: its calls go on, each is done once."""
    with MessageHub(beset.config) as hub, chaos(beset.endpoint) as proxy:
        hub.state["near/n"] = 0
        with far_program(beset, proxy.endpoint) as far:
            for n in range(1, 6):
                call = hub.start_call("far", "echo", value=n, timeout_s=WATCHDOG_S)
                proxy.reset()
                assert call.result() == n
                hub.state["near/n"] = n
                comes_back(hub, far, n)
    done = (beset.directory / "done").read_text().split()
    # comes_back() calls it once more.
    assert sorted(done) == sorted(str(n) for n in range(1, 6) for _ in range(2))


def test_a_delay_of_200_ms_harms_nothing(beset: Harmed) -> None:
    with MessageHub(beset.config) as hub, chaos(beset.endpoint) as proxy:
        proxy.delay_s = 0.2
        with far_program(beset, proxy.endpoint) as far, hub.events("hub/program/*") as events:
            begun = time.monotonic()
            calls = [
                hub.start_call("far", "echo", value=n, timeout_s=WATCHDOG_S) for n in range(20)
            ]
            assert [call.result() for call in calls] == list(range(20))
            assert time.monotonic() - begun > 0.4  # it was delayed: both ways
            hub.state["near/n"] = 7
            comes_back(hub, far, 7)
            # Longer than a silent program is kept: nobody was taken for gone.
            with pytest.raises(WaitTimeout):
                events.get(5.0)
    done = (beset.directory / "done").read_text().split()
    assert sorted(done, key=int) == sorted([*map(str, range(20)), "7"], key=int)


def test_a_caller_behind_a_stalled_line_has_its_call_end(beset: Harmed) -> None:
    with MessageHub(beset.config) as hub, chaos(beset.endpoint) as proxy:
        service = hub.service("near", threads=2)
        served = []

        @service
        def count(n: int) -> int:
            served.append(n)
            return n

        config = beset.from_afar("op", proxy.endpoint)
        assert config.endpoint == proxy.endpoint
        with MessageHub(BrokerConfig(**vars(config))) as caller:
            assert caller.call("near", "count", n=0) == 0
            proxy.stall()
            call = caller.start_call("near", "count", n=1, timeout_s=WATCHDOG_S)
            short = caller.start_call("near", "count", n=2, timeout_s=0.5)
            with pytest.raises(WaitTimeout):
                short.result()
            proxy.flow()
            assert call.result() == 1
        assert sorted(served) in ([0, 1], [0, 1, 2])
