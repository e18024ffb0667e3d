/* sleepers.c: nobody who sleeps on the commit word is left asleep.
 *
 *   sleepers DIRECTORY rounds SEED N_ROUNDS SPIN_NS KILL_EVERY
 *   sleepers DIRECTORY hidden
 *   sleepers DIRECTORY readers SPIN_NS N_KILLED
 *   sleepers DIRECTORY produce N_FRAMES
 *
 * rounds: in each, two producers publish at the same time, a few times each,
 * while four readers sleep until something is published. In one of KILL_EVERY
 * rounds a reader is killed, and another comes. hidden: one publish, by a
 * producer that is slow to look who sleeps; meanwhile a second reader has seen
 * it and sleeps again. readers: two that sleep, or spin, until stdin ends, some
 * killed while they sleep; for another process that does `produce` and that the
 * test traces.
 *
 * WHO IS LEFT ASLEEP is not decided by a clock. A sleep here never ends by
 * itself, and tells the kernel on which commit it sleeps, as a bit. When every
 * producer has come back from its publish, the parent wakes those who sleep on
 * any other commit than the newest. The kernel says how many there are; each of
 * them was missed. (A producer's wake goes to all, whatever their bits.)
 *
 * Where it matters processes pause now and then: a reader between its look and
 * what it says, a producer between its commit and its look for sleepers.
 */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* What the headers ask of the system goes through these. */
static long watched_syscall(long number, ...);
static int watched_clock(clockid_t clock, struct timespec *now);
static int watched_unlock(pthread_mutex_t *mutex);
#define syscall(...) watched_syscall(__VA_ARGS__)
#define clock_gettime(clock, now) watched_clock(clock, now)
#define pthread_mutex_unlock(mutex) watched_unlock(mutex)

#include "marked.h"

#include <sched.h>

enum { N_READERS = 4, N_PRODUCERS = 2, N_SLOTS = 4, MOST_PER_ROUND = 3 };

/* One per process, on lines of its own. */
typedef struct place {
    phb_u64 seen;        /* a reader's: the commit that it knows */
    phb_u32 is_sleeping; /* ... it is in the futex, or on the way */
    phb_u32 is_done;     /* a producer's: the last round that it took part in */
    uint64_t n_woken, n_moved, n_published, n_wakes, n_in_vain;
    unsigned char rest[72];
} place;

typedef struct board {
    phb_u32 round;
    phb_u32 may_look; /* the producer of `hidden` may look who sleeps */
    unsigned char rest[120];
    place readers[N_READERS], producers[N_PRODUCERS];
} board;

static board *shared;
static place *mine;            /* NULL in the parent */
static uint64_t chance;        /* one of `chance` moments is a pause; 0: none */
static uint64_t random_state;
static int waits_to_look;      /* hidden: between unlock and look */

/* --- What the headers ask of the system ---------------------------------- */

static void nap(int64_t ns)
{
    const struct timespec length = {0, ns};
    nanosleep(&length, NULL);
}

static void pause_maybe(void)
{
    if (chance && random_below(&random_state, chance) == 0) {
        const uint64_t how = random_below(&random_state, 8);
        if (how < 4) {
            sched_yield();
        } else {
            nap((int64_t)random_below(&random_state, 200000));
        }
    }
}

static int watched_clock(clockid_t clock, struct timespec *now)
{
    pause_maybe();
    return (clock_gettime)(clock, now);
}

static int watched_unlock(pthread_mutex_t *mutex)
{
    const int error = (pthread_mutex_unlock)(mutex);
    pause_maybe();
    while (waits_to_look && !phb_load32_acquire(&shared->may_look)) {
        sched_yield();
    }
    return error;
}

static uint32_t bit_of(uint64_t commit)
{
    return 1u << commit % 32;
}

static long watched_sleep(const uint32_t *word, uint32_t seen)
{
    phb_store32(&mine->is_sleeping, 1);
    const long answer =
        (syscall)(SYS_futex, word, FUTEX_WAIT_BITSET, seen, NULL, NULL, bit_of(seen));
    const int error = errno;
    phb_store32(&mine->is_sleeping, 0);
    CHECK(answer == 0 || error == EAGAIN || error == EINTR);
    mine->n_woken += answer == 0;
    mine->n_moved += answer != 0;
    errno = error;
    return answer;
}

static long watched_syscall(long number, ...)
{
    va_list rest;
    va_start(rest, number);
    if (number != SYS_futex) { /* membarrier */
        const int command = va_arg(rest, int);
        va_end(rest);
        return (syscall)(number, command, 0);
    }
    const uint32_t *word = va_arg(rest, const uint32_t *);
    const int operation = va_arg(rest, int);
    const uint32_t value = va_arg(rest, uint32_t);
    va_end(rest);
    if (operation == FUTEX_WAIT) {
        return watched_sleep(word, value);
    }
    CHECK(operation == FUTEX_WAKE);
    const long n = (syscall)(SYS_futex, word, FUTEX_WAKE, value, NULL, NULL, 0);
    if (mine) {
        mine->n_wakes++;
        mine->n_in_vain += n == 0;
    }
    return n;
}

