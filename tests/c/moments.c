/* moments.c: processes that die or stop at one exact moment, which chance
 * would hardly find.
 *
 *   moments DIRECTORY MOMENT START
 *
 * (START: where all counters begin)
 *
 *   unaware      a producer opened its publication before a reader was admitted
 *   claimed      a producer was told that nobody minds, and has not begun to write
 *   uncommitted  a producer died with its slot done and its commit word not,
 *                and a reader's pin, not yet looked at twice, lies on that slot
 *   first_kept   a producer died when it first found a reader in its way
 *   stopped      a reader that blocks does not move any more
 *   skipped      a reader that blocks is more positions behind than frames
 */
#include "marked.h"
#include "stepping.h"

enum { N_SLOTS = 4 };

static block_files files;
static phb_datablock db, plain;
static phb_segment segments[2];
static uint64_t lease, next_id = 2;
static unsigned char data[MARKED_DATA_BYTES], flex[MARKED_FLEX_BYTES];

static void publish(void) { CHECK(marked_publish(&db, next_id++) == PHB_OK); }

static phb_reader admit(const char *name, uint32_t policy, marked_reader *counts)
{
    phb_reader reader;
    memset(counts, 0, sizeof *counts);
    CHECK(phb_datablock_admit(&plain, &db.readers, &reader, name, policy, 0, lease,
                              &counts->start, deadline_far()) == PHB_OK);
    counts->cursor = counts->start;
    return reader;
}

static void read_one(phb_reader *reader, marked_reader *counts)
{
    phb_frame frame;
    CHECK(phb_datablock_read_next(&plain, &counts->cursor, data, flex, &frame) == PHB_OK);
    CHECK(marked_is_right(&frame, data, flex));
    marked_pass(counts, &frame);
    marked_check_counts(counts);
    phb_reader_pass(reader, counts->cursor.position, counts->n_read, counts->n_lost, 0);
}

static void as_producer(void) { db.pid = getpid(); }

static void do_publish(void) { marked_publish(&db, next_id); }

/* --- Moments ------------------------------------------------------------- */

static void open_then_publish(void)
{
    marked_begin(&db);
    raise(SIGSTOP);
    marked_write(&db, next_id);
}

static void unaware(void)
{
    marked_reader counts;
    phb_frame frame;
    phb_snapshot now;
    uint32_t pin;
    const pid_t producer = stepper_start(as_producer, open_then_publish);
    CHECK(!stepper_resume(producer, PTRACE_CONT)); /* it is open, and knows of nobody */
    phb_reader reader = admit("late", PHB_POLICY_LATEST, &counts);
    phb_datablock_snapshot(&plain, &now);
    const uint64_t oldest = now.position - N_SLOTS + 1;
    const int status = phb_datablock_pin(&plain, &reader, &oldest, flex, &frame, &pin);
    CHECK(phb_datablock_pin(&plain, &reader, NULL, flex, &frame, &pin) == PHB_OK);
    phb_reader_unpin(&reader, pin);
    CHECK(!stepper_resume(producer, PTRACE_CONT)); /* it has published */
    CHECK(status == PHB_BUSY);
    stepper_kill(producer);
    /* From now on it can have any. */
    const uint64_t next = oldest + 1;
    CHECK(phb_datablock_pin(&plain, &reader, &next, flex, &frame, &pin) == PHB_OK);
    const uint64_t held = phb_load32(&db.readers.places[reader.at].pin[pin]) - 1;
    for (int i = 0; i < 2 * N_SLOTS; i++) {
        publish();
        CHECK(marked_is_whole(phb_datablock_slot_data(&plain, held), frame.frame_id, frame.size));
    }
}

static void claim_then_publish(void)
{
    marked_begin(&db);
    CHECK(phb_datablock_claim(&db) == PHB_OK);
    raise(SIGSTOP);
    marked_write(&db, next_id);
}

static void claimed(void)
{
    marked_reader counts;
    phb_frame frame;
    phb_snapshot now;
    uint32_t pin;
    phb_reader reader = admit("reader", PHB_POLICY_LATEST, &counts);
    const pid_t producer = stepper_start(as_producer, claim_then_publish);
    CHECK(!stepper_resume(producer, PTRACE_CONT));
    phb_datablock_snapshot(&plain, &now);
    const uint64_t oldest = now.position - N_SLOTS + 1;
    const int status = phb_datablock_pin(&plain, &reader, &oldest, flex, &frame, &pin);
    CHECK(!stepper_resume(producer, PTRACE_CONT));
    CHECK(status == PHB_BUSY); /* for it has been overwritten */
    CHECK(phb_datablock_pin(&plain, &reader, &oldest, flex, &frame, &pin) == PHB_OVERRUN);
    stepper_kill(producer);
}

