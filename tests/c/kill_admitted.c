/* kill_admitted.c: with admitted readers about, a producer or a reader is killed
 * after each machine instruction of each thing that it can do.
 *
 *   kill_admitted DIRECTORY N_SLOTS MAX_KILLS [SCENE]
 *
 * A scene says who else is there, what the victim prepares, and what it is
 * killed in (stepping.h). Whatever it leaves, the next producer gets the lock,
 * waits for nobody, uses every slot within two laps, readers count exactly, the
 * parameters' entries add up, and every place in the table can be had. Where an
 * operation has more than MAX_KILLS instructions, the kills are spread evenly.
 * Exits with 77 where ptrace is not permitted.
 */
#include "marked.h"
#include "stepping.h"

/* Steps are slow, and a reader is given up by the clock: none is before its time. */
#define PATIENT_NS 10000000000ull

static block_files files;
static uint32_t n_slots;
static phb_datablock db, plain;        /* the owner's, and a reader's */
static phb_segment segments[2];
static marked_reader follower;         /* reads all on `plain` */
static phb_reader mine, theirs;        /* admitted: the parent's, and the victim's */
static uint32_t my_pin, their_pin;
static int is_admitted = 0, is_pinned = 0;
static uint64_t pinned_id, next_id = 2, n_kills = 0, n_missed = 0, n_recovered = 0;
static int64_t max_wait_ns = 0;
static unsigned char data[MARKED_DATA_BYTES], flex[MARKED_FLEX_BYTES];
static stepper_record record;

static void publish(void)
{
    CHECK(marked_publish(&db, next_id++) == PHB_OK);
}

/* --- Readers, quickly ---------------------------------------------------- */

/* A place as of an admission at a time when no publication is open, without
 * the fence in all processors that takes milliseconds. */
static void take_place(phb_reader *reader, const char *name, uint32_t policy)
{
    uint64_t lease;
    phb_snapshot now;
    CHECK(phb_lease_own(files.leases, &lease) == PHB_OK);
    phb_datablock_snapshot(&plain, &now);
    memset(reader, 0, sizeof *reader);
    reader->table = &db.readers;
    CHECK(phb_readers_take_place(&db.readers, name, policy, now.position - 1, lease, &reader->at,
                                 deadline_far()) == PHB_OK);
}

static void pin_at(phb_reader *reader, uint64_t behind, uint32_t *pin)
{
    phb_snapshot now;
    phb_frame frame;
    phb_datablock_snapshot(&plain, &now);
    const uint64_t position = now.position - behind;
    CHECK(phb_datablock_pin(&plain, reader, &position, flex, &frame, pin) == PHB_OK);
    memcpy(data, phb_datablock_slot_data(&plain, frame.slot), frame.size);
    CHECK(marked_is_right(&frame, data, flex));
}

static void be_latest(void) { take_place(&mine, "mine", PHB_POLICY_LATEST), is_admitted = 1; }
static void be_blocking(void) { take_place(&mine, "mine", PHB_POLICY_BLOCK), is_admitted = 1; }
static void be_keeping(void) { take_place(&mine, "mine", PHB_POLICY_DROP_NEWEST), is_admitted = 1; }

/* So that the next frame is in the way of who has not read. */
static void fill_lap(void)
{
    for (uint32_t i = 0; i + 1 < n_slots; i++) {
        publish();
    }
}

static void block_a_lap(void) { be_blocking(), fill_lap(); }
static void keep_a_lap(void) { be_keeping(), fill_lap(); }

static void pin_the_oldest(void)
{
    be_latest();
    pin_at(&mine, n_slots - 1, &my_pin);
    memcpy(&pinned_id, data, sizeof pinned_id);
    is_pinned = 1;
}

static void let_go(void)
{
    phb_snapshot now;
    phb_datablock_snapshot(&plain, &now);
    phb_reader_pass(&mine, now.position, 0, 0, 0);
}