/* Wake who sleeps on another commit than the newest; how many. No producer is
 * between its commit and the end of its wake. */
static uint64_t wake_missed(const phb_datablock *db)
{
    const uint64_t commit = phb_load64_acquire(&db->control->commit);
    const long n = (syscall)(SYS_futex, phb_low_half(&db->control->commit), FUTEX_WAKE_BITSET,
                             INT32_MAX, NULL, NULL, ~bit_of(commit));
    CHECK(n >= 0);
    return (uint64_t)n;
}

/* --- Processes ----------------------------------------------------------- */

/* Wait for everything that is published, for ever. */
static void be_reader(const block_files *files, place *of_mine, int64_t spin_ns)
{
    phb_datablock db;
    phb_segment segment;
    mine = of_mine;
    block_attach(&db, &segment, files, 1);
    const phb_waiting patience = {spin_ns, &db.readers.control->awaited};
    uint64_t seen = phb_load64_acquire(&db.control->commit);
    for (;;) {
        phb_store64_release(&mine->seen, seen);
        const int status =
            phb_wait_change(&db.control->commit, seen, deadline_far(), &patience);
        CHECK(status == PHB_OK || status == PHB_INTERRUPTED);
        seen = phb_load64_acquire(&db.control->commit);
        pause_maybe();
    }
}

static pid_t start_reader(const block_files *files, uint32_t number, int64_t spin_ns,
                          uint64_t seed)
{
    place *of_it = &shared->readers[number];
    phb_store64(&of_it->seen, UINT64_MAX);
    phb_store32(&of_it->is_sleeping, 0);
    const pid_t child = fork_child();
    if (child == 0) {
        random_state = seed;
        be_reader(files, of_it, spin_ns);
    }
    return child;
}

static void publish(phb_datablock *db)
{
    marked_begin(db);
    marked_write(db, 2);
    mine->n_published++;
}

static void be_producer(const block_files *files, place *of_mine, uint32_t n_rounds)
{
    phb_datablock db;
    phb_segment segment;
    mine = of_mine;
    block_attach(&db, &segment, files, 1);
    for (uint32_t round = 1; round <= n_rounds; round++) {
        while (phb_load32_acquire(&shared->round) < round) {
            sched_yield();
        }
        for (uint64_t n = random_below(&random_state, MOST_PER_ROUND + 1); n; n--) {
            pause_maybe();
            publish(&db);
        }
        phb_store32_release(&mine->is_done, round);
    }
}

static void end_reader(pid_t child)
{
    CHECK(kill(child, SIGKILL) == 0);
    CHECK(waitpid(child, NULL, 0) == child);
}

/* Until it sleeps in the kernel, and not in a pause. */
static void wait_for_sleep(pid_t child, const place *of_it)
{
    char path[64], line[256], *state;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)child);
    for (;;) {
        FILE *file = fopen(path, "r");
        CHECK(file && fgets(line, sizeof line, file));
        fclose(file);
        state = strrchr(line, ')');
        CHECK(state);
        if (phb_load32(&of_it->is_sleeping) && state[2] == 'S') {
            return;
        }
        nap(100000);
    }
}

static void wait_for_seen(const place *of_it, uint64_t commit)
{
    while (phb_load64_acquire(&of_it->seen) != commit) {
        nap(20000);
    }
}

/* --- What is shown ------------------------------------------------------- */

