/* datablock_write.h: publishing, one producer at a time, under the lock. The
 * protocol is drawn in datablock.h.
 */
#ifndef PYHUB_DATABLOCK_WRITE_H
#define PYHUB_DATABLOCK_WRITE_H

#include "datablock_read.h"

/* A producer that waits for readers looks this often whether they live. */
#define PHB_READER_PROBE_NS 10000000ll
/* It looks again for so long before it sleeps: one that keeps up lets go soon, and
 * then nobody has to call the kernel. */
#define PHB_READER_SPIN_NS 20000ll

/* Undo what a dead producer left half done: with the lock held, bring the
 * newest slot back to what the record in force says, and count uses and the
 * free list anew. A slot that was begun, or done and not committed, holds
 * nothing until its turn comes again. Can be repeated from the start wherever
 * the repairer itself dies. */
static inline void phb_datablock_repair(phb_datablock *db)
{
    const uint32_t n_slots = db->constants.n_slots;
    phb_snapshot now;
    phb_datablock_snapshot(db, &now);
    const uint32_t newest = (uint32_t)(now.newest_slot % n_slots);
    if (now.n_filled > 0) {
        phb_store32(&db->slots[newest].flex_index, (uint32_t)now.flex_index);
        phb_store64(&db->slots[newest].flex_version, now.flex_zone_version);
    }
    for (uint32_t i = 0; i <= n_slots; i++) {
        phb_store32(&db->entries[i].n_uses, i == now.flex_index);
    }
    for (uint32_t i = 0; i < n_slots; i++) {
        /* Its position may be passed over by who comes next, and would then
         * seem to be published. */
        const uint64_t seq = phb_load64(&db->slots[i].seq);
        if (seq % 2 == 0 && (int64_t)(seq - 2 * now.position) > 0) {
            phb_store64(&db->slots[i].seq, seq - 1);
        }
        if (i >= now.n_filled) { /* begun in the first lap: nobody refers to its entry */
            phb_store32(&db->slots[i].flex_index, PHB_NO_ENTRY);
        }
        const uint32_t used = phb_load32(&db->slots[i].flex_index);
        if (used <= n_slots) {
            phb_store32(&db->entries[used].n_uses, phb_load32(&db->entries[used].n_uses) + 1);
        }
    }
    uint32_t free_ = PHB_NO_ENTRY;
    for (uint32_t i = 0; i <= n_slots; i++) {
        if (phb_load32(&db->entries[i].n_uses) == 0) {
            phb_store32(&db->entries[i].next_free, free_);
            free_ = i;
        }
    }
    phb_store32(&db->control->flex_free, free_);
    phb_store32_release(&db->readers.control->claiming, 0); /* as in phb_datablock_data */
    phb_store32(&db->readers.control->is_waiting, 0);
    phb_store32(&db->control->is_writing, 0);
}

/* Is the record in force the one that this handle published, or saw, last? */
static inline int phb_datablock_had_last_turn(const phb_datablock *db)
{
    return phb_load64(&db->known_commit) == phb_load64(&db->control->commit);
}

/* With the lock held: look at what is in force, and open a publication. */
static inline int phb_datablock_open(phb_datablock *db)
{
    phb_store32(&db->control->is_writing, 1);
    /* In this order, as a reader that is admitted meanwhile counts on: its
     * phb_fence_everybody is the processor's part of this fence. */
    phb_fence_compiler();
    db->gate = phb_load32_acquire(&db->readers.control->gate);
    if (db->gate & PHB_GATE_CLOSED) {
        phb_store32(&db->control->is_writing, 0);
        phb_mutex_unlock(&db->control->lock);
        return PHB_CLOSED;
    }
    phb_store32(&db->control->writer_pid, (uint32_t)db->pid);
    if (!phb_datablock_had_last_turn(db)) {
        phb_datablock_snapshot(db, &db->base);
        phb_store64(&db->known_commit, db->base.commit);
    }
    db->slot = (uint32_t)((db->base.newest_slot + 1) % db->constants.n_slots);
    db->position = db->base.position + 1;
    db->entry = phb_load32(&db->control->flex_free);
    db->writer = pthread_self();
    db->data_taken = db->flex_taken = db->is_claimed = 0;
    db->waited_ns = 0;
    db->is_open = 1;
    return PHB_OK;
}

