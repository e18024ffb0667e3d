/* readers.h: the readers that a channel has admitted, by name, and what they
 * keep its producers from overwriting.
 *
 * Most readers need no place here: they map the DataBlock read-only, copy, and
 * count what they missed. One that needs more than that is admitted into this
 * table, a small segment of its own that readers may write to:
 *
 *   a pin      this slot is being looked at where it lies; leave it alone
 *   a cursor   what comes after it has not been read yet. The policy says what
 *              a producer does that would have to overwrite it:
 *                LATEST, EVERY, DROP_OLDEST   overwrite; the reader counts
 *                BLOCK                        wait, as long as the channel's patience
 *                DROP_NEWEST                  drop its own new frame, and count it
 *
 * THE GATE is the one word that a producer looks at. It is 0 while nobody is
 * admitted, and that is all that the table costs it then. (It says also that
 * the channel was closed, which a producer has to ask anyway.)
 *
 * CLAIM AGAINST PIN. Producer and reader each store their own word and then
 * look at the other's, with a full fence between. Whoever comes second sees
 * the first; if both come at once both give way.
 *
 *   producer                              reader
 *     claiming = slot + 1                   pin = slot + 1
 *     full fence                            full fence
 *     a pin on it? the next slot            claimed, or seq changed? pin = 0, look again
 *     seq = 2p-1; claiming = 0              the bytes stay until pin = 0
 *
 * ADMISSION. A producer that looked at the gate just before it opened is not
 * aware of the new reader. There is one at most, and it can only write to the
 * slot after the newest: the reader does not pin that one until it has seen
 * that publication end (phb_datablock_admit).
 *
 * DEATH. Each place names its holder's lease. A dead one's is ignored by the
 * producer that finds it in its way, and emptied by whoever gets the lock. The
 * lock is for coming and going only: nobody takes it to read or to publish.
 *
 * Reasons, and the alternatives that lost: docs/decisions/0012.
 */
#ifndef PYHUB_READERS_H
#define PYHUB_READERS_H

#include "segment.h"

#define PHB_READER_NAME_BYTES 64u
#define PHB_READER_PINS 6u    /* frames that one reader may hold at a time */
#define PHB_MAX_READERS 4096u /* places in a table */

/* What a reader asks of producers. */
#define PHB_POLICY_LATEST 0u
#define PHB_POLICY_EVERY 1u
#define PHB_POLICY_BLOCK 2u
#define PHB_POLICY_DROP_NEWEST 3u
#define PHB_POLICY_DROP_OLDEST 4u

/* Bits of the gate; below them, the number of places to look at. */
#define PHB_GATE_CLOSED 0x80000000u

/* Written by the creator before publish; read at attach, once. Constant. */
typedef struct phb_readers_constants {
    phb_segment_header segment;
    unsigned char datablock_id[16]; /* segment_id of the DataBlock it belongs to */
    uint64_t patience_ns;   /* how long a publish waits for readers that block */
    uint64_t table_offset;  /* of phb_reader_place[n_places] */
    uint32_t n_places;
    uint32_t reserved0;
    unsigned char reserved1[88];
} phb_readers_constants;

PHB_ASSERT_SIZE(phb_readers_constants, 384);
PHB_ASSERT_OFFSET(phb_readers_constants, datablock_id, 256);
PHB_ASSERT_OFFSET(phb_readers_constants, patience_ns, 272);
PHB_ASSERT_OFFSET(phb_readers_constants, table_offset, 280);
PHB_ASSERT_OFFSET(phb_readers_constants, n_places, 288);

/* Each group below has its own cache lines. */
typedef struct phb_readers_control {
    phb_mutex lock; /* who comes, goes, or removes the dead */

    /* Written by who holds the lock (places), and by the owner at its close;
     * read by producers, once a publication. */
    phb_u32 gate;
    unsigned char reserved0[60];

    /* Written by the producer that holds the DataBlock's lock; read by readers. */
    phb_u32 claiming;   /* slot + 1 that it is about to write to; 0: none */
    phb_u32 is_waiting; /* 1: it sleeps on `released` */
    unsigned char reserved1[56];

    /* Written by readers that find is_waiting; the producer sleeps on it. */
    phb_u32 released;
    unsigned char reserved2[60];

    /* Written by readers that go to sleep, admitted or not; read by producers,
     * after each publish. The newest commit that a sleeper has seen: sync.h. */
    phb_u64 awaited;
    unsigned char reserved3[56];
} phb_readers_control;

