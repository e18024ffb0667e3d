"""Commands: functions that others call, with their arguments checked and their errors told."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import enum
import functools
import signal
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

import numpy as np
import numpy.typing as npt
import pytest
import zmq

from pyhub import BrokerConfig, ChannelClosed, InvalidName, Job, MessageHub, PyhubError
from pyhub.errors import BrokerRefused, CallCancelled, CommandFailed, ServiceNotFound
from pyhub.hub.client.service import Service
from tests.conftest import eventually
from tests.hub.conftest import Spawn, line

if TYPE_CHECKING:
    from decimal import Decimal  # a name that only a type checker sees

WATCHDOG_S = 30


@pytest.fixture
def worker(shared: BrokerConfig) -> Iterator[MessageHub]:
    """The hub of the program that offers commands."""
    with MessageHub(shared) as worker:
        yield worker


@pytest.fixture
def service(worker: MessageHub, name: str) -> Service:
    """A service of another program, without commands yet."""
    return worker.service(name)


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


@dataclasses.dataclass
class Region:
    x: int
    y: int = 0


# Their annotations are texts, as in any file that begins as this one does.


def takes_float(x: float) -> str:
    return repr(x)


def takes_int(x: int) -> str:
    return repr(int(x))


def takes_str(x: str) -> str:
    return repr(x)


def takes_optional(x: Optional[int] = 7) -> str:  # noqa: UP045  as users write it
    return repr(x)


def takes_union(x: int | str) -> str:
    return repr(x)


def takes_literal(x: Literal["on", "off"]) -> str:
    return repr(x)


def takes_list(x: list[int]) -> str:
    return repr(x)


def takes_tuple(x: tuple[int, float]) -> str:
    return repr(x)


def takes_dict(x: dict[str, list[float]]) -> str:
    return repr(x)


def takes_array(x: np.ndarray[Any, Any]) -> str:
    return repr(x.tolist())


def takes_typed_array(x: npt.NDArray[np.float64]) -> str:
    return repr(x.tolist())


def takes_any(x: Any) -> str:
    return repr(x)


def takes_untyped(x) -> str:  # type: ignore[no-untyped-def]
    return repr(x)


def takes_enum(x: Mode) -> str:
    return x.name


def takes_dataclass(x: Region) -> str:
    return repr(x)


def takes_time(x: dt.datetime) -> str:
    return x.isoformat()


def takes_keywords(**settings: float) -> str:
    return repr(settings)


def takes_unknown(x: float, y: Decimal | None = None) -> str:
    return repr(x)


NOW = dt.datetime(2026, 5, 17, 3, 4, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("command", "given", "taken"),
    [
        (takes_float, 0.1, "0.1"),
        (takes_float, 3, "3.0"),
        (takes_float, np.float32(0.5), "0.5"),
        (takes_int, 3, "3"),
        (takes_int, np.int64(3), "3"),
        (takes_str, "x", "'x'"),
        (takes_optional, None, "None"),
        (takes_optional, 3, "3"),
        (takes_union, "x", "'x'"),
        (takes_literal, "on", "'on'"),
        (takes_list, [1, 2], "[1, 2]"),
        (takes_list, (1, 2), "[1, 2]"),
        (takes_tuple, [1, 2], "(1, 2.0)"),
        (takes_dict, {"a": [1]}, "{'a': [1.0]}"),
        (takes_array, np.arange(3), "[0, 1, 2]"),
        (takes_typed_array, np.ones(2), "[1.0, 1.0]"),
        (takes_any, {"a": None}, "{'a': None}"),
        (takes_untyped, "x", "'x'"),
        (takes_enum, "fast", "FAST"),
        (takes_enum, Mode.SLOW.value, "SLOW"),
        (takes_dataclass, {"x": 1}, "Region(x=1, y=0)"),
        (takes_time, NOW, NOW.isoformat()),
        (takes_unknown, 3, "3.0"),
    ],
)
def test_an_argument_is_taken_as_its_annotation_says(
    hub: MessageHub, service: Service, command: Callable[..., str], given: object, taken: str
) -> None:
    service(command)
    assert hub.call(service.name, command.__name__, x=given) == taken


@pytest.mark.parametrize(
    ("command", "given", "why"),
    [
        (takes_float, "0.1", "Expected `float`, got `str`"),
        (takes_float, None, "Expected `float`, got `null`"),
        (takes_int, 0.5, "Expected `int`, got `float`"),
        (takes_str, 3, "Expected `str`, got `int`"),
        (takes_optional, "x", r"Expected `int \| null`, got `str`"),
        (takes_literal, "dim", "Invalid enum value 'dim'"),
        (takes_list, [1, "x"], r"Expected `int`, got `str` - at `\$\[1\]`"),
        (takes_tuple, [1], "Expected `array` of length 2, got 1"),
        (takes_array, [1, 2], "Expected `numpy.ndarray`, got `list`"),
        (takes_enum, "dim", "Invalid enum value 'dim'"),
        (takes_dataclass, {"y": 1}, "missing required field `x`"),
        (takes_unknown, "x", "Expected `float`, got `str`"),
    ],
)
def test_an_argument_of_another_type_is_refused_before_the_command_begins(
    hub: MessageHub, service: Service, command: Callable[..., str], given: object, why: str
) -> None:
    service(command)
    with pytest.raises(CommandFailed, match=rf"TypeError: x: .*{why}") as error:
        hub.call(service.name, command.__name__, x=given)
    assert f"it takes {'(x:'}" in str(error.value)
    assert (error.value.kind, error.value.traceback) == ("TypeError", "")


def test_keywords_are_taken_each_as_the_annotation_says(hub: MessageHub, service: Service) -> None:
    service(takes_keywords)
    assert hub.call(service.name, "takes_keywords", a=1, b=0.5) == "{'a': 1.0, 'b': 0.5}"
    assert hub.call(service.name, "takes_keywords") == "{}"
    with pytest.raises(CommandFailed, match="b: Expected `float`, got `str`"):
        hub.call(service.name, "takes_keywords", a=1, b="x")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "missing a required argument: 'x'"),
        ({"x": 1, "y": 2}, "got an unexpected keyword argument 'y'"),
    ],
)
def test_arguments_that_do_not_fit_are_told_with_what_it_takes(
    hub: MessageHub, service: Service, arguments: dict[str, int], why: str
) -> None:
    service(takes_float)
    with pytest.raises(CommandFailed, match=why) as error:
        hub.call(service.name, "takes_float", **arguments)
    assert "it takes (x: float) -> str" in str(error.value)


def test_what_is_not_given_has_its_default(hub: MessageHub, service: Service) -> None:
    service(takes_optional)
    assert hub.call(service.name, "takes_optional") == "7"


def test_arguments_may_have_the_names_that_a_call_has(hub: MessageHub, service: Service) -> None:
    @service.command
    def echo(self: int, service: int, command: int, name: int) -> list[int]:
        return [self, service, command, name]

    call = {"self": 1, "service": 2, "command": 3, "name": 4}
    assert hub.call(service.name, "echo", **call) == [1, 2, 3, 4]


@pytest.mark.parametrize("head", ["", "from __future__ import annotations\n"])
def test_a_command_may_ask_for_its_job_however_that_is_written(
    hub: MessageHub, service: Service, head: str
) -> None:
    code = """
    def make():
        from pyhub import Job

        def who(job: Job, x: int = 1) -> str:
            return f"{type(job).__name__} of {job.caller}: {x}"

        return who
    """
    scope: dict[str, Any] = {}
    exec(compile(head + textwrap.dedent(code), "commands.py", "exec", dont_inherit=True), scope)
    service(scope["make"]())
    assert hub.call(service.name, "who").startswith("Job of ")
    (info,) = service.commands
    assert [parameter.name for parameter in info.parameters] == ["x"], "callers do not give it"


@pytest.mark.parametrize("text", ["in mm", "m/s", "no such name", "x.y", "1 +"])
def test_an_annotation_that_is_no_type_is_only_a_remark(
    hub: MessageHub, service: Service, text: str
) -> None:
    def move(to, by: float = 0.0) -> Any:  # type: ignore[no-untyped-def]
        return [to, by]

    move.__annotations__["to"] = text
    service(move)
    assert hub.call(service.name, "move", to=1, by=2) == [1, 2.0]
    with pytest.raises(CommandFailed, match="by: Expected `float`"):
        hub.call(service.name, "move", to=1, by="x")


# --- Results and errors ---


@pytest.mark.parametrize("value", [None, 1, "x", [1, {"a": b"b"}], NOW], ids=repr)
def test_a_result_comes_back_as_it_was_returned(
    hub: MessageHub, service: Service, value: object
) -> None:
    service(takes_any)

    @service.command
    def give() -> Any:
        return value

    assert hub.call(service.name, "give") == value


def test_arrays_go_in_and_come_out(hub: MessageHub, service: Service) -> None:
    @service.command
    def double(image: np.ndarray[Any, Any]) -> Any:
        return image * 2

    image = np.arange(6, dtype="u2").reshape(2, 3)
    found = hub.call(service.name, "double", image=image)
    assert found.dtype == np.dtype("u2")
    np.testing.assert_array_equal(found, image * 2)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("no beam"), "ValueError", "no beam"),
        (KeyError("x"), "KeyError", "'x'"),
        (SystemExit(3), "SystemExit", "3"),
        (KeyboardInterrupt(), "KeyboardInterrupt", ""),
        (RuntimeError("🔭" * 20_000), "RuntimeError", "🔭"),
        (OSError("no file 'a\udcff'"), "OSError", "no file 'a"),
        (Unspeakable(), "Unspeakable", ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_told_with_its_traceback_and_the_next_call_is_done(
    hub: MessageHub, service: Service, error: BaseException, kind: str, message: str
) -> None:
    @service.command
    def fail() -> None:
        raise error

    for _ in range(2):
        with pytest.raises(CommandFailed, match=rf"{service.name}\.fail failed: {kind}") as found:
            hub.call(service.name, "fail")
        assert message in str(found.value)
        assert found.value.kind == kind
        assert "in fail" in found.value.traceback or len(found.value.traceback) > 3000
        assert "in _do" not in found.value.traceback
        assert found.value.__notes__[0].startswith("There:\n")


def test_a_call_that_a_command_made_and_that_was_cancelled_is_its_error(
    hub: MessageHub, service: Service
) -> None:
    @service.command
    def ask_others() -> None:
        raise CallCancelled("another call was cancelled.")

    with pytest.raises(CommandFailed, match="failed: CallCancelled: another call was cancelled"):
        hub.call(service.name, "ask_others")


def test_a_result_that_cannot_be_shared_is_an_error_of_the_command(
    hub: MessageHub, service: Service
) -> None:
    @service.command
    def give(what: str) -> Any:
        return {"set": {1}, "much": bytes(49 * 1024), "text": "\ud800"}[what]

    for what, kind in (("set", "CodecError"), ("much", "CapacityError"), ("text", "CodecError")):
        with pytest.raises(CommandFailed, match=rf"give failed: {kind}"):
            hub.call(service.name, "give", what=what)


def test_what_only_looks_like_a_function_is_called_by_position(
    hub: MessageHub, service: Service
) -> None:
    def scaled(x: int, y: float = 1.5) -> float:
        return x * y

    @functools.wraps(scaled)
    def wrapper(*arguments: Any) -> Any:
        return scaled(*arguments)

    service(wrapper)
    for arguments, result in (({"x": 2}, 3.0), ({"x": 2, "y": 2}, 4.0), ({"x": 2, "y": 2.0}, 4.0)):
        assert hub.call(service.name, "scaled", **arguments) == result


def test_a_command_that_awaits_is_awaited(hub: MessageHub, service: Service) -> None:
    @service.command
    async def wait(x: float) -> float:
        await asyncio.sleep(0)
        if x < 0:
            raise ValueError("negative")
        return x

    assert hub.call(service.name, "wait", x=2) == 2.0
    with pytest.raises(CommandFailed, match="ValueError: negative"):
        hub.call(service.name, "wait", x=-1)


# --- What may be offered ---


class Camera:
    """A camera."""

    exposure_s = 0.1

    def __init__(self) -> None:
        self.n_snaps = 0

    def snap(self, n: int = 1) -> int:
        """Take pictures."""
        self.n_snaps += n
        return self.n_snaps

    @staticmethod
    def model() -> str:
        return "simulated"

    @property
    def broken(self) -> None:
        raise AssertionError("a property is not to be asked")

    def _private(self) -> None: ...


def test_an_objects_public_methods_are_commands(hub: MessageHub, service: Service) -> None:
    camera = service(Camera())
    assert [command.name for command in service.commands] == ["model", "snap"]
    assert hub.call(service.name, "snap") == 1
    assert hub.call(service.name, "snap", n=4) == 5
    assert hub.call(service.name, "model") == "simulated"
    assert camera.n_snaps == 5
    for hidden in ("_private", "broken", "exposure_s"):
        with pytest.raises(ServiceNotFound, match="it has: model, snap"):
            hub.call(service.name, hidden)


@pytest.mark.parametrize("what", [Camera, object()])
def test_what_has_no_commands_is_refused(service: Service, what: Any) -> None:
    with pytest.raises(TypeError, match="no public methods|nobody knows how to make one"):
        service(what)


def test_a_command_may_have_another_name_and_be_replaced(hub: MessageHub, service: Service) -> None:
    service.command(takes_int, name="number", idempotent=True)
    assert hub.call(service.name, "number", x=3) == "3"
    (info,) = service.commands
    assert info.is_idempotent
    service.command(takes_float, name="number")
    assert hub.call(service.name, "number", x=3) == "3.0"
    with pytest.raises(InvalidName):
        service.command(takes_int, name="a/b")


def many(n: int, doc: str = "") -> Any:
    def method(self: object) -> int:
        return 7

    method.__doc__ = doc
    return type("Many", (), {f"command{number}": method for number in range(n)})()


def test_an_object_with_many_long_texts_is_offered(hub: MessageHub, service: Service) -> None:
    service(many(200, "Long. " + "日本語" * 300))
    assert hub.call(service.name, "command199") == 7
    assert len(hub.wait_for_service(service.name, 0).commands) == 200


def test_what_is_too_much_for_a_service_is_refused_and_the_hub_goes_on(
    hub: MessageHub, worker: MessageHub, service: Service
) -> None:
    with pytest.raises(PyhubError, match="256"):
        service(many(257))
    assert worker.services() is not None
    service = worker.service(f"{service.name}b")
    service(takes_int)
    assert hub.call(service.name, "takes_int", x=3) == "3"


def test_a_service_that_was_asked_for_twice_is_one(worker: MessageHub, name: str) -> None:
    service = worker.service(name, threads=2)
    assert worker.service(name, threads=2) is service
    with pytest.raises(PyhubError, match="has threads=2, exclusive=False; not 1, False"):
        worker.service(name)


# --- The end ---


def test_a_closed_service_takes_no_calls_and_ends_those_that_began(
    hub: MessageHub, worker: MessageHub, service: Service
) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    @service.command
    def wait() -> str:
        has_begun.set()
        assert may_end.wait(WATCHDOG_S)
        return "done"

    call = hub.start_call(service.name, "wait", timeout_s=WATCHDOG_S)
    assert has_begun.wait(WATCHDOG_S)
    closing = threading.Thread(target=service.close)
    closing.start()
    assert eventually(lambda: service.name not in [each.name for each in hub.services()])
    with pytest.raises(ServiceNotFound, match="no service"):
        hub.call(service.name, "wait")
    may_end.set()
    closing.join()
    assert call.result() == "done"
    with pytest.raises(PyhubError, match="Ask the hub for a new one"):
        service(takes_int)
    again = worker.service(service.name)
    again(takes_int)
    assert hub.call(service.name, "takes_int", x=3) == "3"
    service.close()


def test_a_service_may_be_closed_by_its_own_command(hub: MessageHub, service: Service) -> None:
    @service.command
    def leave() -> str:
        service.close()
        return "bye"

    assert hub.call(service.name, "leave") == "bye"
    assert eventually(lambda: service.is_closed)


def test_a_service_ends_with_its_hub(hub: MessageHub, worker: MessageHub, service: Service) -> None:
    with service:
        service(takes_int)
        worker.close()
        with pytest.raises(ServiceNotFound):
            hub.call(service.name, "takes_int", x=3)
        with pytest.raises(ChannelClosed):
            worker.service("another")
    assert eventually(lambda: not [t for t in threading.enumerate() if service.name in t.name])


def test_a_parameter_that_nobody_could_give_is_refused_when_it_is_offered(
    hub: MessageHub, name: str
) -> None:
    with pytest.raises(TypeError, match="which is the call's own"):

        @hub.service(name)
        def move(timeout_s: float) -> None:
            raise AssertionError


def test_a_message_shows_the_arguments_that_a_caller_gives_and_no_others(
    hub: MessageHub, name: str
) -> None:
    @hub.service(name)
    def move(position_mm: float, job: Job) -> float:
        return position_mm

    with pytest.raises(CommandFailed, match=r"it takes \(position_mm: float\) -> float"):
        hub.call(name, "move", position_mm="far")
    assert repr(hub.service(name)) == f"<Service {name}: move>"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_serves_ends_in_order_when_it_is_told_to(
    shared: BrokerConfig, spawn: Spawn, hub: MessageHub, name: str, end: signal.Signals
) -> None:
    child = spawn(
        """
        import sys, threading, traceback
        from pyhub import BrokerConfig, MessageHub

        with MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False)) as hub:
            @hub.service(sys.argv[2])
            def where() -> list[str]:
                main = sys._current_frames()[threading.main_thread().ident]
                return [frame.name for frame in traceback.extract_stack(main)]

            print("serves", flush=True)
            hub.serve()
            print("ended", flush=True)
        print(repr(hub).split(",")[0], flush=True)
        """,
        shared.runtime_dir,
        name,
    )
    assert line(child) == "serves"
    assert eventually(lambda: hub.call(name, "where")[1:] == ["serve", "wait_for_end"], 30)
    child.send_signal(end)
    assert line(child) == "ended"
    assert line(child) == "<MessageHub: closed"
    assert child.wait(30) == 0


def test_serving_ends_when_the_hub_is_closed(shared: BrokerConfig) -> None:
    hub = MessageHub(shared)
    threading.Timer(0.05, hub.close).start()
    hub.serve()
    assert hub.is_closed


def test_types_that_only_the_command_knows_are_its_own_matter(hub: MessageHub, name: str) -> None:
    @hub.service(name)
    def take(path: Path, gain: np.float64, many: list[float]) -> list[object]:
        return [str(path), float(gain), many]

    given = {"path": "/data", "gain": 2, "many": np.array([1.0, 2.0])}
    assert hub.call(name, "take", **given) == ["/data", 2.0, [1.0, 2.0]]
    given["many"] = [np.float64(1), 2]
    assert hub.call(name, "take", **given) == ["/data", 2.0, [1.0, 2.0]]
    with pytest.raises(CommandFailed, match="many"):
        hub.call(name, "take", **(given | {"many": ["x"]}))


def test_parameters_without_names_are_refused_when_they_are_offered(
    hub: MessageHub, name: str
) -> None:
    with pytest.raises(TypeError, match="arguments go by name"):

        @hub.service(name)
        def move(x: float, /) -> None:
            raise AssertionError


def test_threads_that_offer_at_once_make_one_service_of_all_commands(
    hub: MessageHub, name: str
) -> None:
    for number in range(20):
        start = threading.Barrier(4)

        def offer(n: int, number: int = number, start: threading.Barrier = start) -> None:
            def command() -> int:
                return n

            command.__name__ = f"c{n}"
            start.wait()
            hub.service(f"{name}{number}")(command)

        threads = [threading.Thread(target=offer, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        service = hub.service(f"{name}{number}")
        assert sorted(info.name for info in service.commands) == ["c0", "c1", "c2", "c3"]
        assert [hub.call(service.name, f"c{n}") for n in range(4)] == [0, 1, 2, 3]
        assert len(service._threads) == 1
        service.close()


def test_a_hub_may_have_as_many_sockets_as_there_are_descriptors(hub: MessageHub) -> None:
    assert hub._connection.context.get(zmq.MAX_SOCKETS) > 4096


def test_hardware_is_kept_to_one_program(hub: MessageHub, shared: BrokerConfig, name: str) -> None:
    other = MessageHub(shared)
    hub.service(name, exclusive=True)(works)
    with pytest.raises(BrokerRefused, match=r"is offered by .* \(pid \d+ on .*wants it for itself"):
        other.service(name)(works)
    assert other.call(name, "works") == "done"
    hub.service(name, exclusive=True).close()
    assert eventually(lambda: not hub.services())
    with MessageHub(shared) as third:
        third.service(name, exclusive=True)(works)
        assert hub.call(name, "works") == "done"
    other.close()


def works() -> str:
    return "done"
