/* datablock.h: a ring of frames, each with the parameters that belong to it.
 *
 *   SharedMemoryHeader      constants | lock | commit word, two records
 *                           slot table | flex table
 *   FlexibleDataZone        n_slots + 1 entries, each one MessagePack/JSON object
 *   StructuredDataBuffer    n_slots frames
 *
 * One slot is the single buffer; more make a ring.
 *
 * WRITING (one producer at a time, under the lock)
 *
 *   slot s, next to be written        entry e, the first free one
 *   seq = 2v-1   "v is being written" seq = 2f-1
 *   ... the caller fills it ...       ... and it ...
 *   seq = 2v     "holds v, whole"     seq = 2f
 *           \                         /
 *            the spare record is filled: v, sizes, which slot, which entry
 *            commit = c+1             one word, and all of it is published
 *
 * READING (no lock, no write)
 *
 *   c = commit; copy record[c & 1]; still c?  -> newest version v, its slot and entry
 *   seq == 2v?  copy the bytes.  seq == 2v?   -> they are frame v, whole
 *
 * So a sequence word tells both which frame a slot holds and whether it is
 * whole, and a writer that dies or stops anywhere leaves the last committed
 * record in force. `commit` rises by one with every publish: it is also the
 * word to wait on.
 *
 * FLEX ENTRIES. A frame published without new parameters refers to the entry
 * of the frame before it, so entries have a life of their own. n_slots frames
 * refer to at most n_slots entries: with one more, one is always free. Frames
 * that share an entry are neighbours in the ring; an entry is free again when
 * the last of them goes (phb_datablock_retire).
 *
 * Reasons and the alternatives that lost: docs/decisions/0004 and 0006.
 */
#ifndef PYHUB_DATABLOCK_H
#define PYHUB_DATABLOCK_H

#include "segment.h"

#define PHB_MAX_NDIM 8u
#define PHB_DTYPE_BYTES 1024u
#define PHB_MAX_SLOTS 65536u
#define PHB_NO_ENTRY 0xffffffffu /* a flex index: no parameters yet */

/* Which zones a publish changed. */
#define PHB_ZONE_FLEX 1u
#define PHB_ZONE_STRUCTURED 2u

/* What a flex entry holds. */
#define PHB_FLEX_MSGPACK 1u
#define PHB_FLEX_JSON 2u

/* Written by the creator before publish; read at attach, once. Constant. */
typedef struct phb_datablock_constants {
    phb_segment_header segment;
    uint64_t flex_zone_capacity;         /* bytes that one object may take */
    uint64_t flex_zone_stride;           /* from one entry to the next */
    uint64_t flex_zone_offset;           /* of the FlexibleDataZone */
    uint64_t structured_buffer_capacity; /* bytes that one frame may take */
    uint64_t structured_buffer_stride;   /* from one slot to the next */
    uint64_t structured_buffer_offset;   /* of the StructuredDataBuffer */
    uint64_t control_offset;             /* of phb_datablock_control */
    uint64_t slot_table_offset;          /* of phb_slot[n_slots] */
    uint64_t flex_table_offset;          /* of phb_flex_entry[n_slots + 1] */
    uint64_t itemsize;                   /* of dtype, bytes */
    uint64_t shape[PHB_MAX_NDIM];        /* of the largest frame; [0] may be less */
    uint32_t ndim;
    uint32_t n_slots;
    char dtype[PHB_DTYPE_BYTES]; /* numpy's, as layout.py writes it; NUL-terminated */
    unsigned char reserved[104];
} phb_datablock_constants;