/* The lock is ours, and its last owner died: repair, and count it. */
static inline int phb_datablock_make_good(phb_datablock *db)
{
    phb_datablock_repair(db);
    phb_store64(&db->control->n_recovered, phb_load64(&db->control->n_recovered) + 1);
    return phb_mutex_consistent(&db->control->lock);
}

/* The lock is ours, `status` says how: open a publication. */
static inline int phb_datablock_enter(phb_datablock *db, int status)
{
    if (status == PHB_RECOVERED) {
        status = phb_datablock_make_good(db);
        status = status == PHB_OK ? phb_datablock_open(db) : status;
        return status == PHB_OK ? PHB_RECOVERED : status;
    }
    return status == PHB_OK ? phb_datablock_open(db) : status;
}

/* Take the producers' lock if it is free, and if it is not another producer's
 * turn; else PHB_TIMEOUT: wait for it with phb_datablock_begin. No system call.
 * PHB_RECOVERED is success: a dead producer's publication was rolled back. */
static inline int phb_datablock_try_begin(phb_datablock *db)
{
    phb_datablock_control *control = db->control;
    if (phb_load32(&control->is_awaited) && phb_datablock_had_last_turn(db)) {
        return PHB_TIMEOUT;
    }
    return phb_datablock_enter(db, phb_mutex_trylock(&control->lock));
}

/* How long a producer that had the last turn lets those that wait go first. One
 * of them may be stopped, or have died: then that is all it costs. */
#define PHB_GIVE_WAY_NS 2000000ll
#define PHB_GIVE_WAY_NAP_NS 50000ll

static inline void phb_datablock_give_way(phb_datablock *db, int64_t deadline_ns)
{
    phb_datablock_control *control = db->control;
    if (!phb_load32(&control->is_awaited) || !phb_datablock_had_last_turn(db)) {
        return;
    }
    const int64_t patience = phb_monotonic_ns() + PHB_GIVE_WAY_NS;
    const int64_t until = patience < deadline_ns ? patience : deadline_ns;
    const struct timespec nap = phb_timespec(PHB_GIVE_WAY_NAP_NS);
    while (phb_load32(&control->is_awaited) && phb_monotonic_ns() < until) {
        clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
    }
    phb_store32(&control->is_awaited, 0);
}

/* Take the producers' lock, at most until `deadline_ns` (phb_monotonic_ns) and
 * at most for one slice (PHB_INTERRUPTED: call again). Producers that want it
 * at the same time take turns. */
static inline int phb_datablock_begin(phb_datablock *db, int64_t deadline_ns)
{
    phb_mutex *lock = &db->control->lock;
    const int64_t slice = phb_monotonic_ns() + PHB_WAIT_SLICE_NS;
    phb_datablock_give_way(db, deadline_ns);
    int status = phb_mutex_trylock(lock);
    while (status == PHB_TIMEOUT) {
        /* Said again now and then: who gets the lock takes it back, and there
         * may be more than one who waits. */
        phb_store32(&db->control->is_awaited, 1);
        const int64_t turn = phb_monotonic_ns() + PHB_GIVE_WAY_NS;
        status = phb_mutex_lock(lock, turn < deadline_ns ? turn : deadline_ns);
        const int64_t now = phb_monotonic_ns();
        if (status != PHB_TIMEOUT) {
            phb_store32(&db->control->is_awaited, 0);
        } else if (now >= deadline_ns || now >= slice) {
            return now >= deadline_ns ? PHB_TIMEOUT : PHB_INTERRUPTED;
        }
    }
    return phb_datablock_enter(db, status);
}

/* Make good what dead producers and readers left, without publishing:
 * PHB_RECOVERED if a publication was rolled back, PHB_OK if there was none,
 * PHB_TIMEOUT if a living producer is at it. */
static inline int phb_datablock_recover(phb_datablock *db)
{
    int status = phb_mutex_trylock(&db->control->lock);
    if (status == PHB_RECOVERED) {
        status = phb_datablock_make_good(db);
        phb_mutex_unlock(&db->control->lock);
        status = status == PHB_OK ? PHB_RECOVERED : status;
    } else if (status == PHB_OK) {
        phb_mutex_unlock(&db->control->lock);
    }
    return status;
}

/* A publication belongs to the thread that began it. It does not survive fork:
 * the child must not touch it. */
static inline int phb_datablock_is_mine(const phb_datablock *db)
{
    return db->is_open && pthread_equal(db->writer, pthread_self());
}

