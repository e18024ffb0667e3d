"""A feed: in order, for whoever waits, polls or awaits; who is slow loses the oldest, counted."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest
import zmq

from pyhub import ChannelClosed, WaitTimeout
from pyhub.codec import encode_value
from pyhub.errors import CodecError, ForkedHandle
from pyhub.hub.client.feed import MAX_ITEMS, Feed
from pyhub.hub.client.values import unpack
from tests.conftest import descriptors, eventually, exit_status, fork, turns

WATCHDOG_S = 30


def feed_of(*items: int) -> Feed[int]:
    feed: Feed[int] = Feed("numbers")
    put_all(feed, *items)
    return feed


def put_all(feed: Feed[int], *items: int) -> None:
    for item in items:
        feed.put(item)


def is_readable(feed: Feed[int]) -> bool:
    poller = zmq.Poller()
    poller.register(feed.fileno(), zmq.POLLIN)
    return bool(poller.poll(0))


# --- Ends ---


def test_what_comes_while_a_feed_is_closed_is_not_given() -> None:
    feed = feed_of()
    feed.close()
    feed._items.append(1)  # by a thread that was in `put`
    with pytest.raises(ChannelClosed):
        feed.get(0)
    assert feed.taken() == []


# --- Waiting ---


def test_items_come_in_the_order_in_which_they_were_put() -> None:
    feed = feed_of(1, 2, 3)
    assert [feed.get(0), feed.get(0), feed.get(0)] == [1, 2, 3]
    assert feed.n_lost == 0


def test_nothing_in_time_is_told_with_the_time_and_what_was_waited_for() -> None:
    feed = feed_of()
    for timeout_s in (0, 0.01):
        with pytest.raises(WaitTimeout, match=rf"numbers: nothing came within {timeout_s} s"):
            feed.get(timeout_s)


def test_who_waits_is_woken_by_an_item() -> None:
    feed = feed_of()
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(feed.get(WATCHDOG_S)))
    waiting.start()
    feed.put(7)
    waiting.join()
    assert found == [7]


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda feed: feed.close(), ChannelClosed),
        (lambda feed: feed.end(ChannelClosed("the hub is gone")), ChannelClosed),
        (lambda feed: feed.end(PermissionError("no")), PermissionError),
    ],
)
def test_who_waits_is_woken_by_the_end(
    end: Callable[[Feed[int]], None], error: type[Exception]
) -> None:
    feed = feed_of()
    found: list[BaseException] = []

    def wait() -> None:
        with pytest.raises(error) as raised:
            feed.get(WATCHDOG_S)
        found.append(raised.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert eventually(lambda: bool(feed._changed.n_waiting))
    end(feed)
    waiting.join()
    assert len(found) == 1


@pytest.mark.parametrize("is_amid", [True, False])
@pytest.mark.parametrize("timeout_s", [None, 1000.0])
def test_a_forks_child_is_told_that_nothing_comes_there(
    timeout_s: float | None, is_amid: bool
) -> None:
    """Also where a signal's handler forked while it waited."""
    feed, children = feed_of(), list[int]()

    def fork_once(*_: object) -> None:
        children.append(fork())
        if children[0]:
            feed.put(1)

    def interrupt() -> None:
        assert eventually(lambda: feed._changed.n_waiting == 1, WATCHDOG_S)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    former = signal.signal(signal.SIGUSR1, fork_once)
    if is_amid:
        threading.Thread(target=interrupt).start()
    else:
        fork_once()
    try:
        assert feed.get(timeout_s) == 1
    except ForkedHandle:
        if children[0]:
            raise
        os._exit(0)
    finally:
        if children == [0]:
            os._exit(1)
        signal.signal(signal.SIGUSR1, former)
    assert exit_status(children[0]) == 0


def test_several_who_wait_get_each_item_once() -> None:
    feed = feed_of()
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(feed)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1000):
        feed.put(number)
    feed.end(ChannelClosed("that was all"))
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1000))


# --- The end ---


def test_what_came_before_the_end_is_given_before_the_error() -> None:
    feed = feed_of(1, 2)
    feed.end(ChannelClosed("that was all"))
    feed.end(ChannelClosed("a second reason does not replace the first"))
    assert list(feed) == [1, 2]
    with pytest.raises(ChannelClosed, match="that was all"):
        feed.get(0)


