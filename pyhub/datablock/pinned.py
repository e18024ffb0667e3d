"""A frame that producers leave alone, where it lies."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from pyhub._dlpack import export
from pyhub.datablock.frame import Frame

if TYPE_CHECKING:
    from typing_extensions import CapsuleType

__all__ = ["PinnedFrame"]

_CPU = (1, 0)  # DLPack's number for it


class PinnedFrame(Frame):
    """A frame in shared memory, without a copy, that no producer overwrites.

    Release it soon, best by a `with` block: producers pass its slot over, so
    the ring is shorter meanwhile. Attributes are those of `Frame`; `data` is
    read-only, stays mapped as long as anybody holds it, and holds the frame
    until the release. Exports itself through DLPack (``torch.from_dlpack(frame)``,
    ``jax.dlpack.from_dlpack(frame)``), also without a copy; whoever writes into
    such a tensor ends the process with a segmentation fault.
    """

    __slots__ = ()

    def release(self) -> None:
        """Let producers overwrite the frame. May be called twice."""
        self._release = None

    @property
    def is_pinned(self) -> bool:
        """Whether it was not released yet."""
        return self._release is not None

    def __enter__(self) -> PinnedFrame:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> CapsuleType:
        """Export `data` as the array API's protocol has it.

        Raises
        ------
        BufferError
            DLPack has no such dtype, or a copy or another device is asked for.
        """
        if stream is not None or copy or dl_device not in (None, _CPU):
            raise BufferError("a pinned frame lies in this machine's memory and is not copied")
        try:
            return export(self.data, max_version)
        except ValueError as error:  # what DLPack cannot describe
            raise BufferError(str(error)) from error

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's name for the memory it lies in: the CPU's."""
        return _CPU
