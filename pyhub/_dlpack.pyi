from typing import Any

import numpy.typing as npt
from typing_extensions import CapsuleType

def export(array: npt.NDArray[Any], max_version: tuple[int, int] | None) -> CapsuleType: ...
