/* kill_segment.c: a process is killed after each machine instruction of a
 * segment's coming and going.
 *
 *   kill_segment DIRECTORY MAX_KILLS [SCENE]
 *
 * Whatever the victim leaves, who comes next can join or clean, and after
 * cleaning nothing is left. Stepping and scenes are those of kill_admitted.c.
 */
#include <stdint.h>

/* A function of its own, for it takes long and touches nothing shared: stepping.h. */
#pragma GCC diagnostic ignored "-Wattributes"
static __attribute__((noipa)) uint32_t phb_crc32(uint32_t, const unsigned char *, uint64_t);

#include "marked.h"
#include "stepping.h"

#include <dirent.h>

enum { N_SLOTS = 2 };

static block_files files;
static phb_datablock db;
static phb_segment segment;
static uint64_t lease, n_kills = 0, n_missed = 0, n_removed = 0, n_orphans = 0;
static stepper_record record;

/* --- Cleaning ------------------------------------------------------------ */

/* Remove what the dead left, as `pyhub clean` does: segments, then tables whose
 * segment is gone. */
static void clean(void)
{
    for (int pass = 0; pass < 2; pass++) {
        DIR *directory = opendir(files.directory);
        CHECK(directory);
        for (struct dirent *entry; (entry = readdir(directory));) {
            char path[1024];
            const int is_table = strstr(entry->d_name, "..readers.") != NULL;
            snprintf(path, sizeof path, "%s/%s", files.directory, entry->d_name);
            if (entry->d_name[0] == '.' || strstr(entry->d_name, "..leases") ||
                is_table != (pass == 1)) {
                continue;
            }
            CHECK(phb_segment_remove_dead(path, files.leases) == PHB_OK);
            n_removed++;
            n_orphans += pass;
        }
        closedir(directory);
    }
}

/* Names in the directory, without the lock file. */
static int count_names(void)
{
    int n = 0;
    DIR *directory = opendir(files.directory);
    CHECK(directory);
    for (struct dirent *entry; (entry = readdir(directory));) {
        n += entry->d_name[0] != '.' && !strstr(entry->d_name, "..leases");
    }
    closedir(directory);
    return n;
}

static void check_nothing_is_left(void)
{
    clean();
    CHECK(count_names() == 0);
}

/* --- Scenes -------------------------------------------------------------- */

static void create(void)
{
    block_create(&db, &segment, &files, N_SLOTS, MARKED_DATA_BYTES, MARKED_FLEX_BYTES);
}

static void create_and_die(void)
{
    const pid_t child = fork_child();
    if (child == 0) {
        create();
        _exit(0);
    }
    wait_for_exit(child);
}

static void attach(void) { block_attach(&db, &segment, &files, 1); }
static void own_lease(void) { CHECK(phb_lease_own(files.leases, &lease) == PHB_OK); }
static void attach_to_join(void) { attach(), own_lease(); }

static void join(void)
{
    phb_segment_join(&segment, files.segment, files.leases, lease);
}

static void attach_and_join(void) { attach_to_join(), join(); }
static void leave(void) { phb_segment_leave(segment.live, lease); }
static void close_it(void) { phb_datablock_close(&db, &segment, files.segment); }

static void remove_it(void) { phb_segment_remove_dead(files.segment, files.leases); }

/* In a child: join, publish and read; it is the owner, or it is a guest. */
static void check_next_can_join(int is_owner)
{
    const pid_t child = fork_child();
    if (child == 0) {
        int is_guest = 0;
        attach_to_join();
        db.pid = getpid();
        CHECK(phb_segment_join(&segment, files.segment, files.leases, lease) == is_owner);
        for (uint32_t i = 0; i < PHB_MAX_GUESTS; i++) {
            is_guest += phb_load64(&segment.live->guest_lease[i]) == lease;
        }
        CHECK(is_guest == !is_owner);
        CHECK(phb_segment_remove_dead(files.segment, files.leases) == PHB_IN_USE);
        for (uint64_t i = 0; i < N_SLOTS + 2; i++) {
            CHECK(marked_publish(&db, i) == PHB_OK);
        }
        marked_check_entries(&db);
        _exit(0);
    }
    wait_for_exit(child);
}

static void check_guest(void) { check_next_can_join(0); }

static void check_owner(void)
{
    check_next_can_join(1);
    check_nothing_is_left();
}

static void close_and_check(void)
{
    phb_datablock_close(&db, &segment, files.segment);
    phb_datablock_detach(&db, &segment);
    CHECK(count_names() == 0);
}

static void detach_and_check(void)
{
    CHECK(count_names() == 0 || count_names() == 2);
}

typedef struct scene {
    const char *name;
    stepper_part *once;    /* the parent, before the first victim */
    stepper_part *before;  /* the parent, before each victim */
    stepper_part *prepare; /* the victim, before its steps begin */
    stepper_part *act;     /* ... and its steps */
    stepper_part *after;   /* the parent, after each victim */
    stepper_part *at_last;
} scene;

static const scene scenes[] = {
    {"create", NULL, NULL, own_lease, create, check_nothing_is_left, NULL},
    {"close", NULL, NULL, create, close_it, check_nothing_is_left, NULL},
    {"attach", create, NULL, NULL, attach, check_guest, close_and_check},
    {"join_guest", create, NULL, attach_to_join, join, check_guest, close_and_check},
    {"leave", create, NULL, attach_and_join, leave, check_guest, close_and_check},
    {"join_owner", NULL, create_and_die, attach_to_join, join, check_owner, NULL},
    {"remove", NULL, create_and_die, NULL, remove_it, check_nothing_is_left, detach_and_check},
};

static void play(const scene *s, uint64_t at)
{
    if (s->before) {
        s->before();
    }
    const stepper_event none = {0, NULL};
    int arrived = 1;
    const pid_t victim = stepper_start(s->prepare, s->act);
    if (at == UINT64_MAX) {
        stepper_record_all(victim, &record, none);
    } else {
        arrived = stepper_run_to(victim, &record, 0, at);
    }
    stepper_kill(victim);
    n_kills++;
    n_missed += !arrived;
    s->after();
}

static void play_all(const scene *s, uint64_t max_kills)
{
    const uint64_t n_before = n_kills;
    if (s->once) {
        s->once();
    }
    play(s, UINT64_MAX);
    const uint64_t n = record.n, stride = (n + max_kills - 1) / max_kills;
    for (uint64_t at = n_kills % stride; at < n; at += stride) {
        play(s, at);
    }
    if (s->at_last) {
        s->at_last();
    }
    printf("%s_steps %llu\n%s_kills %llu\n", s->name, (unsigned long long)n, s->name,
           (unsigned long long)(n_kills - n_before));
}

int main(int argc, char **argv)
{
    CHECK(argc == 3 || argc == 4);
    files = block_find_files(argv[1]);
    const uint64_t max_kills = strtoull(argv[2], NULL, 10);
    stepper_calls[0] = (uint64_t)(uintptr_t)&snprintf;
    stepper_calls[1] = (uint64_t)(uintptr_t)&phb_crc32;
    create();
    attach_and_join(); /* resolves symbols */
    CHECK(marked_publish(&db, 1) == PHB_OK);
    close_and_check();
    for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++) {
        if (argc == 3 || strcmp(argv[3], scenes[i].name) == 0) {
            play_all(&scenes[i], max_kills);
        }
    }
    check_nothing_is_left();
    printf("kills %llu\nmissed %llu\nremoved %llu\norphans %llu\n", (unsigned long long)n_kills,
           (unsigned long long)n_missed, (unsigned long long)n_removed,
           (unsigned long long)n_orphans);
    return 0;
}
