/* ring.pml: the producers' lock, sequence words of slots and entries, the commit
 * of two records, uses of flex entries, death at any step, and repair
 * (datablock_write.h); and a reader that copies, without a lock
 * (datablock_read.h).
 *
 * A producer, or two with N_PRODUCERS=2; after a death another one comes. Nobody
 * is admitted, so no position is passed over. Pins are in pins.pml, cursors in
 * cursor.pml.
 *
 * Shown for every interleaving of their steps:
 *   - no two producers are inside
 *   - a snapshot is the record of one publish, whole
 *   - a frame that the reader accepts is whole, was committed, and comes with an
 *     object, whole as well, that was in force while it was the newest
 *   - whenever a producer opens, also after repair, each entry has as many uses
 *     as refer to it, those without are on the free list, and there is one
 *   - nobody waits for ever
 *
 * Every shared word is loaded or stored in a step of its own, in the order of
 * the program (sequential consistency). Compilers and processors keep that order
 * only where the headers have a fence or an order: the table in datablock.h
 * lists them. That none is missing is not shown here. The lock is the kernel's and
 * the libc's word, taken as it is.
 *
 * Seeds, each of which must be found: see tests/model/test_model.py.
 */
#ifndef N_SLOTS
#define N_SLOTS 2
#endif
#ifndef MAX_BEGINS
#define MAX_BEGINS 4 /* publications that are begun, in all */
#endif
#ifndef MAX_DEATHS
#define MAX_DEATHS 1
#endif
#ifndef N_PRODUCERS
#define N_PRODUCERS 1
#endif
#define N_ENTRIES (N_SLOTS + 1)
#define NO_ENTRY 15

/* --- Shared words -------------------------------------------------------- */

typedef slot_t { byte seq, flex_index, flex_version, half[2] }
typedef entry_t { byte seq, next_free, n_uses, half[2] }
typedef record_t { byte flex_version, newest_slot, n_filled, flex_index, position }

slot_t slots[N_SLOTS];
entry_t entries[N_ENTRIES];
record_t record[2];
byte commit;
byte flex_free;
bool is_locked, owner_died; /* owner_died: EOWNERDEAD for who gets the lock */

#define IN_FORCE record[commit & 1]

/* --- What the model knows and no program does ---------------------------- */

byte n_begins, n_deaths, n_inside;
/* The words of a frame or object are the number of the begin that wrote them:
 * so those of every attempt differ, and half of one is told from the other. */
byte writer_of[MAX_BEGINS + 1];   /* commit -> begin */
byte position_of[MAX_BEGINS + 1]; /* commit -> position in force */
byte flex_of[MAX_BEGINS + 1];     /* commit -> flex_version in force */

/* --- The producer -------------------------------------------------------- */

/* A step: others may come between it and the next, or the producer dies before.
 * Steps on words that none but the lock's holder looks at are drawn together by
 * an `atomic`: others cannot tell when they happen, but death can come between. */
#define DO(step)                                       \
    if                                                 \
    :: atomic { step }                                 \
    :: atomic { n_deaths < MAX_DEATHS -> goto killed } \
    fi

inline repair()
{
    if
    :: IN_FORCE.n_filled > 0 ->
        DO(slots[IN_FORCE.newest_slot].flex_index = IN_FORCE.flex_index;);
        DO(slots[IN_FORCE.newest_slot].flex_version = IN_FORCE.flex_version;)
    :: else
    fi;
    atomic {
        do
        :: i < N_ENTRIES -> DO(entries[i].n_uses = (i == IN_FORCE.flex_index -> 1 : 0); i++;)
        :: else -> i = 0; break
        od
    }
    do
    :: i < N_SLOTS ->
#ifndef SEED_ENTRY_LOST
        if /* it holds no frame yet, and may name an object that was not committed */
        :: i >= IN_FORCE.n_filled -> DO(slots[i].flex_index = NO_ENTRY;)
        :: else
        fi;
#endif
        if /* whole, but never committed: pins.pml shows what comes of it otherwise */
        :: slots[i].seq > 2 * IN_FORCE.position && slots[i].seq % 2 == 0 -> DO(slots[i].seq--;)
        :: else
        fi;
        DO(
            if
            :: slots[i].flex_index != NO_ENTRY -> entries[slots[i].flex_index].n_uses++
            :: else
            fi;
            i++;)
    :: else -> i = 0; s = NO_ENTRY; break
    od;
    atomic {
        do
        :: i < N_ENTRIES ->
            DO(
                if
                :: entries[i].n_uses == 0 -> entries[i].next_free = s; s = i
                :: else
                fi;
                i++;)
        :: else -> break
        od;
        DO(flex_free = s; i = 0; s = 0;)
    }
}

