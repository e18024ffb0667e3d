from typing import Any, Final, TypeVar, final

import numpy.typing as npt
from typing_extensions import disjoint_base

from pyhub._datablock import DataBlock

_Kind = TypeVar("_Kind", bound=FrameRecord)

SLICE: Final[float]

@disjoint_base
class FrameRecord:
    data: npt.NDArray[Any]
    n_lost: int
    has_new_data: bool
    has_new_flex: bool
    is_restart: bool
    _flex: dict[str, Any] | None
    _release: Any
    def __init__(
        self,
        data: npt.NDArray[Any],
        frame_id: int,
        timestamp_ns: int,
        version: int,
        flex_version: int,
        encoding: int,
        packed: bytes | None,
    ) -> None: ...
    @property
    def frame_id(self) -> int: ...
    @property
    def timestamp_ns(self) -> int: ...
    @property
    def timestamp(self) -> float: ...
    @property
    def version(self) -> int: ...
    @property
    def flex_version(self) -> int: ...
    @property
    def encoding(self) -> int: ...
    @property
    def packed(self) -> bytes | None: ...
    @property
    def channel(self) -> str | None: ...
    def is_in_place(self) -> bool: ...

@final
class Cursor:
    def __init__(
        self,
        block: DataBlock,
        *,
        from_first: bool,
        former: Cursor | None = None,
        is_restart: bool = False,
    ) -> None: ...
    @property
    def block(self) -> DataBlock: ...
    @property
    def n_read(self) -> int: ...
    @property
    def n_lost(self) -> int: ...
    @property
    def began_s(self) -> float: ...
    @property
    def position(self) -> int: ...
    @property
    def lag_frames(self) -> int: ...
    def wait_by(self, spin_s: float | None) -> None: ...
    def read(
        self,
        kind: type[_Kind],
        in_order: bool,
        out: npt.NDArray[Any] | None,
        timeout_s: float | None = 0.0,
    ) -> _Kind | None: ...
    def look(
        self, kind: type[_Kind], in_order: bool, timeout_s: float | None = 0.0
    ) -> _Kind | None: ...

def newest(block: DataBlock, kind: type[_Kind], with_data: bool = True) -> _Kind | None: ...
