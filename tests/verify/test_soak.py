"""Hours of work, as far as minutes can show them: nothing grows, and all counts add up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhub import DataBlockConsumer

SOAK_S = float(os.environ.get("PYHUB_SOAK_S", "600"))
# A process has its final size when it has done everything once.
WARM_UP = 0.2
# 1 MB an hour is the promise; what one page more or less makes of some minutes
# is added to it.
MAX_BYTES_AN_HOUR = 1_000_000
NOISE_BYTES = 300_000

PRODUCER = """
import sys, time
import numpy as np
import pyhub

until = time.monotonic() + float(sys.argv[1])
image = np.zeros((512, 512), "u2")
with pyhub.MessageHub() as hub:
    n = 0
    with hub.create_datablock_producer("cam", dtype="u2", shape=(512, 512), slots=8) as cam:
        print("up", flush=True)
        while time.monotonic() < until:
            image[0, 0] = image[-1, -1] = n % 65536
            cam.put(image, {"n": n, "exposure_s": 0.001})
            n += 1
            time.sleep(0.004)
        header = cam.header()
        print(header.structured_buffer_version + header.n_dropped, flush=True)
        sys.stdin.readline()
"""

READER = """
import sys, time
from contextlib import nullcontext
import pyhub

policy, is_pinning, restarts = sys.argv[1], sys.argv[2] == "pin", sys.argv[3] == "again"
n_read = n_lost = n_torn = 0
with pyhub.MessageHub() as hub:
    is_over = False
    while not is_over:
        reader = "r-" + policy + sys.argv[2]
        with hub.find_datablock_consumer("cam", policy=policy, reader=reader) as view:
            print("up", flush=True)
            first = None
            until = time.monotonic() + 1.0
            try:
                while not restarts or time.monotonic() < until:
                    with view.pin(5.0) if is_pinning else nullcontext(view.read(5.0)) as frame:
                        n_torn += frame.data[0, 0] != frame.flex["n"] % 65536
                        n_torn += frame.data[-1, -1] != frame.data[0, 0]
                        first = frame.frame_id if first is None else first
                        last = frame.frame_id
            except pyhub.ChannelClosed:
                is_over = True
            n_read += view.n_read
            n_lost += view.n_lost
            said = (policy, first, last, view.n_read, view.n_lost)
            assert first is None or last - first + 1 == view.n_read + view.n_lost, said
print(n_read, n_lost, n_torn, flush=True)
"""


def start(script: str, *arguments: object) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def resident_bytes(pid: int) -> int:
    """Memory that is the process's own: frames it looks at are not."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(fields["RssAnon"].split()[0]) * 1024


def n_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.verify
@pytest.mark.timeout(SOAK_S + 300)
def test_nothing_grows_and_every_count_adds_up(shm: Path) -> None:
    """Promise P16, in ten minutes (PYHUB_SOAK_S: seconds)."""
    files_before = len(list(shm.iterdir()))
    producer = start(PRODUCER, SOAK_S)
    readers = [
        start(READER, policy, how, again)
        for policy, how, again in (
            ("every", "copy", "once"),
            ("block", "copy", "once"),
            ("latest", "pin", "once"),
            ("drop_oldest", "pin", "again"),
        )
    ]
    processes = [producer, *readers]
    sizes: list[list[int]] = [[] for _ in processes]
    descriptors: list[list[int]] = [[] for _ in processes]
    times = []
    files = []
    begun = time.monotonic()
    # Everything is done once before it counts: also to wait, and to ask who lives.
    time.sleep(min(SOAK_S * WARM_UP / 2, 5.0))
    producer.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    producer.send_signal(signal.SIGCONT)
    while time.monotonic() < begun + SOAK_S - 2.0:
        time.sleep(SOAK_S / 200)
        assert [process.poll() for process in processes] == [None] * len(processes)
        times.append(time.monotonic() - begun)
        files.append(len(list(shm.iterdir())))
        for i, process in enumerate(processes):
            sizes[i].append(resident_bytes(process.pid))
            descriptors[i].append(n_descriptors(process.pid))
    with DataBlockConsumer.attach("cam") as look:
        look.latest()
    assert producer.stdout is not None
    n_frames = int(producer.stdout.readline())
    producer.communicate("\n")
    said = [process.communicate()[0].split("\n")[-2] for process in readers]
    counts = [[int(n) for n in line.split()] for line in said]
    at = np.array(times)
    steady = at > SOAK_S * WARM_UP
    growth = [float(np.polyfit(at[steady], np.array(size)[steady], 1)[0] * 3600) for size in sizes]
    limit = MAX_BYTES_AN_HOUR + NOISE_BYTES * 3600 / SOAK_S
    print(f"{n_frames} frames; read, lost, torn: {counts}")
    print("bytes an hour:", [round(rate) for rate in growth], "limit", round(limit))
    assert all(n_torn == 0 for _, _, n_torn in counts)
    assert counts[1][1] == 0, "the reader that is waited for lost nothing"
    assert n_frames > SOAK_S * 20
    assert max(growth) < limit
    # The one that comes and goes has a few more while it does.
    assert all(max(each[len(each) // 2 :]) <= max(each[: len(each) // 2]) for each in descriptors)
    assert max(files[len(files) // 2 :]) <= max(files[: len(files) // 2])
    assert len(list(shm.iterdir())) == files_before + 1  # the lock file of leases, at most
