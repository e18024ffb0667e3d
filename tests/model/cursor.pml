/* cursor.pml: a reader whose cursor the producer minds (readers.h): policy BLOCK,
 * or DROP_NEWEST with -DDROP_NEWEST. It reads in order, by copies and by pins
 * that it keeps for any time, also past its cursor; it is slow, it stops for
 * good, or dies. The producer waits for it, passes pinned slots over, gives it up
 * when it does not move, dies, and is followed by another.
 *
 * The reader is admitted and the ring full at the start, with no frame read. The
 * admission is in pins.pml; a snapshot is one step, as ring.pml shows that it may
 * be.
 *
 * Shown for every interleaving of their steps:
 *   - what the reader is given is whole, was committed, and comes in order
 *   - it misses no frame but those that are lost while it is given up
 *   - while it looks at a frame, nobody writes to its slot
 *   - the producer is never left asleep by a reader that lets go, and goes on when
 *     that one is dead or stopped; nobody waits for ever
 *
 * Steps are sequentially consistent, as in ring.pml. A sleep lasts until somebody
 * wakes the sleeper: the program looks again after a while, and so does not even
 * depend on it.
 *
 * Seeds, each of which must be found: see tests/model/test_model.py.
 */
#ifndef N_SLOTS
#define N_SLOTS 3
#endif
#ifndef MAX_BEGINS
#define MAX_BEGINS 4 /* publications that are begun, in all */
#endif
#ifndef MAX_DEATHS
#define MAX_DEATHS 1 /* of producers */
#endif
#ifndef MAX_READER_DEATHS
#define MAX_READER_DEATHS 1 /* or stops for good */
#endif
#ifndef MAX_GIVE_UPS
#define MAX_GIVE_UPS 1 /* of a reader that goes on later */
#endif
#define MAX_POSITION (N_SLOTS * (MAX_BEGINS + 1))

/* --- Shared words -------------------------------------------------------- */

typedef slot_t { byte seq, version, half[2] }

slot_t slots[N_SLOTS];
byte position, version; /* the record in force; newest_slot follows from position */
bool is_locked, owner_died;
byte claiming;
bool is_waiting;
bool released; /* whether the count moved since the producer took it as `seen` */
byte pin, cursor, given_up_at; /* the reader's place */

#define SLOT_OF(p) (((p) + N_SLOTS - 1) % N_SLOTS)

/* --- What the model knows and no program does ---------------------------- */

byte n_begins;
byte deaths_left[2];  /* of producers, of readers */
byte give_ups_left;
bool is_dead, is_stopped, is_over;
byte given;           /* position of the last frame that the reader's user was given */
byte looked_at;       /* slot + 1 that the reader looks at, while it lives */
byte committed_at[N_SLOTS], writer_of[N_SLOTS]; /* as in pins.pml */
bool is_published[MAX_POSITION + 1];            /* by position */
bool is_excused[MAX_POSITION + 1];              /* lost after it was given up */

#define PRODUCER 0
#define READER 1

/* A step: others may come between it and the next, or the process dies before. */
#define DO(step)                                       \
    if                                                 \
    :: atomic { step }                                 \
    :: atomic { deaths_left[kind] > 0 -> goto killed } \
    fi

/* --- The producer -------------------------------------------------------- */

#define NOBODY_MINDS 0
#define IS_PINNED 1
#define IS_WAITED_FOR 2 /* or kept, with DROP_NEWEST */

inline repair()
{
    i = 0;
    do
    :: i < N_SLOTS ->
        if
        :: slots[i].seq > 2 * position && slots[i].seq % 2 == 0 -> DO(slots[i].seq--;)
        :: else
        fi;
        i++
    :: else -> i = 0; break
    od;
    DO(claiming = 0;);
    DO(is_waiting = false;)
}

/* Does it not move for as long as there is patience? is_given_up. */
inline look_at_patience()
{
    if
    :: given_up_at == c + 1 -> is_given_up = true
    :: given_up_at != c + 1 ->
        if
        :: true
        :: atomic { /* patience is over */
                is_stopped || give_ups_left > 0 ->
                give_ups_left = (is_stopped -> give_ups_left : give_ups_left - 1);
                is_given_up = true
            }
            DO(given_up_at = c + 1;)
        fi
    fi
}

/* phb_readers_ask about `slot`, where the frame of `held` lies, or none: 0. */
inline ask()
{
    is_given_up = false;
    DO(objection = (pin == slot + 1 -> IS_PINNED : NOBODY_MINDS););
    if
    :: held > 0 ->
        DO(c = cursor;);
        if
        :: held > c -> look_at_patience(); objection = (is_given_up -> objection : IS_WAITED_FOR)
        :: else
        fi
    :: else
    fi;
    if
    :: objection != NOBODY_MINDS ->
        DO(objection = (is_dead -> NOBODY_MINDS : objection);)
    :: else
    fi
}

