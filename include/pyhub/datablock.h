/* datablock.h: a ring of frames, each with the parameters that belong to it.
 *
 *   SharedMemoryHeader      constants | lock | commit word, two records
 *                           slot table | flex table
 *   FlexibleDataZone        n_slots + 1 entries, each one MessagePack/JSON object
 *   StructuredDataBuffer    n_slots frames
 *
 * One slot is the single buffer; more make a ring. A slot goes through these
 * states; its sequence word says which, and of which position p:
 *
 *             begin, and nobody minds          end
 *   seq = 2q ----------------------> 2p-1 --------------> 2p   the frame of p, whole
 *   an older frame, or none          being written             |
 *      ^      ^                        | abort, death          |  begin, a lap later
 *      |      '------------------------'  (stays as it is,     |
 *      |          until its turn comes     and holds nothing)  |
 *      '-------------------------------------------------------'
 *
 * Frames are published at rising positions, one slot after the other. A slot
 * that an admitted reader has pinned is passed over, and its position with it:
 * no frame has that one (PHB_SKIPPED). `version` counts the frames.
 *
 * WRITING (one producer at a time, under the lock)    datablock_write.h
 *
 *   slot s, next to be written        entry e, the first free one
 *   [readers admitted? claim it]
 *   seq = 2p-1   "p is being written" seq = 2f-1
 *   ... the caller fills it ...       ... and it ...
 *   seq = 2p     "holds p, whole"     seq = 2f
 *           \                         /
 *            the spare record is filled: p, sizes, which slot, which entry
 *            commit = c+1             one word, and all of it is published
 *
 * READING (no lock, no write)                         datablock_read.h
 *
 *   c = commit; copy record[c & 1]; still c?  -> newest position p, its slot and entry
 *   seq == 2p?  copy the bytes.  seq == 2p?   -> they are the frame of p, whole
 *
 * PINNING (admitted readers)                          readers.h, datablock_admitted.h
 *
 * Each arrow of time between processes is one pair of words:
 *
 *   stored (release)       read (acquire)                 what it carries
 *   commit                 snapshot, waits                one whole publish
 *   slot seq = 2p          find                           a frame's bytes
 *   entry seq = 2f         copy_flex                      an object's bytes
 *   fence after 2p-1       fence before seq is read again that bytes have changed
 *   claiming | pin         pin | claiming                 (full fences) who was first
 *   pin = 0, cursor        ask_readers                    that nobody looks any more
 *   awaited | commit       commit | awaited               (full fences) who was first
 *
 * So a writer that dies or stops anywhere leaves the last committed record in
 * force. `commit` rises by one with every publish: it is also the word to wait on.
 *
 * FLEX ENTRIES. A frame published without new parameters refers to the entry of
 * the frame before it, so entries have a life of their own: an entry counts the
 * slots that refer to it, and is free when none does. n_slots slots refer to at
 * most n_slots entries, so with one more, one is always free.
 *
 * Reasons and the alternatives that lost: docs/decisions/0004, 0006 and 0012.
 */
#ifndef PYHUB_DATABLOCK_H
#define PYHUB_DATABLOCK_H

#include "datablock_admitted.h"
#include "datablock_write.h"

/* Make the DataBlock that db->constants describes (capacities, n_slots, dtype,
 * itemsize, ndim, shape; a frame of that shape fills a slot) and give it the
 * name `path`, in `directory`. Up to `n_places` readers can be admitted;
 * `patience_ns` bounds what a publish waits for them. `leases`, the lock file of
 * `lease`, must stay valid as long as the handle. */
static inline int phb_datablock_create(phb_datablock *db, phb_segment *segment,
                                       const char *directory, const char *path,
                                       const char *name, uint32_t n_places,
                                       uint64_t patience_ns, const char *leases,
                                       uint64_t lease)
{
    phb_datablock_constants *c = &db->constants;
    uint64_t total, frame_size;
    char companion[PATH_MAX];
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
    /* First of the two: who sees the DataBlock finds its table. */
    status = phb_segment_companion(companion, path, (phb_segment_header *)segment->base);
    if (status == PHB_OK) {
        status = phb_readers_create(&db->readers, directory, companion,
                                    (phb_segment_header *)segment->base, n_places, patience_ns,
                                    leases, lease);
    }
    if (status != PHB_OK) {
        int error = errno;
        phb_segment_detach(segment);
        errno = error;
        return status;
    }
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
        unlink(companion);
        phb_segment_detach(&db->readers.segment);
        phb_segment_detach(segment);
        errno = error;
        return status;
    }
    memcpy(c, segment->base, sizeof(phb_segment_header));
    return PHB_OK;
}

/* Do the constants agree with each other, and with a segment of `size` bytes?
 * The checksum is no proof against a header that somebody made up: every number
 * that leads into the mapping is computed again and compared. */
static inline int phb_datablock_is_sound(const phb_datablock_constants *c, uint64_t size)
{
    phb_datablock_constants computed;
    uint64_t total, frame_size;
    memcpy(&computed, c, sizeof computed);
    return phb_datablock_measure(&computed, &total) && total == size &&
           memcmp(&computed, c, sizeof computed) == 0 &&
           phb_datablock_frame_size(c, &frame_size) &&
           frame_size == c->structured_buffer_capacity && c->itemsize != 0 &&
           c->dtype[PHB_DTYPE_BYTES - 1] == '\0';
}

/* Map the DataBlock that `path` names, to read it; or, with `leases`, writable
 * and with its table, as one more producer, who then has to join
 * (phb_segment_join). */
static inline int phb_datablock_attach(phb_datablock *db, phb_segment *segment,
                                       const char *path, uint32_t owner_uid,
                                       const char *leases)
{
    phb_datablock_constants *c = &db->constants;
    memset(&db->readers, 0, sizeof db->readers);
    db->readers.segment.fd = -1;
    int status = phb_segment_attach(segment, path, PHB_KIND_DATABLOCK, (unsigned char *)c,
                                    sizeof *c, owner_uid, leases != NULL);
    if (status != PHB_OK) {
        return status;
    }
    if (!phb_datablock_is_sound(c, segment->size)) {
        status = PHB_DAMAGED;
    } else if (leases) {
        status = phb_readers_attach(&db->readers, path, &c->segment, leases);
    }
    if (status != PHB_OK) {
        int error = errno;
        phb_segment_detach(segment);
        errno = error;
        return status;
    }
    phb_datablock_bind(db, segment);
    return PHB_OK;
}

/* The owner's farewell: readers and further producers learn that nothing more
 * will come, and the names go. */
static inline void phb_datablock_close(phb_datablock *db, phb_segment *segment,
                                       const char *path)
{
    char companion[PATH_MAX];
    phb_u32 *gate = &db->readers.control->gate;
    uint32_t seen = phb_load32(gate);
    while (!phb_swap32(gate, &seen, seen | PHB_GATE_CLOSED)) {
    }
    phb_segment_close(segment, path);
    if (phb_segment_companion(companion, path, &db->constants.segment) == PHB_OK) {
        unlink(companion);
    }
}

/* Unmap, and let go of the table. */
static inline void phb_datablock_detach(phb_datablock *db, phb_segment *segment)
{
    phb_segment_detach(&db->readers.segment);
    phb_segment_detach(segment);
}

#endif
