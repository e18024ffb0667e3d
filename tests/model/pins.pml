/* pins.pml: the gate, admission under way of a producer that is not aware of it,
 * the claim against the pin, slots that are passed over, and death of producers
 * and readers at any step (readers.h, datablock_admitted.h, datablock_write.h).
 *
 * A producer, followed by another one after its death, and admitted readers
 * that pin, look, let go, and leave; when one is gone or dead another one comes.
 * The ring is full at the start. Frames only, and publishes of parameters alone
 * as far as they matter here; a snapshot is one step, as ring.pml shows that it
 * may be. Cursors and policies are in cursor.pml.
 *
 * Shown for every interleaving of their steps:
 *   - while a living reader looks at a frame nobody writes to its slot
 *   - a frame that is pinned is whole, and was committed
 *   - a slot is passed over only where a living reader has a pin on it; with no
 *     reader alive the oldest slot is granted, whatever the dead left
 *   - no claim is left behind: when a producer opens, none stands
 *   - nobody waits for ever
 *
 * Steps are sequentially consistent, as in ring.pml, but for one store: that of
 * is_writing = 1 may be visible only after the gate was looked at, as on any
 * processor, unless a reader's phb_fence_everybody comes between. With
 * NO_MEMBARRIER the kernel refuses that. A store of is_writing = 0 needs no order
 * of its own: who sees it sees the odd seq, by the release fence that stands
 * between the two (phb_datablock_data).
 *
 * Seeds, each of which must be found: see tests/model/test_model.py.
 */
#ifndef N_SLOTS
#define N_SLOTS 2
#endif
#ifndef N_READERS
#define N_READERS 1 /* at a time; as many places */
#endif
#ifndef MAX_BEGINS
#define MAX_BEGINS 3 /* publications that are begun, in all */
#endif
#ifndef MAX_ADMISSIONS
#define MAX_ADMISSIONS 2
#endif
#ifndef MAX_DEATHS
#define MAX_DEATHS 1 /* of producers */
#endif
#ifndef MAX_READER_DEATHS
#define MAX_READER_DEATHS 1
#endif

/* --- Shared words -------------------------------------------------------- */

typedef slot_t { byte seq, half[2] }
typedef place_t { byte lease, pin }
typedef lock_t { bool is_locked, owner_died }

slot_t slots[N_SLOTS];
byte commit, position; /* the record in force; newest_slot follows from position */
lock_t lock;           /* the producers' */
bool is_writing;
byte claiming;
place_t places[N_READERS];
byte gate; /* places to look at */
lock_t coming; /* the lock of who comes and goes */

#define PRODUCER 0
#define READER 1
#define SLOT_OF(p) (((p) + N_SLOTS - 1) % N_SLOTS)

/* --- What the model knows and no program does ---------------------------- */

byte n_begins, n_admissions;
byte deaths_left[2]; /* of producers, of readers */
bool is_writing_delayed;         /* stored, and not yet visible */
bool is_alive[MAX_ADMISSIONS+1]; /* as the kernel knows it, by lease */
byte n_alive;
byte looked_at[N_READERS];       /* slot + 1 that a living reader looks at */
byte committed_at[N_SLOTS];      /* position of the last frame that was committed there */
byte writer_of[N_SLOTS];         /* ... and the begin that wrote it: both its words */

#if N_READERS > 1
#define IS_LOOKED_AT(slot) (looked_at[0] == (slot) + 1 || looked_at[1] == (slot) + 1)
#else
#define IS_LOOKED_AT(slot) (looked_at[0] == (slot) + 1)
#endif

/* --- Coming and going, under its lock ------------------------------------ */

/* A step: others may come between it and the next, or the process dies before. */
#define DO(step)                                       \
    if                                                 \
    :: atomic { step }                                 \
    :: atomic { deaths_left[kind] > 0 -> goto killed } \
    fi

/* The number is computed place by place, and then stored. */
inline lower_gate()
{
    n = 0;
    DO(n = (places[0].lease != 0 -> 1 : n););
#if N_READERS > 1
    DO(n = (places[1].lease != 0 -> 2 : n););
#endif
    DO(gate = n; n = 0;)
}

/* phb_readers_enter: with the lock just taken. */
inline enter_table()
{
    if
    :: coming.owner_died ->
        lower_gate();
        DO(coming.owner_died = false;)
    :: else
    fi
}

inline bury()
{
    i = 0; is_found = false;
    do
    :: i < N_READERS ->
        if
        :: atomic { places[i].lease != 0 && !is_alive[places[i].lease] -> is_found = true }
            DO(places[i].pin = 0;);
            DO(places[i].lease = 0;)
        :: else
        fi;
        i++
    :: else -> i = 0; break
    od;
    if
    :: is_found -> lower_gate(); is_found = false
    :: else
    fi
}

/* --- The producer -------------------------------------------------------- */

