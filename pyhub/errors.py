"""Every error that pyhub raises: one for each decision that a caller can take.

    PyhubError
    ├── SegmentNotFound    (FileNotFoundError)  nothing has that name
    ├── SegmentExists      (FileExistsError)    the name is in use
    ├── SegmentDamaged     (OSError)            no segment, truncated, or contradictory
    ├── SegmentStale       (OSError)            left over from before the last reboot
    ├── AbiMismatch        (OSError)            another layout, byte order or libc
    ├── NamespaceMismatch  (OSError)            made in another PID namespace
    ├── SharedMemoryFull   (OSError)            no room for the segment
    ├── AccessDenied       (PermissionError)    owner, mode or key
    ├── InvalidName        (ValueError)         no channel can be called so
    ├── ConfigError        (ValueError)         a configuration file says what cannot be meant
    ├── LayoutError        (ValueError)         dtype or shape does not fit
    ├── CapacityError      (ValueError)         larger than the zone
    ├── CodecError         (ValueError)         not what a flex zone can hold
    ├── ChannelClosed      (ValueError)         closed, here or by its producer
    │   └── ProducerDied                        ... by death
    ├── PublishError       (RuntimeError)       begin and end out of order
    ├── AdmissionRefused   (RuntimeError)       no place, or that name is taken
    ├── RecorderTooSlow    (RuntimeError)       frames come faster than they can be written
    ├── ForkedHandle       (RuntimeError)       made before a fork, used after
    ├── WaitTimeout        (TimeoutError)       the deadline passed
    │   └── WriterStalled                       ... because a producer does not go on
    ├── Overrun            (LookupError)        the frame was overwritten
    ├── BrokerUnreachable  (ConnectionError)    no broker answers
    ├── BrokerRefused      (RuntimeError)       the broker answered, with a no
    ├── ServiceNotFound    (LookupError)        nobody offers that command
    ├── ServiceDied        (ConnectionError)    whoever did the command is gone
    ├── CommandFailed      (RuntimeError)       the command raised an error
    ├── CallCancelled      (RuntimeError)       it was given up
    ├── VersionConflict    (RuntimeError)       the state has changed meanwhile
    └── MissingExtra       (ImportError)        an optional package is not there

Each is also a built-in exception, so a program may catch either. A message
says what happened with its values, why, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "PyhubError",
    "SegmentNotFound",
    "SegmentExists",
    "SegmentDamaged",
    "SegmentStale",
    "AbiMismatch",
    "NamespaceMismatch",
    "SharedMemoryFull",
    "AccessDenied",
    "InvalidName",
    "ConfigError",
    "LayoutError",
    "CapacityError",
    "CodecError",
    "ChannelClosed",
    "ProducerDied",
    "PublishError",
    "AdmissionRefused",
    "RecorderTooSlow",
    "ForkedHandle",
    "WaitTimeout",
    "WriterStalled",
    "Overrun",
    "BrokerUnreachable",
    "BrokerRefused",
    "ServiceNotFound",
    "ServiceDied",
    "CommandFailed",
    "CallCancelled",
    "VersionConflict",
    "MissingExtra",
]


class PyhubError(Exception):
    """What all errors of pyhub are."""


class SegmentNotFound(PyhubError, FileNotFoundError):
    """No channel has that name; its producer may not have started."""


class SegmentExists(PyhubError, FileExistsError):
    """The name belongs to a segment whose owner lives."""


class SegmentDamaged(PyhubError, OSError):
    """The file is no segment, is truncated, or its header contradicts itself."""


class SegmentStale(PyhubError, OSError):
    """The segment was written before the last reboot."""


class AbiMismatch(PyhubError, OSError):
    """The segment was laid out by another version of pyhub or another libc."""


class NamespaceMismatch(PyhubError, OSError):
    """The segment's lock belongs to another PID namespace (another container)."""


class SharedMemoryFull(PyhubError, OSError):
    """The directory of the segments has no room for another one of that size."""


class AccessDenied(PyhubError, PermissionError):
    """A right is missing; or a file belongs to somebody else, or is open to too many."""


class InvalidName(PyhubError, ValueError):
    """A channel, service, command, topic or key cannot be called so."""


class ConfigError(PyhubError, ValueError):
    """A configuration file says what cannot be meant; its place is named."""


class LayoutError(PyhubError, ValueError):
    """The dtype or shape is not one that a DataBlock can hold."""


class CapacityError(PyhubError, ValueError):
    """More bytes than there is room for; nothing was published or sent."""


class CodecError(PyhubError, ValueError):
    """The object cannot be shared, or the bytes are no such object."""


class ChannelClosed(PyhubError, ValueError):
    """The channel, feed or hub was closed, here or by its producer."""


class ProducerDied(ChannelClosed):
    """The producer's process ended without closing the channel."""


class PublishError(PyhubError, RuntimeError):
    """A publication was begun twice, ended without a beginning, or by another thread."""


class AdmissionRefused(PyhubError, RuntimeError):
    """The channel does not admit this reader: no place, a name taken, or a policy it rules out."""


class RecorderTooSlow(PyhubError, RuntimeError):
    """Frames come faster than they can be written; nothing was recorded."""


class ForkedHandle(PyhubError, RuntimeError):
    """The handle was made before a fork and used in the child."""

    @classmethod
    def of(cls, what: str) -> ForkedHandle:
        """Return the error for what belongs to a hub."""
        return cls(
            f"{what} was made before a fork, and is used in the child.\n"
            "  Make a MessageHub of its own in the child, or start processes with the spawn method."
        )


class WaitTimeout(PyhubError, TimeoutError):
    """The deadline passed before what was waited for."""


class WriterStalled(WaitTimeout):
    """A producer lives, but does not go on: it is stopped, or holds the lock too long."""


class Overrun(PyhubError, LookupError):
    """The frame was overwritten before it could be read."""


class BrokerUnreachable(PyhubError, ConnectionError):
    """No broker answered in time."""


class BrokerRefused(PyhubError, RuntimeError):
    """The broker understood the request and refused it."""


class ServiceNotFound(PyhubError, LookupError):
    """Nobody offers a service, or a command of it, by that name."""


class ServiceDied(PyhubError, ConnectionError):
    """The program that had the call is gone; whether the command was done cannot be told."""


class CommandFailed(PyhubError, RuntimeError):
    """The command raised an error where it ran, or did not take its arguments.

    Attributes
    ----------
    kind
        The name of the exception there.
    traceback
        As that program's Python shows it; empty if the command did not begin.
    """

    kind: str = ""
    traceback: str = ""


class CallCancelled(PyhubError, RuntimeError):
    """The call was given up before the command was done."""


class VersionConflict(PyhubError, RuntimeError):
    """The key of the state has another version than the one to be replaced."""


class MissingExtra(PyhubError, ImportError):
    """An optional package is needed that is not installed."""
