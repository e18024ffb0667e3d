/* datablock_admitted.h: what a reader may do that was admitted into the table
 * of readers.h: pin frames, and tell producers how far it is.
 */
#ifndef PYHUB_DATABLOCK_ADMITTED_H
#define PYHUB_DATABLOCK_ADMITTED_H

#include "datablock_read.h"

/* Tell producers and monitors that the reader is done with all up to
 * `position`, and its counts. Lets a producer go on that waits for it. */
static inline void phb_reader_pass(phb_reader *reader, uint64_t position, uint64_t n_read,
                                   uint64_t n_lost, uint64_t lag)
{
    phb_reader_place *place = &reader->table->places[reader->at];
    phb_store64(&place->n_read, n_read);
    phb_store64(&place->n_lost, n_lost);
    if (lag > phb_load64(&place->max_lag)) {
        phb_store64(&place->max_lag, lag);
    }
    /* release: what was read comes before it may be overwritten; pairs with
     * the acquire load in phb_readers_ask */
    phb_store64_release(&place->cursor, position);
    phb_readers_wake(reader->table);
}

/* Take a place in the table, and begin before the newest frame, or with a
 * cursor of zeros. PHB_EXISTS, PHB_FULL, PHB_INTERRUPTED: phb_readers_take_place.
 * Takes some milliseconds. */
static inline int phb_datablock_admit(const phb_datablock *db, phb_readers *table,
                                      phb_reader *reader, const char *name, uint32_t policy,
                                      int from_first, uint64_t lease, phb_cursor *start,
                                      int64_t deadline_ns)
{
    phb_snapshot now;
    memset(start, 0, sizeof *start);
    phb_datablock_snapshot(db, &now);
    if (!from_first) {
        *start = phb_cursor_start(&now);
    }
    memset(reader, 0, sizeof *reader);
    reader->table = table;
    int status = phb_readers_take_place(table, name, policy, start->position, lease,
                                        &reader->at, deadline_ns);
    if (status != PHB_OK) {
        return status;
    }
    /* Who opens a publication from here on sees the gate. Who opened one before
     * is seen by us: is_writing was stored before the gate was looked at. */
    if (phb_fence_everybody()) {
        reader->is_unsafe = phb_load32(&db->control->is_writing) != 0;
    } else {
        phb_fence_full();
        reader->is_unsafe = 2; /* is_writing may be on its way to us: see phb_reader_may_pin */
    }
    phb_datablock_snapshot(db, &now);
    reader->unsafe_commit = now.commit;
    reader->unsafe_slot = (uint32_t)((now.newest_slot + 1) % db->constants.n_slots);
    if (!from_first) {
        *start = phb_cursor_start(&now);
        phb_reader_pass(reader, start->position, 0, 0, 0);
    }
    return PHB_OK;
}

/* False while a publication that knows nothing of this reader may be writing
 * to `slot`. It is over when another commit was seen, or no publication. */
static inline int phb_reader_may_pin(const phb_datablock *db, phb_reader *reader, uint32_t slot)
{
    if (reader->is_unsafe) {
        if (phb_load64_acquire(&db->control->commit) != reader->unsafe_commit ||
            (reader->is_unsafe == 1 && !phb_load32_acquire(&db->control->is_writing))) {
            reader->is_unsafe = 0;
        }
    }
    return !reader->is_unsafe || slot != reader->unsafe_slot;
}

static inline void phb_reader_unpin(phb_reader *reader, uint32_t pin)
{
    /* release: as in phb_reader_pass */
    phb_store32_release(&reader->table->places[reader->at].pin[pin], 0);
    phb_readers_wake(reader->table);
}

/* Keep producers from the frame of `*position`, or with NULL from the newest,
 * where it lies (phb_datablock_slot_data), until phb_reader_unpin(*pin). Its
 * parameters are copied to `flex`. Answers as phb_datablock_find does; PHB_BUSY
 * also when a producer was about to write there, PHB_FULL when the reader holds
 * PHB_READER_PINS frames. */
static inline int phb_datablock_pin(const phb_datablock *db, phb_reader *reader,
                                    const uint64_t *position, void *flex, phb_frame *frame,
                                    uint32_t *pin)
{
    phb_reader_place *place = &reader->table->places[reader->at];
    int status = PHB_BUSY;
    memset(frame, 0, sizeof *frame);
    for (*pin = 0; *pin < PHB_READER_PINS && phb_load32(&place->pin[*pin]); ++*pin) {
    }
    if (*pin == PHB_READER_PINS) {
        return PHB_FULL;
    }
    for (int attempt = 0; attempt < 8 && status == PHB_BUSY; attempt++) {
        uint32_t flex_index;
        status = phb_datablock_find(db, position, frame, &flex_index);
        if (status != PHB_OK || !frame->has_data) {
            status = status == PHB_OK ? PHB_EMPTY : status;
            continue;
        }
        const uint32_t slot = (uint32_t)frame->slot;
        phb_store32(&place->pin[*pin], slot + 1);
        phb_fence_full(); /* partner: the fence in phb_datablock_ask_readers */
        /* acquire: pairs with the release store of claiming = 0 in
         * phb_datablock_data; who sees that one sees the odd seq as well */
        if (phb_load32_acquire(&reader->table->control->claiming) != slot + 1 &&
            phb_reader_may_pin(db, reader, slot) && phb_datablock_is_valid(db, frame)) {
            status = phb_datablock_copy_flex(db, flex_index, frame, flex);
        } else {
            status = PHB_BUSY;
        }
        if (status != PHB_OK) {
            phb_reader_unpin(reader, *pin);
        }
    }
    return status;
}

/* Pin the next frame in order after the cursor. */
static inline int phb_datablock_pin_next(const phb_datablock *db, phb_reader *reader,
                                         const phb_cursor *cursor, void *flex,
                                         phb_frame *frame, uint32_t *pin)
{
    uint64_t passed = cursor->position, position;
    uint32_t n_tries = db->constants.n_slots + 8;
    int status = PHB_EMPTY;
    memset(frame, 0, sizeof *frame);
    while (n_tries-- &&
           phb_datablock_seek(db, cursor, passed, status == PHB_OVERRUN, &position)) {
        status = phb_datablock_pin(db, reader, &position, flex, frame, pin);
        if (status != PHB_OVERRUN && status != PHB_SKIPPED) {
            return status;
        }
        passed = position;
    }
    return status == PHB_EMPTY ? PHB_EMPTY : PHB_BUSY;
}

#endif
