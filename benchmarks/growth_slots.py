"""How does the cost of a hand-over grow with the slots of a channel's ring?"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
from growth_timing import Answer, Effort, Row, hand_over, medians, shm_kib

import pyhub

__all__ = ["measure_slots"]

_LIVES = 15  # of a channel, to see what creating and attaching takes


def measure_slots(effort: Effort) -> Answer:
    """Measure every number of slots."""
    answer = Answer(
        "slots",
        "Slots of a ring",
        "Frames of 64 B, read in order (`policy=\"every\"`). `put` and `look`: µs a call; `create` "
        "and `attach`: µs each, pages not mapped beforehand; `memory`: KiB of a channel, most of "
        "it the slots' parameters (4 KiB each). Medians.",
        "slots",
        {
            "publish": "put", "look": "look", "hand_over": "both in turns",
            "create": "create", "attach": "attach", "shm_kib": "memory, KiB",
        },
    )  # fmt: skip
    for n_slots in effort.slots:
        values = _hand_overs(n_slots, effort.seconds) | _lives(n_slots)
        micro = {key: v if key.endswith("kib") else v / 1000 for key, v in values.items()}
        answer.rows.append(Row(n_slots, f"{n_slots}", micro))
    return answer


def _create(n_slots: int, *, prefault: bool) -> pyhub.DataBlockProducer:
    return pyhub.DataBlockProducer.create(
        "slots", dtype="u8", shape=8, slots=n_slots, prefault=prefault
    )


def _hand_overs(n_slots: int, seconds: float) -> dict[str, float]:
    image = np.arange(8, dtype=np.uint64)
    with (
        _create(n_slots, prefault=True) as producer,
        pyhub.DataBlockConsumer.attach("slots", policy="every", prefault=True) as consumer,
    ):
        result = hand_over(
            consumer, partial(producer.put, image), partial(consumer.look, 0), seconds
        )
        n_published = producer.header().structured_buffer_version
        assert consumer.n_read + consumer.n_lost == n_published, "a frame was not counted"
        # A whole ring, each frame another: nothing is lost, and all are in order.
        lost = consumer.n_lost
        for number in range(n_slots):
            image[0] = number
            producer.put(image)
        for number in range(n_slots):
            frame = consumer.look(0)
            assert frame.frame_id == n_published + number, "not in order"
            assert frame.data[0] == number
        assert consumer.n_lost == lost
    return result


def _lives(n_slots: int) -> dict[str, float]:
    """Create the channel and attach to it, again and again."""
    samples: dict[str, list[float]] = {"create": [], "attach": [], "shm_kib": []}
    image = np.arange(8, dtype=np.uint64)
    for number in range(_LIVES):
        start = time.perf_counter_ns()
        producer = _create(n_slots, prefault=False)
        created = time.perf_counter_ns()
        with producer:
            attaching = time.perf_counter_ns()
            consumer = pyhub.DataBlockConsumer.attach("slots", policy="every")
            attached = time.perf_counter_ns()
            with consumer:
                image[0] = number
                producer.put(image)
                assert np.array_equal(consumer.read(0).data, image)
                assert producer.n_slots == n_slots
            samples["shm_kib"].append(shm_kib())
        samples["create"].append(created - start)
        samples["attach"].append(attached - attaching)
        del producer, consumer  # unmapped now, and not by the next ones' names
    return medians(samples)
