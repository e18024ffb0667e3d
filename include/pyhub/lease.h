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
 * Closing any descriptor of that file would free the lease, so the one that
 * is opened here is never closed while it holds one.
 */
#ifndef PYHUB_LEASE_H
#define PYHUB_LEASE_H

#include "sync.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* Private to a process. A program that includes this header in several
 * translation units has one registry in each: several leases, all good. */
typedef struct phb_lease_registry {
    pthread_mutex_t lock;
    pid_t pid;         /* who took the lease; another pid: this is a fork's child */
    int fd;            /* the lock file, or -1 */
    uint64_t lease;    /* our byte, or 0 */
    char path[PATH_MAX];
} phb_lease_registry;

static phb_lease_registry phb_leases = {PTHREAD_MUTEX_INITIALIZER, 0, -1, 0, {0}};

static inline int phb_lease_open(const char *path)
{
    struct stat file;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return PHB_SYSTEM;
    }
    if (fstat(fd, &file) || !S_ISREG(file.st_mode) || file.st_uid != geteuid() ||
        (file.st_mode & 022)) {
        close(fd);
        return file.st_uid != geteuid() ? PHB_BAD_OWNER : PHB_BAD_MODE;
    }
    phb_leases.fd = fd;
    return PHB_OK;
}

/* True while the name still leads to the file that we hold a byte of. */
static inline int phb_lease_file_is_linked(void)
{
    struct stat ours, named;
    return fstat(phb_leases.fd, &ours) == 0 && stat(phb_leases.path, &named) == 0 &&
           ours.st_ino == named.st_ino && ours.st_dev == named.st_dev;
}

static inline int phb_lease_lock_byte(uint64_t lease)
{
    struct flock byte;
    memset(&byte, 0, sizeof byte);
    byte.l_type = F_WRLCK;
    byte.l_whence = SEEK_SET;
    byte.l_start = (off_t)lease;
    byte.l_len = 1;
    return fcntl(phb_leases.fd, F_SETLK, &byte);
}

/* With the registry locked: make sure that this process has a lease in the
 * lock file that `path` names now. */
static inline int phb_lease_renew(const char *path)
{
    if (phb_leases.pid != getpid()) {
        /* First use, or a fork's child: it shares the descriptor, not the byte. */
        phb_leases.pid = getpid();
        phb_leases.lease = 0;
    }
    for (int attempt = 0; attempt < 100; attempt++) {
        if (phb_leases.fd >= 0 &&
            (strcmp(phb_leases.path, path) != 0 || !phb_lease_file_is_linked())) {
            /* Another directory, or somebody removed the file. Keep the old
             * descriptor if it holds a lease that segments still name. */
            if (!phb_leases.lease) {
                close(phb_leases.fd);
            }
            phb_leases.fd = -1;
            phb_leases.lease = 0;
        }
        if (phb_leases.fd < 0) {
            if (strlen(path) >= sizeof phb_leases.path) {
                errno = ENAMETOOLONG;
                return PHB_SYSTEM;
            }
            strcpy(phb_leases.path, path);
            int status = phb_lease_open(path);
            if (status != PHB_OK) {
                return status;
            }
        }
        if (phb_leases.lease) {
            return PHB_OK;
        }
        uint64_t lease;
        if (getrandom(&lease, sizeof lease, 0) != (ssize_t)sizeof lease) {
            return PHB_SYSTEM;
        }
        lease = (lease >> 2) | 1; /* a positive off_t, and never 0 */
        if (phb_lease_lock_byte(lease) == 0) {
            phb_leases.lease = lease;
        } else if (errno != EAGAIN && errno != EACCES) {
            return PHB_SYSTEM;
        }
        /* Round again: the file may have been unlinked before we locked. */
    }
    errno = EAGAIN;
    return PHB_SYSTEM;
}

/* This process's lease in the lock file `path`, taken on first use. */
static inline int phb_lease_own(const char *path, uint64_t *lease)
{
    pthread_mutex_lock(&phb_leases.lock);
    int status = phb_lease_renew(path);
    *lease = phb_leases.lease;
    pthread_mutex_unlock(&phb_leases.lock);
    return status;
}

/* Does the process with this lease live? Two system calls or three; when in
 * doubt (the file cannot be read), it lives. */
static inline int phb_lease_is_alive(const char *path, uint64_t lease)
{
    struct flock byte;
    int alive = 1;
    pthread_mutex_lock(&phb_leases.lock);
    if (phb_lease_renew(path) == PHB_OK) {
        memset(&byte, 0, sizeof byte);
        byte.l_type = F_WRLCK;
        byte.l_whence = SEEK_SET;
        byte.l_start = (off_t)lease;
        byte.l_len = 1;
        alive = fcntl(phb_leases.fd, F_OFD_GETLK, &byte) != 0 || byte.l_type != F_UNLCK;
    }
    pthread_mutex_unlock(&phb_leases.lock);
    return alive;
}

/* Remove the lock file if no other process holds a lease in it: PHB_OK, or
 * PHB_IN_USE. Who opens it at that moment notices that it is gone, and makes a
 * new one (phb_lease_renew). This process's lease goes with it. */
static inline int phb_lease_remove_file(const char *path)
{
    struct flock all;
    int status = PHB_IN_USE;
    pthread_mutex_lock(&phb_leases.lock);
    if (phb_lease_renew(path) == PHB_OK) {
        memset(&all, 0, sizeof all);
        all.l_type = F_WRLCK;
        all.l_whence = SEEK_SET;
        /* Not the probe's F_OFD_GETLK: our own byte is not to count. */
        if (fcntl(phb_leases.fd, F_GETLK, &all) == 0 && all.l_type == F_UNLCK) {
            status = unlink(path) ? PHB_SYSTEM : PHB_OK;
        }
    }
    pthread_mutex_unlock(&phb_leases.lock);
    return status;
}

#endif
