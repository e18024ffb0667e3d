"""Services: commands that programs offer, calls of them, and their outcomes."""

from __future__ import annotations

from typing import Annotated

import msgspec

from pyhub.hub.protocol.fields import Count, Id, Message, Name, Seconds, Source, Text, Value

__all__ = [
    "Abort", "Accepted", "Call", "Cancel", "CommandInfo", "Execute", "Failure", "Finished", "Hold",
    "ListServices", "Offer", "Outcome", "ParameterInfo", "Progress", "Progressed", "ServiceInfo",
    "Services", "Withdraw",
]  # fmt: skip


class ParameterInfo(msgspec.Struct, frozen=True):
    """An argument of a command: its type and default as they are written in Python."""

    name: Text
    type: Text = ""
    default: Text | None = None  # None: it must be given


class CommandInfo(msgspec.Struct, frozen=True):
    """A command as its service offers it."""

    name: Name
    doc: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    parameters: Annotated[list[ParameterInfo], msgspec.Meta(max_length=32)] = []
    returns: Text = ""
    is_idempotent: bool = False  # it may be done twice: by another, where its worker is gone

    @property
    def signature(self) -> str:
        """What it takes and gives, as Python would write it."""
        parameters = ", ".join(
            each.name
            + (f": {each.type}" if each.type else "")
            + ("" if each.default is None else f" = {each.default}")
            for each in self.parameters
        )
        return f"({parameters})" + (f" -> {self.returns}" if self.returns else "")


class Failure(msgspec.Struct, frozen=True):
    """Why a call brought no result.

    Attributes
    ----------
    code
        "raised": the command raised `kind`; "bad_arguments": they do not fit
        it; "died": its worker is gone, or its service there; "cancelled";
        "expired": nobody began it in time; "interrupted": whether it ran
        cannot be told.
    kind, message, traceback
        Of the exception, as the worker's Python shows it.
    """

    code: Text
    message: Annotated[str, msgspec.Meta(max_length=4000)] = ""
    kind: Text = ""
    traceback: Annotated[str, msgspec.Meta(max_length=16000)] = ""


# --- What programs ask ---


class Offer(Message, frozen=True):
    """This program works for that service: it does these commands, so many at a time."""

    service: Name
    commands: Annotated[list[CommandInfo], msgspec.Meta(max_length=256)]
    capacity: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    is_exclusive: bool = False  # no other program may work for it


class Withdraw(Message, frozen=True):
    """This program begins no more calls of that service."""

    service: Name


class Hold(Message, frozen=True):
    """This program runs, or ran, these calls: to a broker that cannot know."""

    calls: Annotated[list[Id], msgspec.Meta(max_length=1000)]


class ListServices(Message, frozen=True):
    """Which services are there?"""

    after: Name = ""


class Call(Message, frozen=True):
    """Have a worker of that service do the command.

    A call is done once, however often this is sent, and to however many
    brokers: `call` is its name for good. After a broker's end it says which
    one accepted it first (`epoch`), and which worker had it, if that was told.
    """

    call: Id
    service: Name
    command: Name
    arguments: Value  # a map from names to values
    timeout_s: Seconds  # from now; then nobody waits for it any more. 0: do not begin it
    epoch: Text = ""
    worker: Text = ""


class Cancel(Message, frozen=True):
    """Nobody waits for that call any more; a worker that has it may heed that."""

    call: Id


class Outcome(Message, frozen=True):
    """From its worker: the call is done."""

    call: Id
    value: Value | None = None
    failure: Failure | None = None


class Progress(Message, frozen=True):
    """From its worker: how far the call is."""

    call: Id
    value: Value


# --- What the broker answers ---


class Accepted(Message, frozen=True):
    """To `Call`: it will be done; `worker` has it, or "" while all are busy."""

    worker: Text


class ServiceInfo(msgspec.Struct, frozen=True):
    """A service: what it does, and how busy it is."""

    name: str
    commands: list[CommandInfo]
    workers: list[str]  # the programs that offer it
    capacity: Count
    n_running: Count
    n_waiting: Count


class Services(Message, frozen=True):
    """To `ListServices`."""

    services: list[ServiceInfo]
    is_last: bool = True


# --- What the broker pushes ---


class Execute(Message, frozen=True):
    """To a worker: do this. Who has done it already, says so again."""

    call: Id
    service: Name
    command: Name
    arguments: Value
    timeout_s: Seconds
    caller: Source


class Abort(Message, frozen=True):
    """To a worker: nobody waits for that call any more, and nobody will."""

    call: Id


class Finished(Message, frozen=True):
    """To the caller: what came of it; of a short call, this is the reply itself."""

    call: Id
    value: Value | None = None
    failure: Failure | None = None


class Progressed(Message, frozen=True):
    """To the caller: how far it is."""

    call: Id
    value: Value
