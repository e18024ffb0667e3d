/* datablock_read.h: reading, without a lock and without a write. The protocol
 * is drawn in datablock.h.
 */
#ifndef PYHUB_DATABLOCK_READ_H
#define PYHUB_DATABLOCK_READ_H

#include "datablock_layout.h"

/* What is newest, whole: the record of one publish. Never waits: a record is
 * filled only while the other one is in force. */
static inline void phb_datablock_snapshot(const phb_datablock *db, phb_snapshot *out)
{
    const phb_datablock_control *control = db->control;
    uint64_t timestamp;
    for (;;) {
        /* acquire: pairs with the release store of `commit` in phb_datablock_end */
        out->commit = phb_load64_acquire(&control->commit);
        const phb_record *record = &control->record[out->commit & 1];
        out->flex_zone_size = phb_load64(&record->flex_zone_size);
        out->flex_zone_version = phb_load64(&record->flex_zone_version);
        out->structured_buffer_size = phb_load64(&record->structured_buffer_size);
        out->structured_buffer_version = phb_load64(&record->structured_buffer_version);
        timestamp = phb_load64(&record->timestamp);
        out->newest_slot = phb_load64(&record->newest_slot);
        out->n_filled = phb_load64(&record->n_filled);
        out->flex_index = phb_load64(&record->flex_index);
        out->zones = phb_load64(&record->zones);
        out->position = phb_load64(&record->position);
        out->n_dropped = phb_load64(&record->n_dropped);
        /* acquire: pairs with the release fence before a record is filled */
        phb_fence_acquire();
        if (phb_load64(&control->commit) == out->commit) {
            memcpy(&out->timestamp, &timestamp, sizeof timestamp);
            return;
        }
    }
}

/* Is `seq` still what it was when the bytes were read? */
static inline int phb_seq_holds(const phb_u64 *seq, uint64_t expected)
{
#ifdef PHB_SABOTAGE_SEQUENCE
    /* Tests only: without the check torn frames must show (tests/c/torn.c). */
    (void)seq;
    (void)expected;
    return 1;
#else
    /* The loads of the bytes come before the load of `seq`: pairs with the
     * release fence after seq = 2p-1 in phb_datablock_data. */
    phb_fence_acquire();
    return phb_load64(seq) == expected;
#endif
}

/* Find the frame of `*position`, or with NULL the newest, without copying:
 * PHB_OK and its description (flex_size and flex_encoding are not yet known),
 *   PHB_EMPTY    it is not published yet
 *   PHB_OVERRUN  it was overwritten
 *   PHB_SKIPPED  there is none: a reader had pinned the slot when its turn came
 *   PHB_BUSY     it is the newest, and being overwritten; its parameters are not */
static inline int phb_datablock_find(const phb_datablock *db, const uint64_t *position,
                                     phb_frame *out, uint32_t *flex_index)
{
    phb_snapshot now;
    phb_datablock_snapshot(db, &now);
    memset(out, 0, sizeof *out);
    out->commit = now.commit;
    *flex_index = (uint32_t)now.flex_index;
    out->flex_version = now.flex_zone_version;
    if (now.n_filled == 0) {
        return position || now.flex_index == PHB_NO_ENTRY ? PHB_EMPTY : PHB_OK;
    }
    out->position = position ? *position : now.position;
    out->newest = now.position;
    out->n_slots = db->constants.n_slots;
    out->version = now.structured_buffer_version; /* of the newest; below: of this one */
    const uint64_t behind = now.position - out->position;
    const uint32_t n_slots = db->constants.n_slots;
    if (behind >= now.n_filled || behind >= n_slots) {
        return (int64_t)behind < 0 ? PHB_EMPTY : PHB_OVERRUN;
    }
    out->slot = (now.newest_slot % n_slots + n_slots - behind) % n_slots;
    const phb_slot *slot = &db->slots[out->slot];
    /* acquire: pairs with the release store of seq = 2p in phb_datablock_end */
    const uint64_t seq = phb_load64_acquire(&slot->seq);
    if (seq != 2 * out->position) {
        return behind == 0                              ? PHB_BUSY
               : (int64_t)(seq - 2 * out->position) < 0 ? PHB_SKIPPED
                                                        : PHB_OVERRUN;
    }
    out->has_data = 1;
    out->version = phb_load64(&slot->version);
    out->frame_id = phb_load64(&slot->frame_id);
    out->timestamp_ns = phb_load64(&slot->timestamp_ns);
    out->size = phb_load64(&slot->size);
    out->n_dropped = phb_load64(&slot->n_dropped);
    if (behind > 0) { /* the newest frame's parameters may be replaced: see the record */
        *flex_index = phb_load32(&slot->flex_index);
        out->flex_version = phb_load64(&slot->flex_version);
    }
    if (!phb_seq_holds(&slot->seq, 2 * out->position)) {
        return behind == 0 ? PHB_BUSY : PHB_OVERRUN;
    }
    return out->size <= db->constants.structured_buffer_capacity ? PHB_OK : PHB_DAMAGED;
}

