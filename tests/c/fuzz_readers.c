/* fuzz_readers.c: publish, read, and pin over a block and a table whose words
 * are random.
 *
 *   fuzz_readers DIRECTORY SEED N_MUTATIONS
 *
 * In turn: the constants of the block or the table are mutated in a private
 * copy, and the checks of attach are made on it; or words that change are
 * mutated in the mapping itself, and then a producer publishes, a reader is
 * admitted, pins, and leaves. Nothing may lead outside the mappings: around
 * them are pages that nobody may touch. Prints how many were accepted, and what was done.
 *
 * Files are written once, for that would be most of the time: fuzz_attach.c
 * goes the whole way.
 */
#include "marked.h"

enum { N_SLOTS = 3 };

static uint64_t random_state;

static uint64_t extreme(void)
{
    static const uint64_t values[] = {0, 1, 2, 3, 4, 5, 7, 8, 63, 64, 65535, 65536, 0x7fffffff,
                                      0x80000000, 0xfffffffe, 0xffffffff, 0x100000000,
                                      INT64_MAX, 1ull << 63, UINT64_MAX - 1, UINT64_MAX};
    const uint64_t n = sizeof values / sizeof *values, drawn = random_next(&random_state);
    return drawn % 32 < n ? values[drawn % 32] : drawn >> (drawn % 61);
}

/* --- Constants ----------------------------------------------------------- */

static void set_word(unsigned char *bytes, uint64_t from, uint64_t to)
{
    const uint64_t size = random_below(&random_state, 2) ? 8 : 4;
    const uint64_t at = from + random_below(&random_state, (to - from) / size) * size;
    const uint64_t value = extreme();
    memcpy(bytes + at, &value, size);
}

static int mutate_block(const phb_datablock *db, uint64_t size)
{
    phb_datablock_constants c = db->constants;
    for (uint64_t n = 1 + random_below(&random_state, 3); n > 0; n--) {
        set_word((unsigned char *)&c, sizeof(phb_segment_header),
                 offsetof(phb_datablock_constants, dtype));
    }
    if (!phb_datablock_is_sound(&c, size)) {
        return 0;
    }
    const uint64_t flex_end = c.flex_zone_offset + c.flex_zone_stride * (c.n_slots + 1ull);
    const uint64_t data_end = c.structured_buffer_offset + c.structured_buffer_stride * c.n_slots;
    CHECK(c.control_offset + sizeof(phb_datablock_control) <= c.slot_table_offset);
    CHECK(c.slot_table_offset + sizeof(phb_slot) * c.n_slots <= c.flex_table_offset);
    CHECK(c.flex_table_offset + sizeof(phb_flex_entry) * (c.n_slots + 1ull) <=
          c.flex_zone_offset);
    CHECK(flex_end <= c.structured_buffer_offset && data_end <= size);
    CHECK(c.flex_zone_capacity <= c.flex_zone_stride);
    CHECK(c.structured_buffer_capacity <= c.structured_buffer_stride);
    return 1;
}

static int mutate_table(const phb_readers *table)
{
    phb_readers_constants c = table->constants;
    for (uint64_t n = 1 + random_below(&random_state, 3); n > 0; n--) {
        set_word((unsigned char *)&c, sizeof(phb_segment_header), sizeof c);
    }
    if (!phb_readers_is_sound(&c, table->segment.size)) {
        return 0;
    }
    CHECK(c.n_places >= 1);
    CHECK(c.table_offset + sizeof(phb_reader_place) * c.n_places <= table->segment.size);
    return 1;
}

/* --- Words that change --------------------------------------------------- */

/* A copy of a mapping between pages that nobody may touch; what it held first
 * can be put back. */
typedef struct arena {
    unsigned char *base, *good;
    uint64_t size;
} arena;

