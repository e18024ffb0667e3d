from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, final

import numpy.typing as npt
from typing_extensions import disjoint_base

from pyhub._datablock import DataBlock

FLEX_JSON: Final[int]
FLEX_MSGPACK: Final[int]
DEFAULT_TIMEOUT_S: Final[float]

def checked_number(what: str, value: Any) -> int: ...

@disjoint_base
class Writer:
    _notify: Callable[[Any], None] | None
    _is_closed: bool
    def __new__(cls, block: DataBlock, notify: Callable[[Any], None] | None = None) -> Self: ...
    @property
    def _block(self) -> DataBlock: ...
    @property
    def _is_dropped(self) -> bool: ...
    def publish(self, *, timeout_s: float | None = 5.0) -> Publication: ...
    def _open(self, timeout_s: float | None) -> None: ...
    def _data(self) -> npt.NDArray[Any]: ...
    def _take_flex(self) -> int: ...
    def _publish(
        self,
        zones: int,
        size: int,
        flex_size: int,
        encoding: int,
        frame_id: int | None,
        timestamp_ns: int,
    ) -> bool: ...
    def _put(
        self,
        array: npt.NDArray[Any] | None,
        packed: bytes | None,
        frame_id: int | None,
        timestamp_ns: int,
        encoding: int,
        timeout_s: float | None,
    ) -> bool | None: ...

@final
class Publication:
    frame_id: int | None
    timestamp_ns: int
    n_rows: int | None
    encoding: Any
    def __enter__(self) -> Publication: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    @property
    def is_dropped(self) -> bool: ...
    @property
    def data(self) -> npt.NDArray[Any]: ...
    @data.setter
    def data(self, value: npt.ArrayLike) -> None: ...
    @property
    def flex(self) -> dict[str, Any] | None: ...
    @flex.setter
    def flex(self, parameters: dict[str, Any]) -> None: ...
    def copy_from(self, array: npt.NDArray[Any]) -> None: ...
    def copy_packed(self, packed: bytes) -> None: ...
