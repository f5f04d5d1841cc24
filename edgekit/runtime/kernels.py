"""Which kernels really ran: read from ONNX Runtime's own profile, because a fallback is silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.bundle import Bundle
from edgekit.spec.names import CACHED_ATTENTION, GATHER_QUANTIZED, MATMUL_NBITS, NATIVE_OPERATORS, SPARSE_MATMUL

HEAVY = (
    *NATIVE_OPERATORS, MATMUL_NBITS, "MoE", "QMoE", "FusedMatMul", "MatMul", "Gemm", "FusedGemm", GATHER_QUANTIZED, "Conv", "FusedConv",
    "QLinearConv", "ConvInteger", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
)  # fmt: skip
"""Operators that read weights, or a cache; the rest is small change."""
SPARSE_ISA = "avx512vbmi2"
"""Where sparse layers were measured to be faster than dense ones (docs/kernels.md)."""
SHOWN = {"bits": "bits", "expert_weight_bits": "bits", "block_size": "block", "accuracy_level": "acc"}


@dataclass(frozen=True)
class Kernel:
    """One kind of kernel and how often it ran per inference."""

    op: str
    settings: str  # "bits=4,block=32,acc=4"; a native operator's instruction set; or nothing
    body_of: str  # the function whose body it stands in, or nothing
    count: int

    def __str__(self) -> str:
        text = f"{self.op}({self.settings})" if self.settings else self.op
        if self.body_of:
            return f"{self.body_of}: function body ({text})×{self.count}"
        if self.op in NATIVE_OPERATORS:
            slow = self.op == SPARSE_MATMUL and self.settings != SPARSE_ISA
            note = f", slower than dense without {SPARSE_ISA}" if slow else ""
            return f"{self.op}: native operator ({self.settings}{note})×{self.count}"
        return f"{text}×{self.count}"


def describe(kernels: tuple[Kernel, ...]) -> str:
    """One line for reports, for instance ``MatMulNBits(bits=4,block=32,acc=4)×121``."""
    return ", ".join(str(kernel) for kernel in kernels) or "none that reads weights"


def from_nodes(bundle: Bundle, nodes: Sequence[tuple[str, str]], isa: str) -> tuple[Kernel, ...]:
    """The heavy kernels among nodes that ran, given as operator and name."""
    settings, bodies = _settings(bundle)
    ran: Counter[tuple[str, str, str]] = Counter()
    for op, name in nodes:
        # ONNX Runtime names what it inlines "_inlfunc_<function>_...".
        body = next((f for f in bodies if name.startswith(f"_inlfunc_{f}_")), "")
        if op not in HEAVY and body != CACHED_ATTENTION:
            continue
        shown = isa if op in NATIVE_OPERATORS else settings.get(name, "")
        ran[op, bodies[body].get(op, "") if body else shown, body] += 1
    return tuple(Kernel(*key, count) for key, count in ran.most_common())


def _settings(bundle: Bundle) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Settings of the graph's nodes by name, and of the nodes in each function by function and operator."""
    import onnx

    model = onnx.load(bundle.graph_path, load_external_data=False)
    nodes = {node.name: _shown(node) for node in model.graph.node}
    return nodes, {f.name: {node.op_type: _shown(node) for node in f.node} for f in model.functions}


def _shown(node: Any) -> str:
    values = {a.name: a.i for a in node.attribute if not a.ref_attr_name}
    return ",".join(f"{short}={values[name]}" for name, short in SHOWN.items() if name in values)
