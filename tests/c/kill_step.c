/* kill_step.c: a producer is killed after each machine instruction of a
 * publication, and its successor after each one of the repair.
 *
 *   kill_step DIRECTORY N_SLOTS MAX_KILLS
 *
 * The victim is a child that the parent moves on instruction by instruction
 * (ptrace) and then kills. Wherever that was, the whole publication is there
 * or nothing of it, the next producer gets the lock, and the model (ring.h)
 * still holds. Exits with 77 where ptrace is not permitted.
 *
 * A step takes tens of microseconds, and each kill starts from the beginning:
 * where an operation has more than MAX_KILLS instructions, the kills are
 * spread over it evenly.
 */
#include "ring.h"

#include <sys/ptrace.h>

static ring_model model;
static ring_met met;
static uint64_t n_kills = 0, n_recovered = 0, n_committed = 0;

enum { SKIP = 77, WATCHDOG_S = 800 };

/* --- The victim ---------------------------------------------------------- */

/* Which part of a publication is done instruction by instruction. */
typedef enum scene { IN_BEGIN, IN_END } scene;

static void act(phb_datablock *db, const ring_step *step, scene where)
{
    if (where == IN_BEGIN) {
        raise(SIGSTOP);
    }
    const int status = phb_datablock_begin(db, deadline_far());
    if (step->taken & PHB_ZONE_STRUCTURED) {
        phb_datablock_data(db);
    }
    if (step->taken & PHB_ZONE_FLEX) {
        phb_datablock_flex(db);
    }
    if (where == IN_END) {
        ring_put_zones(db, step);
        raise(SIGSTOP);
        ring_end(db, step);
    }
    raise(SIGSTOP);
    CHECK(status == PHB_OK || status == PHB_RECOVERED);
}

static pid_t start_victim(phb_datablock *db, const ring_step *step, scene where)
{
    const pid_t child = fork_child();
    int status;
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL)) {
            _exit(SKIP);
        }
        db->pid = getpid(); /* a copy of the handle; the parent's is not touched */
        act(db, step, where);
        _exit(1);
    }
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == SKIP) {
        fprintf(stderr, "ptrace is not permitted here\n");
        exit(SKIP);
    }
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    return child;
}

/* Move the victim on by up to `n` instructions; how many it made before its
 * second stop. */
static uint64_t move_on(pid_t victim, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        int status;
        CHECK(ptrace(PTRACE_SINGLESTEP, victim, NULL, NULL) == 0);
        CHECK(waitpid(victim, &status, 0) == victim && WIFSTOPPED(status));
        if (WSTOPSIG(status) == SIGSTOP) {
            return i;
        }
        CHECK(WSTOPSIG(status) == SIGTRAP);
    }
    return n;
}

static void end_victim(pid_t victim)
{
    int status;
    kill(victim, SIGKILL);
    CHECK(waitpid(victim, &status, 0) == victim && WIFSIGNALED(status));
}

/* --- The survivor -------------------------------------------------------- */

/* What the dead left: bring the model up to date with what is public, and see
 * that nothing else is different. */
static void look_at_remains(const phb_datablock *reader, const ring_step *step)
{
    phb_snapshot now;
    phb_datablock_snapshot(reader, &now);
    if (now.commit == model.commit + 1) {
        ring_apply(&model, step);
        n_committed++;
    } else {
        const phb_slot *next = &reader->slots[(now.newest_slot + 1) % model.n_slots];
        if (phb_load64(&next->seq) >= 2 * model.version + 1) {
            model.begun = model.version + 1;
        }
    }
    ring_check_frames(&model, reader, &met);
}

/* The next producer comes, and publishes `step`. */
static void go_on(phb_datablock *db, const phb_datablock *reader, const ring_step *step)
{
    const int status = phb_datablock_begin(db, deadline_far());
    CHECK(status == PHB_OK || status == PHB_RECOVERED);
    n_recovered += status == PHB_RECOVERED;
    if (status == PHB_RECOVERED) {
        ring_check_entries(&model, reader);
    }
    ring_check_frames(&model, reader, &met);
    ring_write(db, step);
    ring_apply(&model, step);
    ring_check(&model, reader, &met);
}

