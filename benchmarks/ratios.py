"""How much more does pyhub take than the same work without it? The loose gate.

Samples of both, 0.15 ms each, take turns, so that whatever else the machine
does meets both alike; the median of their ratios is one process's answer, and
the median of three processes is the result.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import bench_codec
import bench_datablock
import bench_notification
from bench_datablock import SHAPES
from budget import Verdict, add_require_exact, judge, report_and_exit_code, update
from pairs import Pair, dict_loop
from surroundings import own_directories

__all__ = ["GAUGE", "PAIRS", "judge_all", "measure_all", "measure_once"]

GAUGE = "ratios"
TOLERANCE = 0.25
N_PROCESSES = 3
_N_SAMPLES = 400
_SAMPLE_S = 0.00015
# Operations that take longer than a sample get fewer of them, in about this time.
_MOST_S = 0.4
_FEWEST = 60


@contextmanager
def _against_dict_loop(context: AbstractContextManager[Pair]) -> Iterator[Pair]:
    """Take another reference: 40 turns of a loop over a dictionary."""
    with context as pair:
        yield pair._replace(reference=dict_loop)


# What is compared, and the reference, which is of the same kind: interpreter
# work, copies, packing, or waking up another process.
PAIRS: dict[str, Callable[[], AbstractContextManager[Pair]]] = {
    "in_place_64B_by_dict_loop": lambda: _against_dict_loop(
        bench_datablock.touch_in_place(SHAPES["64 B"])
    ),
    "in_place_9MB_by_dict_loop": lambda: _against_dict_loop(
        bench_datablock.touch_in_place(SHAPES["9 MB"])
    ),
    "copy_64B_by_dict_loop": lambda: _against_dict_loop(
        bench_datablock.copy_into_new(SHAPES["64 B"])
    ),
    "parameters_64B_by_dict_loop": lambda: _against_dict_loop(
        bench_datablock.copy_with_parameters(SHAPES["64 B"])
    ),
    "fill_1MiB_by_numpy": partial(bench_datablock.fill_in_place, SHAPES["1 MiB"]),
    "fill_9MB_by_numpy": partial(bench_datablock.fill_in_place, SHAPES["9 MB"]),
    "copy_64KiB_by_numpy": partial(bench_datablock.copy_into_same, SHAPES["64 KiB"]),
    "copy_1MiB_by_numpy": partial(bench_datablock.copy_into_same, SHAPES["1 MiB"]),
    "copy_9MB_by_numpy": partial(bench_datablock.copy_into_same, SHAPES["9 MB"]),
    "read_9MB_by_numpy": partial(bench_datablock.copy_out, SHAPES["9 MB"]),
    "copy_9MB_into_new_by_numpy": partial(bench_datablock.copy_into_new, SHAPES["9 MB"]),
    "encode_by_msgpack": partial(bench_codec.encoding, "typical"),
    "decode_by_msgpack": partial(bench_codec.decoding, "typical"),
    "encode_numpy_by_msgpack": partial(bench_codec.encoding, "numpy"),
    "decode_numpy_by_msgpack": partial(bench_codec.decoding, "numpy"),
    "wake_up_notification_by_pyzmq": partial(bench_notification.wake_up, "notification", "pyzmq"),
    "wake_up_hub_read_by_pyzmq": partial(bench_notification.wake_up, "hub", "pyzmq"),
    "wake_up_commit_word_by_pipe": partial(bench_notification.wake_up, "word", "pipe"),
}

# Now and then the answer is there before the reader has fallen asleep, so that
# unchanged code differs by more than the tolerance.
NOT_GATED = frozenset({"wake_up_hub_read_by_pyzmq", "wake_up_commit_word_by_pipe"})


def measure_all() -> dict[str, list[float]]:
    """Return each pair's ratio as several processes found it."""
    return _measure(list(PAIRS))


def judge_all(runs: dict[str, list[float]]) -> list[Verdict]:
    """Set medians beside their budgets; those that are over it are measured once more.

    One process in a while is unlucky for as long as it lives: with where the
    kernel puts it and its partner, or with the pages it was given.
    """
    verdicts = judge(GAUGE, medians(runs), TOLERANCE, NOT_GATED)
    over = [verdict.name for verdict in verdicts if verdict.is_over and verdict.budget]
    if over:
        again = _measure(over)
        runs = {name: ratios + again.get(name, []) for name, ratios in runs.items()}
    return judge(GAUGE, medians(runs), TOLERANCE, NOT_GATED)


def medians(runs: dict[str, list[float]]) -> dict[str, float]:
    """Return the result for each pair."""
    return {name: round(statistics.median(ratios), 3) for name, ratios in runs.items()}


def _measure(names: list[str]) -> dict[str, list[float]]:
    command = [sys.executable, __file__, "--once", *names]
    runs = []
    for _ in range(N_PROCESSES):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(done.stdout))
    return {name: [run[name] for run in runs] for name in names}


def measure_once(pair: Pair) -> float:
    """Return the median of the ratios of samples that take turns, in this process."""
    n_ours, n_theirs = _calls_per_sample(pair.pyhub), _calls_per_sample(pair.reference)
    turn_s = _duration_s(pair.pyhub, n_ours) + _duration_s(pair.reference, n_theirs)
    n_samples = max(min(_N_SAMPLES, int(_MOST_S / turn_s)), _FEWEST)
    ratios = []
    gc.collect()
    gc.disable()
    for _ in range(n_samples):
        ours = _duration_s(pair.pyhub, n_ours) / n_ours
        theirs = _duration_s(pair.reference, n_theirs) / n_theirs
        ratios.append(ours / theirs)
    gc.enable()
    pair.check()
    return statistics.median(ratios)


def _calls_per_sample(call: Callable[[], object]) -> int:
    """Return how many calls take the time of a sample; warms up on the way."""
    n = 1
    while True:
        fastest = min(_duration_s(call, n) for _ in range(20))
        if fastest >= _SAMPLE_S / 2:
            return max(round(n * _SAMPLE_S / fastest), 1)
        n *= 2


def _duration_s(call: Callable[[], object], n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        call()
    return time.perf_counter() - start


def main() -> int:
    """Measure, and print, store or judge the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="store the ratios in budget.toml")
    parser.add_argument("--check", action="store_true", help="fail if a ratio is over budget")
    add_require_exact(parser, "a budget for this Python")
    # What _measure starts: one process's answer, as JSON.
    parser.add_argument("--once", nargs="+", metavar="PAIR", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        with own_directories():
            ratios = {}
            for name in options.once:
                with PAIRS[name]() as pair:
                    ratios[name] = measure_once(pair)
        print(json.dumps(ratios))
        return 0
    runs = measure_all()
    if options.update:
        update(GAUGE, medians(runs))
    code = report_and_exit_code(GAUGE, judge_all(runs), options.require_exact)
    return code if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
