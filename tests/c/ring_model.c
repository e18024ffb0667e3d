/* ring_model.c: random publications, each followed by a look at everything.
 *
 *   ring_model DIRECTORY N_SLOTS SEED N_RINGS N_STEPS [START]
 *
 * Two producers with mappings of their own take turns; a reader with a third
 * one compares what is there with a model (ring.h) after every step. Now and
 * then a producer dies in the middle of a step, and the other one recovers.
 */
#include "ring.h"

/* How far a producer gets before it dies. */
enum death { AFTER_BEGIN, AFTER_DATA, HALF_DATA, AFTER_FLEX, HALF_FLEX, ALL_WRITTEN, N_DEATHS };

static ring_model model;
static ring_met met;

/* In a child: begin `step`, get as far as `death` says, and be gone. */
static void die_in_step(const block_files *files, const ring_step *step, enum death death,
                        int is_killed)
{
    phb_datablock db;
    phb_segment segment;
    block_attach(&db, &segment, files, 1);
    CHECK(phb_datablock_begin(&db, deadline_far()) == PHB_OK);
    if (death == AFTER_DATA || death == HALF_DATA || death == ALL_WRITTEN) {
        void *data = phb_datablock_data(&db);
        ring_put(data, step->frame.seed,
                 death == ALL_WRITTEN ? step->frame.size
                 : death == HALF_DATA ? step->frame.size / 2
                                      : 0);
    }
    if (death == AFTER_FLEX || death == HALF_FLEX || death == ALL_WRITTEN) {
        void *flex = phb_datablock_flex(&db);
        ring_put(flex, step->object.seed,
                 death == ALL_WRITTEN ? step->object.size
                 : death == HALF_FLEX ? step->object.size / 2
                                      : 0);
    }
    if (is_killed) {
        kill(getpid(), SIGKILL);
    }
    _exit(0);
}

/* A producer dies; readers see nothing of it but that the slot it had begun
 * is gone, before the next producer comes and after. */
