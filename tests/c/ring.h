/* ring.h: what a DataBlock must hold, kept a second time in private memory.
 *
 *   ring_step    one publication, planned: what is taken, what is published
 *   ring_write   do it to the DataBlock; anybody can, also a child that dies in it
 *   ring_apply   do it to the model
 *   ring_check   compare: every frame, its parameters, and the flex entries
 *
 * The model keeps every frame and object ever published, by version; which of
 * them must still be readable follows from the version of the newest frame and
 * from that of the last slot that was begun. It counts from 0, also where the
 * ring's own counters start elsewhere.
 */
#ifndef TESTS_RING_H
#define TESTS_RING_H

#include "support.h"

/* Small, and no multiples of a word, a line, or each other. */
enum { RING_DATA_BYTES = 203, RING_FLEX_BYTES = 77, RING_MAX_SLOTS = 8 };
enum { RING_MAX_VERSIONS = 10000 };

typedef struct ring_object {
    uint64_t seed, size; /* its bytes follow from the seed */
    uint32_t encoding;
} ring_object;

typedef struct ring_frame {
    uint64_t seed, size, frame_id, timestamp_ns;
    uint64_t flex_version; /* of its parameters, now */
} ring_frame;

typedef struct ring_step {
    uint32_t taken;     /* zones whose buffer is asked for */
    uint32_t published; /* zones named at the end, out of `taken`; 0: abort */
    ring_frame frame;
    ring_object object;
} ring_step;

typedef struct ring_model {
    uint64_t n_slots;
    uint64_t start; /* of all counters of the ring */
    uint64_t commit, version, flex_version, zones, timestamp_ns;
    uint64_t begun; /* highest version whose slot was ever asked for */
    uint64_t n_aborted;
    ring_frame frames[RING_MAX_VERSIONS];
    ring_object objects[RING_MAX_VERSIONS];
} ring_model;

/* What ring_check has met, so that a test can claim that it met it. */
typedef struct ring_met {
    uint64_t n_read, n_empty, n_busy, n_overrun, n_carried_over, n_followed;
} ring_met;

static inline unsigned char ring_byte(uint64_t seed, uint64_t i)
{
    return (unsigned char)((seed >> (8 * (i % 8))) + 13 * i);
}

static inline void ring_fill(unsigned char *bytes, uint64_t seed, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++) {
        bytes[i] = ring_byte(seed, i);
    }
}

static inline int ring_matches(const unsigned char *bytes, uint64_t seed, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++) {
        if (bytes[i] != ring_byte(seed, i)) {
            return 0;
        }
    }
    return 1;
}

/* A step that takes and publishes these zones, with anything in them. */
static inline ring_step ring_plan(uint64_t *random, uint32_t taken, uint32_t published)
{
    ring_step step;
    memset(&step, 0, sizeof step);
    step.taken = taken;
    step.published = published;
    step.frame.seed = random_next(random);
    step.frame.size = random_below(random, RING_DATA_BYTES + 1);
    step.frame.frame_id = random_next(random);
    step.frame.timestamp_ns = 1 + random_below(random, 1ull << 61);
    step.object.seed = random_next(random);
    step.object.size = random_below(random, RING_FLEX_BYTES + 1);
    step.object.encoding = random_below(random, 2) ? PHB_FLEX_MSGPACK : PHB_FLEX_JSON;
    return step;
}

/* Write `size` bytes into a zone, as a producer does. */
static inline void ring_put(void *zone, uint64_t seed, uint64_t size)
{
    unsigned char bytes[RING_DATA_BYTES];
    ring_fill(bytes, seed, size);
    phb_copy_to_shared(zone, bytes, size);
}

/* First half of a step: fill the zones that it takes. */
static inline void ring_put_zones(phb_datablock *db, const ring_step *step)
{
    if (step->taken & PHB_ZONE_STRUCTURED) {
        ring_put(phb_datablock_data(db), step->frame.seed, step->frame.size);
    }
    if (step->taken & PHB_ZONE_FLEX) {
        ring_put(phb_datablock_flex(db), step->object.seed, step->object.size);
    }
}

/* Second half: publish them, or give up. */
static inline void ring_end(phb_datablock *db, const ring_step *step)
{
    phb_update update;
    if (!step->published) {
        CHECK(phb_datablock_abort(db) == PHB_OK);
        return;
    }
    memset(&update, 0, sizeof update);
    update.zones = step->published;
    update.flex_encoding = step->object.encoding;
    update.flex_size = step->object.size;
    update.structured_size = step->frame.size;
    update.frame_id = &step->frame.frame_id;
    update.timestamp_ns = step->frame.timestamp_ns;
    CHECK(phb_datablock_end(db, &update, NULL) == PHB_OK);
}

