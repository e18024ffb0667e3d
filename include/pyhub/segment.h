/* segment.h: the header that every segment starts with, and how a segment
 * comes into the world and leaves it.
 *
 *   create    an unnamed file, allocated and mapped       nobody sees it
 *   (fill)    the channel kind writes its own header
 *   publish   checksum, then the file gets its name       seen whole or not at all
 *   attach    copy the header once, check it, trust only the copy
 *   unlink    the name goes; who has it mapped keeps it
 *
 * A creator that dies before `publish` leaves nothing. A full /dev/shm is
 * ENOSPC at `create`, never a bus error later.
 *
 *   0     phb_segment_header       constant, covered by the checksum
 *   256   the kind's own constants constant, covered by the checksum
 *   ...   phb_segment_live         who owns it now
 *   ...   the kind's words and data
 */
#ifndef PYHUB_SEGMENT_H
#define PYHUB_SEGMENT_H

#include "lease.h"

#include <stdio.h>
#include <sys/file.h>
#include <sys/mman.h>

#define PHB_MAGIC 0x4745534255485950ull /* "PYHUBSEG" */
#define PHB_BYTE_ORDER 0x01020304u
#define PHB_NAME_BYTES 128u             /* a segment's own copy of its name */

/* Kinds of segments. */
#define PHB_KIND_DATABLOCK 1u
#define PHB_KIND_READERS 2u

/* Further producers of a channel whose life keeps it alive; more may come, but
 * then the channel counts as left when the owner and these are gone. */
#define PHB_MAX_GUESTS 6u

/* Written by the creator before publish; read by all, at attach. Constant. */
typedef struct phb_segment_header {
    uint64_t magic;          /* PHB_MAGIC */
    uint32_t abi_version;    /* PHB_ABI_VERSION; these two never move */
    uint32_t byte_order;     /* PHB_BYTE_ORDER as the creator stores it */
    uint32_t kind;           /* PHB_KIND_... */
    uint32_t constant_size;  /* bytes from 0 that the checksum covers */
    uint32_t checksum;       /* CRC-32 of those bytes, this field as 0 */
    uint32_t mutex_size;     /* sizeof(pthread_mutex_t) of the creator's libc */
    uint32_t pointer_size;   /* of the creator: the mutex holds pointers */
    uint32_t creator_uid;
    uint64_t segment_size;   /* of the whole file, bytes */
    uint64_t pid_namespace;  /* inode of the creator's: a mutex works within one */
    uint64_t created_ns;     /* wall clock */
    uint32_t creator_pid;    /* in its namespace; for messages, never for decisions */
    uint32_t reserved0;
    unsigned char boot_id[16];
    unsigned char segment_id[16]; /* random: tells two segments of one name apart */
    char name[PHB_NAME_BYTES];    /* NUL-terminated, cut if longer */
    unsigned char reserved1[24];
} phb_segment_header;

PHB_ASSERT_SIZE(phb_segment_header, 256);
PHB_ASSERT_OFFSET(phb_segment_header, magic, 0);
PHB_ASSERT_OFFSET(phb_segment_header, abi_version, 8);
PHB_ASSERT_OFFSET(phb_segment_header, byte_order, 12);
PHB_ASSERT_OFFSET(phb_segment_header, kind, 16);
PHB_ASSERT_OFFSET(phb_segment_header, constant_size, 20);
PHB_ASSERT_OFFSET(phb_segment_header, checksum, 24);
PHB_ASSERT_OFFSET(phb_segment_header, mutex_size, 28);
PHB_ASSERT_OFFSET(phb_segment_header, pointer_size, 32);
PHB_ASSERT_OFFSET(phb_segment_header, creator_uid, 36);
PHB_ASSERT_OFFSET(phb_segment_header, segment_size, 40);
PHB_ASSERT_OFFSET(phb_segment_header, pid_namespace, 48);
PHB_ASSERT_OFFSET(phb_segment_header, created_ns, 56);
PHB_ASSERT_OFFSET(phb_segment_header, creator_pid, 64);
PHB_ASSERT_OFFSET(phb_segment_header, boot_id, 72);
PHB_ASSERT_OFFSET(phb_segment_header, segment_id, 88);
PHB_ASSERT_OFFSET(phb_segment_header, name, 104);