inline repair()
{
    i = 0;
    do
    :: i < N_SLOTS ->
#ifndef SEED_COMES_TO_LIFE
        if /* whole, but never committed: it must not be found when its position is passed over */
        :: slots[i].seq > 2 * position && slots[i].seq % 2 == 0 -> DO(slots[i].seq--;)
        :: else
        fi;
#endif
        i++
    :: else -> i = 0; break
    od;
#ifndef SEED_NO_REPAIR
    DO(claiming = 0;);
#endif
    DO(is_writing = false;)
}

inline open()
{
    DO(
        if
        :: is_writing = true
        :: is_writing_delayed = true
        fi;);
    DO(is_aware = gate != 0;);
    DO(
        if
        :: is_writing_delayed -> is_writing = true; is_writing_delayed = false
        :: else
        fi;
        assert(claiming == 0);
        ahead = 1; slot = SLOT_OF(position + 1););
}

/* What the places say to overwriting `slot`: is_pinned. */
inline ask()
{
    i = 0; is_pinned = false;
    DO(n_used = gate;);
    do
    :: i < n_used ->
        DO(lease = places[i].lease;);
        if
        :: lease != 0 ->
            if
            :: atomic { places[i].pin == slot + 1 -> skip }
                if
                :: atomic { is_alive[lease] -> is_pinned = true }
                :: atomic { !is_alive[lease] -> has_dead = true }
                fi
            :: atomic { places[i].pin != slot + 1 -> skip }
            fi
        :: else
        fi;
        i++
    :: else -> i = 0; n_used = 0; lease = 0; break
    od;
    if
    :: has_dead ->
        has_dead = false;
        if
        :: atomic { !coming.is_locked -> coming.is_locked = true; is_in_table = true }
            enter_table();
            bury();
            DO(coming.is_locked = false; is_in_table = false;)
        :: atomic { coming.is_locked -> skip }
        fi
    :: else
    fi
}

inline claim()
{
    nobody_since = (n_alive == 0 -> n_admissions + 1 : 0);
    do
    :: ahead <= N_SLOTS ->
        slot = SLOT_OF(position + ahead);
#ifdef SEED_NO_CLAIM
        ask();
        DO(claiming = slot + 1;);
#else
        DO(claiming = slot + 1;);
        ask();
#endif
        if
        :: is_pinned -> assert(nobody_since != n_admissions + 1); ahead++
        :: else -> break
        fi
    :: ahead > N_SLOTS && !is_second -> /* pins move: one look is no proof */
        is_second = true;
        DO(claiming = 0; ahead = 1;)
    :: ahead > N_SLOTS && is_second -> is_full = true; break
    od;
    is_second = false;
    nobody_since = 0; is_pinned = false
}

#define STORE(word, value) assert(!IS_LOOKED_AT(slot)); word = value

inline fill()
{
    DO(STORE(slots[slot].seq, 2 * (position + ahead) - 1););
    if
    :: is_aware -> DO(claiming = 0;)
    :: else
    fi;
    DO(STORE(slots[slot].half[0], n_begins););
    DO(STORE(slots[slot].half[1], n_begins););
}

inline end_frame()
{
    DO(STORE(slots[slot].seq, 2 * (position + ahead)););
    DO(
        commit++;
        position = position + ahead;
        committed_at[slot] = position;
        writer_of[slot] = n_begins;)
}

inline forget()
{
    i = 0; n = 0; n_used = 0; lease = 0; slot = 0; ahead = 0; nobody_since = 0;
    is_found = false; is_aware = false; is_pinned = false; has_dead = false;
    is_second = false; is_full = false; is_in_table = false
}

proctype producer()
{
    byte kind = PRODUCER, i, n, n_used, lease, slot, ahead, nobody_since;
    bool is_found, is_aware, is_pinned, has_dead, is_second, is_full, is_in_table;
come:
    do
    :: atomic { n_begins == MAX_BEGINS -> break }
    :: atomic {
            !lock.is_locked && n_begins < MAX_BEGINS ->
            lock.is_locked = true;
            n_begins++
        }
        if
        :: lock.owner_died ->
            repair();
            DO(lock.owner_died = false;)
        :: else
        fi;
        open();
        if
        :: is_aware -> claim()
        :: else
        fi;
        if
        :: is_full -> DO(claiming = 0;) /* drop */
        :: !is_full ->
            fill();
            if
            :: end_frame()
            :: true /* abort */
            fi
        :: !is_full && is_aware -> /* claimed, and then parameters alone */
#ifndef SEED_CLAIM_STAYS
            DO(claiming = 0;);
#endif
            DO(commit++;)
        fi;
        DO(is_writing = false;);
        DO(lock.is_locked = false; forget();)
    od;
    goto gone;
killed:
    atomic {
        deaths_left[PRODUCER]--;
        lock.is_locked = false; lock.owner_died = true;
        if
        :: is_in_table -> coming.is_locked = false; coming.owner_died = true
        :: else
        fi;
        if /* what was stored becomes visible, also of the dead */
        :: is_writing_delayed -> is_writing = true; is_writing_delayed = false
        :: else
        fi;
        forget();
        goto come
    }
gone:
    skip
}

/* --- Readers ------------------------------------------------------------- */

