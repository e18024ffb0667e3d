"""Services that this program offers: functions that other programs call."""

from __future__ import annotations

import inspect
import logging
import math
import operator
import os
import queue
import threading
from typing import Any, TypeVar

import msgspec

from pyhub._handover import Lock
from pyhub.errors import BrokerUnreachable, CallCancelled, ForkedHandle, PyhubError
from pyhub.hub import protocol
from pyhub.hub.client.command import BadArguments, Command
from pyhub.hub.client.connection import Connection
from pyhub.hub.client.failures import cut, raised
from pyhub.hub.client.job import Job
from pyhub.hub.client.outcomes import Outcomes
from pyhub.hub.client.session import Ask
from pyhub.hub.client.values import pack, unpack
from pyhub.hub.protocol import CommandInfo, Failure, ReplyBody
from pyhub.names import check_name

__all__ = ["Service", "Services"]

_log = logging.getLogger("pyhub.hub")

F = TypeVar("F")

_AGAIN_S = 2.0  # after which a service that the broker had no room for is offered once more
_MAX_HELD = 1000  # calls that one message names
# Of many commands the texts are cut shorter, until they fit into one message.
_DOC_BYTES = (1000, 200, 50, 0)


class Service:
    """Commands that this program does for others, under one name.

    Decorate functions with it, or give it an object, whose public methods are
    its commands. Several programs may offer the same service: they share the
    work. Calls are done in threads of its own, one at a time unless `threads`
    says otherwise. Arguments are checked against the functions' annotations.
    """

    def __init__(self, services: Services, name: str, threads: int, exclusive: bool) -> None:
        self.name = check_name(name, "service")
        self.threads = threads
        self.exclusive = exclusive
        self._services = services
        self._commands: dict[str, Command] = {}
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
        return [command.info for command in list(self._commands.values())]

    def __repr__(self) -> str:
        return f"<Service {self.name}: {', '.join(self._commands) or 'no commands yet'}>"

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    def close(self, wait: bool = True) -> None:
        """Take no more calls; those that have begun go on, and are waited for."""
        with self._services.lock:  # what was put before is done, and nothing comes after
            if self._is_closed:
                return
            self._is_closed = True
            for _ in self._threads:
                self._put(None)
        self._services.withdraw(self)
        # Not in a handler that interrupted what they need to end.
        if wait and not self._services.is_amid:
            for thread in self._threads:
                if thread is not threading.current_thread() and thread.ident is not None:
                    thread.join(self._services.timeout_s)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def put(self, execute: protocol.Execute, job: Job) -> None:
        """Have a call done by the next free thread."""
        self._put((execute, job))

    def _put(self, task: tuple[protocol.Execute, Job] | None) -> None:
        self._jobs.put(task)
        if self._services.connection is not None:
            self._services.connection.nudge()

    def offer(self) -> protocol.Offer:
        """Return the message that offers it."""
        for n_bytes in _DOC_BYTES:
            commands = [
                msgspec.structs.replace(command, doc=cut(command.doc, n_bytes))
                for command in self.commands
            ]
            offer = protocol.Offer(self.name, commands, self.threads, self.exclusive)
            if len(protocol.encode(protocol.Request(0, offer))) < protocol.MAX_MESSAGE_BYTES:
                break
        return offer

    def _offer(self, commands: dict[str, Any], idempotent: bool = False) -> None:
        with self._services.lock:
            before = self._take_in(commands, idempotent)
        try:
            self._services.offer(self)
        except BaseException as error:
            if not isinstance(error, BrokerUnreachable | KeyboardInterrupt):
                self._commands = before  # not to be offered to each broker again
            raise

    def _take_in(self, commands: dict[str, Any], idempotent: bool) -> dict[str, Command]:
        """Have these commands as well; returns those that it had."""
        if self._is_closed:
            raise PyhubError(f"service {self.name!r} was closed.\n  Ask the hub for a new one.")
        before = self._commands
        # Another dictionary, as the hub's thread may be looking at the former one.
        self._commands = before | {
            name: Command(check_name(name, "command"), f, idempotent)
            for name, f in commands.items()
        }
        # A Ctrl-C may have come before a thread's start.
        self._threads = [thread for thread in self._threads if thread.ident is not None]
        while len(self._threads) < self.threads:
            thread = threading.Thread(target=self._work, name=f"pyhub-{self.name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        if self.is_closed:  # meanwhile, in a signal's handler: it did not know of these
            for _ in self._threads:
                self._put(None)
        return before

    def _work(self) -> None:
        try:
            while (task := self._next()) is not None:
                execute, job = task
                self._services.done(self._do(execute, job))
        except ForkedHandle as error:
            _log.error(
                "a command of service %r forked, and its child came back: %s", self.name, error
            )
            if threading.active_count() == 1:
                # Were the last thread to end by itself, libraries would end without Python,
                # and those that need it there abort.
                os._exit(1)

    def _next(self) -> tuple[protocol.Execute, Job] | None:
        connection = self._services.connection
        assert connection is not None
        # As long as nobody else does, it listens itself for what there is to do.
        connection.listen_while(self._jobs.empty, math.inf)  # no deadline
        return self._jobs.get()

    def _do(self, execute: protocol.Execute, job: Job) -> protocol.Outcome:
        command = self._commands.get(execute.command)
        try:
            if command is None:
                raise BadArguments(f"no command {execute.command!r} any more")
            result = command(unpack(execute.arguments), job)
            if inspect.iscoroutine(result):
                import asyncio  # a program with such commands has it already

                result = asyncio.run(result)
            return protocol.Outcome(execute.call, pack("the result", result))
        except BadArguments as error:
            failure = Failure("bad_arguments", cut(str(error), 4000), "TypeError")
        except BaseException as error:  # whatever it was, somebody waits to be told
            failure = raised(error)
            if isinstance(error, CallCancelled) and job.is_cancelled:
                failure = Failure("cancelled", failure.message)
        return protocol.Outcome(execute.call, None, failure)


class Services:
    """The services of one hub's program."""

    def __init__(self) -> None:
        self._services: dict[str, Service] = {}
        self._jobs: dict[bytes, Job] = {}  # under way
        self._outcomes = Outcomes()
        # Held for moments; by a finalizer too, that runs where it is held already.
        self.lock = Lock()
        self._pid = os.getpid()
        self.connection: Connection | None = None

    @property
    def is_amid(self) -> bool:
        """Whether this very thread holds up, below, what its services' threads need."""
        return self.connection is not None and self.connection.is_amid

    @property
    def timeout_s(self) -> float:
        """How long the end of a call is waited for when its service is closed."""
        return 10.0 if self.connection is None else self.connection.timeout_s

    def service(self, name: str, threads: int, exclusive: bool) -> Service:
        """Return this program's service of that name; make it first if there is none."""
        threads = operator.index(threads)
        with self.lock:
            service = self._services.get(check_name(name, "service"))
            if service is None or service.is_closed:
                service = self._services[name] = Service(self, name, threads, exclusive)
        if (service.threads, service.exclusive) != (threads, exclusive):
            raise PyhubError(
                f"service {name!r} has threads={service.threads}, exclusive={service.exclusive}; "
                f"not {threads}, {exclusive}.\n"
                "  Say the same each time, or keep what hub.service() returned."
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
        return [*held, *map(self._offered, offers)]

    def _offered(self, offer: protocol.Offer) -> Ask:
        def hear(reply: ReplyBody) -> None:
            if not isinstance(reply, protocol.Refused):
                return
            _log.warning("the broker refused service %r: %s", offer.service, reply.reason)
            service = self._services.get(offer.service)
            if service is not None and reply.code not in ("not_allowed", "bad_message"):
                assert self.connection is not None
                self.connection.put_later(self._offered(service.offer()), _AGAIN_S)

        return Ask(offer, hear, is_news=True)

    def held(self) -> list[Ask]:
        """Return what tells the broker which calls are here, under way or done."""
        with self.lock:
            calls = [*self._outcomes.calls(), *self._jobs]
        return [Ask(protocol.Hold(calls[-_MAX_HELD:]), None, is_news=True)]

    def abort(self, body: protocol.Abort) -> None:
        """Hear that nobody waits for a call any more."""
        job = self._jobs.get(body.call)
        if job is not None:
            job.cancel()

    def take(self, body: protocol.Execute) -> None:
        """Take a call that the broker pushed."""
        assert self.connection is not None
        with self.lock:
            kept = self._outcomes.get(body.call)
            is_new = kept is None and body.call not in self._jobs
            service = self._services.get(body.service)
            is_open = service is not None and not service.is_closed
            if is_new and service is not None and is_open:
                job = self._jobs[body.call] = Job(body.call, body.caller, self.connection)
                service.put(body, job)
        if kept is not None:
            self.connection.put(Ask(kept, is_one_way=True))
        elif is_new and not is_open:
            failure = Failure("died", f"service {body.service!r} was closed; it had not begun")
            self.connection.put(Ask(protocol.Outcome(body.call, None, failure), is_one_way=True))

    def done(self, outcome: protocol.Outcome) -> None:
        """Keep what came of a call, and tell the broker."""
        with self.lock:
            self._jobs.pop(outcome.call, None)
            self._outcomes.keep(outcome)
        assert self.connection is not None
        self.connection.put(Ask(outcome, is_one_way=True))

    def close(self) -> None:
        """Close them all; what they are doing is not waited for."""
        if self._pid == os.getpid():
            for service in list(self._services.values()):
                service.close(wait=False)
