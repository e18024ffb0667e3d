/* support.h: what the C tests share: checks that say where they failed, random
 * numbers from a seed, and DataBlocks in a directory of the test's own.
 */
#ifndef TESTS_SUPPORT_H
#define TESTS_SUPPORT_H

#include <pyhub/datablock.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define CHECK(condition)                                                             \
    do {                                                                             \
        if (!(condition)) {                                                          \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            _exit(1);                                                                \
        }                                                                            \
    } while (0)

/* --- Random numbers ------------------------------------------------------ */

/* SplitMix64 (Steele, Lea, Flood 2014): every seed gives a good sequence. */
static inline uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline uint64_t random_below(uint64_t *state, uint64_t n)
{
    return random_next(state) % n;
}

/* --- DataBlocks ---------------------------------------------------------- */

typedef struct block_files {
    char directory[256], segment[512], leases[512];
} block_files;

static inline block_files block_find_files(const char *directory)
{
    block_files files;
    CHECK(strlen(directory) < sizeof files.directory);
    snprintf(files.directory, sizeof files.directory, "%s", directory);
    snprintf(files.segment, sizeof files.segment, "%s/pyhub.%u.test", directory,
             (unsigned)geteuid());
    snprintf(files.leases, sizeof files.leases, "%s/pyhub.%u..leases", directory,
             (unsigned)geteuid());
    return files;
}

enum { N_PLACES = 5, PATIENCE_NS = 50000000 };

static inline void block_create(phb_datablock *db, phb_segment *segment,
                                const block_files *files, uint32_t n_slots,
                                uint64_t data_capacity, uint64_t flex_capacity)
{
    uint64_t lease;
    memset(db, 0, sizeof *db);
    strcpy(db->constants.dtype, "|u1");
    db->constants.itemsize = 1;
    db->constants.ndim = 1;
    db->constants.shape[0] = data_capacity;
    db->constants.structured_buffer_capacity = data_capacity;
    db->constants.flex_zone_capacity = flex_capacity;
    db->constants.n_slots = n_slots;
    CHECK(phb_lease_own(files->leases, &lease) == PHB_OK);
    CHECK(phb_datablock_create(db, segment, files->directory, files->segment, "test", N_PLACES,
                               PATIENCE_NS, files->leases, lease) == PHB_OK);
}

/* As if `start` frames, objects and drops had been there before: every counter
 * that goes up for ever begins so. Before anybody else attaches. */
static inline void block_start_at(phb_datablock *db, uint64_t start)
{
    const uint32_t n_slots = db->constants.n_slots;
    phb_record *record = &db->control->record[start & 1];
    phb_store64(&record->flex_index, PHB_NO_ENTRY);
    phb_store64(&record->newest_slot, n_slots - 1);
    phb_store64(&record->position, start);
    phb_store64(&record->structured_buffer_version, start);
    phb_store64(&record->flex_zone_version, start);
    phb_store64(&record->n_dropped, start);
    phb_store64(&db->control->n_dropped, start);
    phb_store64(&db->control->commit, start);
    for (uint32_t i = 0; i < n_slots; i++) { /* each was begun a lap ago, and given up */
        phb_store64(&db->slots[i].seq, 2 * (start + 1 + i - n_slots) - 1);
    }
    phb_store64(&db->known_commit, start - 1); /* as in phb_datablock_bind */
    phb_store64(&db->readers.control->awaited, start - 1); /* as in phb_readers_create */
}

static inline void block_attach(phb_datablock *db, phb_segment *segment,
                                const block_files *files, int writable)
{
    memset(db, 0, sizeof *db);
    CHECK(phb_datablock_attach(db, segment, files->segment, geteuid(),
                               writable ? files->leases : NULL) == PHB_OK);
}

/* The deadline of a wait that nobody is expected to need. */
static inline int64_t deadline_far(void)
{
    return phb_monotonic_ns() + 60000000000ll;
}

/* --- Processes ----------------------------------------------------------- */

/* A fork whose child does not outlive its parent. */
static inline pid_t fork_child(void)
{
    fflush(stdout);
    pid_t parent = getpid(), child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        CHECK(getppid() == parent);
    }
    return child;
}

static inline void wait_for_exit(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

#endif