PHB_ASSERT_SIZE(phb_datablock_constants, 1536);
PHB_ASSERT_OFFSET(phb_datablock_constants, flex_zone_capacity, 256);
PHB_ASSERT_OFFSET(phb_datablock_constants, flex_zone_stride, 264);
PHB_ASSERT_OFFSET(phb_datablock_constants, flex_zone_offset, 272);
PHB_ASSERT_OFFSET(phb_datablock_constants, structured_buffer_capacity, 280);
PHB_ASSERT_OFFSET(phb_datablock_constants, structured_buffer_stride, 288);
PHB_ASSERT_OFFSET(phb_datablock_constants, structured_buffer_offset, 296);
PHB_ASSERT_OFFSET(phb_datablock_constants, control_offset, 304);
PHB_ASSERT_OFFSET(phb_datablock_constants, slot_table_offset, 312);
PHB_ASSERT_OFFSET(phb_datablock_constants, flex_table_offset, 320);
PHB_ASSERT_OFFSET(phb_datablock_constants, itemsize, 328);
PHB_ASSERT_OFFSET(phb_datablock_constants, shape, 336);
PHB_ASSERT_OFFSET(phb_datablock_constants, ndim, 400);
PHB_ASSERT_OFFSET(phb_datablock_constants, n_slots, 404);
PHB_ASSERT_OFFSET(phb_datablock_constants, dtype, 408);

/* What is newest, as of one publish. Written by the producer that holds the
 * lock, while the other record is in force; read by all. */
typedef struct phb_record {
    phb_u64 flex_zone_size;            /* valid bytes of the newest object */
    phb_u64 flex_zone_version;         /* publishes that changed the flex zone */
    phb_u64 structured_buffer_size;    /* valid bytes of the newest frame */
    phb_u64 structured_buffer_version; /* publishes that changed the buffer */
    phb_u64 timestamp;                 /* of the last publish: bits of a double, s */
    phb_u64 newest_slot;               /* where the newest frame lies */
    phb_u64 n_filled;                  /* frames in the ring, newest backwards */
    phb_u64 flex_index;                /* entry of the newest object */
    phb_u64 zones;                     /* what the last publish changed */
    unsigned char reserved[56];
} phb_record;

PHB_ASSERT_SIZE(phb_record, 128);
PHB_ASSERT_OFFSET(phb_record, flex_zone_size, 0);
PHB_ASSERT_OFFSET(phb_record, flex_zone_version, 8);
PHB_ASSERT_OFFSET(phb_record, structured_buffer_size, 16);
PHB_ASSERT_OFFSET(phb_record, structured_buffer_version, 24);
PHB_ASSERT_OFFSET(phb_record, timestamp, 32);
PHB_ASSERT_OFFSET(phb_record, newest_slot, 40);
PHB_ASSERT_OFFSET(phb_record, n_filled, 48);
PHB_ASSERT_OFFSET(phb_record, flex_index, 56);
PHB_ASSERT_OFFSET(phb_record, zones, 64);

/* The words that change. Each group below has its own cache lines. */
typedef struct phb_datablock_control {
    phb_mutex lock; /* producers only: from begin to end or abort */

    /* Written by the producer that holds the lock. */
    phb_u32 is_writing;  /* 1 from begin to end; read by anybody, a hint */
    phb_u32 writer_pid;  /* of the last begin; read for messages */
    phb_u32 flex_free;   /* first free entry; the rest hang on next_free */
    phb_u32 reserved0;
    phb_u64 n_recovered; /* deaths with the lock held, repaired; read by monitors */
    phb_u64 n_aborted;   /* publications given up by their producer; read by monitors */
    unsigned char reserved1[32];

    /* Written by the producer, last of all stores of a publish (release);
     * read by every reader, first of all its loads (acquire). */
    phb_u64 commit;
    unsigned char reserved2[56];

    phb_record record[2]; /* record[commit & 1] is in force */
} phb_datablock_control;

PHB_ASSERT_SIZE(phb_datablock_control, 512);
PHB_ASSERT_OFFSET(phb_datablock_control, lock, 0);
PHB_ASSERT_OFFSET(phb_datablock_control, is_writing, 128);
PHB_ASSERT_OFFSET(phb_datablock_control, writer_pid, 132);
PHB_ASSERT_OFFSET(phb_datablock_control, flex_free, 136);
PHB_ASSERT_OFFSET(phb_datablock_control, n_recovered, 144);
PHB_ASSERT_OFFSET(phb_datablock_control, n_aborted, 152);
PHB_ASSERT_OFFSET(phb_datablock_control, commit, 192);
PHB_ASSERT_OFFSET(phb_datablock_control, record, 256);

