"""Services that this program offers: functions that other programs call."""

from __future__ import annotations

import contextlib
import inspect
import os
import queue
import threading
import traceback
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import numpy as np

from pyhub.errors import AccessDenied, BrokerRefused, CallCancelled, PyhubError
from pyhub.hub import protocol
from pyhub.hub.client.connection import Connection
from pyhub.hub.client.outcomes import Outcomes
from pyhub.hub.client.session import Ask
from pyhub.hub.client.values import pack, unpack
from pyhub.hub.protocol import CommandInfo, Failure, ParameterInfo
from pyhub.names import check_name

__all__ = ["Job", "Service", "Services"]

F = TypeVar("F")

_MAX_HELD = 1000  # calls that one message names
# Of many commands the texts are cut shorter, until they fit into one message.
_DOC_BYTES = (1000, 200, 50, 0)


class Job:
    """The call that a command serves; given to commands with a parameter of this type.

    Attributes
    ----------
    caller
        Which program called.
    """

    def __init__(self, call: bytes, caller: str, connection: Connection) -> None:
        self.caller = caller
        self._call = call
        self._connection = connection
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the result any more: a good moment to end."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise `CallCancelled` if nobody waits any more."""
        if self.is_cancelled:
            raise CallCancelled("nobody waits for this call any more.")

    def wait(self, timeout_s: float) -> bool:
        """Sleep for so long, or until the call is cancelled; whether it was."""
        return self._cancelled.wait(timeout_s)

    def report(self, value: Any) -> None:
        """Tell the caller how far it is; any value that a flex zone may hold. Never waits."""
        packed = pack("the progress of a call", value)
        if self._connection.is_known:  # else nobody hears it, and it is not kept for later
            self._connection.put(Ask(protocol.Progress(self._call, packed), is_one_way=True))

    def _cancel(self) -> None:
        self._cancelled.set()