PHB_ASSERT_SIZE(phb_readers_control, 384);
PHB_ASSERT_OFFSET(phb_readers_control, lock, 0);
PHB_ASSERT_OFFSET(phb_readers_control, gate, 128);
PHB_ASSERT_OFFSET(phb_readers_control, claiming, 192);
PHB_ASSERT_OFFSET(phb_readers_control, is_waiting, 196);
PHB_ASSERT_OFFSET(phb_readers_control, released, 256);
PHB_ASSERT_OFFSET(phb_readers_control, awaited, 320);

/* One admitted reader. */
typedef struct phb_reader_place {
    /* Written at admission, under the lock, and emptied by the reader or, once
     * it is dead, under the lock; read by all. */
    phb_u64 lease;  /* of the reader's process; 0: the place is free */
    phb_u32 pid;    /* for messages */
    phb_u32 policy; /* PHB_POLICY_... */
    char name[PHB_READER_NAME_BYTES]; /* NUL-terminated */
    unsigned char reserved0[48];

    /* Written by the reader; read by producers and monitors. */
    phb_u64 cursor;                /* position of the last frame that it is done with */
    phb_u64 n_read;                /* frames that it was given */
    phb_u64 n_lost;                /* frames that it will not get any more */
    phb_u64 max_lag;               /* frames that it was behind, at worst */
    phb_u32 pin[PHB_READER_PINS];  /* slot + 1, or 0 */
    unsigned char reserved1[8];

    /* Written by the producer that holds the DataBlock's lock; read by monitors. */
    phb_u64 given_up_at;  /* cursor + 1 at which patience ended; holds until it moves */
    phb_u64 kept_at;      /* cursor + 1 at which it first was in the way, */
    phb_u64 kept_ns;      /* ... and when that was, monotonic */
    phb_u64 stalled_ns;   /* that producers waited for it, in all */
    phb_u64 n_dropped;    /* frames that producers dropped for its sake */
    unsigned char reserved2[24];
} phb_reader_place;

PHB_ASSERT_SIZE(phb_reader_place, 256);
PHB_ASSERT_OFFSET(phb_reader_place, lease, 0);
PHB_ASSERT_OFFSET(phb_reader_place, pid, 8);
PHB_ASSERT_OFFSET(phb_reader_place, policy, 12);
PHB_ASSERT_OFFSET(phb_reader_place, name, 16);
PHB_ASSERT_OFFSET(phb_reader_place, cursor, 128);
PHB_ASSERT_OFFSET(phb_reader_place, n_read, 136);
PHB_ASSERT_OFFSET(phb_reader_place, n_lost, 144);
PHB_ASSERT_OFFSET(phb_reader_place, max_lag, 152);
PHB_ASSERT_OFFSET(phb_reader_place, pin, 160);
PHB_ASSERT_OFFSET(phb_reader_place, given_up_at, 192);
PHB_ASSERT_OFFSET(phb_reader_place, kept_at, 200);
PHB_ASSERT_OFFSET(phb_reader_place, kept_ns, 208);
PHB_ASSERT_OFFSET(phb_reader_place, stalled_ns, 216);
PHB_ASSERT_OFFSET(phb_reader_place, n_dropped, 224);

/* --- What one process holds ---------------------------------------------- */

/* A table, mapped. The constants are a checked copy. */
typedef struct phb_readers {
    phb_readers_constants constants;
    phb_segment segment;
    phb_readers_control *control;
    phb_reader_place *places;
    const char *leases; /* the lock file, as long as the handle lives */
} phb_readers;

/* --- Create, attach ------------------------------------------------------ */

static inline void phb_readers_bind(phb_readers *table, const char *leases)
{
    unsigned char *live = (unsigned char *)table->segment.live;
    table->control = (phb_readers_control *)(live + sizeof(phb_segment_live));
    table->places = (phb_reader_place *)(table->segment.base + table->constants.table_offset);
    table->leases = leases;
}

static inline int phb_readers_measure(phb_readers_constants *c, uint64_t *total)
{
    const uint64_t at = phb_segment_live_offset(sizeof *c) + sizeof(phb_segment_live) +
                        sizeof(phb_readers_control);
    c->table_offset = at;
    *total = at + sizeof(phb_reader_place) * c->n_places;
    return c->n_places >= 1 && c->n_places <= PHB_MAX_READERS &&
           c->patience_ns <= (uint64_t)INT64_MAX && phb_align_up(total, 4096);
}

/* The table of the DataBlock with this header, which lies in `directory` and
 * has no name yet. */