/* One frame's place. Written by the producer that holds the lock; read by all
 * under `seq`. */
typedef struct phb_slot {
    phb_u64 seq;          /* 2v: holds frame v, whole; 2v-1: v is being written */
    phb_u64 frame_id;     /* the producer's own number for the frame */
    phb_u64 timestamp_ns; /* wall clock, since 1970 */
    phb_u64 size;         /* valid bytes */
    phb_u64 flex_version; /* of the parameters that belong to the frame */
    phb_u32 flex_index;   /* where they lie, or PHB_NO_ENTRY */
    phb_u32 reserved0;
    unsigned char reserved1[16];
} phb_slot;

PHB_ASSERT_SIZE(phb_slot, 64);
PHB_ASSERT_OFFSET(phb_slot, seq, 0);
PHB_ASSERT_OFFSET(phb_slot, frame_id, 8);
PHB_ASSERT_OFFSET(phb_slot, timestamp_ns, 16);
PHB_ASSERT_OFFSET(phb_slot, size, 24);
PHB_ASSERT_OFFSET(phb_slot, flex_version, 32);
PHB_ASSERT_OFFSET(phb_slot, flex_index, 40);

/* One object's place. Written and read as a slot is. */
typedef struct phb_flex_entry {
    phb_u64 seq;          /* 2f: holds object f, whole; 2f-1: f is being written */
    phb_u64 size;         /* valid bytes */
    phb_u32 encoding;     /* PHB_FLEX_MSGPACK or PHB_FLEX_JSON */
    phb_u32 next_free;    /* of the free list; only producers read it */
    unsigned char reserved[40];
} phb_flex_entry;

PHB_ASSERT_SIZE(phb_flex_entry, 64);
PHB_ASSERT_OFFSET(phb_flex_entry, seq, 0);
PHB_ASSERT_OFFSET(phb_flex_entry, size, 8);
PHB_ASSERT_OFFSET(phb_flex_entry, encoding, 16);
PHB_ASSERT_OFFSET(phb_flex_entry, next_free, 20);

/* --- What one process holds ---------------------------------------------- */

/* A record as plain values. */
typedef struct phb_snapshot {
    uint64_t commit;
    uint64_t flex_zone_size, flex_zone_version;
    uint64_t structured_buffer_size, structured_buffer_version;
    double timestamp;
    uint64_t newest_slot, n_filled, flex_index, zones;
} phb_snapshot;

/* A frame's description, as copied out with it. */
typedef struct phb_frame {
    uint64_t commit;      /* of the publish that this frame was read at */
    uint64_t version;     /* structured_buffer_version of the frame; 0: none yet */
    uint64_t frame_id;
    uint64_t timestamp_ns;
    uint64_t size;        /* bytes of data */
    uint64_t slot;        /* where it lies */
    uint64_t flex_version; /* 0: no parameters yet */
    uint64_t flex_size;
    uint32_t flex_encoding;
    int has_data;         /* 0: parameters were published, but never a frame */
} phb_frame;

/* A handle, private to one process. The constants are a checked copy. */
typedef struct phb_datablock {
    phb_datablock_constants constants;
    phb_segment_live *live;
    phb_datablock_control *control;
    phb_slot *slots;
    phb_flex_entry *entries;
    unsigned char *flex_zone;
    unsigned char *structured_buffer;
    pid_t pid; /* of this process: the handle does not survive fork */
    /* The open publication; touched only by the thread that holds the lock. */
    pthread_t writer;
    int is_open, data_taken, flex_taken;
    phb_snapshot base;  /* the record in force */
    uint32_t slot;      /* next to be written */
    uint32_t entry;     /* first free */
} phb_datablock;

