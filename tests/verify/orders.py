"""Lives of processes in random order: what a program does with channels, and how it ends.

    python orders.py SEED N_LIVES

Each life is a fork of this process, made when all modules are loaded. It does
some dozens of things in an order that its number decides, among them nonsense,
and ends: by itself, with views still alive, by os._exit, or by a kill. No end
by another signal is right. Prints what it did, and how often.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import os
import random
import signal
import sys
import threading
import time
from typing import Any

import numpy as np

import pyhub
from pyhub import DataBlockConsumer, DataBlockProducer, Policy
from pyhub.monitor.cleaning import clean

N_STEPS = 40
LIFE_S = 30.0
NAMES = ("cam1", "cam2", "cam3")
SHAPE = (5, 7)

# Whoever mostly ends things soon has nothing left to do things with.
OFTEN = {"do_put": 8, "do_read": 5, "do_pin": 8, "do_attach": 4, "do_export": 3, "do_look": 3,
         "do_release": 3, "do_follow": 2, "do_be_interrupted": 2}  # fmt: skip

done: collections.Counter[str] = collections.Counter()


class Life:
    """What one process holds, and what it may do."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.producers: list[DataBlockProducer] = []
        self.consumers: list[DataBlockConsumer] = []
        self.frames: list[Any] = []
        self.arrays: list[Any] = []
        self.threads: list[threading.Thread] = []

    def live(self) -> None:
        names = [name for name in dir(self) if name.startswith("do_")]
        steps = [getattr(self, name) for name in names for _ in range(OFTEN.get(name, 1))]
        for step in (self.do_create, self.do_attach, self.do_attach, self.do_put):
            with contextlib.suppress(pyhub.PyhubError, IndexError):
                step()
        for _ in range(self.chance.randrange(5, N_STEPS)):
            step = self.chance.choice(steps)
            with contextlib.suppress(pyhub.PyhubError, KeyboardInterrupt, BufferError, IndexError):
                step()
                done[step.__name__] += 1
            for array in self.arrays:
                array.sum()  # whatever happened, it is mapped

    # --- Coming ---

    def do_create(self) -> None:
        self.producers.append(
            DataBlockProducer.create(
                self.chance.choice(NAMES),
                dtype="u4",
                shape=SHAPE,
                slots=self.chance.choice((1, 2, 3, 5)),
                readers=self.chance.choice((1, 3, 64)),
                patience_s=self.chance.choice((0.0, 0.01)),
            )
        )

    def do_join(self) -> None:
        self.producers.append(DataBlockProducer.attach(self.chance.choice(NAMES)))

    def do_attach(self) -> None:
        names = [producer.name for producer in self.producers] or NAMES
        self.consumers.append(
            DataBlockConsumer.attach(
                self.chance.choice(names),
                policy=self.chance.choice((None, *Policy)),
                reader=self.chance.choice((None, None, "one", "two")),
            )
        )

    # --- Frames ---

    def do_put(self) -> None:
        producer = self.chance.choice(self.producers)
        for n in range(self.chance.randrange(1, 8)):
            producer.put(np.full(SHAPE, n, "u4"), {"n": n}, timeout_s=0.01)

    def do_begin_and_leave_open(self) -> None:
        producer = self.chance.choice(self.producers)
        producer.begin_publish(timeout_s=0.01)
        self.arrays.append(producer.get_structured_data_buffer())

    def do_give_up(self) -> None:
        self.chance.choice(self.producers).abort_publish()

    def do_fail_inside(self) -> None:
        with self.chance.choice(self.producers).publish(timeout_s=0.01) as slot:
            slot.data[...] = 1
            raise KeyboardInterrupt

    def do_read(self) -> None:
        self.arrays.append(self.chance.choice(self.consumers).read(0.01).data)

    def do_pin(self) -> None:
        frame = self.chance.choice(self.consumers).pin(0.01)
        self.frames.append(frame)
        self.arrays.append(frame.data)

    def do_export(self) -> None:
        self.arrays.append(np.from_dlpack(self.chance.choice(self.frames)))

    def do_look(self) -> None:
        self.arrays.append(self.chance.choice(self.consumers).latest(0.01).data)

    def do_follow(self) -> None:
        frames = self.chance.choice(self.consumers).frames(0.01)
        self.arrays += [frame.data for _, frame in zip(range(3), frames, strict=False)]

    # --- Going ---

    def do_release(self) -> None:
        self.chance.choice(self.frames).release()

    def do_forget_views(self) -> None:
        self.chance.choice((self.frames, self.arrays)).clear()

    def do_forget_handles(self) -> None:
        handles = self.chance.choice((self.producers, self.consumers))
        del handles[self.chance.randrange(len(handles) + 1) :]

    def do_collect(self) -> None:
        gc.collect()

    def do_close(self) -> None:
        self.chance.choice([*self.producers, *self.consumers]).close()

    def do_close_while_another_thread_reads(self) -> None:
        consumer = self.chance.choice(self.consumers)

        def read() -> None:
            with contextlib.suppress(pyhub.PyhubError):
                self.chance.choice((consumer.read, consumer.pin))(0.05)

        thread = threading.Thread(target=read)
        thread.start()
        self.threads.append(thread)
        consumer.close()

    def do_be_interrupted(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self.chance.random() * 0.02)
        try:
            self.chance.choice(self.consumers).read(0.05)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def do_fork(self) -> None:
        """The child uses what its parent opened, is told so, and ends."""
        if self.threads and "asan" in os.environ.get("LD_PRELOAD", ""):
            # gcc 12's allocator holds its locks over a fork if another thread has
            # them, as one may that is just ending. Drop this when its forks are safe.
            return
        child = os.fork()
        if child == 0:
            for handle in (*self.producers, *self.consumers, *self.frames):
                with contextlib.suppress(pyhub.PyhubError, KeyboardInterrupt):
                    step = self.chance.choice(("put", "read", "pin", "release", "close"))
                    if hasattr(handle, step):
                        getattr(handle, step)()
            if self.chance.random() < 0.5:
                os._exit(0)
            raise SystemExit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(f"a fork's child ended with {status}", file=sys.stderr, flush=True)
            os._exit(77)

    # --- The end ---

    def end(self) -> None:
        how = self.chance.randrange(5)
        if how == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == 1:
            os._exit(0)
        if how == 2:  # everything goes in any order while the interpreter ends
            globals()["left"] = self
        for thread in self.threads:
            thread.join()