/* On the first cache line after the constants. Written by the owner, by the
 * producer that takes over from a dead owner, and (guests) by those that come
 * and go, under the lock of the file; read by everybody. */
typedef struct phb_segment_live {
    phb_u64 owner_lease; /* lease.h: the segment is left when this one is dead */
    phb_u32 owner_pid;   /* for messages */
    phb_u32 is_closed;   /* 1: the owner closed it; nothing more will come */
    phb_u64 guest_lease[PHB_MAX_GUESTS]; /* ... and these are, too; 0: a free place */
} phb_segment_live;

PHB_ASSERT_SIZE(phb_segment_live, 64);
PHB_ASSERT_OFFSET(phb_segment_live, owner_lease, 0);
PHB_ASSERT_OFFSET(phb_segment_live, owner_pid, 8);
PHB_ASSERT_OFFSET(phb_segment_live, is_closed, 12);
PHB_ASSERT_OFFSET(phb_segment_live, guest_lease, 16);

/* A mapping, private to one process. */
typedef struct phb_segment {
    unsigned char *base;
    uint64_t size;
    int fd;       /* only between create and publish, else -1 */
    int writable;
    uint64_t inode, device;
    phb_segment_live *live;
} phb_segment;

/* --- Facts about this process -------------------------------------------- */

static inline int phb_boot_id(unsigned char id[16])
{
    char text[64];
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return PHB_SYSTEM;
    }
    ssize_t length = read(fd, text, sizeof text);
    close(fd);
    int n_digits = 0;
    memset(id, 0, 16);
    for (ssize_t i = 0; i < length && n_digits < 32; i++) {
        int digit = text[i] >= '0' && text[i] <= '9'   ? text[i] - '0'
                    : text[i] >= 'a' && text[i] <= 'f' ? text[i] - 'a' + 10
                                                       : -1;
        if (digit >= 0) {
            id[n_digits / 2] = (unsigned char)(id[n_digits / 2] << 4 | digit);
            n_digits++;
        }
    }
    if (n_digits != 32) {
        errno = EPROTO;
        return PHB_SYSTEM;
    }
    return PHB_OK;
}

static inline int phb_pid_namespace(uint64_t *inode)
{
    struct stat file;
    if (stat("/proc/self/ns/pid", &file)) {
        return PHB_SYSTEM;
    }
    *inode = (uint64_t)file.st_ino;
    return PHB_OK;
}

/* CRC-32 (IEEE 802.3, as zlib computes it). For headers; not for frames. */
static inline uint32_t phb_crc32(uint32_t crc, const unsigned char *bytes, uint64_t size)
{
    crc = ~crc;
    for (uint64_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
        }
    }
    return ~crc;
}

/* The checksum of a header's constants, its own field taken as 0. */
static inline uint32_t phb_segment_checksum(const unsigned char *constants, uint64_t size)
{
    const uint64_t at = offsetof(phb_segment_header, checksum);
    const unsigned char zero[4] = {0, 0, 0, 0};
    uint32_t crc = phb_crc32(0, constants, at);
    crc = phb_crc32(crc, zero, 4);
    return phb_crc32(crc, constants + at + 4, size - at - 4);
}

static inline uint64_t phb_segment_live_offset(uint64_t constant_size)
{
    return (constant_size + PHB_CACHE_LINE - 1) & ~(uint64_t)(PHB_CACHE_LINE - 1);
}

/* --- Life ---------------------------------------------------------------- */

/* Unmap. Never while any thread holds a lock that lies in the segment: that
 * thread's list of robust locks would lead into nothing. */
static inline void phb_segment_detach(phb_segment *segment)
{
    if (segment->base) {
        munmap(segment->base, segment->size);
        segment->base = NULL;
    }
    if (segment->fd >= 0) {
        close(segment->fd);
        segment->fd = -1;
    }
}

