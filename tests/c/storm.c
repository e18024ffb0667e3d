/* storm.c: producers and readers that a supervisor kills at random times.
 *
 *   storm DIRECTORY N_SLOTS SEED N_KILLS START
 *
 * Five contenders: two producers, a reader that copies, two that are admitted,
 * with another policy each time they come, copy or pin, leave and come again.
 * All counters begin at START. The supervisor kills one of them (kill -9), starts it anew, and so on. Every
 * contender says when it last finished something; the longest that any was
 * seen without is printed (apart from that: how long an admission takes, which
 * waits for every processor). At the end all are dead; one more producer comes and
 * finds every slot, every place, and every count in order.
 */
#include "marked.h"

enum { N_PRODUCERS = 2, PLAIN = N_PRODUCERS, N_CONTENDERS = 5, MAX_HELD = 3 };
enum { STUCK_MS = 10000 };

/* Shared by the processes of the test; each contender writes its own. */
typedef struct contender {
    phb_u64 beat_ns;
    phb_u64 max_gap_ns[2]; /* while at work, while being admitted */
    phb_u32 is_coming;     /* 1: it is being admitted */
    phb_u64 n_done;     /* frames published or read, in all its lives */
    phb_u64 n_pinned, n_lost, n_given_up, n_admitted, n_dropped;
    pid_t pid;          /* supervisor's */
    uint64_t n_lives;
} contender;

static contender *board;
static block_files files;
static uint32_t n_slots;
static uint64_t start_at;
static contender *self;
static uint64_t random_state, next_id;

static void add(phb_u64 *count, uint64_t n) { phb_store64(count, phb_load64(count) + n); }

/* It has been so long since the contender finished anything. */
static uint64_t note_gap(contender *one)
{
    phb_u64 *most = &one->max_gap_ns[phb_load32(&one->is_coming)];
    const uint64_t beat_ns = phb_load64(&one->beat_ns); /* first: it may be later than now */
    const int64_t gap = phb_monotonic_ns() - (int64_t)beat_ns;
    if (gap > 0 && (uint64_t)gap > phb_load64(most)) {
        phb_store64(most, (uint64_t)gap);
    }
    return gap > 0 ? (uint64_t)gap : 0;
}

static void beat(void)
{
    note_gap(self);
    phb_store64(&self->beat_ns, (uint64_t)phb_monotonic_ns());
}

/* Do nothing on purpose, which is nobody's fault. */
static void nap(uint64_t max_ns)
{
    const struct timespec spec = phb_timespec((int64_t)random_below(&random_state, max_ns));
    clock_nanosleep(CLOCK_MONOTONIC, 0, &spec, NULL);
    if (self) {
        phb_store64(&self->beat_ns, (uint64_t)phb_monotonic_ns());
    }
}

/* --- Producers ----------------------------------------------------------- */

static void produce(void)
{
    phb_datablock db;
    phb_segment segment;
    uint64_t lease;
    block_attach(&db, &segment, &files, 1);
    CHECK(phb_lease_own(files.leases, &lease) == PHB_OK);
    phb_segment_join(&segment, files.segment, files.leases, lease);
    for (;;) {
        beat();
        switch (random_below(&random_state, 16)) {
        case 0: nap(300000); break;
        case 1:
            marked_begin(&db);
            if (random_below(&random_state, 2)) {
                phb_datablock_data(&db);
            }
            CHECK(phb_datablock_abort(&db) == PHB_OK);
            break;
        default:
            add(marked_publish(&db, next_id++) == PHB_OK ? &self->n_done : &self->n_dropped, 1);
        }
    }
}

/* --- Readers ------------------------------------------------------------- */

static void read_plainly(void)
{
    phb_datablock db;
    phb_segment segment;
    phb_snapshot now;
    marked_reader reader;
    const phb_waiting naps = {0, NULL};
    block_attach(&db, &segment, &files, 0);
    phb_datablock_snapshot(&db, &now);
    memset(&reader, 0, sizeof reader);
    reader.start = reader.cursor = phb_cursor_start(&now);
    for (;;) {
        const uint64_t n_before = reader.n_read, n_lost = reader.n_lost;
        beat();
        const uint64_t commit = phb_load64(&db.control->commit);
        marked_read_all(&db, &reader);
        add(&self->n_done, reader.n_read - n_before);
        add(&self->n_lost, reader.n_lost - n_lost);
        phb_wait_change(&db.control->commit, commit, phb_monotonic_ns() + 5000000, &naps);
        if (random_below(&random_state, 16) == 0) {
            nap(3000000); /* long enough to be lapped */
        }
    }
}

/* What an admitted reader has pinned, oldest first. */
typedef struct holding {
    phb_frame frame;
    uint32_t pin;
} holding;

static unsigned char data[MARKED_DATA_BYTES], flex[MARKED_FLEX_BYTES];

static void let_go(const phb_datablock *db, phb_reader *reader, const holding *held)
{
    memcpy(data, phb_datablock_slot_data(db, held->frame.slot), held->frame.size);
    CHECK(marked_is_whole(data, held->frame.frame_id, held->frame.size));
    CHECK(phb_datablock_is_valid(db, &held->frame));
    phb_reader_unpin(reader, held->pin);
}

