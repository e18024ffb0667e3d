/* lease.h: who is alive, as the kernel knows it.
 *
 * A process holds one byte of a lock file for as long as it lives; where that
 * byte lies is its lease, a random number that is written into every segment
 * the process owns. The kernel frees the byte on death, however it came, and
 * no other process can come to hold it by accident as it can a pid
 * (docs/decisions/0005).
 *
 *   hold   F_SETLK      belongs to the process: freed on death, not inherited
 *                       by fork, kept over threads
 *   probe  F_OFD_GETLK  asks on behalf of the open file, so it also sees the
 *                       locks of the asking process
 *
 * Closing any descriptor of such a file frees the process's byte in it. So
 * they stay open for life, in a small table, and a program should not open
 * lock files by itself.
 */
#ifndef PYHUB_LEASE_H
#define PYHUB_LEASE_H

#include "sync.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* Lock files that one process may know: its own, and those of other users and
 * directories that it looks at. */
#define PHB_MAX_LEASE_FILES 16

typedef struct phb_lease_file {
    char path[PATH_MAX];
    int fd;
    int is_writable; /* fd can hold locks, not only look at them */
    uint64_t lease;  /* our byte in it, or 0: we only look */
} phb_lease_file;

/* Private to a process. A program that includes this header in several
 * translation units has one registry in each: several leases, all good. */
typedef struct phb_lease_registry {
    pthread_mutex_t lock;
    pid_t pid; /* whose leases these are; another pid: this is a fork's child */
    int n_files;
    phb_lease_file files[PHB_MAX_LEASE_FILES];
} phb_lease_registry;

static phb_lease_registry phb_leases = {PTHREAD_MUTEX_INITIALIZER, 0, 0, {{{0}, -1, 0, 0}}};

static inline void phb_lease_enter(void)
{
    const pid_t pid = getpid();
    const pid_t known = __atomic_load_n(&phb_leases.pid, __ATOMIC_RELAXED);
    if (known != 0 && known != pid) {
        /* A fork's child, which has one thread yet. It shares the descriptors,
         * not the bytes; and a thread may have held the lock at the fork. */
        pthread_mutex_init(&phb_leases.lock, NULL);
        for (int i = 0; i < phb_leases.n_files; i++) {
            phb_leases.files[i].lease = 0;
        }
    }
    pthread_mutex_lock(&phb_leases.lock);
    __atomic_store_n(&phb_leases.pid, pid, __ATOMIC_RELAXED);
}

static inline void phb_lease_exit(void)
{
    pthread_mutex_unlock(&phb_leases.lock);
}

/* True while the name still leads to the file that we have open. */
static inline int phb_lease_is_linked(const phb_lease_file *file)
{
    struct stat ours, named;
    return fstat(file->fd, &ours) == 0 && stat(file->path, &named) == 0 &&
           ours.st_ino == named.st_ino && ours.st_dev == named.st_dev;
}

static inline int phb_lease_set(const phb_lease_file *file, short type, uint64_t at,
                                uint64_t size)
{
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = (off_t)at;
    lock.l_len = (off_t)size; /* 0: to the end */
    return fcntl(file->fd, F_SETLK, &lock);
}

/* Inside the registry: the open file of `path`, which its name leads to now;
 * `flags` as for open. NULL: see errno. */
static inline phb_lease_file *phb_lease_find(const char *path, int flags)
{
    struct stat status;
    phb_lease_file *file = NULL;
    for (int i = 0; i < phb_leases.n_files && !file; i++) {
        if (strcmp(phb_leases.files[i].path, path) == 0) {
            file = &phb_leases.files[i];
        }
    }
    if (file && phb_lease_is_linked(file) && (file->is_writable || !(flags & O_RDWR))) {
        return file;
    }
    if (!file && (phb_leases.n_files == PHB_MAX_LEASE_FILES || strlen(path) >= PATH_MAX)) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    int fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return NULL;
    }
    if (fstat(fd, &status) || !S_ISREG(status.st_mode) || (status.st_mode & 022)) {
        close(fd); /* nobody holds a byte of what nobody would open */
        errno = EPERM;
        return NULL;
    }
    if (!file) {
        file = &phb_leases.files[phb_leases.n_files++];
        strcpy(file->path, path);
    }
    /* A former descriptor of this name stays open as well: segments may still
     * name the lease that is held through it. */
    file->fd = fd;
    file->is_writable = (flags & O_RDWR) != 0;
    file->lease = 0;
    return file;
}

/* This process's lease in the lock file `path`, taken on first use. */
static inline int phb_lease_own(const char *path, uint64_t *lease)
{
    int status = PHB_SYSTEM;
    errno = EAGAIN;
    phb_lease_enter();
    for (int attempt = 0; attempt < 1000 && status != PHB_OK; attempt++) {
        phb_lease_file *file = phb_lease_find(path, O_RDWR | O_CREAT);
        if (!file) {
            break;
        }
        if (file->lease) {
            *lease = file->lease;
            status = PHB_OK;
        } else if (getrandom(lease, sizeof *lease, 0) == (ssize_t)sizeof *lease) {
            *lease = (*lease >> 2) | 1; /* a positive off_t, and never 0 */
            if (phb_lease_set(file, F_WRLCK, *lease, 1) == 0) {
                /* It counts only if the file was not removed meanwhile: round again. */
                file->lease = *lease;
            } else {
                /* Somebody is removing the file; a moment, and it is gone. */
                struct timespec pause = phb_timespec(1000000);
                clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
            }
        }
    }
    phb_lease_exit();
    return status;
}

/* Does the process with this lease live? No lock file, no life; in doubt (the
 * file cannot be read), it lives. A few system calls. */
static inline int phb_lease_is_alive(const char *path, uint64_t lease)
{
    struct flock byte;
    int alive;
    phb_lease_enter();
    phb_lease_file *file = phb_lease_find(path, O_RDONLY);
    if (!file) {
        alive = errno != ENOENT;
    } else {
        memset(&byte, 0, sizeof byte);
        byte.l_type = F_WRLCK;
        byte.l_whence = SEEK_SET;
        byte.l_start = (off_t)lease;
        byte.l_len = 1;
        alive = fcntl(file->fd, F_OFD_GETLK, &byte) != 0 || byte.l_type != F_UNLCK;
    }
    phb_lease_exit();
    return alive;
}

/* Remove the lock file if nobody, this process included, holds a lease in it:
 * PHB_OK, or PHB_IN_USE. All of it is locked until it is gone, so nobody can
 * take a lease in between; who comes then finds no file, and makes another. */
static inline int phb_lease_remove_file(const char *path)
{
    int status = PHB_IN_USE;
    phb_lease_enter();
    phb_lease_file *file = phb_lease_find(path, O_RDWR);
    if (!file) {
        status = PHB_SYSTEM;
    } else if (!file->lease && phb_lease_set(file, F_WRLCK, 0, 0) == 0) {
        if (phb_lease_is_linked(file)) {
            status = unlink(path) ? PHB_SYSTEM : PHB_OK;
        }
        phb_lease_set(file, F_UNLCK, 0, 0);
    }
    phb_lease_exit();
    return status;
}

#endif
