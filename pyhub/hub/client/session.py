"""A program's side of the protocol: greeting, asking, asking again. Does no I/O.

A request is sent, and sent again to whichever broker is there, until it is
answered: each of them does no harm when it is repeated. Before anything else,
a broker that does not know this program is told all that the program has.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pyhub.errors import PyhubError
from pyhub.hub import protocol
from pyhub.hub.protocol import PushBody, Refused, ReplyBody, RequestBody

__all__ = ["Ask", "OnReply", "Program", "Question", "Session", "Unreadable"]

_log = logging.getLogger("pyhub.hub")

OnReply: TypeAlias = Callable[[ReplyBody], None]


class Unreadable(ValueError):
    """What the broker sent is no message of this protocol."""


# A broker that owes an answer for so long is asked again, over a new line; longer
# each time, so that one which is only slow is not kept from its work.
PATIENCE_S = 1.0
_MAX_PATIENCE_S = 4.0
# Answers come in their order, but for a moment: one that has not come after so long, while
# others have, was lost.
_LOST_S = 3.0
# Who was refused asks again: rights may be given back.
_REFUSED_S = 5.0
# Each of their fields was checked, or cut, where it was made.
_CHECKED = (protocol.Call, protocol.Outcome, protocol.Progress)
# What is sent before the answers to the first of it are there.
_WINDOW = 100


class Question(Protocol):
    """What is asked, until it is answered."""

    @property
    def body(self) -> RequestBody | Callable[[str], RequestBody]:
        """The message; or what makes it, given the broker's epoch, each time it is sent."""

    @property
    def on_reply(self) -> OnReply | None:
        """Told of the answer; None: of a refusal, the log is."""

    @property
    def is_news(self) -> bool:
        """Whether an introduction says the same: then it need not be sent again."""

    @property
    def is_wanted(self) -> Callable[[], bool] | None:
        """Whether somebody still waits for the answer; None: always."""

    @property
    def is_one_way(self) -> bool:
        """Whether there is no answer: sent once, and lost with its line."""

    @property
    def on_glance(self) -> Callable[[ReplyBody], bool] | None:
        """Shown an answer that has come and is not taken yet, in any thread.

        Before `on_reply` is told: whether all who need it at once have it. None: they
        have not.
        """


@dataclass(slots=True)
class Ask:
    """A request that is no more than that."""

    body: RequestBody | Callable[[str], RequestBody]
    on_reply: OnReply | None = None
    is_news: bool = False
    is_wanted: Callable[[], bool] | None = None
    is_one_way: bool = False
    on_glance: Callable[[ReplyBody], bool] | None = None


class Program(Protocol):
    """What a program has, and where what the broker says goes; asked and told by one at a time."""

    def introduction(self) -> Iterable[Question]:
        """Return what a broker that knows nothing of this program has to be told."""

    def report(self) -> Iterable[Question]:
        """Return what there is to tell once a heartbeat."""

    def take(self, body: PushBody) -> None:
        """Take what the broker pushed."""

    def take_gap(self, n_lost: int) -> None:
        """Hear how many pushes were lost."""

    def glance(self, body: PushBody) -> bool:
        """Look at a push that will be taken, at any time: whether who needs it at once has it."""

    def end(self, error: PyhubError) -> None:
        """Hear why there is nothing to come any more."""

    @property
    def is_held(self) -> bool:
        """Whether this very thread has what `take` needs: if in a handler, it interrupted that."""


