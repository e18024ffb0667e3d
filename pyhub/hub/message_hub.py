"""MessageHub: where a program creates channels and finds those of others."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from pyhub.datablock import DataBlockConsumer, DataBlockProducer, Policy, Wait
from pyhub.errors import BrokerRefused, BrokerUnreachable, PyhubError, SegmentNotFound
from pyhub.hub import protocol
from pyhub.hub.connection import Connection
from pyhub.hub.notifications import NotificationListener, NotificationPublisher
from pyhub.hub.protocol import ChannelInfo
from pyhub.hub.runtime import BrokerConfig
from pyhub.names import check_name

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["MessageHub"]

P = ParamSpec("P")
R = TypeVar("R")


class _OnAnyHub(Generic[P, R]):
    """A method that, called on the class, acts on the hub of `initialize`.

    The seed's MessageHub is a static class; a Python program rather holds an
    object. One definition serves both.
    """

    def __init__(self, method: Callable[Concatenate[Any, P], R]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, hub: MessageHub | None, kind: type[MessageHub]) -> Callable[P, R]:
        @functools.wraps(self._method)
        def bound(*args: P.args, **kwargs: P.kwargs) -> R:
            return self._method(kind.instance() if hub is None else hub, *args, **kwargs)

        return bound


class _Holdings:
    """What a hub's program has: what its brokers are told, and its sockets.

    Apart from the hub, so that finalizers may hold it. No lock, as they run
    at any moment, inside others' locked sections too: each change is one
    operation on a dictionary or a set.
    """

    def __init__(self) -> None:
        self.channels: dict[str, ChannelInfo] = {}  # segment id -> channel
        self.readers: dict[int, tuple[str, str]] = {}  # reader -> name, segment id
        self.sockets: set[NotificationPublisher | NotificationListener] = set()

    def introduction(self) -> list[protocol.RequestBody]:
        """Return what a broker that knows nothing of this program has to be told."""
        return [
            *(protocol.Register(channel) for channel in self.channels.copy().values()),
            *(protocol.ReaderAttached(n, *what) for n, what in self.readers.copy().items()),
        ]


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
        self._holdings = _Holdings()
        self._reader_numbers = itertools.count()
        self._connection = Connection(config or BrokerConfig(), self._holdings.introduction)
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

    @_OnAnyHub
    def shutdown(self: MessageHub) -> None:
        """Do what `close` does; on the class, for the hub of `initialize`."""
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return not self._finalizer.alive

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

    @_OnAnyHub
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

    @_OnAnyHub
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
                raise SegmentNotFound(f"{error}\n  {self._known_channels()}") from error
            raise
        return consumer

    @_OnAnyHub
    def channels(self: MessageHub) -> list[ChannelInfo]:
        """Return the channels that the broker knows, by name."""
        return self._connection.ask(protocol.ListChannels(), protocol.Channels).channels

    @_OnAnyHub
    def n_readers(self: MessageHub, name: str) -> int:
        """Return how many consumers with a hub read the channel `name` now."""
        found = self._connection.ask(protocol.LookUp(check_name(name)), protocol.Found)
        return 0 if found.channel is None else found.channel.n_readers

    @_OnAnyHub
    def wait_for_readers(
        self: MessageHub, name: str, n_readers: int, timeout_s: float | None = None
    ) -> bool:
        """Wait until `n_readers` consumers read `name`; False at the deadline."""
        deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while self.n_readers(name) < n_readers:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)  # until a reader tells the broker
        return True

    # --- What the broker is told ---

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
        )
        connection, holdings = self._connection, self._holdings
        # Before the broker hears of it: should that one die now, the next one
        # is told as well.
        holdings.channels[channel.segment_id] = channel
        try:
            registered = connection.ask(protocol.Register(channel), protocol.Registered)
            publisher = NotificationPublisher(
                connection.context, registered.endpoint, producer.name
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
        endpoint = self._connection.ask(protocol.LookUp(name), protocol.Found).endpoint
        return NotificationListener(self._connection.context, endpoint, name)

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

    def _known_channels(self) -> str:
        try:
            names = [channel.name for channel in self.channels()]
        except (BrokerUnreachable, BrokerRefused) as error:
            return f"Which there are, the broker does not say: {error}"
        return f"The broker knows: {', '.join(names) or 'none'}."


# The ends of things, which finalizers call: at `close`, when nobody holds the
# thing any more, or at exit. They never wait for the broker.


def _end_producing(
    connection: Connection,
    holdings: _Holdings,
    channel: ChannelInfo,
    publisher: NotificationPublisher,
) -> None:
    publisher.close()
    holdings.sockets.discard(publisher)
    _forget_channel(connection, holdings, channel)


def _forget_channel(connection: Connection, holdings: _Holdings, channel: ChannelInfo) -> None:
    holdings.channels.pop(channel.segment_id, None)
    connection.tell(protocol.Unregister(channel.name, channel.segment_id))


def _end_reading(
    connection: Connection,
    holdings: _Holdings,
    reader: int,
    listener: NotificationListener | None,
) -> None:
    if listener is not None:
        listener.close()
        if listener.is_closed:  # not yet, if a signal handler interrupted its wait
            holdings.sockets.discard(listener)
    _forget_reader(connection, holdings, reader)


def _forget_reader(connection: Connection, holdings: _Holdings, reader: int) -> None:
    holdings.readers.pop(reader, None)
    connection.tell(protocol.ReaderDetached(reader))


def _leave(connection: Connection, holdings: _Holdings) -> None:
    # Those that the garbage collector found together with the hub: the
    # context's end would wait for them for ever.
    open_sockets = holdings.sockets.copy()
    for open_socket in open_sockets:
        open_socket.close()
    connection.close(wait=all(open_socket.is_closed for open_socket in open_sockets))
