"""iceoryx2: publish-subscribe with loans, in place at both ends.

The publisher waits for its subscribers (no safe overflow, retry until
delivered). The subscriber polls, or sleeps on an event service beside.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from typing import Any, ClassVar

import iceoryx2 as iox2
import numpy as np
from link import Place, Way, Words, attempts, depth, stamp

__all__ = ["WAYS"]

_N_SUBSCRIBERS = 16


class _End:
    """A node with a configuration of its own, so that nothing of it meets another's."""

    def __init__(self, place: Place, n_words: int) -> None:
        iox2.set_log_level(iox2.LogLevel.Fatal)
        configuration = iox2.config.default()
        configuration.global_cfg.root_path = iox2.Path.new(place.path(".iox2"))
        configuration.global_cfg.prefix = iox2.FileName.new(f"{place.name}_")
        self._node = iox2.NodeBuilder.new().config(configuration).create(iox2.ServiceType.Ipc)
        self._n_words = n_words
        self._memory = ctypes.c_uint64 * n_words

    def view(self, sample: Any) -> Words:
        """Return the words of a sample or loan.

        `sample.payload().as_memory_view()` is the same memory, but makes a
        class of ctypes each time, which takes as long as everything else.
        """
        return np.frombuffer(self._memory.from_address(sample.payload_ptr), np.uint64)

    def frames(self) -> Any:
        """Open the service for frames; two ends may be creating it at this moment."""
        builder = (
            self._node.service_builder(iox2.ServiceName.new("frames"))
            .publish_subscribe(iox2.Slice[ctypes.c_uint64])
            .enable_safe_overflow(False)
            .max_publishers(1)
            .max_subscribers(_N_SUBSCRIBERS)
            .max_nodes(_N_SUBSCRIBERS + 1)
            .subscriber_max_buffer_size(depth(self._n_words))
            .subscriber_max_borrowed_samples(1)
            .history_size(0)
        )
        return _open(builder)

    def events(self) -> Any:
        """Open the service for wake-ups."""
        name = iox2.ServiceName.new("arrivals")
        builder = self._node.service_builder(name).event().max_listeners(_N_SUBSCRIBERS)
        return _open(builder.max_nodes(_N_SUBSCRIBERS + 1))


class _Sender:
    wakes: ClassVar[bool] = False

    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        self._end = _End(place, n_words)
        self._n_words = n_words
        self._publisher = (
            self._end.frames()
            .publisher_builder()
            .initial_max_slice_len(n_words)
            .max_loaned_samples(1)
            .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        self._notifier = self._end.events().notifier_builder().create() if self.wakes else None

    def send(self, number: int) -> None:
        loan = self._publisher.loan_slice_uninit(self._n_words)
        stamp(self._end.view(loan), number)
        loan.assume_init().send()
        if self._notifier is not None:
            self._notifier.notify()

    def close(self) -> None:
        if self._notifier is not None:
            self._notifier.delete()
        self._publisher.delete()


class _EventSender(_Sender):
    wakes = True


class _Receiver:
    def __init__(self, place: Place, n_words: int, index: int) -> None:
        self._end = _End(place, n_words)
        builder = self._end.frames().subscriber_builder()
        self._subscriber = builder.buffer_size(depth(n_words)).create()
        self._sample: Any = None

    def receive(self, timeout_s: float) -> Words | None:
        self._give_back()
        receive = self._subscriber.receive
        sample = receive()
        if sample is None:
            deadline = time.monotonic() + timeout_s
            while sample is None:
                if time.monotonic() > deadline:
                    return None
                sample = receive()
        return self._view(sample)

    def close(self) -> None:
        self._give_back()
        self._subscriber.delete()

    def _view(self, sample: Any) -> Words:
        self._sample = sample
        return self._end.view(sample)

    def _give_back(self) -> None:
        if self._sample is not None:
            self._sample.delete()
            self._sample = None


class _EventReceiver(_Receiver):
    def __init__(self, place: Place, n_words: int, index: int) -> None:
        super().__init__(place, n_words, index)
        self._listener = self._end.events().listener_builder().create()

    def receive(self, timeout_s: float) -> Words | None:
        self._give_back()
        sample = self._subscriber.receive()
        deadline = time.monotonic() + timeout_s
        while sample is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            # An event may stand for several frames, or for one already taken.
            self._listener.timed_wait(iox2.Duration.from_secs_f64(left_s))
            sample = self._subscriber.receive()
        return self._view(sample)

    def close(self) -> None:
        super().close()
        self._listener.delete()


def _open(builder: Any) -> Any:
    error: Exception | None = None
    with contextlib.suppress(TimeoutError):
        for _ in attempts("the iceoryx2 service"):
            try:
                return builder.open_or_create()
            except Exception as caught:
                error = caught
    raise RuntimeError(f"iceoryx2 service: {error!r}")


WAYS = {
    way.name: way
    for way in (
        Way("iceoryx2, polling", _Sender, _Receiver, True, "polls"),
        Way(
            "iceoryx2, event",
            _EventSender,
            _EventReceiver,
            True,
            "sleeps",
            remark="one notification a frame, to all listeners",
        ),
    )
}