/* --- Where to kill ------------------------------------------------------- */

static ring_step plan_small(uint64_t *random, uint32_t zones)
{
    ring_step step = ring_plan(random, zones, zones);
    step.frame.size = step.object.size = 9; /* the copy itself is not the point */
    return step;
}

/* Kill a producer of `zones` after `at` instructions; how many it has. */
static uint64_t kill_at(phb_datablock *db, const phb_datablock *reader, uint32_t zones,
                        scene where, uint64_t at, uint64_t *random)
{
    const ring_step step = plan_small(random, zones);
    const pid_t victim = start_victim(db, &step, where);
    const uint64_t n = move_on(victim, at);
    end_victim(victim);
    n_kills++;
    look_at_remains(reader, &step);
    return n;
}

static uint64_t stride_for(uint64_t n_instructions, uint64_t max_kills)
{
    CHECK(n_instructions > 0);
    return (n_instructions + max_kills - 1) / max_kills;
}

static void kill_in_publication(phb_datablock *db, const phb_datablock *reader, scene where,
                                uint64_t max_kills, uint64_t *random)
{
    for (uint32_t zones = 1; zones <= 3; zones++) {
        uint64_t stride = 1, n = 1;
        for (uint64_t at = 0; at <= n; at += stride) {
            if (at == 0) {
                n = kill_at(db, reader, zones, where, UINT64_MAX, random);
                stride = stride_for(n, max_kills);
            } else {
                kill_at(db, reader, zones, where, at, random);
            }
            const uint32_t any = (uint32_t)(1 + random_below(random, 3));
            const ring_step next = ring_plan(random, any, any);
            go_on(db, reader, &next);
        }
    }
}

/* A first producer dies at any place of its end, a second one at each
 * instruction of the begin that repairs. */
static void kill_in_repair(phb_datablock *db, const phb_datablock *reader, uint64_t max_kills,
                           uint64_t *random)
{
    const uint64_t n_end = kill_at(db, reader, 3, IN_END, UINT64_MAX, random);
    uint64_t stride = 1, n = 1;
    for (uint64_t at = 0; at <= n; at += stride) {
        const uint32_t zones = (uint32_t)(1 + random_below(random, 3));
        kill_at(db, reader, zones, IN_END, random_below(random, n_end), random);
        if (at == 0) {
            n = kill_at(db, reader, 0, IN_BEGIN, UINT64_MAX, random);
            stride = stride_for(n, max_kills);
        } else {
            kill_at(db, reader, 0, IN_BEGIN, at, random);
        }
        const ring_step next = ring_plan(random, 3, 3);
        go_on(db, reader, &next);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 4);
    const block_files files = block_find_files(argv[1]);
    const uint32_t n_slots = (uint32_t)atoi(argv[2]);
    const uint64_t max_kills = strtoull(argv[3], NULL, 10);
    uint64_t random = n_slots;
    phb_datablock db, reader;
    phb_segment segments[2];
    alarm(WATCHDOG_S);
    model.n_slots = n_slots;
    block_create(&db, &segments[0], &files, n_slots, RING_DATA_BYTES, RING_FLEX_BYTES);
    block_attach(&reader, &segments[1], &files, 0);
    for (uint64_t i = 0; i < 2 * n_slots; i++) { /* a full ring; also resolves symbols */
        const ring_step step = ring_plan(&random, 3, 3);
        go_on(&db, &reader, &step);
    }
    kill_in_publication(&db, &reader, IN_BEGIN, max_kills, &random);
    kill_in_publication(&db, &reader, IN_END, max_kills, &random);
    kill_in_repair(&db, &reader, max_kills, &random);
    phb_datablock_close(&db, &segments[0], files.segment);
    phb_datablock_detach(&db, &segments[0]);
    phb_datablock_detach(&reader, &segments[1]);
    ring_print(&met);
    printf("kills %llu\nrecovered %llu\ncommitted %llu\n", (unsigned long long)n_kills,
           (unsigned long long)n_recovered, (unsigned long long)n_committed);
    return 0;
}
