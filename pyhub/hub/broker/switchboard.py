"""What a broker answers, and whom it tells what: rights first, then the tables. Does no I/O."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import msgspec

from pyhub.errors import InvalidName
from pyhub.hub import protocol
from pyhub.hub.broker.registry import Program, Registry, page_of
from pyhub.hub.broker.rights import Client, Verb
from pyhub.hub.broker.services import Services
from pyhub.hub.broker.state import StateTable
from pyhub.hub.broker.store import Store
from pyhub.hub.broker.topics import Topics
from pyhub.hub.broker.watches import Watches
from pyhub.hub.protocol import Accepted, Done, PushBody, Refused, ReplyBody, RequestBody
from pyhub.names import check_name, check_topic, has_wildcards

__all__ = ["Gone", "Switchboard"]

# Events that the broker itself tells of; nobody else may.
OWN_TOPICS = "hub/"
_PAGE = 100  # services, programs: each may take a few kB

# What a request needs: a verb, and the name that it is done to. Those that are
# not listed, everybody may who was let in.
_RIGHTS: dict[type[Any], tuple[Verb, Callable[[Any], str]]] = {
    protocol.Register: ("register", lambda body: body.channel.name),
    protocol.LookUp: ("read", lambda body: body.name),
    protocol.ReaderAttached: ("read", lambda body: body.name),
    protocol.Offer: ("offer", lambda body: body.service),
    protocol.Call: ("call", lambda body: f"{body.service}.{body.command}"),
    protocol.GetState: ("read", lambda body: body.key),
    protocol.SetState: ("set", lambda body: body.key),
    protocol.Publish: ("publish", lambda body: body.topic),
    protocol.ListPrograms: ("administer", lambda body: "programs"),
    protocol.Shutdown: ("administer", lambda body: "shutdown"),
}

# Sends a frame to a program; False: it does not read, or has just gone.
Send: TypeAlias = Callable[[bytes, bytes], bool]
# Channels that are gone: their names, and whose they were.
Gone: TypeAlias = list[tuple[str, Program]]


class Switchboard:
    """A broker without its sockets.

    Parameters
    ----------
    registry
        Its programs and their channels.
    store
        Where state, kept events and workers are written down.
    send
        Sends what is more than the answer to who is just asking. At once: what
        it tells of is done, or cannot fail any more.
    on_refusal
        Told of each refusal: its code, who, and why.
    now
        When this broker began, s.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        send: Send,
        on_refusal: Callable[[str, str, str], None],
        now: float = 0.0,
    ) -> None:
        self.registry = registry
        self._request_id = 0  # of what is being answered
        self.is_ended = False
        self.counters: Counter[str] = Counter()
        self._store = store
        self._send = send
        self._on_refusal = on_refusal
        self._now = now
        self._watches = Watches(self._may_read)
        self._state = StateTable(
            self._post, self._watches, store.keep_entry, store.entries(), store.version
        )
        self._topics = Topics(self._post, self._watches, store.keep_event, store.kept_events())
        self.services = Services(
            registry.epoch,
            self._post,
            registry.programs.__contains__,
            self._may_offer,
            store,
            store.workers(),
            now,
        )
        handlers: dict[type[Any], Callable[[bytes, Program, Any], ReplyBody | None]] = {
            protocol.Ping: lambda peer, program, body: registry.welcome(program),
            protocol.Goodbye: self._goodbye,
            protocol.ListPrograms: self._list_programs,
            protocol.Shutdown: self._shutdown,
            protocol.Register: self._register,
            protocol.Unregister: self._unregister,
            protocol.Report: self._report,
            protocol.LookUp: lambda peer, program, body: registry.look_up(body.name, self._now),
            protocol.ReaderAttached: self._attach,
            protocol.ReaderDetached: self._detach,
            protocol.ListChannels: self._list_channels,
            protocol.Offer: self._offer,
            protocol.Withdraw: self._withdraw,
            protocol.Hold: self._hold,
            protocol.ListServices: self._list_services,
            protocol.Call: self._call,
            protocol.Cancel: self._cancel,
            protocol.Outcome: self._outcome,
            protocol.Progress: self._progress,
            protocol.GetState: self._get_state,
            protocol.SetState: self._set_state,
            protocol.Watch: self._watch,
            protocol.Unwatch: self._unwatch,
            protocol.Publish: self._publish,
        }
        # What each request needs a right to, if any, and who answers it.
        self._ways = {kind: (_RIGHTS.get(kind), handler) for kind, handler in handlers.items()}

    def answer(
        self, peer: bytes, client: Client, body: RequestBody, now: float, request_id: int = 0
    ) -> ReplyBody | None:
        """Return the reply to what `peer`, which holds `client`'s key, sent at `now` (s).

        With a `request_id`, a call's reply may be sent later (None is returned):
        what came of a short one is its only answer.
        """
        self._now, self._request_id = now, request_id
        program = self.registry.programs.get(peer)
        if program is not None and program.client.key != client.key:
            # Its address is its secret: who has another key did not come by it honestly.
            return self.refuse("not_allowed", client.name, "that address is another key's")
        reply: ReplyBody | None
        try:
            if type(body) is protocol.Hello:
                return self._hello(peer, client, body)
            if program is None:
                return Refused("no_hello", "say hello first; the broker may have been restarted")
            program.last_heard = now
            right, handle = self._ways[type(body)]
            if right is None or client.may(right[0], right[1](body)):
                reply = handle(peer, program, body)
            else:
                verb, name_of = right
                reply = _not_allowed(client, verb, name_of(body))
        except InvalidName as error:
            reply = Refused("bad_message", str(error)[:200])
        except OSError as error:  # the store could not write it down, so it was not done
            reply = Refused("no_room", str(error)[:200])
        # "pending" is no refusal: it is asked again, many times a second.
        if type(reply) is Refused and reply.code != "pending":
            return self.refuse(reply.code, client.name, reply.reason)
        return reply

    def refuse(self, code: str, who: str, reason: str) -> Refused:
        """Return a refusal that was counted and written down."""
        self.counters[f"refused: {code}"] += 1
        self._on_refusal(code, who, reason)
        return Refused(code, reason)

    def tick(self, now: float, is_alive: Callable[[protocol.Hello], bool]) -> Gone:
        """Let time pass; the channels whose programs are gone."""
        self._now = now
        gone = self.bury(is_alive)
        for peer in self.registry.silent(now):
            gone += self.forget(peer, "fell silent", may_come_back=True)
        self.services.expire(now, is_alive)
        return gone

    def bury(
        self, is_alive: Callable[[protocol.Hello], bool], peers: Iterable[bytes] | None = None
    ) -> Gone:
        """Forget those of `peers` (default: of all) that died; their channels."""
        programs = self.registry.programs
        dead = [
            peer
            for peer in (programs if peers is None else peers)
            if peer in programs and not is_alive(programs[peer].hello)
        ]
        return [channel for peer in dead for channel in self.forget(peer, "died")]

    def forget(self, peer: bytes, why: str, may_come_back: bool = False) -> Gone:
        """Drop a program, and tell who listens; its channels."""
        gone = self._drop(peer, why)
        for name in self.services.forget(peer, may_come_back):
            self._tell("service", name, what="gone", why=f"its program {why}")
        return gone

    def let_in(self, client_of: Callable[[bytes], Client | None]) -> None:
        """Rights changed: programs whose keys have none any more are forgotten."""
        for peer, program in list(self.registry.programs.items()):
            client = client_of(program.client.key.encode())
            if client is None:
                self.forget(peer, "lost its right to be here")
            else:
                program.belong_to(client)
                self._take_back(peer, program)
        self._watches.clear_cache()

    def _take_back(self, peer: bytes, program: Program) -> None:
        """What a program has no right to any more, it does not have any more."""
        for name in self.services.services_of(peer):
            if not program.client.may("offer", name):
                self._withdraw(peer, program, protocol.Withdraw(name))
        for channel in list(program.channels.values()):
            if not program.client.may("register", channel.name):
                gone = protocol.Unregister(channel.name, channel.segment_id)
                self._unregister(peer, program, gone)

    def _drop(self, peer: bytes, why: str) -> Gone:
        """Forget a program, but for its calls and services; its channels."""
        program = self.registry.programs.get(peer)
        names = self.registry.forget(peer)
        self._watches.forget(peer)
        for name in names:
            self._tell("channel", name, what="gone", why=f"its program {why}")
        if program is None:
            return []
        self._tell("program", str(program.number), what="gone", who=program.source, why=why)
        return [(name, program) for name in names]

    # --- Programs ---

    def _hello(self, peer: bytes, client: Client, body: protocol.Hello) -> ReplyBody:
        is_known = peer in self.registry.programs
        self._drop(peer, "started afresh")
        reply = self.registry.hello(peer, client, body, self._now)
        if isinstance(reply, Refused):
            self.services.forget(peer)
            return self.refuse(reply.code, client.name, reply.reason)
        if is_known:
            self.services.met_again(peer, body)
        program = self.registry.programs[peer]
        self._tell("program", str(program.number), what="came", who=program.source)
        return reply

    def _goodbye(self, peer: bytes, program: Program, body: protocol.Goodbye) -> ReplyBody:
        self.forget(peer, "left")
        return Done()

    def _list_programs(
        self, peer: bytes, program: Program, body: protocol.ListPrograms
    ) -> ReplyBody:
        after = int(body.after) if body.after.isdecimal() else 0
        known = [(p, each) for p, each in self.registry.programs.items() if each.number > after]
        page = [
            protocol.ProgramInfo(
                id=str(each.number),
                name=each.hello.name,
                client=each.client.name,
                role=each.client.role,
                host=each.hello.host,
                pid=each.hello.pid,
                silent_s=max(self._now - each.last_heard, 0.0),
                n_channels=len(each.channels),
                n_services=self.services.n_services(p),
                n_watches=self._watches.count(p),
                n_dropped=each.n_dropped,
            )
            for p, each in known[:_PAGE]
        ]
        return protocol.Programs(page, dict(self.counters), len(known) <= _PAGE)

    def _shutdown(self, peer: bytes, program: Program, body: protocol.Shutdown) -> ReplyBody:
        self.is_ended = True
        return Done()

    # --- Channels ---

    def _register(self, peer: bytes, program: Program, body: protocol.Register) -> ReplyBody:
        reply = self.registry.register(peer, program, body.channel)
        if isinstance(reply, protocol.Registered):
            self._tell("channel", body.channel.name, what="registered", who=program.source)
        return reply

    def _unregister(self, peer: bytes, program: Program, body: protocol.Unregister) -> ReplyBody:
        if self.registry.unregister(peer, program, body):
            self._tell("channel", body.name, what="gone", why="it was closed")
        return Done()

    def _report(self, peer: bytes, program: Program, body: protocol.Report) -> ReplyBody:
        self.registry.report(program, body)
        return Done()

    def _attach(self, peer: bytes, program: Program, body: protocol.ReaderAttached) -> ReplyBody:
        return self.registry.attach(program, body) or Done()

    def _detach(self, peer: bytes, program: Program, body: protocol.ReaderDetached) -> ReplyBody:
        self.registry.detach(program, body.reader)
        return Done()

    def _list_channels(
        self, peer: bytes, program: Program, body: protocol.ListChannels
    ) -> ReplyBody:
        may_read = self._reader(program, "channels")
        return self.registry.list(body.after, may_read, self._now)

    # --- Services ---

    def _offer(self, peer: bytes, program: Program, body: protocol.Offer) -> ReplyBody:
        reply = self.services.offer(peer, body, program.hello)
        if isinstance(reply, Done):
            self._tell("service", body.service, what="offered", who=program.source)
        return reply

    def _withdraw(self, peer: bytes, program: Program, body: protocol.Withdraw) -> ReplyBody:
        if self.services.withdraw(peer, check_name(body.service)):
            self._tell("service", body.service, what="withdrawn", who=program.source)
        return Done()

    def _hold(self, peer: bytes, program: Program, body: protocol.Hold) -> ReplyBody:
        # One that holds nothing says so to be given again what was lost.
        if body.calls and not program.client.may_any("offer"):
            return Refused(
                "not_allowed",
                f"client {program.client.name!r} ({program.client.role}) may offer no service, "
                "and so holds no calls",
            )
        self.services.hold(peer, body.calls)
        return Done()

    def _list_services(
        self, peer: bytes, program: Program, body: protocol.ListServices
    ) -> ReplyBody:
        may_read = self._reader(program, "services")
        known = (s for s in self.services.list() if s.name > body.after and may_read(s.name))
        return protocol.Services(*page_of(known, _PAGE))

    def _call(self, peer: bytes, program: Program, body: protocol.Call) -> ReplyBody | None:
        return self.services.call(peer, program.source, body, self._now, self._request_id)

    def _cancel(self, peer: bytes, program: Program, body: protocol.Cancel) -> ReplyBody:
        self.services.cancel(peer, body.call)
        return Done()

    def _outcome(self, peer: bytes, program: Program, body: protocol.Outcome) -> ReplyBody:
        self.services.outcome(peer, body)
        return Done()

    def _progress(self, peer: bytes, program: Program, body: protocol.Progress) -> ReplyBody:
        self.services.progress(peer, body)
        return Done()

    # --- State and events ---

    def _get_state(self, peer: bytes, program: Program, body: protocol.GetState) -> ReplyBody:
        return protocol.Stated(self._state.get(check_topic(body.key)))

    def _set_state(self, peer: bytes, program: Program, body: protocol.SetState) -> ReplyBody:
        # Whoever watches them would take them for the broker's word.
        if body.key.startswith(OWN_TOPICS):
            return _not_allowed(program.client, "set", body.key)
        return self._state.set(body, program.source)

    def _watch(self, peer: bytes, program: Program, body: protocol.Watch) -> ReplyBody:
        # A pattern may reach further than its program's rights, which then hold
        # back the rest; a single name that may not be read is refused.
        is_name = not has_wildcards(body.pattern)
        if is_name and not self._may_read(peer, body.subject, body.pattern):
            return _not_allowed(program.client, "read", body.pattern)
        refusal = self._watches.add(peer, body.watch, body.subject, body.pattern)
        if refusal is not None:
            return refusal
        table: StateTable | Topics = self._state if body.subject == "state" else self._topics
        table.first(peer, body.watch, body.pattern, self._reader(program, body.subject))
        return protocol.Watching(self._state.version)

    def _unwatch(self, peer: bytes, program: Program, body: protocol.Unwatch) -> ReplyBody:
        self._watches.remove(peer, body.watch)
        return Done()

    def _publish(self, peer: bytes, program: Program, body: protocol.Publish) -> ReplyBody:
        if body.topic.startswith(OWN_TOPICS):
            return _not_allowed(program.client, "publish", body.topic)
        return self._topics.publish(body, program.source)

    # --- Telling ---

    def _tell(self, kind: str, name: str, **details: str) -> None:
        """Publish an event of the broker's own."""
        self._topics.publish(
            protocol.Publish(
                os.urandom(8),
                f"{OWN_TOPICS}{kind}/{name}",
                msgspec.msgpack.encode(details),
                "info",
                time.time_ns(),
            ),
            "broker",
        )

    def _post(
        self, peers: Sequence[bytes], body: PushBody | Accepted, request_id: int = 0, /
    ) -> None:
        """Tell those that are here; of an answer that is lost, its program asks again."""
        frame = protocol.encode(protocol.Reply(request_id, body))
        programs = self.registry.programs
        for peer in peers:
            program = programs.get(peer)
            if program is None:
                continue
            is_sent = self._send(peer, frame)
            if not request_id:
                program.n_pushed += 1
                if not is_sent:
                    program.n_dropped += 1
                    self.counters["dropped: pushes"] += 1

    def _may_offer(self, peer: bytes, service: str) -> bool:
        program = self.registry.programs.get(peer)
        return program is not None and program.client.may("offer", service)

    def _may_read(self, peer: bytes, subject: str, name: str) -> bool:
        program = self.registry.programs.get(peer)
        return program is not None and _may_read(program.client, subject, name)

    def _reader(self, program: Program, subject: str) -> Callable[[str], bool]:
        return lambda name: _may_read(program.client, subject, name)


def _may_read(client: Client, subject: str, name: str) -> bool:
    if subject != "events" or not name.startswith(OWN_TOPICS):
        return client.may("read", name)
    kind, _, what = name.removeprefix(OWN_TOPICS).partition("/")
    if kind == "program":  # who may list them, may hear that they come and go
        return client.may("administer", "programs")
    # And who may see a channel or a service, of those.
    return client.may("read", what if kind in ("channel", "service") else name)


def _not_allowed(client: Client, verb: Verb, name: str) -> Refused:
    return Refused(
        "not_allowed",
        f"client {client.name!r} ({client.role}) may not {verb} {name[:255]!r}",
    )