class Session:
    """Says what is to be sent, and takes what was received.

    Parameters
    ----------
    hello
        Makes the greeting, for a protocol version.
    program
        For whom this is.
    on_refusal
        Told if the broker does not take this program in.
    """

    def __init__(
        self,
        hello: Callable[[int], protocol.Hello],
        program: Program,
        on_refusal: Callable[[Refused], None],
    ) -> None:
        self._hello = hello
        self._program = program
        self._on_refusal = on_refusal
        self._proposed = protocol.PROTOCOL
        self.protocol = 0  # what both speak
        self.epoch = ""
        self.heartbeat_s = 1.0
        self.is_known = False  # whether the broker at the other end took us in
        self._has_line = False
        self._next_id = 0
        self._n_pushes = 0  # received since the last hello
        self._queue: deque[Question] = deque()
        self._later: list[tuple[float, Question]] = []
        # By id, and since when (s), in the order in which they were sent.
        self._outstanding: dict[int, tuple[Question, float]] = {}
        self._hello_id = 0
        self._heard_at = 0.0  # when the last answer came, or the first question was put
        self._next_ping = 0.0
        self._greet_at = 0.0
        self._patience_s = PATIENCE_S

    def ask(self, ask: Question) -> None:
        """Have something asked as soon as the broker is there to hear it."""
        self._queue.append(ask)

    def ask_later(self, ask: Question, at: float) -> None:
        """Have something asked at that time."""
        self._later.append((at, ask))

    def is_overdue(self, now: float) -> bool:
        """Whether the broker owes an answer for too long: make a new line."""
        owes = bool(self._outstanding) or self._hello_id != 0
        if not self._has_line or not owes:
            return False
        oldest = next(iter(self._outstanding.values()), None)
        is_lost = oldest is not None and now - oldest[1] > _LOST_S
        return is_lost or now - self._heard_at > self._patience_s

    def due(self) -> float:
        """Return when `outgoing` has something new, if nothing comes before."""
        if self.is_known:
            return min([self._next_ping, *(at for at, _ in self._later)])
        return max(self._heard_at, self._greet_at) + self._patience_s

    def begin_line(self, now: float) -> None:
        """Begin with a new line to a broker."""
        self._has_line = True
        self._proposed = protocol.PROTOCOL
        self._greet_at = now
        self._greet_again(now)

    def lost_line(self) -> None:
        """Hear that the line is gone."""
        if self._hello_id:
            self._patience_s = min(2 * self._patience_s, _MAX_PATIENCE_S)
        self._has_line = self.is_known = False
        self._hello_id = 0
        self._take_back()

    def outgoing(self, now: float) -> list[bytes]:
        """Return what is to be sent now."""
        is_idle = self.is_known and not self._queue and not self._later
        if not self._has_line or (is_idle and now < self._next_ping):
            return []
        frames: list[bytes] = []
        if self._hello_id == 0 and not self.is_known and now >= self._greet_at:
            greeting = _framed(self._new_id(), self._hello(self._proposed))
            if isinstance(greeting, Refused):
                self._greet_at = now + PATIENCE_S
                self._on_refusal(greeting)
            else:
                self._hello_id = self._next_id
                self._heard_at = now
                frames.append(greeting)
        for each in [each for each in self._later if each[0] <= now]:
            self._later.remove(each)
            self._queue.append(each[1])
        if self.is_known and now >= self._next_ping:
            self._next_ping = now + self.heartbeat_s
            on_reply = functools.partial(self._on_welcome, now)
            self._queue.appendleft(Ask(protocol.Ping(), on_reply, is_news=True))
        while self.is_known and self._queue and len(self._outstanding) < _WINDOW:
            ask = self._queue.popleft()
            frame = self._frame(ask, now)
            if isinstance(frame, Refused):
                _answer(ask, frame)
            elif frame is not None:
                frames.append(frame)
        return frames

    def compose(self, ask: Question, now: float) -> bytes | None:
        """Return what is to be sent for `ask`; None, and nothing happened: not at once.

        Whoever does so may be interrupted, and never send it: it then counts as
        one that was lost on the way.
        """
        if not self.is_known or self._queue or len(self._outstanding) >= _WINDOW:
            return None
        frame = self._frame(ask, now)
        return frame if isinstance(frame, bytes) else None

    def _frame(self, ask: Question, now: float) -> bytes | Refused | None:
        """Return what is to be sent for `ask`, or why it cannot be; None: nobody wants it."""
        if ask.is_wanted is not None and not ask.is_wanted():
            return None
        body = ask.body(self.epoch) if callable(ask.body) else ask.body
        if self.protocol < protocol.PROTOCOL and not isinstance(body, protocol.REQUESTS_1):
            # What it was not asked for, it need not be told.
            return None if ask.is_news else self._too_new(body)
        request_id = 0 if ask.is_one_way else self._new_id()
        frame = _framed(request_id, body)
        if not ask.is_one_way and isinstance(frame, bytes):
            if not self._outstanding:
                self._heard_at = now
            self._outstanding[request_id] = ask, now
        return frame

    def glance(self, frame: bytes) -> bool:
        """Look at what is to be received: whether all who need it at once have it now.

        Any thread may, also one that can be interrupted: nothing changes here.
        """
        try:
            message = protocol.decode_reply(frame)
        except ValueError:
            return False
        body = message.body
        if message.id == 0:
            return not isinstance(body, Refused) and self._program.glance(body)  # type: ignore[arg-type]
        sent = self._outstanding.get(message.id)
        on_glance = None if sent is None else sent[0].on_glance
        return on_glance is not None and on_glance(body)  # type: ignore[arg-type]  # an id of ours: no push

    def receive(self, frame: bytes, now: float) -> None:
        """Take what the broker sent.

        Raises
        ------
        Unreadable
            It is no message of the broker's.
        """
        try:
            message = protocol.decode_reply(frame)
        except ValueError as error:
            raise Unreadable(str(error)) from error
        body = message.body
        if message.id == 0:
            self._take_push(body)
            return
        self._heard_at = now
        if message.id == self._hello_id:
            self._hello_id = 0
            self._greeted(body, now)
            return
        sent = self._outstanding.get(message.id)
        if sent is None:
            return  # an answer that came too late: it was asked again
        if isinstance(body, Refused) and body.code == "no_hello":
            self._greet_again(now)
            return
        del self._outstanding[message.id]
        _answer(sent[0], body)  # type: ignore[arg-type]  # an id of ours: no push

    def _too_new(self, body: RequestBody) -> Refused:
        return Refused(
            "protocol",
            f"the broker speaks protocol {self.protocol}, which has no {type(body).__name__}: "
            "end it, and the next program starts one of its own version",
        )

    # --- Greeting ---

    def _greet_again(self, now: float) -> None:
        self.is_known = False
        self._hello_id = 0
        self._heard_at = now
        self._take_back()

    def _greeted(self, body: ReplyBody | PushBody, now: float) -> None:
        if isinstance(body, Refused):
            if body.code == "protocol" and self._proposed != protocol.OLDEST:
                self._proposed = protocol.OLDEST  # a broker of the version before
            else:
                self._turned_away(body, now)
            return
        if not isinstance(body, protocol.Welcome):
            self._greet_at = now + PATIENCE_S
            raise Unreadable(f"a hello was answered by {type(body).__name__}")
        if self.epoch not in ("", body.epoch):
            _log.info("met a new broker (%s)", body.epoch)
        self.protocol, self.epoch, self.heartbeat_s = body.protocol, body.epoch, body.heartbeat_s
        self._n_pushes = 0
        self._patience_s = PATIENCE_S
        self._next_ping = now + self.heartbeat_s
        self.is_known = True
        # Of news, all and more is in the introduction.
        waiting = [ask for ask in self._queue if not ask.is_news]
        self._queue = deque(self._program.introduction())
        self._queue.extend(waiting)

    def _turned_away(self, body: Refused, now: float) -> None:
        self._greet_again(now)
        self._greet_at = now + (_REFUSED_S if body.code == "not_allowed" else PATIENCE_S)
        self._on_refusal(body)

    def _take_back(self) -> None:
        """What was not answered is to be asked again, in its order."""
        self._queue.extendleft(ask for ask, _ in reversed(self._outstanding.values()))
        self._outstanding.clear()

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # --- Pushes ---

    def _take_push(self, body: ReplyBody | PushBody) -> None:
        if isinstance(body, Refused):  # of a message that could not even be read
            _log.warning("the broker refused (%s): %s", body.code, body.reason)
            return
        self._n_pushes += 1
        self._program.take(body)  # type: ignore[arg-type]  # id 0: a push

    def _on_welcome(self, asked_at: float, body: ReplyBody) -> None:
        """A ping's answer tells how many pushes there were, and so how many were lost."""
        if isinstance(body, Refused):  # its right was taken away
            self._turned_away(body, asked_at)
        if not isinstance(body, protocol.Welcome):
            return
        lost = body.n_pushed - self._n_pushes
        if body.epoch != self.epoch:  # can it be? only if it forgot and met us in between
            self.is_known = False
        elif lost > 0:
            self._n_pushes = body.n_pushed
            self._program.take_gap(lost)


def _framed(request_id: int, body: RequestBody) -> bytes | Refused:
    """Return the message as its frame; what no broker could read is refused here.

    It could not say of which request that is: that one would be asked for ever,
    and one that is too long ends the line, each time.
    """
    try:
        frame = protocol.encode(protocol.Request(request_id, body))
        if type(body) not in _CHECKED:
            protocol.decode_request(frame)
    # Half a surrogate pair, a numpy scalar, a number beyond 64 bits: the caller's own
    # error, and no reason for the line to end.
    except (ValueError, TypeError, OverflowError) as error:
        return Refused("bad_message", f"{type(body).__name__}: {error}"[:500])
    return frame


def _answer(ask: Question, body: ReplyBody) -> None:
    if ask.on_reply is not None:
        ask.on_reply(body)
    elif isinstance(body, Refused):
        _log.warning("the broker refused (%s): %s", body.code, body.reason)
