import os
from typing import Final, TypeVar, final

from pyhub._datablock import DataBlock
from pyhub._reading import Cursor, FrameRecord

_Kind = TypeVar("_Kind", bound=FrameRecord)

LATEST: Final[int]
EVERY: Final[int]
BLOCK: Final[int]
DROP_NEWEST: Final[int]
DROP_OLDEST: Final[int]

@final
class ReaderTable:
    @staticmethod
    def attach(block: DataBlock, leases: str | os.PathLike[str]) -> ReaderTable: ...
    @property
    def n_places(self) -> int: ...
    @property
    def patience_s(self) -> float: ...
    def let_sleep(self, cursor: Cursor) -> None: ...
    def rows(
        self,
    ) -> list[tuple[str, int, int, int, int, int, int, int, int, int, int]]: ...

@final
class Admission:
    @property
    def table(self) -> ReaderTable: ...
    @staticmethod
    def admit(
        cursor: Cursor,
        table: ReaderTable,
        name: str,
        policy: int,
        from_first: bool,
        lease: int,
        timeout_s: float | None,
    ) -> Admission: ...
    def pass_(self, cursor: Cursor, lag: int) -> None: ...
    def pin(
        self, cursor: Cursor, kind: type[_Kind], in_order: bool, timeout_s: float | None = 0.0
    ) -> _Kind | None: ...
    def unpin(self, pin: int) -> None: ...
    def leave(self) -> None: ...

@final
class Pin: ...