/* Ask the admitted readers for a slot, from the oldest on: it is db->slot then,
 * and nobody can pin it before phb_datablock_data. See readers.h for the
 * hand-over. PHB_INTERRUPTED: one is waited for; call again. PHB_FULL: there is
 * none; drop the frame (phb_datablock_drop). */
static inline int phb_datablock_ask_readers(phb_datablock *db)
{
    const uint32_t n_slots = db->constants.n_slots;
    phb_readers_control *control = db->readers.control;
    const int64_t start = phb_monotonic_ns(), slice = start + PHB_WAIT_SLICE_NS;
    phb_objection objection = PHB_IS_PINNED;
    int is_second = 0;
    for (;;) {
        const uint32_t seen = phb_load32(&control->released);
        for (uint32_t ahead = 1; ahead <= n_slots; ahead++) {
            const uint32_t slot = (uint32_t)((db->base.newest_slot + ahead) % n_slots);
            const uint64_t held = db->base.position + ahead - n_slots;
            const int is_held = db->base.n_filled == n_slots &&
                                phb_load64(&db->slots[slot].seq) == 2 * held;
            /* release: as claiming = 0, which it may overwrite */
            phb_store32_release(&control->claiming, slot + 1);
            phb_fence_full(); /* partner: the fence in phb_datablock_pin */
            objection =
                phb_readers_ask(&db->readers, slot, is_held ? &held : NULL, &db->kept_by);
            if (objection == PHB_NOBODY_MINDS) {
                db->slot = slot;
                db->position = db->base.position + ahead;
                db->is_claimed = 1;
                phb_store32(&control->is_waiting, 0);
                return PHB_OK;
            }
            if (objection != PHB_IS_PINNED) {
                break; /* what comes after it may not be passed over either */
            }
        }
        phb_store32(&control->claiming, 0);
        if (objection == PHB_IS_PINNED) {
            if (!is_second) { /* pins move while we look: one look is no proof */
                is_second = 1;
                continue;
            }
            objection = phb_readers_ask_holders(&db->readers, &db->kept_by);
        }
        if (objection != PHB_IS_WAITED_FOR) {
            phb_store32(&control->is_waiting, 0);
            return PHB_FULL;
        }
        if (db->waited_ns >= db->readers.constants.patience_ns) {
            phb_readers_give_up(&db->readers, db->kept_by); /* others came before it */
            continue;
        }
        const int64_t now = phb_monotonic_ns();
        if (now - start < PHB_READER_SPIN_NS) {
            for (int i = 0; i < 16; i++) {
                phb_relax();
            }
            continue;
        }
        if (!phb_load32(&control->is_waiting)) {
            phb_store32(&control->is_waiting, 1);
            continue; /* once more: who lets go from now on will wake us */
        }
        phb_futex_wait(&control->released.word, seen, PHB_READER_PROBE_NS);
        phb_u64 *stalled = &db->readers.places[db->kept_by].stalled_ns;
        const int64_t woken = phb_monotonic_ns();
        phb_store64(stalled, phb_load64(stalled) + (uint64_t)(woken - now));
        db->waited_ns += (uint64_t)(woken - now);
        if (woken >= slice) { /* here, so that each call has waited, however slow */
            phb_store32(&control->is_waiting, 0);
            return PHB_INTERRUPTED;
        }
    }
}

/* See that a slot is free for the next frame: PHB_OK at once while no reader is
 * admitted; else as phb_datablock_ask_readers. */
static inline int phb_datablock_claim(phb_datablock *db)
{
    if (!phb_datablock_is_mine(db)) {
        return PHB_MISUSE;
    }
    return !db->gate || db->is_claimed ? PHB_OK : phb_datablock_ask_readers(db);
}

/* The next slot's bytes; NULL outside begin and end, or if readers keep every
 * slot (phb_datablock_claim tells; here they are waited for). What it held
 * before is gone from here on, also if the publication is given up. */
static inline void *phb_datablock_data(phb_datablock *db)
{
    if (!phb_datablock_is_mine(db)) {
        return NULL;
    }
    if (!db->data_taken) {
        while (db->gate && !db->is_claimed) {
            if (phb_datablock_ask_readers(db) == PHB_FULL) {
                return NULL;
            }
        }
        phb_store64(&db->slots[db->slot].seq, 2 * db->position - 1);
        if (db->is_claimed) {
            /* release: who sees 0 again sees the odd seq; pairs with phb_datablock_pin */
            phb_store32_release(&db->readers.control->claiming, 0);
        }
        /* release: a reader that sees any byte stored from here on also sees
         * the odd seq (phb_seq_holds) */
        phb_fence_release();
        db->data_taken = 1;
    }
    return db->structured_buffer + db->slot * db->constants.structured_buffer_stride;
}

