"""What is left of a layer whose dead units were removed from the graph, for those who still have the whole one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Kept:
    """What is left of a layer of ``size`` rows: int64 indices of its rows and columns.

    ``bias`` float32 [size], or None, is the whole bias with the constants in it that removed inputs contributed.
    """

    size: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    bias: NDArray[np.float32] | None = None
