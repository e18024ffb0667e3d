/* marked.h: frames and objects that show by themselves whether they are whole,
 * and the few lines that most programs here need to publish and to read them.
 *
 * All bytes follow from the frame's own number, which is its frame_id. An odd
 * number says that an object of the same number was published with the frame.
 */
#ifndef TESTS_MARKED_H
#define TESTS_MARKED_H

#include "support.h"

/* No multiples of a word, a line, or each other. */
enum { MARKED_DATA_BYTES = 203, MARKED_FLEX_BYTES = 77 };

static inline unsigned char marked_byte(uint64_t id, uint64_t i)
{
    return i < 8 ? (unsigned char)(id >> (8 * i))
                 : (unsigned char)((id * 0x9e3779b97f4a7c15ull >> (8 * (i % 8))) + 13 * i);
}

/* A function of its own, for it takes long and touches nothing shared: stepping.h. */
static __attribute__((noinline, noclone)) void marked_make(unsigned char *bytes, uint64_t id,
                                                           uint64_t size)
{
    for (uint64_t i = 0; i < size; i++) {
        bytes[i] = marked_byte(id, i);
    }
}

static inline void marked_fill(void *zone, uint64_t id, uint64_t size)
{
    unsigned char bytes[MARKED_DATA_BYTES];
    marked_make(bytes, id, size);
    phb_copy_to_shared(zone, bytes, size);
}

static inline int marked_is_whole(const unsigned char *bytes, uint64_t id, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++) {
        if (bytes[i] != marked_byte(id, i)) {
            return 0;
        }
    }
    return 1;
}

/* Is what was read as `frame` whole, the object too, and its own? */
static inline int marked_is_right(const phb_frame *frame, const unsigned char *data,
                                  const unsigned char *flex)
{
    uint64_t id = 0;
    if (frame->has_flex) {
        memcpy(&id, flex, sizeof id);
    }
    return frame->has_data && frame->size == MARKED_DATA_BYTES &&
           marked_is_whole(data, frame->frame_id, frame->size) &&
           (!frame->has_flex || (frame->flex_size == MARKED_FLEX_BYTES &&
                                 marked_is_whole(flex, id, frame->flex_size))) &&
           (frame->frame_id % 2 == 0 || (frame->has_flex && id == frame->frame_id));
}

/* With a publication open and a slot claimed: fill it, and publish. */
static inline void marked_write(phb_datablock *db, uint64_t id)
{
    phb_update update = {PHB_ZONE_STRUCTURED, PHB_FLEX_MSGPACK, MARKED_FLEX_BYTES,
                         MARKED_DATA_BYTES, &id, 0};
    marked_fill(phb_datablock_data(db), id, MARKED_DATA_BYTES);
    if (id % 2) {
        update.zones |= PHB_ZONE_FLEX;
        marked_fill(phb_datablock_flex(db), id, MARKED_FLEX_BYTES);
    }
    CHECK(phb_datablock_end(db, &update, NULL) == PHB_OK);
}

/* Wait for the lock; PHB_OK, or PHB_RECOVERED. */
static inline int marked_begin(phb_datablock *db)
{
    int status;
    do {
        status = phb_datablock_begin(db, deadline_far());
    } while (status == PHB_INTERRUPTED);
    CHECK(status == PHB_OK || status == PHB_RECOVERED);
    return status;
}

/* Publish, or drop the frame if readers keep every slot (PHB_FULL). */
static inline int marked_publish(phb_datablock *db, uint64_t id)
{
    int status;
    marked_begin(db);
    do {
        status = phb_datablock_claim(db);
    } while (status == PHB_INTERRUPTED);
    if (status == PHB_FULL) {
        CHECK(phb_datablock_drop(db) == PHB_OK);
    } else {
        CHECK(status == PHB_OK);
        marked_write(db, id);
    }
    return status;
}

/* Every flex entry is on the free list, or is referred to as often as it says. */
static inline void marked_check_entries(const phb_datablock *db)
{
    const uint32_t n_slots = db->constants.n_slots;
    uint32_t n_uses[64] = {0}, is_free[64] = {0};
    uint32_t entry = phb_load32(&db->control->flex_free);
    for (uint32_t n = 0; entry != PHB_NO_ENTRY; n++) {
        CHECK(n <= n_slots && entry <= n_slots && !is_free[entry]);
        is_free[entry] = 1;
        entry = phb_load32(&db->entries[entry].next_free);
    }
    phb_snapshot now;
    phb_datablock_snapshot(db, &now);
    if (now.flex_index != PHB_NO_ENTRY) {
        n_uses[now.flex_index]++;
    }
    for (uint32_t i = 0; i < n_slots; i++) {
        const uint32_t used = phb_load32(&db->slots[i].flex_index);
        CHECK(used == PHB_NO_ENTRY || used <= n_slots);
        if (used != PHB_NO_ENTRY) {
            n_uses[used]++;
        }
    }
    for (uint32_t i = 0; i <= n_slots; i++) {
        CHECK(phb_load32(&db->entries[i].n_uses) == n_uses[i]);
        CHECK(is_free[i] == (n_uses[i] == 0));
    }
}

/* A reader in order that keeps count. */
typedef struct marked_reader {
    phb_cursor start, cursor;
    uint64_t n_read, n_lost;
} marked_reader;

/* Count the frame that was read, or pinned, after the cursor. A frame's place
 * among the published ones is in its number of no producer's making, so a
 * version that comes twice, or goes back, shows. */
static inline void marked_pass(marked_reader *reader, const phb_frame *frame)
{
    const uint64_t n_lost = phb_cursor_n_lost(&reader->cursor, frame);
    CHECK((int64_t)(frame->version - reader->cursor.version) > 0);
    CHECK((int64_t)(frame->n_dropped - reader->cursor.n_dropped) >= 0);
    CHECK((int64_t)n_lost >= 0);
    phb_cursor_pass(&reader->cursor, frame);
    reader->n_lost += n_lost;
    reader->n_read++;
}

static inline void marked_check_counts(const marked_reader *reader)
{
    CHECK(reader->n_read + reader->n_lost ==
          reader->cursor.version - reader->start.version + reader->cursor.n_dropped -
              reader->start.n_dropped);
}

/* Read all that is there; the last answer. */
static inline int marked_read_all(const phb_datablock *db, marked_reader *reader)
{
    unsigned char data[MARKED_DATA_BYTES], flex[MARKED_FLEX_BYTES];
    phb_frame frame;
    int status;
    while ((status = phb_datablock_read_next(db, &reader->cursor, data, flex, &frame)) ==
           PHB_OK) {
        CHECK(marked_is_right(&frame, data, flex));
        marked_pass(reader, &frame);
    }
    marked_check_counts(reader);
    return status;
}

#endif