class Service:
    """Commands that this program does for others, under one name.

    Decorate functions with it, or give it an object, whose public methods are
    its commands. Several programs may offer the same service: they share the
    work. Calls are done in threads of its own, one at a time unless `threads`
    says otherwise. Arguments are checked against the functions' annotations.
    """

    def __init__(self, services: Services, name: str, threads: int) -> None:
        self.name = check_name(name)
        self.threads = threads
        self._services = services
        self._commands: dict[str, _Command] = {}
        self._jobs: queue.SimpleQueue[tuple[protocol.Execute, Job] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def __call__(self, target: F) -> F:
        """Offer a function, or an object's public methods; returns it as it is."""
        if isinstance(target, type):
            raise TypeError(
                f"{target.__name__} is a class, and nobody knows how to make one.\n"
                f"  Give an object: hub.service({self.name!r})({target.__name__}(...))"
            )
        if inspect.isroutine(target):
            self._offer({target.__name__: target})
        else:
            methods = {
                name: getattr(target, name)
                for name in dir(type(target))
                if not name.startswith("_") and inspect.isroutine(getattr(type(target), name))
            }
            if not methods:
                raise TypeError(f"{target!r} is no function, and has no public methods to offer.")
            self._offer(methods)
        return target

    def command(
        self, function: Any = None, *, name: str | None = None, idempotent: bool = False
    ) -> Any:
        """Offer a function by another name, or as one that may be done twice.

        Where a broker's end leaves it in doubt whether a call was done, a
        command that is `idempotent` is simply done again.
        """

        def offer(function: F) -> F:
            self._offer({name or function.__name__: function}, idempotent)  # type: ignore[attr-defined]
            return function

        return offer if function is None else offer(function)

    @property
    def commands(self) -> list[CommandInfo]:
        """What it offers."""
        return [command.info for command in self._commands.values()]

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    def close(self, wait: bool = True) -> None:
        """Take no more calls; those that have begun go on, and are waited for."""
        if self._is_closed:
            return
        self._is_closed = True
        self._services.withdraw(self)
        for _ in self._threads:
            self._jobs.put(None)
        if wait:
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join(self._services.timeout_s)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def put(self, execute: protocol.Execute, job: Job) -> None:
        """Have a call done by the next free thread."""
        self._jobs.put((execute, job))

    def offer(self) -> protocol.Offer:
        """Return the message that offers it."""
        for n_bytes in _DOC_BYTES:
            commands = [
                msgspec.structs.replace(command, doc=_cut(command.doc, n_bytes))
                for command in self.commands
            ]
            offer = protocol.Offer(self.name, commands, self.threads)
            if len(protocol.encode(protocol.Request(0, offer))) < protocol.MAX_MESSAGE_BYTES:
                break
        return offer

    def _offer(self, commands: dict[str, Any], idempotent: bool = False) -> None:
        if self._is_closed:
            raise PyhubError(f"service {self.name!r} was closed.\n  Ask the hub for a new one.")
        before = self._commands.copy()
        self._commands.update(
            {name: _Command(check_name(name), f, idempotent) for name, f in commands.items()}
        )
        while len(self._threads) < self.threads:
            thread = threading.Thread(target=self._work, name=f"pyhub-{self.name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        try:
            self._services.offer(self)
        except (AccessDenied, BrokerRefused):
            self._commands = before  # not to be offered to each broker again
            raise

    def _work(self) -> None:
        while (task := self._jobs.get()) is not None:
            execute, job = task
            self._services.done(self._do(execute, job))

    def _do(self, execute: protocol.Execute, job: Job) -> protocol.Outcome:
        command = self._commands.get(execute.command)
        try:
            if command is None:
                raise _BadArguments(f"no command {execute.command!r} any more")
            result = command(unpack(execute.arguments), job)
            if inspect.iscoroutine(result):
                import asyncio  # a program with such commands has it already

                result = asyncio.run(result)
            return protocol.Outcome(execute.call, pack("the result", result))
        except _BadArguments as error:
            failure = Failure("bad_arguments", _cut(str(error), 4000), "TypeError")
        except BaseException as error:  # whatever it was, somebody waits to be told
            text, kind = _cut(_text(error), 4000), _cut(type(error).__qualname__, 255)
            if isinstance(error, CallCancelled) and job.is_cancelled:
                failure = Failure("cancelled", text)
            else:
                failure = Failure("raised", text, kind, _traceback(error))
        return protocol.Outcome(execute.call, None, failure)


class Services:
    """The services of one hub's program."""

    def __init__(self) -> None:
        self._services: dict[str, Service] = {}
        self._jobs: dict[bytes, Job] = {}  # under way
        self._outcomes = Outcomes()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self.connection: Connection | None = None

    @property
    def timeout_s(self) -> float:
        """How long the end of a call is waited for when its service is closed."""
        return 10.0 if self.connection is None else self.connection.timeout_s

    def service(self, name: str, threads: int) -> Service:
        """Return this program's service of that name; make it first if there is none."""
        service = self._services.get(check_name(name))
        if service is None or service.is_closed:
            service = self._services[name] = Service(self, name, threads)
        elif service.threads != threads:
            raise PyhubError(
                f"service {name!r} works in {service.threads} threads, not in {threads}.\n"
                "  Say it when it is first asked for."
            )
        return service

    def offer(self, service: Service) -> None:
        """Tell the broker, and wait until it knows."""
        assert self.connection is not None
        self.connection.ask(service.offer(), protocol.Done)

    def withdraw(self, service: Service) -> None:
        """Tell the broker that a service takes no more calls."""
        if self._services.get(service.name) is service:
            del self._services[service.name]
        if self.connection is not None and service.commands:
            self.connection.tell(protocol.Withdraw(service.name))

    def introduction(self) -> list[Ask]:
        """Return what a broker has to be told of them: first, which calls are here."""
        offers = [service.offer() for service in list(self._services.values()) if service.commands]
        held = self.held() if offers or self._jobs or self._outcomes.calls() else []
        return [*held, *(Ask(offer, None, is_news=True) for offer in offers)]

    def held(self) -> list[Ask]:
        """Return what tells the broker which calls are here, under way or done."""
        with self._lock:
            calls = [*self._outcomes.calls(), *self._jobs]
        return [Ask(protocol.Hold(calls[-_MAX_HELD:]), None, is_news=True)]

    def take(self, body: protocol.Execute | protocol.Abort) -> None:
        """Take what the broker pushed."""
        if isinstance(body, protocol.Abort):
            job = self._jobs.get(body.call)
            if job is not None:
                job._cancel()
            return
        assert self.connection is not None
        with self._lock:
            kept = self._outcomes.get(body.call)
            is_new = kept is None and body.call not in self._jobs
            job = Job(body.call, body.caller, self.connection)
            service = self._services.get(body.service)
            if is_new and service is not None:
                self._jobs[body.call] = job
        if kept is not None:
            self.connection.put(Ask(kept, is_one_way=True))
        elif is_new and service is not None:
            service.put(body, job)
        elif is_new:
            failure = Failure("died", f"service {body.service!r} was closed; it had not begun")
            self.connection.put(Ask(protocol.Outcome(body.call, None, failure), is_one_way=True))

    def done(self, outcome: protocol.Outcome) -> None:
        """Keep what came of a call, and tell the broker."""
        with self._lock:
            self._jobs.pop(outcome.call, None)
            self._outcomes.keep(outcome)
        assert self.connection is not None
        self.connection.put(Ask(outcome, is_one_way=True))

    def close(self) -> None:
        """Close them all; what they are doing is not waited for."""
        if self._pid == os.getpid():
            for service in list(self._services.values()):
                service.close(wait=False)


class _BadArguments(Exception):
    pass


class _Command:
    """A function as it is called for others: looked at once, called often."""

    def __init__(self, name: str, function: Callable[..., Any], idempotent: bool) -> None:
        self.function = function
        self._signature = inspect.signature(function)
        hints = _hints(function)
        self._jobs = [each for each in self._signature.parameters if hints.get(each) is Job]
        self._hints = {each: hint for each, hint in hints.items() if hint is not Job}
        self.info = CommandInfo(
            name,
            _cut(inspect.getdoc(function) or "", 1000),
            [self._parameter(each) for each in self._signature.parameters.values()
             if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
             and each.name not in self._jobs],
            _type_text(self._signature.return_annotation),
            idempotent,
        )  # fmt: skip

    def __call__(self, arguments: Any, job: Job) -> Any:
        """Call it, with arguments that its annotations allow."""
        if not isinstance(arguments, dict):
            raise _BadArguments(f"arguments go by name, in a map; not {arguments!r:.80}")
        for name in self._jobs:
            arguments[name] = job
        try:
            bound = self._signature.bind(**arguments)
        except TypeError as error:
            raise _BadArguments(f"{error}; it takes {self._signature}") from None
        for name, value in bound.arguments.items():
            hint = self._hints.get(name)
            if hint is None or type(value) is hint:
                continue
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                converted: Any = {key: self._taken(key, each, hint) for key, each in value.items()}
            else:
                converted = self._taken(name, value, hint)
            bound.arguments[name] = converted
        return self.function(*bound.args, **bound.kwargs)

    def _taken(self, name: str, value: Any, hint: Any) -> Any:
        try:
            return _converted(value, hint)
        except msgspec.ValidationError as error:
            raise _BadArguments(f"{name}: {error}; it takes {self._signature}") from None

    def _parameter(self, parameter: inspect.Parameter) -> ParameterInfo:
        default = None if parameter.default is parameter.empty else repr(parameter.default)[:255]
        return ParameterInfo(parameter.name, _type_text(parameter.annotation), default)


def _converted(value: Any, hint: Any) -> Any:
    try:
        if isinstance(hint, type) and isinstance(value, hint):
            return value
        return msgspec.convert(value, hint)
    except TypeError:
        return value  # a type that msgspec has no idea of: the command's own matter
    except msgspec.ValidationError:
        if isinstance(value, np.generic):  # an element of an array, given as a number
            return msgspec.convert(value.item(), hint)
        raise


def _type_text(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return _cut(text, 255)


def _hints(function: Any) -> dict[str, Any]:
    """Return the types of those arguments whose annotations are types, here and now."""
    function = inspect.unwrap(function)
    scope = getattr(function, "__globals__", {})
    # A function within another one does not see what that one imported.
    local = {} if "Job" in scope else {"Job": Job}
    hints: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        # It may be a remark, or a name that only a type checker sees: then it
        # raises whatever it likes, and says nothing about the others.
        with contextlib.suppress(Exception):
            one = types.SimpleNamespace(__annotations__={name: annotation})
            hints |= typing.get_type_hints(one, scope, local, include_extras=True)
    return hints


def _traceback(error: BaseException) -> str:
    steps = list(traceback.extract_tb(error.__traceback__))
    # The first ones are ours: how the command was called.
    ours = [number for number, step in enumerate(steps) if step.filename == __file__]
    steps = steps[ours[-1] + 1 :] if ours else steps
    lines = [*traceback.format_list(steps), *traceback.format_exception_only(error)]
    return _cut("".join(lines), 16000, keep_end=True)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # its own text is a program, too
        return f"<its text cannot be had: {type(failure).__qualname__}>"


def _cut(text: str, n_bytes: int, keep_end: bool = False) -> str:
    """Return as much of `text` as a message has room for, and nothing that it cannot carry."""
    raw = text.encode(errors="backslashreplace")
    return (raw[-n_bytes:] if keep_end else raw[:n_bytes]).decode(errors="ignore")
