/* datablock_layout.h: the words of a DataBlock, where they lie, who writes and
 * who reads them; and what one process holds of it. The protocol that they
 * serve is drawn in datablock.h.
 */
#ifndef PYHUB_DATABLOCK_LAYOUT_H
#define PYHUB_DATABLOCK_LAYOUT_H

#include "readers.h"

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
    phb_u64 n_filled;                  /* positions in the ring, newest backwards */
    phb_u64 flex_index;                /* entry of the newest object */
    phb_u64 zones;                     /* what the last publish changed */
    phb_u64 position;                  /* of the newest frame */
    phb_u64 n_dropped;                 /* frames dropped before the newest one */
    unsigned char reserved[40];
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
PHB_ASSERT_OFFSET(phb_record, position, 72);
PHB_ASSERT_OFFSET(phb_record, n_dropped, 80);

/* The words that change. Each group below has its own cache lines. */
typedef struct phb_datablock_control {
    phb_mutex lock; /* producers only: from begin to end or abort */

    /* Written by the producer that holds the lock. */
    phb_u32 is_writing;  /* 1 from begin to end; read by anybody, a hint */
    phb_u32 writer_pid;  /* of the last begin; read for messages */
    phb_u32 flex_free;   /* first free entry; the rest hang on next_free */
    phb_u32 is_awaited;  /* 1: another producer waits for the lock. Written by that one,
                          * and taken back by who gets the lock or gives way: seldom,
                          * so it shares their line */
    phb_u64 n_recovered; /* deaths with the lock held, repaired; read by monitors */
    phb_u64 n_aborted;   /* publications given up by their producer; read by monitors */
    phb_u64 n_dropped;   /* frames for which readers left no slot; read by all */
    unsigned char reserved1[24];

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
PHB_ASSERT_OFFSET(phb_datablock_control, is_awaited, 140);
PHB_ASSERT_OFFSET(phb_datablock_control, n_aborted, 152);
PHB_ASSERT_OFFSET(phb_datablock_control, n_dropped, 160);
PHB_ASSERT_OFFSET(phb_datablock_control, commit, 192);
PHB_ASSERT_OFFSET(phb_datablock_control, record, 256);

/* One frame's place. Written by the producer that holds the lock; read by all
 * under `seq`. */
typedef struct phb_slot {
    phb_u64 seq;          /* 2p: holds the frame of position p; 2p-1: it is being written */
    phb_u64 version;      /* the frame's number among those published */
    phb_u64 frame_id;     /* the producer's own number for the frame */
    phb_u64 timestamp_ns; /* wall clock, since 1970 */
    phb_u64 size;         /* valid bytes */
    phb_u64 n_dropped;    /* frames dropped before it, ever */
    phb_u64 flex_version; /* of the parameters that belong to the frame */
    phb_u32 flex_index;   /* where they lie, or PHB_NO_ENTRY */
    phb_u32 published_at; /* low half of the commit that published the frame */
} phb_slot;

PHB_ASSERT_SIZE(phb_slot, 64);
PHB_ASSERT_OFFSET(phb_slot, seq, 0);
PHB_ASSERT_OFFSET(phb_slot, version, 8);
PHB_ASSERT_OFFSET(phb_slot, frame_id, 16);
PHB_ASSERT_OFFSET(phb_slot, timestamp_ns, 24);
PHB_ASSERT_OFFSET(phb_slot, size, 32);
PHB_ASSERT_OFFSET(phb_slot, n_dropped, 40);
PHB_ASSERT_OFFSET(phb_slot, flex_version, 48);
PHB_ASSERT_OFFSET(phb_slot, flex_index, 56);
PHB_ASSERT_OFFSET(phb_slot, published_at, 60);

/* One object's place. Written and read as a slot is. */
typedef struct phb_flex_entry {
    phb_u64 seq;       /* 2f: holds object f, whole; 2f-1: f is being written */
    phb_u64 size;      /* valid bytes */
    phb_u32 encoding;  /* PHB_FLEX_MSGPACK or PHB_FLEX_JSON */
    phb_u32 next_free; /* of the free list; only producers read it */
    phb_u32 n_uses;    /* slots that refer to it, and 1 while it is the newest */
    phb_u32 reserved0;
    phb_u64 published_at; /* the commit that published it */
    unsigned char reserved1[24];
} phb_flex_entry;

PHB_ASSERT_SIZE(phb_flex_entry, 64);
PHB_ASSERT_OFFSET(phb_flex_entry, seq, 0);
PHB_ASSERT_OFFSET(phb_flex_entry, size, 8);
PHB_ASSERT_OFFSET(phb_flex_entry, encoding, 16);
PHB_ASSERT_OFFSET(phb_flex_entry, next_free, 20);
PHB_ASSERT_OFFSET(phb_flex_entry, n_uses, 24);
PHB_ASSERT_OFFSET(phb_flex_entry, published_at, 32);

/* --- What one process holds ---------------------------------------------- */

/* A record as plain values. */
typedef struct phb_snapshot {
    uint64_t commit;
    uint64_t flex_zone_size, flex_zone_version;
    uint64_t structured_buffer_size, structured_buffer_version;
    double timestamp;
    uint64_t newest_slot, n_filled, flex_index, zones, position, n_dropped;
} phb_snapshot;

/* A frame's description, as copied out with it. */
typedef struct phb_frame {
    uint64_t commit;      /* of the publish that this frame was read at */
    uint64_t position;    /* in the order of the ring; see phb_datablock_find */
    uint64_t version;     /* structured_buffer_version of the frame */
    uint64_t frame_id;
    uint64_t timestamp_ns;
    uint64_t size;        /* bytes of data */
    uint64_t slot;        /* where it lies */
    uint64_t newest;      /* position of the newest frame that was seen with it */
    uint64_t n_slots;     /* of the ring */
    uint64_t n_dropped;   /* frames dropped before it, ever */
    uint64_t flex_version;
    uint64_t flex_size;
    uint32_t flex_encoding;
    int has_flex;         /* 0: no parameters were published with it or before */
    int has_data;         /* 0: parameters were published, but never a frame */
} phb_frame;

/* The last frame that a reader was given. */
typedef struct phb_cursor {
    uint64_t position, version, n_dropped;
    uint64_t slot;
    uint64_t newest, commit; /* as of phb_frame: frames before that one are published */
    uint64_t lapped_at, margin; /* see phb_datablock_seek */
} phb_cursor;

/* A handle, private to one process. The constants are a checked copy. */
typedef struct phb_datablock {
    phb_datablock_constants constants;
    phb_segment_live *live;
    phb_datablock_control *control;
    phb_slot *slots;
    phb_flex_entry *entries;
    unsigned char *flex_zone;
    unsigned char *structured_buffer;
    phb_readers readers; /* producers only: the table, mapped */
    pid_t pid; /* of this process: the handle does not survive fork */
    /* Commit of `base`; a word, as threads that share the handle look at it
     * before they have the lock. */
    phb_u64 known_commit;
    /* The open publication; touched only by the thread that holds the lock. */
    pthread_t writer;
    int is_open, data_taken, flex_taken;
    uint32_t gate;         /* as it was when the publication opened: readers.h */
    int is_claimed;        /* readers were asked, and have nothing against `slot` */
    uint64_t waited_ns;    /* for readers, in all */
    uint32_t kept_by;      /* the place of the reader that was in the way last */
    phb_snapshot base;     /* the record in force, as of its commit */
    uint32_t slot;         /* next to be written */
    uint64_t position;     /* ... and the position that its frame will have */
    uint32_t entry;        /* first free */
} phb_datablock;

/* A reader that was admitted. Private to one process, as the handles are. */
typedef struct phb_reader {
    phb_readers *table;
    uint32_t at; /* its place */
    /* A publication that opened before the admission may still be writing, to
     * this slot, unknowing of pins. */
    int is_unsafe;
    uint32_t unsafe_slot;
    uint64_t unsafe_commit;
} phb_reader;

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
    phb_store64(&db->known_commit, phb_load64(&db->control->commit) - 1); /* none yet */
}

#endif