static inline int phb_readers_create(phb_readers *table, const char *directory,
                                     const char *path, const phb_segment_header *datablock,
                                     uint32_t n_places, uint64_t patience_ns,
                                     const char *leases, uint64_t lease)
{
    phb_readers_constants *c = &table->constants;
    uint64_t total;
    memset(table, 0, sizeof *table);
    table->segment.fd = -1;
    memcpy(c->datablock_id, datablock->segment_id, sizeof c->datablock_id);
    c->n_places = n_places;
    c->patience_ns = patience_ns;
    if (!phb_readers_measure(c, &total)) {
        return PHB_CAPACITY;
    }
    int status = phb_segment_create(&table->segment, directory, datablock->name,
                                    PHB_KIND_READERS, sizeof *c, total, lease);
    if (status != PHB_OK) {
        return status;
    }
    memcpy(table->segment.base + sizeof(phb_segment_header),
           (const unsigned char *)c + sizeof(phb_segment_header),
           sizeof *c - sizeof(phb_segment_header));
    phb_readers_bind(table, leases);
    phb_store64(&table->control->awaited, UINT64_MAX); /* nobody: less than any commit */
    status = phb_mutex_init(&table->control->lock);
    if (status == PHB_OK) {
        status = phb_segment_publish(&table->segment, path);
    }
    if (status != PHB_OK) {
        int error = errno;
        phb_segment_detach(&table->segment);
        errno = error;
        return status;
    }
    memcpy(c, table->segment.base, sizeof(phb_segment_header));
    return PHB_OK;
}

/* As phb_datablock_is_sound. */
static inline int phb_readers_is_sound(const phb_readers_constants *c, uint64_t size)
{
    phb_readers_constants computed;
    uint64_t total;
    memcpy(&computed, c, sizeof computed);
    return phb_readers_measure(&computed, &total) && total == size &&
           memcmp(&computed, c, sizeof computed) == 0;
}

/* Map the table of the DataBlock with this header, which lies at `beside`. */
static inline int phb_readers_attach(phb_readers *table, const char *beside,
                                     const phb_segment_header *datablock, const char *leases)
{
    phb_readers_constants *c = &table->constants;
    char path[PATH_MAX];
    memset(table, 0, sizeof *table);
    table->segment.fd = -1;
    int status = phb_segment_companion(path, beside, datablock);
    if (status == PHB_OK) {
        status = phb_segment_attach(&table->segment, path, PHB_KIND_READERS, (unsigned char *)c,
                                    sizeof *c, datablock->creator_uid, 1);
    }
    if (status != PHB_OK) {
        return status;
    }
    if (!phb_readers_is_sound(c, table->segment.size) ||
        memcmp(c->datablock_id, datablock->segment_id, sizeof c->datablock_id) != 0) {
        phb_segment_detach(&table->segment);
        return PHB_DAMAGED;
    }
    phb_readers_bind(table, leases);
    return PHB_OK;
}

/* --- Coming and going, under the lock ------------------------------------ */

/* The places to look at, as the gate says; never more than there are. */
static inline uint32_t phb_readers_n_used(const phb_readers *table)
{
    const uint32_t n = phb_load32_acquire(&table->control->gate) & ~PHB_GATE_CLOSED;
    return n < table->constants.n_places ? n : table->constants.n_places;
}

/* Set the number in the gate, and leave its other bit alone. */
static inline void phb_readers_set_used(phb_readers *table, uint32_t n_used)
{
    uint32_t gate = phb_load32(&table->control->gate);
    while (!phb_swap32(&table->control->gate, &gate, (gate & PHB_GATE_CLOSED) | n_used)) {
    }
}

/* Empty the place `i`. The lease goes last: while it stands, the place is taken. */
static inline void phb_readers_empty(phb_readers *table, uint32_t i)
{
    phb_reader_place *place = &table->places[i];
    for (uint32_t j = 0; j < PHB_READER_PINS; j++) {
        phb_store32_release(&place->pin[j], 0); /* as in phb_reader_unpin */
    }
    phb_store32(&place->policy, PHB_POLICY_LATEST);
    phb_store64_release(&place->lease, 0);
}

/* Bring the gate's number down to the last place that is taken. */
static inline void phb_readers_lower_gate(phb_readers *table)
{
    uint32_t n_used = 0;
    for (uint32_t i = 0; i < table->constants.n_places; i++) {
        if (phb_load64(&table->places[i].lease)) {
            n_used = i + 1;
        }
    }
    phb_readers_set_used(table, n_used);
}

