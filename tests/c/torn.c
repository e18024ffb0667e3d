/* torn.c: one writer, several readers, frames that show whether they are torn.
 *
 *   torn DIRECTORY N_SLOTS FRAME_BYTES FLEX_BYTES N_READERS N_READS MAX_FRAMES
 *
 * All words of frame n are n, and so are all words of its flex object. Each
 * reader, a process with a mapping of its own, goes on until it has read
 * N_READS frames, or one that is torn in its larger zone. The writer goes on
 * until all have, or until it has written MAX_FRAMES. Prints what was counted.
 *
 * Compiled with -DPHB_SABOTAGE_SEQUENCE the readers do not look at the
 * sequence again after a copy, and torn frames must show.
 */
#include "support.h"

#include <sys/mman.h>

enum { MAX_BYTES = 65536, MAX_READERS = 8 };

/* Shared by the processes of the test, each writing its own. */
typedef struct counts {
    uint64_t n_reads, n_torn, n_torn_flex, n_gone;
} counts;

static volatile sig_atomic_t has_finished = 0; /* some child, since last looked */

static void on_child(int number)
{
    (void)number;
    has_finished = 1;
}

static void fill(uint64_t *words, uint64_t n_bytes, uint64_t value)
{
    for (uint64_t i = 0; i < n_bytes / 8; i++) {
        words[i] = value;
    }
}

static int is_whole(const uint64_t *words, uint64_t n_bytes, uint64_t value)
{
    for (uint64_t i = 0; i < n_bytes / 8; i++) {
        if (words[i] != value) {
            return 0;
        }
    }
    return 1;
}

static void read_frames(const block_files *files, counts *mine, uint64_t n_reads,
                        uint64_t seed)
{
    static uint64_t data[MAX_BYTES / 8], flex[MAX_BYTES / 8];
    phb_datablock db;
    phb_segment segment;
    phb_frame frame;
    block_attach(&db, &segment, files, 0);
    const uint64_t *n_looked_for =
        db.constants.flex_zone_capacity > db.constants.structured_buffer_capacity
            ? &mine->n_torn_flex
            : &mine->n_torn;
    while (mine->n_reads < n_reads && *n_looked_for == 0) {
        /* Half of the time the newest, else any that is said to be there: the
         * oldest is the one that will be overwritten next. */
        phb_snapshot now;
        phb_datablock_snapshot(&db, &now);
        uint64_t version = now.structured_buffer_version;
        if (version > 0) {
            version -= random_below(&seed, now.n_filled);
        }
        const uint64_t *which = random_below(&seed, 2) ? &version : NULL;
        int status = phb_datablock_read(&db, which, data, flex, &frame);
        if (status == PHB_OK) {
            CHECK(frame.has_data && frame.size == db.constants.structured_buffer_capacity);
            CHECK(frame.flex_size == db.constants.flex_zone_capacity);
            CHECK(which ? frame.version == version
                        : frame.version >= now.structured_buffer_version);
            mine->n_torn += !is_whole(data, frame.size, frame.version) ||
                            frame.frame_id != frame.version;
            mine->n_torn_flex += !is_whole(flex, frame.flex_size, frame.version);
            mine->n_reads++;
        } else {
            CHECK(status == PHB_EMPTY || status == PHB_BUSY || status == PHB_OVERRUN);
            mine->n_gone += status != PHB_EMPTY;
        }
    }
    phb_segment_detach(&segment);
}

static void publish(phb_datablock *db, uint64_t n)
{
    static uint64_t words[MAX_BYTES / 8];
    const uint64_t data_bytes = db->constants.structured_buffer_capacity;
    const uint64_t flex_bytes = db->constants.flex_zone_capacity;
    phb_update update = {PHB_ZONE_FLEX | PHB_ZONE_STRUCTURED, PHB_FLEX_MSGPACK, flex_bytes,
                         data_bytes, &n, 0};
    fill(words, MAX_BYTES, n);
    CHECK(phb_datablock_begin(db, deadline_far()) == PHB_OK);
    phb_copy_to_shared(phb_datablock_data(db), words, data_bytes);
    phb_copy_to_shared(phb_datablock_flex(db), words, flex_bytes);
    CHECK(phb_datablock_end(db, &update, NULL) == PHB_OK);
}

/* How many readers have come to their end since the last call. */
static int reap(pid_t *readers, int n_readers)
{
    int n_ended = 0, status;
    for (int i = 0; i < n_readers; i++) {
        if (readers[i] > 0 && waitpid(readers[i], &status, WNOHANG) > 0) {
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            readers[i] = 0;
            n_ended++;
        }
    }
    return n_ended;
}

int main(int argc, char **argv)
{
    CHECK(argc == 8);
    const block_files files = block_find_files(argv[1]);
    const uint32_t n_slots = (uint32_t)atoi(argv[2]);
    const uint64_t frame_bytes = strtoull(argv[3], NULL, 10);
    const uint64_t flex_bytes = strtoull(argv[4], NULL, 10);
    const int n_readers = atoi(argv[5]);
    const uint64_t n_reads = strtoull(argv[6], NULL, 10);
    const uint64_t max_frames = strtoull(argv[7], NULL, 10);
    CHECK(frame_bytes <= MAX_BYTES && flex_bytes <= MAX_BYTES && n_readers <= MAX_READERS);
    phb_datablock db;
    phb_segment segment;
    counts total = {0, 0, 0, 0};
    counts *each = (counts *)mmap(NULL, sizeof(counts) * MAX_READERS, PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(each != MAP_FAILED);

    block_create(&db, &segment, &files, n_slots, frame_bytes, flex_bytes);
    signal(SIGCHLD, on_child);
    pid_t readers[MAX_READERS];
    for (int i = 0; i < n_readers; i++) {
        readers[i] = fork_child();
        if (readers[i] == 0) {
            read_frames(&files, &each[i], n_reads, (uint64_t)i + 1);
            _exit(0);
        }
    }
    uint64_t n_frames = 0;
    int n_left = n_readers;
    while (n_left > 0 && n_frames < max_frames) {
        publish(&db, ++n_frames);
        /* A single slot is held for nearly all of the time: leave readers some. */
        for (int spin = (int)(n_frames % 8) * 2000; spin > 0; spin--) {
            __asm__ volatile("" ::: "memory");
        }
        if (has_finished) {
            has_finished = 0;
            n_left -= reap(readers, n_readers);
        }
    }
    for (int i = 0; i < n_readers; i++) {
        if (readers[i] > 0) {
            kill(readers[i], SIGKILL);
            waitpid(readers[i], NULL, 0);
        }
    }
    phb_datablock_close(&db, &segment, files.segment);
    phb_datablock_detach(&db, &segment);
    for (int i = 0; i < n_readers; i++) {
        total.n_reads += each[i].n_reads;
        total.n_torn += each[i].n_torn;
        total.n_torn_flex += each[i].n_torn_flex;
        total.n_gone += each[i].n_gone;
    }
    printf("frames %llu\nreads %llu\ntorn %llu\ntorn_flex %llu\ngone %llu\n",
           (unsigned long long)n_frames, (unsigned long long)total.n_reads,
           (unsigned long long)total.n_torn, (unsigned long long)total.n_torn_flex,
           (unsigned long long)total.n_gone);
    return 0;
}
