"""Recording a channel: every frame, in order, with what is missing marked."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyhub.datablock import DataBlockConsumer
from pyhub.errors import ChannelClosed, MissingExtra, WaitTimeout
from pyhub.sinks.nexus import NexusFile
from pyhub.sources.hdf5 import load_h5py

__all__ = ["Recording", "check_target", "record"]

# When no frame comes for so long, those that came are handed to the system, so
# that a kill cannot take them any more.
_IDLE_S = 0.5


@dataclass(frozen=True)
class Recording:
    """What a recording came to."""

    n_frames: int
    n_missing: int
    is_complete: bool
    reason: str


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
    on_frame
        Called with the frames received and those missing so far.

    Raises
    ------
    OSError
        The disk is full or failed; what was written stays as ``.partial``.
    """
    frames = consumer.frames(_IDLE_S)
    ctrl_c = _CtrlC()
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
        try:
            while n_frames is None or file.n_frames < n_frames:
                try:
                    with ctrl_c.may_interrupt():
                        frame = next(frames, None)
                except WaitTimeout:
                    file.flush()
                    frames = consumer.frames(_IDLE_S)
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
                file.append(
                    frame.data,
                    frame_id=frame.frame_id,
                    timestamp_ns=frame.timestamp_ns,
                    flex=frame.flex,
                    n_lost=frame.n_lost,
                )
                if on_frame is not None:
                    on_frame(file.n_frames, file.n_missing)
        except KeyboardInterrupt:
            reason = "stopped by the user"
        except ChannelClosed as error:
            reason, has_died = str(error).splitlines()[0], True
        is_complete = not has_died and (n_frames is None or file.n_frames >= n_frames)
        if not is_complete and n_frames is not None:
            reason = f"{reason} after {file.n_frames} of {n_frames} frames"
        reason = (restarts + reason).removesuffix("; ")
        file.finish(is_complete, reason)
        return Recording(file.n_frames, file.n_missing, is_complete, reason)


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
