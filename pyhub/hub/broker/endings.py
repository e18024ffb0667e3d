"""How calls end that nobody did, as their callers are told. Does no I/O."""

from __future__ import annotations

from pyhub.hub.protocol import Call, Failure

__all__ = ["died", "forgotten", "interrupted", "too_late", "what"]


def what(body: Call) -> str:
    """Return what a call is for."""
    return f"{body.service}.{body.command}"


def died(body: Call, has_begun: bool = True) -> Failure:
    """Its worker is gone; or there is none any more that could begin it."""
    if not has_begun:
        return Failure("died", f"the last worker of service {body.service!r} is gone; "
                               f"{what(body)} had not begun")  # fmt: skip
    return Failure(
        "died", f"the worker that had {what(body)} is gone; whether it was done cannot be told"
    )


def interrupted(body: Call) -> Failure:
    """A worker that may have begun it did not come back to this broker."""
    return Failure(
        "interrupted",
        f"the broker was restarted while {what(body)} was under way, and a worker of "
        f"service {body.service!r} did not come back; whether it was done cannot be told",
    )


def forgotten(body: Call) -> Failure:
    """It may have been done so long ago that it is not known any more."""
    return Failure(
        "interrupted",
        f"{what(body)} was asked for again, so long after that the broker may have forgotten "
        "it; whether it was done cannot be told",
    )


def too_late(body: Call, n_lost: int, is_in_doubt: bool) -> Failure:
    """Its time is over; `n_lost` workers that may have begun it are gone."""
    if n_lost:
        return died(body)
    if is_in_doubt:
        return Failure(
            "interrupted",
            f"the broker was restarted while {what(body)} was under way, and its time was over "
            f"before the workers of service {body.service!r} had come back; whether it was done "
            "cannot be told",
        )
    return Failure("expired", f"no worker was free to begin {what(body)} in time")