def test_an_error_that_is_no_end_is_raised_where_one_iterates() -> None:
    feed = feed_of(1)
    feed.end(PermissionError("no right"))
    items = iter(feed)
    assert next(items) == 1
    with pytest.raises(PermissionError, match="no right"):
        next(items)


def test_closing_drops_what_is_there_and_tells_once() -> None:
    told: list[str] = []
    feed: Feed[int] = Feed("numbers", lambda: told.append("closed"))
    feed.put(1)
    with feed:
        was_closed = feed.is_closed
    feed.close()
    feed.put(2)
    assert (was_closed, feed.is_closed) == (False, True)
    assert told == ["closed"]
    with pytest.raises(ChannelClosed, match="numbers: this was closed"):
        feed.get(0)
    with pytest.raises(ChannelClosed, match="numbers: this was closed"):
        feed.fileno()


# --- Who is slow ---


def test_who_is_slow_loses_the_oldest_and_is_told_how_many() -> None:
    feed = feed_of(*range(MAX_ITEMS))
    assert feed.n_lost == 0, "the negative control: as many as there is room for"
    for number in range(MAX_ITEMS, MAX_ITEMS + 5):
        feed.put(number)
    assert feed.n_lost == 5
    assert feed.taken() == list(range(5, MAX_ITEMS + 5))
    assert feed.taken() == []


# --- Polling ---


def test_its_descriptor_is_readable_while_there_is_something_to_get() -> None:
    with feed_of() as feed:
        assert not is_readable(feed)
        feed.put(1)
        feed.put(2)
        assert is_readable(feed)
        feed.get(0)
        assert is_readable(feed), "one is left"
        feed.get(0)
        assert not is_readable(feed)
        feed.put(3)
        assert is_readable(feed)
        assert feed.taken() == [3]
        assert not is_readable(feed), "all was taken at once"


def test_its_descriptor_is_readable_when_it_was_asked_for_late() -> None:
    with feed_of(1) as feed:
        assert is_readable(feed)
        assert feed.fileno() == feed.fileno()


def test_its_descriptor_stays_readable_at_the_end() -> None:
    with feed_of(1) as feed:
        feed.fileno()
        feed.end(ChannelClosed("that was all"))
        for _ in range(2):
            assert is_readable(feed)
            feed.taken()
    with feed_of() as feed:
        feed.end(ChannelClosed("that was all"))
        assert is_readable(feed)


def test_a_descriptor_does_not_outlive_its_feed() -> None:
    before = descriptors()
    feed = feed_of()
    feed.fileno()
    assert descriptors() != before, "the negative control"
    feed.close()
    assert descriptors() == before
    feed = feed_of()
    feed.fileno()
    del feed
    gc.collect()
    assert descriptors() == before, "nobody closed it, and nobody holds it"


def test_an_event_loop_can_watch_its_descriptor() -> None:
    async def collect(feed: Feed[int]) -> list[int]:
        found: list[int] = []
        is_done = asyncio.Event()

        def take() -> None:
            found.append(feed.get(0))
            if len(found) == 100:
                is_done.set()

        loop = asyncio.get_running_loop()
        loop.add_reader(feed.fileno(), take)
        producer = threading.Thread(target=put_all, args=(feed, *range(100)))
        producer.start()
        await asyncio.wait_for(is_done.wait(), WATCHDOG_S)
        loop.remove_reader(feed.fileno())
        producer.join()
        return found

    with feed_of() as feed:
        assert asyncio.run(collect(feed)) == list(range(100))


# --- Awaiting ---


def test_async_for_gives_all_until_the_end() -> None:
    async def collect(feed: Feed[int]) -> list[int]:
        return [item async for item in feed]

    def produce() -> None:
        put_all(feed, *range(1, 500))
        feed.end(ChannelClosed("that was all"))

    feed = feed_of(0)
    producer = threading.Thread(target=produce)
    producer.start()
    assert asyncio.run(collect(feed)) == list(range(500))
    producer.join()