static arena arena_make(const unsigned char *bytes, uint64_t size)
{
    arena made;
    made.size = size;
    made.base = (unsigned char *)mmap(NULL, size + 2 * 65536, PROT_NONE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(made.base != MAP_FAILED);
    made.base += 65536;
    CHECK(mprotect(made.base, size, PROT_READ | PROT_WRITE) == 0);
    made.good = (unsigned char *)malloc(size);
    CHECK(made.good);
    memcpy(made.base, bytes, size);
    memcpy(made.good, bytes, size);
    return made;
}

/* Often enough, all places are somebody's, and many slots are pinned. */
static void fill_places(phb_readers *table, uint64_t lease)
{
    phb_store32(&table->control->gate, N_PLACES);
    for (uint32_t i = 0; i < N_PLACES; i++) {
        phb_reader_place *place = &table->places[i];
        phb_store64(&place->lease, lease);
        phb_store32(&place->policy, (uint32_t)random_below(&random_state, 6));
        phb_store64(&place->cursor, random_below(&random_state, 2) ? 4 : extreme());
        phb_store32(&place->pin[i], (uint32_t)random_below(&random_state, N_SLOTS + 2));
    }
}

/* Who blocks would block for a while, and nothing else: that is a few times enough. */
static void unblock_places(phb_readers *table)
{
    for (uint32_t i = 0; i < N_PLACES; i++) {
        phb_reader_place *place = &table->places[i];
        if (phb_load32(&place->policy) == PHB_POLICY_BLOCK) {
            phb_store32(&place->policy, PHB_POLICY_DROP_NEWEST);
        }
    }
}

typedef struct done {
    uint64_t n_published, n_full, n_interrupted, n_read, n_pinned, n_admitted, n_refused;
} done;

/* The words behind the constants and the mutex, up to the end of the tables. */
static void mutate_words(phb_datablock *db, phb_readers *table)
{
    unsigned char *block = (unsigned char *)db->control, *readers = (unsigned char *)table->control;
    const uint64_t block_end = (uint64_t)((unsigned char *)(db->entries + N_SLOTS + 1) - block);
    const uint64_t readers_end = (uint64_t)((unsigned char *)(table->places + N_PLACES) - readers);
    for (uint64_t n = 1 + random_below(&random_state, 6); n > 0; n--) {
        if (random_below(&random_state, 2)) {
            set_word(block, sizeof(phb_mutex), block_end);
        } else {
            set_word(readers, sizeof(phb_mutex), readers_end);
        }
    }
}

static void publish(phb_datablock *db, done *sum)
{
    const uint64_t id = random_below(&random_state, 1000);
    int status = phb_datablock_begin(db, 0);
    if (status != PHB_OK) {
        CHECK(status == PHB_CLOSED);
        sum->n_refused++;
        return;
    }
    status = phb_datablock_claim(db);
    CHECK(status == PHB_OK || status == PHB_FULL || status == PHB_INTERRUPTED);
    if (status != PHB_OK) {
        CHECK((status == PHB_FULL ? phb_datablock_drop(db) : phb_datablock_abort(db)) == PHB_OK);
        sum->n_full += status == PHB_FULL;
        sum->n_interrupted += status == PHB_INTERRUPTED;
        return;
    }
    CHECK(db->slot < N_SLOTS);
    if (id % 2 && !phb_datablock_flex(db)) { /* the free list leads to nowhere */
        CHECK(phb_datablock_abort(db) == PHB_OK);
        sum->n_refused++;
        return;
    }
    marked_write(db, id);
    sum->n_published++;
}

static void read_and_pin(phb_datablock *db, phb_readers *table, phb_reader *reader, done *sum)
{
    static unsigned char data[MARKED_DATA_BYTES], flex[MARKED_FLEX_BYTES];
    phb_frame frame;
    phb_snapshot now;
    phb_cursor cursor;
    uint32_t pin;
    phb_datablock_snapshot(db, &now);
    cursor = phb_cursor_start(&now);
    cursor.position -= random_below(&random_state, 4);
    if (phb_datablock_read_next(db, &cursor, data, flex, &frame) == PHB_OK) {
        CHECK(frame.size <= MARKED_DATA_BYTES && frame.flex_size <= MARKED_FLEX_BYTES);
        sum->n_read++;
    }
    if (phb_datablock_pin_next(db, reader, &cursor, flex, &frame, &pin) == PHB_OK) {
        CHECK(frame.slot < N_SLOTS && frame.size <= MARKED_DATA_BYTES && pin < PHB_READER_PINS);
        sum->n_pinned++;
        phb_reader_pass(reader, frame.position, 1, 0, 0);
        phb_reader_unpin(reader, pin);
    }
    CHECK(reader->table == table && reader->at < N_PLACES);
}

static void come_and_go(phb_readers *table, uint64_t lease, done *sum)
{
    uint32_t at;
    const int status = phb_readers_take_place(table, "fuzz", PHB_POLICY_LATEST,
                                              extreme(), lease, &at, deadline_far());
    CHECK(status == PHB_OK || status == PHB_EXISTS || status == PHB_FULL);
    if (status == PHB_OK) {
        CHECK(at < N_PLACES);
        sum->n_admitted++;
        phb_readers_leave_place(table, at);
    }
}

int main(int argc, char **argv)
{
    phb_datablock db;
    phb_segment segment;
    phb_reader reader;
    uint64_t lease, n_block = 0, n_table = 0;
    done sum;
    CHECK(argc == 4);
    const block_files files = block_find_files(argv[1]);
    random_state = strtoull(argv[2], NULL, 10);
    const uint64_t n_mutations = strtoull(argv[3], NULL, 10);
    memset(&sum, 0, sizeof sum);
    block_create(&db, &segment, &files, N_SLOTS, MARKED_DATA_BYTES, MARKED_FLEX_BYTES);
    CHECK(phb_lease_own(files.leases, &lease) == PHB_OK);
    CHECK(phb_readers_take_place(&db.readers, "pins", PHB_POLICY_BLOCK, 0, lease, &reader.at,
                                 deadline_far()) == PHB_OK);
    for (uint64_t i = 0; i < 2 * N_SLOTS; i++) {
        phb_store64(&db.readers.places[reader.at].cursor, i);
        CHECK(marked_publish(&db, i) == PHB_OK);
    }
    const arena block = arena_make(segment.base, segment.size);
    const arena table = arena_make(db.readers.segment.base, db.readers.segment.size);
    phb_segment moved = segment;
    phb_readers readers = db.readers;
    moved.base = block.base;
    moved.live = (phb_segment_live *)(block.base + ((unsigned char *)segment.live - segment.base));
    readers.segment.base = table.base;
    readers.segment.live =
        (phb_segment_live *)(table.base + phb_segment_live_offset(sizeof readers.constants));
    readers.constants.patience_ns = INT64_MAX;
    phb_readers_bind(&readers, files.leases);
    phb_datablock fuzzed = db;
    fuzzed.readers = readers;
    phb_datablock_bind(&fuzzed, &moved);
    memset(&reader, 0, sizeof reader);
    reader.table = &readers;
    for (uint64_t i = 0; i < n_mutations; i++) {
        switch (i % 8) {
        case 0: n_block += (uint64_t)mutate_block(&db, segment.size); break;
        case 1: n_table += (uint64_t)mutate_table(&db.readers); break;
        default:
            if (i % 16 == 2) { /* each mapping lives through twelve mutations */
                memcpy(block.base, block.good,
                       (size_t)((unsigned char *)fuzzed.flex_zone - block.base));
                memcpy(table.base, table.good, table.size);
            }
            if (i % 64 == 10) {
                fill_places(&readers, lease);
            }
            mutate_words(&fuzzed, &readers);
            if (i % 1048576 != 10) {
                unblock_places(&readers);
            }
            fuzzed.base.commit = 0; /* the record is read anew */
            publish(&fuzzed, &sum);
            read_and_pin(&fuzzed, &readers, &reader, &sum);
            if (i % 64 == 7) { /* it asks the kernel who lives */
                come_and_go(&readers, lease, &sum);
            }
        }
    }
    phb_datablock_close(&db, &segment, files.segment);
    phb_datablock_detach(&db, &segment);
    free(block.good);
    free(table.good);
    printf("block %llu\ntable %llu\npublished %llu\nfull %llu\ninterrupted %llu\nread %llu\n",
           (unsigned long long)n_block, (unsigned long long)n_table,
           (unsigned long long)sum.n_published, (unsigned long long)sum.n_full,
           (unsigned long long)sum.n_interrupted, (unsigned long long)sum.n_read);
    printf("pinned %llu\nadmitted %llu\nrefused %llu\n", (unsigned long long)sum.n_pinned,
           (unsigned long long)sum.n_admitted, (unsigned long long)sum.n_refused);
    return 0;
}