/* --- Layout -------------------------------------------------------------- */

/* Fill in strides and offsets from capacities and n_slots, and the size of
 * the whole; false if they are out of range or do not fit into 64 bits. The
 * creator computes with it; at attach it computes again and compares. */
static inline int phb_datablock_measure(phb_datablock_constants *c, uint64_t *total)
{
    if (c->n_slots < 1 || c->n_slots > PHB_MAX_SLOTS || c->ndim > PHB_MAX_NDIM) {
        return 0;
    }
    uint64_t n_entries = (uint64_t)c->n_slots + 1;
    c->flex_zone_stride = c->flex_zone_capacity;
    c->structured_buffer_stride = c->structured_buffer_capacity;
    uint64_t at = phb_segment_live_offset(sizeof *c) + sizeof(phb_segment_live);
    c->control_offset = at;
    at += sizeof(phb_datablock_control);
    c->slot_table_offset = at;
    at += sizeof(phb_slot) * c->n_slots;
    c->flex_table_offset = at;
    at += sizeof(phb_flex_entry) * n_entries;
    int fits = phb_align_up(&c->flex_zone_stride, PHB_ZONE_ALIGN) &&
               phb_align_up(&c->structured_buffer_stride, PHB_ZONE_ALIGN) &&
               phb_align_up(&at, 4096);
    c->flex_zone_offset = at;
    fits = fits && phb_add_product(&at, c->flex_zone_stride, n_entries) &&
           phb_align_up(&at, 4096);
    c->structured_buffer_offset = at;
    fits = fits && phb_add_product(&at, c->structured_buffer_stride, c->n_slots) &&
           phb_align_up(&at, 4096);
    *total = at;
    return fits && at <= (uint64_t)INT64_MAX;
}

/* The bytes of one whole frame of `shape`; false on overflow. */
static inline int phb_datablock_frame_size(const phb_datablock_constants *c, uint64_t *size)
{
    *size = c->itemsize;
    for (uint32_t i = 0; i < c->ndim; i++) {
        if (__builtin_mul_overflow(*size, c->shape[i], size)) {
            return 0;
        }
    }
    return 1;
}

static inline void phb_datablock_bind(phb_datablock *db, const phb_segment *segment)
{
    const phb_datablock_constants *c = &db->constants;
    db->live = segment->live;
    db->control = (phb_datablock_control *)(segment->base + c->control_offset);
    db->slots = (phb_slot *)(segment->base + c->slot_table_offset);
    db->entries = (phb_flex_entry *)(segment->base + c->flex_table_offset);
    db->flex_zone = segment->base + c->flex_zone_offset;
    db->structured_buffer = segment->base + c->structured_buffer_offset;
    db->pid = getpid();
    db->is_open = 0;
}

/* --- Create, attach ------------------------------------------------------ */

/* Make the DataBlock that db->constants describes (capacities, n_slots, dtype,
 * itemsize, ndim, shape; a frame of that shape fills a slot) and give it the name `path`, in `directory`. */
