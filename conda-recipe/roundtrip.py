"""Put one frame and its parameters into a DataBlock and read them back.

Run by the recipe's tests and by offline.py, inside the environment that the
built package was installed into.
"""

from __future__ import annotations

import os
import sys

import numpy as np

import pyhub


def main() -> int:
    """Return 0 if what was read equals what was put, by the pyhub of this environment."""
    if not pyhub.__file__.startswith(sys.prefix):
        print(f"pyhub is {pyhub.__file__}, not the one installed under {sys.prefix}")
        return 1
    # Two tests may run at the same time on one machine.
    name = f"conda-test-{os.getpid()}"
    image = np.arange(16, dtype="uint16").reshape(4, 4)
    producer = pyhub.DataBlockProducer.create(
        name, dtype="uint16", shape=(4, 4), flexible_zone_size=256, slots=2
    )
    try:
        consumer = pyhub.DataBlockConsumer.attach(name)
        try:
            producer.put(image, flex={"a": 1})
            frame = consumer.read(timeout_s=5)
        finally:
            consumer.close()
    finally:
        producer.close()
    if not np.array_equal(frame.data, image) or dict(frame.flex) != {"a": 1}:
        print(f"put {image.tolist()} and a=1, read {frame.data.tolist()} and {frame.flex}")
        return 1
    print(f"one frame of {frame.data.nbytes} bytes and {frame.flex} through {pyhub.__file__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