/* From admission to leave: some hundred frames. */
static void read_admitted(const phb_datablock *db, phb_readers *table, uint64_t lease)
{
    static const uint32_t policies[] = {PHB_POLICY_BLOCK, PHB_POLICY_DROP_NEWEST,
                                        PHB_POLICY_DROP_OLDEST};
    const uint32_t policy = policies[random_below(&random_state, 3)];
    const int is_pinning = random_below(&random_state, 2) != 0;
    const uint64_t max_held = 1 + random_below(&random_state, MAX_HELD);
    char name[16];
    phb_reader reader;
    marked_reader counts;
    holding held[MAX_HELD];
    uint64_t n_held = 0;
    const phb_waiting sleeps = {0, &table->control->awaited};
    int status;
    memset(&counts, 0, sizeof counts);
    snprintf(name, sizeof name, "reader %d", (int)(self - board));
    beat();
    phb_store32(&self->is_coming, 1);
    do {
        status = phb_datablock_admit(db, table, &reader, name, policy, 0, lease, &counts.start,
                                     deadline_far());
    } while (status == PHB_INTERRUPTED);
    CHECK(status == PHB_OK);
    beat();
    phb_store32(&self->is_coming, 0);
    add(&self->n_admitted, 1);
    counts.cursor = counts.start;
    const uint64_t n_frames = random_below(&random_state, 1000);
    while (counts.n_read < n_frames) {
        const phb_cursor before = counts.cursor;
        phb_frame frame;
        uint32_t pin = 0;
        beat();
        const uint64_t commit = phb_load64(&db->control->commit);
        status = is_pinning
                     ? phb_datablock_pin_next(db, &reader, &before, flex, &frame, &pin)
                     : phb_datablock_read_next(db, &before, data, flex, &frame);
        if (status == PHB_EMPTY) {
            phb_wait_change(&db->control->commit, commit, phb_monotonic_ns() + 1000000, &sleeps);
        }
        if (status == PHB_OK) {
            if (is_pinning) {
                memcpy(data, phb_datablock_slot_data(db, frame.slot), frame.size);
                held[n_held].frame = frame;
                held[n_held++].pin = pin;
                add(&self->n_pinned, 1);
            }
            CHECK(marked_is_right(&frame, data, flex));
            marked_pass(&counts, &frame);
            add(&self->n_done, 1);
            if (policy == PHB_POLICY_BLOCK && frame.version != before.version + 1) {
                /* It loses a published frame only after it was told to hurry. */
                CHECK(phb_load64(&table->places[reader.at].given_up_at) == before.position + 1 ||
                      n_slots == 1);
                add(&self->n_given_up, 1);
            }
            phb_reader_pass(&reader, counts.cursor.position, counts.n_read, counts.n_lost, 0);
        }
        if (n_held == max_held || (n_held > 0 && status != PHB_OK)) {
            if (random_below(&random_state, 8) == 0) {
                nap(500000);
            }
            let_go(db, &reader, &held[0]);
            memmove(held, held + 1, --n_held * sizeof *held);
        }
        if (random_below(&random_state, 128) == 0) { /* rarely beyond producers' patience */
            nap(random_below(&random_state, 16) ? 2000000 : 3 * PATIENCE_NS);
        }
    }
    while (n_held > 0) {
        let_go(db, &reader, &held[--n_held]);
    }
    marked_check_counts(&counts);
    add(&self->n_lost, counts.n_lost);
    phb_readers_leave_place(table, reader.at);
}

static void read_by_name(void)
{
    phb_datablock db;
    phb_segment segment;
    phb_readers table;
    uint64_t lease;
    block_attach(&db, &segment, &files, 0);
    CHECK(phb_readers_attach(&table, files.segment, &db.constants.segment, files.leases) ==
          PHB_OK);
    CHECK(phb_lease_own(files.leases, &lease) == PHB_OK);
    for (;;) {
        read_admitted(&db, &table, lease);
    }
}

/* --- The supervisor ------------------------------------------------------ */

static void start(contender *one)
{
    const uint64_t number = (uint64_t)(one - board);
    one->n_lives++;
    phb_store32(&one->is_coming, 0);
    phb_store64(&one->beat_ns, (uint64_t)phb_monotonic_ns());
    const pid_t child = fork_child();
    if (child == 0) {
        self = one;
        random_state ^= (one->n_lives * N_CONTENDERS + number) * 0x9e3779b97f4a7c15ull;
        next_id = (number + 1) << 56 | one->n_lives << 24;
        number < N_PRODUCERS ? produce() : number == PLAIN ? read_plainly() : read_by_name();
        _exit(1);
    }
    one->pid = child; /* not in the child: the board is shared */
}

static void stop(contender *one)
{
    int status;
    note_gap(one);
    kill(one->pid, SIGKILL);
    CHECK(waitpid(one->pid, &status, 0) == one->pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL); /* no check of its own failed */
}

