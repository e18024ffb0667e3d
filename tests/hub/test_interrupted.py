"""A signal's handler may run between any two instructions of the main thread.

It is played by a trace function: at the n-th instruction of pyhub's own code it does
what a handler might, for each n until the work is done before its n-th instruction.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import pyhub
from pyhub import BrokerConfig, MessageHub, PyhubError
from pyhub.hub.client.service import Service
from pyhub.hub.client.watching import EventFeed
from tests.conftest import eventually

PACKAGE = str(Path(pyhub.__file__).parent)
# What is waited for in vain then: the test's own time is over before.
PATIENCE_S = 3600
# A broker that owes an answer is asked again after a second.
AGAIN_S = 8.0

# Every instruction, or some of them: a prime, so that loops are met everywhere.
STRIDES = [7, pytest.param(1, marks=pytest.mark.verify)]


class Handler:
    """Does something once, in the middle of something else."""

    def __init__(self, at: int, act: Callable[[], None], where: Callable[[FrameType], bool]):
        self._left = at
        self._act = act
        self._where = where
        self.was_called = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and self._where(frame):
            self._left -= 1
            if self._left == 0:
                self.was_called = True
                sys.settrace(None)
                self._act()
        return self

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        former = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(former)


def anywhere(frame: FrameType) -> bool:
    return True


def where_python_looks(frame: FrameType) -> bool:
    """Whether a handler may raise here: on entering, in a loop, after a call."""
    code, at = frame.f_code.co_code, frame.f_lasti
    here = dis.opname[code[at]]
    before = next(
        (dis.opname[code[n]] for n in range(at - 2, -1, -2) if dis.opname[code[n]] != "CACHE"), ""
    )
    return here in ("RESUME", "JUMP_BACKWARD") or before.startswith("CALL")


# --- What is interrupted ---


def ask(hub: MessageHub) -> None:
    hub.channels()


def call(hub: MessageHub) -> None:
    assert hub.call("there", "tell", number=next(numbers), timeout_s=AGAIN_S) is None


def set_state(hub: MessageHub) -> None:
    hub.state["interrupted/key"] = 1


def listen(hub: MessageHub) -> None:
    with hub.events("interrupted/own") as feed:
        hub.publish("interrupted/own", 1)
        feed.get()


def offer(hub: MessageHub) -> None:
    with hub.service("own") as service:
        service(ask)


WORK = [ask, call, set_state, listen, offer]
numbers = itertools.count()


@pytest.fixture
def told() -> list[int]:
    """What the other program's service was told."""
    return []


@pytest.fixture
def other(shared: BrokerConfig, told: list[int]) -> Iterator[MessageHub]:
    """Another program, with a service."""
    with MessageHub(shared) as hub:

        @hub.service("there")
        def tell(number: int) -> None:
            told.append(number)

        yield hub


# --- What a handler does ---


def double(x: int) -> int:
    return 2 * x


def close_the_hub(hub: MessageHub, service: Service) -> None:
    hub.close()


def close_a_service(hub: MessageHub, service: Service) -> None:
    service.close()


def call_a_service(hub: MessageHub, service: Service) -> None:
    try:
        assert hub.call("mine", "double", x=2, timeout_s=AGAIN_S) == 4
    except PyhubError as error:
        if "in the middle of its own work" not in str(error):
            raise


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("act", [close_the_hub, close_a_service, call_a_service])
@pytest.mark.parametrize("work", WORK)
def test_a_handler_may_come_at_any_instruction(
    shared: BrokerConfig,
    other: MessageHub,
    work: Callable[[MessageHub], None],
    act: Callable[[MessageHub, Service], None],
    stride: int,
) -> None:
    config = BrokerConfig(runtime_dir=shared.runtime_dir, autostart=False, timeout_s=PATIENCE_S)
    for at in itertools.count(1, stride):
        hub = MessageHub(config)
        service = hub.service("mine")
        service(double)
        handler = Handler(at, functools.partial(act, hub, service), anywhere)
        raised: Exception | None = None
        try:
            with handler.installed():
                work(hub)
        except PyhubError as error:
            raised = error
        # Nothing was waited for in vain.
        assert raised is None or re.search("was (closed|shut down)", str(raised)), at
        assert hub.is_closed == (act is close_the_hub and handler.was_called)
        assert service.is_closed == (act is not call_a_service and handler.was_called)
        hub.close()
        assert hub._connection._ended.wait(PATIENCE_S)
        if not handler.was_called:
            break
    assert at > 100


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("work", WORK)
def test_ctrl_c_at_any_instruction_leaves_the_hub_in_order(
    shared: BrokerConfig,
    other: MessageHub,
    told: list[int],
    work: Callable[[MessageHub], None],
    stride: int,
) -> None:
    config = BrokerConfig(runtime_dir=shared.runtime_dir, autostart=False, timeout_s=AGAIN_S)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with MessageHub(config) as hub, hub.events("interrupted/other") as feed:
        for at in itertools.count(1, stride):
            handler = Handler(at, interrupt, where_python_looks)
            try:
                with handler.installed():
                    work(hub)
            except KeyboardInterrupt:
                assert handler.was_called
            call(hub)  # all is well: it is answered,
            other.publish("interrupted/other", at)
            assert heard(feed, at), f"deaf after instruction {at}"  # and hears
            if not handler.was_called:
                break
        assert eventually(lambda: not hub._connection._waiting)
        # One that was interrupted where nobody had it yet, ends when its time is over.
        assert eventually(lambda: not hub._holdings.calls._pending, 2 * AGAIN_S)
    assert at > 30
    assert len(told) == len(set(told)), "a call was done twice"


def heard(feed: EventFeed, value: int) -> bool:
    """Whether that is heard; what came before may be heard as well."""
    deadline = time.monotonic() + AGAIN_S
    while feed.get(deadline - time.monotonic()).value != value:
        pass
    return True