/* With the lock just taken, `status` as phb_mutex_lock answered it: make good
 * what its last owner may have left. Can itself die and be done again. */
static inline int phb_readers_enter(phb_readers *table, int status)
{
    if (status == PHB_RECOVERED) {
        phb_readers_lower_gate(table);
        status = phb_mutex_consistent(&table->control->lock);
    }
    return status;
}

/* With the lock held: empty the places of the dead; how many. */
static inline uint32_t phb_readers_bury(phb_readers *table)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < table->constants.n_places; i++) {
        const uint64_t lease = phb_load64(&table->places[i].lease);
        if (lease && !phb_lease_is_alive(table->leases, lease)) {
            phb_readers_empty(table, i);
            n++;
        }
    }
    if (n) {
        phb_readers_lower_gate(table);
    }
    return n;
}

/* Empty the places of the dead, if nobody else is at it: how many. */
static inline uint32_t phb_readers_reap(phb_readers *table)
{
    uint32_t n = 0;
    if (phb_readers_enter(table, phb_mutex_trylock(&table->control->lock)) == PHB_OK) {
        n = phb_readers_bury(table);
        phb_mutex_unlock(&table->control->lock);
    }
    return n;
}

/* Take a place: its number, in *at. PHB_EXISTS: a living reader has that name,
 * in place *at; PHB_FULL: no place is free. Waits for others that come or go
 * as phb_mutex_lock does. The place protects nothing yet (phb_datablock_admit). */
static inline int phb_readers_take_place(phb_readers *table, const char *name, uint32_t policy,
                                         uint64_t cursor, uint64_t lease, uint32_t *at,
                                         int64_t deadline_ns)
{
    const uint32_t n_places = table->constants.n_places;
    int status = phb_readers_enter(table, phb_mutex_lock(&table->control->lock, deadline_ns));
    if (status != PHB_OK) {
        return status;
    }
    phb_readers_bury(table);
    *at = n_places;
    for (uint32_t i = 0; i < n_places && status == PHB_OK; i++) {
        phb_reader_place *place = &table->places[i];
        if (!phb_load64(&place->lease)) {
            *at = *at < i ? *at : i;
        } else if (strncmp(place->name, name, PHB_READER_NAME_BYTES) == 0) {
            *at = i;
            status = PHB_EXISTS;
        }
    }
    if (status == PHB_OK && *at == n_places) {
        status = PHB_FULL;
    }
    if (status == PHB_OK) {
        phb_reader_place *place = &table->places[*at];
        char padded[PHB_READER_NAME_BYTES] = {0};
        memcpy(padded, name, strnlen(name, sizeof padded - 1));
        phb_copy_to_shared(place->name, padded, sizeof padded);
        phb_store32(&place->pid, (uint32_t)getpid());
        phb_store32(&place->policy, policy);
        phb_store64(&place->cursor, cursor);
        phb_store64(&place->n_read, 0);
        phb_store64(&place->n_lost, 0);
        phb_store64(&place->max_lag, 0);
        phb_store64(&place->given_up_at, cursor); /* any but cursor + 1 */
        phb_store64(&place->kept_at, cursor);
        phb_store64(&place->stalled_ns, 0);
        phb_store64(&place->n_dropped, 0);
        phb_store64_release(&place->lease, lease); /* from here on it is taken */
        if (*at >= phb_readers_n_used(table)) {
            phb_readers_set_used(table, *at + 1);
        }
    }
    phb_mutex_unlock(&table->control->lock);
    return status;
}

/* Wake the producer, if it waits for readers. After a store that may let it go on. */
static inline void phb_readers_wake(phb_readers *table)
{
    phb_fence_full(); /* partner: the fence in phb_datablock_ask_readers */
    if (phb_load32(&table->control->is_waiting)) {
        phb_add32(&table->control->released, 1);
        phb_futex_wake(&table->control->released.word);
    }
}

/* Give the place up. Needs no lock, for it is ours; the gate comes down when
 * the lock is free, now or with the next who comes or goes. */
static inline void phb_readers_leave_place(phb_readers *table, uint32_t at)
{
    phb_readers_empty(table, at);
    phb_readers_wake(table);
    if (phb_readers_enter(table, phb_mutex_trylock(&table->control->lock)) == PHB_OK) {
        phb_readers_lower_gate(table);
        phb_mutex_unlock(&table->control->lock);
    }
}

/* --- The producer's question --------------------------------------------- */

