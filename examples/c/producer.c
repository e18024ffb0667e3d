/* producer.c: publish frames from a C program, with pyhub's headers alone.
 *
 *   producer [-w] [-l SECONDS] NAME N_FRAMES [RATE_HZ]
 *
 *   -w           wait for a line on standard input before the first frame, so
 *                that a script can start its consumers first
 *   -l SECONDS   keep the channel open that long after the last frame
 *   N_FRAMES     0: until Ctrl-C
 *
 * Frame n is 64 x 128 uint16, pixel i of it (31 n + i) modulo 65536, and its
 * parameters are {"frame": n, "exposure_s": 0.01}. Read it in Python:
 *
 *   for frame in pyhub.DataBlockConsumer.attach(NAME): print(frame.flex)
 *
 * Exit status: 0 all frames were published, or it was told to stop; 1 wrong
 * arguments; 2 anything else.
 */
#include "channel.h"

#include <signal.h>

enum { N_ROWS = 64, N_COLUMNS = 128, N_SLOTS = 8, FLEX_CAPACITY = 256, N_READERS = 64 };
enum { EXIT_USAGE = 1, EXIT_FAILED = 2 };

/* A producer that cannot get the lock for this long reports it. */
static const int64_t LOCK_TIMEOUT_NS = 2000000000;
/* How long a reader that asked to be waited for may hold up a frame. */
static const uint64_t PATIENCE_NS = 1000000000;

static volatile sig_atomic_t is_stopping = 0;

static void on_signal(int number)
{
    (void)number;
    is_stopping = 1;
}

/* Ctrl-C and kill end the loop below instead of the program, so that readers
 * are told. Without SA_RESTART: a signal also ends a wait. */
static void catch_signals(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static int fail(const char *what, const char *name, int status)
{
    fprintf(stderr, "producer: %s channel '%s': %s\n", what, name, channel_explain(status));
    return EXIT_FAILED;
}

/* Create the channel. What a dead producer left under its name is removed. */
static int create(phb_datablock *db, phb_segment *segment, const char *name,
                  const channel_files *files)
{
    uint64_t lease; /* how others see that this process lives */
    int status = phb_lease_own(files->leases, &lease);
    if (status != PHB_OK) {
        return status;
    }
    memset(db, 0, sizeof *db);
    phb_datablock_constants *constants = &db->constants;
    strcpy(constants->dtype, "<u2"); /* numpy's name for little-endian uint16 */
    constants->itemsize = sizeof(uint16_t);
    constants->ndim = 2;
    constants->shape[0] = N_ROWS;
    constants->shape[1] = N_COLUMNS;
    constants->structured_buffer_capacity = N_ROWS * N_COLUMNS * sizeof(uint16_t);
    constants->flex_zone_capacity = FLEX_CAPACITY;
    constants->n_slots = N_SLOTS;
    do {
        status = phb_datablock_create(db, segment, files->directory, files->segment, name,
                                      N_READERS, PATIENCE_NS, files->leases, lease);
    } while (status == PHB_EXISTS &&
             phb_segment_remove_dead(files->segment, files->leases) == PHB_OK);
    return status;
}

static void fill(uint16_t *pixels, uint64_t frame)
{
    for (uint64_t i = 0; i < N_ROWS * N_COLUMNS; i++) {
        pixels[i] = (uint16_t)(31 * frame + i);
    }
}

static unsigned char *put_text(unsigned char *at, const char *text)
{
    size_t length = strlen(text); /* below 32: a MessagePack fixstr */
    *at++ = (unsigned char)(0xa0 | length);
    memcpy(at, text, length);
    return at + length;
}

static unsigned char *put_64(unsigned char *at, unsigned char type, uint64_t bits)
{
    *at++ = type;
    for (int shift = 56; shift >= 0; shift -= 8) { /* MessagePack is big-endian */
        *at++ = (unsigned char)(bits >> shift);
    }
    return at;
}

/* {"frame": n, "exposure_s": 0.01} as MessagePack; its bytes. */
static uint64_t pack_parameters(unsigned char *flex, uint64_t frame)
{
    const double exposure_s = 0.01;
    uint64_t bits;
    memcpy(&bits, &exposure_s, sizeof bits);
    unsigned char *at = flex;
    *at++ = 0x82; /* a map of two pairs */
    at = put_text(at, "frame");
    at = put_64(at, 0xcf, frame); /* uint 64 */
    at = put_text(at, "exposure_s");
    at = put_64(at, 0xcb, bits); /* float 64 */
    return (uint64_t)(at - flex);
}

/* Publish one frame with its parameters, written in place. */
static int publish(phb_datablock *db, uint64_t frame)
{
    const int64_t deadline = phb_monotonic_ns() + LOCK_TIMEOUT_NS;
    int status;
    do {
        status = phb_datablock_begin(db, deadline);
    } while (status == PHB_INTERRUPTED && !is_stopping);
    if (status != PHB_OK && status != PHB_RECOVERED) {
        return status;
    }
    uint16_t *pixels = (uint16_t *)phb_datablock_data(db);
    if (!pixels) { /* admitted readers keep every slot: they count it as lost */
        return phb_datablock_drop(db);
    }
    fill(pixels, frame);

    phb_update update;
    memset(&update, 0, sizeof update);
    update.zones = PHB_ZONE_FLEX | PHB_ZONE_STRUCTURED;
    update.flex_encoding = PHB_FLEX_MSGPACK;
    update.flex_size = pack_parameters((unsigned char *)phb_datablock_flex(db), frame);
    update.structured_size = db->constants.structured_buffer_capacity;
    update.frame_id = &frame;
    status = phb_datablock_end(db, &update, NULL);
    if (status != PHB_OK) {
        phb_datablock_abort(db);
    }
    return status;
}

/* Sleep until `deadline_ns`, or until a signal says stop. */
static void sleep_until(int64_t deadline_ns)
{
    const struct timespec spec = phb_timespec(deadline_ns);
    while (!is_stopping &&
           clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &spec, NULL) == EINTR) {
    }
}

