"""Telling others of what happened: events, alarms, and a program's log."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from pyhub.hub import protocol
from pyhub.hub.client.connection import Connection
from pyhub.hub.client.session import Ask
from pyhub.hub.client.values import pack
from pyhub.hub.protocol import Refused, ReplyBody, Severity
from pyhub.names import check_topic

__all__ = ["LogHandler", "publication"]

_log = logging.getLogger("pyhub.hub")

# Records on their way to a broker that may not be there.
_MAX_WAITING = 1000


def publication(topic: str, value: Any, severity: Severity, keep: bool) -> protocol.Publish:
    """Return the message that tells of an event.

    Raises
    ------
    InvalidName
        The topic cannot be one.
    CodecError, CapacityError
        The value cannot be shared, or is too large.
    """
    if severity not in _SEVERITIES:
        raise ValueError(
            f"severity={severity!r} is none.\n  Use one of {', '.join(map(repr, _SEVERITIES))}."
        )
    packed = pack(f"the event of {topic!r}", value)
    return protocol.Publish(
        os.urandom(12), check_topic(topic), packed, severity, time.time_ns(), keep
    )


class LogHandler(logging.Handler):
    """Publishes a program's log as events, by topics ``log/<logger>``.

    Never waits and never fails: what the broker does not take is lost, as
    with any log over a network. ``logging.getLogger().addHandler(hub.log_handler())``.

    Attributes
    ----------
    n_lost
        Records that were left out, as the broker had not taken the 1,000 before.
    """

    def __init__(self, connection: Connection, level: int | str = logging.INFO) -> None:
        super().__init__(level)
        self._connection = connection
        self._waiting: set[bytes] = set()  # ids of events on their way
        self.n_lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Publish a record; pyhub's own are left out, as they would beget others."""
        if record.name.split(".")[0] == "pyhub":
            return
        if len(self._waiting) >= _MAX_WAITING:
            self.n_lost += 1
            return
        try:
            text = self.format(record)[:4000]
            value = {"text": text, "pid": record.process, "thread": record.threadName}
            topic = _topic(record.name)
            body = publication(topic, value, _severity(record.levelno), keep=False)
        except Exception:  # a log must not end its program
            self.handleError(record)
            return
        try:
            self._waiting.add(body.event)
            self._connection.put(Ask(body, lambda reply: self._taken(body.event, reply)))
        except BaseException as error:
            self._waiting.discard(body.event)
            if not isinstance(error, Exception):  # a signal's handler raised it
                raise
            self.handleError(record)

    def _taken(self, event: bytes, reply: ReplyBody) -> None:
        self._waiting.discard(event)
        if isinstance(reply, Refused):
            _log.warning("the broker refused (%s): %s", reply.code, reply.reason)


def _topic(logger: str) -> str:
    """Return the topic of a logger, whatever it is called: 255 bytes, no wildcards."""
    text = "".join(c if c.isprintable() and c not in "*?[" else "_" for c in logger)
    return f"log/{text}".encode()[:255].decode(errors="ignore")


_SEVERITIES: dict[Severity, int] = {
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": 0,
}


def _severity(level: int) -> Severity:
    return next(severity for severity, least in _SEVERITIES.items() if level >= least)
