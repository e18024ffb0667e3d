/* lease.h: who is alive, as the kernel knows it.
 *
 * A process holds one byte of a lock file for as long as it lives; where that
 * byte lies is its lease, a random number that is written into every segment
 * the process owns. The kernel frees the byte on death, however it came, and
 * no other process can come to hold it by accident as it can a pid
 * (docs/decisions/0005).
 *
 * The lock belongs to the open file (F_OFD_SETLK), so it does not mind what else
 * the program opens and closes, which would free a lock of the process's
 * (F_SETLK). A fork's child shares the open file and would keep its parent's
 * byte over the parent's death: it closes it before anything else
 * (pthread_atfork), and takes a lease of its own when it needs one. exec closes
 * it, too.
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
    int n_files, n_former;
    phb_lease_file files[PHB_MAX_LEASE_FILES];
    /* Descriptors of files whose name leads elsewhere by now, with leases that
     * segments may still carry. */
    int former[PHB_MAX_LEASE_FILES];
} phb_lease_registry;

static phb_lease_registry phb_leases = {PTHREAD_MUTEX_INITIALIZER, 0, 0,
                                        {{{0}, -1, 0, 0}}, {0}};

/* In a fork's child, which has one thread yet: let go of what is the parent's.
 * This thread has the lock, from phb_lease_hold_still. */
static inline void phb_lease_forget(void)
{
    pthread_mutex_init(&phb_leases.lock, NULL);
    for (int i = 0; i < phb_leases.n_files; i++) {
        phb_lease_file *file = &phb_leases.files[i];
        if (file->fd >= 0) {
            close(file->fd);
        }
        file->fd = -1;
        file->lease = 0;
    }
    for (int i = 0; i < phb_leases.n_former; i++) {
        close(phb_leases.former[i]);
    }
    phb_leases.n_former = 0;
}

static inline void phb_lease_exit(void)
{
    pthread_mutex_unlock(&phb_leases.lock);
}

/* Before a fork: no descriptor is open that the registry does not know yet. */
static inline void phb_lease_hold_still(void)
{
    pthread_mutex_lock(&phb_leases.lock);
}

static inline void phb_lease_enter(void)
{
    static int is_told; /* under the lock */
    pthread_mutex_lock(&phb_leases.lock);
    if (!is_told) {
        is_told = pthread_atfork(phb_lease_hold_still, phb_lease_exit, phb_lease_forget) == 0;
    }
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
    return fcntl(file->fd, F_OFD_SETLK, &lock);
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
        close(fd);
        errno = EPERM;
        return NULL;
    }
    if (!file) {
        file = &phb_leases.files[phb_leases.n_files++];
        strcpy(file->path, path);
        file->fd = -1;
    }
    if (file->fd >= 0 && file->lease && phb_leases.n_former < PHB_MAX_LEASE_FILES) {
        phb_leases.former[phb_leases.n_former++] = file->fd;
    } else if (file->fd >= 0) {
        close(file->fd);
    }
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
    } else if (file->lease && file->lease == lease) {
        alive = 1; /* our own: the open file does not see its own locks */
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
