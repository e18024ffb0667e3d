"""Recording a channel: every frame, in order, with what is missing marked."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyhub.datablock import DataBlockConsumer, Policy, ReaderState
from pyhub.errors import ChannelClosed, MissingExtra, PyhubError, RecorderTooSlow, WaitTimeout
from pyhub.monitor.survey import survey
from pyhub.sinks.nexus import NexusFile
from pyhub.sinks.trial import Pace, Trial
from pyhub.sources.hdf5 import load_h5py

__all__ = ["Recording", "check_target", "record"]

# When no frame comes for so long, those that came are handed to the system, so
# that a kill cannot take them any more.
_IDLE_S = 0.5
# So often it looks whether the producer had to wait for this recording.
_LOOK_S = 1.0

_log = logging.getLogger("pyhub.sinks")


@dataclass(frozen=True)
class Recording:
    """What a recording came to.

    Attributes
    ----------
    stalled_s
        That the producer waited for it: with policy `BLOCK` only.
    """

    n_frames: int
    n_missing: int
    is_complete: bool
    reason: str
    stalled_s: float = 0.0


def check_target(path: str, *, compression: str = "gzip", overwrite: bool = False) -> None:
    """Raise what `record` would, once frames come: that may be hours later.

    Raises
    ------
    FileExistsError, FileNotFoundError, PermissionError
        The file is there, or cannot be.
    MissingExtra
        A package is not installed.
    """
    load_h5py()
    if compression.startswith("bitshuffle"):
        try:
            import hdf5plugin  # noqa: F401
        except ImportError as error:
            raise MissingExtra(
                f"compression {compression!r} needs the package hdf5plugin ({error}).\n"
                "  pip install hdf5plugin, or conda install -c conda-forge hdf5plugin; or use "
                "'gzip'."
            ) from error
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"{path!r} cannot be made: there is no directory {folder!r}.\n"
            "  Create it, or choose another."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{path!r} cannot be made: {folder!r} may not be written to.\n"
            "  Choose another directory."
        )
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(
            f"{path!r} exists; it was not touched.\n"
            "  Choose another name, or ask to overwrite it (--overwrite)."
        )
    if os.path.lexists(path + ".partial"):
        raise FileExistsError(
            f"{path + '.partial'!r} exists: a recording that was interrupted, or that another "
            "program is writing now.\n"
            "  It is an HDF5 file with the frames up to then: rename it to keep it, or delete it; "
            "then record again."
        )


def record(
    consumer: DataBlockConsumer,
    path: str,
    *,
    n_frames: int | None = None,
    compression: str = "gzip",
    overwrite: bool = False,
    must_keep_up: bool = True,
    on_frame: Callable[[int, int], None] | None = None,
) -> Recording:
    """Write the channel's frames into a new NeXus file until enough have come.

    Ends after `n_frames`, when the channel is closed, when its producer dies,
    when it comes back with another dtype or shape, or with Ctrl-C. If it comes
    back as it was before its absence was noticed, the recording goes on, and
    the reason says so. The file is finished in every case; it is marked as
    partial if `n_frames` were asked for and fewer came, or if the producer died.

    Parameters
    ----------
    must_keep_up
        Give up within the first seconds if frames come faster than they can be
        written (`pyhub.sinks.trial`). Does not apply to a consumer with policy
        `BLOCK`, for which the producer waits. What is lost later, or if this is
        False, is marked in the file.
    on_frame
        Called with the frames received and those missing so far.

    Raises
    ------
    RecorderTooSlow
        It cannot keep up; there is no file.
    OSError
        The disk is full or failed; what was written stays as ``.partial``.
    """
    frames = consumer.frames(_IDLE_S)
    ctrl_c = _CtrlC()
    own_place = _Place(consumer)
    reason = restarts = ""
    has_died = False
    with (
        ctrl_c,
        NexusFile(
            path,
            dtype=consumer.dtype,
            frame_shape=consumer.shape,
            title=consumer.name,
            detector=consumer.name,
            compression=compression,
            overwrite=overwrite,
        ) as file,
    ):
        layout = file.layout
        # The first two frames are the start of much else.
        trial = Trial(consumer, n_frames, 2 + file.n_ahead) if must_keep_up else None
        try:
            while n_frames is None or file.n_frames < n_frames:
                if trial is not None:
                    trial.ask()
                try:
                    with ctrl_c.may_interrupt():
                        frame = next(frames, None)
                except WaitTimeout:
                    file.flush()
                    frames = consumer.frames(_IDLE_S)
                    if trial is not None:
                        trial.pause()
                    continue
                if frame is None:
                    reason = "the channel was closed"
                    break
                if (consumer.dtype, consumer.shape) != (layout.dtype, layout.shape):
                    reason = (
                        f"the producer came back with {consumer.dtype} {consumer.shape}; "
                        "record that as a file of its own"
                    )
                    has_died = True
                    break
                if frame.is_restart:
                    restarts += f"the producer was restarted after {file.n_frames} frames; "
                if trial is not None:
                    trial.take(frame)
                file.append(
                    frame.data,
                    frame_id=frame.frame_id,
                    timestamp_ns=frame.timestamp_ns,
                    flex=frame.flex,
                    n_lost=frame.n_lost,
                )
                if on_frame is not None:
                    on_frame(file.n_frames, file.n_missing)
                if trial is not None and (pace := trial.write()) is not None:
                    trial = None
                    if pace.is_too_slow and not own_place.look(at_once=True):
                        file.discard()
                        raise _too_slow(consumer.name, path, compression, pace)
                own_place.look()
        except KeyboardInterrupt:
            reason = "stopped by the user"
        except ChannelClosed as error:
            reason, has_died = str(error).splitlines()[0], True
        is_complete = not has_died and (n_frames is None or file.n_frames >= n_frames)
        if not is_complete and n_frames is not None:
            reason = f"{reason} after {file.n_frames} of {n_frames} frames"
        reason = (restarts + reason).removesuffix("; ")
        file.finish(is_complete, reason)
        own_place.look(at_once=True)
        return Recording(file.n_frames, file.n_missing, is_complete, reason, own_place.stalled_s)


def _too_slow(channel: str, path: str, compression: str, pace: Pace) -> RecorderTooSlow:
    how = "without compression" if compression == "none" else f"with compression {compression!r}"
    lighter = [] if compression == "none" else ["none"]
    if lighter and compression != "bitshuffle-lz4" and importlib.util.find_spec("hdf5plugin"):
        lighter.append("bitshuffle-lz4")
    options = [f"--compression {name}" for name in lighter]
    options.append("--policy block (the producer waits then)")
    return RecorderTooSlow(
        f"channel {channel!r} is faster than its recording {how}, which would lose frames all "
        f"the time; {path!r} was not made.\n"
        f"  {pace}.\n"
        f"  Record with {', or '.join(options)}; or send fewer frames a second."
    )


class _Place:
    """What the channel's table says of the reader that records."""

    def __init__(self, consumer: DataBlockConsumer) -> None:
        self._consumer = consumer
        self.stalled_s = 0.0
        self._is_waited_for = consumer.policy is Policy.BLOCK
        self._due = time.monotonic()

    def look(self, *, at_once: bool = False) -> bool:
        """Return whether the producer waits for this reader; say it, once, when it does.

        Looks now and then only, unless `at_once`.
        """
        now = time.monotonic()
        if not self._is_waited_for or (now < self._due and not at_once):
            return self._is_waited_for
        self._due = now + _LOOK_S
        state = self._state()
        if state is not None:
            if state.stalled_s and not self.stalled_s:
                _log.warning(
                    "channel %r: its producer waits for this recording, which is slower",
                    self._consumer.name,
                )
            self.stalled_s = max(self.stalled_s, state.stalled_s)
        return self._is_waited_for

    def _state(self) -> ReaderState | None:
        with contextlib.suppress(PyhubError, OSError):  # the channel has gone
            (found,) = survey([self._consumer.name], sample_s=0.0)
            for reader in found.admitted:
                if (reader.name, reader.pid) == (self._consumer.reader, os.getpid()):
                    return reader
        return None


class _CtrlC:
    """Ctrl-C ends the wait for a frame, never the writing of one; then it waits.

    Outside the main thread signals are not ours to handle, and nothing changes.
    """

    def __init__(self) -> None:
        self._is_pressed = False
        self._may_interrupt = False
        self._former: list[tuple[int, Any]] = []

    def __enter__(self) -> _CtrlC:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if callable(signal.getsignal(number)):
                    self._former.append((number, signal.signal(number, self._press)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former:
            signal.signal(number, handler)

    @contextlib.contextmanager
    def may_interrupt(self) -> Iterator[None]:
        """Raise `KeyboardInterrupt` in here, if it was pressed before, at once."""
        self._may_interrupt = True
        try:
            if self._is_pressed:
                raise KeyboardInterrupt
            yield
        finally:
            self._may_interrupt = False

    def _press(self, number: int, frame: object) -> None:
        self._is_pressed = True
        if self._may_interrupt:
            raise KeyboardInterrupt