/* phb_readers_ask_holders: every slot is pinned, and who blocks is waited for. */
inline ask_holders()
{
    DO(is_given_up = pin == 0 || is_dead;);
    if
    :: !is_given_up ->
        DO(c = cursor;);
        look_at_patience()
    :: else
    fi;
    objection = (is_given_up -> objection : IS_WAITED_FOR)
}

/* The frame that lay in `slot` leaves the ring. */
inline excuse()
{
    if
    :: is_given_up && held > given -> is_excused[held] = true
    :: else
    fi
}

inline claim()
{
    is_second = false;
again:
    DO(released = false;); /* seen */
    ahead = 1;
    do
    :: ahead <= N_SLOTS ->
        DO(
            slot = SLOT_OF(position + ahead);
            held = position + ahead - N_SLOTS;
            held = (slots[slot].seq == 2 * held -> held : 0);
            claiming = slot + 1;);
        ask();
        if
        :: objection == NOBODY_MINDS ->
            DO(is_waiting = false; excuse(););
            goto claimed
#ifdef SEED_PASSED_OVER
        :: objection != NOBODY_MINDS -> ahead++
#else
        :: atomic { objection == IS_PINNED -> excuse(); ahead++ }
        :: objection == IS_WAITED_FOR -> break
#endif
        fi
    :: else -> break
    od;
    DO(claiming = 0;);
    if
    :: objection == IS_PINNED && !is_second -> is_second = true; goto again
#ifndef DROP_NEWEST
    :: objection == IS_PINNED && is_second -> ask_holders()
#endif
    :: else
    fi;
#ifndef DROP_NEWEST
    if
    :: objection == IS_WAITED_FOR ->
        if
#ifndef SEED_SLEEP_AT_ONCE
        :: !is_waiting -> DO(is_waiting = true;) /* and ask once more */
        :: is_waiting ->
#else
        :: true ->
            DO(is_waiting = true;);
#endif
            if /* the futex; a probe finds the dead, and the clock goes on */
            :: atomic { released -> skip }
            :: atomic { is_dead || is_stopped || give_ups_left > 0 -> skip }
            fi
        fi;
        goto again
    :: else
    fi;
#endif
    is_full = true;
    DO(is_waiting = false;);
claimed:
    objection = NOBODY_MINDS; is_given_up = false; is_second = false; c = 0; held = 0
}

#define STORE(word, value) assert(looked_at != slot + 1); word = value

inline fill()
{
    DO(STORE(slots[slot].seq, 2 * (position + ahead) - 1););
    DO(claiming = 0;);
    DO(STORE(slots[slot].half[0], n_begins););
    DO(STORE(slots[slot].half[1], n_begins););
}

inline end()
{
    DO(slots[slot].version = version + 1;);
    DO(STORE(slots[slot].seq, 2 * (position + ahead)););
    DO(
        position = position + ahead;
        version++;
        is_published[position] = true;
        committed_at[slot] = position;
        writer_of[slot] = n_begins;)
}

inline forget()
{
    i = 0; c = 0; slot = 0; held = 0; ahead = 0; objection = NOBODY_MINDS;
    is_given_up = false; is_second = false; is_full = false
}

proctype producer()
{
    byte kind = PRODUCER, i, c, slot, held, ahead, objection;
    bool is_given_up, is_second, is_full;
come:
    do
    :: atomic { n_begins == MAX_BEGINS -> break }
    :: atomic {
            !is_locked && n_begins < MAX_BEGINS ->
            is_locked = true;
            n_begins++
        }
        if
        :: owner_died ->
            repair();
            DO(owner_died = false;)
        :: else
        fi;
        claim();
        if
        :: is_full -> skip /* drop */
        :: !is_full ->
            fill();
            if
            :: end()
            :: true /* abort */
            fi
        fi;
        DO(is_locked = false; forget();)
    od;
    is_over = true;
    goto gone;
killed:
    atomic {
        deaths_left[PRODUCER]--;
        is_locked = false; owner_died = true;
        forget();
        goto come
    }
gone:
    skip
}

/* --- The reader ---------------------------------------------------------- */

/* After a store that may let the producer go on. */
inline wake()
{
    DO(is_awake = !is_waiting;);
    if
    :: !is_awake -> DO(released = true; is_awake = true;)
    :: else
    fi
}

inline unpin_frame()
{
    DO(looked_at = 0; pin = 0;);
    wake()
}

/* What was found with seq = 2p last is the frame of p. */
inline check_bytes()
{
    assert(is_busy || committed_at[slot] == p);
    assert(is_busy || (data[0] == writer_of[slot] && data[1] == writer_of[slot]))
}

/* It is given to the user: nothing is missing before it, and how many it missed
 * that were lost is known. */
inline give_frame()
{
    d_step {
        assert(p > given);
        cursor_version = v - cursor_version - 1; /* phb_cursor_n_lost */
        given++;
        do
        :: given < p ->
            assert(!is_published[given] || is_excused[given]);
            cursor_version = cursor_version - is_published[given];
            is_published[given] = false; is_excused[given] = false; /* needed no more */
            given++
        :: else -> is_published[given] = false; is_excused[given] = false; break
        od;
        assert(cursor_version == 0);
        cursor_version = v
    }
}

