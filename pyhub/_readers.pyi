import os
from typing import Final, final

from pyhub._datablock import Cursor, DataBlock

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
    def rows(
        self,
    ) -> list[tuple[str, int, int, int, int, int, int, int, int, int, int]]: ...

@final
class Admission:
    @property
    def table(self) -> ReaderTable: ...
    @staticmethod
    def admit(
        block: DataBlock,
        table: ReaderTable,
        name: str,
        policy: int,
        from_first: bool,
        lease: int,
        timeout_s: float | None,
    ) -> tuple[Admission, Cursor]: ...
    def pass_(self, cursor: Cursor, n_read: int, n_lost: int, lag: int) -> None: ...
    def pin(
        self, cursor: Cursor, in_order: bool
    ) -> tuple[
        int, int, int, int, int | None, int, int, int, int, bytes | None, int, bool, bool, int
    ]: ...
    def unpin(self, pin: int) -> None: ...
    def leave(self) -> None: ...
