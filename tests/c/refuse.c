/* refuse.c: everything for which a block, or the table of its readers, is
 * refused at attach, one after the other.
 *
 *   refuse DIRECTORY
 *
 * Each case spoils one of the two files, in one way, attaches, expects the
 * status that says so, and puts the file right again. Prints how many cases
 * there were, and how many this system did not permit.
 */
#include "marked.h"

#include <sched.h>

static block_files files;
static phb_datablock db;
static phb_segment segment;
static char table_path[PATH_MAX];
static uint64_t n_cases = 0, n_not_permitted = 0;

/* Attach, as producer or as reader; the answer. */
static int attach(int writable, uint32_t owner_uid)
{
    static phb_datablock other;
    phb_segment mapped;
    const int status = phb_datablock_attach(&other, &mapped, files.segment, owner_uid,
                                            writable ? files.leases : NULL);
    if (status == PHB_OK) {
        phb_datablock_detach(&other, &mapped);
    }
    CHECK(mapped.base == NULL && other.readers.segment.base == NULL);
    n_cases++;
    return status;
}

/* As producer, and as reader, whom the table does not concern. */
static void expect(int is_table, int status)
{
    CHECK(attach(1, geteuid()) == status);
    CHECK(attach(0, geteuid()) == (is_table ? PHB_OK : status));
}

static void fix_checksum(unsigned char *base)
{
    phb_segment_header *header = (phb_segment_header *)base;
    header->checksum = phb_segment_checksum(base, header->constant_size);
}

/* Change `size` bytes of the header, checksum right, and back again. */
static void spoil_field(int is_table, uint64_t at, uint64_t size, int status)
{
    unsigned char *base = is_table ? db.readers.segment.base : segment.base;
    for (int i = 0; i < 2; i++) {
        for (uint64_t j = 0; j < size; j++) {
            base[at + j] ^= 0x5a;
        }
        fix_checksum(base);
        if (i == 0) {
            expect(is_table, status);
        }
    }
    expect(is_table, PHB_OK);
}

#define SPOIL(is_table, field, status)                              \
    spoil_field(is_table, offsetof(phb_segment_header, field),      \
                sizeof(((phb_segment_header *)0)->field), status)

static void spoil_file(int is_table)
{
    const char *path = is_table ? table_path : files.segment;
    const uint64_t size = is_table ? db.readers.segment.size : segment.size;
    char link_path[PATH_MAX + 8];
    CHECK(chmod(path, 0620) == 0);
    expect(is_table, PHB_BAD_MODE);
    CHECK(chmod(path, 0602) == 0);
    expect(is_table, PHB_BAD_MODE);
    CHECK(chmod(path, 0640) == 0);
    expect(is_table, PHB_OK);
    CHECK(chmod(path, 0600) == 0);

    snprintf(link_path, sizeof link_path, "%s.link", path);
    CHECK(link(path, link_path) == 0);
    expect(is_table, PHB_BAD_MODE); /* who made the second name may be anybody */
    CHECK(unlink(link_path) == 0);

    CHECK(rename(path, link_path) == 0 && symlink(link_path, path) == 0);
    expect(is_table, PHB_SYSTEM);
    CHECK(errno == ELOOP || is_table);
    CHECK(unlink(path) == 0 && rename(link_path, path) == 0);

    CHECK(truncate(path, (off_t)size + 4096) == 0);
    expect(is_table, PHB_TRUNCATED);
    CHECK(truncate(path, (off_t)size) == 0);
    expect(is_table, PHB_OK);

    if (chown(path, geteuid() + 1, (gid_t)-1) == 0) {
        expect(is_table, PHB_BAD_OWNER);
        CHECK(chown(path, geteuid(), (gid_t)-1) == 0);
    } else {
        n_not_permitted++;
    }
}

/* A file that ends early; and, last of all, one without a header. */
static void cut_file(int is_table)
{
    const char *path = is_table ? table_path : files.segment;
    const uint64_t size = is_table ? db.readers.segment.size : segment.size;
    CHECK(truncate(path, (off_t)size / 2) == 0);
    CHECK(attach(1, geteuid()) == PHB_TRUNCATED);
    CHECK(truncate(path, 100) == 0);
    CHECK(attach(1, geteuid()) == PHB_TRUNCATED);
    CHECK(truncate(path, 0) == 0);
    CHECK(attach(1, geteuid()) == PHB_NOT_SEGMENT);
}

/* In a process with other pids the lock would not work; reading does. */
static void attach_in_another_pid_namespace(void)
{
    if (unshare(CLONE_NEWPID)) {
        n_not_permitted++;
        return;
    }
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(attach(1, geteuid()) == PHB_BAD_PIDNS && attach(0, geteuid()) == PHB_OK);
        _exit(0);
    }
    wait_for_exit(child);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    files = block_find_files(argv[1]);
    block_create(&db, &segment, &files, 2, 10000, MARKED_FLEX_BYTES);
    CHECK(phb_segment_companion(table_path, files.segment, &db.constants.segment) == PHB_OK);
    CHECK(attach(1, geteuid() + 1) == PHB_BAD_OWNER && attach(0, geteuid() + 1) == PHB_BAD_OWNER);
    for (int is_table = 0; is_table < 2; is_table++) {
        SPOIL(is_table, magic, PHB_NOT_SEGMENT);
        SPOIL(is_table, abi_version, PHB_BAD_ABI);
        SPOIL(is_table, byte_order, PHB_BAD_ABI);
        SPOIL(is_table, pointer_size, PHB_BAD_ABI);
        SPOIL(is_table, mutex_size, PHB_BAD_ABI);
        SPOIL(is_table, kind, PHB_BAD_KIND);
        SPOIL(is_table, boot_id, PHB_BAD_BOOT);
        SPOIL(is_table, segment_size, PHB_TRUNCATED);
        spoil_file(is_table);
    }
    attach_in_another_pid_namespace();
    cut_file(1);
    cut_file(0);
    unlink(files.segment);
    unlink(table_path);
    printf("cases %llu\nnot_permitted %llu\n", (unsigned long long)n_cases,
           (unsigned long long)n_not_permitted);
    return 0;
}
