"""The weight formats, a row each: docs/operators.md as data.

A weight is a matrix [N, K]; N outputs, K inputs. Every format works row by row, so rows of a packed tensor can be cut
and stacked, and a merged layer holds exactly what its parts would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekit.spec.names import (
    FUSED_MATMUL,
    INT4_MATMUL,
    INT8_BLOCK_MATMUL,
    INT8_MATMUL,
    NATIVE_OPERATORS,
    OPTIONAL_OPERATORS,
    SPARSE_MATMUL,
    TERNARY_MATMUL,
)

NATIVE_BLOCK = 128
"""Codes of a block that edgekit's own operators read at a time."""
STOCK_BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes of MatMulNBits and GatherBlockQuantized."""


@dataclass(frozen=True)
class Format:
    """One weight format.

    ``layout`` of the data: "floats" [N, K]; "blocks", uint8 [N, ceil(K/b), b * bits / 8], K padded with the code of
    zero; "sparse", uint8 [bytes]. ``scales``, of ``scale_dtype``: "none", "row" [N], "block" [N, ceil(K/b)], or "ternary",
    [1], [N] or [N, ceil(K/b)], whichever is the smallest. ``lookup`` is how rows of a table are read: "rows" by Gather;
    "quantized" by GatherBlockQuantized, without padding; "scaled" by Gather of codes and of their scales; "" not at
    all.
    """

    name: str
    bits: int  # of a code
    dtype: str  # ONNX name in lower case
    layout: Literal["floats", "blocks", "sparse"]
    scales: Literal["none", "row", "block", "ternary"]
    operator: str  # that multiplies with it
    lookup: Literal["rows", "quantized", "scaled", ""]
    stand_in: str = ""  # stored instead where the weight is a table that cannot be read, or sparse is no gain
    block_size: int = 0  # default b
    block_sizes: tuple[int, ...] = ()  # that a recipe may choose
    scale_dtype: str = "float"  # ONNX name in lower case

    def nbytes(self, rows: int, columns: int, block_size: int = 0) -> int:
        """Bytes of a dense weight, padding and scales included (t2: a scale for each block)."""
        if self.layout == "floats":
            return rows * columns * self.bits // 8
        block = block_size or self.block_size
        blocks = -(-columns // block)
        scales = 1 if self.scales == "row" else blocks
        return rows * (blocks * block * self.bits // 8 + scales * self.scale_bits // 8)

    @property
    def scale_bits(self) -> int:
        return 16 if self.scale_dtype == "float16" else 32

    def activation_block_size(self, block_size: int, own: int) -> int:
        """In which blocks the operator rounds its input, as Layer says it; ``own`` is how the model itself does."""
        return (block_size or NATIVE_BLOCK) if own < 0 and self.operator in NATIVE_OPERATORS else own


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("fp32", 32, "float", "floats", "none", FUSED_MATMUL, "rows"),
        Format("fp16", 16, "float16", "floats", "none", FUSED_MATMUL, "rows"),
        Format("int8", 8, "uint8", "blocks", "block", INT8_BLOCK_MATMUL, "quantized", "", 64, STOCK_BLOCKS),
        Format("int8-channel", 8, "uint8", "blocks", "row", INT8_MATMUL, "scaled", "", NATIVE_BLOCK),
        Format("int4", 4, "uint8", "blocks", "block", INT4_MATMUL, "quantized", "", 64, STOCK_BLOCKS),
        Format("int4-fp16", 4, "uint8", "blocks", "block", INT4_MATMUL, "", "int4", 32, STOCK_BLOCKS, "float16"),
        Format("t2", 2, "uint8", "blocks", "ternary", TERNARY_MATMUL, "", "int8", NATIVE_BLOCK, (NATIVE_BLOCK,)),
        Format("sparse-int4", 4, "uint8", "sparse", "row", SPARSE_MATMUL, "", "int4", NATIVE_BLOCK),
        Format("sparse-int8", 8, "uint8", "sparse", "row", SPARSE_MATMUL, "", "int8", NATIVE_BLOCK),
    )
}
SEARCHED = tuple(row.name for row in FORMATS.values() if row.operator == INT4_MATMUL)
"""Those whose scales a recipe's ``calibrate`` searches with real input."""
NATIVE_FORMATS = tuple(row.name for row in FORMATS.values() if row.operator in NATIVE_OPERATORS)
"""Those whose layers run on edgekit's own operators."""
EXPERT_FORMATS = ("int8", "int4", "t2")
"""Those whose weights ExpertMatMul reads."""
NEEDED_FORMATS = tuple(name for name in NATIVE_FORMATS if FORMATS[name].operator not in OPTIONAL_OPERATORS)
"""Those of them whose layers are slower, or rounded in another way, without edgekit's library."""