/* Uses and free list, as they are whenever nobody is about to change them. */
inline check_entries()
{
    d_step {
        i = 0;
        do
        :: i < N_ENTRIES ->
            n = (IN_FORCE.flex_index == i -> 1 : 0);
            s = 0;
            do
            :: s < N_SLOTS -> n = n + (slots[s].flex_index == i -> 1 : 0); s++
            :: else -> break
            od;
            assert(entries[i].n_uses == n);
            i++
        :: else -> break
        od;
        assert(flex_free != NO_ENTRY); /* there is a free one */
        i = 0; n = 0;
        do
        :: i < N_ENTRIES -> n = n + (entries[i].n_uses == 0 -> 1 : 0); i++
        :: else -> break
        od;
        s = flex_free;
        do
        :: s != NO_ENTRY ->
            assert(n > 0 && entries[s].n_uses == 0);
            n--;
            s = entries[s].next_free
        :: else -> break
        od;
        assert(n == 0); /* all that have no use are on the list, once */
        i = 0; s = 0
    }
}

inline open()
{
    d_step {
        next.flex_version = IN_FORCE.flex_version;
        next.newest_slot = IN_FORCE.newest_slot;
        next.n_filled = IN_FORCE.n_filled;
        next.flex_index = IN_FORCE.flex_index;
        next.position = IN_FORCE.position;
        slot = (next.newest_slot + 1) % N_SLOTS;
        entry = flex_free
    }
}

inline fill_data()
{
#ifndef SEED_NO_ODD_SEQ
    DO(slots[slot].seq = 2 * (next.position + 1) - 1;);
#endif
    DO(slots[slot].half[0] = begin;);
    DO(slots[slot].half[1] = begin;)
}

inline fill_flex()
{
    DO(entries[entry].seq = 2 * (next.flex_version + 1) - 1;);
    DO(entries[entry].half[0] = begin;);
    DO(entries[entry].half[1] = begin;)
}

inline retire(which)
{
    DO(
        if
        :: which != NO_ENTRY ->
            entries[which].n_uses--;
            is_gone = entries[which].n_uses == 0
        :: else
        fi;);
    if
    :: is_gone ->
        DO(entries[which].next_free = flex_free;);
        DO(flex_free = which; is_gone = false;)
    :: else
    fi
}

inline end()
{
    atomic {
        if
        :: flex ->
            DO(s = next.flex_index; /* the former */
               next.flex_version++; next.flex_index = entry;
               flex_free = entries[entry].next_free;);
            DO(entries[entry].seq = 2 * next.flex_version;);
            DO(entries[entry].n_uses = 1;);
            retire(s)
        :: else
        fi;
        if
        :: structured ->
            next.newest_slot = slot;
            next.position++;
            next.n_filled = (next.n_filled < N_SLOTS -> next.n_filled + 1 : N_SLOTS)
        :: else -> slot = next.newest_slot
        fi
    }
    if
    :: structured || next.n_filled > 0 ->
        DO(s = slots[slot].flex_index; /* it is retired */
           slots[slot].flex_version = next.flex_version;);
        atomic {
            if
            :: s != next.flex_index ->
                DO(slots[slot].flex_index = next.flex_index;);
                DO(
                    if
                    :: next.flex_index != NO_ENTRY -> entries[next.flex_index].n_uses++
                    :: else
                    fi;);
#ifndef SEED_NO_RETIRE
                retire(s)
#endif
            :: else
            fi
        }
    :: else
    fi;
    if
    :: structured -> DO(slots[slot].seq = 2 * next.position;)
    :: else
    fi;
#ifdef SEED_ONE_RECORD
    i = commit & 1;
#else
    i = (commit + 1) & 1;
#endif
    DO(record[i].flex_version = next.flex_version;);
    DO(record[i].newest_slot = next.newest_slot;);
    DO(record[i].n_filled = next.n_filled;);
    DO(record[i].flex_index = next.flex_index;);
    DO(record[i].position = next.position;);
    DO(commit++; /* one word, and all of it is published */
       writer_of[commit] = begin;
       position_of[commit] = next.position;
       flex_of[commit] = next.flex_version;)
}

/* What a process knew is gone with it; else states that differ in nothing else
 * would be looked at twice. */
inline forget()
{
    i = 0; n = 0; s = 0; slot = 0; entry = 0; begin = 0;
    is_gone = false; flex = false; structured = false;
    next.flex_version = 0; next.newest_slot = 0; next.n_filled = 0;
    next.flex_index = 0; next.position = 0
}

/* All that come: they keep nothing that matters from one publication to the next. */
proctype producer()
{
    record_t next;
    byte i, n, s, slot, entry, begin;
    bool is_gone, flex, structured;
come:
    do
    :: atomic { n_begins == MAX_BEGINS -> break }
    :: atomic {
            !is_locked && n_begins < MAX_BEGINS ->
            is_locked = true;
            n_begins++;
            begin = n_begins;
            n_inside++;
            assert(n_inside == 1)
        }
        if
        :: owner_died ->
#ifndef SEED_NO_REPAIR
            repair();
#endif
            DO(owner_died = false;) /* phb_mutex_consistent */
        :: else
        fi;
        check_entries();
        open();
        if
        :: structured = true; fill_data();
            if
            :: flex = true; fill_flex()
            :: flex = false
            fi
        :: flex = true; fill_flex()
        fi;
        if
        :: end()
        :: true /* abort */
        fi;
        DO(n_inside--; is_locked = false; forget();)
    od;
    goto gone;
killed: /* the kernel marks the lock and lets it go; another producer comes */
    atomic {
        n_deaths++; n_inside--; is_locked = false; owner_died = true;
        forget();
        goto come
    }
gone:
    skip
}

