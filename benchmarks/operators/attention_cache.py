"""Attention over a float32 cache by ONNX Runtime and by CachedAttention, and over an int8 cache, by tokens in the cache.

    python -m benchmarks.operators.attention_cache [--threads 1 2] [--heads 9 3 64] [--layers 3] [--clock cpu] [--json]

Layers of attention, by default 30 in the shape of BitNet b1.58 2B4T (20 query and 5 key-value heads of 128), packed queries,
keys and values, rotation inside, past and present one buffer. int8 has one scale for each tensor, the cheapest there is.
Milliseconds for all layers, medians and least of rounds in turns; what else a model does is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.lowbit.library import register_library
from edgekit.runtime.session import onnxruntime
from edgekit.spec.names import CACHED_ATTENTION, EDGEKIT, GROUP_QUERY_ATTENTION, MICROSOFT, SPIN_MICROSECONDS

POSITIONS = 8192
KINDS = {
    CACHED_ATTENTION: (ir.DataType.FLOAT, np.float32), GROUP_QUERY_ATTENTION: (ir.DataType.FLOAT, np.float32),
    "GroupQueryAttention, int8": (ir.DataType.INT8, np.int8),
}  # fmt: skip
CONTEXTS = (128, 512, 1024, 4000)
NEW = (1, 4, 128)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Measures every cell and prints a row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--heads", type=int, nargs=3, default=(20, 5, 128), metavar=("QUERY", "KEY_VALUE", "SIZE"))
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--new", type=int, nargs="+", default=NEW, help="new tokens")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS, help="tokens in the cache before them")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of all threads, on a busy machine")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    rows = [row for threads in options.threads for row in _rows(options, threads)]
    if options.json:
        print(json.dumps({"heads": list(options.heads), "layers": options.layers, "rows": rows}))


def _rows(options: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    sessions = {kind: _session(kind, threads, options.heads, options.layers) for kind in KINDS}
    rows: list[dict[str, Any]] = []
    for context in options.contexts:
        for new in options.new:
            runs = {kind: _bound(sessions[kind], kind, context, new, options.heads, options.layers) for kind in KINDS}
            for kind, times in _turns(runs, options.rounds, CLOCKS[options.clock]).items():
                rows.append({"impl": kind, "threads": threads, "context": context, "new": new, "median_ms": median(times), "min_ms": min(times)})  # fmt: skip
                if not options.json:
                    print(f"{threads} thread(s), {context:>5} + {new:<3} {kind:<26} {median(times):9.2f} (least {min(times):9.2f})")  # fmt: skip
    return rows


def _turns(runs: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for turn in range(rounds):
        for kind in runs if turn % 2 == 0 else reversed(runs):
            began = clock()
            runs[kind]()
            times[kind].append((clock() - began) * 1e3)
    return times


def _session(kind: str, threads: int, heads: tuple[int, int, int], layers: int) -> Any:
    element, own, int8 = KINDS[kind][0], kind == CACHED_ATTENTION, KINDS[kind][1] is np.int8
    queries, groups, size = heads
    qkv = _value("qkv", ir.DataType.FLOAT, [1, "new", (queries + 2 * groups) * size])
    lengths, total = _value("lengths", ir.DataType.INT32, [1]), _value("total", ir.DataType.INT32, [1])
    angle = np.outer(np.arange(POSITIONS), 1e4 ** -np.linspace(0, 1, size // 2)).astype(np.float32)
    constants = [_constant("cos", np.cos(angle)), _constant("sin", np.sin(angle))]
    scale = _constant("scale", np.full(1, 0.02, np.float32))
    inputs, outputs, nodes = [qkv, lengths, total], [], []
    ints = {"num_heads": queries, "kv_num_heads": groups, "do_rotary": 1, "rotary_interleaved": 0, "local_window_size": -1}  # fmt: skip
    attributes = [ir.AttrInt64(name, value) for name, value in ints.items()]
    attributes += [ir.AttrFloat32("scale", size**-0.5), ir.AttrFloat32("softcap", 0.0)]
    if int8:
        attributes += [ir.AttrInt64("kv_cache_bit_width", 8), ir.AttrString("k_quant_type", "PER_TENSOR"), ir.AttrString("v_quant_type", "PER_TENSOR")]  # fmt: skip
    for layer in range(layers):
        past = [_value(f"past.{part}.{layer}", element, [1, groups, "slots", size]) for part in "kv"]
        made = [_value(f"out.{layer}", ir.DataType.FLOAT, [1, "new", queries * size])]
        made += [_value(f"present.{part}.{layer}", element, [1, groups, "slots", size]) for part in "kv"]
        given = [qkv, None, None, *past, lengths, total, *constants]
        given += [None, None, None, scale, scale] if int8 else []
        domain, op = (EDGEKIT, CACHED_ATTENTION) if own else (MICROSOFT, GROUP_QUERY_ATTENTION)
        nodes.append(ir.Node(domain, op, given, attributes, outputs=made, name=f"layer{layer}"))
        inputs += past
        outputs += made
    constants += [scale] if int8 else []
    graph = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=constants, opset_imports={"": 21, MICROSOFT: 1, EDGEKIT: 1}, name="g"
    )
    ort = onnxruntime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    if own:
        register_library(settings)
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def _value(name: str, kind: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)


def _bound(
    session: Any, kind: str, context: int, new: int, heads: tuple[int, int, int], layers: int
) -> Callable[[], None]:
    """What runs all layers once on buffers of their own; it has run once."""
    random, ort = np.random.default_rng(0), onnxruntime()
    binding, held = session.io_binding(), []
    queries, groups, size = heads

    def bind(name: str, array: np.ndarray, output: bool = False) -> None:
        held.append(array)
        value = ort.OrtValue.ortvalue_from_numpy(array)
        (binding.bind_ortvalue_output if output else binding.bind_ortvalue_input)(name, value)

    bind("qkv", random.standard_normal((1, new, (queries + 2 * groups) * size)).astype(np.float32))
    bind("lengths", np.array([context + new - 1], np.int32))
    bind("total", np.array([context + new], np.int32))
    shape, element = (1, groups, context + new, size), KINDS[kind][1]
    for layer in range(layers):
        for part in "kv":
            cache = random.integers(-127, 128, shape, np.int8).astype(element)
            cache = cache if element is np.int8 else cache / np.float32(40)
            bind(f"past.{part}.{layer}", cache)
            bind(f"present.{part}.{layer}", cache, output=True)
        bind(f"out.{layer}", np.empty((1, new, queries * size), np.float32), output=True)

    def run() -> None:
        assert held  # the binding does not keep them
        session.run_with_iobinding(binding)

    run()
    return run


if __name__ == "__main__":
    main()
