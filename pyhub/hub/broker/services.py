"""Services: which workers offer what, and the calls on their way. Does no I/O.

A call is done once. Its id is its name for good, and whoever began it keeps
what came of it: a caller that asks again, here or at the next broker, is led
to the same worker, which answers with what it has. Where that worker is gone,
or may have been, the caller is told that nobody knows whether it ran.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pyhub.hub import protocol
from pyhub.hub.broker.comebacks import Comebacks, FormerWorker, Roster, worker_id
from pyhub.hub.broker.endings import died, forgotten, interrupted, too_late, what
from pyhub.hub.broker.holders import Holders
from pyhub.hub.protocol import Accepted, CommandInfo, Done, Failure, Refused
from pyhub.names import check_name

__all__ = ["Services", "Post"]

MAX_SERVICES_PER_PROGRAM = 256
MAX_WAITING = 1000  # calls of one service that no worker has begun
MAX_CALLS_PER_CALLER = 1000
_MAX_ENDED = 10_000
# A command that ends whoever does it is not given to all workers in turn.
MAX_WORKERS_OF_A_CALL = 3
# A call that takes longer is first accepted, and answered when it is done.
_SHORT_S = 0.02


class Post(Protocol):
    """Sends a message to those of `peers` that are here: at once, before what is done next."""

    def __call__(
        self, peers: Sequence[bytes], body: protocol.PushBody | Accepted, request_id: int = 0, /
    ) -> None:
        """As the answer to a request of theirs; 0: as a push."""


@dataclass(slots=True)
class _Worker:
    commands: dict[str, CommandInfo]
    capacity: int
    running: set[bytes]  # ids of calls
    hello: protocol.Hello
    is_exclusive: bool  # it shares its service with nobody


@dataclass(slots=True)
class _Service:
    workers: OrderedDict[bytes, _Worker] = field(default_factory=OrderedDict)
    waiting: list[bytes] = field(default_factory=list)
    commands: dict[str, CommandInfo] = field(default_factory=dict)  # of all workers

    def note_commands(self) -> None:
        """Look again what the workers offer."""
        self.commands = {
            name: command
            for worker in self.workers.values()
            for name, command in worker.commands.items()
        }


class _Asked(NamedTuple):
    """A request of a caller's that has no answer yet."""

    request_id: int
    since: float


class _Call:
    worker: bytes | None = None  # who has it
    # It waits for workers to come back: one of them may have begun it.
    is_in_doubt = False
    may_be_done = False  # its worker is asked again for what came of it
    is_idempotent = False  # as its worker offered it
    is_aborted = False  # its worker was told that nobody waits any more
    n_lost = 0  # workers that may have begun it, and are gone
    silent: frozenset[bytes] = frozenset()  # callers that may come back

    def __init__(
        self, request: protocol.Call, caller: bytes, asked: _Asked | None, source: str, now: float
    ) -> None:
        self.request = request
        # What comes of it is told to each: as the answer to what it asked, or as a push.
        self.callers = {caller: asked}
        self.source = source
        self.deadline = now + request.timeout_s