static void do_rounds(const phb_datablock *db, const block_files *files, uint64_t seed,
                      uint32_t n_rounds, int64_t spin_ns, uint32_t kill_every)
{
    pid_t readers[N_READERS], producers[N_PRODUCERS];
    uint64_t n_missed = 0, n_killed = 0;
    random_state = seed;
    chance = 4;
    for (uint32_t i = 0; i < N_READERS; i++) {
        readers[i] = start_reader(files, i, spin_ns, random_next(&random_state));
    }
    for (uint32_t i = 0; i < N_PRODUCERS; i++) {
        producers[i] = fork_child();
        if (producers[i] == 0) {
            random_state += 1000 + i;
            be_producer(files, &shared->producers[i], n_rounds);
            _exit(0);
        }
    }
    for (uint32_t round = 1; round <= n_rounds; round++) {
        const uint32_t victim = (uint32_t)random_below(&random_state, N_READERS);
        const int has_victim = random_below(&random_state, kill_every) == 0;
        phb_store32_release(&shared->round, round);
        if (has_victim) {
            pause_maybe();
            end_reader(readers[victim]);
            n_killed++;
        }
        for (uint32_t i = 0; i < N_PRODUCERS; i++) {
            while (phb_load32_acquire(&shared->producers[i].is_done) < round) {
                nap(20000);
            }
        }
        n_missed += wake_missed(db);
        if (has_victim) {
            readers[victim] = start_reader(files, victim, spin_ns, random_next(&random_state));
        }
        for (uint32_t i = 0; i < N_READERS; i++) {
            wait_for_seen(&shared->readers[i], phb_load64_acquire(&db->control->commit));
        }
        nap((int64_t)random_below(&random_state, 200000));
    }
    place sum = {0};
    for (uint32_t i = 0; i < N_PRODUCERS; i++) {
        wait_for_exit(producers[i]);
        sum.n_published += shared->producers[i].n_published;
        sum.n_wakes += shared->producers[i].n_wakes;
        sum.n_in_vain += shared->producers[i].n_in_vain;
    }
    for (uint32_t i = 0; i < N_READERS; i++) {
        end_reader(readers[i]);
        sum.n_woken += shared->readers[i].n_woken;
        sum.n_moved += shared->readers[i].n_moved;
    }
    CHECK(phb_load64(&db->control->commit) == sum.n_published);
    printf("published %llu\nwakes %llu\nin_vain %llu\nwoken %llu\nmoved %llu\nkilled %llu\n"
           "missed %llu\n",
           (unsigned long long)sum.n_published, (unsigned long long)sum.n_wakes,
           (unsigned long long)sum.n_in_vain, (unsigned long long)sum.n_woken,
           (unsigned long long)sum.n_moved, (unsigned long long)n_killed,
           (unsigned long long)n_missed);
}

static void do_hidden(const phb_datablock *db, const block_files *files)
{
    const pid_t first = start_reader(files, 0, 0, 0);
    wait_for_sleep(first, &shared->readers[0]);
    const pid_t producer = fork_child();
    if (producer == 0) {
        phb_datablock own;
        phb_segment segment;
        mine = &shared->producers[0];
        block_attach(&own, &segment, files, 1);
        waits_to_look = 1;
        publish(&own);
        _exit(0);
    }
    while (phb_load64_acquire(&db->control->commit) == 0) {
        nap(20000);
    }
    const pid_t second = start_reader(files, 1, 0, 0);
    wait_for_sleep(second, &shared->readers[1]);
    phb_store32_release(&shared->may_look, 1);
    wait_for_exit(producer);
    const uint64_t n_missed = wake_missed(db);
    wait_for_seen(&shared->readers[0], 1);
    end_reader(first);
    end_reader(second);
    printf("missed %llu\n", (unsigned long long)n_missed);
}

static void do_readers(const block_files *files, int64_t spin_ns, uint32_t n_killed)
{
    pid_t readers[2];
    for (uint32_t i = 0; i < 2; i++) {
        readers[i] = start_reader(files, i, spin_ns, 0);
        wait_for_seen(&shared->readers[i], 0);
        if (spin_ns < PHB_SPIN_FOREVER) {
            wait_for_sleep(readers[i], &shared->readers[i]);
        }
        if (i < n_killed) {
            end_reader(readers[i]);
        }
    }
    puts("ready 1");
    fflush(stdout);
    CHECK(getchar() == EOF);
    for (uint32_t i = n_killed; i < 2; i++) {
        end_reader(readers[i]);
    }
}

/* Between two calls of getppid: what is traced. */
static void do_produce(const block_files *files, uint64_t n_frames)
{
    phb_datablock db;
    phb_segment segment;
    mine = &shared->producers[0];
    block_attach(&db, &segment, files, 1);
    getppid();
    for (; n_frames; n_frames--) {
        publish(&db);
    }
    getppid();
    printf("wakes %llu\n", (unsigned long long)mine->n_wakes);
}

int main(int argc, char **argv)
{
    CHECK(argc >= 3);
    const block_files files = block_find_files(argv[1]);
    const char *what = argv[2];
    phb_datablock db;
    phb_segment segment;
    shared = (board *)mmap(NULL, sizeof(board), PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    if (strcmp(what, "produce") == 0) {
        CHECK(argc == 4);
        do_produce(&files, strtoull(argv[3], NULL, 10));
        return 0;
    }
    block_create(&db, &segment, &files, N_SLOTS, MARKED_DATA_BYTES, MARKED_FLEX_BYTES);
    if (strcmp(what, "rounds") == 0) {
        CHECK(argc == 7);
        do_rounds(&db, &files, strtoull(argv[3], NULL, 10), (uint32_t)atoi(argv[4]),
                  atoll(argv[5]), (uint32_t)atoi(argv[6]));
    } else if (strcmp(what, "hidden") == 0) {
        do_hidden(&db, &files);
    } else {
        CHECK(argc == 5 && strcmp(what, "readers") == 0);
        const int64_t spin_ns = atoll(argv[3]);
        do_readers(&files, spin_ns < 0 ? PHB_SPIN_FOREVER : spin_ns, (uint32_t)atoi(argv[4]));
    }
    phb_datablock_close(&db, &segment, files.segment);
    phb_datablock_detach(&db, &segment);
    return 0;
}