static void uncommitted(void)
{
    marked_reader counts, follower;
    phb_snapshot now;
    phb_reader reader = admit("reader", PHB_POLICY_LATEST, &counts);
    phb_datablock_snapshot(&plain, &now);
    const uint32_t slot = (uint32_t)((now.newest_slot + 1) % N_SLOTS);
    memset(&follower, 0, sizeof follower);
    follower.start = follower.cursor = phb_cursor_start(&now);

    const pid_t producer = stepper_start(as_producer, do_publish);
    while (phb_load64(&plain.slots[slot].seq) != 2 * (now.position + 1)) {
        CHECK(stepper_step(producer));
    }
    CHECK(phb_load64(&plain.control->commit) == now.commit);
    stepper_kill(producer);

    /* As phb_datablock_pin leaves it for a moment, before it looks again. */
    phb_store32(&db.readers.places[reader.at].pin[0], slot + 1);
    CHECK(marked_publish(&db, 100) == PHB_OK);
    phb_store32(&db.readers.places[reader.at].pin[0], 0);
    for (int i = 0; i < N_SLOTS - 1; i++) {
        marked_read_all(&plain, &follower); /* sees that no version comes twice */
        publish();
    }
    CHECK(follower.n_lost == 0);
}

static void first_kept(void)
{
    marked_reader counts;
    phb_reader reader = admit("reader", PHB_POLICY_BLOCK, &counts);
    const phb_reader_place *place = &db.readers.places[reader.at];
    for (int i = 0; i + 1 < N_SLOTS; i++) {
        publish();
    }
    const uint64_t before = (uint64_t)phb_monotonic_ns();
    const pid_t producer = stepper_start(as_producer, do_publish);
    while (phb_load64(&place->kept_at) != counts.cursor.position + 1) {
        CHECK(stepper_step(producer));
    }
    stepper_kill(producer);
    CHECK(marked_publish(&db, 100) == PHB_OK); /* which waits as long as the channel's patience */
    CHECK(phb_load64(&place->kept_ns) >= before);
    CHECK((uint64_t)phb_monotonic_ns() >= phb_load64(&place->kept_ns) + PATIENCE_NS);
    CHECK(phb_load64(&place->given_up_at) == counts.cursor.position + 1);
}

static void stopped(void)
{
    marked_reader counts;
    phb_reader reader = admit("reader", PHB_POLICY_BLOCK, &counts);
    const phb_reader_place *place = &db.readers.places[reader.at];
    int n_slices = 0;
    for (int i = 0; i + 1 < N_SLOTS; i++) {
        publish();
    }
    CHECK(phb_load64(&place->stalled_ns) == 0);
    marked_begin(&db);
    while (phb_datablock_claim(&db) == PHB_INTERRUPTED) {
        CHECK(++n_slices < 20);
    }
    marked_write(&db, next_id++);
    const uint64_t stalled = phb_load64(&place->stalled_ns);
    CHECK(stalled > 0);
    for (int i = 0; i < 2 * N_SLOTS; i++) { /* it costs nothing more, until it moves */
        publish();
    }
    CHECK(phb_load64(&place->stalled_ns) == stalled);
    read_one(&reader, &counts);
    CHECK(counts.n_lost > N_SLOTS);
    for (int i = 0; i + 1 < N_SLOTS; i++) {
        read_one(&reader, &counts);
        publish();
    }
    CHECK(phb_load64(&place->stalled_ns) == stalled);
}

static void skipped(void)
{
    marked_reader counts, other;
    phb_reader reader = admit("reader", PHB_POLICY_BLOCK, &counts);
    phb_reader holder = admit("holder", PHB_POLICY_LATEST, &other);
    phb_snapshot now;
    phb_frame frame;
    uint32_t pin;
    read_one(&reader, &counts);
    phb_datablock_snapshot(&plain, &now);
    const uint64_t oldest = now.position - N_SLOTS + 1;
    CHECK(phb_datablock_pin(&plain, &holder, &oldest, flex, &frame, &pin) == PHB_OK);
    publish(); /* passes a position over */
    phb_reader_unpin(&holder, pin);
    for (int i = 0; i + 1 < N_SLOTS; i++) {
        publish();
    }
    phb_datablock_snapshot(&plain, &now);
    CHECK(now.position == counts.cursor.position + N_SLOTS + 1);
    for (int i = 0; i < N_SLOTS; i++) {
        read_one(&reader, &counts);
    }
    CHECK(counts.n_lost == 0);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        stepper_part *play;
    } moments[] = {{"unaware", unaware},
                   {"claimed", claimed},
                   {"uncommitted", uncommitted},
                   {"first_kept", first_kept},
                   {"stopped", stopped},
                   {"skipped", skipped}};
    CHECK(argc == 4);
    files = block_find_files(argv[1]);
    block_create(&db, &segments[0], &files, N_SLOTS, MARKED_DATA_BYTES, MARKED_FLEX_BYTES);
    block_start_at(&db, strtoull(argv[3], NULL, 10));
    block_attach(&plain, &segments[1], &files, 0);
    CHECK(phb_lease_own(files.leases, &lease) == PHB_OK);
    stepper_calls[0] = (uint64_t)(uintptr_t)&marked_make;
    for (int i = 0; i < 2 * N_SLOTS; i++) {
        publish();
    }
    for (size_t i = 0; i < sizeof moments / sizeof *moments; i++) {
        if (strcmp(moments[i].name, argv[2]) == 0) {
            moments[i].play();
            printf("played 1\n");
        }
    }
    phb_datablock_close(&db, &segments[0], files.segment);
    return 0;
}
