/* sleep.pml: readers that sleep until the commit word moves, and the producers
 * that wake them (phb_wait_change, phb_await in sync.h; phb_datablock_wake).
 *
 * A sleeper says which commit it has seen, looks once more, and sleeps; a
 * producer commits under the lock, unlocks, looks at what was said, and wakes
 * all. So two producers may look, and wake, in either order. A sleeper dies at
 * any step; what it said stays.
 *
 * Shown for every interleaving of their steps:
 *   - nobody is left asleep on a commit that is no longer the newest, whatever
 *     publish was the last
 *   - what was said, by a sleeper that lives or died, costs one wake, and one
 *     more for each publish that was between its commit and its look just then
 *   - nobody waits for ever
 *
 * A producer that dies between its commit and its wake wakes nobody; its sleepers
 * find out at the end of a slice. So do sleepers here never wake by themselves:
 * slices, signals and naps would hide what is to be shown.
 *
 * Steps are sequentially consistent, as in ring.pml; the futex compares and goes
 * to sleep in one step, as the kernel promises. Commits do not wrap.
 *
 * Seeds, each of which must be found: see tests/model/test_model.py.
 */
#ifndef N_SLEEPERS
#define N_SLEEPERS 2
#endif
#ifndef N_PRODUCERS
#define N_PRODUCERS 2
#endif
#ifndef MAX_BEGINS
#define MAX_BEGINS 3 /* publications, in all */
#endif
#ifndef MAX_DEATHS
#define MAX_DEATHS 1 /* of sleepers */
#endif
#define NOBODY 0 /* less than the first commit */
#define FIRST 1

/* --- Shared words -------------------------------------------------------- */

byte commit = FIRST, awaited = NOBODY;
bool is_locked;
bool is_asleep[N_SLEEPERS]; /* the kernel's queue */

/* --- What the model knows and no program does ---------------------------- */

byte n_over, deaths_left = MAX_DEATHS;
byte n_under_way; /* publishes between their commit and their look */
byte n_due;       /* wakes that may still come of what was said last */

#define ALL_OVER (n_over == N_PRODUCERS)

/* --- A sleeper ----------------------------------------------------------- */

/* As in cursor.pml. When nobody publishes any more it does not die: who is left
 * asleep then is found. */
#define DO(step)                                               \
    if                                                         \
    :: atomic { step }                                         \
    :: atomic { deaths_left > 0 && !ALL_OVER -> goto killed }  \
    fi

inline say()
{
    awaited = seen;
    n_due = 1 + n_under_way
}

/* phb_await: only upwards. */
inline await()
{
#ifdef SEED_PLAIN_STORE
    DO(say(););
#else
    DO(said = awaited;);
    do
    :: seen > said ->
        DO(
            if
            :: awaited == said -> say(); said = seen
            :: else -> said = awaited
            fi;)
    :: else -> break
    od;
    said = 0
#endif
}

inline futex_wait()
{
    DO(
        if
#ifdef SEED_LOOK_BEFORE
        :: true -> is_asleep[me] = true /* a futex that does not compare */
#else
        :: commit == seen -> is_asleep[me] = true
        :: else
#endif
        fi;);
    if
    :: atomic { !is_asleep[me] -> skip }
    :: atomic { seen == commit && ALL_OVER -> goto over }
    :: atomic { deaths_left > 0 && !ALL_OVER -> goto killed }
    fi
}

proctype sleeper(byte me)
{
    byte seen, said;
again:
    DO(seen = commit;); /* it was given all of this */
    do
    :: true ->
#ifdef SEED_LOOK_BEFORE
        DO(if :: commit != seen -> goto again :: else fi;);
        await();
#else
        await();
        DO(if :: commit != seen -> goto again :: else fi;);
#endif
        futex_wait();
        DO(if :: commit != seen -> goto again :: else fi;)
    od;
killed:
    deaths_left--;
over:
    atomic { is_asleep[me] = false; seen = 0; said = 0 }
}

/* --- A producer ---------------------------------------------------------- */

#ifdef SEED_EQUAL
#define IS_TO_WAKE(said) ((said) == former) /* who said more meanwhile hides the others */
#elif defined(SEED_NEW_COMMIT)
#define IS_TO_WAKE(said) ((said) >= former + 1)
#elif defined(SEED_FLAG)
#define IS_TO_WAKE(said) ((said) != NOBODY) /* somebody said something, once */
#else
#define IS_TO_WAKE(said) ((said) >= former)
#endif

inline look()
{
    is_to_wake = IS_TO_WAKE(awaited);
    assert(!is_to_wake || n_due > 0);
    n_due = n_due - is_to_wake
}

inline wake()
{
    i = 0;
    do
#ifdef SEED_WAKE_ONE
    :: i < N_SLEEPERS && is_asleep[i] -> is_asleep[i] = false; break
    :: i < N_SLEEPERS && !is_asleep[i] -> i++
#else
    :: i < N_SLEEPERS -> is_asleep[i] = false; i++
#endif
    :: i == N_SLEEPERS -> break
    od;
    i = 0
}

proctype producer()
{
    byte former, i;
    bool is_to_wake;
    do
    :: atomic { !is_locked && commit < FIRST + MAX_BEGINS -> is_locked = true; former = commit }
#ifdef SEED_LOOK_EARLY
        atomic { look(); n_under_way++ }
        commit = former + 1;
        atomic { is_locked = false; n_under_way-- }
#else
        atomic { commit = former + 1; n_under_way++ }
        is_locked = false;
        atomic { look(); n_under_way-- }
#endif
        former = 0;
        if
        :: is_to_wake ->
            atomic { wake(); is_to_wake = false }
#ifdef SEED_CLEARS
            awaited = NOBODY
#endif
        :: else
        fi
    :: break
    od;
    n_over++
}

init {
    byte i;
    atomic {
        do
        :: i < N_SLEEPERS -> run sleeper(i); i++
        :: else -> i = 0; break
        od;
        do
        :: i < N_PRODUCERS -> run producer(); i++
        :: else -> i = 0; break
        od
    }
}
