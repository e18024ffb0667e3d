/* fair.c: producers that want the lock all the time share it.
 *
 *   fair DIRECTORY N_PRODUCERS N_FRAMES FILL_US
 *
 * Each publishes in a tight loop until N_FRAMES were published by all together,
 * not counting those before the last of them began, which may be kept waiting;
 * to fill a frame takes FILL_US, so the lock is free for moments only.
 * Prints the least that one published, in per cent of an equal share; and of
 * the times that one who had the last turn came while another waited, in how
 * many per cent it was first again.
 */
#include "marked.h"

#include <sched.h>

enum { MAX_PRODUCERS = 8, N_SLOTS = 4 };

typedef struct counts {
    uint64_t n_published, n_awaited, n_first_again;
} counts;

typedef struct board {
    phb_u32 is_begun;
    phb_u32 n_ready, n_begun;
    counts each[MAX_PRODUCERS];
} board;

/* Each on a processor of its own, as far as there are so many: on one together
 * the kernel has them alternate, as who is woken comes before who woke it. */
static void stay_on(uint32_t number)
{
    cpu_set_t allowed, one;
    CHECK(sched_getaffinity(0, sizeof(allowed), &allowed) == 0);
    uint32_t ahead = number % (uint32_t)CPU_COUNT(&allowed);
    int cpu = 0;
    while (!CPU_ISSET(cpu, &allowed) || ahead-- > 0) {
        cpu++;
    }
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    CHECK(sched_setaffinity(0, sizeof(one), &one) == 0);
}

static void produce(const block_files *files, board *shared, uint32_t number,
                    uint32_t n_producers, uint64_t n_frames, int64_t fill_ns)
{
    phb_datablock db;
    phb_segment segment;
    counts *mine = &shared->each[number];
    block_attach(&db, &segment, files, 1);
    phb_add32(&shared->n_ready, 1);
    while (!phb_load32(&shared->is_begun)) {
    }
    phb_add32(&shared->n_begun, 1);
    for (uint64_t version = 0, first = 0; version < first + n_frames;) {
        const int is_awaited =
            phb_load32(&db.control->is_awaited) && phb_datablock_had_last_turn(&db);
        const uint64_t commit = db.base.commit;
        marked_begin(&db);
        mine->n_awaited += is_awaited;
        mine->n_first_again += is_awaited && db.base.commit == commit;
        const int64_t full = phb_monotonic_ns() + fill_ns;
        while (phb_monotonic_ns() < full) {
        }
        marked_write(&db, 2);
        mine->n_published++;
        version = db.base.structured_buffer_version;
        first = phb_load32(&shared->n_begun) < n_producers ? version : first;
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 5);
    const block_files files = block_find_files(argv[1]);
    const uint32_t n_producers = (uint32_t)atoi(argv[2]);
    const uint64_t n_frames = strtoull(argv[3], NULL, 10);
    const int64_t fill_ns = 1000 * atoll(argv[4]);
    phb_datablock db;
    phb_segment segment;
    pid_t children[MAX_PRODUCERS];
    board *shared = (board *)mmap(NULL, sizeof(board), PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED && n_producers <= MAX_PRODUCERS);
    block_create(&db, &segment, &files, N_SLOTS, MARKED_DATA_BYTES, MARKED_FLEX_BYTES);
    for (uint32_t i = 0; i < n_producers; i++) {
        children[i] = fork_child();
        if (children[i] == 0) {
            stay_on(i);
            produce(&files, shared, i, n_producers, n_frames, fill_ns);
            _exit(0);
        }
    }
    while (phb_load32(&shared->n_ready) < n_producers) {
    }
    phb_store32(&shared->is_begun, 1);
    for (uint32_t i = 0; i < n_producers; i++) {
        wait_for_exit(children[i]);
    }
    uint64_t least = UINT64_MAX, sum = 0, n_awaited = 0, n_first_again = 0;
    for (uint32_t i = 0; i < n_producers; i++) {
        const counts *one = &shared->each[i];
        least = one->n_published < least ? one->n_published : least;
        n_awaited += one->n_awaited;
        n_first_again += one->n_first_again;
        sum += one->n_published;
    }
    CHECK(sum >= n_frames);
    phb_datablock_close(&db, &segment, files.segment);
    phb_datablock_detach(&db, &segment);
    printf("frames %llu\nleast_percent %llu\nawaited %llu\nfirst_again_percent %llu\n",
           (unsigned long long)sum,
           (unsigned long long)(100 * least * n_producers / sum), (unsigned long long)n_awaited,
           (unsigned long long)(100 * n_first_again / (n_awaited + !n_awaited)));
    return 0;
}