typedef enum phb_objection {
    PHB_NOBODY_MINDS,
    PHB_IS_PINNED,      /* somebody looks at it: take another slot */
    PHB_IS_WAITED_FOR,  /* somebody who blocks has not read it */
    PHB_IS_KEPT         /* somebody who drops the newest has not read it */
} phb_objection;

/* Has the reader not moved for as long as the channel has patience? From the
 * first time that it was in the way with this cursor. */
static inline int phb_reader_is_given_up(phb_readers *table, phb_reader_place *place,
                                         uint64_t cursor)
{
    if (phb_load64(&place->given_up_at) == cursor + 1) {
        return 1;
    }
    const uint64_t now = (uint64_t)phb_monotonic_ns();
    if (phb_load64(&place->kept_at) != cursor + 1) {
        /* In this order: who dies in between leaves no time of long ago. */
        phb_store64(&place->kept_ns, now);
        phb_store64(&place->kept_at, cursor + 1);
    }
    if (now - phb_load64(&place->kept_ns) < table->constants.patience_ns) {
        return 0;
    }
    phb_store64(&place->given_up_at, cursor + 1);
    return 1;
}

/* What admitted readers say to overwriting slot `slot`; `*who` is the place of
 * one that objects. `held`: position of the frame that lies there and can still
 * be found; NULL: none. After phb_fence_full. */
static inline phb_objection phb_readers_ask(phb_readers *table, uint32_t slot,
                                            const uint64_t *held, uint32_t *who)
{
    phb_objection strongest = PHB_NOBODY_MINDS;
    const uint32_t n_used = phb_readers_n_used(table);
    int has_dead = 0;
    for (uint32_t i = 0; i < n_used; i++) {
        phb_reader_place *place = &table->places[i];
        phb_objection objection = PHB_NOBODY_MINDS;
        /* acquire: what was read there comes before it is overwritten; pairs
         * with the release stores of phb_reader_unpin and phb_reader_pass */
        const uint64_t lease = phb_load64_acquire(&place->lease);
        if (!lease) {
            continue;
        }
        for (uint32_t j = 0; j < PHB_READER_PINS; j++) {
            if (phb_load32_acquire(&place->pin[j]) == slot + 1) {
                objection = PHB_IS_PINNED;
            }
        }
        const uint32_t policy = phb_load32(&place->policy);
        if (held && (policy == PHB_POLICY_BLOCK || policy == PHB_POLICY_DROP_NEWEST)) {
            const uint64_t cursor = phb_load64_acquire(&place->cursor);
            if ((int64_t)(*held - cursor) > 0 && !phb_reader_is_given_up(table, place, cursor)) {
                objection = policy == PHB_POLICY_BLOCK ? PHB_IS_WAITED_FOR : PHB_IS_KEPT;
            }
        }
        if (objection > strongest) {
            if (phb_lease_is_alive(table->leases, lease)) {
                strongest = objection;
                *who = i;
            } else {
                has_dead = 1;
            }
        }
    }
    if (has_dead) {
        phb_readers_reap(table);
    }
    return strongest;
}

/* Every slot is pinned: is one of those who hold them to be waited for? */
static inline phb_objection phb_readers_ask_holders(phb_readers *table, uint32_t *who)
{
    phb_objection objection = PHB_IS_PINNED;
    const uint32_t n_used = phb_readers_n_used(table);
    for (uint32_t i = 0; i < n_used && objection == PHB_IS_PINNED; i++) {
        phb_reader_place *place = &table->places[i];
        const uint64_t lease = phb_load64_acquire(&place->lease);
        uint32_t n_pins = 0;
        for (uint32_t j = 0; j < PHB_READER_PINS; j++) {
            n_pins += phb_load32(&place->pin[j]) != 0;
        }
        if (lease && n_pins && phb_load32(&place->policy) == PHB_POLICY_BLOCK &&
            !phb_reader_is_given_up(table, place, phb_load64(&place->cursor))) {
            if (phb_lease_is_alive(table->leases, lease)) {
                *who = i;
                objection = PHB_IS_WAITED_FOR;
            } else {
                phb_readers_reap(table);
            }
        }
    }
    return objection;
}

/* A publish has waited as long as it may: give the reader up, until it moves. */
static inline void phb_readers_give_up(phb_readers *table, uint32_t who)
{
    phb_reader_place *place = &table->places[who];
    phb_store64(&place->given_up_at, phb_load64(&place->cursor) + 1);
}

#endif