/* A reader that blocks, holds the oldest frame, and is dead. */
static void leave_a_dead_reader(void)
{
    const pid_t child = fork_child();
    if (child == 0) {
        take_place(&theirs, "dead", PHB_POLICY_BLOCK);
        pin_at(&theirs, n_slots - 1, &their_pin);
        phb_reader_pass(&theirs, 0, 0, 0, 0);
        raise(SIGKILL);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
}

/* A producer that has filled everything but not published, and is dead. */
static void leave_a_dead_producer(void)
{
    be_latest();
    const pid_t child = fork_child();
    if (child == 0) {
        db.pid = getpid();
        marked_begin(&db);
        marked_fill(phb_datablock_data(&db), 3, MARKED_DATA_BYTES);
        marked_fill(phb_datablock_flex(&db), 3, MARKED_FLEX_BYTES);
        raise(SIGKILL);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
}

/* Somebody who died with the table's lock. */
static void leave_a_dead_lock(void)
{
    const pid_t child = fork_child();
    if (child == 0) {
        CHECK(phb_mutex_trylock(&db.readers.control->lock) == PHB_OK);
        raise(SIGKILL);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
}

/* --- What victims prepare, and do ---------------------------------------- */

static void as_producer(void) { db.pid = getpid(); }

static void as_reader(void)
{
    take_place(&theirs, "theirs", PHB_POLICY_BLOCK);
}

static void as_holder(void)
{
    as_reader();
    pin_at(&theirs, 0, &their_pin);
}

static void do_publish(void) { marked_publish(&db, next_id | 1); }

static void do_abort(void)
{
    marked_begin(&db);
    phb_datablock_claim(&db);
    phb_datablock_abort(&db);
    marked_begin(&db);
    phb_datablock_data(&db);
    phb_datablock_abort(&db);
}

static void do_recover(void) { phb_datablock_recover(&db); }

static void do_read(void)
{
    phb_frame frame;
    phb_datablock_read(&plain, NULL, data, flex, &frame);
}

static void do_admit(void)
{
    uint64_t lease;
    phb_cursor start;
    phb_lease_own(files.leases, &lease);
    phb_datablock_admit(&plain, &db.readers, &theirs, "theirs", PHB_POLICY_BLOCK, 0, lease,
                        &start, deadline_far());
}

static void do_pin(void)
{
    phb_frame frame;
    phb_datablock_pin(&plain, &theirs, NULL, flex, &frame, &their_pin);
}

static void do_unpin(void) { phb_reader_unpin(&theirs, their_pin); }

static void do_pass(void)
{
    phb_reader_pass(&theirs, phb_load64(&db.readers.places[theirs.at].cursor) + 1, 1, 0, 1);
}

static void do_leave(void) { phb_readers_leave_place(&db.readers, theirs.at); }

typedef struct scene {
    const char *name;
    stepper_part *before;    /* the parent, before the victim comes */
    stepper_part *prepare;   /* the victim, before its steps begin */
    stepper_part *act;       /* ... and its steps */
    stepper_part *meanwhile; /* the parent, once the victim is about to sleep */
} scene;

static const scene scenes[] = {
    {"publish", be_latest, as_producer, do_publish, NULL},
    {"publish_skip", pin_the_oldest, as_producer, do_publish, NULL},
    {"publish_wait", block_a_lap, as_producer, do_publish, let_go},
    {"publish_reap", leave_a_dead_reader, as_producer, do_publish, NULL},
    {"publish_repair", leave_a_dead_producer, as_producer, do_publish, NULL},
    {"abort", be_latest, as_producer, do_abort, NULL},
    {"drop", keep_a_lap, as_producer, do_publish, NULL},
    {"recover", leave_a_dead_producer, as_producer, do_recover, NULL},
    {"read", NULL, NULL, do_read, NULL},
    {"admit", NULL, NULL, do_admit, NULL},
    {"admit_repair", leave_a_dead_lock, NULL, do_admit, NULL},
    {"pin", NULL, as_reader, do_pin, NULL},
    {"unpin", NULL, as_holder, do_unpin, NULL},
    {"pass", NULL, as_reader, do_pass, NULL},
    {"leave", NULL, as_holder, do_leave, NULL},
};

/* --- The survivors ------------------------------------------------------- */

static uint64_t stalled_ns(void)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < N_PLACES; i++) {
        sum += phb_load64(&db.readers.places[i].stalled_ns);
    }
    return sum;
}

/* What the parent's own reader held is as it was; it goes. */
static void dismiss_my_reader(void)
{
    if (is_pinned) {
        const uint32_t slot = phb_load32(&db.readers.places[mine.at].pin[my_pin]) - 1;
        CHECK(marked_is_whole(phb_datablock_slot_data(&plain, slot), pinned_id,
                              MARKED_DATA_BYTES));
        phb_reader_unpin(&mine, my_pin);
    }
    if (is_admitted) {
        phb_readers_leave_place(&db.readers, mine.at);
    }
    is_pinned = is_admitted = 0;
}

static void publish_two_laps(void)
{
    uint32_t n_used[64] = {0};
    const uint64_t stalled = stalled_ns();
    const int64_t start = phb_monotonic_ns();
    n_recovered += marked_begin(&db) == PHB_RECOVERED;
    const int64_t waited = phb_monotonic_ns() - start;
    max_wait_ns = waited > max_wait_ns ? waited : max_wait_ns;
    CHECK(phb_datablock_abort(&db) == PHB_OK);
    CHECK(marked_read_all(&plain, &follower) == PHB_EMPTY || n_slots == 1);
    for (uint32_t i = 0; i < 2 * n_slots + 2; i++) {
        phb_snapshot now;
        publish();
        phb_datablock_snapshot(&plain, &now);
        n_used[now.newest_slot]++;
        CHECK(marked_read_all(&plain, &follower) == PHB_EMPTY);
        CHECK(follower.cursor.position == now.position);
    }
    for (uint32_t i = 0; i < n_slots; i++) {
        CHECK(n_used[i] >= 2);
    }
    phb_snapshot now;
    phb_datablock_snapshot(&plain, &now);
    CHECK(follower.n_read + follower.n_lost == now.structured_buffer_version + now.n_dropped);
    CHECK(now.n_dropped == phb_load64(&db.control->n_dropped));
    CHECK(stalled_ns() == stalled); /* nobody waited for a dead reader */
    marked_check_entries(&plain);
    const phb_readers_control *control = db.readers.control;
    CHECK(phb_load32(&control->claiming) == 0 && phb_load32(&control->is_waiting) == 0);
    CHECK(phb_load32(&db.control->is_writing) == 0);
}

/* Whatever the dead one was, all places can be had, and given back. */
static void take_all_places(void)
{
    phb_reader all[N_PLACES];
    for (uint32_t i = 0; i < N_PLACES; i++) {
        char name[16];
        snprintf(name, sizeof name, "reader %u", i);
        take_place(&all[i], name, PHB_POLICY_LATEST);
        CHECK(phb_readers_n_used(&db.readers) == i + 1);
    }
    for (uint32_t i = 0; i < N_PLACES; i++) {
        phb_readers_leave_place(&db.readers, all[i].at);
    }
    CHECK(phb_load32(&db.readers.control->gate) == 0);
}

/* A fresh reader that blocks gets every frame, and keeps one where it lies. */
static void admit_another(void)
{
    uint64_t lease;
    marked_reader counts;
    phb_reader reader;
    phb_frame frame;
    uint32_t pin;
    memset(&counts, 0, sizeof counts);
    CHECK(phb_lease_own(files.leases, &lease) == PHB_OK);
    CHECK(phb_datablock_admit(&plain, &db.readers, &reader, "another", PHB_POLICY_BLOCK, 0,
                              lease, &counts.start, deadline_far()) == PHB_OK);
    counts.cursor = counts.start;
    for (int i = 0; i < 3; i++) {
        CHECK(phb_datablock_pin_next(&plain, &reader, &counts.cursor, flex, &frame, &pin) ==
              PHB_OK);
        memcpy(data, phb_datablock_slot_data(&plain, frame.slot), frame.size);
        CHECK(marked_is_right(&frame, data, flex));
        phb_reader_unpin(&reader, pin);
        marked_pass(&counts, &frame);
        phb_reader_pass(&reader, counts.cursor.position, counts.n_read, counts.n_lost, 0);
        publish();
    }
    CHECK(counts.n_lost == 0);
    phb_readers_leave_place(&db.readers, reader.at);
}

static void survive(void)
{
    dismiss_my_reader();
    publish_two_laps();
    take_all_places();
    if (n_kills % 16 == 0) {
        admit_another();
    }
}

/* --- Where to kill ------------------------------------------------------- */

/* Steps after which the parent does its part: the producer has said that it waits.
 * It comes so far however slow it is, here some thousand times slower than usual. */
static uint64_t find_meanwhile(const scene *s)
{
    if (!s->meanwhile) {
        return UINT64_MAX;
    }
    s->before();
    const pid_t victim = stepper_start(s->prepare, s->act);
    uint64_t n = 0;
    while (!phb_load32(&db.readers.control->is_waiting)) {
        usleep(500);
        CHECK(stepper_step(victim));
        n++;
    }
    stepper_kill(victim);
    survive();
    return n + 20;
}

/* Once with the victim killed at step `at`; with UINT64_MAX it is recorded, and
 * killed at its end. */
static void play(const scene *s, uint64_t at, uint64_t meanwhile_at)
{
    if (s->before) {
        s->before();
    }
    const pid_t victim = stepper_start(s->prepare, s->act);
    const stepper_event event = {meanwhile_at, s->meanwhile};
    uint64_t from = 0;
    int arrived = 1;
    if (at == UINT64_MAX) {
        stepper_record_all(victim, &record, event);
    } else {
        if (at > meanwhile_at) {
            arrived = stepper_run_to(victim, &record, 0, meanwhile_at);
            s->meanwhile();
            from = meanwhile_at;
        }
        arrived = arrived && stepper_run_to(victim, &record, from, at);
    }
    stepper_kill(victim);
    n_kills++;
    n_missed += !arrived;
    survive();
}

static void play_all(const scene *s, uint64_t max_kills)
{
    const uint64_t meanwhile_at = find_meanwhile(s), n_before = n_kills;
    play(s, UINT64_MAX, meanwhile_at);
    const uint64_t n = record.n;
    const uint64_t stride = (n + max_kills - 1) / max_kills;
    for (uint64_t at = n_kills % stride; at < n; at += stride) {
        play(s, at, meanwhile_at);
    }
    printf("%s_steps %llu\n%s_kills %llu\n", s->name, (unsigned long long)n, s->name,
           (unsigned long long)(n_kills - n_before));
}

int main(int argc, char **argv)
{
    CHECK(argc == 4 || argc == 5);
    files = block_find_files(argv[1]);
    n_slots = (uint32_t)atoi(argv[2]);
    const uint64_t max_kills = strtoull(argv[3], NULL, 10);
    block_create(&db, &segments[0], &files, n_slots, MARKED_DATA_BYTES, MARKED_FLEX_BYTES);
    db.readers.constants.patience_ns = PATIENT_NS; /* of all victims, which are its copies */
    block_attach(&plain, &segments[1], &files, 0);
    stepper_calls[0] = (uint64_t)(uintptr_t)&snprintf;
    stepper_calls[1] = (uint64_t)(uintptr_t)&marked_make;
    for (uint32_t i = 0; i < 2 * n_slots; i++) { /* a full ring */
        publish();
    }
    marked_read_all(&plain, &follower);
    take_all_places(); /* resolves symbols */
    admit_another();
    for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++) {
        const int is_skip = strcmp(scenes[i].name, "publish_skip") == 0;
        if ((argc == 4 || strcmp(argv[4], scenes[i].name) == 0) && !(is_skip && n_slots == 1)) {
            play_all(&scenes[i], max_kills);
        }
    }
    phb_datablock_close(&db, &segments[0], files.segment);
    phb_datablock_detach(&db, &segments[0]);
    phb_datablock_detach(&plain, &segments[1]);
    printf("kills %llu\nmissed %llu\nrecovered %llu\nmax_wait_us %llu\n",
           (unsigned long long)n_kills, (unsigned long long)n_missed,
           (unsigned long long)n_recovered, (unsigned long long)(max_wait_ns / 1000));
    return 0;
}