class Services:
    """Hands calls to workers, and what comes of them to callers.

    Parameters
    ----------
    epoch
        This broker's.
    post
        Sends a message to programs.
    is_here
        Whether a program is connected.
    may_offer
        Whether a program that is here may work for a service.
    roster
        Where workers are written down.
    former
        Those that the broker before this one had.
    now
        When this broker began, s.
    """

    def __init__(
        self,
        epoch: str,
        post: Post,
        is_here: Callable[[bytes], bool],
        may_offer: Callable[[bytes, str], bool],
        roster: Roster,
        former: Iterable[FormerWorker] = (),
        now: float = 0.0,
    ) -> None:
        self._epoch = epoch
        self._post = post
        self._is_here = is_here
        self._may_offer = may_offer
        self._comebacks = Comebacks(roster, is_here, former, now)
        self._services: dict[str, _Service] = {}
        self._calls: dict[bytes, _Call] = {}
        self._n_calls: dict[bytes, int] = {}  # of each caller
        # Those that ended, and who did them: asked for again, he says it again.
        self._ended: OrderedDict[bytes, bytes] = OrderedDict()
        self._has_forgotten = False  # whether some of them are not known any more
        self._now = now
        self._holders = Holders()
        # Whose line broke, and who has not said since what it holds.
        self._unsure: set[bytes] = set()

    # --- Workers ---

    def offer(self, peer: bytes, body: protocol.Offer, hello: protocol.Hello) -> Done | Refused:
        """Take `peer` in as a worker; again, with other commands or capacity, to change them."""
        name = check_name(body.service)
        commands = {check_name(command.name): command for command in body.commands}
        service = self._services.get(name) or _Service()
        if peer not in service.workers and self.n_services(peer) >= MAX_SERVICES_PER_PROGRAM:
            return Refused("too_many", f"more than {MAX_SERVICES_PER_PROGRAM} services")
        for other, worker in service.workers.items():
            if other != peer and (body.is_exclusive or worker.is_exclusive):
                return Refused(
                    "taken",
                    f"service {name!r} is offered by {worker.hello.name} (pid {worker.hello.pid} "
                    f"on {worker.hello.host}), and one of the two wants it for itself alone",
                )
        self._comebacks.begins(peer, name, hello)
        self._services[name] = service
        running = {  # what it held before it offered, too
            call_id
            for call_id, call in self._calls.items()
            if call.worker == peer and call.request.service == name
        }
        service.workers[peer] = _Worker(commands, body.capacity, running, hello, body.is_exclusive)
        self._note_workers(name)
        if peer in self._unsure:
            self._give_again(peer, ())
        self._returned(peer, name)
        self._settle_all(name)
        self._dispatch(name)
        return Done()

    def withdraw(self, peer: bytes, name: str) -> bool:
        """Give `peer` no more calls of that service; those it has, it may end.

        Returns
        -------
        bool
            Whether it worked for that service.
        """
        service = self._services.get(name)
        if service is None or service.workers.pop(peer, None) is None:
            return False
        self._comebacks.leaves(peer, name, self._now)
        self._note_workers(name)
        return True

    def hold(self, peer: bytes, calls: Iterable[bytes]) -> None:
        """Hear which calls `peer` runs, or ran; said before it offers its services.

        Those that it was given and does not name never reached it, as it did
        not read for a while: it is given them again. So are those that it may
        have done before, as that it was asked again may not have reached it.
        """
        held = dict.fromkeys(calls)
        self._give_again(peer, held)
        if held:
            self._comebacks.works(peer)
        self._holders.add(peer, held)
        for call_id in held:
            claimed = self._calls.get(call_id)
            if claimed is None or not claimed.is_in_doubt:
                continue
            if self._may_offer(peer, claimed.request.service):
                self._execute(claimed, peer)

    # --- Calls ---

    def call(
        self, peer: bytes, source: str, body: protocol.Call, now: float, request_id: int = 0
    ) -> Refused | Accepted | None:
        """Have a call done, once; or say again what came of it.

        With no time left, a call is not begun any more; who has it, is asked.

        Returns
        -------
        Refused or Accepted or None
            None: what comes of it answers this very request, if that comes soon.
        """
        self._now = now
        asked = _Asked(request_id, now) if request_id else None
        call = self._calls.get(body.call)
        if call is not None:
            if what(call.request) != what(body):
                return Refused("bad_message", f"that call is one of {what(call.request)}")
            call.deadline = max(call.deadline, now + body.timeout_s)
            self._add_caller(call, peer, asked)
        else:
            refusal = self._begin(peer, source, body, asked)
            if refusal is not None:
                return refusal
        return None if asked is not None else self._accepted(body.call)

    def _begin(
        self, peer: bytes, source: str, body: protocol.Call, asked: _Asked | None
    ) -> Refused | None:
        """Take in a call that is not under way here."""
        n_calls = self._n_calls.get(peer, 0)
        if n_calls >= MAX_CALLS_PER_CALLER:
            return Refused("too_many", f"more than {MAX_CALLS_PER_CALLER} calls under way")
        holder = self._holder_of(body)
        # Asked for again here, and unknown: it never came, unless such are forgotten.
        is_forgotten = body.epoch == self._epoch and self._has_forgotten
        may_have_begun = bool(body.worker) or body.epoch not in ("", self._epoch) or is_forgotten
        is_new = holder is None and not may_have_begun
        if is_new:
            refusal = self._refusal(body)
            if refusal is not None:
                return refusal
        call = self._calls[body.call] = _Call(body, peer, asked, source, self._now)
        self._n_calls[peer] = n_calls + 1
        if is_new and body.timeout_s > 0:
            self._enqueue(call)
            return None
        call.is_in_doubt = holder is None and may_have_begun
        if holder is not None and self._is_here(holder):
            self._execute(call, holder)
        elif holder is not None:
            self._lose_worker(call)
        elif body.timeout_s <= 0:
            self._end(body.call, None, too_late(call.request, call.n_lost, call.is_in_doubt))
        elif is_forgotten and not body.worker and not self._is_idempotent(body):
            self._end(body.call, None, forgotten(body))
        else:
            self._settle(call)
        return None

    def acknowledge(self, now: float) -> None:
        """Answer who asked for calls that have been under way for a while: they are accepted."""
        for call in self._calls.values():
            for peer, asked in call.callers.items():
                if asked is not None and now - asked.since >= _SHORT_S:
                    self._accept(call, peer)

    def _accept(self, call: _Call, peer: bytes) -> None:
        """Answer what a caller asked, if it has no answer yet; the outcome is then pushed."""
        asked, call.callers[peer] = call.callers[peer], None
        if asked is not None:
            self._post([peer], self._accepted(call.request.call), asked.request_id)

    def _accepted(self, call_id: bytes) -> Accepted:
        call = self._calls.get(call_id)
        if call is None or call.worker is None:
            return Accepted("")
        return Accepted(worker_id(call.worker))

    def cancel(self, peer: bytes, call_id: bytes) -> None:
        """Hear that `peer` does not wait for that call any more."""
        call = self._calls.get(call_id)
        if call is None or peer not in call.callers:
            return
        if len(call.callers) > 1 or (call.silent and call.worker is not None):
            # Somebody else still waits for it: this one is not told how it ends.
            self._accept(call, peer)
            self._drop_caller(call, peer)
        elif call.worker is None:
            is_sure = not call.is_in_doubt and not call.n_lost
            begun = "it had not begun" if is_sure else "whether it had begun cannot be told"
            self._end(call_id, None, Failure("cancelled", begun))
        else:
            self._accept(call, peer)
            self._abort(call)

    def outcome(self, peer: bytes, body: protocol.Outcome) -> None:
        """Hear from a worker what came of a call."""
        call = self._calls.get(body.call)
        if call is not None and call.worker == peer:
            self._end(body.call, body.value, body.failure)

    def progress(self, peer: bytes, body: protocol.Progress) -> None:
        """Hear from a worker how far a call is."""
        call = self._calls.get(body.call)
        if call is not None and call.worker == peer:
            self._post(list(call.callers), protocol.Progressed(body.call, body.value))

    # --- Time and death ---

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for a call: then deaths are looked for more often."""
        return bool(self._calls)

    def workers_at_work(self) -> set[bytes]:
        """Return the workers that have a call."""
        return {call.worker for call in self._calls.values() if call.worker is not None}

    def met_again(self, peer: bytes, hello: protocol.Hello) -> None:
        """Hear that a program that is here says hello once more: its line broke.

        It has what it had, and is about to offer its services again. Calls
        stay with it, and it is given all of them once more: it may never have
        got them, or what came of them may be lost with the line.
        """
        self._unsure.add(peer)
        for name in self._leave(peer):
            self._comebacks.expect(peer, name, hello, self._now)
            self._services[name].note_commands()
        for call in self._calls.values():
            if peer in call.callers:
                call.callers[peer] = None  # who it was, forgot what it asked
            if call.worker == peer:
                call.may_be_done = True
                self._comebacks.expect(peer, call.request.service, hello, self._now)

    def forget(self, peer: bytes, may_come_back: bool = False) -> Sequence[str]:
        """Drop a program: calls that it had fail, or are done again; its own nobody waits for.

        Parameters
        ----------
        peer
            The program.
        may_come_back
            Whether it was only silent. What it called, and was begun, then goes
            on until its time is over: that it was aborted could not be taken back.

        Returns
        -------
        Sequence of str
            The services that it worked for.
        """
        offered = self._leave(peer)
        self._unsure.discard(peer)
        self._holders.forget(peer)
        for name in offered:
            self._services[name].note_commands()
        for call_id, call in list(self._calls.items()):
            is_caller = peer in call.callers
            if is_caller:
                self._drop_caller(call, peer)
                call.silent |= {peer} if may_come_back else set()
            if call.worker == peer:
                self._lose_worker(call)
            elif is_caller and not call.callers and call.worker is None:
                self._end(call_id, None, None)
            elif is_caller and not call.callers and not call.silent:
                self._abort(call)
        for name in offered:
            self._note_workers(name)
        self._give_up(peer)
        self._comebacks.forget(peer)
        return offered

    def expire(self, now: float, is_alive: Callable[[protocol.Hello], bool]) -> None:
        """Let time pass.

        Calls that nobody began in time end; the workers of those that were begun
        hear that nobody waits. Workers that do not come back are given up.
        """
        self._now = now
        for call_id, call in list(self._calls.items()):
            if now < call.deadline:
                continue
            if call.worker is None:
                self._end(call_id, None, too_late(call.request, call.n_lost, call.is_in_doubt))
            else:
                self._abort(call)
        for peer in self._comebacks.overdue(now, is_alive):
            self._give_up(peer)
        self._comebacks.expire(now, self._has_calls)

    # --- What there is ---

    def list(self) -> list[protocol.ServiceInfo]:
        """Return all services, by name."""
        return [
            protocol.ServiceInfo(
                name,
                list(service.commands.values()),
                [worker_id(peer) for peer in service.workers],
                sum(worker.capacity for worker in service.workers.values()),
                sum(len(worker.running) for worker in service.workers.values()),
                len(service.waiting),
            )
            for name, service in sorted(self._services.items())
        ]

    def services_of(self, peer: bytes) -> Sequence[str]:
        """Return the services for which `peer` works."""
        return [name for name, service in self._services.items() if peer in service.workers]

    def n_services(self, peer: bytes) -> int:
        """Return for how many services `peer` works."""
        return len(self.services_of(peer))

    # --- The way of a call ---

    def _holder_of(self, body: protocol.Call) -> bytes | None:
        if ended := self._ended.get(body.call):
            return ended
        holder = self._holders.get(body.call)
        # Of who is gone, the rights are not known; but he is not asked either.
        if holder is not None and self._is_here(holder):
            return holder if self._may_offer(holder, body.service) else None
        return holder

    def _refusal(self, body: protocol.Call) -> Refused | None:
        service = self._services.get(body.service)
        is_there = service is not None and body.command in service.commands
        if not is_there and self._comebacks.is_expected(body.service):
            return Refused("pending", f"workers of service {body.service!r} are not back yet")
        if service is None:
            there = ", ".join(sorted(self._services)[:20]) or "none"
            return Refused("no_service", f"no service {body.service!r}; there are: {there}")
        if body.command not in service.commands:
            there = ", ".join(sorted(service.commands)[:50])
            return Refused(
                "no_command",
                f"service {body.service!r} has no command {body.command!r}; it has: {there}",
            )
        if len(service.waiting) >= MAX_WAITING:
            return Refused(
                "busy", f"{MAX_WAITING} calls of service {body.service!r} wait for a worker"
            )
        return None

    def _enqueue(self, call: _Call) -> None:
        call.worker, call.is_in_doubt = None, False
        service = self._services[call.request.service]
        peer = _free_worker(service, call.request.command)
        if peer is None:
            service.waiting.append(call.request.call)
        else:
            self._execute(call, peer, may_be_done=False)

    def _dispatch(self, name: str) -> None:
        """Give waiting calls, first come, to the workers that are most free."""
        service = self._services.get(name)
        if service is None or not service.waiting:
            return
        for call_id in list(service.waiting):
            call = self._calls[call_id]
            peer = _free_worker(service, call.request.command)
            if peer is not None:
                service.waiting.remove(call_id)
                self._execute(call, peer, may_be_done=False)
            elif not any(w.capacity > len(w.running) for w in service.workers.values()):
                return

    def _execute(self, call: _Call, peer: bytes, may_be_done: bool = True) -> None:
        """Give a call to its worker, which begins while that is noted; no note of it can fail."""
        body = call.request
        self._post([peer], _execution(call))
        call.worker, call.is_in_doubt, call.may_be_done = peer, False, may_be_done
        call.is_idempotent = call.is_idempotent or self._is_idempotent(body)
        self._comebacks.works(peer)
        service = self._services.get(body.service)
        if service is not None and peer in service.workers:
            service.workers[peer].running.add(body.call)

    def _abort(self, call: _Call) -> None:
        """Tell a call's worker, once, that nobody waits any more."""
        if call.worker is not None and not call.is_aborted:
            call.is_aborted = True
            self._post([call.worker], protocol.Abort(call.request.call))

    def _lose_worker(self, call: _Call) -> None:
        """Decide about a call whose worker is gone."""
        call.n_lost += 1
        self._do_again(call)

    def _do_again(self, call: _Call) -> None:
        """Have another worker do what may be done twice; end what may not."""
        body = call.request
        is_wanted = bool(call.callers) and not call.is_aborted and self._now < call.deadline
        may_be_done_again = (
            is_wanted
            and call.n_lost < MAX_WORKERS_OF_A_CALL
            and (call.is_idempotent or self._is_idempotent(body))
        )
        if may_be_done_again and self._refusal(body) is None:
            self._enqueue(call)
        elif may_be_done_again and self._comebacks.is_expected(body.service):
            call.worker, call.is_in_doubt = None, True
        else:
            self._end(body.call, None, died(body))

    def _end(self, call_id: bytes, value: bytes | None, failure: Failure | None) -> None:
        call = self._calls.pop(call_id)
        finished = protocol.Finished(call_id, value, failure)
        for caller, asked in call.callers.items():
            self._post([caller], finished, 0 if asked is None else asked.request_id)
            self._count_down(caller)
        service = self._services.get(call.request.service)
        if call.worker is None:
            if service is not None and call_id in service.waiting:
                service.waiting.remove(call_id)
            return
        self._holders.drop(call_id)
        self._ended[call_id] = call.worker
        if len(self._ended) > _MAX_ENDED:
            self._has_forgotten = True
            self._ended.popitem(last=False)
        if service is not None and call.worker in service.workers:
            service.workers[call.worker].running.discard(call_id)
            self._dispatch(call.request.service)

    def _add_caller(self, call: _Call, peer: bytes, asked: _Asked | None) -> None:
        call.silent -= {peer}
        former = call.callers.get(peer)
        if peer not in call.callers:
            self._n_calls[peer] = self._n_calls.get(peer, 0) + 1
        elif asked is not None and former is not None and former.request_id != asked.request_id:
            # Asked again, each has an answer of its own: what comes of it is the last one's.
            self._accept(call, peer)
        call.callers[peer] = asked or former

    def _drop_caller(self, call: _Call, peer: bytes) -> None:
        del call.callers[peer]
        self._count_down(peer)

    def _count_down(self, peer: bytes) -> None:
        self._n_calls[peer] -= 1
        if not self._n_calls[peer]:
            del self._n_calls[peer]

    def _leave(self, peer: bytes) -> Sequence[str]:
        """Take `peer` out of its services; which these were."""
        offered = [name for name, service in self._services.items() if peer in service.workers]
        for name in offered:
            del self._services[name].workers[peer]
            self._comebacks.leaves(peer, name, self._now)
        return offered

    def _has_calls(self, peer: bytes) -> bool:
        return any(call.worker == peer for call in self._calls.values())

    def _give_again(self, peer: bytes, held: Container[bytes]) -> None:
        """Push calls of `peer` that it may not have heard of; it does nothing twice."""
        self._unsure.discard(peer)
        for call_id, call in self._calls.items():
            if call.worker == peer and (call.may_be_done or call_id not in held):
                self._post([peer], _execution(call))
            if call.worker == peer and call.is_aborted:
                self._post([peer], protocol.Abort(call_id))

    def _find_worker(self, body: protocol.Call) -> bytes | None:
        service = self._services.get(body.service)
        workers = service.workers if service is not None else {}
        return next((peer for peer in workers if worker_id(peer) == body.worker), None)

    def _note_workers(self, name: str) -> None:
        """Workers came or went: what nobody offers any more, fails at once."""
        service = self._services[name]
        service.note_commands()
        if self._comebacks.is_expected(name):
            return  # it may be offered again in a moment
        if not service.workers:
            del self._services[name]
        for call_id in list(service.waiting):
            call = self._calls[call_id]
            if call.request.command not in service.commands:
                service.waiting.remove(call_id)
                self._end(call_id, None, died(call.request, has_begun=call.n_lost > 0))

    def _is_idempotent(self, body: protocol.Call) -> bool:
        service = self._services.get(body.service)
        command = service.commands.get(body.command) if service is not None else None
        return command is not None and command.is_idempotent

    # --- Calls in doubt ---

    def _give_up(self, peer: bytes) -> None:
        for name in self._comebacks.give_up(peer, self._now):
            self._returned(peer, name)
        # If it is here, and only its service is gone, it knows what became of them.
        if peer in self._unsure:
            self._give_again(peer, ())

    def _returned(self, peer: bytes, name: str) -> None:
        """Wait no more for that worker; decide about calls that waited for it."""
        if not self._comebacks.returns(peer, name):
            return
        self._settle_all(name)
        if name in self._services:
            self._note_workers(name)

    def _settle_all(self, name: str) -> None:
        for call in list(self._calls.values()):
            if call.is_in_doubt and call.request.service == name:
                self._settle(call)

    def _settle(self, call: _Call) -> None:
        """Decide about a call that is in doubt, or let it wait."""
        body = call.request
        if call.n_lost:
            self._do_again(call)
        elif body.worker:
            holder = self._find_worker(body)
            if holder is not None:
                self._execute(call, holder)
            elif not self._comebacks.is_expected(body.service, body.worker):
                self._lose_worker(call)
        elif not self._comebacks.is_expected(body.service):
            refusal = self._refusal(body)
            has_lost = self._comebacks.has_lost(body.service)
            if has_lost and self._is_idempotent(body):
                self._lose_worker(call)
            elif has_lost:
                self._end(body.call, None, interrupted(body))
            elif refusal is not None:
                self._end(body.call, None, Failure("died", refusal.reason))
            else:
                self._enqueue(call)


def _free_worker(service: _Service, command: str) -> bytes | None:
    """Return the worker that is to have the next call: the one that is most free, if any is.

    Of equals, the one that had nothing for longest: it stands first, and last from now on.
    """
    most, found = 0, None
    for peer, worker in service.workers.items():
        room = worker.capacity - len(worker.running)
        if room > most and command in worker.commands:
            most, found = room, peer
    if found is not None:
        service.workers.move_to_end(found)
    return found


def _execution(call: _Call) -> protocol.Execute:
    body = call.request
    return protocol.Execute(
        body.call, body.service, body.command, body.arguments, body.timeout_s, call.source
    )