/* The free flex entry's bytes; NULL outside begin and end. */
static inline void *phb_datablock_flex(phb_datablock *db)
{
    if (!phb_datablock_is_mine(db) || db->entry > db->constants.n_slots) {
        return NULL;
    }
    if (!db->flex_taken) {
        uint64_t version = db->base.flex_zone_version + 1;
        phb_store64(&db->entries[db->entry].seq, 2 * version - 1);
        phb_fence_release(); /* as in phb_datablock_data */
        db->flex_taken = 1;
    }
    return db->flex_zone + db->entry * db->constants.flex_zone_stride;
}

static inline int phb_datablock_release(phb_datablock *db)
{
    db->is_open = 0;
    if (db->is_claimed && !db->data_taken) {
        phb_store32(&db->readers.control->claiming, 0);
    }
    phb_store32(&db->control->is_writing, 0);
    return phb_mutex_unlock(&db->control->lock);
}

/* Publish nothing, and let the next producer in. */
static inline int phb_datablock_abort(phb_datablock *db)
{
    if (!phb_datablock_is_mine(db)) {
        return PHB_MISUSE;
    }
    phb_store64(&db->control->n_aborted, phb_load64(&db->control->n_aborted) + 1);
    return phb_datablock_release(db);
}

/* Publish nothing, because readers keep every slot (PHB_FULL): the frame is
 * counted, and missing in what readers count as lost. */
static inline int phb_datablock_drop(phb_datablock *db)
{
    if (!phb_datablock_is_mine(db) || db->data_taken || db->is_claimed || !db->gate) {
        return PHB_MISUSE;
    }
    phb_u64 *dropped = &db->readers.places[db->kept_by].n_dropped;
    phb_store64(dropped, phb_load64(dropped) + 1);
    phb_store64(&db->control->n_dropped, phb_load64(&db->control->n_dropped) + 1);
    return phb_datablock_release(db);
}

/* One use of entry `entry` less; without any it is free. */
static inline void phb_datablock_retire(phb_datablock *db, uint32_t entry)
{
    if (entry <= db->constants.n_slots) {
        const uint32_t n_uses = phb_load32(&db->entries[entry].n_uses) - 1;
        phb_store32(&db->entries[entry].n_uses, n_uses);
        if (n_uses == 0) {
            phb_store32(&db->entries[entry].next_free, phb_load32(&db->control->flex_free));
            phb_store32(&db->control->flex_free, entry);
        }
    }
}

/* One use more. */
static inline void phb_datablock_engage(phb_datablock *db, uint32_t entry)
{
    if (entry <= db->constants.n_slots) {
        phb_store32(&db->entries[entry].n_uses, phb_load32(&db->entries[entry].n_uses) + 1);
    }
}

/* What a publication says of itself. */
typedef struct phb_update {
    uint32_t zones;         /* PHB_ZONE_FLEX | PHB_ZONE_STRUCTURED */
    uint32_t flex_encoding;
    uint64_t flex_size;
    uint64_t structured_size;
    const uint64_t *frame_id;  /* NULL: counted from 0, with those that were dropped */
    uint64_t timestamp_ns;     /* 0: now */
} phb_update;

/* Does a reader sleep that has not seen the commit after `seen`? phb_waiting. */
static inline int phb_datablock_is_awaited(const phb_datablock *db, uint64_t seen)
{
    return (int64_t)(phb_load64(&db->readers.control->awaited) - seen) >= 0;
}

static inline void phb_datablock_wake(phb_datablock *db, uint64_t seen)
{
    phb_fence_full(); /* partner: the fence in phb_wait_change */
    if (phb_datablock_is_awaited(db, seen)) {
        phb_futex_wake(phb_low_half(&db->control->commit));
    }
}

/* Publish the zones that `update` names, unlock, and wake who sleeps. With an
 * answer other than PHB_OK nothing is published and the publication is still open. */