def live_once(seed: int) -> int:
    """Let one life pass; its exit status as os.waitpid has it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.setpgid(0, 0)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        life = Life(seed)
        life.live()
        os.write(write, repr(dict(done)).encode())
        os.close(write)
        life.end()
        raise SystemExit(0)
    os.close(write)
    with open(read) as report:
        deadline = time.monotonic() + LIFE_S
        status = None
        while status is None and time.monotonic() < deadline:
            ended, code = os.waitpid(child, os.WNOHANG)
            status = code if ended else None
            time.sleep(0.0005)
        if status is None:
            os.killpg(child, signal.SIGABRT)  # a core, or a sanitizer's report, says where it hung
            status = os.waitpid(child, 0)[1]
        with contextlib.suppress(SyntaxError):
            done.update(eval(report.read() or "{}", {"__builtins__": {}}))
    return status


def main() -> None:
    first, n_lives = int(sys.argv[1]), int(sys.argv[2])
    kills = 0
    total: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + n_lives):
        done.clear()
        status = live_once(seed)
        total += done
        if status not in (0, signal.SIGKILL):
            sys.exit(f"life {seed} ended with status {status}: repeat it with: orders.py {seed} 1")
        kills += status == signal.SIGKILL
        if seed % 10 == 0:
            for _ in clean(None):
                pass
    for _ in clean(None):
        pass
    print("kills", kills)
    for name, count in sorted(total.items()):
        print(name, count)


if __name__ == "__main__":
    main()