inline take_place()
{
    atomic { !coming.is_locked -> coming.is_locked = true; is_in_table = true }
    enter_table();
    bury();
    at = 0;
    do
    :: at < N_READERS && places[at].lease != 0 -> at++
    :: else -> break
    od;
    if
    :: at < N_READERS ->
        DO(places[at].lease = me;);
        DO(n_used = gate;);
        DO(gate = (n_used <= at -> at + 1 : n_used); n_used = 0;)
    :: else
    fi;
    DO(coming.is_locked = false; is_in_table = false;);
}

/* phb_datablock_admit after take_place. */
inline heed_unaware()
{
#ifdef NO_MEMBARRIER
    is_unsafe = 2;
#else
#ifndef SEED_NO_FENCE_EVERYBODY
    DO(
        if
        :: is_writing_delayed -> is_writing = true; is_writing_delayed = false
        :: else
        fi;);
#endif
    DO(is_unsafe = (is_writing -> 1 : 0););
#endif
    DO(unsafe_commit = commit; unsafe_slot = SLOT_OF(position + 1););
#ifdef SEED_UNAWARE
    is_unsafe = 0;
#endif
}

inline unpin_frame()
{
    DO(looked_at[at] = 0; places[at].pin = 0;)
}

/* phb_datablock_pin, one attempt. */
inline pin_frame()
{
    atomic { /* find: the newest or one before it */
        if
        :: p = position
        :: p = position - 1
#if N_SLOTS > 2
        :: p = position - 2
#endif
        fi;
        slot = SLOT_OF(p)
    }
    if
    :: atomic { slots[slot].seq != 2 * p -> skip } /* BUSY, OVERRUN, SKIPPED */
    :: atomic { slots[slot].seq == 2 * p -> skip }
        DO(places[at].pin = slot + 1;);
        DO(is_busy = claiming == slot + 1;);
        if
        :: !is_busy && is_unsafe != 0 -> /* phb_reader_may_pin */
            DO(is_unsafe = (commit != unsafe_commit -> 0 : is_unsafe););
            if
            :: is_unsafe == 1 -> DO(is_unsafe = (is_writing -> 1 : 0);)
            :: else
            fi;
            is_busy = is_unsafe != 0 && slot == unsafe_slot
        :: else
        fi;
        if
        :: is_busy -> unpin_frame()
        :: !is_busy ->
            if
#ifdef SEED_NO_SECOND_LOOK
            :: atomic { true ->
#else
            :: atomic { slots[slot].seq == 2 * p ->
#endif
                    looked_at[at] = slot + 1;
                    assert(committed_at[slot] == p);
                    assert(slots[slot].half[0] == writer_of[slot]);
                    assert(slots[slot].half[1] == writer_of[slot])
                }
            :: atomic { slots[slot].seq != 2 * p -> skip }
            fi;
            unpin_frame()
        fi
    fi;
    p = 0; slot = 0; is_busy = false
}

inline leave_place()
{
    DO(places[at].pin = 0;);
    DO(places[at].lease = 0;);
    if
    :: atomic { !coming.is_locked -> coming.is_locked = true; is_in_table = true }
        enter_table();
        lower_gate();
        DO(coming.is_locked = false; is_in_table = false;)
    :: atomic { coming.is_locked -> skip }
    fi
}

inline be_gone()
{
    is_alive[me] = false;
    n_alive--;
    me = 0; at = 0; i = 0; n = 0; n_used = 0; p = 0; slot = 0;
    is_unsafe = 0; unsafe_slot = 0; unsafe_commit = 0;
    is_found = false; is_busy = false; is_in_table = false
}

proctype reader()
{
    byte kind = READER, me, at, i, n, n_used, p, slot, is_unsafe, unsafe_slot, unsafe_commit;
    bool is_found, is_busy, is_in_table;
come:
    do
    :: atomic { n_admissions == MAX_ADMISSIONS -> break }
    :: atomic {
            n_admissions < MAX_ADMISSIONS ->
            n_admissions++;
            me = n_admissions;
            is_alive[me] = true;
            n_alive++
        }
        take_place();
        if
        :: at < N_READERS ->
            heed_unaware();
            do
            :: pin_frame()
            :: break
            od;
            leave_place()
        :: else
        fi;
        atomic { true -> be_gone() }
    od;
    goto gone;
killed: /* its words stay in the table; it looks at nothing any more */
    atomic {
        deaths_left[READER]--;
        if
        :: at < N_READERS -> looked_at[at] = 0
        :: else
        fi;
        if
        :: is_in_table -> coming.is_locked = false; coming.owner_died = true
        :: else
        fi;
        be_gone();
        goto come
    }
gone:
    skip
}

init {
    byte i;
    atomic {
        position = N_SLOTS;
        deaths_left[PRODUCER] = MAX_DEATHS;
        deaths_left[READER] = MAX_READER_DEATHS;
        do
        :: i < N_SLOTS ->
            slots[i].seq = 2 * (i + 1);
            committed_at[i] = i + 1;
            i++
        :: else -> i = 0; break
        od;
        run producer();
        run reader();
#if N_READERS > 1
        run reader()
#endif
    }
}