/* Copy the object that was found with a frame. PHB_BUSY: it is gone; find the
 * frame again. */
static inline int phb_datablock_copy_flex(const phb_datablock *db, uint32_t flex_index,
                                          phb_frame *frame, void *flex)
{
    if (flex_index == PHB_NO_ENTRY) {
        frame->flex_version = 0;
        return PHB_OK;
    }
    frame->has_flex = 1;
    if (flex_index > db->constants.n_slots) {
        return PHB_DAMAGED;
    }
    const phb_flex_entry *entry = &db->entries[flex_index];
    /* acquire: pairs with the release store of seq = 2f in phb_datablock_end */
    if (phb_load64_acquire(&entry->seq) != 2 * frame->flex_version) {
        return PHB_BUSY;
    }
    frame->flex_size = phb_load64(&entry->size);
    frame->flex_encoding = phb_load32(&entry->encoding);
    if ((int64_t)(frame->commit - phb_load64(&entry->published_at)) < 0) {
        return PHB_BUSY; /* not yet, and maybe never: its slot refers to it already */
    }
    if (frame->flex_size > db->constants.flex_zone_capacity) {
        return phb_seq_holds(&entry->seq, 2 * frame->flex_version) ? PHB_DAMAGED : PHB_BUSY;
    }
    phb_copy_from_shared(flex, db->flex_zone + flex_index * db->constants.flex_zone_stride,
                         frame->flex_size);
    return phb_seq_holds(&entry->seq, 2 * frame->flex_version) ? PHB_OK : PHB_BUSY;
}

static inline const void *phb_datablock_slot_data(const phb_datablock *db, uint64_t slot)
{
    return db->structured_buffer + slot * db->constants.structured_buffer_stride;
}

/* Is the frame that was found there still in its slot, untouched? */
static inline int phb_datablock_is_valid(const phb_datablock *db, const phb_frame *frame)
{
    return frame->has_data &&
           phb_seq_holds(&db->slots[frame->slot].seq, 2 * frame->position);
}

/* Copy the parameters of a frame that was found, and the frame itself unless
 * `data` is NULL. PHB_BUSY: it is gone; find another. */
static inline int phb_datablock_take(const phb_datablock *db, uint32_t flex_index,
                                     phb_frame *frame, void *data, void *flex)
{
    const int status = phb_datablock_copy_flex(db, flex_index, frame, flex);
    if (status != PHB_OK || !data || !frame->has_data) {
        return status;
    }
    phb_copy_from_shared(data, phb_datablock_slot_data(db, frame->slot), frame->size);
    return phb_datablock_is_valid(db, frame) ? PHB_OK : PHB_BUSY;
}

/* Copy the frame of `*position`, or with NULL the newest, with its parameters.
 * `flex` has room for flex_zone_capacity bytes; `data` for
 * structured_buffer_capacity bytes, or NULL: then only the parameters are
 * copied and the frame is left where it is (phb_datablock_slot_data,
 * phb_datablock_is_valid); if the newest frame is being overwritten, has_data
 * is 0 then. Answers as phb_datablock_find does; PHB_BUSY also when producers
 * were faster than `data` could be copied, several times. */