static inline int phb_datablock_create(phb_datablock *db, phb_segment *segment,
                                       const char *directory, const char *path,
                                       const char *name, uint64_t lease)
{
    phb_datablock_constants *c = &db->constants;
    uint64_t total, frame_size;
    memset(segment, 0, sizeof *segment);
    segment->fd = -1;
    if (!phb_datablock_measure(c, &total) || !phb_datablock_frame_size(c, &frame_size) ||
        frame_size != c->structured_buffer_capacity || c->itemsize == 0 ||
        c->dtype[PHB_DTYPE_BYTES - 1] != '\0') {
        return PHB_CAPACITY;
    }
    int status = phb_segment_create(segment, directory, name, PHB_KIND_DATABLOCK,
                                    sizeof *c, total, lease);
    if (status != PHB_OK) {
        return status;
    }
    memcpy(segment->base + sizeof(phb_segment_header),
           (const unsigned char *)c + sizeof(phb_segment_header),
           sizeof *c - sizeof(phb_segment_header));
    phb_datablock_bind(db, segment);
    for (uint32_t i = 0; i <= c->n_slots; i++) { /* every entry is free */
        phb_store32(&db->entries[i].next_free, i < c->n_slots ? i + 1 : PHB_NO_ENTRY);
    }
    for (uint32_t i = 0; i < c->n_slots; i++) {
        phb_store32(&db->slots[i].flex_index, PHB_NO_ENTRY);
    }
    phb_store64(&db->control->record[0].flex_index, PHB_NO_ENTRY);
    phb_store64(&db->control->record[0].newest_slot, c->n_slots - 1);
    status = phb_mutex_init(&db->control->lock);
    if (status == PHB_OK) {
        status = phb_segment_publish(segment, path);
    }
    if (status != PHB_OK) {
        int error = errno;
        phb_segment_detach(segment);
        errno = error;
        return status;
    }
    memcpy(c, segment->base, sizeof(phb_segment_header));
    return PHB_OK;
}

/* Map the DataBlock that `path` names. Whoever maps it writable must see to
 * the owner (phb_segment_adopt). */
static inline int phb_datablock_attach(phb_datablock *db, phb_segment *segment,
                                       const char *path, uint32_t owner_uid, int writable)
{
    phb_datablock_constants *c = &db->constants;
    phb_datablock_constants computed;
    uint64_t total, frame_size;
    int status = phb_segment_attach(segment, path, PHB_KIND_DATABLOCK, (unsigned char *)c,
                                    sizeof *c, owner_uid, writable);
    if (status != PHB_OK) {
        return status;
    }
    /* The checksum is no proof against a header that somebody made up: every
     * number that leads into the mapping is computed again and compared. */
    memcpy(&computed, c, sizeof computed);
    if (!phb_datablock_measure(&computed, &total) || total != segment->size ||
        memcmp(&computed, c, sizeof computed) != 0 ||
        !phb_datablock_frame_size(c, &frame_size) ||
        frame_size != c->structured_buffer_capacity || c->itemsize == 0 ||
        c->dtype[PHB_DTYPE_BYTES - 1] != '\0') {
        phb_segment_detach(segment);
        return PHB_DAMAGED;
    }
    phb_datablock_bind(db, segment);
    return PHB_OK;
}

/* --- Reading ------------------------------------------------------------- */

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
     * release fence after seq = 2v-1 in phb_datablock_data. */
    phb_fence_acquire();
    return phb_load64(seq) == expected;
#endif
}

/* Find frame `*version`, or with NULL the newest, without copying: PHB_OK and
 * its description (flex_size and flex_encoding are not yet known),
 *   PHB_EMPTY    it is not published yet
 *   PHB_OVERRUN  it was overwritten
 *   PHB_BUSY     it is the newest, and being overwritten; its parameters are not */