/* Linux's numbers, from 5.14 on; older headers do not have them. */
#define PHB_MADV_POPULATE_READ 22
#define PHB_MADV_POPULATE_WRITE 23

/* Map the pages of `size` bytes from `at` on, a multiple of the page size, now,
 * so that whoever touches them first does not have to wait for the kernel. What
 * they hold does not change, whoever writes there meanwhile. */
static inline int phb_segment_prefault(const phb_segment *segment, uint64_t at, uint64_t size)
{
    const int how = segment->writable ? PHB_MADV_POPULATE_WRITE : PHB_MADV_POPULATE_READ;
    if (madvise(segment->base + at, size, how) == 0) {
        return PHB_OK;
    }
    if (errno != EINVAL) {
        return PHB_SYSTEM;
    }
    for (uint64_t i = at; i < at + size; i += 4096) { /* an older kernel */
        if (segment->writable) {
            __atomic_fetch_or(segment->base + i, 0, __ATOMIC_RELAXED);
        } else {
            (void)*(volatile unsigned char *)(segment->base + i);
        }
    }
    return PHB_OK;
}

static inline int phb_segment_map(phb_segment *segment, int fd, int protection)
{
    void *base = mmap(NULL, segment->size, protection, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return PHB_SYSTEM;
    }
    segment->base = (unsigned char *)base;
    return PHB_OK;
}

/* An unnamed segment of `size` bytes, all zero but for its header, in the
 * directory that will hold its name. `constant_size` counts the common header
 * and the kind's own constants. */
static inline int phb_segment_create(phb_segment *segment, const char *directory,
                                     const char *name, uint32_t kind,
                                     uint32_t constant_size, uint64_t size, uint64_t lease)
{
    struct stat file;
    memset(segment, 0, sizeof *segment);
    segment->size = size;
    segment->writable = 1;
    segment->fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (segment->fd < 0) {
        return PHB_SYSTEM;
    }
    /* Not ftruncate: pages that do not exist yet are a bus error when memory
     * runs out. posix_fallocate answers with the error, not in errno. */
    int error = size > (uint64_t)INT64_MAX ? EFBIG : EINTR;
    for (int attempt = 0; attempt < 1000 && error == EINTR; attempt++) {
        error = posix_fallocate(segment->fd, 0, (off_t)size); /* a signal ends it early */
    }
    if (error || fstat(segment->fd, &file) ||
        phb_segment_map(segment, segment->fd, PROT_READ | PROT_WRITE) != PHB_OK) {
        error = error ? error : errno;
        phb_segment_detach(segment);
        errno = error;
        return PHB_SYSTEM;
    }
    segment->inode = file.st_ino;
    segment->device = file.st_dev;
    phb_segment_header *header = (phb_segment_header *)segment->base;
    header->magic = PHB_MAGIC;
    header->abi_version = PHB_ABI_VERSION;
    header->byte_order = PHB_BYTE_ORDER;
    header->kind = kind;
    header->constant_size = constant_size;
    header->mutex_size = sizeof(pthread_mutex_t);
    header->pointer_size = sizeof(void *);
    header->creator_uid = geteuid();
    header->segment_size = size;
    header->created_ns = phb_wall_ns();
    header->creator_pid = (uint32_t)getpid();
    memcpy(header->name, name, strnlen(name, PHB_NAME_BYTES - 1));
    segment->live =
        (phb_segment_live *)(segment->base + phb_segment_live_offset(constant_size));
    phb_store64(&segment->live->owner_lease, lease);
    phb_store32(&segment->live->owner_pid, (uint32_t)getpid());
    if (phb_boot_id(header->boot_id) != PHB_OK ||
        phb_pid_namespace(&header->pid_namespace) != PHB_OK ||
        getrandom(header->segment_id, 16, 0) != 16) {
        error = errno;
        phb_segment_detach(segment);
        errno = error;
        return PHB_SYSTEM;
    }
    return PHB_OK;
}