/* Carry `step` out on a DataBlock whose publication is open. */
static inline void ring_write(phb_datablock *db, const ring_step *step)
{
    ring_put_zones(db, step);
    ring_end(db, step);
}

static inline void ring_apply(ring_model *model, const ring_step *step)
{
    if (step->taken & PHB_ZONE_STRUCTURED) {
        model->begun = model->version + 1;
    }
    if (!step->published) {
        model->n_aborted++;
        return;
    }
    CHECK(model->version + 1 < RING_MAX_VERSIONS && model->flex_version + 1 < RING_MAX_VERSIONS);
    model->commit++;
    model->zones = step->published;
    model->timestamp_ns = step->frame.timestamp_ns;
    if (step->published & PHB_ZONE_FLEX) {
        model->objects[++model->flex_version] = step->object;
    }
    if (step->published & PHB_ZONE_STRUCTURED) {
        model->frames[++model->version] = step->frame;
    }
    model->frames[model->version].flex_version = model->flex_version;
}

/* What a reader must be told about frame `version`. */
static inline int ring_expected(const ring_model *model, uint64_t version)
{
    if (version > model->version) {
        return PHB_EMPTY;
    }
    if (version == 0 || version + model->n_slots <= model->version) {
        return PHB_OVERRUN;
    }
    if (version + model->n_slots <= model->begun) { /* asked for, then given up */
        return version == model->version ? PHB_BUSY : PHB_OVERRUN;
    }
    return PHB_OK;
}

static inline void ring_check_parameters(const ring_model *model, const phb_frame *frame,
                                         uint64_t flex_version, const unsigned char *flex)
{
    const ring_object *object = &model->objects[flex_version];
    CHECK(frame->flex_version == (flex_version > 0 ? model->start + flex_version : 0));
    if (flex_version > 0) {
        CHECK(frame->flex_size == object->size);
        CHECK(frame->flex_encoding == object->encoding);
        CHECK(ring_matches(flex, object->seed, object->size));
    } else {
        CHECK(frame->flex_size == 0);
    }
}

static inline void ring_check_found(const ring_model *model, const phb_datablock *reader,
                                    uint64_t version, const phb_frame *frame,
                                    const unsigned char *data, const unsigned char *flex)
{
    const ring_frame *expected = &model->frames[version];
    CHECK(frame->has_data && frame->version == model->start + version);
    CHECK(frame->frame_id == expected->frame_id);
    CHECK(frame->timestamp_ns == expected->timestamp_ns);
    CHECK(frame->size == expected->size);
    CHECK(ring_matches(data, expected->seed, expected->size));
    CHECK(phb_datablock_is_valid(reader, frame));
    ring_check_parameters(model, frame, expected->flex_version, flex);
}

/* The short way to the frame `version`, from the one before it: to what was
 * published and is not going to change, or nowhere. */
static inline void ring_check_follower(const ring_model *model, const phb_datablock *reader,
                                       uint64_t version, uint64_t slot, int is_there,
                                       ring_met *met)
{
    unsigned char data[RING_DATA_BYTES], flex[RING_FLEX_BYTES];
    phb_frame frame;
    phb_cursor cursor;
    const int is_newest = version == model->version;
    for (int in_order = 0; in_order < 2; in_order++) {
        memset(&cursor, 0, sizeof cursor);
        cursor.position = cursor.newest = model->start + version - 1;
        cursor.slot = (slot + model->n_slots - 1) % model->n_slots;
        const int brought_it = is_newest && (model->zones & PHB_ZONE_STRUCTURED);
        int status =
            phb_datablock_read_following(reader, &cursor, in_order, data, flex, &frame);
        /* Not while new parameters are being given to it. */
        CHECK(status == PHB_EMPTY || (status == PHB_OK && is_there && brought_it));
        if (status == PHB_OK) {
            ring_check_found(model, reader, version, &frame, data, flex);
            met->n_followed++;
        }
        if (!is_newest && version <= model->version) { /* it was seen that others came after */
            cursor.newest = model->start + model->version;
            cursor.commit = model->start + model->commit;
            status = phb_datablock_read_following(reader, &cursor, in_order, data, flex, &frame);
            CHECK(status == (is_there && in_order ? PHB_OK : PHB_EMPTY));
            if (status == PHB_OK) {
                ring_check_found(model, reader, version, &frame, data, flex);
                met->n_followed++;
            }
        }
    }
}

