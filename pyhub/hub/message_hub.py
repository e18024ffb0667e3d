"""MessageHub: where a program creates channels and finds those of others."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from pyhub._deadlines import deadline_after, left_until
from pyhub.datablock import DataBlockConsumer, DataBlockProducer, Policy, Wait
from pyhub.errors import (
    BrokerRefused,
    BrokerUnreachable,
    PyhubError,
    SegmentNotFound,
    ServiceNotFound,
    WaitTimeout,
)
from pyhub.hub import protocol
from pyhub.hub.client.calls import PendingCall
from pyhub.hub.client.connection import Connection
from pyhub.hub.client.events import LogHandler, publication
from pyhub.hub.client.holdings import Holdings
from pyhub.hub.client.notifications import NotificationListener, NotificationPublisher
from pyhub.hub.client.service import Service
from pyhub.hub.client.state import State
from pyhub.hub.client.watching import EventFeed
from pyhub.hub.on_any_hub import OnAnyHub, OnAnyHubProperty
from pyhub.hub.protocol import ChannelInfo, RequestBody, ServiceInfo, Severity
from pyhub.hub.runtime import BrokerConfig
from pyhub.names import check_name

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["MessageHub"]

# A page of a list.
P = TypeVar("P", protocol.Channels, protocol.Services, protocol.Programs)

_LOOK_AGAIN_S = 0.25


class MessageHub:
    """This program's place in the hub: its channels, and the way to others'.

    Finds the user's broker or starts one. Use it as a context, or call
    `close`; its channels are closed with it. The static form of the same:
    ``MessageHub.initialize(config)``, ``MessageHub.create_datablock_producer``
    ..., ``MessageHub.shutdown()``.

    Parameters
    ----------
    config
        How to find the broker; all defaults work.

    Raises
    ------
    BrokerUnreachable
        There is no broker and none could be started.
    AccessDenied
        The runtime directory or a key file is open to others.
    """

    _default: MessageHub | None = None
    _default_lock = threading.Lock()

    def __init__(self, config: BrokerConfig | None = None) -> None:
        self._producers: weakref.WeakSet[DataBlockProducer] = weakref.WeakSet()
        self._consumers: weakref.WeakSet[DataBlockConsumer] = weakref.WeakSet()
        self._holdings = Holdings()
        self._reader_numbers = itertools.count()
        holdings = self._holdings
        self._connection = Connection(config or BrokerConfig(), holdings)
        holdings.serve(self._connection)
        self._state = State(self._connection, holdings.watching)
        self._finalizer = weakref.finalize(self, _leave, self._connection, self._holdings)

    # --- Static form ---

    @classmethod
    def initialize(cls, config: BrokerConfig | None = None) -> bool:
        """Make the hub that calls on the class use; False if there is one already."""
        with MessageHub._default_lock:
            if MessageHub._default is not None:
                return False
            MessageHub._default = cls(config)
            return True

    @classmethod
    def instance(cls) -> MessageHub:
        """Return the hub that `initialize` made."""
        if MessageHub._default is None:
            raise PyhubError(
                "there is no default hub.\n"
                "  Call MessageHub.initialize() first, or use an object: hub = MessageHub()."
            )
        return MessageHub._default

    # --- Life ---

    def close(self) -> None:
        """Close this hub's channels and leave the broker. May be called twice."""
        for producer in list(self._producers):
            producer.close()
        for consumer in list(self._consumers):
            consumer.close()
        self._finalizer()
        if MessageHub._default is self:
            MessageHub._default = None

    @OnAnyHub
    def shutdown(self: MessageHub) -> None:
        """Do what `close` does; on the class, for the hub of `initialize`."""
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return not self._finalizer.alive

    def __repr__(self) -> str:
        is_open = "closed" if self.is_closed else f"broker {self._connection.epoch or 'unknown'}"
        return f"<MessageHub: {is_open}, {self._connection.runtime.path}>"

    def __enter__(self) -> MessageHub:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- Channels ---

    @OnAnyHub
    def create_datablock_producer(
        self: MessageHub,
        name: str,
        structured_buffer_size: int | None = None,
        flexible_zone_size: int = 4096,
        *,
        dtype: npt.DTypeLike = "uint8",
        shape: int | tuple[int, ...] | None = None,
        slots: int | None = None,
        readers: int = 64,
        patience_s: float = 1.0,
        prefault: bool = False,
    ) -> DataBlockProducer:
        """Create the channel `name` and tell the broker.

        Keep what is returned: a producer that nobody holds is closed. Arguments
        and errors as for `DataBlockProducer.create`; also
        `BrokerRefused` if another host has a channel of that name.
        """
        self._connection.check()
        producer = DataBlockProducer.create(
            name,
            structured_buffer_size,
            flexible_zone_size,
            dtype=dtype,
            shape=shape,
            slots=slots,
            readers=readers,
            patience_s=patience_s,
            prefault=prefault,
        )
        return self._adopt_producer(producer)

    @OnAnyHub
    def find_datablock_consumer(
        self: MessageHub,
        name: str,
        *,
        policy: Policy | str | None = None,
        reader: str | None = None,
        wait: Wait | str | None = None,
        prefault: bool = False,
        timeout_s: float | None = 5.0,
    ) -> DataBlockConsumer:
        """Return a consumer of the channel `name`, waiting for its producer.

        It finds channels of this host, also those of producers without a hub
        (a C program, say). `policy`, `reader`, `wait` and
        `prefault` as for `DataBlockConsumer.attach`; by default it listens to notifications.

        Raises
        ------
        SegmentNotFound
            The channel did not appear in `timeout_s`; the message lists those
            that there are.
        AdmissionRefused
            The channel does not admit that reader.
        """
        wait = Wait.of("notification" if wait is None else wait)
        listener = None if wait.is_native else self._listen(check_name(name))
        try:
            consumer = DataBlockConsumer(
                name,
                policy=policy,
                reader=reader,
                wait=wait,
                prefault=prefault,
                listener=listener,
            )
        except BaseException:
            if listener is not None:
                listener.close()
            raise
        self._adopt_consumer(consumer, listener)
        try:
            consumer.wait_for_producer(timeout_s)
        except BaseException as error:
            consumer.close()
            if isinstance(error, SegmentNotFound):
                raise SegmentNotFound(f"{error}\n  {self._known_of(name)}") from error
            raise
        return consumer

    @OnAnyHub
    def channels(self: MessageHub) -> list[ChannelInfo]:
        """Return the channels that the broker knows, by name, with their metrics."""
        channels: list[ChannelInfo] = []
        for page in self._pages(
            protocol.ListChannels, protocol.Channels, lambda p: p.channels[-1].name
        ):
            channels += page.channels
        return channels

    @OnAnyHub
    def wait_for(self: MessageHub, name: str, timeout_s: float | None = None) -> ChannelInfo:
        """Wait until the channel `name` is there, of whatever host, and return what it is.

        Raises
        ------
        WaitTimeout
            It is not; the message says what the broker knows of it.
        """
        deadline = deadline_after(timeout_s)
        with self.events(f"hub/channel/{check_name(name)}") as changes:
            while True:
                found = self._connection.ask(protocol.LookUp(name), protocol.Found)
                if found.status == "ready" and found.channel is not None:
                    return found.channel
                left_s = left_until(deadline)
                if not left_s:
                    raise WaitTimeout(
                        f"channel {name!r} is not there after {timeout_s:g} s ({found.status}: "
                        f"{found.reason}).\n  {self._known_channels()}"
                    )
                with contextlib.suppress(WaitTimeout):
                    # What it waits for may also end by itself: a silence, a broker's start.
                    changes.get(min(left_s, 0.5))

    @OnAnyHub
    def n_readers(self: MessageHub, name: str) -> int:
        """Return how many consumers with a hub read the channel `name` now."""
        found = self._connection.ask(protocol.LookUp(check_name(name)), protocol.Found)
        return 0 if found.channel is None else found.channel.n_readers

    @OnAnyHub
    def wait_for_readers(
        self: MessageHub, name: str, n_readers: int, timeout_s: float | None = None
    ) -> bool:
        """Wait until `n_readers` consumers read `name`; False at the deadline."""
        deadline = deadline_after(timeout_s)
        while self.n_readers(name) < n_readers:
            if not left_until(deadline):
                return False
            time.sleep(0.02)  # until a reader tells the broker
        return True

    # --- Services and commands ---

    @OnAnyHub
    def service(
        self: MessageHub, name: str, *, threads: int = 1, exclusive: bool = False
    ) -> Service:
        """Return this program's service `name`: functions given to it, others may call.

        ``@hub.service("cam1")`` before a function offers it at once. Calls are
        done in `threads` threads of the service's own, so one at a time by default.
        Other programs may offer the same service, and share its calls; with
        `exclusive` they may not, as befits hardware. A function that forks ends its
        child itself (``os._exit``): one that comes back has no hub, and is ended.

        Raises
        ------
        AccessDenied, BrokerRefused
            This program's key has no right to offer it; another program offers it, and
            one of them is exclusive. Raised by giving it a function.
        """
        self._connection.check()
        return self._holdings.services.service(name, threads, exclusive)

    @OnAnyHub
    def services(self: MessageHub) -> list[ServiceInfo]:
        """Return the services that are offered, by name, with their commands and load."""
        services: list[ServiceInfo] = []
        for page in self._pages(
            protocol.ListServices, protocol.Services, lambda p: p.services[-1].name
        ):
            services += page.services
        return services

    @OnAnyHub
    def wait_for_service(
        self: MessageHub, name: str, timeout_s: float | None = None
    ) -> ServiceInfo:
        """Wait until somebody offers the service `name`, and return what it does.

        Raises
        ------
        ServiceNotFound
            Nobody does, in that time; the message names those that are offered.
        """
        deadline = deadline_after(timeout_s)
        with self.events(f"hub/service/{check_name(name)}") as changes:
            while True:
                services = {service.name: service for service in self.services()}
                if name in services:
                    return services[name]
                left_s = left_until(deadline)
                if not left_s:
                    raise ServiceNotFound(
                        f"nobody offers service {name!r} after {timeout_s:g} s.\n"
                        f"  There are: {', '.join(services) or 'none'}."
                    )
                with contextlib.suppress(WaitTimeout):
                    changes.get(min(left_s, 1.0))

    @OnAnyHub
    def start_call(
        self: MessageHub,
        service: str,
        command: str,
        /,
        *positional: Any,
        timeout_s: float = 10.0,
        **arguments: Any,
    ) -> PendingCall:
        """Have another program do a command, and return at once.

        What is returned can be waited for, awaited, and cancelled, and tells of
        progress. Arguments go by name; they are what a flex zone may hold.

        Raises
        ------
        CodecError, CapacityError
            The arguments cannot be shared, or take more than 48 KiB.
        """
        return self._call(service, command, positional, arguments, timeout_s)

    @OnAnyHub
    def call(
        self: MessageHub,
        service: str,
        command: str,
        /,
        *positional: Any,
        timeout_s: float = 10.0,
        **arguments: Any,
    ) -> Any:
        """Have another program do a command, wait for it, and return its result.

        ``hub.call("cam1", "set_exposure", exposure_s=0.1, timeout_s=2)``. It is
        done once, or not at all, also when the broker is killed meanwhile.

        Raises
        ------
        CommandFailed
            It raised an error there, or did not take the arguments.
        ServiceDied
            The program that had it is gone; whether it was done cannot be told.
        WaitTimeout
            It was not done in `timeout_s`.
        ServiceNotFound, AccessDenied, BrokerUnreachable
            Nobody offers it; one may not; there is no broker.
        """
        return self._call(service, command, positional, arguments, timeout_s).result()

    @OnAnyHub
    async def acall(
        self: MessageHub,
        service: str,
        command: str,
        /,
        *positional: Any,
        timeout_s: float = 10.0,
        **arguments: Any,
    ) -> Any:
        """Do what `call` does without holding up the event loop."""
        return await self._call(service, command, positional, arguments, timeout_s)

    # --- State and events ---

    @OnAnyHubProperty
    def state(self: MessageHub) -> State:
        """The state that all programs share: ``hub.state["cam1/exposure_s"] = 0.1``."""
        self._connection.check()
        return self._state

    @OnAnyHub
    def publish(
        self: MessageHub,
        topic: str,
        value: Any = None,
        *,
        severity: Severity = "info",
        keep: bool = False,
    ) -> None:
        """Tell who listens to `topic` of an event; returns when the broker has it.

        Parameters
        ----------
        value
            What a flex zone may hold, of up to 48 KiB.
        keep
            Whether it is told to those who listen later, until the next one of
            that topic; with `value` None, that none is kept any more.

        Raises
        ------
        AccessDenied
            One may not; topics below ``hub/`` are the broker's own.
        """
        self._connection.ask(publication(topic, value, severity, keep), protocol.Done)

    @OnAnyHub
    def events(self: MessageHub, pattern: str = "*") -> EventFeed:
        """Return a feed of the events whose topics match, from now on; first, of kept ones.

        Topics below ``hub/`` tell of channels, services and programs that come
        and go; ``log/`` and ``alarm/`` are customary. Close it, or use it as a context.
        """
        return self._holdings.watching.events(pattern)

    @OnAnyHub
    def alarm(
        self: MessageHub,
        name: str,
        text: str | None,
        *,
        severity: Severity = "error",
    ) -> None:
        """Raise the alarm `name`, for now and for who comes later; `text` None: it is over."""
        topic = f"alarm/{name}"
        if text is None:
            self.publish(topic, None, severity="info", keep=True)
        else:
            self.publish(topic, {"text": text}, severity=severity, keep=True)

    @OnAnyHub
    def log_handler(self: MessageHub, level: int | str = logging.INFO) -> LogHandler:
        """Return a handler that publishes a program's log: ``logging.getLogger().addHandler``."""
        return LogHandler(self._connection, level)

    # --- The broker ---

    @OnAnyHub
    def programs(self: MessageHub) -> tuple[list[protocol.ProgramInfo], dict[str, int]]:
        """Return who is connected, and what the broker counted; for administrators."""
        programs: list[protocol.ProgramInfo] = []
        counters: dict[str, int] = {}
        for page in self._pages(
            protocol.ListPrograms, protocol.Programs, lambda p: p.programs[-1].id
        ):
            programs += page.programs
            counters = page.counters
        return programs, counters

    @OnAnyHub
    def stop_broker(self: MessageHub) -> None:
        """Have the broker end; for administrators. Programs that are left start another one."""
        self._connection.ask(protocol.Shutdown(), protocol.Done)

    def serve(self) -> None:
        """Wait until Ctrl-C, SIGTERM or `close`, while services and channels do their work.

        The last line of a program that only serves others. In the main thread
        Ctrl-C and SIGTERM just end it; whatever follows it is still done.
        """
        self._connection.check()
        is_main = threading.current_thread() is threading.main_thread()
        former = signal.signal(signal.SIGTERM, _interrupt) if is_main else None
        try:
            while not self._connection.is_closed:
                self._connection.wait_for_end(_LOOK_AGAIN_S)
        except KeyboardInterrupt:
            pass
        finally:
            if is_main:
                signal.signal(signal.SIGTERM, former)

    def _pages(
        self, ask_from: Callable[[str], RequestBody], expect: type[P], last: Callable[[P], str]
    ) -> Iterator[P]:
        """Ask for a list, page by page: each begins after the `last` of the one before."""
        after = ""
        while True:
            page = self._connection.ask(ask_from(after), expect)
            yield page
            if page.is_last:
                return
            after = last(page)

    # --- What the broker is told ---

    def _call(
        self,
        service: str,
        command: str,
        positional: tuple[Any, ...],
        arguments: dict[str, Any],
        timeout_s: float,
    ) -> PendingCall:
        if positional:
            raise TypeError(
                f"arguments of {service}.{command} go by name, not {positional[0]!r:.50} alone.\n"
                f"  Which it has: pyhub call {service}"
            )
        return self._holdings.calls.start(
            check_name(service, "service"), check_name(command, "command"), arguments, timeout_s
        )

    def _adopt_producer(self, producer: DataBlockProducer) -> DataBlockProducer:
        header = producer.header()
        channel = ChannelInfo(
            name=producer.name,
            kind="datablock",
            dtype=producer._block.dtype,
            shape=header.shape,
            n_slots=header.n_slots,
            segment_id=header.segment_id,
            host=os.uname().nodename,
            pid=header.owner_pid,
            access=f"uid {os.geteuid()} on {os.uname().nodename}, mode 0600",
        )
        connection, holdings, name = self._connection, self._holdings, producer.name
        # Before the broker hears of it: should that one die now, the next one
        # is told as well.
        holdings.channels[channel.segment_id] = channel
        holdings.producers[channel.segment_id] = weakref.ref(producer)
        try:
            registered = connection.ask(protocol.Register(channel), protocol.Registered)
            publisher = NotificationPublisher(
                connection.context, self._endpoint(registered.endpoint, name), name
            )
        except BaseException:
            _forget_channel(connection, holdings, channel)
            producer.close()
            raise
        holdings.sockets.add(publisher)
        producer._notify = publisher
        end = weakref.finalize(producer, _end_producing, connection, holdings, channel, publisher)
        # Also keeps the hub for as long as its channel.
        producer._on_close = lambda: self._end(end)
        self._producers.add(producer)
        return producer

    def _listen(self, name: str) -> NotificationListener:
        found = self._connection.ask(protocol.LookUp(name), protocol.Found)
        endpoint = self._endpoint(found.endpoint, name)
        return NotificationListener(self._connection.context, endpoint, name)

    def _endpoint(self, told: str, name: str) -> str:
        # Notifications stay on their host: another host's broker names files of its own.
        connection = self._connection
        return connection.runtime.endpoint_of(name) if connection.is_remote else told

    def _adopt_consumer(
        self, consumer: DataBlockConsumer, listener: NotificationListener | None
    ) -> None:
        connection, holdings, name = self._connection, self._holdings, consumer.name
        reader = next(self._reader_numbers)
        if listener is not None:
            holdings.sockets.add(listener)
        end = weakref.finalize(consumer, _end_reading, connection, holdings, reader, listener)

        def tell_attached(segment_id: str) -> None:
            holdings.readers[reader] = (name, segment_id)
            connection.tell(protocol.ReaderAttached(reader, name, segment_id))
            if not end.alive:  # another thread closed it meanwhile
                _forget_reader(connection, holdings, reader)

        consumer._on_attach = tell_attached
        consumer._on_close = lambda: self._end(end)
        self._consumers.add(consumer)

    def _end(self, finalizer: weakref.finalize[..., Any]) -> None:
        finalizer()

    def _known_of(self, name: str) -> str:
        with contextlib.suppress(BrokerUnreachable, BrokerRefused):
            found = self._connection.ask(protocol.LookUp(name), protocol.Found).channel
            if found is not None:
                return (
                    f"The broker knows it: it is in the shared memory of {found.access} "
                    f"(pid {found.pid}).\n  Frames do not leave that user and host: run this "
                    "program there."
                )
        return self._known_channels()

    def _known_channels(self) -> str:
        try:
            names = [channel.name for channel in self.channels()]
        except (BrokerUnreachable, BrokerRefused) as error:
            return f"Which there are, the broker does not say: {error}"
        return f"The broker knows: {', '.join(names) or 'none'}."


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