/* Give a filled segment its name. PHB_EXISTS: somebody has it. */
static inline int phb_segment_publish(phb_segment *segment, const char *path)
{
    char unnamed[64];
    phb_segment_header *header = (phb_segment_header *)segment->base;
    header->checksum = phb_segment_checksum(segment->base, header->constant_size);
    snprintf(unnamed, sizeof unnamed, "/proc/self/fd/%d", segment->fd);
    if (linkat(AT_FDCWD, unnamed, AT_FDCWD, path, AT_SYMLINK_FOLLOW)) {
        return errno == EEXIST ? PHB_EXISTS : PHB_SYSTEM;
    }
    close(segment->fd);
    segment->fd = -1;
    return PHB_OK;
}

/* The checks that every kind shares, on a private copy of its constants.
 * "Not a segment" and "another version" come before "damaged": of such a file
 * nothing more can be said. */
static inline int phb_segment_check(const unsigned char *constants, uint32_t kind,
                                    uint64_t constant_size, uint64_t file_size, int writable)
{
    phb_segment_header header;
    unsigned char boot_id[16];
    uint64_t pid_namespace;
    memcpy(&header, constants, sizeof header);
    if (header.magic != PHB_MAGIC) {
        return PHB_NOT_SEGMENT;
    }
    if (header.abi_version != PHB_ABI_VERSION || header.byte_order != PHB_BYTE_ORDER ||
        header.pointer_size != sizeof(void *) ||
        header.mutex_size != sizeof(pthread_mutex_t)) {
        return PHB_BAD_ABI;
    }
    if (header.kind != kind) {
        return PHB_BAD_KIND;
    }
    if (header.constant_size != constant_size) {
        return PHB_DAMAGED;
    }
    if (header.checksum != phb_segment_checksum(constants, constant_size) ||
        header.name[PHB_NAME_BYTES - 1] != '\0') {
        return PHB_DAMAGED;
    }
    if (phb_boot_id(boot_id) != PHB_OK || phb_pid_namespace(&pid_namespace) != PHB_OK) {
        return PHB_SYSTEM;
    }
    if (memcmp(header.boot_id, boot_id, 16) != 0) {
        return PHB_BAD_BOOT;
    }
    /* A robust mutex knows its owner by thread id: across PID namespaces two
     * owners at once were seen. Readers take no lock. */
    if (writable && header.pid_namespace != pid_namespace) {
        return PHB_BAD_PIDNS;
    }
    if (header.segment_size != file_size ||
        phb_segment_live_offset(constant_size) + sizeof(phb_segment_live) > file_size) {
        return PHB_TRUNCATED;
    }
    return PHB_OK;
}

/* Map the segment that `path` names. `constants` receives the one copy of its
 * constants that the caller may trust after its own checks. */
static inline int phb_segment_attach(phb_segment *segment, const char *path, uint32_t kind,
                                     unsigned char *constants, uint64_t constant_size,
                                     uint32_t owner_uid, int writable)
{
    struct stat file;
    memset(segment, 0, sizeof *segment);
    segment->fd = -1;
    segment->writable = writable;
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        return PHB_SYSTEM;
    }
    int status = PHB_OK;
    ssize_t n_read = 0;
    if (fstat(fd, &file)) {
        status = PHB_SYSTEM;
    } else if (file.st_uid != owner_uid) {
        status = PHB_BAD_OWNER;
    } else if (!S_ISREG(file.st_mode) || (file.st_mode & 022) || file.st_nlink > 1) {
        status = PHB_BAD_MODE;
    } else {
        memset(constants, 0, constant_size);
        n_read = pread(fd, constants, constant_size, 0);
        if (n_read < 0) {
            status = PHB_SYSTEM;
        } else {
            status = phb_segment_check(constants, kind, constant_size,
                                       (uint64_t)file.st_size, writable);
            if ((status == PHB_DAMAGED && (uint64_t)n_read < constant_size) ||
                (status == PHB_BAD_ABI && (uint64_t)n_read < sizeof(phb_segment_header))) {
                status = PHB_TRUNCATED;
            }
        }
    }
    if (status == PHB_OK) {
        segment->size = (uint64_t)file.st_size;
        segment->inode = file.st_ino;
        segment->device = file.st_dev;
        status = phb_segment_map(segment, fd, writable ? PROT_READ | PROT_WRITE : PROT_READ);
    }
    int error = errno;
    close(fd);
    errno = error;
    if (status == PHB_OK) {
        segment->live =
            (phb_segment_live *)(segment->base + phb_segment_live_offset(constant_size));
    }
    return status;
}