static inline void ring_check_frame(const ring_model *model, const phb_datablock *reader,
                                    const uint64_t *which, ring_met *met)
{
    unsigned char data[RING_DATA_BYTES], flex[RING_FLEX_BYTES];
    phb_frame frame;
    const uint64_t version = which ? *which : model->version;
    const uint64_t position = model->start + version;
    const int status =
        phb_datablock_read(reader, which ? &position : NULL, data, flex, &frame);
    CHECK(frame.commit == model->start + model->commit);
    if (version == 0 && !which) { /* there never was a frame */
        CHECK(status == (model->flex_version ? PHB_OK : PHB_EMPTY));
        if (status == PHB_OK) {
            CHECK(!frame.has_data && frame.version == 0);
            ring_check_parameters(model, &frame, model->flex_version, flex);
        }
        return;
    }
    CHECK(status == (model->version == 0 ? PHB_EMPTY : ring_expected(model, version)));
    met->n_empty += status == PHB_EMPTY;
    met->n_busy += status == PHB_BUSY;
    met->n_overrun += status == PHB_OVERRUN;
    if (status == PHB_OK) {
        const ring_frame *expected = &model->frames[version];
        ring_check_found(model, reader, version, &frame, data, flex);
        met->n_read++;
        met->n_carried_over += expected->flex_version > 0 && version > 1 &&
                               model->frames[version - 1].flex_version == expected->flex_version;
    }
}

static inline void ring_check_snapshot(const ring_model *model, const phb_datablock *reader)
{
    phb_snapshot now;
    phb_datablock_snapshot(reader, &now);
    CHECK(now.commit == model->start + model->commit);
    CHECK(now.zones == model->zones);
    CHECK(now.timestamp == (double)model->timestamp_ns * 1e-9);
    CHECK(now.structured_buffer_version == model->start + model->version);
    CHECK(now.structured_buffer_size == model->frames[model->version].size);
    CHECK(now.flex_zone_version == model->start + model->flex_version);
    CHECK(now.flex_zone_size == model->objects[model->flex_version].size);
    CHECK(now.n_filled == (model->version < model->n_slots ? model->version : model->n_slots));
}

/* Every flex entry is either on the free list or referred to, never both. */
static inline void ring_check_entries(const ring_model *model, const phb_datablock *reader)
{
    const uint32_t n_entries = (uint32_t)model->n_slots + 1;
    int is_free[RING_MAX_SLOTS + 1] = {0}, is_used[RING_MAX_SLOTS + 1] = {0};
    uint32_t entry = phb_load32(&reader->control->flex_free);
    for (uint32_t n = 0; entry != PHB_NO_ENTRY; n++) {
        CHECK(n < n_entries && entry < n_entries && !is_free[entry]);
        is_free[entry] = 1;
        entry = phb_load32(&reader->entries[entry].next_free);
    }
    phb_snapshot now;
    phb_datablock_snapshot(reader, &now);
    if (now.flex_index != PHB_NO_ENTRY) {
        CHECK(now.flex_index < n_entries);
        is_used[now.flex_index] = 1;
    }
    for (uint64_t i = 0; i < model->n_slots; i++) {
        const uint32_t used = phb_load32(&reader->slots[i].flex_index);
        if (used != PHB_NO_ENTRY) {
            CHECK(used < n_entries);
            is_used[used] = 1;
        }
    }
    for (uint32_t i = 0; i < n_entries; i++) {
        CHECK(is_free[i] + is_used[i] == 1);
    }
}

/* What any reader can see, at any time. */
static inline void ring_check_frames(const ring_model *model, const phb_datablock *reader,
                                     ring_met *met)
{
    const uint64_t behind = model->n_slots + 2;
    phb_snapshot now;
    phb_datablock_snapshot(reader, &now);
    ring_check_snapshot(model, reader);
    ring_check_frame(model, reader, NULL, met);
    for (uint64_t version = model->version > behind ? model->version - behind : 0;
         version <= model->version + 2; version++) {
        const uint64_t slot = now.newest_slot + version + 8 * model->n_slots - model->version;
        ring_check_frame(model, reader, &version, met);
        if (version > 0) {
            ring_check_follower(model, reader, version, slot % model->n_slots,
                                version <= model->version &&
                                    ring_expected(model, version) == PHB_OK,
                                met);
        }
    }
    const uint64_t far_ahead = model->version + INT64_MAX;
    ring_check_frame(model, reader, &far_ahead, met);
}

/* All of it, while no publication is open. */
static inline void ring_check(const ring_model *model, const phb_datablock *reader,
                              ring_met *met)
{
    ring_check_frames(model, reader, met);
    ring_check_entries(model, reader);
    CHECK(phb_load32(&reader->control->is_writing) == 0);
    CHECK(phb_load64(&reader->control->n_aborted) == model->n_aborted);
}

static inline void ring_print(const ring_met *met)
{
    printf("read %llu\nempty %llu\nbusy %llu\noverrun %llu\ncarried_over %llu\nfollowed %llu\n",
           (unsigned long long)met->n_read, (unsigned long long)met->n_empty,
           (unsigned long long)met->n_busy, (unsigned long long)met->n_overrun,
           (unsigned long long)met->n_carried_over, (unsigned long long)met->n_followed);
}

#endif
