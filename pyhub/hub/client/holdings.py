"""What a hub's program has, as its brokers are told."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from typing import Any

from pyhub.datablock import DataBlockProducer
from pyhub.errors import ChannelClosed, PyhubError
from pyhub.hub import protocol
from pyhub.hub.client.calls import Calls
from pyhub.hub.client.connection import Connection
from pyhub.hub.client.notifications import NotificationListener, NotificationPublisher
from pyhub.hub.client.service import Services
from pyhub.hub.client.session import Ask, Question
from pyhub.hub.client.watching import Watching
from pyhub.hub.protocol import ChannelInfo, ChannelMetrics, PushBody

__all__ = ["Holdings"]

_log = logging.getLogger("pyhub.hub")

_MAX_METRICS = 300  # channels in one report
_FRAMES = 4  # of a block's snapshot: publishes of its structured buffer


class Holdings:
    """What a hub's program has: what its brokers are told, and its sockets.

    Apart from the hub, so that finalizers may hold it. No lock, as they run
    at any moment, inside others' locked sections too: each change is one
    operation on a dictionary or a set.
    """

    def __init__(self) -> None:
        self.channels: dict[str, ChannelInfo] = {}  # segment id -> channel
        self.readers: dict[int, tuple[str, str]] = {}  # reader -> name, segment id
        self.sockets: set[NotificationPublisher | NotificationListener] = set()
        self.producers: dict[str, weakref.ref[DataBlockProducer]] = {}  # by segment id
        self.calls = Calls()
        self.services = Services()
        self.watching = Watching()
        self._takers: dict[type[PushBody], Callable[[Any], None]] = {
            protocol.Execute: self.services.take,
            protocol.Abort: self.services.abort,
            protocol.Finished: self.calls.take,
            protocol.Progressed: self.calls.take,
            protocol.StateChanged: self.watching.take,
            protocol.EventHappened: self.watching.take,
        }
        self._reported: dict[str, tuple[float, int]] = {}  # segment id -> when, how many frames

    def serve(self, connection: Connection) -> None:
        """Use that connection."""
        self.calls.connection = connection
        self.services.connection = connection
        self.watching.connection = connection

    def introduction(self) -> list[Question]:
        """Return what a broker that knows nothing of this program has to be told."""
        return [
            *(
                Ask(protocol.Register(channel), None, is_news=True)
                for channel in self.channels.copy().values()
            ),
            *(
                Ask(protocol.ReaderAttached(n, *what), None, is_news=True)
                for n, what in self.readers.copy().items()
            ),
            *self.services.introduction(),
            *self.watching.introduction(),
            *self.calls.introduction(),
        ]

    def report(self) -> list[Ask]:
        """Return what the channels counted, for a broker: once a heartbeat."""
        self.calls.expire()
        metrics = {}
        for segment_id, producer in self.producers.copy().items():
            found = self._metrics(segment_id, producer())
            if found is not None:
                metrics[segment_id] = found
        ids = list(metrics)
        parts = [ids[n : n + _MAX_METRICS] for n in range(0, len(ids), _MAX_METRICS)]
        return [
            Ask(protocol.Report({i: metrics[i] for i in part}), None, is_news=True)
            for part in parts
        ]

    def take(self, body: PushBody) -> None:
        """Take what the broker pushed."""
        self._takers[type(body)](body)

    def glance(self, body: PushBody) -> bool:
        """Look at what is about to be taken: whether nobody needs it but who waits for it."""
        return isinstance(body, protocol.Finished) and self.calls.glance(body)

    def take_gap(self, n_lost: int) -> None:
        """Hear that pushes were lost: ask again for what they may have been."""
        connection = self.calls.connection
        assert connection is not None
        _log.warning("%d messages of the broker were lost: this program was too slow", n_lost)
        again: list[Question] = [
            *self.services.held(), *self.watching.note_gap(n_lost), *self.calls.introduction()
        ]  # fmt: skip
        for ask in again:
            connection.put(ask)

    def end(self, error: PyhubError) -> None:
        """Tell all who wait for the broker that nothing comes any more."""
        self.calls.fail(error)
        self.watching.close(error)

    @property
    def is_held(self) -> bool:
        """Whether this very thread is amid what the broker's messages change."""
        return self.services.lock.is_mine

    def close(self) -> None:
        """End what waits for the broker, and what the broker waits for."""
        error = ChannelClosed("this hub was shut down.\n  Make a new MessageHub.")
        self.services.close()
        self.calls.close(error)
        self.watching.close(error)

    def _metrics(
        self, segment_id: str, producer: DataBlockProducer | None
    ) -> ChannelMetrics | None:
        try:
            if producer is None:
                return None
            block = producer._block
            n_frames, n_dropped = int(block.snapshot()[_FRAMES]), block.n_dropped
        except (PyhubError, OSError):  # it was closed just now
            return None
        now = time.monotonic()
        since, before = self._reported.get(segment_id, (now, n_frames))
        self._reported[segment_id] = now, n_frames
        rate_hz = (n_frames - before) / (now - since) if now > since else 0.0
        return ChannelMetrics(n_frames, n_dropped, max(rate_hz, 0.0))
