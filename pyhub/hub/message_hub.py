"""MessageHub: where a program creates channels and finds those of others."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import numpy.typing as npt

from pyhub.datablock import DataBlockConsumer, DataBlockProducer
from pyhub.errors import BrokerRefused, BrokerUnreachable, PyhubError, SegmentNotFound
from pyhub.hub import protocol
from pyhub.hub.connection import Connection
from pyhub.hub.notifications import NotificationListener, NotificationPublisher
from pyhub.hub.protocol import ChannelInfo
from pyhub.hub.runtime import BrokerConfig
from pyhub.names import check_name

__all__ = ["MessageHub"]

_log = logging.getLogger("pyhub.hub")

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
        bound: Callable[P, R] = self._method.__get__(kind.instance() if hub is None else hub, kind)
        return bound


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

    def __init__(self, config: BrokerConfig | None = None) -> None:
        self._producers: weakref.WeakSet[DataBlockProducer] = weakref.WeakSet()
        self._consumers: weakref.WeakSet[DataBlockConsumer] = weakref.WeakSet()
        self._registered: dict[str, ChannelInfo] = {}
        self._reading: dict[int, tuple[str, str]] = {}  # reader -> name, segment
        self._reader_numbers = itertools.count()
        self._lock = threading.Lock()
        # Weak: a hub that nobody holds any more is to go, heartbeat and all.
        again = weakref.WeakMethod(self._register_again)
        self._connection = Connection(
            config or BrokerConfig(), lambda: (method := again()) and method()
        )
        self._finalizer = weakref.finalize(self, self._connection.close)

    # --- Static form ---

    @classmethod
    def initialize(cls, config: BrokerConfig | None = None) -> bool:
        """Make the hub that calls on the class use; False if there is one already."""
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
    ) -> DataBlockProducer:
        """Create the channel `name` and tell the broker.

        Arguments and errors as for `DataBlockProducer.create`; also
        `BrokerRefused` if another host has a channel of that name.
        """
        producer = DataBlockProducer.create(
            name,
            structured_buffer_size,
            flexible_zone_size,
            dtype=dtype,
            shape=shape,
            slots=slots,
        )
        return self._adopt_producer(producer)

    @_OnAnyHub
    def find_datablock_consumer(
        self: MessageHub, name: str, *, timeout_s: float | None = 5.0
    ) -> DataBlockConsumer:
        """Return a consumer of the channel `name`, waiting for its producer.

        It finds channels of this host, also those of producers without a hub
        (a C program, say).

        Raises
        ------
        SegmentNotFound
            The channel did not appear in `timeout_s`; the message lists those
            that there are.
        """
        endpoint = self._connection.ask(protocol.LookUp(check_name(name)), protocol.Found).endpoint
        listener = NotificationListener(self._connection.context, endpoint, name)
        consumer = DataBlockConsumer(name, waiter=listener)
        reader = next(self._reader_numbers)
        consumer._on_attach = lambda segment_id: self._reader_attached(reader, name, segment_id)
        consumer._on_close = lambda: self._reader_detached(reader)
        try:
            consumer.wait_for_producer(timeout_s)
        except BaseException as error:
            consumer.close()
            if isinstance(error, SegmentNotFound):
                known = ", ".join(channel.name for channel in self.channels()) or "none"
                raise SegmentNotFound(f"{error}\n  The broker knows: {known}.") from error
            raise
        self._consumers.add(consumer)
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

    # --- With the broker ---

    def _adopt_producer(self, producer: DataBlockProducer) -> DataBlockProducer:
        header = producer.header()
        channel = ChannelInfo(
            name=producer.name,
            kind="datablock",
            dtype=producer._block.dtype,
            shape=header.shape,
            n_slots=header.n_slots,
            segment_id=header.segment_id,
            host=socket.gethostname(),
            pid=header.owner_pid,
        )
        try:
            registered = self._connection.ask(protocol.Register(channel), protocol.Registered)
            publisher = NotificationPublisher(
                self._connection.context, registered.endpoint, producer.name
            )
        except BaseException:
            producer.close()
            raise
        with self._lock:
            self._registered[channel.name] = channel
        producer._notify = publisher
        producer._on_close = lambda: self._producer_closed(channel, publisher)
        self._producers.add(producer)
        return producer

    def _producer_closed(self, channel: ChannelInfo, publisher: NotificationPublisher) -> None:
        publisher.close()
        with self._lock:
            self._registered.pop(channel.name, None)
        self._tell(protocol.Unregister(channel.name, channel.segment_id))

    def _reader_attached(self, reader: int, name: str, segment_id: str) -> None:
        with self._lock:
            was_reading = self._reading.get(reader)
            self._reading[reader] = (name, segment_id)
        if was_reading is not None:
            self._tell(protocol.ReaderDetached(*was_reading))
        self._tell(protocol.ReaderAttached(name, segment_id))

    def _reader_detached(self, reader: int) -> None:
        with self._lock:
            was_reading = self._reading.pop(reader, None)
        if was_reading is not None:
            self._tell(protocol.ReaderDetached(*was_reading))

    def _tell(self, body: protocol.RequestBody) -> None:
        """Say something that must not stop frames when there is no broker."""
        if not self.is_closed:
            with contextlib.suppress(BrokerUnreachable, BrokerRefused):
                self._connection.ask(body, protocol.Done)

    def _register_again(self) -> None:
        """Tell a new broker of what this program has."""
        with self._lock:
            channels = list(self._registered.values())
            readers = list(self._reading.values())
        for channel in channels:
            self._connection.ask(protocol.Register(channel), protocol.Registered)
        for name, segment_id in readers:
            self._connection.ask(protocol.ReaderAttached(name, segment_id), protocol.Done)
        _log.info("registered %d channels again", len(channels))