static void create(void)
{
    const pid_t child = fork_child();
    if (child == 0) {
        phb_datablock db;
        phb_segment segment;
        block_create(&db, &segment, &files, n_slots, MARKED_DATA_BYTES, MARKED_FLEX_BYTES);
        block_start_at(&db, start_at);
        _exit(0); /* and the owner is dead: a producer takes over */
    }
    wait_for_exit(child);
}

/* Nobody is left alive: the next one finds everything in order. */
static void look_at_remains(uint64_t *n_recovered, uint64_t *n_frames)
{
    phb_datablock db, plain;
    phb_segment segment, mapped;
    phb_snapshot now;
    marked_reader reader;
    uint32_t n_used[64] = {0};
    block_attach(&db, &segment, &files, 1);
    block_attach(&plain, &mapped, &files, 0);
    phb_datablock_snapshot(&plain, &now);
    *n_frames = now.structured_buffer_version - start_at;
    memset(&reader, 0, sizeof reader);
    reader.start = reader.cursor = phb_cursor_start(&now);
    for (uint32_t i = 0; i < 2 * n_slots + 2; i++) {
        CHECK(marked_publish(&db, 2 * i + 1) == PHB_OK);
        phb_datablock_snapshot(&plain, &now);
        n_used[now.newest_slot]++;
        marked_read_all(&plain, &reader);
        CHECK(reader.cursor.position == now.position);
    }
    for (uint32_t i = 0; i < n_slots; i++) {
        CHECK(n_used[i] >= 2);
    }
    marked_check_entries(&plain);
    phb_readers_reap(&db.readers);
    CHECK(phb_load32(&db.readers.control->gate) == 0);
    CHECK(phb_load32(&db.readers.control->claiming) == 0);
    *n_recovered = phb_load64(&db.control->n_recovered);
    phb_datablock_detach(&db, &segment);
    phb_datablock_detach(&plain, &mapped);
    CHECK(phb_segment_remove_dead(files.segment, files.leases) == PHB_OK);
}

int main(int argc, char **argv)
{
    CHECK(argc == 6);
    files = block_find_files(argv[1]);
    n_slots = (uint32_t)atoi(argv[2]);
    random_state = strtoull(argv[3], NULL, 10);
    start_at = strtoull(argv[5], NULL, 10);
    const uint64_t n_kills = strtoull(argv[4], NULL, 10);
    uint64_t n_recovered, n_frames, max_gap_ns[2] = {0, 0};
    board = (contender *)mmap(NULL, sizeof(contender) * N_CONTENDERS, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(board != MAP_FAILED);
    create();
    for (int i = 0; i < N_CONTENDERS; i++) {
        start(&board[i]);
    }
    for (uint64_t i = 0; i < n_kills; i++) {
        nap(i % 8 ? 3000000 : 30000000); /* now and then long enough for an admission */
        for (int j = 0; j < N_CONTENDERS; j++) {
            if (note_gap(&board[j]) > STUCK_MS * 1000000ull) {
                fprintf(stderr, "contender %d is stuck\n", j);
                kill(board[j].pid, SIGABRT);
                return 1;
            }
        }
        contender *one = &board[random_below(&random_state, N_CONTENDERS)];
        stop(one);
        start(one);
    }
    for (int i = 0; i < N_CONTENDERS; i++) {
        stop(&board[i]);
    }
    look_at_remains(&n_recovered, &n_frames);
    contender sum;
    memset(&sum, 0, sizeof sum);
    for (int i = 0; i < N_CONTENDERS; i++) {
        const contender *one = &board[i];
        for (int j = 0; j < 2; j++) {
            const uint64_t gap = phb_load64(&one->max_gap_ns[j]);
            max_gap_ns[j] = gap > max_gap_ns[j] ? gap : max_gap_ns[j];
        }
        add(&sum.n_pinned, phb_load64(&one->n_pinned));
        add(&sum.n_lost, phb_load64(&one->n_lost));
        add(&sum.n_given_up, phb_load64(&one->n_given_up));
        add(&sum.n_admitted, phb_load64(&one->n_admitted));
        add(&sum.n_dropped, phb_load64(&one->n_dropped));
        add(&sum.n_done, i < N_PRODUCERS ? 0 : phb_load64(&one->n_done));
    }
    printf("kills %llu\nrecovered %llu\nframes %llu\ndropped %llu\n",
           (unsigned long long)n_kills, (unsigned long long)n_recovered,
           (unsigned long long)n_frames, (unsigned long long)phb_load64(&sum.n_dropped));
    printf("read %llu\npinned %llu\nlost %llu\ngiven_up %llu\nadmitted %llu\n",
           (unsigned long long)phb_load64(&sum.n_done),
           (unsigned long long)phb_load64(&sum.n_pinned),
           (unsigned long long)phb_load64(&sum.n_lost),
           (unsigned long long)phb_load64(&sum.n_given_up),
           (unsigned long long)phb_load64(&sum.n_admitted));
    printf("max_gap_ms %llu\nmax_admission_ms %llu\n",
           (unsigned long long)max_gap_ns[0] / 1000000,
           (unsigned long long)max_gap_ns[1] / 1000000);
    return 0;
}
