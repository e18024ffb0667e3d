"""What the broker's refusals, and the end of a hub, are to whoever asked."""

from __future__ import annotations

from typing import TypeVar

from pyhub.errors import AccessDenied, BrokerRefused, ChannelClosed, PyhubError, ServiceNotFound
from pyhub.hub.protocol import Refused, ReplyBody

__all__ = ["closed", "expected", "refusal"]

R = TypeVar("R")


def expected(reply: ReplyBody, expect: type[R]) -> R:
    """Return `reply` if it is an `expect`; a refusal is raised."""
    if isinstance(reply, Refused):
        raise refusal(reply)
    if not isinstance(reply, expect):
        raise BrokerRefused(
            f"the broker answered {type(reply).__name__}, not {expect.__name__}.\n"
            "  It runs another version of pyhub: restart it."
        )
    return reply


def refusal(refused: Refused) -> PyhubError:
    """Return the error that a refusal is to a caller."""
    if refused.code == "not_allowed":
        return AccessDenied(
            f"the broker refused: {refused.reason}.\n"
            "  Its list of clients says who may do what: ask whoever keeps it."
        )
    if refused.code in ("no_service", "no_command"):
        return ServiceNotFound(refused.reason)
    if refused.code == "taken":
        return BrokerRefused(f"{refused.reason}.\n  End that program, or use what it offers.")
    return BrokerRefused(f"the broker refused ({refused.code}): {refused.reason}")


def closed() -> ChannelClosed:
    """Return the error that a hub is to who uses it after its end."""
    return ChannelClosed("this hub was shut down.\n  Make a new MessageHub.")