/* Does `path` still name this very segment? */
static inline int phb_segment_is_named(const phb_segment *segment, const char *path)
{
    struct stat file;
    return stat(path, &file) == 0 && file.st_ino == segment->inode &&
           file.st_dev == segment->device;
}

/* The owner's farewell: readers learn that nothing more will come. */
static inline void phb_segment_close(phb_segment *segment, const char *path)
{
    phb_store32_release(&segment->live->is_closed, 1);
    if (phb_segment_is_named(segment, path)) {
        unlink(path);
    }
}

/* Have all producers of the segment gone? A few system calls for each of them. */
static inline int phb_segment_is_left(const phb_segment_live *live, const char *leases)
{
    if (phb_lease_is_alive(leases, phb_load64(&live->owner_lease))) {
        return 0;
    }
    for (uint32_t i = 0; i < PHB_MAX_GUESTS; i++) {
        const uint64_t guest = phb_load64(&live->guest_lease[i]);
        if (guest && phb_lease_is_alive(leases, guest)) {
            return 0;
        }
    }
    return 1;
}

/* The largest constant part that this version may meet, of any kind. */
#define PHB_MAX_CONSTANTS 4096u

/* With the file open: is it a whole segment of this ABI, left by the dead?
 * PHB_OK if so, PHB_IN_USE if a producer of it lives. `leases`: lease.h;
 * `header` receives what it says of itself. */
static inline int phb_segment_is_dead(int fd, const char *leases, phb_segment_header *header)
{
    unsigned char constants[PHB_MAX_CONSTANTS];
    unsigned char boot_id[16];
    phb_segment_live live;
    memset(constants, 0, sizeof constants);
    if (pread(fd, constants, sizeof constants, 0) < 0) {
        return PHB_SYSTEM;
    }
    memcpy(header, constants, sizeof *header);
    if (header->magic != PHB_MAGIC) {
        return PHB_NOT_SEGMENT;
    }
    if (header->abi_version != PHB_ABI_VERSION) {
        return PHB_BAD_ABI; /* its own pyhub can tell */
    }
    if (header->constant_size < sizeof *header || header->constant_size > sizeof constants ||
        header->checksum != phb_segment_checksum(constants, header->constant_size)) {
        return PHB_DAMAGED;
    }
    if (pread(fd, &live, sizeof live, (off_t)phb_segment_live_offset(header->constant_size)) !=
        (ssize_t)sizeof live) {
        return PHB_TRUNCATED;
    }
    if (phb_boot_id(boot_id) != PHB_OK) {
        return PHB_SYSTEM;
    }
    return memcmp(header->boot_id, boot_id, 16) == 0 && !phb_segment_is_left(&live, leases)
               ? PHB_IN_USE
               : PHB_OK;
}

/* Open and lock the file that `path` names, for a change of owner; the
 * descriptor, or -1. Two who come at once take turns, and the second finds that
 * the name has gone on to another file, or that the segment has an owner. */
static inline int phb_segment_lock_file(const char *path, int *status)
{
    struct stat file, named;
    *status = PHB_SYSTEM;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        return -1;
    }
    if (fstat(fd, &file) == 0) {
        if (!S_ISREG(file.st_mode)) {
            *status = PHB_NOT_SEGMENT;
        } else if (file.st_uid != geteuid()) {
            *status = PHB_BAD_OWNER;
        } else if (flock(fd, LOCK_EX | LOCK_NB) || stat(path, &named) ||
                   named.st_ino != file.st_ino || named.st_dev != file.st_dev) {
            *status = PHB_IN_USE;
        } else {
            *status = PHB_OK;
            return fd;
        }
    }
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

