/* threads.c: for ThreadSanitizer: two producers, a reader that copies, one that
 * is admitted and copies, one that pins, as threads of one process.
 *
 *   threads DIRECTORY N_SLOTS N_FRAMES
 *
 * The sanitizer sees a race where two threads use the same address. So each has
 * a handle of its own, as a process has, but all handles lie on one mapping.
 * Pinned frames are looked at with plain loads, as numpy does; what may change
 * meanwhile is copied word by word (sync.h).
 *
 * The sanitizer of gcc does not know fences, so it takes nothing as proved that
 * follows from a fence alone. That a pinned frame stays follows from pairs of
 * words that it knows: seq = 2p before the look, pin = 0 after it. A copy races
 * on purpose, by atomic words, which is no report; with -DPLAIN_COPY it is one.
 */
#include "marked.h"

enum { N_PRODUCERS = 2, N_READERS = 3 };

static block_files files;
static phb_datablock shared;
static phb_segment segment;
static uint64_t n_frames, lease;
static phb_u32 is_over;
static phb_u64 n_read[N_READERS];

static phb_datablock own_handle(void)
{
    phb_datablock db = shared;
    phb_datablock_bind(&db, &segment);
    return db;
}

static void *produce(void *argument)
{
    phb_datablock db = own_handle();
    uint64_t version = 0;
    for (uint64_t id = (uint64_t)(uintptr_t)argument; version < n_frames; id += 2) {
        unsigned char bytes[MARKED_DATA_BYTES];
        int status;
        marked_begin(&db);
        do {
            status = phb_datablock_claim(&db);
        } while (status == PHB_INTERRUPTED);
        if (status == PHB_FULL) {
            CHECK(phb_datablock_drop(&db) == PHB_OK);
            sched_yield();
            continue;
        }
        marked_make(bytes, id, sizeof bytes);
        phb_update update = {PHB_ZONE_STRUCTURED, PHB_FLEX_MSGPACK, MARKED_FLEX_BYTES,
                             MARKED_DATA_BYTES, &id, 0};
        phb_copy_to_shared(phb_datablock_data(&db), bytes, sizeof bytes);
        if (id % 2) {
            update.zones |= PHB_ZONE_FLEX;
            phb_copy_to_shared(phb_datablock_flex(&db), bytes, MARKED_FLEX_BYTES);
        }
        version = db.base.structured_buffer_version + 1;
        CHECK(phb_datablock_end(&db, &update, NULL) == PHB_OK);
    }
    return NULL;
}

static void *read_plainly(void *argument)
{
    phb_datablock db = own_handle();
    unsigned char data[MARKED_DATA_BYTES], flex[MARKED_FLEX_BYTES];
    marked_reader reader;
    phb_frame frame;
    (void)argument;
    memset(&reader, 0, sizeof reader);
    while (!phb_load32(&is_over)) {
#ifdef PLAIN_COPY
        memcpy(data, phb_datablock_slot_data(&db, 0), sizeof data);
#endif
        if (phb_datablock_read_next(&db, &reader.cursor, data, flex, &frame) == PHB_OK) {
            CHECK(marked_is_right(&frame, data, flex));
            marked_pass(&reader, &frame);
        }
    }
    marked_check_counts(&reader);
    phb_store64(&n_read[0], reader.n_read);
    return NULL;
}

/* Reader 1 copies and blocks; reader 2 pins, and lets frames be dropped. */
static void *read_admitted(void *argument)
{
    const uint32_t number = (uint32_t)(uintptr_t)argument;
    phb_datablock db = own_handle();
    unsigned char data[MARKED_DATA_BYTES], flex[MARKED_FLEX_BYTES];
    marked_reader counts;
    phb_reader reader;
    phb_frame frame;
    uint32_t pin;
    memset(&counts, 0, sizeof counts);
    CHECK(phb_datablock_admit(&db, &db.readers, &reader, number == 1 ? "copies" : "pins",
                              number == 1 ? PHB_POLICY_BLOCK : PHB_POLICY_DROP_OLDEST, 0, lease,
                              &counts.start, deadline_far()) == PHB_OK);
    counts.cursor = counts.start;
    while (!phb_load32(&is_over)) {
        int status;
        if (number == 1) {
            status = phb_datablock_read_next(&db, &counts.cursor, data, flex, &frame);
            CHECK(status != PHB_OK || marked_is_right(&frame, data, flex));
        } else {
            status = phb_datablock_pin_next(&db, &reader, &counts.cursor, flex, &frame, &pin);
            if (status == PHB_OK) { /* where it lies */
                CHECK(marked_is_right(
                    &frame, (const unsigned char *)phb_datablock_slot_data(&db, frame.slot),
                    flex));
                phb_reader_unpin(&reader, pin);
            }
        }
        if (status == PHB_OK) {
            marked_pass(&counts, &frame);
            phb_reader_pass(&reader, counts.cursor.position, counts.n_read, counts.n_lost, 0);
        }
    }
    phb_readers_leave_place(&db.readers, reader.at);
    phb_store64(&n_read[number], counts.n_read);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t producers[N_PRODUCERS], readers[N_READERS];
    CHECK(argc == 4);
    files = block_find_files(argv[1]);
    n_frames = strtoull(argv[3], NULL, 10);
    block_create(&shared, &segment, &files, (uint32_t)atoi(argv[2]), MARKED_DATA_BYTES,
                 MARKED_FLEX_BYTES);
    CHECK(phb_lease_own(files.leases, &lease) == PHB_OK);
    for (uintptr_t i = 0; i < N_READERS; i++) {
        CHECK(pthread_create(&readers[i], NULL, i ? read_admitted : read_plainly, (void *)i) == 0);
    }
    for (uintptr_t i = 0; i < N_PRODUCERS; i++) { /* odd and even numbers */
        CHECK(pthread_create(&producers[i], NULL, produce, (void *)i) == 0);
    }
    for (int i = 0; i < N_PRODUCERS; i++) {
        pthread_join(producers[i], NULL);
    }
    phb_store32(&is_over, 1);
    for (int i = 0; i < N_READERS; i++) {
        pthread_join(readers[i], NULL);
    }
    marked_check_entries(&shared);
    const uint64_t n_published = phb_load64(&shared.control->record[0].structured_buffer_version);
    phb_datablock_close(&shared, &segment, files.segment);
    phb_datablock_detach(&shared, &segment);
    printf("frames %llu\nread %llu\nread_admitted %llu\nread_pinned %llu\n",
           (unsigned long long)n_published, (unsigned long long)phb_load64(&n_read[0]),
           (unsigned long long)phb_load64(&n_read[1]), (unsigned long long)phb_load64(&n_read[2]));
    return 0;
}