static inline int phb_datablock_read(const phb_datablock *db, const uint64_t *position,
                                     void *data, void *flex, phb_frame *frame)
{
    int status = PHB_BUSY;
    for (int attempt = 0; attempt < 8 && status == PHB_BUSY; attempt++) {
        uint32_t flex_index;
        status = phb_datablock_find(db, position, frame, &flex_index);
        if (status == PHB_OK || (status == PHB_BUSY && !data && !position)) {
            status = phb_datablock_take(db, flex_index, frame, data, flex);
        }
    }
    return status;
}

/* --- In order ------------------------------------------------------------ */

/* Before the newest frame, if there is one: where a reader begins that comes
 * late. One that was there first begins with a cursor of zeros. */
static inline phb_cursor phb_cursor_start(const phb_snapshot *now)
{
    const uint64_t n = now->n_filled > 0;
    const phb_cursor cursor = {now->position - n, now->structured_buffer_version - n,
                               now->n_dropped, now->newest_slot - n, now->position - n,
                               now->commit, 0, 0};
    return cursor;
}

/* Frames that were published or dropped between the cursor's and this one. */
static inline uint64_t phb_cursor_n_lost(const phb_cursor *cursor, const phb_frame *frame)
{
    if (!frame->has_data || frame->position == cursor->position) {
        return 0;
    }
    return frame->version - cursor->version - 1 + frame->n_dropped - cursor->n_dropped;
}

static inline void phb_cursor_pass(phb_cursor *cursor, const phb_frame *frame)
{
    if (frame->has_data) {
        if (frame->version - cursor->version > 1) {
            const uint64_t n_since = cursor->position - cursor->lapped_at;
            const uint64_t more = 2 * cursor->margin + 1, most = frame->n_slots / 4;
            cursor->margin = n_since >= frame->n_slots ? cursor->margin / 2
                             : more < most             ? more
                                                       : most;
            cursor->lapped_at = frame->position;
        }
        cursor->position = frame->position;
        cursor->version = frame->version;
        cursor->n_dropped = frame->n_dropped;
        cursor->slot = frame->slot;
        cursor->newest = frame->newest;
        cursor->commit = frame->commit;
    }
}

/* THE SHORT WAY to the frame after the cursor's, for readers that keep up: it
 * touches the commit word, and the frame's own line; not the record. In order,
 * it does without the word while there are frames that were seen to be published;
 * else the frame is the newest. PHB_EMPTY: there is none, or none that simply:
 * look for it with phb_datablock_find, which this answers like. */
static inline int phb_datablock_follow(const phb_datablock *db, const phb_cursor *cursor,
                                       int in_order, phb_frame *out, uint32_t *flex_index)
{
    const uint64_t position = cursor->position + 1;
    const uint64_t at = cursor->slot + 1 < db->constants.n_slots ? cursor->slot + 1 : 0;
    const phb_slot *slot = &db->slots[at];
    const int is_passed = in_order && (int64_t)(cursor->newest - position) > 0;
    out->commit = cursor->commit;
    if (!is_passed) {
        /* acquire: as in phb_datablock_snapshot */
        out->commit = phb_load64_acquire(&db->control->commit);
    }
    __builtin_prefetch(db->structured_buffer + at * db->constants.structured_buffer_stride);
    /* acquire: as in phb_datablock_find */
    if (phb_load64_acquire(&slot->seq) != 2 * position) {
        return PHB_EMPTY;
    }
    /* The last publish brought this frame: so its parameters are in the slot, as
     * they are when another frame has come after it. A publish that is not yet
     * committed, and may never be, has another number. */
    if (!is_passed && phb_load32(&slot->published_at) != (uint32_t)out->commit) {
        return PHB_EMPTY;
    }
    out->position = position;
    out->newest = is_passed ? cursor->newest : position;
    out->n_slots = db->constants.n_slots;
    out->version = phb_load64(&slot->version);
    out->frame_id = phb_load64(&slot->frame_id);
    out->timestamp_ns = phb_load64(&slot->timestamp_ns);
    out->size = phb_load64(&slot->size);
    out->n_dropped = phb_load64(&slot->n_dropped);
    out->flex_version = phb_load64(&slot->flex_version);
    *flex_index = phb_load32(&slot->flex_index);
    out->slot = at;
    out->flex_size = 0;
    out->flex_encoding = 0;
    out->has_flex = 0;
    out->has_data = 1;
    return phb_seq_holds(&slot->seq, 2 * position) &&
                   out->size <= db->constants.structured_buffer_capacity
               ? PHB_OK
               : PHB_EMPTY;
}

