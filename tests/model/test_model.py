"""Every interleaving of a small ring's processes keeps what the headers promise.

The protocol is modelled in Promela, in four parts (`ring.pml`, `pins.pml`,
`cursor.pml`, `sleep.pml`), and Spin looks at all states that a part can reach: a few slots,
publications, and deaths. Each part is then broken in one place at a time, by a
macro, and Spin has to notice. The models speak of the protocol, not of the code:
who changes a header changes them as well.

Spin: G. J. Holzmann, The Spin Model Checker, 2003; https://spinroot.com.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parent
CC = os.environ.get("CC", "gcc")

# A search that needs more than one of these is cut short, and says so.
MAX_DEPTH = 20_000
MAX_MIB = 2_000
WATCHDOG_S = 580

pytestmark = [
    pytest.mark.verify,
    pytest.mark.timeout(WATCHDOG_S + 10),
    pytest.mark.skipif(
        shutil.which("spin") is None, reason="spin is not installed: apt install spin"
    ),
    pytest.mark.skipif(shutil.which(CC) is None, reason=f"{CC} is not installed"),
]


def search(directory: Path, model: str, macros: str) -> str:
    """Look at all states of `model` with `macros` defined: what the search says of them."""

    def do(*command: str) -> str:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=WATCHDOG_S
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    shutil.copy(MODELS / f"{model}.pml", directory)
    defined = [f"-D{macro}" for macro in macros.split()]
    do("spin", "-a", *defined, f"{model}.pml")
    # Safety: assertions and states without a way on. Collapsed states take a third.
    do(CC, "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MAX_MIB}", "-o", "pan", "pan.c")
    return do("./pan", f"-m{MAX_DEPTH}")


@pytest.mark.parametrize(
    ("model", "macros"),
    [
        ("ring", "N_SLOTS=2 MAX_BEGINS=4"),
        ("ring", "N_SLOTS=2 MAX_BEGINS=3 MAX_DEATHS=2"),
        ("ring", "N_SLOTS=1 MAX_BEGINS=3 MAX_DEATHS=2"),
        ("ring", "N_SLOTS=3 MAX_BEGINS=4"),
        ("ring", "N_SLOTS=2 MAX_BEGINS=3 N_PRODUCERS=2"),
        ("pins", "N_SLOTS=2 MAX_BEGINS=3"),
        ("pins", "N_SLOTS=2 MAX_BEGINS=3 NO_MEMBARRIER"),
        ("pins", "N_SLOTS=2 MAX_BEGINS=4 MAX_ADMISSIONS=1"),
        ("pins", "N_SLOTS=2 MAX_BEGINS=2 MAX_ADMISSIONS=3 MAX_READER_DEATHS=2"),
        ("pins", "N_SLOTS=1 MAX_BEGINS=3 MAX_DEATHS=2"),
        ("pins", "N_SLOTS=3 MAX_BEGINS=3"),
        ("pins", "N_READERS=2 MAX_BEGINS=1 MAX_DEATHS=0"),
        ("pins", "N_READERS=2 MAX_BEGINS=1 MAX_READER_DEATHS=0"),
        ("cursor", "N_SLOTS=3 MAX_BEGINS=3 MAX_DEATHS=0"),
        ("cursor", "N_SLOTS=3 MAX_BEGINS=3 MAX_READER_DEATHS=0"),
        ("cursor", "N_SLOTS=3 MAX_BEGINS=3 MAX_GIVE_UPS=0"),
        ("cursor", "N_SLOTS=3 MAX_BEGINS=3 DROP_NEWEST"),
        ("cursor", "N_SLOTS=3 MAX_BEGINS=5 MAX_DEATHS=0 MAX_READER_DEATHS=0 MAX_GIVE_UPS=0"),
        ("cursor", "N_SLOTS=3 MAX_BEGINS=4 MAX_READER_DEATHS=0 MAX_GIVE_UPS=0"),
        ("cursor", "N_SLOTS=4 MAX_BEGINS=4 MAX_DEATHS=0 MAX_READER_DEATHS=0"),
        ("cursor", "N_SLOTS=2 MAX_BEGINS=3"),
        ("cursor", "N_SLOTS=1 MAX_BEGINS=3 MAX_DEATHS=2"),
        ("sleep", "MAX_BEGINS=3 N_PRODUCERS=1"),
        ("sleep", "MAX_BEGINS=4 MAX_DEATHS=2"),
        ("sleep", "MAX_BEGINS=3 N_PRODUCERS=3"),
        ("sleep", "MAX_BEGINS=3 N_PRODUCERS=1 N_SLEEPERS=3"),
    ],
)
def test_no_interleaving_breaks_the_protocol(tmp_path: Path, model: str, macros: str) -> None:
    said = search(tmp_path, model, macros)
    print(*re.findall(r".*(?:states, stored|total actual memory|elapsed).*", said), sep="\n")
    assert "errors: 0" in said, said
    assert "Search not completed" not in said, said
    assert "too small" not in said, said


@pytest.mark.parametrize(
    ("model", "seed", "broken"),
    [
        # The next producer goes on with what the dead one left.
        ("ring", "SEED_NO_REPAIR", "entries[i].n_uses==n"),
        # An object that was not committed keeps the entry of a slot without a frame.
        ("ring", "SEED_ENTRY_LOST N_SLOTS=1", "flex_free!="),
        ("ring", "SEED_NO_RETIRE", "entries[i].n_uses==n"),
        ("ring", "SEED_NO_ODD_SEQ", "data[0]==data[1]"),
        ("ring", "SEED_NO_SEQ_CHECK", "data[0]==data[1]"),
        # Readers look at `commit` once only.
        ("ring", "SEED_NO_SECOND_LOOK", "now.position==position_of[c]"),
        # The record in force is overwritten in place.
        ("ring", "SEED_ONE_RECORD", "violated"),
        # The newest frame's parameters are taken from its slot, not from the record.
        ("ring", "SEED_OTHER_PARAMETERS", "flex_of[c]==flex_version"),
        # The next producer leaves the dead one's claim.
        ("pins", "SEED_NO_REPAIR", "claiming==0"),
        # The producer looks at pins before it says what it claims.
        ("pins", "SEED_NO_CLAIM", "looked_at"),
        # The reader does not look at seq again after its pin.
        ("pins", "SEED_NO_SECOND_LOOK", "looked_at"),
        # Readers pin without heeding a producer that is not aware of them,
        ("pins", "SEED_UNAWARE", "looked_at"),
        # ... or believe is_writing without a fence in the producer.
        ("pins", "SEED_NO_FENCE_EVERYBODY", "looked_at"),
        # A frame that is whole but not committed keeps its seq, and is found
        # when the next producer passes its slot over.
        ("pins", "SEED_COMES_TO_LIFE", "committed_at[slot]==p"),
        # A producer claims a slot, publishes parameters alone, and leaves the claim.
        ("pins", "SEED_CLAIM_STAYS", "claiming==0"),
        # A reader that is behind goes to the oldest position but one, always.
        ("cursor", "SEED_SEEK_JUMPS", "is_published"),
        # A slot that is waited for is passed over as a pinned one is.
        ("cursor", "SEED_PASSED_OVER", "is_published"),
        # The reader says that it is done before it has copied.
        ("cursor", "SEED_CURSOR_EARLY", "is_published"),
        # The reader passes a frame and wakes nobody.
        ("cursor", "SEED_NO_WAKE", "invalid end state"),
        # The producer says that it waits, and does not look once more.
        ("cursor", "SEED_SLEEP_AT_ONCE", "invalid end state"),
        # A sleeper says what it has seen, also if another has said more.
        ("sleep", "SEED_PLAIN_STORE", "invalid end state"),
        # It looks before it says so, and the futex does not compare.
        ("sleep", "SEED_LOOK_BEFORE", "invalid end state"),
        # The producer looks at what was said before it commits,
        ("sleep", "SEED_LOOK_EARLY", "invalid end state"),
        # ... takes the word back when it has woken them,
        ("sleep", "SEED_CLEARS", "invalid end state"),
        # ... compares with the commit that nobody can have seen yet,
        ("sleep", "SEED_NEW_COMMIT", "invalid end state"),
        # ... or with the last one alone: who has seen the new one and said so
        # hides those that sleep on the last.
        ("sleep", "SEED_EQUAL", "invalid end state"),
        ("sleep", "SEED_EQUAL N_PRODUCERS=1", "invalid end state"),
        ("sleep", "SEED_WAKE_ONE", "invalid end state"),
        # A dead sleeper's word costs a wake with every publish.
        ("sleep", "SEED_FLAG", "n_due>0"),
    ],
)
def test_model_notices_a_broken_protocol(
    tmp_path: Path, model: str, seed: str, broken: str
) -> None:
    said = search(tmp_path, model, f"{seed} MAX_BEGINS=3")
    assert "errors: 1" in said, said
    assert re.search(rf"pan:1: .*{re.escape(broken)}", said), said