static void let_one_die(const block_files *files, phb_datablock *next,
                        const phb_datablock *reader, uint64_t *random)
{
    const ring_step step = ring_plan(random, 0, 0);
    const enum death death = (enum death)random_below(random, N_DEATHS);
    const int is_killed = (int)random_below(random, 2);
    const uint64_t n_recovered = phb_load64(&reader->control->n_recovered);
    const pid_t child = fork_child();
    if (child == 0) {
        die_in_step(files, &step, death, is_killed);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(is_killed ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL
                    : WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(phb_load32(&reader->control->writer_pid) == (uint32_t)child);
    if (death == AFTER_DATA || death == HALF_DATA || death == ALL_WRITTEN) {
        model.begun = model.version + 1;
    }
    ring_check_frames(&model, reader, &met);

    CHECK(phb_datablock_begin(next, deadline_far()) == PHB_RECOVERED);
    CHECK(phb_load64(&reader->control->n_recovered) == n_recovered + 1);
    ring_check_frames(&model, reader, &met);
    ring_check_entries(&model, reader);
}

/* Everything that must be refused while a publication is open, and leave it so. */
static void try_misuse(phb_datablock *db, phb_datablock *other)
{
    phb_update update = {0, PHB_FLEX_MSGPACK, 0, 0, NULL, 0};
    CHECK(phb_datablock_begin(db, 0) == PHB_MISUSE);
    CHECK(phb_datablock_data(other) == NULL && phb_datablock_flex(other) == NULL);
    CHECK(phb_datablock_end(other, &update, NULL) == PHB_MISUSE);
    CHECK(phb_datablock_abort(other) == PHB_MISUSE);
    CHECK(phb_datablock_end(db, &update, NULL) == PHB_MISUSE);
    update.zones = PHB_ZONE_FLEX;
    CHECK(phb_datablock_end(db, &update, NULL) == PHB_MISUSE);
    update.zones = PHB_ZONE_STRUCTURED;
    CHECK(phb_datablock_end(db, &update, NULL) == PHB_MISUSE);
}

/* Sizes beyond the capacity publish nothing and leave the publication open. */
static void try_too_large(phb_datablock *db, const ring_step *step)
{
    phb_update update = {step->taken, PHB_FLEX_MSGPACK, RING_FLEX_BYTES, RING_DATA_BYTES,
                         NULL, 0};
    if (step->taken & PHB_ZONE_STRUCTURED) {
        CHECK(phb_datablock_data(db) != NULL);
        update.structured_size = RING_DATA_BYTES + 1;
    }
    if (step->taken & PHB_ZONE_FLEX) {
        CHECK(phb_datablock_flex(db) != NULL);
        update.flex_size = RING_FLEX_BYTES + 1;
    }
    if (step->taken) {
        CHECK(phb_datablock_end(db, &update, NULL) == PHB_CAPACITY);
        CHECK(phb_datablock_is_mine(db));
    }
}

static const uint32_t plans[][2] = {
    /* taken, published */
    {PHB_ZONE_FLEX, PHB_ZONE_FLEX},
    {PHB_ZONE_STRUCTURED, PHB_ZONE_STRUCTURED},
    {PHB_ZONE_STRUCTURED, PHB_ZONE_STRUCTURED},
    {PHB_ZONE_FLEX | PHB_ZONE_STRUCTURED, PHB_ZONE_FLEX | PHB_ZONE_STRUCTURED},
    {PHB_ZONE_FLEX | PHB_ZONE_STRUCTURED, PHB_ZONE_FLEX | PHB_ZONE_STRUCTURED},
    {PHB_ZONE_FLEX | PHB_ZONE_STRUCTURED, PHB_ZONE_FLEX},
    {PHB_ZONE_FLEX | PHB_ZONE_STRUCTURED, PHB_ZONE_STRUCTURED},
    {PHB_ZONE_STRUCTURED, 0},
    {PHB_ZONE_FLEX, 0},
    {PHB_ZONE_FLEX | PHB_ZONE_STRUCTURED, 0},
    {0, 0},
};

/* Live through one ring, from its creation to its end; how many died in it. */
static uint64_t play(const block_files *files, uint32_t n_slots, uint64_t start,
                     uint64_t n_steps, uint64_t *random)
{
    phb_datablock producers[2], reader;
    phb_segment segments[3];
    uint64_t n_deaths = 0;
    memset(&model, 0, sizeof model);
    model.n_slots = n_slots;
    model.start = start;
    block_create(&producers[0], &segments[0], files, n_slots, RING_DATA_BYTES, RING_FLEX_BYTES);
    block_start_at(&producers[0], start);
    block_attach(&producers[1], &segments[1], files, 1);
    block_attach(&reader, &segments[2], files, 0);
    ring_check(&model, &reader, &met);

    for (uint64_t i = 0; i < n_steps; i++) {
        const uint64_t turn = random_below(random, 2);
        phb_datablock *db = &producers[turn];
        const uint32_t *plan = plans[random_below(random, sizeof plans / sizeof *plans)];
        const ring_step step = ring_plan(random, plan[0], plan[1]);
        if (random_below(random, 8) == 0) {
            let_one_die(files, db, &reader, random);
            n_deaths++;
        } else {
            CHECK(phb_datablock_begin(db, deadline_far()) == PHB_OK);
        }
        CHECK(phb_load32(&reader.control->is_writing) == 1);
        if (random_below(random, 8) == 0) {
            try_misuse(db, &producers[1 - turn]);
        }
        if (random_below(random, 8) == 0) {
            try_too_large(db, &step);
        }
        ring_write(db, &step);
        ring_apply(&model, &step);
        ring_check(&model, &reader, &met);
    }

    phb_datablock_close(&producers[0], &segments[0], files->segment);
    CHECK(phb_datablock_begin(&producers[1], deadline_far()) == PHB_CLOSED);
    ring_check(&model, &reader, &met); /* readers keep what they have */
    phb_datablock_detach(&producers[0], &segments[0]);
    phb_datablock_detach(&producers[1], &segments[1]);
    phb_datablock_detach(&reader, &segments[2]);
    return n_deaths;
}

int main(int argc, char **argv)
{
    CHECK(argc == 6 || argc == 7);
    const block_files files = block_find_files(argv[1]);
    const uint32_t n_slots = (uint32_t)atoi(argv[2]);
    uint64_t random = strtoull(argv[3], NULL, 10);
    const uint64_t n_rings = strtoull(argv[4], NULL, 10);
    const uint64_t n_steps = strtoull(argv[5], NULL, 10);
    const uint64_t start = argc == 7 ? strtoull(argv[6], NULL, 10) : 0;
    uint64_t n_deaths = 0, n_frames = 0, n_objects = 0;
    CHECK(n_slots <= RING_MAX_SLOTS);
    for (uint64_t i = 0; i < n_rings; i++) {
        n_deaths += play(&files, n_slots, start, n_steps, &random);
        n_frames += model.version;
        n_objects += model.flex_version;
    }
    ring_print(&met);
    printf("deaths %llu\nframes %llu\nobjects %llu\n", (unsigned long long)n_deaths,
           (unsigned long long)n_frames, (unsigned long long)n_objects);
    return 0;
}
