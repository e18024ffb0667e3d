"""Calls of commands that other programs offer."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

from pyhub._deadlines import deadline_after, left_until
from pyhub._ears import Answer
from pyhub.errors import (
    CallCancelled,
    ChannelClosed,
    CommandFailed,
    PyhubError,
    ServiceDied,
    WaitTimeout,
)
from pyhub.hub import protocol
from pyhub.hub.client.connection import Connection, done_in_loop
from pyhub.hub.client.feed import Feed
from pyhub.hub.client.refusals import refusal
from pyhub.hub.client.values import pack, unpack
from pyhub.hub.protocol import Accepted, Failure, Refused, ReplyBody

__all__ = ["Calls", "PendingCall"]

# A broker that has just begun does not know all services yet: it is asked again.
_AGAIN_S = 0.1


class PendingCall:
    """A command under way in another program.

    Wait for `result`, ``await`` it, iterate over `progress`, or `cancel` it.
    """

    def __init__(
        self, calls: Calls, service: str, command: str, arguments: bytes, timeout_s: float
    ) -> None:
        self._calls = calls
        self._id = os.urandom(16)  # its name for good, at whichever broker
        self._service = service
        self._command = command
        self._arguments = arguments
        self._timeout_s = timeout_s
        self._deadline = deadline_after(timeout_s)
        self._epoch = ""  # of the broker that it was first sent to
        self._worker = ""
        self._outcome: Answer[bytes] = calls.answer()

    @property
    def progress(self) -> Feed[Any]:
        """What the command reports while it is under way; ends with it."""
        # Made when it is first needed, by whichever thread needs it.
        feed: Feed[Any] = self.__dict__.get("_feed") or self.__dict__.setdefault(
            "_feed", Feed[Any](f"progress of {self}", None, unpack, self._calls.check_turn)
        )
        if self.is_done:
            feed.end(ChannelClosed(f"{self} is done: there is no more progress."))
        return feed

    def __str__(self) -> str:
        return f"{self._service}.{self._command}"

    def __repr__(self) -> str:
        return f"<PendingCall {self} {'done' if self.is_done else 'under way'}>"

    @property
    def was_sent(self) -> bool:
        """Whether a broker was asked: then it may have begun."""
        return bool(self._epoch)

    @property
    def is_done(self) -> bool:
        """Whether there is a result, or an error instead of one."""
        return self._outcome.is_done

    def result(self) -> Any:
        """Wait for the command's result, until the call's time is over.

        Raises
        ------
        CommandFailed
            The command raised an error, or did not take the arguments.
        ServiceDied
            Its program ended meanwhile.
        WaitTimeout
            It was not done in time. It was told; but may not heed that.
        ServiceNotFound, AccessDenied, BrokerUnreachable
            It could not even be asked.
        """
        try:
            if not self._calls.listen(self._outcome, self._deadline):
                raise self.give_up()
        except KeyboardInterrupt:
            self.cancel()
            raise
        error = self._outcome.error
        if error is not None:
            raise error.with_traceback(None)  # the way it took through threads says nothing
        return unpack(self._outcome.result())

    def cancel(self) -> None:
        """Ask for its end; returns at once, `result` then waits for it.

        A command that has not begun does not begin: `CallCancelled`. One that
        has is told (`Job`), and ends when it likes: with a result, an error,
        or as cancelled. A command that does not look goes on.
        """
        self._calls.cancel(self)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        import asyncio  # whoever calls this has it already

        try:
            # Also when its time is over, if it is done.
            if not self.is_done and not await done_in_loop(
                self._outcome, left_until(self._deadline)
            ):
                raise self.give_up()
            return self.result()
        except asyncio.CancelledError:
            self.cancel()
            raise

    def give_up(self) -> PyhubError:
        """End it, as its time is over; the error that says so."""
        if self._calls.has_no_broker and not self.was_sent:
            error: PyhubError = self._calls.unreachable()
            self._calls.give_up(self, error)
            return error
        who = f"its worker {self._worker} has it" if self._worker else "no worker has begun it"
        error = WaitTimeout(
            f"{self} was not done within {self._timeout_s:g} s: {who}, as far as is known.\n"
            "  A command may go on: it was told that nobody waits. See pyhub ls --services."
        )
        self._calls.give_up(self, error)
        return error

    # --- For whoever has the line: a call is a `Question` itself ---

    is_news = True  # an introduction says it, too
    is_one_way = False

    def is_wanted(self) -> bool:
        """Whether it is still to be asked for."""
        return not self._outcome.is_done

    def body(self, epoch: str) -> protocol.Call:
        """Make the message, for the broker of that epoch."""
        first, self._epoch = self._epoch, self._epoch or epoch
        return protocol.Call(
            self._id,
            self._service,
            self._command,
            self._arguments,
            left_until(self._deadline),
            first,  # whoever does not know it shall see that it was asked for before
            self._worker,
        )

    def on_reply(self, reply: ReplyBody) -> None:
        """Hear whether the broker took it, or what came of it already."""
        if isinstance(reply, protocol.Finished):
            self.finish(reply)
        elif isinstance(reply, Accepted):
            self._worker = reply.worker or self._worker
        elif not isinstance(reply, Refused):
            self.fail(PyhubError(f"the broker answered {type(reply).__name__} to a call"))
        elif reply.code == "pending" and left_until(self._deadline):
            self._epoch = ""  # it did not begin
            self._calls.send_again(self)
        else:
            self.fail(refusal(reply))

    def on_glance(self, reply: ReplyBody) -> bool:
        """See what came of it as soon as it is there; `on_reply` is told of it, too."""
        if isinstance(reply, protocol.Finished) and not self._outcome.is_called_for:
            self.finish(reply)
        return self.is_done

    def finish(self, body: protocol.Finished) -> None:
        """Hear what came of it."""
        if body.failure is not None:
            self.fail(_error(self, body.failure))
        else:
            self._outcome.set(body.value or b"\xc0")
            self._end()

    def fail(self, error: BaseException) -> None:
        """End it with an error."""
        self._outcome.fail(error)
        self._end()

    def _end(self) -> None:
        if "_feed" in self.__dict__:
            _ = self.progress  # which ends it
        self._calls.forget(self._id)  # the last: interrupted before, it is ended once more


class Calls:
    """The calls of one hub that are under way."""

    def __init__(self) -> None:
        self._pending: dict[bytes, PendingCall] = {}
        self.connection: Connection | None = None
        self._error: BaseException | None = None  # once the hub is closed

    def start(
        self, service: str, command: str, arguments: dict[str, Any], timeout_s: float
    ) -> PendingCall:
        """Have a command done; returns at once."""
        packed = pack(f"the arguments of {service}.{command}", arguments)
        call = PendingCall(self, service, command, packed, timeout_s)
        assert self.connection is not None
        self.connection.check()
        try:
            self._pending[call._id] = call
            self.send(call)
        except BaseException:
            # Whoever asked does not get to know it: it is not to be sent later either.
            self.give_up(call, CallCancelled(f"{call} was interrupted as it was sent."))
            raise
        if self._error is not None:  # meanwhile: nobody looks for those under way any more
            call.fail(self._error)
        return call

    def answer(self) -> Answer[bytes]:
        """Return what a call's outcome is waited for by."""
        assert self.connection is not None
        return self.connection.answer()

    def listen(self, answer: Answer[bytes], deadline: float) -> bool:
        """Wait for an outcome; whether it came before the deadline."""
        assert self.connection is not None
        return self.connection.listen(answer, deadline)

    def send(self, call: PendingCall) -> None:
        """Ask the broker."""
        assert self.connection is not None
        self.connection.put(call)

    def send_again(self, call: PendingCall) -> None:
        """Ask the broker once more, in a moment."""
        assert self.connection is not None
        self.connection.put_later(call, _AGAIN_S)

    def expire(self) -> None:
        """Give up those whose time is over, whether or not somebody waits for them."""
        for call in list(self._pending.values()):
            if not call.is_done and not left_until(call._deadline):
                call.give_up()

    def cancel(self, call: PendingCall) -> None:
        """Tell the broker that it is to end."""
        if call._id in self._pending and self.connection is not None:
            if not call.was_sent:
                call.fail(CallCancelled(f"{call} was cancelled: it had not begun."))
            self.connection.tell(protocol.Cancel(call._id), is_news=False)

    def give_up(self, call: PendingCall, error: PyhubError) -> None:
        """Tell the broker that nobody waits; the caller's own end of it ends at once."""
        if self._pending.pop(call._id, None) is not None and self.connection is not None:
            self.connection.tell(protocol.Cancel(call._id), is_news=False)
            call.fail(error)

    @property
    def has_no_broker(self) -> bool:
        """Whether there is nobody to ask now."""
        return self.connection is not None and not self.connection.is_known

    def unreachable(self) -> PyhubError:
        """Return the error that says so."""
        assert self.connection is not None
        return self.connection.unreachable()

    def check_turn(self) -> None:
        """Raise where nothing can be waited for: in a handler that interrupted the hub."""
        if self.connection is not None:
            self.connection.check_turn()

    def forget(self, call: bytes) -> None:
        """Hear that a call ended."""
        self._pending.pop(call, None)

    def introduction(self) -> list[PendingCall]:
        """Return what a broker has to be told of them."""
        return list(self._pending.values())

    def glance(self, body: protocol.Finished) -> bool:
        """See what came of a call before it is taken; whether it is one of these."""
        call = self._pending.get(body.call)
        return call is not None and call.on_glance(body)

    def take(self, body: protocol.Finished | protocol.Progressed) -> None:
        """Take what the broker pushed."""
        call = self._pending.get(body.call)
        if call is None:
            return  # it was given up meanwhile
        if isinstance(body, protocol.Finished):
            call.finish(body)
        else:
            call.progress.put(body.value)

    def close(self, error: BaseException) -> None:
        """Fail those that are under way, and all that begin from now on."""
        self._error = error
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Fail those that are under way."""
        for call in list(self._pending.values()):
            call.fail(error)


def _error(call: PendingCall, failure: Failure) -> PyhubError:
    if failure.code in ("raised", "bad_arguments"):
        error = CommandFailed(f"{call} failed: {failure.kind}: {failure.message}")
        error.kind, error.traceback = failure.kind, failure.traceback
        if failure.traceback:
            error.add_note(f"There:\n{failure.traceback.rstrip()}")
        return error
    if failure.code == "cancelled" and not left_until(call._deadline):
        return WaitTimeout(
            f"{call} was not done within {call._timeout_s:g} s; it was told, and ended."
        )
    if failure.code == "cancelled":
        return CallCancelled(f"{call} was cancelled: {failure.message.rstrip('.')}.")
    if failure.code == "expired":
        return WaitTimeout(f"{failure.message}.\n  Its workers are busy: see pyhub ls --services.")
    return ServiceDied(f"{failure.message}.\n  See pyhub ls --services for who is there.")