static inline int phb_datablock_end(phb_datablock *db, const phb_update *update,
                                    phb_snapshot *published)
{
    const uint32_t n_slots = db->constants.n_slots;
    const int flex = (update->zones & PHB_ZONE_FLEX) != 0;
    const int structured = (update->zones & PHB_ZONE_STRUCTURED) != 0;
    if (!phb_datablock_is_mine(db) || (!flex && !structured) || (flex && !db->flex_taken) ||
        (structured && !db->data_taken)) {
        return PHB_MISUSE;
    }
    if ((flex && update->flex_size > db->constants.flex_zone_capacity) ||
        (structured && update->structured_size > db->constants.structured_buffer_capacity)) {
        return PHB_CAPACITY;
    }
    phb_snapshot *next = &db->base; /* from here on nothing fails */
    const uint64_t timestamp_ns = update->timestamp_ns ? update->timestamp_ns : phb_wall_ns();
    const uint32_t former = (uint32_t)db->base.flex_index;
    next->timestamp = (double)timestamp_ns * 1e-9;
    next->zones = update->zones;
    if (flex) {
        phb_flex_entry *entry = &db->entries[db->entry];
        next->flex_zone_version++;
        next->flex_zone_size = update->flex_size;
        next->flex_index = db->entry;
        phb_store64(&entry->size, update->flex_size);
        phb_store32(&entry->encoding, update->flex_encoding);
        phb_store64(&entry->published_at, next->commit + 1);
        phb_store32(&db->control->flex_free, phb_load32(&entry->next_free));
        /* release: the object before its seq; pairs with phb_datablock_copy_flex */
        phb_store64_release(&entry->seq, 2 * next->flex_zone_version);
        phb_store32(&entry->n_uses, 1); /* it is the newest */
        phb_datablock_retire(db, former);
    }
    phb_slot *slot = NULL; /* the one that refers to the newest object */
    if (structured) {
        slot = &db->slots[db->slot];
        next->structured_buffer_version++;
        next->structured_buffer_size = update->structured_size;
        next->newest_slot = db->slot;
        next->position = db->position;
        next->n_filled += next->n_filled < n_slots;
        next->n_dropped = phb_load64(&db->control->n_dropped);
        phb_store64(&slot->version, next->structured_buffer_version);
        phb_store64(&slot->frame_id,
                    update->frame_id ? *update->frame_id
                                     : next->structured_buffer_version - 1 + next->n_dropped);
        phb_store64(&slot->timestamp_ns, timestamp_ns);
        phb_store64(&slot->size, update->structured_size);
        phb_store64(&slot->n_dropped, next->n_dropped);
        phb_store32(&slot->published_at, (uint32_t)(next->commit + 1));
    } else if (next->n_filled > 0) {
        slot = &db->slots[next->newest_slot % n_slots];
    }
    if (slot) {
        const uint32_t retired = phb_load32(&slot->flex_index);
        phb_store64(&slot->flex_version, next->flex_zone_version);
        if (retired != next->flex_index) {
            phb_store32(&slot->flex_index, (uint32_t)next->flex_index);
            phb_datablock_engage(db, (uint32_t)next->flex_index);
            phb_datablock_retire(db, retired);
        }
    }
    if (structured) {
        /* release: the frame before its seq; pairs with phb_datablock_find */
        phb_store64_release(&slot->seq, 2 * next->position);
    }
    next->commit++;
    phb_record *record = &db->control->record[next->commit & 1];
    uint64_t timestamp;
    memcpy(&timestamp, &next->timestamp, sizeof timestamp);
    /* release: the last commit word before this record's words, so that who
     * reads the latter sees that the former moved (phb_datablock_snapshot) */
    phb_fence_release();
    phb_store64(&record->flex_zone_size, next->flex_zone_size);
    phb_store64(&record->flex_zone_version, next->flex_zone_version);
    phb_store64(&record->structured_buffer_size, next->structured_buffer_size);
    phb_store64(&record->structured_buffer_version, next->structured_buffer_version);
    phb_store64(&record->timestamp, timestamp);
    phb_store64(&record->newest_slot, next->newest_slot);
    phb_store64(&record->n_filled, next->n_filled);
    phb_store64(&record->flex_index, next->flex_index);
    phb_store64(&record->zones, next->zones);
    phb_store64(&record->position, next->position);
    phb_store64(&record->n_dropped, next->n_dropped);
    /* release: everything of this publish before its commit word; pairs with
     * phb_datablock_snapshot and phb_wait_change */
    phb_store64_release(&db->control->commit, next->commit);
    phb_store64(&db->known_commit, next->commit);
    if (published) {
        *published = *next;
    }
    const uint64_t former_commit = next->commit - 1; /* another thread's, after the release */
    const int status = phb_datablock_release(db);
    phb_datablock_wake(db, former_commit);
    return status;
}

#endif
