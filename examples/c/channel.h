/* channel.h: what both examples need beside pyhub's headers: the files that a
 * channel's name leads to (as pyhub/names.py has it), and what a status code
 * means to the person who started the program.
 */
#ifndef EXAMPLES_CHANNEL_H
#define EXAMPLES_CHANNEL_H

#include <pyhub/datablock.h>

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct channel_files {
    char directory[256]; /* where segments live */
    char segment[512];   /* the channel's own file */
    char leases[512];    /* the lock file that tells who is alive */
} channel_files;

/* The files of channel `name` of this user; false if no channel can have that
 * name: 1 to 200 of letters, digits, '.', '_' and '-', no '.' or '-' first. */
static inline int channel_find_files(channel_files *files, const char *name)
{
    const char *directory = getenv("PYHUB_SHM_DIR");
    const size_t length = strlen(name);
    if (length < 1 || length > 200 || name[0] == '.' || name[0] == '-') {
        return 0;
    }
    for (size_t i = 0; i < length; i++) {
        if (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i])) {
            return 0;
        }
    }
    if (!directory || !*directory) {
        directory = "/dev/shm";
    }
    if (strlen(directory) >= sizeof files->directory) {
        return 0;
    }
    snprintf(files->directory, sizeof files->directory, "%s", directory);
    snprintf(files->segment, sizeof files->segment, "%s/pyhub.%u.%s", directory,
             (unsigned)geteuid(), name);
    snprintf(files->leases, sizeof files->leases, "%s/pyhub.%u..leases", directory,
             (unsigned)geteuid());
    return 1;
}

/* What `status` means, and what to do about it. */
static inline const char *channel_explain(int status)
{
    switch (status) {
    case PHB_OK: return "no error";
    case PHB_TIMEOUT: return "nothing happened in time; does the producer run?";
    case PHB_INTERRUPTED: return "interrupted by a signal";
    case PHB_RECOVERED: return "another producer died while it wrote; its frame was rolled back";
    case PHB_EMPTY: return "nothing was published yet";
    case PHB_BUSY: return "the producer overwrites its only slot faster than it can be read; "
                          "give the channel more slots";
    case PHB_OVERRUN: return "the frame was overwritten before it was read; "
                             "read faster, or give the channel more slots";
    case PHB_CLOSED: return "its owner closed it; start the producer again";
    case PHB_CAPACITY: return "larger than the channel has room for";
    case PHB_MISUSE: return "publications must be begun and ended once, by the same thread";
    case PHB_SYSTEM:
        switch (errno) {
        case ENOENT: return "there is no such channel; start its producer, or see: pyhub ls";
        case ENOSPC: return "shared memory is full; use fewer slots, or see: pyhub doctor";
        default: return strerror(errno);
        }
    case PHB_EXISTS: return "the name is taken by a producer that lives; choose another name";
    case PHB_IN_USE: return "its owner lives";
    case PHB_NOT_SEGMENT: return "the file of that name is no pyhub segment; see: pyhub clean";
    case PHB_BAD_ABI: return "made with another pyhub ABI; compile against its headers";
    case PHB_BAD_KIND: return "it is no DataBlock; see: pyhub ls";
    case PHB_BAD_BOOT: return "left over from before the last reboot; see: pyhub clean";
    case PHB_BAD_PIDNS: return "made in another PID namespace (a container): share it";
    case PHB_BAD_OWNER: return "it belongs to another user";
    case PHB_BAD_MODE: return "others may write to it, or it is no plain file: not trusted";
    case PHB_TRUNCATED: return "the file is not as long as its header says; see: pyhub clean";
    case PHB_DAMAGED: return "its header contradicts itself; see: pyhub clean";
    default: return "unknown status";
    }
}

#endif