def test_awaiting_ends_at_its_time_and_takes_nothing_with_it() -> None:
    async def wait(feed: Feed[int]) -> int:
        for timeout_s in (0, 0.01):
            with pytest.raises(WaitTimeout, match="nothing came within"):
                await feed.aget(timeout_s)
        task = asyncio.create_task(feed.aget())
        await asyncio.sleep(0)  # until it waits
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert feed._wakers == []
        feed.put(1)
        return await feed.aget(WATCHDOG_S)

    assert asyncio.run(wait(feed_of())) == 1


@pytest.mark.parametrize("n_turns", range(8))
def test_a_task_is_cancelled_also_while_an_item_comes(n_turns: int) -> None:
    async def follow(feed: Feed[int]) -> None:
        while True:
            await feed.aget()

    async def main() -> None:
        feed = feed_of()
        task = asyncio.create_task(follow(feed))
        await turns(3)  # until it waits
        feed.put(1)
        await turns(n_turns)
        task.cancel()
        await turns(10)
        assert task.cancelled()

    asyncio.run(main())


def test_all_who_await_are_woken_however_soon_the_first_of_them_goes() -> None:
    feed = feed_of()
    is_gone = threading.Event()

    async def wait() -> None:
        with pytest.raises(ChannelClosed):
            await feed.aget(WATCHDOG_S)
        is_gone.set()

    async def wait_twice() -> None:
        tasks = [asyncio.create_task(wait()) for _ in range(2)]
        await asyncio.sleep(0)  # until they wait
        # Between them, time for the first to take itself from the list.
        feed._wakers.insert(1, lambda: is_gone.wait(0.5))  # type: ignore[arg-type,return-value]
        ending = threading.Thread(target=feed.end, args=(ChannelClosed("that was all"),))
        ending.start()
        await asyncio.gather(*tasks)
        ending.join()

    asyncio.run(wait_twice())


def test_a_feed_outlives_the_event_loops_that_awaited_it() -> None:
    feed = feed_of()
    loop = asyncio.new_event_loop()
    task = loop.create_task(feed.aget())
    loop.run_until_complete(asyncio.sleep(0))
    feed._wakers.append(feed._wakers[0])  # as if it were about to be woken
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    feed.put(1)
    assert feed.get(0) == 1


# --- Values ---


def test_a_value_that_cannot_be_read_is_the_matter_of_who_takes_it() -> None:
    feed: Feed[object] = Feed("values", convert=unpack)
    for packed in (encode_value(1), b"\xc1", encode_value(3)):
        feed.put(packed)
    assert feed.get(0) == 1
    with pytest.raises(CodecError):
        feed.get(0)
    assert feed.get(0) == 3


def test_what_is_taken_at_once_loses_nothing_to_a_value_that_cannot_be_read() -> None:
    with Feed[object]("values", convert=unpack) as feed:
        for packed in (encode_value(1), encode_value(2), b"\xc1", encode_value(4)):
            feed.put(packed)
        assert is_readable(feed)
        assert feed.taken() == [1, 2]
        assert is_readable(feed), "there is more"
        with pytest.raises(CodecError):
            feed.taken()
        assert is_readable(feed)
        assert feed.taken() == [4]
        assert not is_readable(feed)


def test_a_feed_is_closed_from_any_thread_while_others_put() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        feed = feed_of()
        feed.fileno()
        producer = threading.Thread(target=put_all, args=(feed, *range(50)))
        producer.start()
        feed.close()
        producer.join()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("timeout_s", [float("nan"), -1, -float("inf")])
def test_what_is_no_time_to_wait_is_refused(timeout_s: float) -> None:
    feed: Feed[int] = Feed("numbers")
    with pytest.raises(ValueError, match="is no time to wait"):
        feed.get(timeout_s)
    with pytest.raises(ValueError, match="is no time to wait"):
        asyncio.run(feed.aget(timeout_s))


@pytest.mark.parametrize("timeout_s", [None, float("inf"), 10**400, 1e300, np.float32(2), 5])
def test_any_other_time_may_be_waited(timeout_s: float | None) -> None:
    feed = feed_of(1, 2)
    assert feed.get(timeout_s) == 1
    assert asyncio.run(feed.aget(timeout_s)) == 2
    threading.Timer(0.02, feed.put, [3]).start()
    assert feed.get(timeout_s) == 3