/* As phb_datablock_read, the short way. */
static inline int phb_datablock_read_following(const phb_datablock *db, const phb_cursor *cursor,
                                               int in_order, void *data, void *flex,
                                               phb_frame *frame)
{
    uint32_t flex_index;
    int status = phb_datablock_follow(db, cursor, in_order, frame, &flex_index);
    if (status == PHB_OK) {
        status = phb_datablock_take(db, flex_index, frame, data, flex);
    }
    return status == PHB_OK ? PHB_OK : PHB_EMPTY;
}

/* The first position after `passed`, itself not before the cursor's, that may
 * still be there; false: none is published. `is_overrun`: the one at `passed` was
 * overwritten, so that the reader is at the ring's end. When frames fell out of the ring it
 * is the oldest but one: the oldest slot is the next to be overwritten. A reader
 * that is lapped again within a ring goes on with a later one, up to a quarter of
 * it: it would see little but frames that are being overwritten. But it
 * may be only positions without a frame that fell out (PHB_SKIPPED). */
static inline int phb_datablock_seek(const phb_datablock *db, const phb_cursor *cursor,
                                     uint64_t passed, int is_overrun, uint64_t *position)
{
    const uint64_t n_slots = db->constants.n_slots;
    phb_snapshot now;
    phb_datablock_snapshot(db, &now);
    const uint64_t behind = now.position - passed;
    if (now.n_filled == 0 || (int64_t)behind <= 0) {
        return 0;
    }
    *position = passed + 1;
    if (behind > now.n_filled || is_overrun) {
        const uint64_t oldest =
            now.newest_slot % n_slots + n_slots - (now.n_filled - 1) % n_slots;
        const uint64_t version = phb_load64(&db->slots[oldest % n_slots].version);
        const int has_lost = (int64_t)(version - cursor->version) > 1;
        uint64_t first = now.position - now.n_filled + 1;
        if ((has_lost || (is_overrun && cursor->margin > 1)) && now.n_filled > 2) {
            first += cursor->margin > 1 ? cursor->margin : 1;
        }
        if ((int64_t)(first - *position) > 0) {
            *position = first;
        }
    }
    return 1;
}

/* Read the next frame in order after the cursor, as phb_datablock_read does;
 * phb_cursor_n_lost says how many are missing before it. */
static inline int phb_datablock_read_next(const phb_datablock *db, const phb_cursor *cursor,
                                          void *data, void *flex, phb_frame *frame)
{
    uint64_t passed = cursor->position, position;
    uint32_t n_tries = db->constants.n_slots + 8;
    int status = PHB_EMPTY;
    if (phb_datablock_read_following(db, cursor, 1, data, flex, frame) == PHB_OK) {
        return PHB_OK;
    }
    memset(frame, 0, sizeof *frame);
    while (n_tries-- &&
           phb_datablock_seek(db, cursor, passed, status == PHB_OVERRUN, &position)) {
        status = phb_datablock_read(db, &position, data, flex, frame);
        if (status != PHB_OVERRUN && status != PHB_SKIPPED) {
            return status;
        }
        passed = position;
    }
    return status == PHB_EMPTY ? PHB_EMPTY : PHB_BUSY; /* BUSY: overtaken again and again */
}

#endif
