/* fuzz_attach.c: attach to damaged segments, and read whatever is accepted.
 *
 *   fuzz_attach DIRECTORY SEED N_MUTATIONS
 *
 * Each mutation starts from a good segment with frames in it. What a reader
 * accepts must lead nowhere outside the mapping and into no buffer's end:
 * compile with -fsanitize=address,undefined. Prints how many mutations of each
 * kind were accepted, and how many were refused with which status.
 */
#include "support.h"

#include <fcntl.h>

enum { N_SLOTS = 3, DATA_BYTES = 500, FLEX_BYTES = 70, MAX_FILE_BYTES = 1 << 20 };

typedef enum kind {
    CRC_WRONG,    /* random bytes of the constants */
    CRC_FIXED,    /* the same, with the checksum made right */
    FIELD,        /* one number of the constants made extreme; checksum right */
    REMEASURED,   /* other capacities, all the rest consistent with them */
    LIVE_WORDS,   /* the words that change: records, slots, flex entries */
    FILE_SIZE,    /* the file is longer or shorter than its header says */
    N_KINDS
} kind;

static const char *kind_names[N_KINDS] = {"crc_wrong",  "crc_fixed",  "field",
                                          "remeasured", "live_words", "file_size"};

static unsigned char good[MAX_FILE_BYTES], bytes[MAX_FILE_BYTES];
static uint64_t good_size, random_state;

static uint64_t extreme(void)
{
    static const uint64_t values[] = {0, 1, 2, 7, 8, 63, 64, 65, 4095, 4096, 65535, 65536, 65537,
                                      0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff,
                                      0x100000000, INT64_MAX, 1ull << 63, UINT64_MAX - 64,
                                      UINT64_MAX - 1, UINT64_MAX};
    const uint64_t n = sizeof values / sizeof *values;
    const uint64_t pick = random_below(&random_state, n + 3);
    if (pick < n) {
        return values[pick] + random_below(&random_state, 3) - 1;
    }
    return random_next(&random_state) >> random_below(&random_state, 64);
}

static void fix_checksum(void)
{
    const uint32_t checksum = phb_segment_checksum(bytes, sizeof(phb_datablock_constants));
    memcpy(bytes + offsetof(phb_segment_header, checksum), &checksum, sizeof checksum);
}

static void flip_constants(void)
{
    for (uint64_t n = 1 + random_below(&random_state, 8); n > 0; n--) {
        const uint64_t at = random_below(&random_state, sizeof(phb_datablock_constants));
        bytes[at] = (unsigned char)(bytes[at] ^ (1 + random_below(&random_state, 255)));
    }
}

/* An extreme number over an aligned word of `size` bytes in [from, to). */
static void set_word(uint64_t from, uint64_t to)
{
    const uint64_t size = random_below(&random_state, 2) ? 8 : 4;
    const uint64_t at = from + random_below(&random_state, (to - from) / size) * size;
    const uint64_t value = extreme();
    memcpy(bytes + at, &value, size);
}

/* Capacities and slots of somebody's choice, with offsets that fit to them;
 * the size of the file, or 0 if it would be too large to write here. */
static uint64_t remeasure(void)
{
    phb_datablock_constants c;
    uint64_t total;
    memcpy(&c, bytes, sizeof c);
    c.n_slots = (uint32_t)random_below(&random_state, 40);
    c.flex_zone_capacity = random_below(&random_state, 300);
    c.structured_buffer_capacity = random_below(&random_state, 3000);
    c.ndim = (uint32_t)random_below(&random_state, 10);
    for (uint32_t i = 0; i < PHB_MAX_NDIM; i++) {
        c.shape[i] = random_below(&random_state, 10) ? random_below(&random_state, 4) : extreme();
    }
    if (random_below(&random_state, 2)) { /* or the frames do not fill the slots */
        c.ndim = 1;
        c.itemsize = 1;
        c.shape[0] = c.structured_buffer_capacity;
    }
    if (!phb_datablock_measure(&c, &total) || total > MAX_FILE_BYTES) {
        return 0;
    }
    c.segment.segment_size = total;
    memcpy(bytes, &c, sizeof c);
    return total;
}

static uint64_t mutate(kind how)
{
    uint64_t size = good_size;
    memset(bytes, 0, sizeof bytes);
    memcpy(bytes, good, good_size);
    switch (how) {
    case CRC_WRONG: flip_constants(); return size;
    case CRC_FIXED: flip_constants(); break;
    case FIELD: set_word(0, offsetof(phb_datablock_constants, dtype)); break;
    case REMEASURED: size = remeasure(); break;
    case LIVE_WORDS:
        for (uint64_t n = 1 + random_below(&random_state, 6); n > 0; n--) {
            set_word(sizeof(phb_datablock_constants), sizeof(phb_datablock_constants) + 1536);
        }
        break;
    default:
        size = random_below(&random_state, 2 * good_size);
        size += size == good_size;
        break;
    }
    fix_checksum();
    return size;
}

