"""Initializers of an ONNX graph that are read a few rows at a time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.lowbit.weights import RowWeight, Weight


class WeightTensor(ir.LazyTensor):
    """An initializer float32 [N, K] that need not be read whole."""

    def __init__(self, weight: RowWeight, name: str) -> None:
        self.weight = weight
        super().__init__(
            lambda: ir.tensor(weight[:], name=name), dtype=ir.DataType.FLOAT, shape=ir.Shape(weight.shape), name=name
        )


def weight_of(tensor: ir.TensorProtocol) -> Weight:
    """What an initializer holds: read by rows where it can be, whole otherwise."""
    if isinstance(tensor, WeightTensor):
        return tensor.weight
    array: NDArray[np.generic] = tensor.numpy()
    return array