int main(int argc, char **argv)
{
    const char *usage = "usage: producer [-w] [-l SECONDS] NAME N_FRAMES [RATE_HZ]\n";
    int waits_for_line = 0, option;
    double linger_s = 0;
    while ((option = getopt(argc, argv, "wl:")) != -1) {
        switch (option) {
        case 'w': waits_for_line = 1; break;
        case 'l': linger_s = atof(optarg); break;
        default: fputs(usage, stderr); return EXIT_USAGE;
        }
    }
    if (argc - optind < 2 || argc - optind > 3) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    const char *name = argv[optind];
    const uint64_t n_frames = strtoull(argv[optind + 1], NULL, 10);
    const double rate_hz = argc - optind == 3 ? atof(argv[optind + 2]) : 100.0;
    channel_files files;
    if (!(rate_hz > 0) || !channel_find_files(&files, name)) {
        fprintf(stderr, "producer: '%s' cannot be a channel, or its rate %g is not positive\n",
                name, rate_hz);
        return EXIT_USAGE;
    }
    catch_signals();

    phb_datablock db;
    phb_segment segment;
    int status = create(&db, &segment, name, &files);
    if (status != PHB_OK) {
        return fail("cannot create", name, status);
    }
    printf("created %s\n", name);
    fflush(stdout);
    if (waits_for_line) {
        char line;
        while (read(STDIN_FILENO, &line, 1) == 1 && line != '\n') {
        }
    }
    const int64_t start = phb_monotonic_ns();
    uint64_t frame = 0;
    while (status == PHB_OK && !is_stopping && (n_frames == 0 || frame < n_frames)) {
        sleep_until(start + (int64_t)((double)frame / rate_hz * 1e9));
        if (!is_stopping) {
            status = publish(&db, frame);
            frame += status == PHB_OK;
        }
    }
    if (status != PHB_OK && !is_stopping) {
        fail("cannot publish on", name, status);
    } else {
        sleep_until(phb_monotonic_ns() + (int64_t)(linger_s * 1e9));
        status = PHB_OK;
    }
    /* Readers keep what they have mapped: they can still read the last frames
     * after the name is gone, and learn that no more will come. */
    phb_datablock_close(&db, &segment, files.segment);
    phb_datablock_detach(&db, &segment);
    printf("published %llu frames\n", (unsigned long long)frame);
    return status == PHB_OK ? EXIT_SUCCESS : EXIT_FAILED;
}