/* --- The reader ---------------------------------------------------------- */

inline snapshot()
{
    do
    :: c = commit;
        now.flex_version = record[c & 1].flex_version;
        now.newest_slot = record[c & 1].newest_slot;
        now.n_filled = record[c & 1].n_filled;
        now.flex_index = record[c & 1].flex_index;
        now.position = record[c & 1].position;
#ifdef SEED_NO_SECOND_LOOK
        break
#else
        if
        :: commit == c -> break
        :: else
        fi
#endif
    od
}

/* All words of the snapshot are of publish c, or of none. */
inline check_snapshot()
{
    d_step {
        assert(now.position == position_of[c] && now.flex_version == flex_of[c]);
        assert(now.n_filled == (now.position < N_SLOTS -> now.position : N_SLOTS));
        assert(now.newest_slot == (now.position + N_SLOTS - 1) % N_SLOTS);
        assert((now.flex_index == NO_ENTRY) == (now.flex_version == 0))
    }
}

/* The frame was accepted: some publish wrote it, another one its object, and in
 * some publish they were in force together. */
inline check_frame()
{
    d_step {
        assert(data[0] == data[1] && object[0] == object[1]);
        c = 1;
        do
        :: position_of[c] != position -> c++
        :: else -> break
        od;
        assert(data[0] == writer_of[c]);
        do
        :: flex_of[c] != flex_version && c < commit -> c++
        :: else -> break
        od;
        assert(flex_of[c] == flex_version && position_of[c] == position);
        do
        :: c > 0 && flex_of[c - 1] == flex_version -> c--
        :: else -> break
        od;
        assert(object[0] == (flex_version > 0 -> writer_of[c] : 0))
    }
}

/* One read, begun at any time: of the newest frame or of one before it. */
proctype reader()
{
    record_t now;
    byte c, position, slot, flex_index, flex_version, data[2], object[2];
    snapshot();
    check_snapshot();
    atomic {
        if
        :: now.n_filled == 0 -> goto gone /* EMPTY */
        :: else
        fi;
        if
        :: position = now.position
        :: now.n_filled > 1 -> position = now.position - 1
        :: now.n_filled > 2 -> position = now.position - 2
        fi;
        slot = (now.newest_slot + N_SLOTS - (now.position - position)) % N_SLOTS
    }
    if
    :: slots[slot].seq == 2 * position
    :: else -> goto gone /* BUSY, OVERRUN */
    fi;
    if
#ifdef SEED_OTHER_PARAMETERS
    :: true ->
#else
    :: position < now.position ->
#endif
        flex_index = slots[slot].flex_index;
        flex_version = slots[slot].flex_version
    :: else ->
        flex_index = now.flex_index;
        flex_version = now.flex_version
    fi;
    if
    :: slots[slot].seq == 2 * position
    :: else -> goto gone
    fi;
    if
    :: flex_index != NO_ENTRY ->
        if
        :: entries[flex_index].seq == 2 * flex_version
        :: else -> goto gone
        fi;
        object[0] = entries[flex_index].half[0];
        object[1] = entries[flex_index].half[1];
        if
        :: entries[flex_index].seq == 2 * flex_version
        :: else -> goto gone
        fi
    :: else -> flex_version = 0
    fi;
    data[0] = slots[slot].half[0];
    data[1] = slots[slot].half[1];
    if
#ifndef SEED_NO_SEQ_CHECK
    :: slots[slot].seq != 2 * position -> goto gone
#endif
    :: else
    fi;
    check_frame();
gone:
    atomic {
        c = 0; position = 0; slot = 0; flex_index = 0; flex_version = 0;
        data[0] = 0; data[1] = 0; object[0] = 0; object[1] = 0;
        now.flex_version = 0; now.newest_slot = 0; now.n_filled = 0;
        now.flex_index = 0; now.position = 0
    }
}

init {
    byte i;
    atomic {
        do
        :: i < N_ENTRIES ->
            entries[i].next_free = (i < N_SLOTS -> i + 1 : NO_ENTRY);
            i++
        :: else -> i = 0; break
        od;
        do
        :: i < N_SLOTS -> slots[i].flex_index = NO_ENTRY; i++
        :: else -> i = 0; break
        od;
        record[0].flex_index = NO_ENTRY;
        record[0].newest_slot = N_SLOTS - 1;
        run producer();
#if N_PRODUCERS > 1
        run producer();
#endif
        run reader()
    }
}