/* --- Companions ---------------------------------------------------------- */

/* A segment may have a companion of its own life (readers.h). Its file lies
 * beside, and its name is made of the segment's id, which no other has: so it
 * needs no lock and meets no namesake. The dot keeps it apart from channels. */
static inline int phb_segment_companion(char path[PATH_MAX], const char *beside,
                                        const phb_segment_header *header)
{
    const char *slash = strrchr(beside, '/');
    int n = snprintf(path, PATH_MAX, "%.*s/pyhub.%u..readers.", slash ? (int)(slash - beside) : 1,
                     slash ? beside : ".", header->creator_uid);
    if (n < 0 || n + 33 > PATH_MAX) {
        errno = ENAMETOOLONG;
        return PHB_SYSTEM;
    }
    for (int i = 0; i < 16; i++) {
        snprintf(path + n + 2 * i, 3, "%02x", header->segment_id[i]);
    }
    return PHB_OK;
}

/* Remove what `path` names if it is a segment whose producers died, with its
 * companion: PHB_OK, or PHB_IN_USE, or what is wrong with it. */
static inline int phb_segment_remove_dead(const char *path, const char *leases)
{
    int status;
    char companion[PATH_MAX];
    phb_segment_header header;
    int fd = phb_segment_lock_file(path, &status);
    if (fd < 0) {
        return status;
    }
    status = phb_segment_is_dead(fd, leases, &header);
    if (status == PHB_OK && unlink(path)) {
        status = PHB_SYSTEM;
    }
    int error = errno;
    /* Last: a companion without its segment is found by whoever cleans next. */
    if (status == PHB_OK && phb_segment_companion(companion, path, &header) == PHB_OK) {
        unlink(companion);
    }
    close(fd);
    errno = error;
    return status;
}

/* Come to the mapped segment, which `path` names, as a further producer: its
 * owner, if nobody else is alive (1), else a guest (0), for as long as a place
 * among the guests is free. */
static inline int phb_segment_join(const phb_segment *segment, const char *path,
                                   const char *leases, uint64_t lease)
{
    phb_segment_live *live = segment->live;
    int status, is_ours = 0, is_guest = 0;
    if (phb_load64(&live->owner_lease) == lease) {
        return 0;
    }
    int fd = phb_segment_lock_file(path, &status);
    if (fd < 0) {
        return 0;
    }
    if (!phb_segment_is_named(segment, path)) { /* another's file by now */
        close(fd);
        return 0;
    }
    if (!phb_lease_is_alive(leases, phb_load64(&live->owner_lease))) {
        phb_store64(&live->owner_lease, lease);
        phb_store32(&live->owner_pid, (uint32_t)getpid());
        is_ours = 1;
    }
    for (uint32_t i = 0; i < PHB_MAX_GUESTS; i++) {
        const uint64_t guest = phb_load64(&live->guest_lease[i]);
        is_guest |= guest == lease;
        if (is_ours && guest == lease) {
            phb_store64(&live->guest_lease[i], 0);
        }
    }
    for (uint32_t i = 0; i < PHB_MAX_GUESTS && !is_ours && !is_guest; i++) {
        const uint64_t guest = phb_load64(&live->guest_lease[i]);
        if (guest == 0 || !phb_lease_is_alive(leases, guest)) {
            phb_store64(&live->guest_lease[i], lease);
            is_guest = 1;
        }
    }
    close(fd);
    return is_ours;
}

/* A guest's farewell. */
static inline void phb_segment_leave(phb_segment_live *live, uint64_t lease)
{
    for (uint32_t i = 0; i < PHB_MAX_GUESTS; i++) {
        if (phb_load64(&live->guest_lease[i]) == lease) {
            phb_store64(&live->guest_lease[i], 0);
        }
    }
}

#endif
