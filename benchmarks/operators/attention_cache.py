"""ONNX Runtime's attention with a float32 and with an int8 key-value cache, by tokens in the cache.

    python -m benchmarks.operators.attention_cache [--threads 1 2]

30 layers of GroupQueryAttention in the shape of BitNet b1.58 2B4T (20 query and 5 key-value heads of 128), packed queries,
keys and values, rotation inside, past and present one buffer. int8 has one scale for each tensor, the cheapest there is.
Milliseconds for all layers, medians; what else a model does is left out.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.runtime.session import onnxruntime
from edgekit.spec.names import MICROSOFT, SPIN_MICROSECONDS

HEADS, KV_HEADS, DIM, LAYERS, POSITIONS = 20, 5, 128, 30, 8192
KINDS = {"float32": (ir.DataType.FLOAT, np.float32), "int8": (ir.DataType.INT8, np.int8)}
CONTEXTS = (128, 512, 1024, 4000)


def main() -> None:
    """Measures every cell and prints a row a context."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    for threads in options.threads:
        print(f"{threads} thread(s): cache, 1 token float32 / int8, 128 tokens float32 / int8")
        sessions = {kind: _session(kind, threads) for kind in KINDS}
        for context in CONTEXTS:
            cells = [_milliseconds(sessions[kind], kind, context, new) for new in (1, 128) for kind in KINDS]
            print(f"  {context:>5}  " + "  ".join(f"{cell:8.1f}" for cell in cells))


def _session(kind: str, threads: int) -> Any:
    element = KINDS[kind][0]
    width = (HEADS + 2 * KV_HEADS) * DIM
    qkv = _value("qkv", ir.DataType.FLOAT, [1, "new", width])
    lengths, total = _value("lengths", ir.DataType.INT32, [1]), _value("total", ir.DataType.INT32, [1])
    angle = np.outer(np.arange(POSITIONS), 1e4 ** -np.linspace(0, 1, DIM // 2)).astype(np.float32)
    constants = [_constant("cos", np.cos(angle)), _constant("sin", np.sin(angle))]
    scale = _constant("scale", np.full(1, 0.02, np.float32))
    inputs, outputs, nodes = [qkv, lengths, total], [], []
    attributes = [
        ir.AttrInt64("num_heads", HEADS),
        ir.AttrInt64("kv_num_heads", KV_HEADS),
        ir.AttrInt64("do_rotary", 1),
    ]
    if kind == "int8":
        attributes += [ir.AttrInt64("kv_cache_bit_width", 8), ir.AttrString("k_quant_type", "PER_TENSOR"), ir.AttrString("v_quant_type", "PER_TENSOR")]  # fmt: skip
    for layer in range(LAYERS):
        past = [_value(f"past.{part}.{layer}", element, [1, KV_HEADS, "slots", DIM]) for part in "kv"]
        made = [_value(f"out.{layer}", ir.DataType.FLOAT, [1, "new", HEADS * DIM])]
        made += [_value(f"present.{part}.{layer}", element, [1, KV_HEADS, "slots", DIM]) for part in "kv"]
        given = [qkv, None, None, *past, lengths, total, *constants]
        given += [None, None, None, scale, scale] if kind == "int8" else []
        nodes.append(ir.Node(MICROSOFT, "GroupQueryAttention", given, attributes, outputs=made, name=f"layer{layer}"))
        inputs += past
        outputs += made
    constants += [scale] if kind == "int8" else []
    graph = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=constants, opset_imports={"": 21, MICROSOFT: 1}, name="g"
    )
    ort = onnxruntime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def _value(name: str, kind: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)


def _milliseconds(session: Any, kind: str, context: int, new: int) -> float:
    random, ort = np.random.default_rng(0), onnxruntime()
    binding, held = session.io_binding(), []

    def bind(name: str, array: np.ndarray, output: bool = False) -> None:
        held.append(array)
        value = ort.OrtValue.ortvalue_from_numpy(array)
        (binding.bind_ortvalue_output if output else binding.bind_ortvalue_input)(name, value)

    bind("qkv", random.standard_normal((1, new, (HEADS + 2 * KV_HEADS) * DIM)).astype(np.float32))
    bind("lengths", np.array([context + new - 1], np.int32))
    bind("total", np.array([context + new], np.int32))
    for layer in range(LAYERS):
        for part in "kv":
            cache = (
                (30 * random.standard_normal((1, KV_HEADS, context + new, DIM))).clip(-127, 127).astype(KINDS[kind][1])
            )
            bind(f"past.{part}.{layer}", cache)
            bind(f"present.{part}.{layer}", cache, output=True)
        bind(f"out.{layer}", np.empty((1, new, HEADS * DIM), np.float32), output=True)
    session.run_with_iobinding(binding)
    times = []
    for _ in range(9 if new == 1 else 3):
        began = time.perf_counter()
        session.run_with_iobinding(binding)
        times.append(time.perf_counter() - began)
    return median(times) * 1e3


if __name__ == "__main__":
    main()