/* Read all that could be there, into buffers of exactly the promised size. */
static uint64_t read_everything(const phb_datablock *db, const phb_segment *segment)
{
    const phb_datablock_constants *c = &db->constants;
    const unsigned char *end = segment->base + segment->size;
    CHECK((const unsigned char *)(db->slots + c->n_slots) <= end);
    CHECK((const unsigned char *)(db->entries + c->n_slots + 1) <= end);
    CHECK(db->flex_zone + c->flex_zone_stride * (c->n_slots + 1) <= end);
    CHECK(db->structured_buffer + c->structured_buffer_stride * c->n_slots <= end);

    unsigned char *data = (unsigned char *)malloc(c->structured_buffer_capacity + 1);
    unsigned char *flex = (unsigned char *)malloc(c->flex_zone_capacity + 1);
    CHECK(data && flex);
    /* One byte more than promised, so that a capacity of 0 still has a buffer. */
    data[c->structured_buffer_capacity] = flex[c->flex_zone_capacity] = 0xa5;
    phb_snapshot now;
    phb_frame frame;
    uint64_t n_read = 0;
    phb_datablock_snapshot(db, &now);
    const uint64_t first = now.position - c->n_slots - 2;
    for (uint64_t i = 0; i < c->n_slots + 6ull; i++) {
        const uint64_t position = first + i;
        const int status =
            phb_datablock_read(db, i ? &position : NULL, i % 2 ? data : NULL, flex, &frame);
        CHECK(status == PHB_OK || status == PHB_EMPTY || status == PHB_BUSY ||
              status == PHB_OVERRUN || status == PHB_SKIPPED || status == PHB_DAMAGED);
        if (status == PHB_OK) {
            CHECK(frame.size <= c->structured_buffer_capacity);
            CHECK(frame.flex_size <= c->flex_zone_capacity);
            CHECK(!frame.has_data || frame.slot < c->n_slots);
            n_read++;
        }
    }
    CHECK(data[c->structured_buffer_capacity] == 0xa5 && flex[c->flex_zone_capacity] == 0xa5);
    free(data);
    free(flex);
    return n_read;
}

static void make_good(const block_files *files)
{
    phb_datablock db;
    phb_segment segment;
    block_create(&db, &segment, files, N_SLOTS, DATA_BYTES, FLEX_BYTES);
    for (uint64_t i = 0; i < 5; i++) {
        phb_update update = {i % 3 ? PHB_ZONE_STRUCTURED : 3u, PHB_FLEX_MSGPACK, FLEX_BYTES - i,
                             DATA_BYTES - i, NULL, 0};
        CHECK(phb_datablock_begin(&db, deadline_far()) == PHB_OK);
        CHECK(phb_datablock_data(&db) && phb_datablock_flex(&db));
        CHECK(phb_datablock_end(&db, &update, NULL) == PHB_OK);
    }
    good_size = segment.size;
    CHECK(good_size <= MAX_FILE_BYTES / 2);
    memcpy(good, segment.base, good_size);
    phb_datablock_close(&db, &segment, files->segment);
    phb_datablock_detach(&db, &segment);
}

int main(int argc, char **argv)
{
    uint64_t n_accepted[N_KINDS] = {0}, n_refused[64] = {0}, n_read = 0, n_removed = 0;
    CHECK(argc == 4);
    const block_files files = block_find_files(argv[1]);
    random_state = strtoull(argv[2], NULL, 10);
    const uint64_t n_mutations = strtoull(argv[3], NULL, 10);
    make_good(&files);
    int fd = -1;
    for (uint64_t i = 0; i < n_mutations; i++) {
        const kind how = (kind)(i % N_KINDS);
        const uint64_t size = mutate(how);
        if (fd < 0) {
            fd = open(files.segment, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
            CHECK(fd >= 0);
        }
        CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, bytes, size, 0) == (ssize_t)size);
        phb_datablock db;
        phb_segment segment;
        memset(&db, 0, sizeof db);
        const int status = phb_datablock_attach(&db, &segment, files.segment, geteuid(), NULL);
        CHECK(status >= 0 && status < 64);
        if (status == PHB_OK) {
            CHECK(how != CRC_WRONG);
            n_accepted[how]++;
            n_read += read_everything(&db, &segment);
            phb_segment_detach(&segment);
        } else {
            CHECK(status != PHB_SYSTEM);
            n_refused[status]++;
        }
        if (phb_segment_remove_dead(files.segment, files.leases) == PHB_OK) {
            close(fd);
            fd = -1;
            n_removed++;
        }
    }
    for (int how = 0; how < N_KINDS; how++) {
        printf("%s %llu\n", kind_names[how], (unsigned long long)n_accepted[how]);
    }
    for (int status = 1; status < 64; status++) {
        if (n_refused[status]) {
            printf("status_%d %llu\n", status, (unsigned long long)n_refused[status]);
        }
    }
    printf("read %llu\nremoved %llu\n", (unsigned long long)n_read,
           (unsigned long long)n_removed);
    return 0;
}
