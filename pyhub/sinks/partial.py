"""The file under its temporary name: made, kept readable, and renamed when it is whole."""

from __future__ import annotations

import errno
import os
import re
from typing import Any

END_OF_FILE_OFFSET = 40  # in a superblock of version 0


def create_file(h5py: Any, path: str) -> Any:
    """Make a file with an old superblock and new structures: nexus.py says why."""
    h5py.File(path, "x", libver=("earliest", "v110")).close()
    # Without blocks for metadata, HDF5 never ends a flush by cutting off what is
    # left of one: for an instant, the file would be shorter than it says.
    return h5py.File(path, "r+", libver=("v110", "v110"), meta_block_size=0)


def rename_to_new(source: str, target: str) -> None:
    """Give `source` the name `target`, unless something has that name."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.rename(source, target)
    else:
        os.unlink(source)


def sync_file(path: str) -> None:
    """Hand the file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def opens(h5py: Any, path: str) -> bool:
    """Whether the file can be opened and read as a recording."""
    try:
        with h5py.File(path, "r") as file:
            return "data" in file["entry/data"]
    except (OSError, KeyError, RuntimeError):
        return False


def write_error(cause: Exception, what: str, kept: str = "") -> OSError:
    """Return the error of a disk that is full or failed, in three parts, with its errno."""
    found = re.search(r"errno = (\d+)", str(cause))  # h5py sets it for some calls only
    number = getattr(cause, "errno", None) or (int(found[1]) if found else 0)
    why = os.strerror(number) if number else str(cause)
    advice = {
        errno.ENOSPC: "Free space on that disk (df -h), or record to another.",
        errno.EDQUOT: "Free space within your quota (quota -s), or record elsewhere.",
        errno.EFBIG: "Raise the limit of file sizes (ulimit -f), or record elsewhere.",
        errno.ENOENT: "Create the directory, or choose another.",
        errno.EACCES: "Choose a directory that you may write to.",
    }.get(number, "Look at the disk and its mount (dmesg), or record elsewhere.")
    message = f"{what}: {why}" + (f"; {kept}" if kept else "") + f".\n  {advice}"
    return OSError(number, message) if number else OSError(message)