/* What leaves the ring with a frame that was lost already is lost, too. */
inline excuse_next()
{
    v = given + 1;
    do
    :: v < p - 1 && !(is_published[v] && is_excused[v]) -> v++
    :: else -> break
    od;
    is_excused[p - 1] = is_excused[p - 1] || v < p - 1;
    v = 0
}

/* phb_datablock_seek: the first position after `passed` that may still be there; or 0. */
inline seek()
{
    atomic {
        p = 0; v = 0;
        if
        :: position > passed && position - passed <= N_SLOTS -> p = passed + 1
        :: position > passed && position - passed > N_SLOTS -> p = position - N_SLOTS + 1
        :: else
        fi
    }
    if
    :: p > passed + 1 && N_SLOTS > 2 -> /* is something lost, or were they positions without a frame? */
#ifdef SEED_SEEK_JUMPS
        p++
#else
        DO(
            v = slots[SLOT_OF(p)].version;
            if
            :: v > cursor_version + 1 -> p++; excuse_next()
            :: else
            fi;
            v = 0;)
#endif
    :: else
    fi;
    slot = (p > 0 -> SLOT_OF(p) : 0)
}

/* phb_datablock_find and the copy of what was found: is_busy, is_gone, or data. */
inline copy_frame()
{
    atomic { /* a snapshot, and the slot's seq */
        is_gone = position - p >= N_SLOTS || (slots[slot].seq != 2 * p && p != position);
        is_busy = !is_gone && slots[slot].seq != 2 * p;
        v = slots[slot].version
    }
    if
    :: !is_gone && !is_busy ->
        DO(data[0] = slots[slot].half[0];);
        DO(data[1] = slots[slot].half[1];);
        DO(is_busy = slots[slot].seq != 2 * p; check_bytes(););
    :: else
    fi
}

inline pin_frame()
{
    atomic {
        is_gone = position - p >= N_SLOTS || (slots[slot].seq != 2 * p && p != position);
        is_busy = !is_gone && slots[slot].seq != 2 * p;
        v = slots[slot].version
    }
    if
    :: !is_gone && !is_busy ->
        DO(pin = slot + 1;);
        DO(is_busy = claiming == slot + 1;);
        if
        :: !is_busy ->
            DO(
                is_busy = slots[slot].seq != 2 * p;
                looked_at = (is_busy -> 0 : slot + 1);
                data[0] = slots[slot].half[0];
                data[1] = slots[slot].half[1];
                check_bytes(););
        :: else
        fi;
        if
        :: is_busy -> unpin_frame()
        :: else
        fi
    :: else
    fi
}

inline pass()
{
    DO(cursor = p; passed = p;);
#ifndef SEED_NO_WAKE
    wake()
#endif
}

proctype reader()
{
    byte kind = READER, p, v, cursor_version, slot, passed, data[2];
    bool is_busy, is_gone, is_awake = true;
    do
    :: pin != 0 -> unpin_frame()
    :: seek();
        if
        :: p == 0 -> /* wait for the next frame; from the cursor again */
            if
            :: atomic { position > passed -> skip }
            :: atomic { position <= passed && pin != 0 -> skip }
            :: atomic { position <= passed && pin == 0 && is_over -> break }
            fi;
            passed = cursor
        :: p != 0 ->
            if
#ifdef SEED_CURSOR_EARLY
            :: pass(); copy_frame()
#endif
            :: copy_frame()
            :: pin == 0 -> pin_frame()
            fi;
            if
            :: is_gone -> passed = p /* overwritten, or passed over */
            :: is_busy -> passed = cursor
            :: else ->
                give_frame();
                pass()
            fi
        fi;
        atomic { p = 0; v = 0; slot = 0; data[0] = 0; data[1] = 0; is_busy = false; is_gone = false }
    od;
    goto gone;
killed: /* its words stay in the table */
    atomic {
        deaths_left[READER]--;
        if
        :: is_dead = true; looked_at = 0
        :: is_stopped = true /* it may look on */
        fi;
        p = 0; v = 0; slot = 0; passed = 0; given = 0; cursor_version = 0; data[0] = 0; data[1] = 0;
        is_busy = false; is_gone = false; is_awake = true
    }
gone:
    skip
}

init {
    byte i;
    atomic {
        position = N_SLOTS;
        version = N_SLOTS;
        deaths_left[PRODUCER] = MAX_DEATHS;
        deaths_left[READER] = MAX_READER_DEATHS;
        give_ups_left = MAX_GIVE_UPS;
        do
        :: i < N_SLOTS ->
            slots[i].seq = 2 * (i + 1);
            slots[i].version = i + 1;
            committed_at[i] = i + 1;
            is_published[i + 1] = true;
            i++
        :: else -> i = 0; break
        od;
        run producer();
        run reader()
    }
}
