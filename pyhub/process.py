"""What the kernel says of a process."""

from __future__ import annotations

__all__ = ["process_state"]

_STATES = {
    "T": "stopped (T)",
    "t": "stopped by a debugger (t)",
    "S": "sleeping (S)",
    "R": "running (R)",
    "D": "waiting for a device (D)",
    "Z": "dead (Z)",
}


def process_state(pid: int) -> str:
    """Return the state of process `pid` in words, with the kernel's letter.

    For messages; a process of another PID namespace is not visible from here.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            letter = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "not visible from here"
    return _STATES.get(letter, letter)
