"""Wall clocks that are set, by a day: nobody is dropped, and no timeout fires."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from pyhub import MessageHub, WaitTimeout
from tests.verify.brokers import WATCHDOG_S, Harmed, broker, line_of, program, tell

DAY_S = 86_400

# Adds what a file says to the wall clock of a process, and to no other clock.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile const int64_t *offset_s;

__attribute__((constructor)) static void map_offset(void)
{
    int fd = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    offset_s = mmap(NULL, sizeof *offset_s, PROT_READ, MAP_SHARED, fd, 0);
}

static int64_t offset(void) { return offset_s ? *offset_s : 0; }

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        now->tv_sec += offset();
    return status;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec exact;
    (void)zone;
    int status = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return status;
}

time_t time(time_t *now)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}
"""

# Works for others, waits for a change, and is in a call: all of it over a step.
CLIENT = """
    import sys, threading, time
    from pyhub import BrokerConfig, MessageHub

    hub = MessageHub(BrokerConfig(runtime_dir=sys.argv[1], autostart=False, name=sys.argv[2]))
    go = threading.Event()

    @hub.service(sys.argv[2], threads=2)
    def wait() -> int:
        go.wait(60)
        return 7

    consumer = hub.find_datablock_consumer("frames", timeout_s=30)
    feed = hub.state.watch("n")
    own = hub.start_call("judge", "wait", timeout_s=60)
    print("up", flush=True)
    sys.stdin.readline()
    assert not own.is_done
    while feed.get(30).value != 1:
        pass
    frame_id = consumer.read(timeout_s=30).frame_id
    print(int(time.time()), frame_id, own.result(), flush=True)
    go.set()
    sys.stdin.readline()
    hub.close()
"""


@pytest.fixture
def clock(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """The environment of processes whose wall clock a file sets, and that file."""
    source, library, offset = tmp_path / "shim.c", tmp_path / "shim.so", tmp_path / "offset"
    source.write_text(SHIM)
    compiler = os.environ.get("CC", "gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    offset.write_bytes(struct.pack("q", 0))
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}, offset


def set_clock(offset: Path, offset_s: int) -> None:
    with offset.open("r+b") as file:
        file.write(struct.pack("q", offset_s))


# Each waits for longer than a silence that is borne: the short form is one of them.
SETTINGS = [
    pytest.param(
        whose,
        step_s,
        id=f"{whose} {'ahead' if step_s > 0 else 'back'}",
        marks=[] if (whose, step_s) == ("everybody's", DAY_S) else [pytest.mark.verify],
    )
    for whose in ("everybody's", "the broker's", "a program's")
    for step_s in (DAY_S, -DAY_S)
]


@pytest.mark.parametrize(("whose", "step_s"), SETTINGS)
def test_a_clock_that_is_set_drops_nobody_and_ends_no_wait(
    tmp_path: Path, clock: tuple[dict[str, str], Path], whose: str, step_s: int
) -> None:
    environment, offset = clock
    of_broker = environment if whose != "a program's" else {}
    of_program = environment if whose != "the broker's" else {}
    with broker(tmp_path, environment=of_broker) as harmed, MessageHub(harmed.config) as hub:
        step(harmed, hub, of_broker, of_program, offset, step_s)


def step(
    harmed: Harmed,
    hub: MessageHub,
    of_broker: dict[str, str],
    of_program: dict[str, str],
    offset: Path,
    step_s: int,
) -> None:
    held = hub.service("judge")
    is_over: list[int] = []

    @held.command
    def wait() -> int:
        while not is_over:
            time.sleep(0.01)
        return 3

    hub.state["n"] = 0
    producer = hub.create_datablock_producer("frames", dtype="u1", shape=4, slots=4)
    with program(CLIENT, harmed.runtime.path, "client", **of_program) as client:
        assert line_of(client) == "up"
        call = hub.start_call("client", "wait", timeout_s=2 * WATCHDOG_S)
        with hub.events("hub/*") as events:
            set_clock(offset, step_s)
            # Longer than any silence that is borne: nobody is dropped, nor comes anew.
            with pytest.raises(WaitTimeout):
                events.get(5.0)
        assert not call.is_done
        entry = hub.state.set("n", 1)
        producer.put(np.zeros(4, "u1"))
        tell(client)
        is_over.append(1)
        its_time_s, frame_id, result = map(int, line_of(client).split())
        assert (frame_id, result) == (0, 3)
        assert call.result() == 7
        assert harmed.runtime.read_broker() == harmed.file
        # The control: the clocks were set, and show it.
        for clock_s, is_set in ((entry.time_ns / 1e9, of_broker), (its_time_s, of_program)):
            expected_s = time.time() + (step_s if is_set else 0)
            assert abs(clock_s - expected_s) < DAY_S / 24
        tell(client)
        client.wait(WATCHDOG_S)
    producer.close()