# The ends of things, which finalizers call: at `close`, when nobody holds the
# thing any more, or at exit. They never wait for the broker.


def _end_producing(
    connection: Connection,
    holdings: Holdings,
    channel: ChannelInfo,
    publisher: NotificationPublisher,
) -> None:
    publisher.close()
    holdings.sockets.discard(publisher)
    _forget_channel(connection, holdings, channel)


def _forget_channel(connection: Connection, holdings: Holdings, channel: ChannelInfo) -> None:
    holdings.channels.pop(channel.segment_id, None)
    holdings.producers.pop(channel.segment_id, None)
    connection.tell(protocol.Unregister(channel.name, channel.segment_id))


def _end_reading(
    connection: Connection,
    holdings: Holdings,
    reader: int,
    listener: NotificationListener | None,
) -> None:
    if listener is not None:
        listener.close()
        if listener.is_closed:  # not yet, if a signal handler interrupted its wait
            holdings.sockets.discard(listener)
    _forget_reader(connection, holdings, reader)


def _forget_reader(connection: Connection, holdings: Holdings, reader: int) -> None:
    holdings.readers.pop(reader, None)
    connection.tell(protocol.ReaderDetached(reader))


def _leave(connection: Connection, holdings: Holdings) -> None:
    holdings.close()
    # Those that the garbage collector found together with the hub: the
    # context's end would wait for them for ever.
    open_sockets = holdings.sockets.copy()
    for open_socket in open_sockets:
        open_socket.close()
    is_free = all(open_socket.is_closed for open_socket in open_sockets)
    connection.close(wait=is_free)