static inline int phb_datablock_find(const phb_datablock *db, const uint64_t *version,
                                     phb_frame *out, uint32_t *flex_index)
{
    phb_snapshot now;
    phb_datablock_snapshot(db, &now);
    memset(out, 0, sizeof *out);
    out->commit = now.commit;
    if (now.n_filled == 0) {
        *flex_index = (uint32_t)now.flex_index;
        out->flex_version = now.flex_zone_version;
        return version || now.flex_index == PHB_NO_ENTRY ? PHB_EMPTY : PHB_OK;
    }
    out->version = version ? *version : now.structured_buffer_version;
    uint64_t behind = now.structured_buffer_version - out->version;
    uint32_t n_slots = db->constants.n_slots;
    if (behind >= now.n_filled || behind >= n_slots) {
        return (int64_t)behind < 0 ? PHB_EMPTY : PHB_OVERRUN;
    }
    out->slot = (now.newest_slot % n_slots + n_slots - behind) % n_slots;
    const phb_slot *slot = &db->slots[out->slot];
    *flex_index = (uint32_t)now.flex_index;
    out->flex_version = now.flex_zone_version;
    /* acquire: pairs with the release store of seq = 2v in phb_datablock_end */
    if (phb_load64_acquire(&slot->seq) != 2 * out->version) {
        return behind == 0 ? PHB_BUSY : PHB_OVERRUN;
    }
    out->has_data = 1;
    out->frame_id = phb_load64(&slot->frame_id);
    out->timestamp_ns = phb_load64(&slot->timestamp_ns);
    out->size = phb_load64(&slot->size);
    if (behind > 0) { /* the newest frame's parameters may be replaced: see the record */
        *flex_index = phb_load32(&slot->flex_index);
        out->flex_version = phb_load64(&slot->flex_version);
    }
    if (!phb_seq_holds(&slot->seq, 2 * out->version)) {
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
           phb_seq_holds(&db->slots[frame->slot].seq, 2 * frame->version);
}

/* Copy frame `*version`, or with NULL the newest, with its parameters.
 * `flex` has room for flex_zone_capacity bytes; `data` for
 * structured_buffer_capacity bytes, or NULL: then only the parameters are
 * copied and the frame is left where it is (phb_datablock_slot_data,
 * phb_datablock_is_valid); if the newest frame is being overwritten, has_data
 * is 0 then. Answers as phb_datablock_find does; PHB_BUSY also when producers
 * were faster than `data` could be copied, several times. */
static inline int phb_datablock_read(const phb_datablock *db, const uint64_t *version,
                                     void *data, void *flex, phb_frame *frame)
{
    int status = PHB_BUSY;
    for (int attempt = 0; attempt < 8 && status == PHB_BUSY; attempt++) {
        uint32_t flex_index;
        status = phb_datablock_find(db, version, frame, &flex_index);
        if (status != PHB_OK && (status != PHB_BUSY || data || version)) {
            continue;
        }
        status = phb_datablock_copy_flex(db, flex_index, frame, flex);
        if (status != PHB_OK || !data || !frame->has_data) {
            continue;
        }
        phb_copy_from_shared(data, phb_datablock_slot_data(db, frame->slot), frame->size);
        if (!phb_datablock_is_valid(db, frame)) {
            status = PHB_BUSY; /* the newest moved on: take that one instead */
        }
    }
    return status;
}

/* --- Writing ------------------------------------------------------------- */

/* Undo what a dead producer left half done: with the lock held, bring slots
 * and the free list back to what the record in force says. Can be repeated
 * from the start wherever the repairer itself dies. */
static inline void phb_datablock_repair(phb_datablock *db)
{
    const uint32_t n_slots = db->constants.n_slots, taken = PHB_NO_ENTRY - 1;
    phb_snapshot now;
    phb_datablock_snapshot(db, &now);
    uint32_t newest = (uint32_t)(now.newest_slot % n_slots);
    /* Was the next slot begun? Then whatever it held is gone. */
    phb_slot *next = &db->slots[(newest + 1) % n_slots];
    uint64_t oldest = now.structured_buffer_version + 1 - n_slots;
    if (now.n_filled < n_slots || phb_load64(&next->seq) != 2 * oldest) {
        phb_store32(&next->flex_index, PHB_NO_ENTRY);
    }
    if (now.n_filled > 0) {
        phb_store32(&db->slots[newest].flex_index, (uint32_t)now.flex_index);
        phb_store64(&db->slots[newest].flex_version, now.flex_zone_version);
    }
    for (uint32_t i = 0; i <= n_slots; i++) {
        phb_store32(&db->entries[i].next_free, 0);
    }
    if (now.flex_index <= n_slots) {
        phb_store32(&db->entries[now.flex_index].next_free, taken);
    }
    for (uint32_t i = 0; i < n_slots; i++) {
        uint32_t used = phb_load32(&db->slots[i].flex_index);
        if (used <= n_slots) {
            phb_store32(&db->entries[used].next_free, taken);
        }
    }
    uint32_t free_ = PHB_NO_ENTRY;
    for (uint32_t i = 0; i <= n_slots; i++) {
        if (phb_load32(&db->entries[i].next_free) != taken) {
            phb_store32(&db->entries[i].next_free, free_);
            free_ = i;
        }
    }
    phb_store32(&db->control->flex_free, free_);
    phb_store32(&db->control->is_writing, 0);
}

/* With the lock held: look at what is in force, and open a publication. */
static inline int phb_datablock_open(phb_datablock *db)
{
    if (phb_load32_acquire(&db->live->is_closed)) {
        phb_mutex_unlock(&db->control->lock);
        return PHB_CLOSED;
    }
    phb_store32(&db->control->is_writing, 1);
    phb_store32(&db->control->writer_pid, (uint32_t)db->pid);
    phb_datablock_snapshot(db, &db->base);
    db->slot = (uint32_t)((db->base.newest_slot + 1) % db->constants.n_slots);
    db->entry = phb_load32(&db->control->flex_free);
    db->writer = pthread_self();
    db->data_taken = db->flex_taken = 0;
    db->is_open = 1;
    return PHB_OK;
}

/* Take the producers' lock, at most until `deadline_ns` (phb_monotonic_ns) and
 * at most for one slice (PHB_INTERRUPTED: call again). PHB_RECOVERED is
 * success: a dead producer's publication was rolled back and counted. */
static inline int phb_datablock_begin(phb_datablock *db, int64_t deadline_ns)
{
    phb_mutex *lock = &db->control->lock;
    int status = phb_mutex_trylock(lock);
    if (status == PHB_TIMEOUT) {
        status = phb_mutex_lock(lock, deadline_ns);
    }
    if (status == PHB_RECOVERED) {
        phb_datablock_repair(db);
        phb_store64(&db->control->n_recovered, phb_load64(&db->control->n_recovered) + 1);
        int consistent = phb_mutex_consistent(lock);
        int opened = consistent == PHB_OK ? phb_datablock_open(db) : consistent;
        return opened == PHB_OK ? PHB_RECOVERED : opened;
    }
    return status == PHB_OK ? phb_datablock_open(db) : status;
}

/* A publication belongs to the thread that began it. It does not survive fork:
 * the child must not touch it. */
static inline int phb_datablock_is_mine(const phb_datablock *db)
{
    return db->is_open && pthread_equal(db->writer, pthread_self());
}

/* The next slot's bytes; NULL outside begin and end. What it held before is
 * gone from here on, also if the publication is given up. */
static inline void *phb_datablock_data(phb_datablock *db)
{
    if (!phb_datablock_is_mine(db)) {
        return NULL;
    }
    if (!db->data_taken) {
        uint64_t version = db->base.structured_buffer_version + 1;
        phb_store64(&db->slots[db->slot].seq, 2 * version - 1);
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

/* A slot let go of entry `entry`. Neighbours share entries, so it is free
 * unless `neighbour`, the slot that may still refer to it, does. */
static inline void phb_datablock_retire(phb_datablock *db, uint32_t entry, uint32_t neighbour)
{
    if (entry <= db->constants.n_slots && entry != neighbour) {
        phb_store32(&db->entries[entry].next_free, phb_load32(&db->control->flex_free));
        phb_store32(&db->control->flex_free, entry);
    }
}

/* What a publication says of itself. */
typedef struct phb_update {
    uint32_t zones;         /* PHB_ZONE_FLEX | PHB_ZONE_STRUCTURED */
    uint32_t flex_encoding;
    uint64_t flex_size;
    uint64_t structured_size;
    const uint64_t *frame_id;  /* NULL: structured_buffer_version - 1 */
    uint64_t timestamp_ns;     /* 0: now */
} phb_update;

/* Publish the zones that `update` names, and unlock. With an answer other
 * than PHB_OK nothing is published and the publication is still open. */
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
    phb_snapshot next = db->base;
    const uint64_t timestamp_ns = update->timestamp_ns ? update->timestamp_ns : phb_wall_ns();
    const uint32_t former = (uint32_t)db->base.flex_index;
    next.timestamp = (double)timestamp_ns * 1e-9;
    next.zones = update->zones;
    if (flex) {
        phb_flex_entry *entry = &db->entries[db->entry];
        next.flex_zone_version++;
        next.flex_zone_size = update->flex_size;
        next.flex_index = db->entry;
        phb_store64(&entry->size, update->flex_size);
        phb_store32(&entry->encoding, update->flex_encoding);
        phb_store32(&db->control->flex_free, phb_load32(&entry->next_free));
        /* release: the object before its seq; pairs with phb_datablock_copy_flex */
        phb_store64_release(&entry->seq, 2 * next.flex_zone_version);
    }
    if (structured) {
        phb_slot *slot = &db->slots[db->slot];
        const uint32_t retired = phb_load32(&slot->flex_index);
        next.structured_buffer_version++;
        next.structured_buffer_size = update->structured_size;
        next.newest_slot = db->slot;
        next.n_filled += next.n_filled < n_slots;
        phb_store64(&slot->frame_id, update->frame_id ? *update->frame_id
                                                      : next.structured_buffer_version - 1);
        phb_store64(&slot->timestamp_ns, timestamp_ns);
        phb_store64(&slot->size, update->structured_size);
        phb_store64(&slot->flex_version, next.flex_zone_version);
        phb_store32(&slot->flex_index, (uint32_t)next.flex_index);
        /* release: the frame before its seq; pairs with phb_datablock_find */
        phb_store64_release(&slot->seq, 2 * next.structured_buffer_version);
        /* The frame that was overwritten shared its parameters, if at all,
         * with the one after it, which is the oldest now. */
        phb_datablock_retire(db, retired,
                             phb_load32(&db->slots[(db->slot + 1) % n_slots].flex_index));
        if (db->base.n_filled == 0 && flex) {
            phb_datablock_retire(db, former, PHB_NO_ENTRY); /* no frame ever had it */
        }
    } else {
        /* The newest frame gets new parameters; the frame before it, if there
         * is one, may still have the former ones. */
        uint32_t before = PHB_NO_ENTRY;
        const uint32_t newest = (uint32_t)(db->base.newest_slot % n_slots);
        if (db->base.n_filled > 1) {
            before = phb_load32(&db->slots[(newest + n_slots - 1) % n_slots].flex_index);
        }
        if (db->base.n_filled > 0) {
            phb_store64(&db->slots[newest].flex_version, next.flex_zone_version);
            phb_store32(&db->slots[newest].flex_index, (uint32_t)next.flex_index);
        }
        phb_datablock_retire(db, former, before);
    }
    next.commit = db->base.commit + 1;
    phb_record *record = &db->control->record[next.commit & 1];
    uint64_t timestamp;
    memcpy(&timestamp, &next.timestamp, sizeof timestamp);
    /* release: the last commit word before this record's words, so that who
     * reads the latter sees that the former moved (phb_datablock_snapshot) */
    phb_fence_release();
    phb_store64(&record->flex_zone_size, next.flex_zone_size);
    phb_store64(&record->flex_zone_version, next.flex_zone_version);
    phb_store64(&record->structured_buffer_size, next.structured_buffer_size);
    phb_store64(&record->structured_buffer_version, next.structured_buffer_version);
    phb_store64(&record->timestamp, timestamp);
    phb_store64(&record->newest_slot, next.newest_slot);
    phb_store64(&record->n_filled, next.n_filled);
    phb_store64(&record->flex_index, next.flex_index);
    phb_store64(&record->zones, next.zones);
    /* release: everything of this publish before its commit word; pairs with
     * phb_datablock_snapshot and phb_wait_change */
    phb_store64_release(&db->control->commit, next.commit);
    if (published) {
        *published = next;
    }
    return phb_datablock_release(db);
}

#endif
